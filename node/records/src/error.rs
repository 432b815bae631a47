//! Why a batch is refused.
//!
//! [`BatchError`] is about the batch and its header, [`RecordError`] about one record inside it. Every message names the
//! field, the value found and the rule it breaks, so that it can be sent to a client as it is.
//!
//! Neighbours: every file of the crate. Imports only the names of the codecs (`codec.rs`).

use crate::Compression;

/// Why bytes are not an acceptable record batch, or records cannot be put into one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BatchError {
    /// The bytes end before the thing that they should hold.
    #[error("{what} needs {needed} bytes, found {actual}")]
    TooShort {
        /// What was being read.
        what: &'static str,
        /// Bytes it needs.
        needed: usize,
        /// Bytes that are there.
        actual: usize,
    },
    /// The length of the batch contradicts the format or the bytes around it.
    #[error("batch length is {value}: {rule}")]
    Length {
        /// The length field (bytes after it), or the number of bytes given, as `rule` explains.
        value: i64,
        /// The rule that it breaks.
        rule: &'static str,
    },
    /// The batch has another format version; 0 and 1 are the message sets of Kafka before 0.11.
    #[error("magic is {value}: only 2 (record batch v2) is accepted")]
    Magic {
        /// The magic byte found.
        value: i8,
    },
    /// The bytes are not those that the producer hashed.
    #[error("CRC-32C is {actual:#010x}: the batch header says {expected:#010x}")]
    Crc {
        /// The checksum in the header.
        expected: u32,
        /// The checksum of the bytes.
        actual: u32,
    },
    /// The compression bits of the attributes name no codec.
    #[error("compression is {0}: only 0 (none), 1 (gzip), 2 (snappy), 3 (lz4) and 4 (zstd) are known")]
    UnknownCompression(
        /// The three compression bits.
        u8,
    ),
    /// A count in the batch header breaks a rule.
    #[error("{field} is {value}: {rule}")]
    Count {
        /// The field that holds the count.
        field: &'static str,
        /// Its value.
        value: i64,
        /// The rule that it breaks.
        rule: &'static str,
    },
    /// Something is larger than the caller's limit or than the format can express.
    #[error("{what} takes at least {bytes} bytes: the limit is {limit}")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// Its size in bytes; a lower bound for compressed records, which are not unpacked past the limit.
        bytes: usize,
        /// The largest accepted size in bytes.
        limit: usize,
    },
    /// The batch holds more records than the caller's limit.
    #[error("record count is {count}: the limit is {limit}")]
    TooManyRecords {
        /// Records in the batch.
        count: usize,
        /// The largest accepted number.
        limit: usize,
    },
    /// The compressed records cannot be unpacked.
    #[error("{codec} data is corrupt: {reason}")]
    Corrupt {
        /// The codec named by the attributes.
        codec: Compression,
        /// What the codec objects to.
        reason: String,
    },
    /// Compressing the records failed.
    #[error("{codec} compression failed: {reason}")]
    Compress {
        /// The codec asked for.
        codec: Compression,
        /// What the codec reported.
        reason: String,
    },
    /// One record breaks a rule.
    #[error("record {index}: {error}")]
    Record {
        /// Position of the record in the batch, from 0.
        index: usize,
        /// What is wrong with it.
        error: RecordError,
    },
    /// There are bytes behind the last record.
    #[error("{bytes} bytes follow the last of {count} records: none are allowed")]
    Leftover {
        /// Bytes (uncompressed) behind the last record.
        bytes: usize,
        /// Records that the header announces.
        count: usize,
    },
}

/// Why one record is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// The bytes end before the field that they should hold.
    #[error("{field} needs {needed} bytes, {actual} are left")]
    TooShort {
        /// The field being read.
        field: &'static str,
        /// Bytes it needs.
        needed: usize,
        /// Bytes left in the record (or, for the record itself, in the batch).
        actual: usize,
    },
    /// A variable-length integer does not end, or does not fit its type.
    #[error("{field} is not a varint of at most {bits} bits")]
    Varint {
        /// The field being read.
        field: &'static str,
        /// Width of its type: 32 or 64.
        bits: u32,
    },
    /// A number breaks a rule.
    #[error("{field} is {value}: {rule}")]
    Value {
        /// The field that holds the number.
        field: &'static str,
        /// Its value.
        value: i64,
        /// The rule that it breaks.
        rule: &'static str,
    },
    /// A record header's name is not text.
    #[error("header name is not valid UTF-8 at byte {valid_up_to}")]
    HeaderName {
        /// Length in bytes of the valid part.
        valid_up_to: usize,
    },
    /// There are bytes in the record behind its last header.
    #[error("{bytes} bytes of the record follow its last header: none are allowed")]
    Leftover {
        /// Bytes behind the last header.
        bytes: usize,
    },
    /// The record is larger than the format can express.
    #[error("record takes {bytes} bytes: the limit is {limit}")]
    TooLarge {
        /// Size of the record in bytes.
        bytes: usize,
        /// The largest size in bytes.
        limit: usize,
    },
}
