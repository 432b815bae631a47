//! What the members of a group agree on about their log itself, as entries of it: where a segment ends, and where the log starts.
//!
//! The leader decides and proposes them; every replica carries them out when it has written or applied them, so that all replicas
//! have the same segments and the same start. They take no offsets. The bytes are in docs/disk-format.md.
//!
//! Neighbours: `store.rs` and `wire.rs` refuse an entry that this release does not know; `state_machine.rs` passes the others to the
//! group's machine. The partition decides when they are proposed.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use chronicle_log::EntryKind;

/// Version of the payload that this release writes, and the only one that it reads.
const VERSION: u8 = 1;
const SEGMENT_END: u8 = 1;
const LOG_START: u8 = 2;
/// Bytes of the payloads.
const SEGMENT_END_BYTES: usize = 16;
const LOG_START_BYTES: usize = 32;

/// Why a log start has moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum StartReason {
    /// The log was larger than `retention_bytes`.
    Size = 1,
    /// Its oldest records were older than `retention_ms`.
    Age = 2,
    /// The leader's log began there already: entries before were deleted before starts were agreed.
    Existing = 3,
}

/// A control entry. Times are in milliseconds since the Unix epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ControlEntry {
    /// The segment with this entry ends after it.
    SegmentEnd {
        /// When it was decided.
        time_ms: i64,
    },
    /// Records below `offset` do not exist any more.
    LogStart {
        /// Raft index of the first entry that is kept; not above that of the control entry.
        index: u64,
        /// First offset that can be read.
        offset: u64,
        /// When it was decided.
        time_ms: i64,
        /// Why.
        reason: StartReason,
    },
}

impl ControlEntry {
    /// The kind of the entry in the log.
    pub(super) fn kind(&self) -> EntryKind {
        match self {
            Self::SegmentEnd { .. } => EntryKind::SegmentEnd,
            Self::LogStart { .. } => EntryKind::Config,
        }
    }

    /// Encodes the payload of the entry.
    pub(super) fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(LOG_START_BYTES);
        let mut head = |what, detail, time_ms| {
            out.put_u8(VERSION);
            out.put_u8(what);
            out.put_u8(detail);
            out.put_bytes(0, 5);
            out.put_i64_le(time_ms);
        };
        match *self {
            Self::SegmentEnd { time_ms } => head(SEGMENT_END, 0, time_ms),
            Self::LogStart { index, offset, time_ms, reason } => {
                head(LOG_START, reason as u8, time_ms);
                out.put_u64_le(index);
                out.put_u64_le(offset);
            }
        }
        out.freeze()
    }

    /// Decodes the payload of an entry of this kind.
    ///
    /// # Errors
    /// A text for an entry that this release does not know: the replica must not go past it.
    pub(super) fn decode(kind: EntryKind, payload: &[u8]) -> Result<Self, String> {
        let mut bytes = payload;
        let newer = |what: &str, found: u8| {
            Err(format!("control entry: {what} {found} is not known to this release: a newer one wrote it"))
        };
        if bytes.len() < SEGMENT_END_BYTES {
            return Err(format!("control entry: {} bytes: must be at least {SEGMENT_END_BYTES}", bytes.len()));
        }
        let (version, what, detail) = (bytes.get_u8(), bytes.get_u8(), bytes.get_u8());
        if version != VERSION {
            return newer("version", version);
        }
        bytes.advance(5);
        let time_ms = bytes.get_i64_le();
        let expected = |wanted: usize| match payload.len() {
            found if found == wanted => Ok(()),
            found => Err(format!("control entry: {found} bytes: must be {wanted}")),
        };
        match (kind, what) {
            (EntryKind::SegmentEnd, SEGMENT_END) => {
                expected(SEGMENT_END_BYTES)?;
                Ok(Self::SegmentEnd { time_ms })
            }
            (EntryKind::Config, LOG_START) => {
                expected(LOG_START_BYTES)?;
                let reason = match detail {
                    1 => StartReason::Size,
                    2 => StartReason::Age,
                    3 => StartReason::Existing,
                    other => return newer("reason", other),
                };
                Ok(Self::LogStart { index: bytes.get_u64_le(), offset: bytes.get_u64_le(), time_ms, reason })
            }
            _ => newer("decision", what),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_entries_have_the_documented_bytes_and_unknown_ones_are_refused() {
        let end = ControlEntry::SegmentEnd { time_ms: -2 };
        assert_eq!(end.encode()[..], [&[1, 1, 0, 0, 0, 0, 0, 0, 0xfe][..], &[0xff; 7]].concat());
        let start = ControlEntry::LogStart { index: 3, offset: 256, time_ms: 1, reason: StartReason::Age };
        let mut bytes = vec![1, 2, 2, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0];
        bytes.extend([3, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(start.encode()[..], bytes);
        for entry in [end, start] {
            assert_eq!(ControlEntry::decode(entry.kind(), &entry.encode()), Ok(entry));
            for length in 0..entry.encode().len() {
                assert!(ControlEntry::decode(entry.kind(), &entry.encode()[..length]).is_err());
            }
        }
        assert!(ControlEntry::decode(EntryKind::Config, &end.encode()).is_err(), "not of this kind");
        assert!(ControlEntry::decode(EntryKind::SegmentEnd, &start.encode()).is_err(), "not of this kind");
        for (at, what) in [(0, "version 9"), (1, "decision 9"), (2, "reason 9")] {
            let mut newer = bytes.clone();
            newer[at] = 9;
            let error = ControlEntry::decode(EntryKind::Config, &newer).unwrap_err();
            assert!(error.contains(what) && error.contains("newer"), "{error}");
        }
    }
}
