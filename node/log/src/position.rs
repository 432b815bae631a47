//! What a log reports: where it begins and ends, what an append took, what a deletion removed. Plain values.
//!
//! Neighbours: `state.rs` and `log/` fill them; callers of the crate read them. Names no file and no lock.

/// What [`crate::Log::append`] promises at once: where the entries will be, if they become durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Appended {
    /// Base offset of the first entry.
    pub first_base_offset: u64,
    /// Offset that the next record will take (exclusive end).
    pub next_offset: u64,
}

/// The newest entry of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LastEntry {
    /// Raft index.
    pub index: u64,
    /// Raft term.
    pub term: u64,
    /// Raft id of the leader that made it.
    pub leader: u64,
}

/// Where a log begins and ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogPosition {
    /// First index stored; the next index if the log is empty.
    pub first_index: u64,
    /// The newest entry, `None` if the log is empty.
    pub last: Option<LastEntry>,
    /// Index that the next append must start with.
    pub next_index: u64,
    /// First offset stored.
    pub start_offset: u64,
    /// Offset that the next record takes (exclusive end).
    pub next_offset: u64,
    /// Newest index on disk (inclusive), `None` if no stored entry is.
    pub durable_index: Option<u64>,
    /// Bytes of segment files.
    pub bytes: u64,
    /// Segment files.
    pub segments: usize,
}

/// One segment file of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentInfo {
    /// First index.
    pub base_index: u64,
    /// First index after the segment.
    pub next_index: u64,
    /// Offset of its first record.
    pub base_offset: u64,
    /// First offset after the segment.
    pub next_offset: u64,
    /// Bytes of the file, with header and footer.
    pub bytes: u64,
    /// Smallest timestamp of its data entries (each entry's greatest), `None` if it has none.
    pub min_timestamp: Option<i64>,
    /// Greatest timestamp, `None` if it has no data entries.
    pub max_timestamp: Option<i64>,
    /// Its [`crate::ContentHash`], equal on every replica that cut its segments at the same places; `None` until it is sealed.
    pub content_hash: Option<[u8; 32]>,
}

/// What [`crate::Log::delete_before`] removed, and where the log starts now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeletedSegments {
    /// Segments removed.
    pub segments: usize,
    /// Bytes of their files.
    pub bytes: u64,
    /// First index still stored.
    pub first_index: u64,
    /// First offset still stored.
    pub start_offset: u64,
}
