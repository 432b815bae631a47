//! The one error that every listener maps to its protocol.
//!
//! Modules have precise error types of their own; listeners receive a [`Reason`] (what happened, stable, documented in
//! docs/errors.md) with an [`ErrorKind`] (what the caller should do next). "Not accepted" and "outcome unknown" are
//! different: only with [`ErrorKind::Unknown`] the append may have been stored.

use std::borrow::Cow;
use std::fmt;

/// What the caller should do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// Not accepted; the same request may succeed later.
    Retry,
    /// Not accepted here; another node leads.
    Redirect,
    /// Not accepted; repeating the same request does not help.
    Rejected,
    /// Outcome unknown: the append, or the change, may have been stored.
    Unknown,
    /// This node cannot serve the requested data; needs an operator.
    Fatal,
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $text:literal, $kind:ident;)*) => {
        /// What happened. The text form is part of the API: see docs/errors.md.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Reason {
            $($(#[$doc])* $name,)*
        }

        impl Reason {
            /// Every reason, for documentation and tests.
            pub const ALL: &[Reason] = &[$(Reason::$name,)*];

            /// The stable text form, as sent to clients.
            pub fn as_str(self) -> &'static str {
                match self { $(Reason::$name => $text,)* }
            }

            /// What the caller should do next.
            pub fn kind(self) -> ErrorKind {
                match self { $(Reason::$name => ErrorKind::$kind,)* }
            }
        }
    };
}

reasons! {
    /// A field of the request breaks a rule; the message names field, value and rule.
    InvalidRequest = "INVALID_REQUEST", Rejected;
    /// The body does not match its content type (JSON syntax, unknown field).
    MalformedBody = "MALFORMED_BODY", Rejected;
    /// A base64 field is not base64.
    InvalidBase64 = "INVALID_BASE64", Rejected;
    /// The content type or the accepted types are not supported.
    UnsupportedMediaType = "UNSUPPORTED_MEDIA_TYPE", Rejected;
    /// No such path or method.
    NoSuchEndpoint = "NO_SUCH_ENDPOINT", Rejected;
    /// The batch is larger than the topic's `max_message_bytes`, or the request larger than the node's limit.
    RecordTooLarge = "RECORD_TOO_LARGE", Rejected;
    /// A record batch fails its checksum or its structure.
    CorruptBatch = "CORRUPT_BATCH", Rejected;
    /// The batch names a compression that is not gzip, snappy, lz4 or zstd.
    UnsupportedCompression = "UNSUPPORTED_COMPRESSION", Rejected;
    /// No rule allows the principal to do this, or one denies it; metadata `operation`, `resource`.
    PermissionDenied = "PERMISSION_DENIED", Rejected;
    /// The topic does not exist, or the principal may not describe it.
    UnknownTopic = "UNKNOWN_TOPIC", Rejected;
    /// The topic has no partition with this number.
    UnknownPartition = "UNKNOWN_PARTITION", Rejected;
    /// A topic with this name exists.
    TopicExists = "TOPIC_EXISTS", Rejected;
    /// The offset is below the earliest or at or past the end; metadata `earliest` and `next`.
    OffsetOutOfRange = "OFFSET_OUT_OF_RANGE", Rejected;
    /// The log or the key is not at the expected version; metadata `current`.
    VersionConflict = "VERSION_CONFLICT", Rejected;
    /// An idempotent producer's sequence leaves a gap or is older than the stored sequences; metadata `expected`.
    OutOfOrderSequence = "OUT_OF_ORDER_SEQUENCE", Rejected;
    /// An idempotent producer's epoch is older than the one in the log.
    ProducerFenced = "PRODUCER_FENCED", Rejected;
    /// The consumer group does not exist.
    UnknownGroup = "UNKNOWN_GROUP", Rejected;
    /// The group has members: only members may change it; metadata `members`.
    GroupNotEmpty = "GROUP_NOT_EMPTY", Rejected;
    /// The group has no such member: it left, or its session expired.
    UnknownMember = "UNKNOWN_MEMBER", Rejected;
    /// The member's assignment is out of date; metadata `generation`.
    StaleGeneration = "STALE_GENERATION", Rejected;
    /// A limit of bytes in flight or a quota is reached: back off; metadata `retry_after_ms` for a quota.
    Overloaded = "OVERLOADED", Retry;
    /// The connection limit is reached.
    TooManyConnections = "TOO_MANY_CONNECTIONS", Retry;
    /// The data volume is full (ENOSPC or below the reserve). Reads still work.
    DiskFull = "DISK_FULL", Retry;
    /// A write or flush failed; the partition restarts from what is on disk.
    DiskFailed = "DISK_FAILED", Retry;
    /// Another node leads this partition; metadata `leader`.
    NotLeader = "NOT_LEADER", Redirect;
    /// The node or the partition is starting or stopping.
    Unavailable = "UNAVAILABLE", Retry;
    /// Outcome unknown: the append, or the change, may have been stored; metadata `cause`.
    OutcomeUnknown = "OUTCOME_UNKNOWN", Unknown;
    /// Stored data fails its checks and is not served.
    DataDamaged = "DATA_DAMAGED", Fatal;
    /// A bug in the node.
    Internal = "INTERNAL", Fatal;
}

/// An error response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError {
    /// What happened.
    pub reason: Reason,
    /// Human-readable: field, value and rule.
    pub message: String,
    /// Machine-readable: decimal or text values by name, as the reason documents.
    pub metadata: Vec<(Cow<'static, str>, String)>,
    /// With [`Reason::NotLeader`]: raft id of the leader, if this node knows it.
    pub leader: Option<u64>,
}

impl ApiError {
    /// An error without metadata.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), metadata: Vec::new(), leader: None }
    }

    /// Adds a metadata value.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl ToString) -> Self {
        self.metadata.push((name.into(), value.to_string()));
        self
    }

    /// Another node leads: `leader` is its raft id, then its name and its address (`HOST:PORT`).
    pub fn not_leader(leader: u64, name: &str, address: &str) -> Self {
        let error = Self::new(Reason::NotLeader, format!("node {name} ({address}) leads")).with("leader", address);
        Self { leader: Some(leader), ..error }
    }

    /// A field that breaks a rule.
    pub fn invalid(field: &str, value: impl fmt::Display, rule: &str) -> Self {
        Self::new(Reason::InvalidRequest, format!("{field}: {value}: {rule}"))
    }

    /// An append or a change whose outcome is unknown because of `cause`.
    pub fn unknown(cause: &ApiError) -> Self {
        Self::new(
            Reason::OutcomeUnknown,
            format!("outcome unknown: the request may have taken effect: {}", cause.message),
        )
        .with("cause", cause.reason.as_str())
    }

    /// What the caller should do next.
    pub fn kind(&self) -> ErrorKind {
        self.reason.kind()
    }

    /// The metadata value with this name.
    pub fn value(&self, name: &str) -> Option<&str> {
        self.metadata.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.reason.as_str(), self.message)
    }
}

impl std::error::Error for ApiError {}
