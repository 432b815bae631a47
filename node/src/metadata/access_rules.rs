//! Access rules and quotas as the controller group replicates them.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::security::{AclRule, Quota};

/// Who may do what, and how much.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccessRules {
    /// Grows with every change: who has derived something from these sees by it that it is old.
    pub revision: u64,
    /// Each rule once.
    pub rules: BTreeSet<AclRule>,
    /// Of principals without one of their own; `None`: no bound.
    #[serde(default)]
    pub default_quota: Option<Quota>,
    /// By principal.
    #[serde(default)]
    pub quotas: BTreeMap<String, Quota>,
}

impl AccessRules {
    /// The quota that counts for a principal.
    pub fn quota(&self, principal: &str) -> Quota {
        self.quotas.get(principal).copied().or(self.default_quota).unwrap_or_default()
    }
}
