//! Why the controller group did not carry out a command, as data.

use crate::metadata::Refusal;
use crate::model::PartitionError;
use crate::raft::GroupError;

/// Why the controller group did not do what it was asked to do.
///
/// Everything but [`ControllerError::OutcomeUnknown`] means that nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ControllerError {
    /// The group has no leader, or the leader cannot be reached; the same command may succeed later.
    #[error("{0}")]
    Unavailable(String),
    /// The group has judged the command, and refuses it.
    #[error("{0}")]
    Refused(Refusal),
    /// The bytes are no command that this version knows.
    #[error("command: this version does not know it: {0}")]
    UnknownCommand(String),
    /// The change may or may not have happened.
    #[error("it may or may not have happened: {0}")]
    OutcomeUnknown(Box<ControllerError>),
    /// The group's log on this node failed.
    #[error("{0}")]
    Failed(PartitionError),
    /// A defect in the node.
    #[error("{0}")]
    Internal(String),
}

impl ControllerError {
    /// A change whose outcome is open, and why.
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

impl From<GroupError> for ControllerError {
    fn from(error: GroupError) -> Self {
        PartitionError::from(error).into()
    }
}
