//! The segments of one log, in memory: what each holds, and whether it is sealed.
//!
//! Invariants: segments are contiguous, oldest first. Only the last may still be written to; it is the *active* one. Segments
//! are sealed in order, so that the sealed ones come first.
//!
//! Neighbours: `state.rs` owns the list of its log, `writer.rs` produces what [`SegmentList::apply`] takes over,
//! `log/recover.rs` builds the list when a log is opened. Reads no file and takes no lock.

use std::{collections::VecDeque, sync::Arc};

use crate::{
    SegmentInfo,
    disk::DiskFile,
    index::SparseIndex,
    seed::Seed,
    segment::{Contents, FOOTER},
    writer::WrittenSegment,
};

/// One segment.
pub(crate) struct Segment {
    pub(crate) contents: Contents,
    pub(crate) seed: Seed,
    pub(crate) phase: Phase,
}

/// How far a segment has got.
pub(crate) enum Phase {
    /// Not sealed: the file stays open and the index is in memory.
    Open { file: Arc<dyn DiskFile>, index: SparseIndex, seal_queued: bool },
    /// Has a footer; file and index come from the store's bounded set of open files.
    Sealed { hash: [u8; 32] },
}

impl Segment {
    /// A segment that is not sealed and not queued to be.
    pub(crate) fn open(contents: Contents, seed: Seed, file: Arc<dyn DiskFile>, index: SparseIndex) -> Self {
        Self { contents, seed, phase: Phase::Open { file, index, seal_queued: false } }
    }

    pub(crate) fn is_sealed(&self) -> bool {
        matches!(self.phase, Phase::Sealed { .. })
    }

    pub(crate) fn file_len(&self) -> u64 {
        match self.phase {
            Phase::Open { .. } => self.contents.data_len,
            Phase::Sealed { .. } => self.contents.data_len + FOOTER as u64,
        }
    }

    /// What callers of the crate see of it.
    pub(crate) fn info(&self) -> SegmentInfo {
        let contents = &self.contents;
        let has_data = contents.max_timestamp >= contents.min_timestamp;
        SegmentInfo {
            base_index: contents.base_index,
            next_index: contents.next_index,
            base_offset: contents.base_offset,
            next_offset: contents.next_offset,
            bytes: self.file_len(),
            min_timestamp: has_data.then_some(contents.min_timestamp),
            max_timestamp: has_data.then_some(contents.max_timestamp),
            content_hash: match self.phase {
                Phase::Sealed { hash } => Some(hash),
                Phase::Open { .. } => None,
            },
        }
    }
}

/// The segments of one log, oldest first.
pub(crate) struct SegmentList {
    segments: VecDeque<Segment>,
    /// The last segment may still be written to.
    last_is_active: bool,
}

impl SegmentList {
    pub(crate) fn new(segments: Vec<Segment>, last_is_active: bool) -> Self {
        Self { segments: segments.into(), last_is_active }
    }

    pub(crate) fn len(&self) -> usize {
        self.segments.len()
    }

    pub(crate) fn first(&self) -> Option<&Segment> {
        self.segments.front()
    }

    pub(crate) fn last(&self) -> Option<&Segment> {
        self.segments.back()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Segment> + Clone {
        self.segments.iter()
    }

    /// Bytes of all segment files.
    pub(crate) fn file_bytes(&self) -> u64 {
        self.segments.iter().map(Segment::file_len).sum()
    }

    /// The segment that starts at `base_index`.
    pub(crate) fn starting_at(&self, base_index: u64) -> Option<&Segment> {
        self.position_of(base_index).map(|at| &self.segments[at])
    }

    fn position_of(&self, base_index: u64) -> Option<usize> {
        self.segments.binary_search_by_key(&base_index, |segment| segment.contents.base_index).ok()
    }

    /// Bytes of frames in the active segment; 0: there is none.
    pub(crate) fn active_bytes(&self) -> u64 {
        let active = self.segments.back().filter(|_| self.last_is_active);
        active.map_or(0, |active| active.contents.data_len - active.seed.first_frame())
    }

    /// The last segment for which `at_or_before` holds, or the first. `None` if there are no segments.
    pub(crate) fn floor(&self, at_or_before: impl Fn(&Contents) -> bool) -> Option<&Segment> {
        let after = self.segments.partition_point(|segment| at_or_before(&segment.contents));
        self.segments.get(after.saturating_sub(1))
    }

    /// A finished segment that is not sealed: its file and what it holds.
    pub(crate) fn unsealed(&self, base_index: u64) -> Option<(Arc<dyn DiskFile>, Contents)> {
        let at = self.position_of(base_index)?;
        let active = self.last_is_active && at + 1 == self.segments.len();
        match &self.segments[at].phase {
            Phase::Open { file, .. } if !active => Some((file.clone(), self.segments[at].contents)),
            _ => None,
        }
    }

    /// How many of the oldest segments are sealed and end at or below `index`. Never counts the newest segment.
    pub(crate) fn deletable_below(&self, index: u64) -> usize {
        let may_go = self.segments.len().saturating_sub(1);
        let goes = |segment: &&Segment| segment.contents.next_index <= index && segment.is_sealed();
        self.segments.iter().take(may_go).take_while(goes).count()
    }

    /// Takes over what a round wrote.
    pub(crate) fn apply(&mut self, written: Vec<WrittenSegment>) {
        for WrittenSegment { new_file, contents, seed, index, ended } in written {
            match (new_file, self.segments.back_mut()) {
                (None, Some(last)) => {
                    last.contents = contents;
                    if let Phase::Open { index: SparseIndex::Memory(entries), .. } = &mut last.phase {
                        entries.extend(index);
                    }
                }
                (Some(file), _) => {
                    self.segments.push_back(Segment::open(contents, seed, file, SparseIndex::Memory(index)));
                    self.last_is_active = true;
                }
                (None, None) => unreachable!("a round adds to a segment that exists"),
            }
            if ended {
                self.finish_active();
            }
        }
    }

    /// Ends the active segment: nothing is added to it any more.
    pub(crate) fn finish_active(&mut self) {
        self.last_is_active = false;
    }

    /// Base indexes of the segments that are finished and not queued for the sealer, oldest first. They count as queued then.
    pub(crate) fn queue_seals(&mut self) -> Vec<u64> {
        let finished = self.segments.len() - usize::from(self.last_is_active);
        let mut bases = Vec::new();
        for segment in self.segments.range_mut(..finished).rev() {
            match &mut segment.phase {
                Phase::Open { seal_queued, .. } if !*seal_queued => *seal_queued = true,
                _ => break,
            }
            bases.push(segment.contents.base_index);
        }
        bases.reverse();
        bases
    }

    /// Notes that the segment has its footer. Returns the end of the sealed part of the log, if this segment is in it.
    pub(crate) fn sealed(&mut self, base_index: u64, hash: [u8; 32]) -> Option<u64> {
        let at = self.position_of(base_index)?;
        self.segments[at].phase = Phase::Sealed { hash };
        let follows = at.checked_sub(1).is_none_or(|before| self.segments[before].is_sealed());
        follows.then(|| self.segments[at].contents.next_index)
    }

    /// Drops the newest segments but `keep`. `shortened` takes the place of the newest kept one and is active again.
    pub(crate) fn truncate(&mut self, keep: usize, shortened: Option<Segment>) {
        self.segments.truncate(keep);
        self.last_is_active = shortened.is_some();
        if let Some(shortened) = shortened {
            self.segments.pop_back();
            self.segments.push_back(shortened);
        }
    }

    /// Drops the `count` oldest segments.
    pub(crate) fn delete_oldest(&mut self, count: usize) {
        self.segments.drain(..count);
    }

    pub(crate) fn clear(&mut self) {
        self.segments.clear();
        self.last_is_active = false;
    }
}
