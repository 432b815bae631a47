//! Conditions of all resources: their types, and the rules for updating a list of them.
//!
//! Invariant: the transition time changes only with the status, so that an unchanged condition is not written.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;

/// Type of a condition. docs/operations/operator-conditions.md lists the reasons.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ConditionType {
    /// The cluster serves appends and reads.
    Available,
    /// Every Raft group has a live majority of its voters.
    Quorate,
    /// The operator is changing something, or waits for the effect of a change.
    Progressing,
    /// There is a fault that the operator cannot correct, or has not corrected yet.
    Degraded,
    /// Every node matches the spec and has loaded its configuration file.
    UpToDate,
    /// Volumes are bound and have the size of the spec.
    StorageHealthy,
    /// Every certificate exists, and nodes serve it.
    CertificatesValid,
    /// The topic or user in the cluster matches the spec.
    Ready,
}

impl ConditionType {
    /// Returns the value of the field `type`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Available => "Available",
            Self::Quorate => "Quorate",
            Self::Progressing => "Progressing",
            Self::Degraded => "Degraded",
            Self::UpToDate => "UpToDate",
            Self::StorageHealthy => "StorageHealthy",
            Self::CertificatesValid => "CertificatesValid",
            Self::Ready => "Ready",
        }
    }
}

/// A list of conditions under construction.
pub type Conditions = Vec<Condition>;

/// Returns the condition of a type, if there is one.
pub fn condition_of(conditions: &[Condition], kind: ConditionType) -> Option<&Condition> {
    conditions.iter().find(|condition| condition.type_ == kind.name())
}

/// Sets a condition. `holds` is `None` for the status `Unknown`. The time of the last transition changes only with the status.
pub fn set_condition(
    conditions: &mut Conditions,
    kind: ConditionType,
    holds: Option<bool>,
    reason: &str,
    message: impl Into<String>,
    generation: Option<i64>,
    now: Timestamp,
) {
    let status = match holds {
        Some(true) => "True",
        Some(false) => "False",
        None => "Unknown",
    };
    let last_transition_time = match condition_of(conditions, kind) {
        Some(old) if old.status == status => old.last_transition_time.clone(),
        _ => Time(now),
    };
    let condition = Condition {
        type_: kind.name().into(),
        status: status.into(),
        reason: reason.into(),
        message: message.into(),
        observed_generation: generation,
        last_transition_time,
    };
    match conditions.iter_mut().find(|condition| condition.type_ == kind.name()) {
        Some(old) => *old = condition,
        None => conditions.push(condition),
    }
}
