//! The sparse index of one segment: from raft index, offset or timestamp to a file position to start looking at.
//!
//! One entry stands for every so many bytes of segment and serves all three lookups, so there is one index file per
//! segment: it is the offset index *and* the time index.
//!
//! Invariants:
//! - An index is derived: a missing, stale or damaged file is rebuilt from the segment, never trusted.
//! - An index file never changes once it has its name (it is written aside and renamed), so it may be mapped.
//! - Every entry's position is the start of a frame; the first entry, if any, is the segment's first frame.
//!
//! Neighbours: `segments.rs` and `sealed_files.rs` hold indexes, `log/read.rs` looks up in them. Names no segment file.

use std::{
    io::{self, IoSlice},
    path::Path,
    sync::Arc,
};

use crate::{
    bytes_le::{get_i64, get_u32, get_u64, put_i64, put_u32, put_u64},
    disk::{Disk, FileMap, OpenMode, write_all_at},
    frame::FrameHeader,
    seed::Seed,
};

const MAGIC: &[u8; 8] = b"CHRNLIDX";
const VERSION: u32 = 1;
const HEADER: usize = 40;
const ENTRY: usize = 32;

/// A place in a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct IndexEntry {
    /// Raft index of the frame at `position`.
    pub(crate) index: u64,
    /// Its base offset.
    pub(crate) offset: u64,
    /// Where it starts.
    pub(crate) position: u64,
    /// Greatest timestamp of the segment's data entries before it; `i64::MIN` when there is none.
    pub(crate) max_timestamp_before: i64,
}

/// Decides which frames get an entry; fed with every frame in order.
#[derive(Debug, Clone, Copy)]
pub(crate) struct IndexBuilder {
    interval: u64,
    last: Option<u64>,
    max_timestamp: i64,
}

impl IndexBuilder {
    pub(crate) fn new(interval: u64) -> Self {
        Self { interval, last: None, max_timestamp: i64::MIN }
    }

    /// Continues where another builder stopped.
    pub(crate) fn resume(interval: u64, last: Option<u64>, max_timestamp: i64) -> Self {
        Self { interval, last, max_timestamp }
    }

    /// Notes a frame; returns its entry if it gets one. `timestamp` is that of a data entry.
    pub(crate) fn note(
        &mut self,
        index: u64,
        offset: u64,
        position: u64,
        timestamp: Option<i64>,
    ) -> Option<IndexEntry> {
        let due = self.last.is_none_or(|last| position - last >= self.interval);
        let entry = due.then_some(IndexEntry { index, offset, position, max_timestamp_before: self.max_timestamp });
        if due {
            self.last = Some(position);
        }
        self.max_timestamp = self.max_timestamp.max(timestamp.unwrap_or(i64::MIN));
        entry
    }

    /// [`Self::note`] for a frame as read.
    pub(crate) fn note_frame(&mut self, header: &FrameHeader, position: u64) -> Option<IndexEntry> {
        let timestamp = (header.kind == crate::EntryKind::Data).then_some(header.max_timestamp);
        self.note(header.index, header.base_offset, position, timestamp)
    }
}

/// An index, in memory or mapped.
#[derive(Clone)]
pub(crate) enum SparseIndex {
    Memory(Vec<IndexEntry>),
    Mapped(Arc<dyn FileMap>),
}

impl SparseIndex {
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Memory(entries) => entries.len(),
            Self::Mapped(map) => (map.bytes().len() - HEADER) / ENTRY,
        }
    }

    pub(crate) fn get(&self, at: usize) -> IndexEntry {
        match self {
            Self::Memory(entries) => entries[at],
            Self::Mapped(map) => decode_entry(&map.bytes()[HEADER + at * ENTRY..]),
        }
    }

    /// Number of leading entries for which `before` holds (it must hold for a prefix).
    fn partition_point(&self, before: impl Fn(&IndexEntry) -> bool) -> usize {
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = low.midpoint(high);
            if before(&self.get(middle)) { low = middle + 1 } else { high = middle }
        }
        low
    }

    fn last_before(&self, before: impl Fn(&IndexEntry) -> bool) -> Option<IndexEntry> {
        self.partition_point(before).checked_sub(1).map(|at| self.get(at))
    }

    /// The last entry at or before a raft index.
    pub(crate) fn floor_index(&self, index: u64) -> Option<IndexEntry> {
        self.last_before(|entry| entry.index <= index)
    }

    /// Position of the first entry at or after a raft index: an upper bound for a read that stops there.
    pub(crate) fn ceiling_position(&self, index: u64) -> Option<u64> {
        let at = self.partition_point(|entry| entry.index < index);
        (at < self.len()).then(|| self.get(at).position)
    }

    /// The last entry whose base offset is at or before `offset`.
    pub(crate) fn floor_offset(&self, offset: u64) -> Option<IndexEntry> {
        self.last_before(|entry| entry.offset <= offset)
    }

    /// The last entry before which every timestamp is below `timestamp`.
    pub(crate) fn floor_time(&self, timestamp: i64) -> Option<IndexEntry> {
        self.last_before(|entry| entry.max_timestamp_before < timestamp)
    }
}

fn decode_entry(bytes: &[u8]) -> IndexEntry {
    IndexEntry {
        index: get_u64(bytes, 0),
        offset: get_u64(bytes, 8),
        position: get_u64(bytes, 16),
        max_timestamp_before: get_i64(bytes, 24),
    }
}

/// What an index file belongs to: a segment's bytes up to `data_len`, whose last frame has `last_crc`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct IndexOwner {
    pub(crate) seed: Seed,
    pub(crate) data_len: u64,
    pub(crate) last_crc: u32,
}

/// Writes an index file, exactly sized, under its name. Not synced: a torn file is noticed and rebuilt.
pub(crate) fn write_index(disk: &dyn Disk, path: &Path, owner: IndexOwner, index: &SparseIndex) -> io::Result<()> {
    let count = index.len();
    let mut bytes = vec![0; HEADER + count * ENTRY];
    bytes[..8].copy_from_slice(MAGIC);
    put_u32(&mut bytes, 8, VERSION);
    put_u32(&mut bytes, 12, owner.last_crc);
    put_u64(&mut bytes, 16, owner.data_len);
    put_u64(&mut bytes, 24, count as u64);
    for at in 0..count {
        let (entry, block) = (index.get(at), &mut bytes[HEADER + at * ENTRY..]);
        put_u64(block, 0, entry.index);
        put_u64(block, 8, entry.offset);
        put_u64(block, 16, entry.position);
        put_i64(block, 24, entry.max_timestamp_before);
    }
    let crc = file_crc(&bytes, owner.seed);
    put_u32(&mut bytes, 36, crc);
    let aside = path.with_extension("idx.tmp");
    let file = disk.open(&aside, OpenMode::Truncate)?;
    write_all_at(&*file, 0, &mut [IoSlice::new(&bytes)])?;
    disk.rename(&aside, path)
}

/// CRC of everything but the CRC field itself.
fn file_crc(bytes: &[u8], seed: Seed) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c_append(seed.crc(), &bytes[..36]), &bytes[HEADER..])
}

/// Why an index file cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IndexError {
    #[error("cannot read the index: {0}")]
    Io(#[from] io::Error),
    #[error("the index is damaged: {0}")]
    Damaged(&'static str),
    #[error("the index belongs to another state of the segment")]
    Stale,
}

/// Maps an index file and checks all of it.
pub(crate) fn map_index(disk: &dyn Disk, path: &Path, owner: IndexOwner) -> Result<SparseIndex, IndexError> {
    let file = disk.open(path, OpenMode::Read)?;
    if file.len()? < HEADER as u64 {
        return Err(IndexError::Damaged("it is shorter than its header"));
    }
    let map = file.map()?;
    let bytes = map.bytes();
    if bytes.len() < HEADER || &bytes[..8] != MAGIC {
        return Err(IndexError::Damaged("it does not start with its magic number"));
    }
    if get_u32(bytes, 8) != VERSION {
        return Err(IndexError::Damaged("its version is unknown"));
    }
    let count = get_u64(bytes, 24);
    if count.checked_mul(ENTRY as u64).and_then(|len| len.checked_add(HEADER as u64)) != Some(bytes.len() as u64) {
        return Err(IndexError::Damaged("its length does not match its count"));
    }
    if get_u32(bytes, 36) != file_crc(bytes, owner.seed) {
        return Err(IndexError::Damaged("its checksum does not match"));
    }
    if get_u64(bytes, 16) != owner.data_len || get_u32(bytes, 12) != owner.last_crc {
        return Err(IndexError::Stale);
    }
    Ok(SparseIndex::Mapped(Arc::from(map)))
}
