//! Kafka v2 record batches (magic 2): parse, check, patch, iterate, encode, compress.
//!
//! A record batch is the stored format of every record and what Kafka producers and consumers send and receive, so
//! the same bytes travel from the wire to the disk and back. The format is the one of the Kafka protocol guide
//! ("Record Batch", introduced by KIP-98), which every Kafka client since 0.11 speaks:
//!
//! ```text
//! byte  0  base offset            i64   patched by the log
//! byte  8  batch length           i32   bytes that follow this field
//! byte 12  partition leader epoch i32   patched by the log
//! byte 16  magic                  i8    2
//! byte 17  CRC-32C                u32   of everything from byte 21 to the end
//! byte 21  attributes             i16   bits 0-2 compression, 3 timestamp type, 4 transactional, 5 control,
//!                                       6 delete horizon
//! byte 23  last offset delta      i32
//! byte 27  base timestamp         i64   ms since the Unix epoch
//! byte 35  max timestamp          i64   ms since the Unix epoch
//! byte 43  producer id            i64   -1 without
//! byte 51  producer epoch         i16   -1 without
//! byte 53  base sequence          i32   -1 without
//! byte 57  record count           i32
//! byte 61  records, compressed as one block when the attributes say so
//! ```
//!
//! All integers of the header are big-endian. The CRC starts at the attributes, so [`patch`] sets the base offset and
//! the leader epoch of a batch without hashing it again.
//!
//! # Promises
//!
//! - No function panics on any bytes that came from outside; each refusal is a [`BatchError`] that names the field,
//!   its value and the rule.
//! - No buffer for unpacked records grows past its [`Limits`], whatever sizes the bytes claim.
//! - A batch that [`check`] accepts is readable by [`records`] to its last record, and by other Kafka clients:
//!   compressed data is exactly one stream of the codec, with nothing behind it.
//!
//! [`ProducerTable`] checks the sequences of idempotent producers, from the headers of the batches alone.
//!
//! # Which check when
//!
//! | bytes come from | use |
//! |---|---|
//! | a client | [`check`]: header, CRC and every record |
//! | a peer or the disk | [`check_shallow`]: header and CRC |
//! | memory that was checked before | [`parse_header`], [`split`], [`records`] |
//!
//! # Example
//!
//! ```
//! use chronicle_records::{BatchBuilder, Compression, Limits, check, patch, records};
//!
//! let mut builder = BatchBuilder::new(Compression::Zstd);
//! builder.push(1_700_000_000_000, Some(b"key"), Some(b"value"), [("trace", Some(&b"1"[..]))])?;
//! let mut batch = builder.build()?;
//! patch(&mut batch, 42, 7);
//!
//! let limits = Limits::default();
//! assert_eq!(check(&batch, &limits)?.base_offset, 42);
//! for record in records(&batch.freeze(), &limits)? {
//!     assert_eq!(record?.value.as_deref(), Some(&b"value"[..]));
//! }
//! # Ok::<(), chronicle_records::BatchError>(())
//! ```

#![forbid(unsafe_code)]

mod batch;
mod builder;
mod codec;
mod compression;
mod error;
mod header;
mod limits;
mod producers;
mod record;
mod varint;

pub use batch::{Split, check, check_shallow, split};
pub use builder::BatchBuilder;
pub use codec::Compression;
pub use error::{BatchError, RecordError};
pub use header::{BatchHeader, HEADER_LEN, parse_header, patch};
pub use limits::Limits;
pub use producers::{FirstSequence, ProducerLimits, ProducerTable, SequenceCheck};
pub use record::{MAX_RECORD_HEADERS, Record, Records, records};
