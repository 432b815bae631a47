//! Little-endian fields at fixed places of a fixed-size block.
//!
//! Positions are constants of a format, so an index out of range is a bug of this crate, not bad input: callers check the
//! block's length first.

pub(crate) fn get_u16(block: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([block[at], block[at + 1]])
}

pub(crate) fn get_u32(block: &[u8], at: usize) -> u32 {
    let mut bytes = [0; 4];
    bytes.copy_from_slice(&block[at..at + 4]);
    u32::from_le_bytes(bytes)
}

pub(crate) fn get_u64(block: &[u8], at: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&block[at..at + 8]);
    u64::from_le_bytes(bytes)
}

pub(crate) fn get_i64(block: &[u8], at: usize) -> i64 {
    get_u64(block, at) as i64
}

pub(crate) fn put_u16(block: &mut [u8], at: usize, value: u16) {
    block[at..at + 2].copy_from_slice(&value.to_le_bytes());
}

pub(crate) fn put_u32(block: &mut [u8], at: usize, value: u32) {
    block[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

pub(crate) fn put_u64(block: &mut [u8], at: usize, value: u64) {
    block[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

pub(crate) fn put_i64(block: &mut [u8], at: usize, value: i64) {
    put_u64(block, at, value as u64);
}

/// Rounds up to the next multiple of 8.
pub(crate) fn align8(n: u64) -> u64 {
    n.next_multiple_of(8)
}
