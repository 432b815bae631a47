//! Encodes records into one batch.
//!
//! Records are written straight behind a gap for the header, so that an uncompressed batch is never copied: the buffer
//! that [`BatchBuilder::push`] fills is the one that [`BatchBuilder::build`] returns.

use bytes::{BufMut, BytesMut};

use crate::header::{
    ATTRIBUTES_AT, BASE_OFFSET_AT, BASE_SEQUENCE_AT, BASE_TIMESTAMP_AT, CRC_AT, HEADER_LEN, LAST_OFFSET_DELTA_AT,
    LEADER_EPOCH_AT, LENGTH_AT, MAGIC, MAGIC_AT, MAX_TIMESTAMP_AT, PREFIX_LEN, PRODUCER_EPOCH_AT, PRODUCER_ID_AT,
    RECORD_COUNT_AT, put,
};
use crate::record::MAX_RECORD_HEADERS;
use crate::{BatchError, Compression, RecordError, compression, varint};

/// Largest batch that the length field can express, in bytes.
const MAX_BATCH_LEN: usize = i32::MAX as usize;

/// Collects records and builds one batch of them.
///
/// The batch has base offset 0 and leader epoch -1: set them with [`patch`](crate::patch) once known.
#[derive(Debug)]
pub struct BatchBuilder {
    compression: Compression,
    producer_id: i64,
    producer_epoch: i16,
    base_sequence: i32,
    /// Room for the header, then the uncompressed records.
    buffer: BytesMut,
    count: i32,
    /// Offset delta of the next record.
    next_delta: i32,
    /// Timestamp of the first record; meaningless while there is none.
    base_timestamp: i64,
    max_timestamp: i64,
}

impl BatchBuilder {
    /// An empty batch whose records [`build`](Self::build) will compress with `compression`.
    pub fn new(compression: Compression) -> Self {
        Self::with_capacity(compression, 0)
    }

    /// As [`new`](Self::new), with room for `bytes` bytes of uncompressed records (their own framing of some 10 bytes
    /// each included): what does not fit grows the buffer, which copies it.
    pub fn with_capacity(compression: Compression, bytes: usize) -> Self {
        let mut buffer = BytesMut::with_capacity(HEADER_LEN + bytes);
        buffer.put_bytes(0, HEADER_LEN);
        Self {
            compression,
            producer_id: -1,
            producer_epoch: -1,
            base_sequence: -1,
            buffer,
            count: 0,
            next_delta: 0,
            base_timestamp: 0,
            max_timestamp: 0,
        }
    }

    /// Marks the batch as sent by an idempotent producer; `base_sequence` is the sequence number of its first record.
    #[must_use]
    pub fn with_producer(mut self, id: i64, epoch: i16, base_sequence: i32) -> Self {
        self.producer_id = id;
        self.producer_epoch = epoch;
        self.base_sequence = base_sequence;
        self
    }

    /// Appends one record. `timestamp` is in ms since the Unix epoch; `None` as key, value or header value is null.
    ///
    /// `headers` is walked twice, the first time to learn the length that comes before it.
    ///
    /// # Errors
    ///
    /// [`BatchError::TooLarge`] or [`BatchError::Record`]; the batch then is as it was.
    pub fn push<'a, H>(
        &mut self,
        timestamp: i64,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: H,
    ) -> Result<(), BatchError>
    where
        H: IntoIterator<Item = (&'a str, Option<&'a [u8]>)>,
        H::IntoIter: Clone,
    {
        let headers = headers.into_iter();
        let refused = |error| BatchError::Record { index: self.count as usize, error };

        let base_timestamp = if self.count == 0 { timestamp } else { self.base_timestamp };
        let timestamp_delta = timestamp.checked_sub(base_timestamp).ok_or_else(|| {
            refused(RecordError::Value {
                field: "timestamp",
                value: timestamp,
                rule: "its distance from the first record's must fit 64 bits",
            })
        })?;
        let offset_delta = i64::from(self.next_delta);
        if self.next_delta == i32::MAX {
            let rule = "it must be below 2,147,483,647";
            return Err(refused(RecordError::Value { field: "offset delta", value: offset_delta, rule }));
        }

        let (header_count, headers_len) = headers.clone().fold((0usize, 0usize), |(count, len), (name, value)| {
            let len = len.saturating_add(nullable_len(Some(name.as_bytes())));
            (count + 1, len.saturating_add(nullable_len(value)))
        });
        if header_count > MAX_RECORD_HEADERS {
            return Err(refused(RecordError::Value {
                field: "header count",
                value: header_count as i64,
                rule: "it must be from 0 to 16,384",
            }));
        }
        let body_len = [
            varint::len(timestamp_delta),
            varint::len(offset_delta),
            nullable_len(key),
            nullable_len(value),
            varint::len(header_count as i64),
            headers_len,
        ]
        .into_iter()
        .fold(1usize, usize::saturating_add);
        let limit = MAX_BATCH_LEN - HEADER_LEN;
        if body_len > limit {
            return Err(refused(RecordError::TooLarge { bytes: body_len, limit }));
        }
        let record_len = varint::len(body_len as i64) + body_len;
        let total = self.buffer.len() + record_len;
        if total > MAX_BATCH_LEN {
            return Err(BatchError::TooLarge { what: "batch", bytes: total, limit: MAX_BATCH_LEN });
        }

        let out = &mut self.buffer;
        out.reserve(record_len);
        varint::write(out, body_len as i64);
        out.put_u8(0); // attributes
        varint::write(out, timestamp_delta);
        varint::write(out, offset_delta);
        put_nullable(out, key);
        put_nullable(out, value);
        varint::write(out, header_count as i64);
        for (name, value) in headers {
            put_nullable(out, Some(name.as_bytes()));
            put_nullable(out, value);
        }
        debug_assert_eq!(out.len(), total);

        self.max_timestamp = if self.count == 0 { timestamp } else { self.max_timestamp.max(timestamp) };
        self.base_timestamp = base_timestamp;
        self.count += 1;
        self.next_delta += 1;
        Ok(())
    }

    /// Leaves out this many offsets: those of records that were taken out of a stored batch. Such a batch, which may have no
    /// record at all, is not one to append ([`check`](crate::check) refuses it). Offsets above `i32::MAX` are not counted.
    pub fn skip_offsets(&mut self, offsets: i32) {
        self.next_delta = self.next_delta.saturating_add(offsets.max(0));
    }

    /// Records pushed so far.
    pub fn len(&self) -> usize {
        self.count as usize
    }

    /// True as long as nothing was pushed.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Size in bytes that the batch would have now, header included and uncompressed.
    pub fn bytes(&self) -> usize {
        self.buffer.len()
    }

    /// Compresses the records, completes the header and returns the batch, ready to be patched in place.
    ///
    /// # Errors
    ///
    /// [`BatchError::Count`] when no record was pushed and no offset left out, [`BatchError::Compress`] when the codec fails,
    /// [`BatchError::TooLarge`] when incompressible records outgrow the format.
    pub fn build(self) -> Result<BytesMut, BatchError> {
        if self.next_delta == 0 {
            return Err(BatchError::Count { field: "record count", value: 0, rule: "a batch holds at least 1 record" });
        }
        let mut batch = match self.compression {
            Compression::None => self.buffer,
            _ if self.count == 0 => self.buffer,
            codec => {
                let mut packed = BytesMut::with_capacity(HEADER_LEN + self.buffer.len() / 2);
                packed.put_bytes(0, HEADER_LEN);
                compression::compress(codec, &self.buffer[HEADER_LEN..], &mut packed)?;
                packed
            }
        };
        if batch.len() > MAX_BATCH_LEN {
            return Err(BatchError::TooLarge { what: "batch", bytes: batch.len(), limit: MAX_BATCH_LEN });
        }
        let length = (batch.len() - PREFIX_LEN) as i32;

        put(&mut batch, BASE_OFFSET_AT, 0i64.to_be_bytes());
        put(&mut batch, LENGTH_AT, length.to_be_bytes());
        put(&mut batch, LEADER_EPOCH_AT, (-1i32).to_be_bytes());
        put(&mut batch, MAGIC_AT, MAGIC.to_be_bytes());
        put(&mut batch, ATTRIBUTES_AT, (self.compression as u16).to_be_bytes());
        put(&mut batch, LAST_OFFSET_DELTA_AT, (self.next_delta - 1).to_be_bytes());
        put(&mut batch, BASE_TIMESTAMP_AT, self.base_timestamp.to_be_bytes());
        put(&mut batch, MAX_TIMESTAMP_AT, self.max_timestamp.to_be_bytes());
        put(&mut batch, PRODUCER_ID_AT, self.producer_id.to_be_bytes());
        put(&mut batch, PRODUCER_EPOCH_AT, self.producer_epoch.to_be_bytes());
        put(&mut batch, BASE_SEQUENCE_AT, self.base_sequence.to_be_bytes());
        put(&mut batch, RECORD_COUNT_AT, self.count.to_be_bytes());
        // Last: it covers all that follows the CRC field.
        let crc = crc32c::crc32c(&batch[ATTRIBUTES_AT..]);
        put(&mut batch, CRC_AT, crc.to_be_bytes());
        Ok(batch)
    }
}

fn nullable_len(bytes: Option<&[u8]>) -> usize {
    bytes.map_or(varint::len(-1), |bytes| varint::len(bytes.len() as i64).saturating_add(bytes.len()))
}

fn put_nullable(out: &mut BytesMut, bytes: Option<&[u8]>) {
    match bytes {
        None => varint::write(out, -1),
        Some(bytes) => {
            varint::write(out, bytes.len() as i64);
            out.put_slice(bytes);
        }
    }
}
