//! What the engine keeps of each log in the journal: how far it was durable, where it starts, whether it was closed cleanly, whose
//! segments it took over.
//!
//! The bytes of the three marks, and how to read them back. Writing one is a `put` of the journal, with the urgency that the
//! occasion needs.
//!
//! Invariant: a mark of an unknown length is ignored. For the clean mark the log is then scanned, which is always right.
//!
//! Neighbours: `state.rs` fills the clean mark, `log/recover.rs` judges by all three. Names no log and no file.

use bytes::Bytes;

use crate::{
    LogId,
    bytes_le::{get_i64, get_u32, get_u64, put_i64, put_u32, put_u64},
    journal::{Journal, Space, engine_key},
    segment::Contents,
};

/// The value of a durable mark: every entry below `next` is on disk.
pub(crate) fn durable_mark(next: u64) -> Bytes {
    Bytes::copy_from_slice(&next.to_le_bytes())
}

/// Index below which every entry is on disk, by the durable mark in the journal; 0 without a mark.
pub(crate) fn read_durable_mark(journal: &Journal, id: LogId) -> u64 {
    let value = journal.get((id, Space::Engine, engine_key::DURABLE_MARK));
    value.filter(|value| value.len() == 8).map_or(0, |value| get_u64(&value, 0))
}

/// The log whose segments this one took over, if it did.
pub(crate) fn read_origin(journal: &Journal, id: LogId) -> Option<LogId> {
    let value = journal.get((id, Space::Engine, engine_key::ORIGIN))?;
    value.as_ref().try_into().ok().map(LogId::from_bytes)
}

/// What the journal keeps of a log that was closed cleanly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CleanMark {
    pub(crate) first_index: u64,
    pub(crate) start_offset: u64,
    pub(crate) bytes: u64,
    pub(crate) segments: u64,
    /// Greatest timestamp of any data entry; `i64::MIN` if there is none.
    pub(crate) max_timestamp: i64,
    /// Greatest timestamp of the oldest segment that has data entries; `i64::MIN` if there is none.
    pub(crate) oldest_max_timestamp: i64,
    /// The newest segment when it is not sealed; otherwise an empty one that does not exist, at the log's end.
    pub(crate) newest: Contents,
}

impl CleanMark {
    const LEN: usize = 128;

    /// The mark of a log in the journal.
    pub(crate) fn read(journal: &Journal, id: LogId) -> Option<Self> {
        Self::decode(&journal.get((id, Space::Engine, engine_key::CLEAN))?)
    }

    pub(crate) fn encode(&self) -> Bytes {
        let mut bytes = vec![0; Self::LEN];
        put_u64(&mut bytes, 0, self.first_index);
        put_u64(&mut bytes, 8, self.start_offset);
        put_u64(&mut bytes, 16, self.bytes);
        put_u64(&mut bytes, 24, self.segments);
        put_i64(&mut bytes, 32, self.max_timestamp);
        let newest = &self.newest;
        put_u64(&mut bytes, 40, newest.base_index);
        put_u64(&mut bytes, 48, newest.base_offset);
        put_u64(&mut bytes, 56, newest.next_index);
        put_u64(&mut bytes, 64, newest.next_offset);
        put_u64(&mut bytes, 72, newest.data_len);
        put_i64(&mut bytes, 80, newest.min_timestamp);
        put_i64(&mut bytes, 88, newest.max_timestamp);
        put_u64(&mut bytes, 96, newest.last_term);
        put_u64(&mut bytes, 104, newest.last_leader);
        put_u32(&mut bytes, 112, newest.last_crc);
        put_i64(&mut bytes, 120, self.oldest_max_timestamp);
        bytes.into()
    }

    /// `None` for a mark of another length: the log is scanned then, which is always right.
    fn decode(bytes: &[u8]) -> Option<Self> {
        if bytes.len() != Self::LEN {
            return None;
        }
        let newest = Contents {
            base_index: get_u64(bytes, 40),
            base_offset: get_u64(bytes, 48),
            next_index: get_u64(bytes, 56),
            next_offset: get_u64(bytes, 64),
            data_len: get_u64(bytes, 72),
            min_timestamp: get_i64(bytes, 80),
            max_timestamp: get_i64(bytes, 88),
            last_term: get_u64(bytes, 96),
            last_leader: get_u64(bytes, 104),
            last_crc: get_u32(bytes, 112),
        };
        Some(Self {
            first_index: get_u64(bytes, 0),
            start_offset: get_u64(bytes, 8),
            bytes: get_u64(bytes, 16),
            segments: get_u64(bytes, 24),
            max_timestamp: get_i64(bytes, 32),
            oldest_max_timestamp: get_i64(bytes, 120),
            newest,
        })
    }
}

/// Where a log starts: written before old segments are deleted, so that a first segment that is missing shows, and
/// by a reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StartMark {
    pub(crate) first_index: u64,
    pub(crate) start_offset: u64,
    /// A reset to this place is under way: segments from before it may still be there.
    pub(crate) resetting: bool,
}

impl StartMark {
    /// The mark of a log in the journal; index 0 and offset 0 if there is none.
    pub(crate) fn read(journal: &Journal, id: LogId) -> Self {
        let value = journal.get((id, Space::Engine, engine_key::START));
        let origin = Self { first_index: 0, start_offset: 0, resetting: false };
        value.and_then(|bytes| Self::decode(&bytes)).unwrap_or(origin)
    }

    pub(crate) fn encode(self) -> Bytes {
        let mut bytes = vec![0; 24];
        put_u64(&mut bytes, 0, self.first_index);
        put_u64(&mut bytes, 8, self.start_offset);
        put_u64(&mut bytes, 16, u64::from(self.resetting));
        bytes.into()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        (bytes.len() == 24).then(|| Self {
            first_index: get_u64(bytes, 0),
            start_offset: get_u64(bytes, 8),
            resetting: get_u64(bytes, 16) != 0,
        })
    }
}
