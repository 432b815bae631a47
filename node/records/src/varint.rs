//! Variable-length integers of the record format: zigzag, then base 128 with the least significant group first, as in
//! Protocol Buffers (`sint32`, `sint64`).
//!
//! Padded encodings (more bytes than needed) are accepted, as Kafka does; a value wider than its type is not.

use bytes::{BufMut, BytesMut};

/// Bytes that the longest `i32` takes.
const MAX_I32_LEN: usize = 5;
/// Bytes that the longest `i64` takes.
const MAX_I64_LEN: usize = 10;

/// Reads an `i32` from the front of `bytes`: the value and the bytes it took. `None`: cut off, or wider than 32 bits.
#[inline]
pub(crate) fn read_i32(bytes: &[u8]) -> Option<(i32, usize)> {
    // One byte covers lengths and deltas up to 63: the common case by far.
    if let Some(&first) = bytes.first()
        && first < 0x80
    {
        return Some((unzigzag(u64::from(first)) as i32, 1));
    }
    let (raw, len) = read_unsigned(bytes, MAX_I32_LEN)?;
    (raw <= u64::from(u32::MAX)).then(|| (unzigzag(raw) as i32, len))
}

/// Reads an `i64` from the front of `bytes`: the value and the bytes it took. `None`: cut off, or wider than 64 bits.
#[inline]
pub(crate) fn read_i64(bytes: &[u8]) -> Option<(i64, usize)> {
    let (raw, len) = read_unsigned(bytes, MAX_I64_LEN)?;
    Some((unzigzag(raw), len))
}

/// Appends `value`; the format is the same for both widths.
#[inline]
pub(crate) fn write(out: &mut BytesMut, value: i64) {
    let mut rest = zigzag(value);
    while rest >= 0x80 {
        out.put_u8(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.put_u8(rest as u8);
}

/// Bytes that [`write`] appends for `value`: 1 to 10.
#[inline]
pub(crate) fn len(value: i64) -> usize {
    let bits = 64 - (zigzag(value) | 1).leading_zeros() as usize;
    bits.div_ceil(7)
}

#[inline]
fn read_unsigned(bytes: &[u8], max_len: usize) -> Option<(u64, usize)> {
    let mut value = 0u64;
    for (at, &byte) in bytes.iter().take(max_len).enumerate() {
        let group = u64::from(byte & 0x7f);
        // The tenth byte has room for one bit only.
        if at == MAX_I64_LEN - 1 && group > 1 {
            return None;
        }
        value |= group << (7 * at);
        if byte < 0x80 {
            return Some((value, at + 1));
        }
    }
    None
}

#[inline]
fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)) as u64
}

#[inline]
fn unzigzag(raw: u64) -> i64 {
    (raw >> 1) as i64 ^ -((raw & 1) as i64)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn encoded(value: i64) -> BytesMut {
        let mut out = BytesMut::new();
        write(&mut out, value);
        out
    }

    #[test]
    fn known_values_have_their_known_bytes() {
        for (value, bytes) in [
            (0, &[0x00][..]),
            (-1, &[0x01]),
            (1, &[0x02]),
            (63, &[0x7e]),
            (-64, &[0x7f]),
            (64, &[0x80, 0x01]),
            (i64::from(i32::MAX), &[0xfe, 0xff, 0xff, 0xff, 0x0f]),
            (i64::from(i32::MIN), &[0xff, 0xff, 0xff, 0xff, 0x0f]),
            (i64::MIN, &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]),
        ] {
            assert_eq!(&encoded(value)[..], bytes, "{value}");
            assert_eq!(len(value), bytes.len(), "{value}");
        }
    }

    #[test]
    fn values_wider_than_their_type_are_refused() {
        assert_eq!(read_i32(&[0xff, 0xff, 0xff, 0xff, 0x1f]), None);
        assert_eq!(read_i32(&[0x80, 0x80, 0x80, 0x80, 0x80, 0x00]), None);
        assert_eq!(read_i64(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02]), None);
    }

    #[test]
    fn a_cut_varint_is_refused() {
        assert_eq!(read_i32(&[]), None);
        assert_eq!(read_i32(&[0x80]), None);
        assert_eq!(read_i64(&[0xff, 0xff]), None);
    }

    #[test]
    fn a_padded_varint_is_accepted() {
        assert_eq!(read_i32(&[0x82, 0x80, 0x00]), Some((1, 3)));
    }

    proptest! {
        #[test]
        fn every_i64_round_trips(value: i64) {
            let bytes = encoded(value);
            prop_assert_eq!(read_i64(&bytes), Some((value, bytes.len())));
            prop_assert_eq!(len(value), bytes.len());
        }

        #[test]
        fn every_i32_round_trips(value: i32) {
            let bytes = encoded(i64::from(value));
            prop_assert_eq!(read_i32(&bytes), Some((value, bytes.len())));
        }
    }
}
