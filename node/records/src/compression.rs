//! The five codecs, each behind the same two functions.
//!
//! Rules that hold for all of them:
//! - Unpacking stops when the output passes the limit, and allocates no more than that in advance.
//! - The data is one complete stream of the codec and nothing else. Readers differ in what they make of a second stream
//!   or of trailing bytes (some stop, some go on, some fail), so that anything else would read differently by client.
//!
//! gzip and zstd are here; the framings that Kafka puts around snappy and lz4 have files of their own.

mod lz4;
mod snappy;

use std::fmt;
use std::io::{self, Read, Write};

use bytes::{BufMut, BytesMut};

use crate::BatchError;

/// How the records of a batch are packed. The numbers are those of the batch attributes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[repr(u8)]
pub enum Compression {
    /// Not at all.
    #[default]
    None = 0,
    /// gzip (RFC 1952).
    Gzip = 1,
    /// Snappy: written in the block framing of snappy-java, read in that or raw.
    Snappy = 2,
    /// LZ4 frame format.
    Lz4 = 3,
    /// Zstandard (RFC 8878).
    Zstd = 4,
}

impl Compression {
    /// The codec with this number in the batch attributes.
    pub(crate) fn from_bits(bits: u8) -> Result<Self, BatchError> {
        Ok(match bits {
            0 => Self::None,
            1 => Self::Gzip,
            2 => Self::Snappy,
            3 => Self::Lz4,
            4 => Self::Zstd,
            other => return Err(BatchError::UnknownCompression(other)),
        })
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Gzip => "gzip",
            Self::Snappy => "snappy",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        })
    }
}

/// What the compressed records of one batch usually unpack to, relative to their size: the first guess for the buffer.
const EXPECTED_RATIO: usize = 4;

/// First four bytes of a Zstandard frame (little-endian 0xFD2FB528).
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// Why unpacking failed, before the codec's name is added.
enum Failure {
    /// The output passed the limit.
    Limit,
    Corrupt(String),
}

impl Failure {
    fn corrupt(reason: impl fmt::Display) -> Self {
        Self::Corrupt(reason.to_string())
    }
}

/// Unpacks `packed` into at most `limit` bytes.
pub(crate) fn decompress(codec: Compression, packed: &[u8], limit: usize) -> Result<Vec<u8>, BatchError> {
    let unpacked = match codec {
        Compression::None => Ok(packed.to_vec()),
        Compression::Gzip => gunzip(packed, limit),
        Compression::Snappy => snappy::decompress(packed, limit),
        Compression::Lz4 => lz4::decompress(packed, limit),
        Compression::Zstd => unzstd(packed, limit),
    };
    unpacked.map_err(|failure| match failure {
        Failure::Limit => BatchError::TooLarge { what: "unpacked data", bytes: limit.saturating_add(1), limit },
        Failure::Corrupt(reason) => BatchError::Corrupt { codec, reason },
    })
}

/// Packs `data` and appends it to `out`.
pub(crate) fn compress(codec: Compression, data: &[u8], out: &mut BytesMut) -> Result<(), BatchError> {
    let packed = match codec {
        Compression::None => {
            out.put_slice(data);
            Ok(())
        }
        Compression::Gzip => gzip(data, out),
        Compression::Snappy => snappy::compress(data, out),
        Compression::Lz4 => lz4::compress(data, out),
        Compression::Zstd => zstd(data, out),
    };
    packed.map_err(|error| BatchError::Compress { codec, reason: error.to_string() })
}

fn gzip(data: &[u8], out: &mut BytesMut) -> io::Result<()> {
    let mut encoder = flate2::write::GzEncoder::new(out.writer(), flate2::Compression::default());
    encoder.write_all(data)?;
    encoder.finish().map(drop)
}

fn gunzip(packed: &[u8], limit: usize) -> Result<Vec<u8>, Failure> {
    let mut decoder = flate2::bufread::GzDecoder::new(packed);
    let unpacked = read_limited(&mut decoder, packed.len(), limit)?;
    expect_end(decoder.into_inner())?;
    Ok(unpacked)
}

fn zstd(data: &[u8], out: &mut BytesMut) -> io::Result<()> {
    let start = out.len();
    out.resize(start + zstd::zstd_safe::compress_bound(data.len()), 0);
    let mut encoder = zstd::bulk::Compressor::new(zstd::DEFAULT_COMPRESSION_LEVEL)?;
    let packed = encoder.compress_to_buffer(data, &mut out[start..])?;
    out.truncate(start + packed);
    Ok(())
}

fn unzstd(packed: &[u8], limit: usize) -> Result<Vec<u8>, Failure> {
    // The library may be built to read the frames of Zstandard before 0.8, which other readers refuse.
    if !packed.starts_with(&ZSTD_MAGIC) {
        return Err(Failure::corrupt("it does not start with the magic of a Zstandard frame"));
    }
    let frame = zstd::zstd_safe::find_frame_compressed_size(packed)
        .map_err(|code| Failure::corrupt(zstd::zstd_safe::get_error_name(code)))?;
    // In range: the library has walked these bytes. Not relied upon.
    expect_end(packed.get(frame..).unwrap_or_default())?;
    let mut decoder = zstd::stream::read::Decoder::with_buffer(packed).map_err(Failure::corrupt)?;
    read_limited(&mut decoder, packed.len(), limit)
}

/// Reads a decoder to its end, but not past `limit` bytes.
fn read_limited(mut decoder: impl Read, packed_len: usize, limit: usize) -> Result<Vec<u8>, Failure> {
    // One byte more than allowed tells "exactly the limit" from "more".
    let most = limit.saturating_add(1);
    let mut out = unpack_buffer(packed_len, most);
    while out.len() <= limit {
        reserve_within(&mut out, 1, most);
        let room = out.capacity() - out.len();
        let read = decoder.by_ref().take(room as u64).read_to_end(&mut out).map_err(Failure::corrupt)?;
        if read == 0 {
            return Ok(out);
        }
    }
    Err(Failure::Limit)
}

/// A buffer for what `packed_len` bytes usually unpack to, of at most `most` bytes.
fn unpack_buffer(packed_len: usize, most: usize) -> Vec<u8> {
    Vec::with_capacity(packed_len.saturating_mul(EXPECTED_RATIO).min(most))
}

/// Makes room for `more` bytes, doubling like `Vec` does, but not past `most` in all unless `more` itself asks for it.
fn reserve_within(out: &mut Vec<u8>, more: usize, most: usize) {
    let needed = out.len() + more;
    if needed > out.capacity() {
        let target = out.capacity().saturating_mul(2).min(most).max(needed);
        out.reserve_exact(target - out.len());
    }
}

/// Refuses bytes behind the end of the compressed stream.
fn expect_end(rest: &[u8]) -> Result<(), Failure> {
    if rest.is_empty() {
        return Ok(());
    }
    Err(Failure::Corrupt(format!("{} bytes follow the end of the compressed data: nothing may", rest.len())))
}
