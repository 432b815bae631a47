//! The newest entries of a log, in memory, and the index and offset that the next one takes.
//!
//! Invariant: the entries are contiguous and end at `next_index`; `bytes` is the sum of their [`cached_bytes`]. Methods that
//! drop entries return the bytes freed, for the store's gauge.
//!
//! Neighbours: `state.rs` owns the tail of its log and decides what may be dropped. Names no file, no lock and no segment.

use std::{collections::VecDeque, ops::Range};

use crate::{Entry, EntryKind, LastEntry, LogError, MAX_PAYLOAD, StoredEntry, frame::Expect};

/// Memory that one cached entry takes beside its payload, roughly.
const ENTRY_OVERHEAD: u64 = 128;

/// The newest entries of a log.
pub(crate) struct Tail {
    entries: VecDeque<StoredEntry>,
    bytes: u64,
    next_index: u64,
    next_offset: u64,
}

/// Bytes that an entry counts in the cache.
fn cached_bytes(stored: &StoredEntry) -> u64 {
    stored.entry.payload.len() as u64 + ENTRY_OVERHEAD
}

/// What identifies an entry as the newest of its log.
pub(crate) fn last_entry(entry: &Entry) -> LastEntry {
    LastEntry { index: entry.index, term: entry.term, leader: entry.leader }
}

impl Tail {
    /// A tail without entries; the next entry has the index and the offset of `expect`.
    pub(crate) fn empty_at(expect: Expect) -> Self {
        Self { entries: VecDeque::new(), bytes: 0, next_index: expect.index, next_offset: expect.offset }
    }

    pub(crate) fn next_index(&self) -> u64 {
        self.next_index
    }

    pub(crate) fn next_offset(&self) -> u64 {
        self.next_offset
    }

    /// Index of the first entry in memory.
    pub(crate) fn first_index(&self) -> u64 {
        self.next_index - self.entries.len() as u64
    }

    pub(crate) fn first(&self) -> Option<&StoredEntry> {
        self.entries.front()
    }

    pub(crate) fn last(&self) -> Option<&StoredEntry> {
        self.entries.back()
    }

    /// The entries with these indexes, which must be in memory.
    pub(crate) fn range(&self, indexes: Range<u64>) -> impl Iterator<Item = &StoredEntry> {
        let first = self.first_index();
        self.entries.range((indexes.start - first) as usize..(indexes.end - first) as usize)
    }

    /// The last entry in memory whose base offset is at or before `offset`. Of entries with the same base offset the last
    /// carries the records.
    pub(crate) fn floor_offset(&self, offset: u64) -> Option<&StoredEntry> {
        let after = self.entries.partition_point(|stored| stored.base_offset <= offset);
        self.entries.get(after.checked_sub(1)?)
    }

    /// Checks that entries follow the log and one another.
    pub(crate) fn check(&self, entries: &[Entry]) -> Result<(), LogError> {
        let mut expected = self.next_index;
        let mut offset = self.next_offset;
        for entry in entries {
            let index = entry.index;
            let invalid = |field, value, rule| Err(LogError::InvalidEntry { index, field, value, rule });
            if index != expected {
                return Err(LogError::NotContiguous { expected, found: index });
            }
            if entry.payload.len() > MAX_PAYLOAD {
                return invalid(
                    "payload length",
                    entry.payload.len() as u64,
                    "at most 268435456 bytes fit into one entry",
                );
            }
            match (entry.kind, entry.record_count) {
                (EntryKind::Data, 0) => return invalid("record_count", 0, "a data entry takes at least one offset"),
                (EntryKind::Data, _) | (_, 0) => {}
                (_, count) => return invalid("record_count", u64::from(count), "a control entry takes no offsets"),
            }
            let Some(next) = offset.checked_add(entry.offsets()).filter(|next| *next < u64::MAX) else {
                return invalid("base offset", offset, "offsets end below 2^64 - 1");
            };
            offset = next;
            let Some(next) = expected.checked_add(1).filter(|next| *next < u64::MAX) else {
                return invalid("index", index, "indexes end below 2^64 - 2");
            };
            expected = next;
        }
        Ok(())
    }

    /// Adds entries that [`Self::check`] accepted. Returns the bytes that they take.
    pub(crate) fn append(&mut self, entries: Vec<Entry>) -> u64 {
        let count = entries.len() as u64;
        self.entries.reserve(entries.len());
        let mut added = 0;
        for entry in entries {
            let stored = StoredEntry { base_offset: self.next_offset, entry };
            self.next_offset = stored.next_offset();
            added += cached_bytes(&stored);
            self.entries.push_back(stored);
        }
        self.next_index += count;
        self.bytes += added;
        added
    }

    /// Drops entries below `limit` from memory.
    pub(crate) fn evict_below(&mut self, limit: u64) -> u64 {
        let count = usize::try_from(limit.saturating_sub(self.first_index())).unwrap_or(usize::MAX);
        let count = count.min(self.entries.len());
        let freed = self.entries.drain(..count).map(|stored| cached_bytes(&stored)).sum();
        self.bytes -= freed;
        if self.entries.is_empty() {
            self.entries.shrink_to(0);
        }
        freed
    }

    /// Removes the entries from `index` on, which is not below the first in memory: the log ends there then.
    pub(crate) fn truncate(&mut self, index: u64) -> u64 {
        let at = (index.max(self.first_index()) - self.first_index()) as usize;
        let Some(offset) = self.entries.get(at).map(|first| first.base_offset) else { return 0 };
        self.end_at(index, offset)
    }

    /// Removes the entries from `index` on; the next one takes this index and this offset.
    pub(crate) fn end_at(&mut self, index: u64, offset: u64) -> u64 {
        let keep = ((index.max(self.first_index()) - self.first_index()) as usize).min(self.entries.len());
        let freed = self.entries.drain(keep..).map(|stored| cached_bytes(&stored)).sum();
        self.bytes -= freed;
        self.next_index = index;
        self.next_offset = offset;
        freed
    }

    /// Drops every entry from memory; the log's end stays.
    pub(crate) fn clear(&mut self) -> u64 {
        self.entries.clear();
        std::mem::take(&mut self.bytes)
    }
}
