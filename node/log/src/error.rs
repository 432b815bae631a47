//! What can go wrong in the engine, precisely.
//!
//! Invariant: `LogError` is `Clone` and cheap to clone, because one failed flush answers many appends.
//!
//! Callers act on the variant, people read the message: every message names the thing (path, log, field), the value that
//! was found and the rule it broke.

use std::{io, path::PathBuf, str::FromStr, sync::Arc};

use crate::LogId;

/// Any failure of the engine.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum LogError {
    /// Another process (or another [`crate::Store`] in this one) holds the data directory.
    #[error("data directory {path:?} is in use by another process, which holds its LOCK file")]
    Locked {
        /// The data directory.
        path: PathBuf,
    },
    /// The data was written by a newer release than this one.
    #[error("{path:?} has format version {found}, newer than the newest this release reads ({supported})")]
    NewerFormat {
        /// The file with that version.
        path: PathBuf,
        /// Version found.
        found: u32,
        /// Newest version this build reads.
        supported: u32,
    },
    /// The file system or directory does not allow writing.
    #[error("{path:?} is read-only: cannot {action}")]
    ReadOnly {
        /// File or directory.
        path: PathBuf,
        /// What was attempted.
        action: &'static str,
    },
    /// The volume is full or a quota is used up.
    #[error("no space left on the volume of {path:?}: cannot {action}")]
    NoSpace {
        /// File or directory.
        path: PathBuf,
        /// What was attempted.
        action: &'static str,
    },
    /// The path of the data directory, or one of its parts, is something else than a directory.
    #[error("{path:?} is not a directory")]
    NotADirectory {
        /// The offending path.
        path: PathBuf,
    },
    /// Any other failure reported by the operating system.
    #[error("{path:?}: cannot {action}: {source}")]
    Io {
        /// File or directory.
        path: PathBuf,
        /// What was attempted.
        action: &'static str,
        /// The cause.
        #[source]
        source: Arc<io::Error>,
    },
    /// Bytes that were known to be durable are wrong or missing. Never repaired by dropping data.
    #[error("{path:?} is damaged at byte {position}{}: {reason}", at_index(*index))]
    Damaged {
        /// The damaged file.
        path: PathBuf,
        /// Byte position of the first bad byte range.
        position: u64,
        /// Raft index of the entry that is lost there, when known.
        index: Option<u64>,
        /// What was found and what was expected.
        reason: String,
    },
    /// The entry asked for is no longer stored.
    #[error("the log starts at index {first}; earlier entries were deleted")]
    Compacted {
        /// First index still stored.
        first: u64,
    },
    /// The entry asked for is not stored yet.
    #[error("entry {index} is not stored: the log ends before index {next}")]
    NotStored {
        /// Index asked for.
        index: u64,
        /// Index that the next append must start with.
        next: u64,
    },
    /// The record offset asked for is no longer stored.
    #[error("offset {offset} is out of range: the log holds {earliest}..{next}")]
    OffsetOutOfRange {
        /// Offset asked for.
        offset: u64,
        /// First offset still stored.
        earliest: u64,
        /// Offset that the next record will take (exclusive end).
        next: u64,
    },
    /// Appended entries do not follow the log, or one another. Nothing was written.
    #[error("entry index {found} does not follow the log: expected {expected}")]
    NotContiguous {
        /// Index that would have been accepted.
        expected: u64,
        /// Index that was given.
        found: u64,
    },
    /// An entry breaks a rule of the format. Nothing was written.
    #[error("entry {index}: {field} is {value}, but {rule}")]
    InvalidEntry {
        /// Raft index of the entry.
        index: u64,
        /// Name of the field.
        field: &'static str,
        /// Value found.
        value: u64,
        /// The rule.
        rule: &'static str,
    },
    /// More bytes wait for the disk than allowed. Nothing was written; retry after some appends completed.
    #[error("{pending} bytes are waiting for a flush, the limit is {limit}: retry later")]
    Overloaded {
        /// Bytes waiting.
        pending: u64,
        /// The configured bound.
        limit: u64,
    },
    /// An earlier failure stopped this log (or the whole store); it accepts nothing until it is opened again.
    #[error("stopped by an earlier failure: {0}")]
    Failed(Arc<LogError>),
    /// The entry was removed by a truncation or reset before it became durable.
    #[error("the entry was truncated before it became durable")]
    Truncated,
    /// The log or store was closed.
    #[error("the log is closed")]
    Closed,
    /// The log is open already; a log has one owner.
    #[error("log {0} is already open")]
    AlreadyOpen(LogId),
    /// The operation needs a closed log.
    #[error("log {0} is open; close it first")]
    StillOpen(LogId),
    /// A name that should be `<uuid>-<partition>` is not.
    #[error("{0:?} is not a log name: expected <uuid>-<partition>")]
    InvalidName(String),
    /// A configuration value is outside its range.
    #[error("{field} is {value}, but {rule}")]
    InvalidConfig {
        /// Name of the field.
        field: &'static str,
        /// Value found.
        value: u64,
        /// The rule.
        rule: &'static str,
    },
}

fn at_index(index: Option<u64>) -> String {
    index.map(|index| format!(" (entry {index})")).unwrap_or_default()
}

impl LogError {
    /// Turns an I/O error into the most specific variant.
    pub(crate) fn io(path: impl Into<PathBuf>, action: &'static str, source: io::Error) -> Self {
        let path = path.into();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::NoSpace { path, action },
            io::ErrorKind::ReadOnlyFilesystem => Self::ReadOnly { path, action },
            io::ErrorKind::NotADirectory => Self::NotADirectory { path },
            _ => Self::Io { path, action, source: Arc::new(source) },
        }
    }

    pub(crate) fn damaged(path: impl Into<PathBuf>, position: u64, index: Option<u64>, reason: impl ToString) -> Self {
        Self::Damaged { path: path.into(), position, index, reason: reason.to_string() }
    }

    /// Wraps a sticky failure for the calls that come after it.
    pub(crate) fn sticky(&self) -> Self {
        match self {
            Self::Failed(_) => self.clone(),
            other => Self::Failed(Arc::new(other.clone())),
        }
    }

    /// The failure itself, without any [`LogError::Failed`] around it.
    pub fn root(&self) -> &Self {
        match self {
            Self::Failed(inner) => inner.root(),
            other => other,
        }
    }
}

impl FromStr for LogId {
    type Err = LogError;

    fn from_str(text: &str) -> Result<Self, LogError> {
        Self::from_name(text).ok_or_else(|| LogError::InvalidName(text.to_owned()))
    }
}
