//! What a log stores: raft entries that carry records or a control payload. Imports nothing of the crate.

use bytes::Bytes;

/// What an entry carries. The numbers are the ones on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum EntryKind {
    /// Record batches: takes as many offsets as it has records, or had when it was appended.
    Data = 1,
    /// Nothing; commits a new leader's term.
    Blank = 2,
    /// A raft membership.
    Membership = 3,
    /// A decision about the log that its owner makes and carries out.
    Config = 4,
    /// Ends its segment: the next entry starts another one. So a segment ends at the same entry in every copy of a log.
    SegmentEnd = 5,
}

impl EntryKind {
    /// The kind with this number on disk, or `None` for a number that this release does not know.
    pub fn from_u8(value: u8) -> Option<Self> {
        match value {
            1 => Some(Self::Data),
            2 => Some(Self::Blank),
            3 => Some(Self::Membership),
            4 => Some(Self::Config),
            5 => Some(Self::SegmentEnd),
            _ => None,
        }
    }
}

/// One raft entry, as given to [`crate::Log::append`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Raft term of the leader that made the entry.
    pub term: u64,
    /// Raft id of that leader.
    pub leader: u64,
    /// Raft index. Entries of a log are contiguous.
    pub index: u64,
    /// What the payload is.
    pub kind: EntryKind,
    /// The entry's *offset count*: how many offsets it takes. At least 1 for [`EntryKind::Data`], 0 for every other kind. As many as
    /// records when they are appended; where records were taken out of a stored entry, which may leave an empty payload, the
    /// count stays.
    pub record_count: u32,
    /// Greatest record timestamp in the payload, in ms since the Unix epoch. Ignored for control entries.
    pub max_timestamp: i64,
    /// The bytes. Never inspected by the engine.
    pub payload: Bytes,
}

impl Entry {
    /// Offsets that this entry takes; none unless it carries data.
    pub fn offsets(&self) -> u64 {
        match self.kind {
            EntryKind::Data => u64::from(self.record_count),
            _ => 0,
        }
    }
}

/// An entry and its place in offset order. Cloning shares the payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredEntry {
    /// Offset of the entry's first record; for a control entry, the offset that the next record takes.
    pub base_offset: u64,
    /// The entry.
    pub entry: Entry,
}

impl StoredEntry {
    /// First offset after this entry.
    pub fn next_offset(&self) -> u64 {
        self.base_offset + self.entry.offsets()
    }
}
