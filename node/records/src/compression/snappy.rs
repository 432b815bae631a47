//! Snappy as Kafka clients send it.
//!
//! The Java client writes the framing of snappy-java ("xerial"), which is not the official Snappy framing: a header of
//! the magic `\x82SNAPPY\0`, a version and the lowest compatible version (big-endian `i32` each), then blocks, each a
//! big-endian `i32` length and that many bytes of raw Snappy. Some clients send one raw Snappy block without any
//! framing; Kafka takes both and distinguishes them by the magic. Source: snappy-java, `SnappyOutputStream` and `SnappyCodec`.

use std::io;

use bytes::{BufMut, BytesMut};

use super::unpack::{Failure, reserve_within, unpack_buffer};

const MAGIC: &[u8; 8] = b"\x82SNAPPY\0";
/// Magic and two versions.
const HEADER_LEN: usize = 16;
/// The version that is written, and the lowest that may be read.
const VERSION: i32 = 1;
/// Uncompressed bytes in a block: snappy-java's default.
const BLOCK_LEN: usize = 32 * 1024;
/// No Snappy element expands further than 64 bytes from 3; a block that claims more is lying.
const MAX_RATIO: usize = 22;

pub(super) fn compress(data: &[u8], out: &mut BytesMut) -> io::Result<()> {
    out.put_slice(MAGIC);
    out.put_i32(VERSION);
    out.put_i32(VERSION);
    let mut encoder = snap::raw::Encoder::new();
    for block in data.chunks(BLOCK_LEN) {
        let length_at = out.len();
        let start = length_at + size_of::<i32>();
        out.resize(start + snap::raw::max_compress_len(block.len()), 0);
        let packed = encoder.compress(block, &mut out[start..])?;
        out[length_at..start].copy_from_slice(&(packed as i32).to_be_bytes());
        out.truncate(start + packed);
    }
    Ok(())
}

pub(super) fn decompress(packed: &[u8], limit: usize) -> Result<Vec<u8>, Failure> {
    let mut out = unpack_buffer(packed.len(), limit);
    let Some((header, mut rest)) = packed.split_first_chunk::<HEADER_LEN>().filter(|(h, _)| h.starts_with(MAGIC))
    else {
        append_block(packed, limit, &mut out)?;
        return Ok(out);
    };
    let [.., a, b, c, d] = *header;
    let compatible = i32::from_be_bytes([a, b, c, d]);
    if compatible < VERSION {
        return Err(Failure::Corrupt(format!("compatible version is {compatible}: it must be at least {VERSION}")));
    }
    while !rest.is_empty() {
        let (length, after) = rest.split_first_chunk().ok_or_else(|| Failure::corrupt("block length is cut off"))?;
        let length = i32::from_be_bytes(*length);
        let (block, after) = usize::try_from(length)
            .ok()
            .and_then(|length| after.split_at_checked(length))
            .ok_or_else(|| Failure::Corrupt(format!("block length is {length}: {} bytes are left", after.len())))?;
        append_block(block, limit, &mut out)?;
        rest = after;
    }
    Ok(out)
}

/// Unpacks one raw Snappy block behind what `out` holds.
fn append_block(block: &[u8], limit: usize, out: &mut Vec<u8>) -> Result<(), Failure> {
    let length = snap::raw::decompress_len(block).map_err(Failure::corrupt)?;
    if length > limit - out.len() {
        return Err(Failure::Limit);
    }
    if length > block.len().saturating_mul(MAX_RATIO) {
        return Err(Failure::Corrupt(format!(
            "{} bytes of Snappy claim to hold {length}: more than can be",
            block.len()
        )));
    }
    let start = out.len();
    reserve_within(out, length, limit);
    out.resize(start + length, 0);
    let unpacked = snap::raw::Decoder::new().decompress(block, &mut out[start..]).map_err(Failure::corrupt)?;
    if unpacked != length {
        return Err(Failure::Corrupt(format!("a block holds {unpacked} bytes: it claims {length}")));
    }
    Ok(())
}
