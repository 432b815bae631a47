//! Errors of the controller group, as data.

use crate::metadata::Refusal;
use crate::model::PartitionError;
use crate::raft::RaftGroupError;

/// Why the controller group did not carry out a command.
///
/// All variants except [`ControllerError::OutcomeUnknown`] mean that nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ControllerError {
    /// The group has no leader, or the leader cannot be reached; the same command may succeed later.
    #[error("{0}")]
    Unavailable(String),
    /// The group has applied the command and rejected it.
    #[error("{0}")]
    Refused(Refusal),
    /// The bytes are not a command of this version.
    #[error("command: not supported by this version: {0}")]
    UnknownCommand(String),
    /// Outcome unknown: the change may have been committed.
    #[error("outcome unknown: the change may have been committed: {0}")]
    OutcomeUnknown(Box<ControllerError>),
    /// The group's log on this node failed.
    #[error("{0}")]
    Failed(PartitionError),
    /// A bug in the node.
    #[error("{0}")]
    Internal(String),
}

impl ControllerError {
    /// A change whose outcome is unknown because of `cause`.
    pub fn unknown(cause: ControllerError) -> Self {
        Self::OutcomeUnknown(Box::new(cause))
    }
}

impl From<PartitionError> for ControllerError {
    fn from(error: PartitionError) -> Self {
        match error {
            PartitionError::Unavailable(why) => Self::Unavailable(why),
            error => Self::Failed(error),
        }
    }
}

impl From<RaftGroupError> for ControllerError {
    fn from(error: RaftGroupError) -> Self {
        PartitionError::from(error).into()
    }
}
