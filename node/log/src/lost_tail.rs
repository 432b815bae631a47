//! What recovery cuts off the end of a log, kept in the journal until the owner of the log has settled it.
//!
//! Bytes behind the last valid frame, which no durable mark covers, are normally a torn write that nobody was told of. They may as
//! well be acknowledged entries whose bytes were damaged: from inside one log the two look alike. Recovery therefore notes
//! what it cuts *before* it cuts, so that whoever knows of other copies (raft) can find out what was in it.
//!
//! Neighbours: `log/recover.rs` measures and notes; the [`crate::Log`] hands it out. Names no open log.

use std::{io, sync::Arc};

use bytes::Bytes;

use crate::{
    LogId,
    bytes_le::{get_u64, put_u64},
    disk::DiskFile,
    frame::{FRAME_HEADER, FrameHeader},
    journal::{Journal, Space, engine_key},
    reader::{FrameReader, Stop},
    seed::Seed,
    segment::{SCAN_CHUNK, is_torn_footer},
};

/// What was cut off the end of a log when it was opened: entries that may have been acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LostTail {
    /// Index of the first entry that may have been there.
    pub from: u64,
    /// Index of the last entry that may have been there (inclusive). Exact when `last` is known, otherwise an upper bound.
    pub to: u64,
    /// Term and leader of the entry at `to`, if its header could be read.
    pub last: Option<(u64, u64)>,
    /// Bytes that were cut, the most by one opening.
    pub bytes: u64,
}

/// A part of a segment file that is about to be cut.
pub(crate) struct CutPart {
    pub(crate) file: Arc<dyn DiskFile>,
    pub(crate) seed: Seed,
    /// Where it starts and ends in the file.
    pub(crate) start: u64,
    pub(crate) end: u64,
    /// Index of its first entry, if that is known from the segment's header.
    pub(crate) base_index: Option<u64>,
}

impl LostTail {
    const LEN: usize = 48;

    /// What the journal has for a log.
    pub(crate) fn read(journal: &Journal, id: LogId) -> Option<Self> {
        Self::decode(&journal.get((id, Space::Engine, engine_key::LOST_TAIL))?)
    }

    /// Measures what is about to be cut behind entry `from - 1`, oldest part first. `None`: nothing that may have been an entry.
    ///
    /// The headers of frames have a checksum of their own, so that mostly the payload alone is bad and the entries are known. A
    /// header counts only if as many entries as it skips fit into the bytes between: payloads may contain frames.
    pub(crate) fn measure(from: u64, parts: Vec<CutPart>) -> io::Result<Option<Self>> {
        let mut lost = Self { from, to: from, last: None, bytes: 0 };
        let mut next = from;
        // Bytes since the last header that was read.
        let mut unknown = 0;
        for part in parts {
            if part.end <= part.start || is_torn_footer(&*part.file, part.start, part.end)? {
                continue;
            }
            lost.bytes += part.end - part.start;
            next = next.max(part.base_index.unwrap_or(0));
            // A frame may reach beyond the end of its file: its entry is known all the same.
            let mut reader = FrameReader::new(part.file, part.seed, part.start, u64::MAX, SCAN_CHUNK);
            while reader.position() < part.end {
                match reader.peek() {
                    Ok(Some(header)) if fits(&header, next, unknown) => {
                        (next, unknown) = (header.index.saturating_add(1), 0);
                        (lost.to, lost.last) = (header.index, Some((header.term, header.leader)));
                        reader.skip(&header);
                    }
                    Ok(_) | Err(Stop::Bad(_)) => {
                        let step = (part.end - reader.position()).min(8);
                        unknown += step;
                        reader.step();
                    }
                    Err(Stop::Io(error)) => return Err(error),
                }
            }
        }
        if unknown > 0 {
            // Even what does not hold a whole header may have been the start of an entry.
            lost.to = next.saturating_add(unknown.div_ceil(FRAME_HEADER as u64) - 1);
            lost.last = None;
        }
        Ok((lost.bytes > 0).then_some(lost))
    }

    /// Covers what either of two cuts took, of a log that was cut again before the first was settled.
    pub(crate) fn merge(self, other: Self) -> Self {
        Self {
            from: self.from.min(other.from),
            to: self.to.max(other.to),
            last: self.last.zip(other.last).map(|(one, two)| one.max(two)),
            bytes: self.bytes.max(other.bytes),
        }
    }

    pub(crate) fn encode(&self) -> Bytes {
        let mut bytes = vec![0; Self::LEN];
        put_u64(&mut bytes, 0, self.from);
        put_u64(&mut bytes, 8, self.to);
        let (term, leader) = self.last.unwrap_or_default();
        put_u64(&mut bytes, 16, u64::from(self.last.is_some()));
        put_u64(&mut bytes, 24, term);
        put_u64(&mut bytes, 32, leader);
        put_u64(&mut bytes, 40, self.bytes);
        bytes.into()
    }

    /// Of a value of another length, which a later release wrote, nothing is known but that there is doubt.
    fn decode(bytes: &[u8]) -> Option<Self> {
        if bytes.len() != Self::LEN {
            return Some(Self { from: 0, to: u64::MAX, last: None, bytes: 0 });
        }
        Some(Self {
            from: get_u64(bytes, 0),
            to: get_u64(bytes, 8),
            last: (get_u64(bytes, 16) != 0).then(|| (get_u64(bytes, 24), get_u64(bytes, 32))),
            bytes: get_u64(bytes, 40),
        })
    }
}

/// Whether a frame with this header may be the next one, `unknown` bytes after entry `next - 1`.
fn fits(header: &FrameHeader, next: u64, unknown: u64) -> bool {
    header.index.checked_sub(next).is_some_and(|skipped| skipped <= unknown / FRAME_HEADER as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_of_one_log_add_up_to_what_covers_both() {
        let known = LostTail { from: 10, to: 12, last: Some((3, 1)), bytes: 700 };
        let later = LostTail { from: 11, to: 11, last: Some((4, 2)), bytes: 90 };
        let unknown = LostTail { from: 9, to: 20, last: None, bytes: 80 };
        assert_eq!(known.merge(later), LostTail { from: 10, to: 12, last: Some((4, 2)), bytes: 700 });
        assert_eq!(known.merge(unknown), LostTail { from: 9, to: 20, last: None, bytes: 700 });
        for tail in [known, unknown] {
            assert_eq!(LostTail::decode(&tail.encode()), Some(tail));
        }
    }
}
