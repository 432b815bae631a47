//! One segment file: header, frames and, once sealed, a footer.
//!
//! The bytes of header and footer, and the walk over a whole segment. See `docs/disk-format.md` for the fields.
//!
//! Neighbours: `log_dir.rs` adds the directory, `writer.rs` the encoding of frames. Holds no state and names no log.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;

use crate::{
    EntryKind, LogId,
    bytes_le::{get_i64, get_u32, get_u64, put_i64, put_u32, put_u64},
    disk::DiskFile,
    frame::{Expect, FrameHeader},
    index::{IndexBuilder, IndexEntry, IndexOwner},
    reader::{FrameReader, Stop},
    seed::{Seed, SegmentVersion},
};

/// Bytes that hold the header of any version, and more: what a reader fetches.
pub(crate) const MAX_SEGMENT_HEADER: usize = 256;
/// Bytes of a header up to the end of its length field.
const HEADER_START: usize = 16;
/// Bytes of a footer.
pub(crate) const FOOTER: usize = 144;
/// Newest segment version this release reads, and the one it writes.
pub(crate) const SEGMENT_VERSION: u32 = SegmentVersion::V2 as u32;
/// Bytes fetched at once when a whole segment is walked.
pub(crate) const SCAN_CHUNK: usize = 1 << 20;

const MAGIC: &[u8; 8] = b"CHRNLSEG";
const FOOTER_MAGIC: &[u8; 8] = b"CHRNLFTR";

/// File name of a segment.
pub(crate) fn segment_name(base_index: u64) -> String {
    format!("{base_index:020}.log")
}

/// Path of the index that belongs to a segment.
pub(crate) fn index_path(dir: &Path, base_index: u64) -> PathBuf {
    dir.join(format!("{base_index:020}.idx"))
}

/// The base index in a segment's file name.
pub(crate) fn parse_segment_name(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".log")?;
    (digits.len() == 20 && digits.bytes().all(|byte| byte.is_ascii_digit())).then(|| digits.parse().ok())?
}

/// A decoded segment header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    pub(crate) id: LogId,
    pub(crate) base_index: u64,
    pub(crate) base_offset: u64,
    /// CRC of the last frame before this segment: the hash chain continues through it.
    pub(crate) prev_crc: u32,
    pub(crate) created_ms: i64,
    /// Every entry below this index was on disk when the segment was created.
    pub(crate) durable_mark: u64,
    /// Of version and secret.
    pub(crate) seed: Seed,
}

/// Why bytes are not a segment header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum HeaderError {
    #[error("the file has {0} bytes, too few for a segment header")]
    Short(u64),
    #[error("the file does not start with a segment's magic number")]
    Magic,
    #[error("a segment header cannot have {0} bytes")]
    Length(u32),
    #[error("the segment header's checksum does not match")]
    Crc,
    #[error("the header names segment {base_index} of log {id}")]
    Misplaced { id: LogId, base_index: u64 },
    #[error("segment version {0} is newer than the newest known, {SEGMENT_VERSION}")]
    Version(u32),
}

impl SegmentHeader {
    /// The header's bytes. New segments are of version 2, and so must the seed be.
    pub(crate) fn encode(&self) -> [u8; SegmentVersion::V2.header_len()] {
        const LEN: usize = SegmentVersion::V2.header_len();
        let mut bytes = [0; LEN];
        bytes[..8].copy_from_slice(MAGIC);
        put_u32(&mut bytes, 8, SegmentVersion::V2 as u32);
        put_u32(&mut bytes, 12, LEN as u32);
        bytes[16..36].copy_from_slice(&self.id.to_bytes());
        put_u32(&mut bytes, 36, self.prev_crc);
        put_u64(&mut bytes, 40, self.base_index);
        put_u64(&mut bytes, 48, self.base_offset);
        put_i64(&mut bytes, 56, self.created_ms);
        put_u64(&mut bytes, 64, self.durable_mark);
        bytes[72..80].copy_from_slice(&self.seed.secret());
        bytes[80..88].copy_from_slice(&self.seed.secret());
        let crc = crc32c::crc32c(&bytes[..92]);
        put_u32(&mut bytes, 92, crc);
        bytes
    }

    /// The segment as it was when it had no frame.
    pub(crate) fn no_frames(&self) -> Contents {
        Contents::empty(self.base_index, self.base_offset, self.prev_crc, self.seed.first_frame())
    }

    /// Decodes and checks a header. `bytes` are the file's first [`MAX_SEGMENT_HEADER`], or all of a shorter file.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, HeaderError> {
        let short = HeaderError::Short(bytes.len() as u64);
        if bytes.len() < HEADER_START {
            return Err(short);
        }
        if &bytes[..8] != MAGIC {
            return Err(HeaderError::Magic);
        }
        // Every version has its checksum at the end, so that a newer one is told from damage.
        let (version, header_len) = (get_u32(bytes, 8), get_u32(bytes, 12));
        let len = header_len as usize;
        if !(SegmentVersion::V1.header_len()..=MAX_SEGMENT_HEADER).contains(&len) || !len.is_multiple_of(8) {
            return Err(HeaderError::Length(header_len));
        }
        let header = bytes.get(..len).ok_or(short)?;
        if get_u32(header, len - 4) != crc32c::crc32c(&header[..len - 4]) {
            return Err(HeaderError::Crc);
        }
        let version = match version {
            1 => SegmentVersion::V1,
            2 => SegmentVersion::V2,
            _ => return Err(HeaderError::Version(version)),
        };
        if len != version.header_len() {
            return Err(HeaderError::Length(header_len));
        }
        let mut id = [0; 20];
        id.copy_from_slice(&bytes[16..36]);
        let id = LogId::from_bytes(id);
        let base_index = get_u64(bytes, 40);
        let seed = match version {
            SegmentVersion::V1 => Seed::version_1(id, base_index),
            SegmentVersion::V2 => Seed::version_2(secret_at(bytes, 72), base_index),
        };
        Ok(Self {
            id,
            prev_crc: get_u32(bytes, 36),
            base_index,
            base_offset: get_u64(bytes, 48),
            created_ms: get_i64(bytes, 56),
            durable_mark: get_u64(bytes, 64),
            seed,
        })
    }

    /// The seeds that a segment with a damaged header may have, by what can still be read of the header; none, if nothing can. A
    /// frame that parses with one of them was written to this segment.
    pub(crate) fn salvage_seeds(bytes: &[u8], id: LogId, base_index: u64) -> Vec<Seed> {
        let is = |at, value: usize| bytes.len() >= at + 4 && get_u32(bytes, at) as usize == value;
        if is(8, SegmentVersion::V1 as usize) || is(12, SegmentVersion::V1.header_len()) {
            return vec![Seed::version_1(id, base_index)];
        }
        // Written twice, so that no single bad byte makes the frames unreadable. Never zeros, which a header that did not reach
        // the disk has, and which a client can guess.
        let copies = [72, 80].into_iter().filter(|at| bytes.len() >= at + 8).map(|at| secret_at(bytes, at));
        let mut secrets: Vec<[u8; 8]> = copies.filter(|secret| *secret != [0; 8]).collect();
        secrets.dedup();
        secrets.into_iter().map(|secret| Seed::version_2(secret, base_index)).collect()
    }
}

fn secret_at(bytes: &[u8], at: usize) -> [u8; 8] {
    get_u64(bytes, at).to_le_bytes()
}

/// A summary of the frames of a segment, whether sealed or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Contents {
    pub(crate) base_index: u64,
    pub(crate) base_offset: u64,
    /// First index after the segment.
    pub(crate) next_index: u64,
    /// First offset after the segment.
    pub(crate) next_offset: u64,
    /// Where the frames end in the file.
    pub(crate) data_len: u64,
    /// Smallest and greatest timestamp of its data entries; `i64::MAX` and `i64::MIN` when there is none.
    pub(crate) min_timestamp: i64,
    pub(crate) max_timestamp: i64,
    pub(crate) last_term: u64,
    pub(crate) last_leader: u64,
    /// CRC of its last frame; the header's `prev_crc` when it has none.
    pub(crate) last_crc: u32,
}

impl Contents {
    /// A segment with no frames yet; the first is to start at `first_frame`.
    pub(crate) fn empty(base_index: u64, base_offset: u64, prev_crc: u32, first_frame: u64) -> Self {
        Self {
            base_index,
            base_offset,
            next_index: base_index,
            next_offset: base_offset,
            data_len: first_frame,
            min_timestamp: i64::MAX,
            max_timestamp: i64::MIN,
            last_term: 0,
            last_leader: 0,
            last_crc: prev_crc,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.next_index == self.base_index
    }

    /// Adds a frame that starts at `data_len`.
    pub(crate) fn push(&mut self, header: &FrameHeader) {
        if header.kind == EntryKind::Data {
            self.min_timestamp = self.min_timestamp.min(header.max_timestamp);
            self.max_timestamp = self.max_timestamp.max(header.max_timestamp);
        }
        self.next_index = header.index.saturating_add(1);
        self.next_offset = header.next_offset();
        self.data_len += header.frame_len();
        self.last_term = header.term;
        self.last_leader = header.leader;
        self.last_crc = header.crc;
    }

    pub(crate) fn expect(&self) -> Expect {
        Expect { index: self.next_index, offset: self.next_offset, prev_crc: self.last_crc }
    }
}

impl IndexOwner {
    /// The owner of the index of a segment with these contents.
    pub(crate) fn of(contents: &Contents, seed: Seed) -> Self {
        Self { seed, data_len: contents.data_len, last_crc: contents.last_crc }
    }
}

/// A decoded footer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Footer {
    pub(crate) contents: Contents,
    /// BLAKE3 of the canonical content of the frames; equal on every replica.
    pub(crate) hash: [u8; 32],
}

/// Whether `start..end` of a file is what is left of a footer that a crash tore: it holds no frames.
pub(crate) fn is_torn_footer(file: &dyn DiskFile, start: u64, end: u64) -> io::Result<bool> {
    let len = end.saturating_sub(start);
    let holds_magic = (FOOTER_MAGIC.len() as u64..=FOOTER as u64).contains(&len);
    Ok(holds_magic && file.read_at(start, FOOTER_MAGIC.len())? == FOOTER_MAGIC)
}

impl Footer {
    pub(crate) fn encode(&self, seed: Seed) -> [u8; FOOTER] {
        let contents = &self.contents;
        let mut bytes = [0; FOOTER];
        bytes[..8].copy_from_slice(FOOTER_MAGIC);
        put_u32(&mut bytes, 8, seed.version() as u32);
        put_u32(&mut bytes, 12, FOOTER as u32);
        put_u64(&mut bytes, 16, contents.data_len);
        put_u64(&mut bytes, 24, contents.next_index - contents.base_index);
        put_u64(&mut bytes, 32, contents.base_index);
        put_u64(&mut bytes, 40, contents.next_index);
        put_u64(&mut bytes, 48, contents.base_offset);
        put_u64(&mut bytes, 56, contents.next_offset);
        put_i64(&mut bytes, 64, contents.min_timestamp);
        put_i64(&mut bytes, 72, contents.max_timestamp);
        put_u64(&mut bytes, 80, contents.last_term);
        put_u64(&mut bytes, 88, contents.last_leader);
        bytes[96..128].copy_from_slice(&self.hash);
        bytes[128..136].copy_from_slice(&seed.secret());
        put_u32(&mut bytes, 136, contents.last_crc);
        let crc = crc32c::crc32c_append(seed.crc(), &bytes[..140]);
        put_u32(&mut bytes, 140, crc);
        bytes
    }

    /// Decodes the last [`FOOTER`] bytes of a file of `file_len` bytes. `None`: there is no intact footer of this segment.
    pub(crate) fn decode(bytes: &[u8], file_len: u64, seed: Seed) -> Option<Self> {
        let intact = bytes.len() == FOOTER
            && &bytes[..8] == FOOTER_MAGIC
            && get_u32(bytes, 140) == crc32c::crc32c_append(seed.crc(), &bytes[..140])
            && get_u32(bytes, 8) == seed.version() as u32
            && (seed.version() == SegmentVersion::V1 || secret_at(bytes, 128) == seed.secret())
            && get_u64(bytes, 16).checked_add(FOOTER as u64) == Some(file_len);
        if !intact {
            return None;
        }
        let mut hash = [0; 32];
        hash.copy_from_slice(&bytes[96..128]);
        let contents = Contents {
            data_len: get_u64(bytes, 16),
            base_index: get_u64(bytes, 32),
            next_index: get_u64(bytes, 40),
            base_offset: get_u64(bytes, 48),
            next_offset: get_u64(bytes, 56),
            min_timestamp: get_i64(bytes, 64),
            max_timestamp: get_i64(bytes, 72),
            last_term: get_u64(bytes, 80),
            last_leader: get_u64(bytes, 88),
            last_crc: get_u32(bytes, 136),
        };
        Some(Self { contents, hash })
    }

    /// Whether it describes frames behind this header. A reader that is sent elsewhere by a footer would never find an entry.
    pub(crate) fn belongs_to(&self, header: &SegmentHeader) -> bool {
        let Contents { base_index, base_offset, next_index, next_offset, .. } = self.contents;
        (base_index, base_offset) == (header.base_index, header.base_offset)
            && next_index >= base_index
            && next_offset >= base_offset
    }

    /// Reads the footer of a file, if it has an intact one.
    pub(crate) fn read(file: &dyn DiskFile, file_len: u64, seed: Seed) -> io::Result<Option<Self>> {
        match file_len.checked_sub(FOOTER as u64) {
            Some(position) if position >= seed.first_frame() => {
                Ok(Self::decode(&file.read_at(position, FOOTER)?, file_len, seed))
            }
            _ => Ok(None),
        }
    }
}

/// Outcome of walking a segment's frames from the first on.
#[derive(Debug)]
pub(crate) struct Walk {
    /// What the valid frames hold.
    pub(crate) contents: Contents,
    /// Index entries of the valid frames.
    pub(crate) index: Vec<IndexEntry>,
    /// Greatest durable mark in the valid frames.
    pub(crate) durable_mark: u64,
    /// Why the walk stopped before `end`, if it did: the frame at `contents.data_len` is bad.
    pub(crate) bad: Option<crate::frame::FrameError>,
}

/// Walks the frames that start after the header and end at `end` or at the first bad one.
pub(crate) fn walk(
    file: &Arc<dyn DiskFile>,
    header: &SegmentHeader,
    end: u64,
    interval: u64,
    mut each: impl FnMut(&FrameHeader, &Bytes),
) -> io::Result<Walk> {
    let mut contents = header.no_frames();
    let mut reader = FrameReader::new(file.clone(), header.seed, contents.data_len, end, SCAN_CHUNK);
    let mut builder = IndexBuilder::new(interval);
    let (mut index, mut durable_mark, mut bad) = (Vec::new(), 0, None);
    loop {
        let found = match reader.next() {
            Ok(Some(found)) => found,
            Ok(None) => break,
            Err(Stop::Io(error)) => return Err(error),
            Err(Stop::Bad(error)) => {
                bad = Some(error);
                break;
            }
        };
        if let Err(error) = contents.expect().advance(&found.header) {
            bad = Some(error);
            break;
        }
        index.extend(builder.note_frame(&found.header, found.position));
        durable_mark = durable_mark.max(found.header.durable_mark);
        contents.push(&found.header);
        each(&found.header, &found.payload);
    }
    Ok(Walk { contents, index, durable_mark, bad })
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn names_sort_like_their_base_index_and_parse_back() {
        assert_eq!(segment_name(42), "00000000000000000042.log");
        assert_eq!(parse_segment_name(&segment_name(u64::MAX)), Some(u64::MAX));
        for name in ["42.log", "00000000000000000042.idx", "+0000000000000000042.log", "99999999999999999999.log"] {
            assert_eq!(parse_segment_name(name), None, "{name}");
        }
    }

    #[test]
    fn header_and_footer_round_trip_and_notice_every_flipped_byte() {
        let id = LogId { topic: Uuid::from_u128(9), partition: 1 };
        let seed = Seed::version_2(*b"a secret", 3);
        let header =
            SegmentHeader { id, base_index: 3, base_offset: 4, prev_crc: 5, created_ms: 6, durable_mark: 7, seed };
        let bytes = header.encode();
        assert_eq!(SegmentHeader::decode(&bytes), Ok(header));
        let footer = Footer { contents: header.no_frames(), hash: [8; 32] };
        let tail = footer.encode(seed);
        let file_len = footer.contents.data_len + FOOTER as u64;
        assert_eq!(Footer::decode(&tail, file_len, seed), Some(footer));
        for other in [Seed::version_2(*b"a secret", 4), Seed::version_2(*b"A secret", 3), Seed::version_1(id, 3)] {
            assert_eq!(Footer::decode(&tail, file_len, other), None);
        }
        for at in 0..bytes.len() {
            let mut bytes = bytes;
            bytes[at] ^= 1;
            assert!(SegmentHeader::decode(&bytes).is_err(), "byte {at}");
            assert!(SegmentHeader::salvage_seeds(&bytes, id, 3).contains(&seed), "byte {at}");
        }
        assert_eq!(SegmentHeader::salvage_seeds(&[0; 96], id, 3), []);
        for at in 0..FOOTER {
            let mut tail = tail;
            tail[at] ^= 1;
            assert_eq!(Footer::decode(&tail, file_len, seed), None, "byte {at}");
        }
    }
}
