//! One entry on disk: a frame that can be checked and read by itself.
//!
//! Layout (little-endian; see `docs/disk-format.md`):
//!
//! | at | size | field |
//! |---|---|---|
//! | 0 | 4 | length of what follows the 8-byte prefix, without padding |
//! | 4 | 4 | CRC-32C of those bytes, continued from the segment's seed |
//! | 8 | 1 | frame version, 1 |
//! | 9 | 1 | kind |
//! | 10 | 2 | tag of the segment; zero in a version 1 segment |
//! | 12 | 4 | offset count |
//! | 16 | 8 | raft term |
//! | 24 | 8 | leader |
//! | 32 | 8 | raft index |
//! | 40 | 8 | base offset |
//! | 48 | 8 | max timestamp, ms |
//! | 56 | 8 | durable mark: every entry below this index was on disk when the frame was encoded |
//! | 64 | 4 | CRC of the previous frame: a hash chain through the whole log |
//! | 68 | 4 | CRC-32C of bytes 0..4 and 8..68, continued from the seed |
//! | 72 | n | payload, then zeros up to a multiple of 8 |
//!
//! Both CRCs start from the seed of the segment (`seed.rs`), so that stale bytes, bytes of another log and frames quoted inside
//! payloads never parse. The header has a CRC of its own so that a reader may jump
//! over a frame, and name the entry that is damaged, without trusting its payload.
//!
//! Neighbours: `writer.rs` encodes, `reader.rs` decodes. Reads and writes no file.

use bytes::Bytes;

use crate::{
    Entry, EntryKind, StoredEntry,
    bytes_le::{align8, get_i64, get_u16, get_u32, get_u64, put_i64, put_u16, put_u32, put_u64},
    seed::{Seed, SegmentVersion},
};

/// Bytes of prefix and header.
pub(crate) const FRAME_HEADER: usize = 72;
/// Bytes of the prefix, which the length does not count.
const PREFIX: usize = 8;
/// Newest frame version this release reads, and the one it writes.
const VERSION: u8 = 1;
/// Largest payload of one entry, in bytes. Bounds what a reader allocates for one frame.
pub const MAX_PAYLOAD: usize = 256 << 20;

/// A decoded frame header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FrameHeader {
    pub(crate) payload_len: usize,
    pub(crate) crc: u32,
    pub(crate) kind: EntryKind,
    pub(crate) record_count: u32,
    pub(crate) term: u64,
    pub(crate) leader: u64,
    pub(crate) index: u64,
    pub(crate) base_offset: u64,
    pub(crate) max_timestamp: i64,
    pub(crate) durable_mark: u64,
    pub(crate) prev_crc: u32,
}

/// Why bytes are not a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FrameError {
    #[error("a frame header takes {FRAME_HEADER} bytes, only {have} are left")]
    ShortHeader { have: u64 },
    #[error("the header's checksum does not match")]
    HeaderCrc,
    #[error("the header has the tag of another segment")]
    Tag,
    #[error("a frame takes {need} bytes, only {have} are left")]
    ShortPayload { need: u64, have: u64 },
    #[error("the frame's checksum does not match")]
    Crc,
    #[error("expected entry {expected}, found entry {found}")]
    Index { expected: u64, found: u64 },
    #[error("expected base offset {expected}, found {found}")]
    Offset { expected: u64, found: u64 },
    #[error("the previous frame has checksum {expected:#010x}, this frame expects {found:#010x}")]
    Chain { expected: u32, found: u32 },
    #[error("frame version {0} is newer than the newest known, {VERSION}")]
    Version(u8),
    #[error("entry kind {0} is unknown")]
    Kind(u8),
}

impl FrameError {
    /// Whether the frame is intact but written by a newer release: this one does not know its version or kind. Such a frame is
    /// never cut off.
    pub(crate) fn is_foreign(self) -> bool {
        matches!(self, Self::Version(_) | Self::Kind(_))
    }
}

/// Bytes that a frame with such a payload takes in the file, with padding.
pub(crate) fn frame_len(payload_len: usize) -> u64 {
    align8((FRAME_HEADER + payload_len) as u64)
}

fn header_crc(header: &[u8], seed: Seed) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c_append(seed.crc(), &header[..4]), &header[8..68])
}

/// Encodes everything but the payload. Returns the header and the frame's CRC (the next frame's `prev_crc`).
pub(crate) fn encode_header(
    stored: &StoredEntry,
    durable_mark: u64,
    prev_crc: u32,
    seed: Seed,
) -> ([u8; FRAME_HEADER], u32) {
    let entry = &stored.entry;
    let mut header = [0; FRAME_HEADER];
    put_u32(&mut header, 0, (FRAME_HEADER - PREFIX + entry.payload.len()) as u32);
    header[8] = VERSION;
    header[9] = entry.kind as u8;
    put_u16(&mut header, 10, seed.tag());
    put_u32(&mut header, 12, entry.record_count);
    put_u64(&mut header, 16, entry.term);
    put_u64(&mut header, 24, entry.leader);
    put_u64(&mut header, 32, entry.index);
    put_u64(&mut header, 40, stored.base_offset);
    put_i64(&mut header, 48, entry.max_timestamp);
    put_u64(&mut header, 56, durable_mark);
    put_u32(&mut header, 64, prev_crc);
    let own = header_crc(&header, seed);
    put_u32(&mut header, 68, own);
    let crc = crc32c::crc32c_append(crc32c::crc32c_append(seed.crc(), &header[PREFIX..]), &entry.payload);
    put_u32(&mut header, 4, crc);
    (header, crc)
}

/// Decodes and checks a header. `left` is how many bytes the file holds from the frame's start.
pub(crate) fn decode_header(bytes: &[u8], left: u64, seed: Seed) -> Result<FrameHeader, FrameError> {
    if bytes.len() < FRAME_HEADER {
        return Err(FrameError::ShortHeader { have: bytes.len() as u64 });
    }
    if get_u32(bytes, 68) != header_crc(bytes, seed) {
        return Err(FrameError::HeaderCrc);
    }
    if seed.version() != SegmentVersion::V1 && get_u16(bytes, 10) != seed.tag() {
        return Err(FrameError::Tag);
    }
    if bytes[8] != VERSION {
        return Err(FrameError::Version(bytes[8]));
    }
    let kind = EntryKind::from_u8(bytes[9]).ok_or(FrameError::Kind(bytes[9]))?;
    let length = get_u32(bytes, 0) as usize;
    let need = (PREFIX + length) as u64;
    if length < FRAME_HEADER - PREFIX || need > left {
        return Err(FrameError::ShortPayload { need, have: left });
    }
    Ok(FrameHeader {
        payload_len: length - (FRAME_HEADER - PREFIX),
        crc: get_u32(bytes, 4),
        kind,
        record_count: get_u32(bytes, 12),
        term: get_u64(bytes, 16),
        leader: get_u64(bytes, 24),
        index: get_u64(bytes, 32),
        base_offset: get_u64(bytes, 40),
        max_timestamp: get_i64(bytes, 48),
        durable_mark: get_u64(bytes, 56),
        prev_crc: get_u32(bytes, 64),
    })
}

impl FrameHeader {
    /// Bytes of the whole frame in the file.
    pub(crate) fn frame_len(&self) -> u64 {
        frame_len(self.payload_len)
    }

    /// Checks the frame's CRC. `frame` starts at the prefix and holds at least header and payload.
    pub(crate) fn check(&self, frame: &[u8], seed: Seed) -> Result<(), FrameError> {
        let end = FRAME_HEADER + self.payload_len;
        let matches =
            crate::mutant!("frame-not-checked") || crc32c::crc32c_append(seed.crc(), &frame[PREFIX..end]) == self.crc;
        if matches { Ok(()) } else { Err(FrameError::Crc) }
    }

    /// First offset after this entry.
    pub(crate) fn next_offset(&self) -> u64 {
        match self.kind {
            EntryKind::Data => self.base_offset.saturating_add(u64::from(self.record_count)),
            _ => self.base_offset,
        }
    }

    /// The entry, with its payload.
    pub(crate) fn into_entry(self, payload: Bytes) -> StoredEntry {
        let entry = Entry {
            term: self.term,
            leader: self.leader,
            index: self.index,
            kind: self.kind,
            record_count: self.record_count,
            max_timestamp: self.max_timestamp,
            payload,
        };
        StoredEntry { base_offset: self.base_offset, entry }
    }
}

/// What the next frame of a log must contain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Expect {
    pub(crate) index: u64,
    pub(crate) offset: u64,
    pub(crate) prev_crc: u32,
}

impl Expect {
    /// Checks a frame's place in the log, and moves on to the one after it.
    pub(crate) fn advance(&mut self, header: &FrameHeader) -> Result<(), FrameError> {
        if header.index != self.index {
            return Err(FrameError::Index { expected: self.index, found: header.index });
        }
        if header.base_offset != self.offset {
            return Err(FrameError::Offset { expected: self.offset, found: header.base_offset });
        }
        if header.prev_crc != self.prev_crc {
            return Err(FrameError::Chain { expected: self.prev_crc, found: header.prev_crc });
        }
        *self = Self { index: header.index.saturating_add(1), offset: header.next_offset(), prev_crc: header.crc };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;
    use crate::LogId;

    const ID: LogId = LogId { topic: Uuid::from_u128(1), partition: 2 };

    fn seeds() -> [Seed; 2] {
        [Seed::version_1(ID, 1), Seed::version_2(*b"a secret", 1)]
    }

    fn stored(payload: Vec<u8>) -> StoredEntry {
        let entry = Entry {
            term: 3,
            leader: 4,
            index: 5,
            kind: EntryKind::Data,
            record_count: 6,
            max_timestamp: -7,
            payload: payload.into(),
        };
        StoredEntry { base_offset: 8, entry }
    }

    fn encode(stored: &StoredEntry, seed: Seed) -> Vec<u8> {
        let (header, _) = encode_header(stored, 5, 9, seed);
        [&header[..], &stored.entry.payload].concat()
    }

    fn decode(bytes: &[u8], seed: Seed) -> Result<FrameHeader, FrameError> {
        let header = decode_header(bytes, bytes.len() as u64, seed)?;
        header.check(bytes, seed)?;
        Ok(header)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        #[test]
        fn arbitrary_bytes_never_parse_and_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            for seed in seeds() {
                prop_assert!(decode(&bytes, seed).is_err());
            }
        }

        #[test]
        fn a_frame_round_trips_and_every_bit_flip_in_it_is_noticed(
            payload in prop::collection::vec(any::<u8>(), 0..100),
            flip in any::<prop::sample::Index>(),
            version in 0_usize..2,
        ) {
            let seed = seeds()[version];
            let stored = stored(payload);
            let mut bytes = encode(&stored, seed);
            prop_assert_eq!(decode(&bytes, seed).unwrap().into_entry(stored.entry.payload.clone()), stored);
            let bit = flip.index(bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(decode(&bytes, seed).is_err());
        }

        #[test]
        fn a_shortened_frame_is_noticed(len in 0_usize..171) {
            let seed = seeds()[1];
            prop_assert!(decode(&encode(&stored(vec![1; 100]), seed)[..len], seed).is_err());
        }
    }

    #[test]
    fn frames_of_another_log_or_segment_do_not_parse() {
        let bytes = encode(&stored(b"x".to_vec()), Seed::version_1(ID, 1));
        let other = LogId { partition: 3, ..ID };
        for seed in [Seed::version_1(ID, 2), Seed::version_1(other, 1), seeds()[1]] {
            assert_eq!(decode(&bytes, seed), Err(FrameError::HeaderCrc));
        }
        let bytes = encode(&stored(b"x".to_vec()), Seed::version_2(*b"a secret", 1));
        for seed in [Seed::version_2(*b"a secret", 2), Seed::version_2(*b"A secret", 1), seeds()[0]] {
            assert_eq!(decode(&bytes, seed), Err(FrameError::HeaderCrc));
        }
    }

    #[test]
    fn a_frame_with_the_right_seed_and_another_tag_does_not_parse() {
        let seed = seeds()[1];
        let mut bytes = encode(&stored(b"x".to_vec()), seed);
        bytes[10] ^= 1;
        let crc = header_crc(&bytes, seed);
        put_u32(&mut bytes, 68, crc);
        assert_eq!(decode(&bytes, seed), Err(FrameError::Tag));
    }

    #[test]
    fn an_unknown_kind_or_version_is_distinguished_from_damage() {
        let seed = seeds()[1];
        for (at, value, expected) in [(8, 2, FrameError::Version(2)), (9, 77, FrameError::Kind(77))] {
            let mut bytes = encode(&stored(Vec::new()), seed);
            bytes[at] = value;
            let crc = header_crc(&bytes, seed);
            put_u32(&mut bytes, 68, crc);
            assert_eq!(decode(&bytes, seed), Err(expected));
            assert!(expected.is_foreign());
        }
    }
}
