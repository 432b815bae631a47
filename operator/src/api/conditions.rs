//! Conditions: the words in which a status says what holds.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;

/// Conditions of a cluster; docs/operations/operator-conditions.md has their reasons.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ConditionType {
    /// The cluster takes appends and reads.
    Available,
    /// Every group has a majority of its voters.
    Quorate,
    /// The operator is changing something, or waits for something that it has changed.
    Progressing,
    /// Something is wrong that the operator does not mend by itself, or has not mended yet.
    Degraded,
    /// Every node runs what the spec says, and has taken its configuration file.
    UpToDate,
    /// Volumes are bound and as large as the spec says.
    StorageHealthy,
    /// Every certificate is there and what nodes serve.
    CertificatesValid,
    /// A topic or user is in the cluster as its spec says.
    Ready,
}

impl ConditionType {
    /// As in `type`.
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

/// The condition of a type.
pub fn condition_of(conditions: &[Condition], kind: ConditionType) -> Option<&Condition> {
    conditions.iter().find(|condition| condition.type_ == kind.name())
}

/// Sets a condition. `holds`: true, false, or `None` for unknown. The time of the last transition changes only with the status.
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
