//! The records inside a batch: one parser, used to check ([`walk`]) and to read ([`records`]).
//!
//! ```text
//! length varint (bytes behind it) · attributes i8 · timestamp delta varlong · offset delta varint
//! key length varint (-1: null) · key · value length varint (-1: null) · value
//! header count varint · per header: name length varint · name · value length varint (-1: null) · value
//! ```
//!
//! Invariant: a [`RawRecord`] has been parsed to its end, headers included, so that reading its headers again cannot
//! fail.
//!
//! Neighbours: `batch.rs` checks with it, `builder.rs` writes what it parses. Compares no CRC.

use bytes::Bytes;

use crate::header::HEADER_LEN;
use crate::{BatchError, BatchHeader, Compression, Limits, RecordError, compression, parse_header, varint};

/// Most headers on one record. A header of two bytes on the wire costs some 60 in memory; the bound keeps a record from
/// growing so when it is read. Kafka itself has none, its clients send a handful.
pub const MAX_RECORD_HEADERS: usize = 16_384;

/// One record as read from a batch. The byte fields share the memory of the batch (or of its unpacked records).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Offset in the partition.
    pub offset: i64,
    /// Milliseconds since the Unix epoch: given by the producer, or the time of the append if the batch has log-append time.
    pub timestamp: i64,
    /// The key; `None` is null, which differs from empty.
    pub key: Option<Bytes>,
    /// The value; `None` is null (a tombstone), which differs from empty.
    pub value: Option<Bytes>,
    /// Headers in their order, names may repeat. Each is a name (valid UTF-8) and a value, which may be null.
    pub headers: Vec<(Bytes, Option<Bytes>)>,
}

/// Iterates over the records of one batch.
///
/// Records of an uncompressed batch are slices of `batch`; those of a compressed batch are unpacked once, here, into
/// one buffer (at most `limits.max_decompressed_bytes`) and are slices of that. The CRC is not compared: this is for
/// batches that were checked when they came in.
///
/// # Errors
///
/// Those of [`parse_header`], [`BatchError::TooManyRecords`], [`BatchError::TooLarge`] and [`BatchError::Corrupt`] at
/// once; [`BatchError::Record`] and [`BatchError::Leftover`] from the iterator, which ends after an error.
pub fn records(batch: &Bytes, limits: &Limits) -> Result<Records, BatchError> {
    let header = parse_header(batch)?;
    let count = limits.record_count(&header)?;
    let packed = batch.slice(HEADER_LEN..header.length);
    let data = match header.compression {
        // Nothing is packed where no record is left.
        _ if count == 0 => packed,
        Compression::None => packed,
        codec => compression::decompress(codec, &packed, limits.max_decompressed_bytes)?.into(),
    };
    Ok(Records { header, data, at: 0, next: 0, count, next_delta: 0 })
}

/// Iterator over the records of one batch; see [`records`].
#[derive(Debug, Clone)]
pub struct Records {
    header: BatchHeader,
    /// The uncompressed records.
    data: Bytes,
    /// Where in `data` the next record starts.
    at: usize,
    /// Index of the next record; `count + 1` once the end was checked or an error given.
    next: usize,
    count: usize,
    /// Least offset delta that the next record may have.
    next_delta: i64,
}

impl Records {
    /// Header of the batch.
    pub fn header(&self) -> &BatchHeader {
        &self.header
    }

    fn read_next(&mut self) -> Result<Record, BatchError> {
        let (raw, taken) = parse(&self.data[self.at..], self.next)?;
        let timestamp = raw.timestamp(&self.header, self.next)?;
        let next_delta = raw.place(&self.header, self.next_delta, self.next)?;
        let offset_delta = raw.offset_delta;
        let share = |part: &[u8]| self.data.slice_ref(part);
        let record = Record {
            offset: self.header.base_offset + i64::from(offset_delta),
            timestamp,
            key: raw.key.map(share),
            value: raw.value.map(share),
            headers: raw.headers().map(|(name, value)| (share(name), value.map(share))).collect(),
        };
        self.at += taken;
        self.next += 1;
        self.next_delta = next_delta;
        Ok(record)
    }
}

impl Iterator for Records {
    type Item = Result<Record, BatchError>;

    fn next(&mut self) -> Option<Self::Item> {
        let item = if self.next < self.count {
            Some(self.read_next())
        } else if self.next == self.count {
            self.next += 1;
            check_end(self.data.len() - self.at, self.count).err().map(Err)
        } else {
            None
        };
        if let Some(Err(_)) = item {
            self.next = self.count + 1;
        }
        item
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        // An error may end the iteration early, or take the place behind the last record.
        (0, Some((self.count + 1).saturating_sub(self.next)))
    }
}

impl std::iter::FusedIterator for Records {}

/// Checks that `data` is exactly `count` sound records.
pub(crate) fn walk(data: &[u8], count: usize, header: &BatchHeader) -> Result<(), BatchError> {
    let (mut rest, mut next_delta) = (data, 0);
    for index in 0..count {
        let (raw, taken) = parse(rest, index)?;
        raw.timestamp(header, index)?;
        next_delta = raw.place(header, next_delta, index)?;
        rest = &rest[taken..];
    }
    check_end(rest.len(), count)
}

fn check_end(left: usize, count: usize) -> Result<(), BatchError> {
    if left > 0 {
        return Err(BatchError::Leftover { bytes: left, count });
    }
    Ok(())
}

/// One record, borrowed.
struct RawRecord<'a> {
    timestamp_delta: i64,
    offset_delta: i32,
    key: Option<&'a [u8]>,
    value: Option<&'a [u8]>,
    header_count: usize,
    /// The bytes of the headers, parsed once already.
    headers: &'a [u8],
}

impl<'a> RawRecord<'a> {
    fn timestamp(&self, header: &BatchHeader, index: usize) -> Result<i64, BatchError> {
        if header.timestamp_type_log_append {
            return Ok(header.max_timestamp);
        }
        header.base_timestamp.checked_add(self.timestamp_delta).ok_or(BatchError::Record {
            index,
            error: RecordError::Value {
                field: "timestamp delta",
                value: self.timestamp_delta,
                rule: "with the base timestamp it must fit 64 bits",
            },
        })
    }

    /// Checks that the record, the `index`-th of its batch, is at an offset delta of at least `least` that the batch takes. Returns
    /// the least of the next record.
    fn place(&self, header: &BatchHeader, least: i64, index: usize) -> Result<i64, BatchError> {
        if (least..=header.last_offset_delta.into()).contains(&self.offset_delta.into()) {
            return Ok(i64::from(self.offset_delta) + 1);
        }
        let (field, value) = ("offset delta", self.offset_delta.into());
        let rule = "it must be above that of the record before, and at most the last of the batch";
        Err(BatchError::Record { index, error: RecordError::Value { field, value, rule } })
    }

    fn headers(&self) -> impl Iterator<Item = (&'a [u8], Option<&'a [u8]>)> + use<'a> {
        let mut cursor = Cursor { rest: self.headers };
        // Never cut short: `parse` has read the same headers before.
        (0..self.header_count).map_while(move |_| cursor.header().ok())
    }
}

/// Parses the record at the front of `data`, the `index`-th of its batch. Returns it and the bytes it takes.
fn parse(data: &[u8], index: usize) -> Result<(RawRecord<'_>, usize), BatchError> {
    parse_unplaced(data).map_err(|error| BatchError::Record { index, error })
}

fn parse_unplaced(data: &[u8]) -> Result<(RawRecord<'_>, usize), RecordError> {
    let mut cursor = Cursor { rest: data };
    let length = cursor.varint("record length")?;
    let length = usize::try_from(length).map_err(|_| RecordError::Value {
        field: "record length",
        value: length.into(),
        rule: "it must not be negative",
    })?;
    let mut body = Cursor { rest: cursor.take("record", length)? };

    // Attributes: no bit is defined; Kafka ignores them.
    body.take("record attributes", 1)?;
    let timestamp_delta = body.varlong("timestamp delta")?;
    let offset_delta = body.varint("offset delta")?;
    let key = body.nullable("key")?;
    let value = body.nullable("value")?;

    let header_count = body.varint("header count")?;
    let header_count =
        usize::try_from(header_count).ok().filter(|count| *count <= MAX_RECORD_HEADERS).ok_or(RecordError::Value {
            field: "header count",
            value: header_count.into(),
            rule: "it must be from 0 to 16,384",
        })?;
    let headers = body.rest;
    for _ in 0..header_count {
        let (name, _) = body.header()?;
        if let Err(error) = std::str::from_utf8(name) {
            return Err(RecordError::HeaderName { valid_up_to: error.valid_up_to() });
        }
    }
    if !body.rest.is_empty() {
        return Err(RecordError::Leftover { bytes: body.rest.len() });
    }
    let taken = data.len() - cursor.rest.len();
    Ok((RawRecord { timestamp_delta, offset_delta, key, value, header_count, headers }, taken))
}

/// Reads fields from the front of a slice.
struct Cursor<'a> {
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    #[inline]
    fn take(&mut self, field: &'static str, length: usize) -> Result<&'a [u8], RecordError> {
        let Some((taken, rest)) = self.rest.split_at_checked(length) else {
            return Err(RecordError::TooShort { field, needed: length, actual: self.rest.len() });
        };
        self.rest = rest;
        Ok(taken)
    }

    #[inline]
    fn varint(&mut self, field: &'static str) -> Result<i32, RecordError> {
        let (value, taken) = varint::read_i32(self.rest).ok_or(RecordError::Varint { field, bits: 32 })?;
        self.rest = &self.rest[taken..];
        Ok(value)
    }

    #[inline]
    fn varlong(&mut self, field: &'static str) -> Result<i64, RecordError> {
        let (value, taken) = varint::read_i64(self.rest).ok_or(RecordError::Varint { field, bits: 64 })?;
        self.rest = &self.rest[taken..];
        Ok(value)
    }

    /// Length and bytes of a field that may be null.
    #[inline]
    fn nullable(&mut self, field: &'static str) -> Result<Option<&'a [u8]>, RecordError> {
        match self.varint(field)? {
            -1 => Ok(None),
            length => match usize::try_from(length) {
                Ok(length) => Ok(Some(self.take(field, length)?)),
                Err(_) => Err(RecordError::Value {
                    field,
                    value: length.into(),
                    rule: "its length must be -1 (null) or not negative",
                }),
            },
        }
    }

    /// Name and value of one record header.
    #[inline]
    fn header(&mut self) -> Result<(&'a [u8], Option<&'a [u8]>), RecordError> {
        let name = self.nullable("header name")?.ok_or(RecordError::Value {
            field: "header name",
            value: -1,
            rule: "its length must not be negative: a name is never null",
        })?;
        Ok((name, self.nullable("header value")?))
    }
}
