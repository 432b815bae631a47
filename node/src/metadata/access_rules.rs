//! Access rules and quotas: the part of the cluster's metadata that the controller group replicates.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::security::{AclRule, Quota};

/// All access rules and quotas of the cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccessRules {
    /// Increases with every change: caches derived from the rules compare it to detect that they are stale.
    pub revision: u64,
    /// The rules; a set, so that each is stored once.
    pub rules: BTreeSet<AclRule>,
    /// Quota of principals without an entry in `quotas`; `None`: unlimited.
    #[serde(default)]
    pub default_quota: Option<Quota>,
    /// By principal.
    #[serde(default)]
    pub quotas: BTreeMap<String, Quota>,
}

impl AccessRules {
    /// Returns the effective quota of a principal.
    pub fn quota(&self, principal: &str) -> Quota {
        self.quotas.get(principal).copied().or(self.default_quota).unwrap_or_default()
    }
}
