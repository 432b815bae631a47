//! The only table of errors of the gRPC listener. docs/errors.md documents the same table; a test compares the two.

use std::collections::HashMap;

use chronicle_proto::v1::StreamError;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::model::{ApiError, Reason};

/// `google.rpc.ErrorInfo.domain` of every error of Chronicle.
pub const DOMAIN: &str = "chronicle.dev";

/// Returns the gRPC code of a reason.
pub fn code(reason: Reason) -> Code {
    match reason {
        Reason::InvalidRequest
        | Reason::MalformedBody
        | Reason::InvalidBase64
        | Reason::UnsupportedMediaType
        | Reason::NoSuchEndpoint
        | Reason::RecordTooLarge
        | Reason::CorruptBatch
        | Reason::UnsupportedCompression => Code::InvalidArgument,
        Reason::PermissionDenied => Code::PermissionDenied,
        Reason::UnknownTopic | Reason::UnknownPartition | Reason::UnknownGroup => Code::NotFound,
        Reason::TopicExists => Code::AlreadyExists,
        Reason::OffsetOutOfRange => Code::OutOfRange,
        Reason::VersionConflict
        | Reason::OutOfOrderSequence
        | Reason::ProducerFenced
        | Reason::GroupNotEmpty
        | Reason::UnknownMember
        | Reason::StaleGeneration => Code::FailedPrecondition,
        Reason::Overloaded | Reason::TooManyConnections | Reason::DiskFull => Code::ResourceExhausted,
        Reason::DiskFailed | Reason::NotLeader | Reason::Unavailable => Code::Unavailable,
        Reason::OutcomeUnknown => Code::Unknown,
        Reason::DataDamaged => Code::DataLoss,
        Reason::Internal => Code::Internal,
    }
}

/// Returns the status of an error, with `google.rpc.ErrorInfo` in its details.
pub fn status(error: &ApiError) -> Status {
    let details = ErrorDetails::with_error_info(error.reason.as_str(), DOMAIN, metadata(error));
    Status::with_error_details(code(error.reason), error.message.as_str(), details)
}

/// Returns the error of one request in a stream. The stream continues.
pub fn stream_error(error: &ApiError) -> StreamError {
    StreamError {
        code: code(error.reason).into(),
        message: error.message.clone(),
        reason: error.reason.as_str().to_owned(),
        metadata: metadata(error),
    }
}

fn metadata(error: &ApiError) -> HashMap<String, String> {
    error.metadata.iter().map(|(name, value)| (name.to_string(), value.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_carries_reason_domain_and_metadata() {
        for reason in Reason::ALL {
            let error = ApiError::new(*reason, "why").with("earliest", 3).with("next", 9);
            let status = status(&error);
            assert_eq!((status.code(), status.message()), (code(*reason), "why"));
            let info = status.get_details_error_info().unwrap();
            assert_eq!((info.reason.as_str(), info.domain.as_str()), (reason.as_str(), DOMAIN));
            assert_eq!(info.metadata["next"], "9");
            let in_stream = stream_error(&error);
            assert_eq!(in_stream.code, i32::from(status.code()));
            assert_eq!(in_stream.metadata, info.metadata);
        }
    }
}
