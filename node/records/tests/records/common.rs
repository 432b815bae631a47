//! Batches to test with, and ways to damage them that only one check can notice.

use bytes::{Bytes, BytesMut};
use chronicle_records::{BatchBuilder, BatchError, Compression, Limits, Record, records};

pub(crate) const CODECS: [Compression; 5] =
    [Compression::None, Compression::Gzip, Compression::Snappy, Compression::Lz4, Compression::Zstd];

pub(crate) const T0: i64 = 1_700_000_000_000;

pub(crate) fn limits() -> Limits {
    Limits::default()
}

/// Builds a batch of these records; their offsets are ignored.
pub(crate) fn build(compression: Compression, records: &[Record]) -> Bytes {
    let mut builder = BatchBuilder::new(compression);
    for record in records {
        push(&mut builder, record).unwrap();
    }
    builder.build().unwrap().freeze()
}

pub(crate) fn push(builder: &mut BatchBuilder, record: &Record) -> Result<(), BatchError> {
    let headers = record
        .headers
        .iter()
        .map(|(name, value)| (std::str::from_utf8(name).expect("tests name headers in UTF-8"), value.as_deref()));
    builder.push(record.timestamp, record.key.as_deref(), record.value.as_deref(), headers)
}

pub(crate) fn read(batch: &Bytes) -> Result<Vec<Record>, BatchError> {
    records(batch, &limits())?.collect()
}

pub(crate) fn record(offset: i64, timestamp: i64, key: Option<&[u8]>, value: Option<&[u8]>) -> Record {
    Record {
        offset,
        timestamp,
        key: key.map(Bytes::copy_from_slice),
        value: value.map(Bytes::copy_from_slice),
        headers: Vec::new(),
    }
}

/// A batch with whatever packed records, header and CRC right for them.
pub(crate) fn around(compression: Compression, count: i32, packed: &[u8]) -> Bytes {
    let mut batch = BytesMut::from(&build(Compression::None, &[record(0, T0, None, None)])[..61]);
    batch.extend_from_slice(packed);
    let length = batch.len() as i32 - 12;
    batch[8..12].copy_from_slice(&length.to_be_bytes());
    batch[21..23].copy_from_slice(&(compression as u16).to_be_bytes());
    batch[23..27].copy_from_slice(&(count - 1).to_be_bytes());
    batch[57..61].copy_from_slice(&count.to_be_bytes());
    rehash(&mut batch);
    batch.freeze()
}

/// Overwrites bytes and makes the CRC right again.
pub(crate) fn with_bytes(batch: &[u8], at: usize, bytes: &[u8]) -> Bytes {
    let mut batch = BytesMut::from(batch);
    batch[at..at + bytes.len()].copy_from_slice(bytes);
    rehash(&mut batch);
    batch.freeze()
}

fn rehash(batch: &mut [u8]) {
    let crc = crc32c::crc32c(&batch[21..]);
    batch[17..21].copy_from_slice(&crc.to_be_bytes());
}
