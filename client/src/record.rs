//! Records, partitions and positions of the public interface, and their conversion to wire messages.
//!
//! Names no other file of the crate; the wire messages are those of `chronicle-proto`.

use bytes::Bytes;
use chronicle_proto::v1;

/// A record as read.
pub use chronicle_proto::v1::StoredRecord;

/// One partition of one topic.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Partition {
    /// Topic name; empty means `default`.
    pub topic: String,
    /// 0-based.
    pub partition: i32,
}

impl Partition {
    /// Partition `partition` (0-based) of `topic`.
    pub fn new(topic: impl Into<String>, partition: i32) -> Self {
        Self { topic: topic.into(), partition }
    }

    /// The topic's name, with the default filled in.
    pub(crate) fn topic_name(&self) -> &str {
        if self.topic.is_empty() { "default" } else { &self.topic }
    }
}

impl From<&v1::Partition> for Partition {
    fn from(partition: &v1::Partition) -> Self {
        Self { topic: partition.topic.clone(), partition: partition.partition }
    }
}

impl From<&Partition> for v1::Partition {
    fn from(partition: &Partition) -> Self {
        Self { topic: partition.topic.clone(), partition: partition.partition }
    }
}

impl std::fmt::Display for Partition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.topic_name(), self.partition)
    }
}

/// A record to append.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Record {
    /// `None`: no key. An empty key is a key.
    pub key: Option<Bytes>,
    /// `None`: a null value (a tombstone for compaction).
    pub value: Option<Bytes>,
    /// Headers in order; names may repeat.
    pub headers: Vec<(String, Option<Bytes>)>,
    /// Milliseconds since the Unix epoch; `None`: the node sets its own time when the record arrives.
    pub timestamp_ms: Option<i64>,
}

impl Record {
    /// A record with a value and nothing else.
    pub fn value(value: impl Into<Bytes>) -> Self {
        Self { value: Some(value.into()), ..Self::default() }
    }

    /// A record with a key and a value.
    pub fn keyed(key: impl Into<Bytes>, value: impl Into<Bytes>) -> Self {
        Self { key: Some(key.into()), ..Self::value(value) }
    }

    /// Adds a header.
    #[must_use]
    pub fn header(mut self, name: impl Into<String>, value: impl Into<Bytes>) -> Self {
        self.headers.push((name.into(), Some(value.into())));
        self
    }

    /// Size of key, value and headers in bytes.
    pub fn payload_bytes(&self) -> usize {
        let headers = self.headers.iter().map(|(name, value)| name.len() + value.as_ref().map_or(0, Bytes::len));
        self.key.as_ref().map_or(0, Bytes::len) + self.value.as_ref().map_or(0, Bytes::len) + headers.sum::<usize>()
    }
}

impl From<Record> for v1::Record {
    fn from(record: Record) -> Self {
        Self {
            key: record.key,
            value: record.value,
            headers: record.headers.into_iter().map(|(key, value)| v1::Header { key, value }).collect(),
            timestamp_ms: record.timestamp_ms,
        }
    }
}

/// Where a read starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Position {
    /// This offset (inclusive).
    Offset(i64),
    /// The first record with a timestamp at or after this, in milliseconds since the Unix epoch.
    Timestamp(i64),
    /// The first retained record.
    Earliest,
    /// The end: only records that are appended from now on.
    Latest,
}

impl From<Position> for v1::Position {
    fn from(position: Position) -> Self {
        use v1::position::At;
        let at = match position {
            Position::Offset(offset) => At::Offset(offset),
            Position::Timestamp(time) => At::TimestampMs(time),
            Position::Earliest => At::Earliest(true),
            Position::Latest => At::Latest(true),
        };
        Self { at: Some(at) }
    }
}

/// How the node stores the records of one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Compression {
    /// Not compressed.
    #[default]
    None,
    /// gzip.
    Gzip,
    /// Snappy.
    Snappy,
    /// LZ4.
    Lz4,
    /// Zstandard.
    Zstd,
}

impl From<Compression> for v1::Compression {
    fn from(compression: Compression) -> Self {
        match compression {
            Compression::None => Self::Unspecified,
            Compression::Gzip => Self::Gzip,
            Compression::Snappy => Self::Snappy,
            Compression::Lz4 => Self::Lz4,
            Compression::Zstd => Self::Zstd,
        }
    }
}
