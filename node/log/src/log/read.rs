//! Reading: by raft index, by record offset, by time.
//!
//! Recent entries come from memory, others from segment files. A segment is read without any lock held, so that a
//! truncation may remove the bytes during the read. The generation shows that, and the read starts again.
//!
//! Neighbours: `verify.rs` reads with the same plans. Names no writer and no queue.

use std::sync::Arc;

use parking_lot::MutexGuard;

use super::Log;
use crate::{
    EntryKind, LogError, StoredEntry,
    disk::DiskFile,
    frame::{Expect, FRAME_HEADER, FrameHeader, frame_len},
    index::{IndexEntry, SparseIndex},
    reader::{FrameReader, Stop},
    seed::Seed,
    segment::Contents,
    segments::{Phase, Segment},
    state::LogState,
};

/// Most bytes fetched from a file at once.
const MAX_CHUNK: usize = 4 << 20;

/// A read raced with a truncation, or failed.
pub(super) enum Interrupted {
    Again,
    Failed(LogError),
}

impl From<LogError> for Interrupted {
    fn from(error: LogError) -> Self {
        Self::Failed(error)
    }
}

/// What to look up in a sparse index.
#[derive(Clone, Copy)]
pub(super) enum Lookup {
    Index(u64),
    Offset(u64),
    Time(i64),
}

/// Where to read in one segment.
pub(super) struct ReadPlan {
    file: Arc<dyn DiskFile>,
    contents: Contents,
    seed: Seed,
    /// File positions.
    start: u64,
    end: u64,
    /// First index that is not wanted.
    stop: u64,
    generation: u64,
}

enum Source {
    Open(Arc<dyn DiskFile>, Option<IndexEntry>, Option<u64>),
    Sealed,
}

fn cost(stored: &StoredEntry) -> usize {
    frame_len(stored.entry.payload.len()) as usize
}

fn look_up(index: &SparseIndex, lookup: Lookup) -> Option<IndexEntry> {
    match lookup {
        Lookup::Index(at) => index.floor_index(at),
        Lookup::Offset(at) => index.floor_offset(at),
        Lookup::Time(at) => index.floor_time(at),
    }
}

impl Log {
    /// Entries `from..to_exclusive` by raft index, contiguous from `from`: at least one if it exists, then as many as fit into
    /// `max_bytes` of frames. Above the last entry: empty.
    ///
    /// # Errors
    /// [`LogError::Compacted`] below the first entry, [`LogError::Damaged`] when stored bytes fail their checksum.
    pub fn read(&self, from: u64, to_exclusive: u64, max_bytes: usize) -> Result<Vec<StoredEntry>, LogError> {
        loop {
            match self.try_read(from, to_exclusive, max_bytes) {
                Ok(entries) => return Ok(entries),
                Err(Interrupted::Again) => {}
                Err(Interrupted::Failed(error)) => return Err(error),
            }
        }
    }

    /// Data entries from the one that contains `offset` on, up to `max_index` (inclusive), skipping control entries: at least
    /// one if it exists, then as many as fit into `max_bytes` of frames. At or after the end of `max_index`: empty.
    ///
    /// # Errors
    /// [`LogError::OffsetOutOfRange`] below the first stored offset, [`LogError::Damaged`].
    pub fn read_at_offset(&self, offset: u64, max_index: u64, max_bytes: usize) -> Result<Vec<StoredEntry>, LogError> {
        let end = max_index.saturating_add(1);
        loop {
            let Some(from) = retry(|| self.locate_offset(offset))? else { return Ok(Vec::new()) };
            match self.read_data(from, end, max_bytes) {
                // Deleted between the two steps: locating the offset again reports it.
                Err(LogError::Compacted { .. }) => {}
                other => return other,
            }
        }
    }

    fn read_data(&self, from: u64, end: u64, max_bytes: usize) -> Result<Vec<StoredEntry>, LogError> {
        let (mut at, mut budget) = (from, max_bytes);
        let mut found = Vec::new();
        loop {
            let entries = self.read(at, end, budget)?;
            let Some(last) = entries.last() else { return Ok(found) };
            at = last.entry.index + 1;
            for stored in entries {
                if stored.entry.kind != EntryKind::Data {
                    continue;
                }
                let cost = cost(&stored);
                if !found.is_empty() && cost > budget {
                    return Ok(found);
                }
                budget = budget.saturating_sub(cost);
                found.push(stored);
            }
            if budget == 0 {
                return Ok(found);
            }
        }
    }

    /// The first data entry up to `max_index` (inclusive) whose greatest timestamp is at or after `timestamp_ms`.
    ///
    /// # Errors
    /// [`LogError::Damaged`].
    pub fn entry_for_time(&self, timestamp_ms: i64, max_index: u64) -> Result<Option<StoredEntry>, LogError> {
        self.entry_for_time_from(0, timestamp_ms, max_index)
    }

    /// As [`Log::entry_for_time`], among the entries from `min_index` on.
    ///
    /// # Errors
    /// [`LogError::Damaged`].
    pub fn entry_for_time_from(
        &self,
        min_index: u64,
        timestamp_ms: i64,
        max_index: u64,
    ) -> Result<Option<StoredEntry>, LogError> {
        let end = max_index.saturating_add(1);
        'again: loop {
            let Some(at) = retry(|| self.locate_time(min_index, timestamp_ms))? else { return Ok(None) };
            let mut at = at.max(min_index);
            while at < end {
                let entries = match self.read(at, end, 256 << 10) {
                    Ok(entries) => entries,
                    Err(LogError::Compacted { .. }) => continue 'again,
                    Err(error) => return Err(error),
                };
                let Some(last) = entries.last() else { break };
                at = last.entry.index + 1;
                let matches = |stored: &StoredEntry| {
                    stored.entry.kind == EntryKind::Data && stored.entry.max_timestamp >= timestamp_ms
                };
                if let Some(found) = entries.into_iter().find(matches) {
                    return Ok(Some(found));
                }
            }
            return Ok(None);
        }
    }
}

fn retry<T>(mut attempt: impl FnMut() -> Result<T, Interrupted>) -> Result<T, LogError> {
    loop {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(Interrupted::Again) => {}
            Err(Interrupted::Failed(error)) => return Err(error),
        }
    }
}

impl Log {
    fn try_read(&self, from: u64, to: u64, max_bytes: usize) -> Result<Vec<StoredEntry>, Interrupted> {
        let mut found: Vec<StoredEntry> = Vec::new();
        let (mut at, mut budget) = (from, max_bytes);
        let mut generation = None;
        let metrics = self.log.metrics();
        loop {
            let state = self.log.lock();
            if *generation.get_or_insert(state.generation()) != state.generation() {
                return Err(Interrupted::Again);
            }
            if at < state.first_index() {
                if !found.is_empty() {
                    return Ok(found);
                }
                return Err(LogError::Compacted { first: state.first_index() }.into());
            }
            let end = to.min(state.next_index());
            if at >= end {
                return Ok(found);
            }
            let before = found.len();
            if at >= state.tail().first_index() {
                for stored in state.tail().range(at..end) {
                    let cost = cost(stored);
                    if !found.is_empty() && cost > budget {
                        break;
                    }
                    budget = budget.saturating_sub(cost);
                    found.push(stored.clone());
                }
                metrics.cache_hits.add((found.len() - before) as u64);
                return Ok(found);
            }
            let plan = self.plan(state, |contents| contents.base_index <= at, Lookup::Index(at), end)?;
            let go_on = self.collect(&plan, &mut at, &mut budget, &mut found)?;
            metrics.cache_misses.add((found.len() - before) as u64);
            if !go_on {
                return Ok(found);
            }
        }
    }

    /// Looks up where to start reading in the last segment for which `at_or_before` holds, and where it is certainly enough for
    /// its entries below `stop`. The caller has checked that the log stores what it looks for.
    pub(super) fn plan(
        &self,
        state: MutexGuard<'_, LogState>,
        at_or_before: impl Fn(&Contents) -> bool,
        lookup: Lookup,
        stop: u64,
    ) -> Result<ReadPlan, Interrupted> {
        let generation = state.generation();
        let Some(segment) = state.segments().floor(at_or_before) else {
            let next = state.next_index();
            return Err(LogError::NotStored { index: state.first_index(), next }.into());
        };
        let (contents, seed) = (segment.contents, segment.seed);
        let stop = stop.min(contents.next_index);
        let source = match &segment.phase {
            Phase::Open { file, index, .. } => {
                Source::Open(file.clone(), look_up(index, lookup), index.ceiling_position(stop))
            }
            Phase::Sealed { .. } => Source::Sealed,
        };
        drop(state);
        let (file, start, end) = match source {
            Source::Open(file, start, end) => (file, start, end),
            Source::Sealed => {
                let sealed = self.log.context.sealed_files.get(&self.log.dir, &contents, seed);
                let sealed = sealed.map_err(|error| self.explain(error, generation))?;
                (sealed.file.clone(), look_up(&sealed.index, lookup), sealed.index.ceiling_position(stop))
            }
        };
        let start = start.map_or(seed.first_frame(), |entry| entry.position);
        Ok(ReadPlan { file, contents, seed, start, end: end.unwrap_or(contents.data_len), stop, generation })
    }

    /// Reads frames into `found` from index `at` up to the plan's `stop`. Returns false when the budget is used up.
    pub(super) fn collect(
        &self,
        plan: &ReadPlan,
        at: &mut u64,
        budget: &mut usize,
        found: &mut Vec<StoredEntry>,
    ) -> Result<bool, Interrupted> {
        let slack = self.log.dir.index_interval() as usize + FRAME_HEADER;
        let chunk = budget.saturating_add(slack).min(MAX_CHUNK);
        let mut reader = self.frames(plan, chunk);
        let mut expect: Option<Expect> = None;
        while *at < plan.stop {
            let position = reader.position();
            let bad = |reason: &dyn ToString| self.damaged(plan, position, *at, reason.to_string());
            let header = match reader.peek() {
                Ok(Some(header)) => header,
                Ok(None) => return Err(bad(&"the segment ends before the entry")),
                Err(stop) => return Err(self.stopped(plan, position, *at, stop)),
            };
            let mut next =
                expect.unwrap_or(Expect { index: header.index, offset: header.base_offset, prev_crc: header.prev_crc });
            next.advance(&header).map_err(|error| bad(&error))?;
            expect = Some(next);
            if header.index < *at {
                reader.skip(&header);
                continue;
            }
            if header.index > *at {
                return Err(bad(&format!("expected entry {at}, found entry {}", header.index)));
            }
            let cost = header.frame_len() as usize;
            if !found.is_empty() && cost > *budget {
                return Ok(false);
            }
            let frame = reader.take(header).map_err(|stop| self.stopped(plan, position, *at, stop))?;
            *budget = budget.saturating_sub(cost);
            found.push(frame.header.into_entry(frame.payload));
            *at += 1;
        }
        Ok(true)
    }

    fn frames(&self, plan: &ReadPlan, chunk: usize) -> FrameReader {
        FrameReader::new(plan.file.clone(), plan.seed, plan.start, plan.end, chunk)
    }

    /// Index of the data entry that contains `offset`; `None` at or after the end.
    fn locate_offset(&self, offset: u64) -> Result<Option<u64>, Interrupted> {
        let state = self.log.lock();
        let (earliest, next) = (state.start_offset(), state.next_offset());
        if offset < earliest {
            return Err(LogError::OffsetOutOfRange { offset, earliest, next }.into());
        }
        if offset >= next {
            return Ok(None);
        }
        if let Some(stored) = state.tail().floor_offset(offset) {
            return Ok(Some(stored.entry.index));
        }
        let plan = self.plan(state, |contents| contents.base_offset <= offset, Lookup::Offset(offset), u64::MAX)?;
        self.find(&plan, |header| offset < header.next_offset())
    }

    /// Index from which to look for an entry at or after a time, in the segments that do not end below `min_index`; `None` if
    /// there is no such entry.
    fn locate_time(&self, min_index: u64, timestamp: i64) -> Result<Option<u64>, Interrupted> {
        let state = self.log.lock();
        let found = state
            .segments()
            .iter()
            .find(|Segment { contents, .. }| contents.max_timestamp >= timestamp && contents.next_index > min_index);
        match found.map(|segment| segment.contents.base_index) {
            Some(base_index) => {
                let this = |contents: &Contents| contents.base_index <= base_index;
                let plan = self.plan(state, this, Lookup::Time(timestamp), u64::MAX)?;
                self.find(&plan, |_| true)
            }
            None if state.written_next() < state.next_index() => Ok(Some(state.written_next())),
            None => Ok(None),
        }
    }

    /// Index of the first frame of a plan for which `wanted` holds, looking at headers only.
    fn find(&self, plan: &ReadPlan, wanted: impl Fn(&FrameHeader) -> bool) -> Result<Option<u64>, Interrupted> {
        let mut reader = self.frames(plan, 16 << 10);
        let mut expected = plan.contents.base_index;
        loop {
            let position = reader.position();
            match reader.peek() {
                Ok(Some(header)) if wanted(&header) => return Ok(Some(header.index)),
                Ok(Some(header)) => {
                    expected = header.index + 1;
                    reader.skip(&header);
                }
                Ok(None) => return Ok(None),
                Err(stop) => return Err(self.stopped(plan, position, expected, stop)),
            }
        }
    }

    fn stopped(&self, plan: &ReadPlan, position: u64, index: u64, stop: Stop) -> Interrupted {
        match stop {
            Stop::Bad(error) => self.damaged(plan, position, index, error.to_string()),
            Stop::Io(error) => {
                let error = self.log.dir.segment_error(plan.contents.base_index, "read the segment")(error);
                self.explain(error, plan.generation)
            }
        }
    }

    fn damaged(&self, plan: &ReadPlan, position: u64, index: u64, reason: String) -> Interrupted {
        let path = self.log.dir.segment_path(plan.contents.base_index);
        self.explain(LogError::damaged(path, position, Some(index), reason), plan.generation)
    }

    /// An error while reading: real, unless the log was changed, or the segment deleted, underneath.
    pub(super) fn explain(&self, error: LogError, generation: u64) -> Interrupted {
        if self.log.lock().generation() != generation {
            return Interrupted::Again;
        }
        if matches!(error, LogError::Damaged { .. }) {
            self.log.metrics().damage_found.add(1);
            tracing::error!(log = %self.id(), %error, "damage found");
        }
        Interrupted::Failed(error)
    }
}
