//! Maps errors of partitions and of the controller to the errors that clients receive.

use crate::controller::ControllerError;
use crate::metadata::{ControllerState, Refusal};
use crate::model::{ApiError, PartitionError, Reason};

/// Converts an error of a partition for clients. `state`: contains the leader's address.
pub(crate) fn partition_error(error: PartitionError, state: &ControllerState) -> ApiError {
    let message = error.to_string();
    match error {
        PartitionError::NotLeader { leader } => match state.nodes.get(&leader) {
            Some(node) => ApiError::not_leader(leader, &node.name, node.addresses.data()),
            None => partition_error(PartitionError::NoLeader, state),
        },
        PartitionError::NoLeader | PartitionError::Unavailable(_) => ApiError::new(Reason::Unavailable, message),
        PartitionError::TopicDeleted => ApiError::new(Reason::UnknownTopic, message),
        PartitionError::NoSuchPartition { .. } => ApiError::new(Reason::UnknownPartition, message),
        PartitionError::OutOfRange { earliest, next, .. } => {
            ApiError::new(Reason::OffsetOutOfRange, message).with("earliest", earliest).with("next", next)
        }
        PartitionError::Damaged { index, .. } => {
            let error = ApiError::new(Reason::DataDamaged, message);
            match index {
                Some(index) => error.with("index", index),
                None => error,
            }
        }
        PartitionError::LargerThanQueue { .. } => ApiError::new(Reason::RecordTooLarge, message),
        PartitionError::OffsetConflict { current, .. } => {
            ApiError::new(Reason::VersionConflict, message).with("current", current)
        }
        PartitionError::KeyConflict { current, .. } => {
            ApiError::new(Reason::VersionConflict, message).with("current", current)
        }
        PartitionError::ProducerFenced { current, .. } => {
            ApiError::new(Reason::ProducerFenced, message).with("current", current)
        }
        PartitionError::OutOfOrderSequence { expected, .. } => {
            ApiError::new(Reason::OutOfOrderSequence, message).with("expected", expected)
        }
        PartitionError::SequenceReused { .. } => ApiError::new(Reason::OutOfOrderSequence, message),
        PartitionError::Overloaded(_) => ApiError::new(Reason::Overloaded, message),
        PartitionError::DiskFull(_) => ApiError::new(Reason::DiskFull, message),
        PartitionError::DiskFailed(_) => ApiError::new(Reason::DiskFailed, message),
        PartitionError::OutcomeUnknown(cause) => ApiError::unknown(&partition_error(*cause, state)),
        PartitionError::Internal(_) => ApiError::new(Reason::Internal, message),
    }
}

impl From<ControllerError> for ApiError {
    fn from(error: ControllerError) -> Self {
        let message = error.to_string();
        match error {
            ControllerError::Unavailable(_) => Self::new(Reason::Unavailable, message),
            ControllerError::Refused(refusal) => refusal.into(),
            ControllerError::UnknownCommand(_) => Self::new(Reason::InvalidRequest, message),
            ControllerError::OutcomeUnknown(cause) => Self::unknown(&Self::from(*cause)),
            // This error never contains a leader, so no metadata is needed.
            ControllerError::Failed(error) => partition_error(error, &ControllerState::default()),
            ControllerError::Internal(_) => Self::new(Reason::Internal, message),
        }
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        let message = refusal.to_string();
        let reason = match refusal {
            Refusal::TopicExists(_) => Reason::TopicExists,
            Refusal::UnknownTopic(_) => Reason::UnknownTopic,
            Refusal::TooManyTopics(_)
            | Refusal::TooManyRules { .. }
            | Refusal::RulesTooLarge { .. }
            | Refusal::TooManyQuotas(_) => Reason::Overloaded,
            _ => Reason::InvalidRequest,
        };
        Self::new(reason, message)
    }
}
