//! The 61-byte header of a batch: reading it, and patching the two fields that the log owns.
//!
//! Positions of the fields are in the crate documentation. Only [`parse_header`] turns header bytes into numbers;
//! `builder.rs` is the only writer of a whole header.
//!
//! Neighbours: all of the crate reads headers through here. Reads no record and unpacks nothing.

use crate::{BatchError, Compression};

/// Length in bytes of a batch header: where the records start.
pub const HEADER_LEN: usize = 61;

/// Bytes of a batch that its length field does not count: base offset and the field itself.
pub(crate) const PREFIX_LEN: usize = 12;
pub(crate) const BASE_OFFSET_AT: usize = 0;
pub(crate) const LENGTH_AT: usize = 8;
pub(crate) const LEADER_EPOCH_AT: usize = 12;
pub(crate) const MAGIC_AT: usize = 16;
pub(crate) const CRC_AT: usize = 17;
pub(crate) const ATTRIBUTES_AT: usize = 21;
pub(crate) const LAST_OFFSET_DELTA_AT: usize = 23;
pub(crate) const BASE_TIMESTAMP_AT: usize = 27;
pub(crate) const MAX_TIMESTAMP_AT: usize = 35;
pub(crate) const PRODUCER_ID_AT: usize = 43;
pub(crate) const PRODUCER_EPOCH_AT: usize = 51;
pub(crate) const BASE_SEQUENCE_AT: usize = 53;
pub(crate) const RECORD_COUNT_AT: usize = 57;

/// The only format version accepted.
pub(crate) const MAGIC: i8 = 2;

const COMPRESSION_MASK: u16 = 0b111;
const LOG_APPEND_BIT: u16 = 1 << 3;
const TRANSACTIONAL_BIT: u16 = 1 << 4;
const CONTROL_BIT: u16 = 1 << 5;

/// The validated header of one batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchHeader {
    /// Offset of the first record. From a producer usually 0: the log sets it with [`patch`].
    pub base_offset: i64,
    /// Length in bytes of the whole batch, including the 12 bytes up to and with the length field.
    pub length: usize,
    /// Term of the leader that appended the batch, -1 from a producer. Set with [`patch`].
    pub leader_epoch: i32,
    /// CRC-32C of the bytes from the attributes (byte 21) to the end, as stored; only a check compares it.
    pub crc: u32,
    /// The attribute bits as stored.
    pub attributes: u16,
    /// Codec of the records (attribute bits 0 to 2).
    pub compression: Compression,
    /// True: every record has [`max_timestamp`](Self::max_timestamp), the time of the append, as its timestamp.
    pub timestamp_type_log_append: bool,
    /// The batch belongs to a transaction.
    pub is_transactional: bool,
    /// The batch holds a control marker of the transaction protocol, not data.
    pub is_control: bool,
    /// The last offset that the batch takes, relative to [`base_offset`](Self::base_offset): `record_count - 1` as it is appended. Where
    /// records were taken out of a stored batch it stays as it was.
    pub last_offset_delta: i32,
    /// What the records' timestamps are relative to, in ms since the Unix epoch.
    pub base_timestamp: i64,
    /// The producer's claim of the largest timestamp among the records, in ms since the Unix epoch. Not compared with
    /// the records.
    pub max_timestamp: i64,
    /// Id of the idempotent producer, -1 without.
    pub producer_id: i64,
    /// Epoch of the idempotent producer, -1 without.
    pub producer_epoch: i16,
    /// Sequence number of the first record, -1 without.
    pub base_sequence: i32,
    /// Records in the batch: at least 1 as it is appended. A stored batch may have fewer than the offsets that it takes, even
    /// none.
    pub record_count: i32,
}

impl BatchHeader {
    /// Last offset that the batch takes (inclusive), whether it still has a record there or not.
    pub fn last_offset(&self) -> i64 {
        // Cannot overflow: `parse_header` refuses a batch for which it would.
        self.base_offset + i64::from(self.last_offset_delta)
    }

    /// First offset after the batch: where the next one begins.
    pub fn next_offset(&self) -> i64 {
        self.last_offset() + 1
    }

    /// Offsets (and, of an idempotent producer, sequence numbers) that the batch takes: at least 1, and at least its records.
    pub fn offset_count(&self) -> u32 {
        // Not negative by `parse_header`.
        self.last_offset_delta as u32 + 1
    }

    /// Whether the batch has a record at every offset that it takes.
    pub fn is_dense(&self) -> bool {
        i64::from(self.record_count) == i64::from(self.offset_count())
    }
}

/// Reads the header of the first batch in `bytes`, which must hold that batch whole; more bytes may follow.
///
/// Checks magic, length, compression and that the counts agree. Does not compare the CRC nor look at the records.
///
/// # Errors
///
/// [`BatchError::TooShort`], [`Magic`](BatchError::Magic), [`Length`](BatchError::Length),
/// [`UnknownCompression`](BatchError::UnknownCompression) or [`Count`](BatchError::Count).
pub fn parse_header(bytes: &[u8]) -> Result<BatchHeader, BatchError> {
    // Magic sits at the same byte in the older message formats: look at it first, so that they are refused by name.
    if let Some(&magic) = bytes.get(MAGIC_AT)
        && magic as i8 != MAGIC
    {
        return Err(BatchError::Magic { value: magic as i8 });
    }
    let Some(header) = bytes.first_chunk::<HEADER_LEN>() else {
        return Err(BatchError::TooShort { what: "batch header", needed: HEADER_LEN, actual: bytes.len() });
    };

    let length_field = i32::from_be_bytes(field(header, LENGTH_AT));
    let length = match usize::try_from(length_field) {
        Ok(after) if after >= HEADER_LEN - PREFIX_LEN => after + PREFIX_LEN,
        _ => {
            return Err(BatchError::Length {
                value: i64::from(length_field),
                rule: "it must cover the 49 bytes of header behind it",
            });
        }
    };
    if bytes.len() < length {
        return Err(BatchError::TooShort { what: "batch", needed: length, actual: bytes.len() });
    }

    let attributes = u16::from_be_bytes(field(header, ATTRIBUTES_AT));
    let header = BatchHeader {
        base_offset: i64::from_be_bytes(field(header, BASE_OFFSET_AT)),
        length,
        leader_epoch: i32::from_be_bytes(field(header, LEADER_EPOCH_AT)),
        crc: u32::from_be_bytes(field(header, CRC_AT)),
        attributes,
        compression: compression(attributes)?,
        timestamp_type_log_append: attributes & LOG_APPEND_BIT != 0,
        is_transactional: attributes & TRANSACTIONAL_BIT != 0,
        is_control: attributes & CONTROL_BIT != 0,
        last_offset_delta: i32::from_be_bytes(field(header, LAST_OFFSET_DELTA_AT)),
        base_timestamp: i64::from_be_bytes(field(header, BASE_TIMESTAMP_AT)),
        max_timestamp: i64::from_be_bytes(field(header, MAX_TIMESTAMP_AT)),
        producer_id: i64::from_be_bytes(field(header, PRODUCER_ID_AT)),
        producer_epoch: i16::from_be_bytes(field(header, PRODUCER_EPOCH_AT)),
        base_sequence: i32::from_be_bytes(field(header, BASE_SEQUENCE_AT)),
        record_count: i32::from_be_bytes(field(header, RECORD_COUNT_AT)),
    };
    check_counts(&header)?;
    Ok(header)
}

/// Sets base offset and leader epoch of the batch at the front of `batch`, in place.
///
/// Both lie before the bytes that the CRC covers, so that it stays right.
///
/// # Panics
///
/// When `batch` is shorter than [`HEADER_LEN`]: callers patch only what [`parse_header`] or a check accepted, or what
/// [`BatchBuilder`](crate::BatchBuilder) built.
pub fn patch(batch: &mut [u8], base_offset: i64, leader_epoch: i32) {
    assert!(batch.len() >= HEADER_LEN, "patch of {} bytes: a batch has at least {HEADER_LEN}", batch.len());
    put(batch, BASE_OFFSET_AT, base_offset.to_be_bytes());
    put(batch, LEADER_EPOCH_AT, leader_epoch.to_be_bytes());
}

/// Writes one header field.
pub(crate) fn put<const N: usize>(batch: &mut [u8], at: usize, bytes: [u8; N]) {
    batch[at..at + N].copy_from_slice(&bytes);
}

/// The codec that the attributes name.
fn compression(attributes: u16) -> Result<Compression, BatchError> {
    let bits = (attributes & COMPRESSION_MASK) as u8;
    Compression::from_bits(bits).ok_or(BatchError::UnknownCompression(bits))
}

fn field<const N: usize>(header: &[u8; HEADER_LEN], at: usize) -> [u8; N] {
    std::array::from_fn(|byte| header[at + byte])
}

fn check_counts(header: &BatchHeader) -> Result<(), BatchError> {
    let wrong = |field, value, rule| Err(BatchError::Count { field, value, rule });
    let count = i64::from(header.record_count);
    if count < 0 {
        return wrong("record count", count, "it must not be negative");
    }
    let last = i64::from(header.last_offset_delta);
    if last < 0 || last < count - 1 {
        return wrong("last offset delta", last, "it must be at least 0, and at least the record count less 1");
    }
    if header.base_offset.checked_add(last + 1).is_none() {
        return wrong("base offset", header.base_offset, "the offset behind the last record must fit 63 bits");
    }
    Ok(())
}

/// Checks that a batch which is to be appended has a record at every offset that it takes: only what is stored already may lose
/// records.
pub(crate) fn check_dense(header: &BatchHeader) -> Result<(), BatchError> {
    let wrong = |field, value: i32, rule| Err(BatchError::Count { field, value: value.into(), rule });
    if header.record_count < 1 {
        return wrong("record count", header.record_count, "a batch holds at least 1 record");
    }
    if !header.is_dense() {
        return wrong("last offset delta", header.last_offset_delta, "it must be the record count less 1");
    }
    Ok(())
}
