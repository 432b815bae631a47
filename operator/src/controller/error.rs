//! Errors of a reconcile, classified by the retry that can help.

use std::time::Duration;

use crate::admin::AdminError;

/// Time limit of a reconcile. It exceeds the limit of a comparison of all topics.
pub const RECONCILE_TIMEOUT: Duration = Duration::from_secs(150);

/// Why a reconcile failed.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// The API server rejected a request or did not respond.
    #[error("{action}: {source}")]
    Kube {
        /// Action that failed.
        action: String,
        /// Cause.
        #[source]
        source: kube::Error,
    },
    /// The nodes of the cluster rejected a call or did not respond.
    #[error("{action}: {source}")]
    Admin {
        /// Action that failed.
        action: String,
        /// Cause.
        #[source]
        source: AdminError,
    },
    /// An object with a required name has another owner.
    #[error(
        "{kind} {name} already exists and is not owned by this resource (owner: {owner}): delete or rename it, or choose another name for \
         this resource"
    )]
    Foreign {
        /// Kind of the object.
        kind: String,
        /// Name of the object.
        name: String,
        /// Owner of the object, or `none`.
        owner: String,
    },
    /// The reconcile exceeded its time limit, for example because the API server accepts requests and does not respond.
    #[error("timed out after {} s", RECONCILE_TIMEOUT.as_secs())]
    TimedOut,
    /// An object of a deleted resource with the same name still exists.
    #[error("waiting for {kind} {name} of a deleted resource with the same name to be garbage-collected")]
    Former {
        /// Kind of the object.
        kind: String,
        /// Name of the object.
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

    /// Returns the class, for metric labels and as the reason of events and conditions.
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

    /// Returns the delay before the next retry. `attempt` counts consecutive failures from 1. Conflicts are retried within a second,
    /// transient errors back off exponentially from 1 s to 32 s, and errors that need a person are retried every minute.
    pub fn retry_delay(&self, attempt: u32) -> Duration {
        let doubled = Duration::from_secs(1 << attempt.clamp(1, 6).saturating_sub(1));
        match self.reason() {
            "Conflict" => Duration::from_millis(100) * attempt.min(10),
            "Forbidden" | "Rejected" | "ForeignObject" | "TwoClusters" => Duration::from_secs(60),
            "ClusterRefused" => doubled.max(Duration::from_secs(5)),
            _ => doubled,
        }
    }

    /// Returns whether a retry alone can succeed.
    pub fn is_transient(&self) -> bool {
        matches!(self.reason(), "Conflict" | "ApiServerFailed" | "ClusterFailed" | "FormerObject" | "TimedOut")
    }
}

/// Returns whether the object does not exist.
pub fn is_not_found(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}

/// Returns whether the object was changed concurrently.
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
        let pauses: Vec<u64> = (1..9).map(|attempt| failed.retry_delay(attempt).as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 32, 32]);
        assert!(api(409, "Conflict").retry_delay(1) < Duration::from_secs(1));
        assert_eq!(api(422, "Invalid").retry_delay(1), Duration::from_secs(60));
        assert_eq!(api(403, "Forbidden").reason(), "Forbidden");
        assert!(!api(403, "Forbidden").is_transient() && failed.is_transient());
    }
}
