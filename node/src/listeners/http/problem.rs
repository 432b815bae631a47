//! The only table of errors of the HTTP listener, as problem documents (RFC 9457). docs/errors.md documents the same
//! table; a test compares the two.

use axum::body::Body;
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, Response, StatusCode};
use serde_json::{Map, Value};

use crate::model::{ApiError, Reason};

/// Returns the status of a reason. Two errors of the HTTP protocol itself have another status: a wrong method is
/// NO_SUCH_ENDPOINT with 405, an `Accept` that cannot be satisfied is UNSUPPORTED_MEDIA_TYPE with 406.
pub fn status(reason: Reason) -> StatusCode {
    match reason {
        Reason::InvalidRequest
        | Reason::MalformedBody
        | Reason::InvalidBase64
        | Reason::CorruptBatch
        | Reason::UnsupportedCompression => StatusCode::BAD_REQUEST,
        Reason::UnsupportedMediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
        Reason::PermissionDenied => StatusCode::FORBIDDEN,
        Reason::NoSuchEndpoint
        | Reason::UnknownTopic
        | Reason::UnknownPartition
        | Reason::UnknownGroup
        | Reason::OffsetOutOfRange => StatusCode::NOT_FOUND,
        Reason::RecordTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        Reason::TopicExists
        | Reason::VersionConflict
        | Reason::OutOfOrderSequence
        | Reason::ProducerFenced
        | Reason::GroupNotEmpty
        | Reason::UnknownMember
        | Reason::StaleGeneration => StatusCode::CONFLICT,
        Reason::Overloaded => StatusCode::TOO_MANY_REQUESTS,
        Reason::DiskFull => StatusCode::INSUFFICIENT_STORAGE,
        Reason::TooManyConnections | Reason::DiskFailed | Reason::NotLeader | Reason::Unavailable => {
            StatusCode::SERVICE_UNAVAILABLE
        }
        Reason::OutcomeUnknown => StatusCode::GATEWAY_TIMEOUT,
        Reason::DataDamaged | Reason::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// Returns the short title of a reason. All problems with the same reason have the same title.
pub fn title(reason: Reason) -> &'static str {
    match reason {
        Reason::InvalidRequest => "The request breaks a rule",
        Reason::MalformedBody => "The body does not match its content type",
        Reason::InvalidBase64 => "A field is not base64",
        Reason::UnsupportedMediaType => "The media type is not supported",
        Reason::NoSuchEndpoint => "No such endpoint",
        Reason::RecordTooLarge => "The record or request is too large",
        Reason::CorruptBatch => "The record batch is damaged",
        Reason::UnsupportedCompression => "The compression is not supported",
        Reason::PermissionDenied => "The principal may not do this",
        Reason::UnknownTopic => "No such topic",
        Reason::UnknownPartition => "No such partition",
        Reason::TopicExists => "The topic exists",
        Reason::OffsetOutOfRange => "The offset is out of range",
        Reason::VersionConflict => "The expected version does not match",
        Reason::OutOfOrderSequence => "The sequence number is out of order",
        Reason::ProducerFenced => "Another instance of the producer has a newer epoch",
        Reason::UnknownGroup => "No such consumer group",
        Reason::GroupNotEmpty => "The consumer group has members",
        Reason::UnknownMember => "No such member of the consumer group",
        Reason::StaleGeneration => "The commit does not match the member's assignment",
        Reason::Overloaded => "The node is busy",
        Reason::TooManyConnections => "Too many connections",
        Reason::DiskFull => "The data volume is full",
        Reason::DiskFailed => "Writing to disk failed",
        Reason::NotLeader => "Another node leads the partition",
        Reason::Unavailable => "The node cannot serve now",
        Reason::OutcomeUnknown => "The outcome of the request is unknown",
        Reason::DataDamaged => "Stored data is damaged",
        Reason::Internal => "A bug in the node",
    }
}

/// Returns the `type` member of problems with this reason.
pub fn type_uri(reason: Reason) -> String {
    format!("https://chronicle.dev/errors/{}", reason.as_str())
}

/// Members that metadata of an error must not overwrite.
const STANDARD: [&str; 5] = ["type", "title", "status", "detail", "reason"];

/// An error in the response to an HTTP client.
#[derive(Debug)]
pub struct Problem {
    error: ApiError,
    status: StatusCode,
}

impl From<ApiError> for Problem {
    fn from(error: ApiError) -> Self {
        Self { status: status(error.reason), error }
    }
}

impl AsRef<ApiError> for Problem {
    fn as_ref(&self) -> &ApiError {
        &self.error
    }
}

impl Problem {
    /// Returns the same problem with another status.
    #[must_use]
    pub fn with_status(self, status: StatusCode) -> Self {
        Self { status, ..self }
    }

    /// Returns the document: standard members, `reason`, and the metadata of the error. Numeric values
    /// are JSON numbers.
    pub fn document(&self) -> Map<String, Value> {
        let reason = self.error.reason;
        let mut members = Map::new();
        members.insert("type".into(), type_uri(reason).into());
        members.insert("title".into(), title(reason).into());
        members.insert("status".into(), self.status.as_u16().into());
        members.insert("detail".into(), self.error.message.as_str().into());
        members.insert("reason".into(), reason.as_str().into());
        for (name, value) in self.error.metadata.iter().filter(|(name, _)| !STANDARD.contains(&name.as_ref())) {
            let value = value.parse::<i64>().map_or_else(|_| value.as_str().into(), Value::from);
            members.insert(name.to_string(), value);
        }
        members
    }

    /// Returns the response.
    pub fn into_response(self) -> Response<Body> {
        let mut response = Response::new(Body::from(Value::Object(self.document()).to_string()));
        *response.status_mut() = self.status;
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if matches!(self.status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS) {
            let ms = self.error.value("retry_after_ms").and_then(|ms| ms.parse::<u64>().ok());
            response.headers_mut().insert(RETRY_AFTER, ms.map_or(1, |ms| ms.div_ceil(1000).max(1)).into());
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_names_reason_and_values_and_metadata_cannot_hide_a_standard_member() {
        let error = ApiError::new(Reason::OffsetOutOfRange, "offset 9: …")
            .with("earliest", 3)
            .with("next", 9)
            .with("leader", "10.0.0.1:7400")
            .with("status", "200");
        let expected = serde_json::json!({
            "type": "https://chronicle.dev/errors/OFFSET_OUT_OF_RANGE",
            "title": "The offset is out of range",
            "status": 404,
            "detail": "offset 9: …",
            "reason": "OFFSET_OUT_OF_RANGE",
            "earliest": 3,
            "next": 9,
            "leader": "10.0.0.1:7400",
        });
        assert_eq!(Value::Object(Problem::from(error).document()), expected);
    }

    #[test]
    fn only_temporary_refusals_have_a_retry_time() {
        for reason in Reason::ALL {
            let response = Problem::from(ApiError::new(*reason, "")).into_response();
            assert_eq!(response.status(), status(*reason));
            let again = response.headers().contains_key(RETRY_AFTER);
            assert_eq!(again, matches!(response.status().as_u16(), 429 | 503), "{reason:?}");
        }
    }
}
