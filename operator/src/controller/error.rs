//! Errors of reconciliation, by what helps.

use std::time::Duration;

use crate::admin::AdminError;

/// Longest pass: a comparison of all topics, and then some.
pub const PASS_TIMEOUT: Duration = Duration::from_secs(150);

/// Why a reconciliation ended early.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// The API server refused or did not answer.
    #[error("{action}: {source}")]
    Kube {
        /// What was tried.
        action: String,
        /// Its answer.
        #[source]
        source: kube::Error,
    },
    /// The cluster's nodes refused or did not answer.
    #[error("{action}: {source}")]
    Admin {
        /// What was tried.
        action: String,
        /// Their answer.
        #[source]
        source: AdminError,
    },
    /// An object that is needed belongs to somebody else.
    #[error(
        "{kind} {name} already exists and is not owned by this resource (owner: {owner}): delete or rename it, or choose another name for \
         this resource"
    )]
    Foreign {
        /// Kind of the object.
        kind: String,
        /// Its name.
        name: String,
        /// Whom it belongs to.
        owner: String,
    },
    /// A pass took too long, such as when the API server takes requests and does not answer.
    #[error("timed out after {} s", PASS_TIMEOUT.as_secs())]
    TimedOut,
    /// An object of a resource of the same name that was deleted is not gone yet.
    #[error("waiting for {kind} {name} of a deleted resource with the same name to be garbage-collected")]
    Former {
        /// Kind of the object.
        kind: String,
        /// Its name.
        name: String,
    },
}

impl ReconcileError {
    pub(crate) fn kube(action: impl Into<String>) -> impl FnOnce(kube::Error) -> Self {
        let action = action.into();
        move |source| Self::Kube { action, source }
    }

    pub(crate) fn admin(action: impl Into<String>) -> impl FnOnce(AdminError) -> Self {
        let action = action.into();
        move |source| Self::Admin { action, source }
    }

    /// Class, as a label of metrics and a reason of events and conditions.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Kube { source, .. } if is_conflict(source) => "Conflict",
            Self::Kube { source: kube::Error::Api(status), .. } if status.is_forbidden() => "Forbidden",
            Self::Kube { source: kube::Error::Api(status), .. } if status.is_invalid() => "Rejected",
            Self::Kube { .. } => "ApiServerFailed",
            Self::Admin { source: AdminError::Refused { .. }, .. } => "ClusterRefused",
            Self::Admin { source: AdminError::TwoClusters(_), .. } => "TwoClusters",
            Self::Admin { .. } => "ClusterFailed",
            Self::Foreign { .. } => "ForeignObject",
            Self::Former { .. } => "FormerObject",
            Self::TimedOut => "TimedOut",
        }
    }

    /// How long to wait before the next try, the `attempt`-th in a row (from 1). A conflict is tried again at once, what may pass soon
    /// doubles from a second, and what needs a person is looked at every minute.
    pub fn pause(&self, attempt: u32) -> Duration {
        let doubled = Duration::from_secs(1 << attempt.clamp(1, 6).saturating_sub(1));
        match self.reason() {
            "Conflict" => Duration::from_millis(100) * attempt.min(10),
            "Forbidden" | "Rejected" | "ForeignObject" | "TwoClusters" => Duration::from_secs(60),
            "ClusterRefused" => doubled.max(Duration::from_secs(5)),
            _ => doubled,
        }
    }

    /// Whether time alone may mend it.
    pub fn is_transient(&self) -> bool {
        matches!(self.reason(), "Conflict" | "ApiServerFailed" | "ClusterFailed" | "FormerObject" | "TimedOut")
    }
}

/// The object is not there.
pub fn is_not_found(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}

/// Somebody else was first.
pub fn is_conflict(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 409)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn api(code: u16, reason: &str) -> ReconcileError {
        let status = kube::core::Status { code, reason: reason.into(), ..kube::core::Status::default() };
        ReconcileError::kube("x")(kube::Error::Api(Box::new(status)))
    }

    #[test]
    fn the_pause_grows_with_what_may_pass_and_is_long_for_what_needs_a_person() {
        let failed = api(500, "InternalError");
        let pauses: Vec<u64> = (1..9).map(|attempt| failed.pause(attempt).as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 32, 32]);
        assert!(api(409, "Conflict").pause(1) < Duration::from_secs(1));
        assert_eq!(api(422, "Invalid").pause(1), Duration::from_secs(60));
        assert_eq!(api(403, "Forbidden").reason(), "Forbidden");
        assert!(!api(403, "Forbidden").is_transient() && failed.is_transient());
    }
}
