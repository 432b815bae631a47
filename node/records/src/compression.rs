//! The five codecs, each behind the same two functions.
//!
//! Rules that hold for all of them:
//! - Unpacking stops when the output passes the limit, and allocates no more than that in advance.
//! - The data is one complete stream of the codec and nothing else. Readers differ in what they make of a second stream
//!   or of trailing bytes (some stop, some go on, some fail), so that anything else would read differently by client.
//!
//! gzip and zstd are here; the framings that Kafka puts around snappy and lz4 have files of their own.
//!
//! Neighbours: `batch.rs` and `record.rs` unpack, `builder.rs` packs. Names no header field and no record.

mod lz4;
mod snappy;
mod unpack;

use std::io::{self, Write};

use bytes::{BufMut, BytesMut};

use self::unpack::{Failure, expect_end, read_limited};
use crate::{BatchError, Compression};

/// First four bytes of a Zstandard frame (little-endian 0xFD2FB528).
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

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
