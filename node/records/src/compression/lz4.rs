//! LZ4 frames, as Kafka clients send them in v2 batches (the header checksum is the right one, unlike that of the
//! older message formats).
//!
//! ```text
//! magic 04 22 4D 18 · FLG · BD · content size u64 (if flagged) · header checksum
//! blocks: size u32 (top bit: stored uncompressed) · data · checksum u32 (if flagged)
//! end mark u32 0 · content checksum u32 (if flagged)
//! ```
//!
//! All integers are little-endian, all checksums XXH32. Source: the LZ4 Frame Format Description, 1.6.x.
//!
//! The frame is read here and only the blocks by lz4_flex: its own frame reader takes a cut frame for a complete one,
//! reads on into a second frame, and copies every block once more. Linked blocks (which refer to those before them) are
//! accepted although Kafka's own clients write independent ones.

use std::io::{self, Write};

use bytes::{BufMut, BytesMut};
use lz4_flex::block::{decompress_into, decompress_into_with_dict};
use lz4_flex::frame::{BlockMode, BlockSize, FrameEncoder, FrameInfo};
use twox_hash::XxHash32;

use super::unpack::{Failure, expect_end, reserve_within, unpack_buffer};

const MAGIC: u32 = 0x184D_2204;
/// FLG bits 6 and 7: the format version, of which there is one.
const VERSION_MASK: u8 = 0b1100_0000;
const VERSION: u8 = 0b0100_0000;
const INDEPENDENT_BIT: u8 = 1 << 5;
const BLOCK_CHECKSUM_BIT: u8 = 1 << 4;
const CONTENT_SIZE_BIT: u8 = 1 << 3;
const CONTENT_CHECKSUM_BIT: u8 = 1 << 2;
const FLG_RESERVED_BIT: u8 = 1 << 1;
const DICTIONARY_BIT: u8 = 1;
/// All bits of BD but 4 to 6, the block size.
const BD_RESERVED_MASK: u8 = 0b1000_1111;
/// Top bit of a block's size: its data is stored as it is.
const STORED_BIT: u32 = 1 << 31;
/// How far back a linked block may refer, in bytes.
const WINDOW: usize = 64 * 1024;
/// One byte of LZ4 extends a match by 255 bytes at most.
const MAX_RATIO: usize = 255;

pub(super) fn compress(data: &[u8], out: &mut BytesMut) -> io::Result<()> {
    // As the Java client: blocks of 64 KiB, independent, no checksums but the header's. The batch has a CRC.
    let info = FrameInfo::new().block_size(BlockSize::Max64KB).block_mode(BlockMode::Independent);
    let mut encoder = FrameEncoder::with_frame_info(info, out.writer());
    encoder.write_all(data)?;
    encoder.finish().map_err(io::Error::from).map(drop)
}

pub(super) fn decompress(packed: &[u8], limit: usize) -> Result<Vec<u8>, Failure> {
    let mut input = Lz4Reader { rest: packed };
    let frame = Frame::read(&mut input)?;
    if frame.content_size.is_some_and(|size| size > limit as u64) {
        return Err(Failure::Limit);
    }

    let mut out = unpack_buffer(packed.len(), limit);
    loop {
        let size = input.u32("block size")?;
        if size == 0 {
            break;
        }
        let stored = size & STORED_BIT != 0;
        let block = input.take("block", (size & !STORED_BIT) as usize)?;
        if block.len() > frame.max_block {
            return Err(Failure::Corrupt(format!(
                "block size is {}: the frame allows {}",
                block.len(),
                frame.max_block
            )));
        }
        if frame.block_checksums {
            input.checksum("block checksum", block)?;
        }
        if stored {
            if block.len() > limit - out.len() {
                return Err(Failure::Limit);
            }
            reserve_within(&mut out, block.len(), limit);
            out.extend_from_slice(block);
        } else {
            append_block(block, &frame, limit, &mut out)?;
        }
    }
    if frame.content_checksum {
        input.checksum("content checksum", &out)?;
    }
    if let Some(size) = frame.content_size
        && size != out.len() as u64
    {
        return Err(Failure::Corrupt(format!("content size is {size}: the blocks hold {} bytes", out.len())));
    }
    expect_end(input.rest)?;
    Ok(out)
}

/// Unpacks one compressed block behind what `out` holds.
fn append_block(block: &[u8], frame: &Frame, limit: usize, out: &mut Vec<u8>) -> Result<(), Failure> {
    let start = out.len();
    let room = frame.max_block.min(block.len().saturating_mul(MAX_RATIO));
    let allowed = limit - start;
    reserve_within(out, room.min(allowed), limit);
    out.resize(start + room.min(allowed), 0);
    let (before, target) = out.split_at_mut(start);
    let unpacked = if frame.linked {
        decompress_into_with_dict(block, target, &before[before.len().saturating_sub(WINDOW)..])
    } else {
        decompress_into(block, target)
    };
    match unpacked {
        Ok(length) => {
            out.truncate(start + length);
            Ok(())
        }
        // With less room than the frame allows, a sound block is refused for the limit, not for its bytes.
        Err(lz4_flex::block::DecompressError::OutputTooSmall { .. }) if room > allowed => Err(Failure::Limit),
        Err(error) => Err(Failure::corrupt(error)),
    }
}

/// The fields of the frame header.
struct Frame {
    linked: bool,
    block_checksums: bool,
    content_checksum: bool,
    /// Bytes of the whole content.
    content_size: Option<u64>,
    /// Largest block, unpacked or stored, in bytes.
    max_block: usize,
}

impl Frame {
    fn read(input: &mut Lz4Reader<'_>) -> Result<Self, Failure> {
        let magic = input.u32("frame magic")?;
        if magic != MAGIC {
            return Err(Failure::Corrupt(format!("frame magic is {magic:#010x}: it must be {MAGIC:#010x}")));
        }
        let descriptor = input.rest;
        let flg = input.take("FLG", 1)?[0];
        let bd = input.take("BD", 1)?[0];
        if flg & VERSION_MASK != VERSION || flg & FLG_RESERVED_BIT != 0 {
            return Err(Failure::Corrupt(format!("FLG is {flg:#04x}: version must be 01 and reserved bits 0")));
        }
        if flg & DICTIONARY_BIT != 0 {
            return Err(Failure::corrupt("the frame needs a dictionary: dictionaries are not supported"));
        }
        let max_block = match (bd & BD_RESERVED_MASK, bd >> 4) {
            (0, size @ 4..=7) => (64 * 1024) << (2 * (size - 4)),
            _ => {
                return Err(Failure::Corrupt(format!(
                    "BD is {bd:#04x}: the block size must be 4 to 7 and reserved bits 0"
                )));
            }
        };
        let content_size = match flg & CONTENT_SIZE_BIT {
            0 => None,
            _ => Some(u64::from(input.u32("content size")?) | u64::from(input.u32("content size")?) << 32),
        };
        let descriptor = &descriptor[..descriptor.len() - input.rest.len()];
        let stated = input.take("header checksum", 1)?[0];
        let actual = (XxHash32::oneshot(0, descriptor) >> 8) as u8;
        if stated != actual {
            return Err(Failure::Corrupt(format!("header checksum is {stated:#04x}: the bytes give {actual:#04x}")));
        }
        Ok(Self {
            linked: flg & INDEPENDENT_BIT == 0,
            block_checksums: flg & BLOCK_CHECKSUM_BIT != 0,
            content_checksum: flg & CONTENT_CHECKSUM_BIT != 0,
            content_size,
            max_block,
        })
    }
}

/// Reads fields from the front of a frame.
struct Lz4Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Lz4Reader<'a> {
    fn take(&mut self, field: &str, length: usize) -> Result<&'a [u8], Failure> {
        let (taken, rest) = self
            .rest
            .split_at_checked(length)
            .ok_or_else(|| Failure::Corrupt(format!("{field} takes {length} bytes, {} are left", self.rest.len())))?;
        self.rest = rest;
        Ok(taken)
    }

    fn u32(&mut self, field: &str) -> Result<u32, Failure> {
        let bytes = self.take(field, 4)?;
        Ok(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    /// Reads a checksum and compares it with that of `data`.
    fn checksum(&mut self, field: &str, data: &[u8]) -> Result<(), Failure> {
        let stated = self.u32(field)?;
        let actual = XxHash32::oneshot(0, data);
        if stated != actual {
            return Err(Failure::Corrupt(format!("{field} is {stated:#010x}: the bytes give {actual:#010x}")));
        }
        Ok(())
    }
}
