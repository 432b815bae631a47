//! The error of every call. Its kind says what the caller may do next.
//!
//! A node's own errors carry a `google.rpc.ErrorInfo` (domain `chronicle.dev`) or come as a `StreamError`; [`from_reason`]
//! decodes both. Every other error was made by this process, by the connection or by a proxy. Then the client only knows
//! whether the request was handed to the network at all.
//!
//! Promise: [`ClientError::not_accepted`] is true only when no node carried the request out. Names no other file of the
//! crate.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;

use chronicle_proto::v1::StreamError;
use tonic::{Code, Status};
use tonic_types::StatusExt;

/// What the caller should do next.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Not accepted, and the same request will never be accepted.
    Rejected,
    /// Not accepted; the same request may succeed later. The client has already retried within the deadline.
    Retryable,
    /// Not accepted by this node; another one leads the partition.
    Redirect {
        /// `HOST:PORT` of the leader, if the node knew it.
        leader: Option<String>,
    },
    /// The append, or the change, may or may not have happened. Only an idempotent producer may repeat the append.
    OutcomeUnknown,
    /// The connection failed, or a proxy answered instead of a node.
    Transport {
        /// False: the request certainly did not reach a node.
        sent: bool,
    },
    /// The node found corrupt data or has a bug, or its answer is larger than the client accepts
    /// ([`ClientConfig::answer_bytes_max`](crate::ClientConfig::answer_bytes_max)). An operator has to look at it; do not
    /// retry. A change may have been carried out.
    Fatal,
}

/// A call that did not succeed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientError {
    /// What to do next.
    pub kind: ErrorKind,
    /// What happened: a reason of docs/errors.md, or for errors that no node made `UNREACHABLE`, `CONNECTION_LOST`,
    /// `DEADLINE_EXCEEDED`, `INVALID_ARGUMENT`, `PRODUCER_CLOSED` or the name of a gRPC code.
    pub reason: String,
    /// Text for people; one line.
    pub message: String,
    /// Values for programs, by name, as docs/errors.md lists them for the reason.
    pub metadata: BTreeMap<String, String>,
}

impl ClientError {
    pub(crate) fn new(kind: ErrorKind, reason: &str, message: impl Into<String>) -> Self {
        Self { kind, reason: reason.into(), message: one_line(&message.into()), metadata: BTreeMap::new() }
    }

    pub(crate) fn invalid(field: &str, value: impl fmt::Display, rule: &str) -> Self {
        Self::new(ErrorKind::Rejected, "INVALID_ARGUMENT", format!("{field}: {value}: {rule}"))
    }

    /// Whether the request was certainly not accepted, so that a retry cannot carry it out twice.
    pub fn not_accepted(&self) -> bool {
        match self.kind {
            ErrorKind::OutcomeUnknown | ErrorKind::Transport { sent: true } => false,
            // A node that finds damage carries nothing out; a bug of the node may have any effect.
            ErrorKind::Fatal => self.reason == "DATA_DAMAGED",
            ErrorKind::Rejected
            | ErrorKind::Retryable
            | ErrorKind::Redirect { .. }
            | ErrorKind::Transport { sent: false } => true,
        }
    }

    /// Whether the same request may succeed when it is sent again. An append that is sent again may be stored twice unless
    /// [`Self::not_accepted`].
    pub fn is_retryable(&self) -> bool {
        !matches!(self.kind, ErrorKind::Rejected | ErrorKind::Fatal)
    }

    /// The metadata value of this name as a number.
    pub fn number(&self, name: &str) -> Option<i64> {
        self.metadata.get(name)?.parse().ok()
    }

    /// The same error for a request that may have been carried out: `OUTCOME_UNKNOWN` with the old reason as `cause`.
    pub(crate) fn into_unknown(mut self) -> Self {
        if self.kind == ErrorKind::OutcomeUnknown {
            return self;
        }
        self.message = format!("the request may or may not have been carried out: {self}");
        self.metadata.insert("cause".into(), std::mem::replace(&mut self.reason, "OUTCOME_UNKNOWN".into()));
        self.kind = ErrorKind::OutcomeUnknown;
        self
    }

    /// The error of a request that was certainly not accepted, because the producer that should have sent it failed with this
    /// error.
    pub(crate) fn into_not_accepted(mut self) -> Self {
        if self.kind == ErrorKind::OutcomeUnknown {
            // That is the outcome of another request.
            self.reason = self.metadata.remove("cause").unwrap_or_else(|| "PRODUCER_CLOSED".into());
        }
        self.message = format!("not accepted, because the producer has failed: {}", self.message);
        self.kind = ErrorKind::Rejected;
        self
    }

    /// The same error, naming the node that was asked. A final refusal does not depend on the node, so it stays as it is.
    pub(crate) fn at(mut self, address: &str) -> Self {
        if self.is_retryable() {
            self.message = format!("{} (at {address})", self.message);
        }
        self
    }

    /// The same error, saying that retries ended at a deadline.
    pub(crate) fn after_deadline(mut self, deadline: std::time::Duration) -> Self {
        self.message = format!("gave up after {} ms: {}", deadline.as_millis(), self.message);
        self
    }

    /// The error that ended an open stream of requests. Only a rejection by the node itself says that a request without an answer
    /// was not accepted: the node answers what it has accepted before that.
    pub(crate) fn from_end_of_stream(status: Status) -> Self {
        match status.get_details_error_info() {
            Some(_) => status.into(),
            None => lost(&status, true),
        }
    }

    pub(crate) fn from_stream(error: StreamError) -> Self {
        from_reason(Code::from(error.code), &error.reason, error.message, error.metadata.into_iter().collect())
    }
}

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.reason, self.message)
    }
}

impl Error for ClientError {}

impl From<Status> for ClientError {
    fn from(status: Status) -> Self {
        if let Some(info) = status.get_details_error_info() {
            let metadata = info.metadata.into_iter().collect();
            return from_reason(status.code(), &info.reason, status.message().into(), metadata);
        }
        if connect_failed(&status) {
            let message = format!("cannot reach the node: {}", root_cause(&status));
            return Self::new(ErrorKind::Transport { sent: false }, "UNREACHABLE", message);
        }
        if never_sent(&status) {
            return lost(&status, false);
        }
        if status.source().is_some() {
            // The code is this process's reading of a broken connection, and names no decision of the other side.
            return lost(&status, true);
        }
        let kind = match status.code() {
            // A proxy or the gRPC layer of the node refused the request itself.
            Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::PermissionDenied
            | Code::Unauthenticated
            | Code::FailedPrecondition
            | Code::Unimplemented => ErrorKind::Rejected,
            // A node's own error has details, so this is the limit of this process: the answer is too large.
            Code::OutOfRange | Code::DataLoss => ErrorKind::Fatal,
            // The connection broke, a proxy gave up or a handler died: the request may have been carried out.
            Code::Ok
            | Code::Cancelled
            | Code::Unknown
            | Code::DeadlineExceeded
            | Code::ResourceExhausted
            | Code::Aborted
            | Code::Internal
            | Code::Unavailable => return lost(&status, true),
        };
        Self::new(kind, code_name(status.code()), status.message())
    }
}

/// The error of a request that has no answer of a node.
fn lost(status: &Status, sent: bool) -> ClientError {
    let message = format!("{}: {}", code_name(status.code()), root_cause(status));
    ClientError::new(ErrorKind::Transport { sent }, "CONNECTION_LOST", message)
}

/// The error that a node made, from its reason and gRPC code.
fn from_reason(code: Code, reason: &str, message: String, metadata: BTreeMap<String, String>) -> ClientError {
    let kind = match reason {
        "OUTCOME_UNKNOWN" => ErrorKind::OutcomeUnknown,
        "NOT_LEADER" => {
            ErrorKind::Redirect { leader: metadata.get("leader").filter(|address| !address.is_empty()).cloned() }
        }
        _ => match code {
            Code::Unavailable | Code::ResourceExhausted | Code::Aborted => ErrorKind::Retryable,
            Code::Unknown => ErrorKind::OutcomeUnknown,
            Code::DataLoss | Code::Internal => ErrorKind::Fatal,
            _ => ErrorKind::Rejected,
        },
    };
    let reason = if reason.is_empty() { code_name(code) } else { reason };
    ClientError { kind, reason: reason.into(), message: one_line(&message), metadata }
}

fn connect_failed(status: &Status) -> bool {
    causes(status).any(|cause| cause.is::<tonic::ConnectError>())
}

/// Hyper calls a request canceled when the HTTP/2 connection closed before it took the request.
fn never_sent(status: &Status) -> bool {
    causes(status).any(|cause| cause.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_canceled))
}

fn causes(status: &Status) -> impl Iterator<Item = &(dyn Error + 'static)> {
    std::iter::successors(status.source(), |error: &&(dyn Error + 'static)| (*error).source())
}

/// The innermost cause: "connection refused" instead of "transport error".
fn root_cause(status: &Status) -> String {
    match causes(status).last() {
        Some(cause) => cause.to_string(),
        None => status.message().to_owned(),
    }
}

fn one_line(text: &str) -> String {
    if text.contains(['\n', '\r']) { text.split_whitespace().collect::<Vec<_>>().join(" ") } else { text.to_owned() }
}

fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream_error(code: Code, reason: &str, metadata: &[(&str, &str)]) -> ClientError {
        ClientError::from_stream(StreamError {
            code: code as i32,
            message: "why\nand how".into(),
            reason: reason.into(),
            metadata: metadata.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        })
    }

    #[test]
    fn a_leader_hint_becomes_a_redirect() {
        let error = stream_error(Code::Unavailable, "NOT_LEADER", &[("leader", "10.0.0.7:7400")]);
        assert_eq!(error.kind, ErrorKind::Redirect { leader: Some("10.0.0.7:7400".into()) });
        assert!(error.not_accepted() && error.is_retryable());
        let error = stream_error(Code::Unavailable, "NOT_LEADER", &[("leader", "")]);
        assert_eq!(error.kind, ErrorKind::Redirect { leader: None });
    }

    #[test]
    fn messages_are_one_line_and_numbers_are_readable() {
        let error = stream_error(Code::OutOfRange, "OFFSET_OUT_OF_RANGE", &[("next", "41")]);
        assert_eq!(error.to_string(), "OFFSET_OUT_OF_RANGE: why and how");
        assert_eq!((error.number("next"), error.number("earliest")), (Some(41), None));
        assert_eq!(error.kind, ErrorKind::Rejected);
    }

    #[test]
    fn a_status_without_details_leaves_the_outcome_open() {
        let error = ClientError::from(Status::unavailable("upstream reset"));
        assert_eq!(error.kind, ErrorKind::Transport { sent: true });
        assert!(!error.not_accepted());
        let error = error.into_unknown();
        assert_eq!((error.kind.clone(), error.reason.as_str()), (ErrorKind::OutcomeUnknown, "OUTCOME_UNKNOWN"));
        assert_eq!(error.metadata["cause"], "CONNECTION_LOST");
        for code in [Code::ResourceExhausted, Code::Aborted, Code::OutOfRange] {
            assert!(!ClientError::from(Status::new(code, "why")).not_accepted(), "{code:?}");
        }
        // A refusal, unless it comes after requests were sent on the stream that it ends.
        assert!(ClientError::from(Status::permission_denied("proxy")).not_accepted());
        let error = ClientError::from_end_of_stream(Status::permission_denied("proxy"));
        assert_eq!(error.to_string(), "CONNECTION_LOST: PERMISSION_DENIED: proxy");
        assert!(!error.not_accepted());
    }

    #[test]
    fn what_this_process_makes_of_a_broken_connection_is_no_refusal() {
        // tonic makes RESOURCE_EXHAUSTED of the HTTP/2 error ENHANCE_YOUR_CALM, PERMISSION_DENIED of INADEQUATE_SECURITY.
        for mut status in [Status::resource_exhausted("calm"), Status::permission_denied("security")] {
            status.set_source(std::sync::Arc::new(std::io::Error::other("reset")));
            let error = ClientError::from(status);
            assert_eq!((error.kind, error.reason.as_str()), (ErrorKind::Transport { sent: true }, "CONNECTION_LOST"));
        }
    }

    #[test]
    fn an_error_of_the_producer_is_a_refusal_for_what_it_never_sent() {
        let fenced = stream_error(Code::FailedPrecondition, "PRODUCER_FENCED", &[]).into_not_accepted();
        assert_eq!((fenced.reason.as_str(), fenced.not_accepted()), ("PRODUCER_FENCED", true));
        let unknown = stream_error(Code::Unavailable, "DISK_FAILED", &[]).into_unknown().into_not_accepted();
        assert_eq!((unknown.reason.as_str(), unknown.not_accepted()), ("DISK_FAILED", true));
        assert!(!unknown.is_retryable());
    }

    #[test]
    fn an_append_to_damaged_data_is_not_retried_and_certainly_not_accepted() {
        let error = stream_error(Code::DataLoss, "DATA_DAMAGED", &[]);
        assert!(!error.is_retryable() && error.not_accepted());
    }

    #[test]
    fn a_defect_of_the_node_is_neither_retried_nor_called_not_accepted() {
        let error = stream_error(Code::Internal, "INTERNAL", &[]);
        assert!(!error.is_retryable() && !error.not_accepted());
    }
}
