//! Changes to what is stored: truncation, reset, deletion of old segments, roll, close.
//!
//! A change takes the writer first, so that no round touches the log's files meanwhile. Its order on disk is such that a
//! crash in the middle leaves a log that opens: the durable mark in the journal is lowered before anything goes, files go
//! from the end (truncation) or from the start (retention), each removal durable before the next, and a reset leaves an
//! intent in the journal that recovery completes.

use std::sync::Arc;

use parking_lot::MutexGuard;

use super::{
    CleanMark, DeletedSegments, LastEntry, Log, LogInner, Pending, Phase, Segment, State, Writer, recover::StartMark,
};
use crate::{
    LogError,
    disk::{DiskFile, OpenMode},
    frame::{self, Expect},
    index::{IndexBuilder, IndexOwner, SparseIndex, write_index},
    journal::{Space, engine_key},
    log::write::Active,
    reader::{FrameReader, Stop},
    segment::SegmentHeader,
    segment::{Contents, SCAN_CHUNK, SEGMENT_HEADER, index_path, segment_name, walk},
};

impl Log {
    /// Removes every entry above `index`; offsets go back too. Durable when it returns. To remove everything, use
    /// [`Log::reset`]. Appends of removed entries that were not answered yet get [`LogError::Truncated`].
    ///
    /// # Errors
    /// [`LogError::Compacted`] when `index + 1` is below the first entry; any failure stops the log.
    pub fn truncate_after(&self, index: u64) -> Result<(), LogError> {
        let inner = &self.inner;
        let removed = {
            let mut state = inner.state.lock();
            state.check_usable()?;
            if index.saturating_add(1) < state.first_index() {
                return Err(LogError::Compacted { first: state.first_index() });
            }
            if index.saturating_add(1) >= state.next_index {
                return Ok(());
            }
            inner.take_removed(&mut state, index + 1)
        };
        let changed = inner.truncate(index + 1);
        inner.answer(removed, &Err(LogError::Truncated));
        changed
    }

    /// Removes everything and starts an empty log whose next entry has index `next_index` and offset `next_offset`, as after
    /// the installation of a snapshot. Durable when it returns. Appends not answered yet get [`LogError::Truncated`].
    ///
    /// # Errors
    /// Any failure stops the log; the reset is completed when it is opened again.
    pub fn reset(&self, next_index: u64, next_offset: u64) -> Result<(), LogError> {
        let inner = &self.inner;
        let removed = {
            let mut state = inner.state.lock();
            state.check_usable()?;
            let first = state.first_index();
            inner.take_removed(&mut state, first)
        };
        let changed = inner.reset(next_index, next_offset);
        inner.answer(removed, &Err(LogError::Truncated));
        changed
    }

    /// Deletes whole sealed segments, oldest first, whose last index is below `index`. The newest segment always stays.
    ///
    /// # Errors
    /// Any failure stops the log.
    pub fn delete_before(&self, index: u64) -> Result<DeletedSegments, LogError> {
        self.inner.delete_before(index)
    }

    /// The first index to keep when segments are to go by size or by age; pass it to [`Log::delete_before`]. Segments go, oldest
    /// first, while what remains still has `max_bytes`, or while they hold nothing at or after `min_timestamp_ms`.
    /// Only sealed segments that end at or below `max_index` go, never the newest. `None`: nothing is to go.
    pub fn retention_index(
        &self,
        max_bytes: Option<u64>,
        min_timestamp_ms: Option<i64>,
        max_index: u64,
    ) -> Option<u64> {
        let state = self.inner.state.lock();
        let mut remaining = state.bytes();
        let mut keep = None;
        for segment in state.segments.iter().take(state.segments.len().saturating_sub(1)) {
            let too_large = max_bytes.is_some_and(|max| remaining - segment.file_len() >= max);
            let too_old = min_timestamp_ms.is_some_and(|min| segment.contents.max_timestamp < min);
            let sealed = matches!(segment.phase, Phase::Sealed { .. });
            if !sealed || segment.contents.next_index > max_index || !(too_large || too_old) {
                break;
            }
            remaining -= segment.file_len();
            keep = Some(segment.contents.next_index);
        }
        keep
    }

    /// Ends the newest segment; the next entry starts another. Does nothing if it has no entries.
    ///
    /// # Errors
    /// The failure that stopped the log.
    pub fn roll(&self) -> Result<(), LogError> {
        let inner = &self.inner;
        let mut writer = inner.begin_change()?;
        let mut state = inner.state.lock();
        if writer.active.as_ref().is_some_and(|active| !active.contents.is_empty()) {
            writer.active = None;
            state.last_is_active = false;
            inner.request_seals(&mut state);
        }
        inner.end_change(state, writer);
        Ok(())
    }

    /// Flushes, waits for seals, and notes in the journal that the log was closed, so that opening it again needs no scan.
    /// Appends afterwards get [`LogError::Closed`].
    ///
    /// # Errors
    /// The failure that stopped the log; it is closed all the same.
    pub fn close(&self) -> Result<(), LogError> {
        let inner = &self.inner;
        let closed = inner.start_close();
        let durable = closed.and_then(|mark| match mark {
            Some(mark) => inner.shared.journal_and_wait(inner.id, engine_key::CLEAN, Some(mark.encode())),
            None => Ok(()),
        });
        inner.finish_close();
        durable
    }
}

impl LogInner {
    /// Takes out entries from `next` on that no round has touched, and the appends that lose entries.
    fn take_removed(&self, state: &mut State, next: u64) -> Vec<Pending> {
        // While a round holds the writer its entries are on their way to the file: they are flushed first, then cut.
        let keep = if state.writer.is_some() { state.written_next.max(next) } else { state.next_index };
        let keep_count = (keep.max(state.tail_first()) - state.tail_first()) as usize;
        if keep_count < state.tail.len() {
            if let Some(first) = state.tail.get(keep_count) {
                state.next_offset = first.base_offset;
            }
            let gone: u64 = state.tail.drain(keep_count..).map(|stored| super::cached_bytes(&stored)).sum();
            state.tail_bytes -= gone;
            self.shared.metrics.cache_bytes.sub(gone);
            state.next_index = keep;
        }
        let answered_as_removed = state.pending.partition_point(|pending| pending.next_index <= next);
        state.pending.split_off(answered_as_removed).into()
    }

    fn truncate(self: &Arc<Self>, next: u64) -> Result<(), LogError> {
        let mut writer = self.begin_change()?;
        let result = {
            let _seal = self.seal_lock.lock();
            self.cut(&mut writer, next)
        };
        self.finish_change(writer, result)
    }

    fn finish_change(self: &Arc<Self>, writer: Box<Writer>, result: Result<(), LogError>) -> Result<(), LogError> {
        if let Err(error) = &result {
            self.fail(error.clone());
        }
        self.end_change(self.state.lock(), writer);
        result
    }

    fn cut(self: &Arc<Self>, writer: &mut Writer, next: u64) -> Result<(), LogError> {
        let (segments, marked) = {
            let state = self.state.lock();
            let segments: Vec<Contents> = state.segments.iter().map(|segment| segment.contents).collect();
            (segments, state.marked)
        };
        if segments.last().is_none_or(|last| last.next_index <= next) {
            // What was removed had never been written: only memory changes.
            let mut state = self.state.lock();
            state.generation += 1;
            return self.restore_last(&mut state);
        }
        if marked > next || writer.clean_mark {
            self.take_marks_back(writer, next)?;
        }
        writer.active = None;
        let keep = segments.partition_point(|segment| segment.base_index < next).max(1);
        for gone in segments[keep..].iter().rev() {
            self.remove_segment(gone.base_index)?;
        }
        let last = segments[keep - 1];
        let kept = if last.next_index > next { Some(self.shorten(&last, next)?) } else { None };

        let mut state = self.state.lock();
        state.generation += 1;
        self.shared.files.forget(self.id);
        state.segments.truncate(keep);
        if let Some((active, index)) = kept {
            state.segments.pop_back();
            let (file, contents) = (active.file.clone(), active.contents);
            let phase = Phase::Open { file, index: SparseIndex::Memory(index), seal_queued: false };
            state.segments.push_back(Segment { contents, phase });
            state.last_is_active = true;
            writer.active = Some(active);
        } else {
            state.last_is_active = false;
            self.request_seals(&mut state);
        }
        if let Some(last) = state.segments.back() {
            writer.expect = last.contents.expect();
        }
        let Expect { index, offset, .. } = writer.expect;
        let cached = ((next.max(state.tail_first()) - state.tail_first()) as usize).min(state.tail.len());
        let gone: u64 = state.tail.drain(cached..).map(|stored| super::cached_bytes(&stored)).sum();
        state.tail_bytes -= gone;
        self.shared.metrics.cache_bytes.sub(gone);
        state.next_index = index;
        state.next_offset = offset;
        state.written_next = index;
        state.durable_next = state.durable_next.min(index);
        self.restore_last(&mut state)
    }

    /// Sets what the newest entry is, after entries were removed.
    fn restore_last(&self, state: &mut State) -> Result<(), LogError> {
        state.last = match (state.tail.back(), state.segments.back()) {
            (Some(stored), _) => {
                let entry = &stored.entry;
                Some(LastEntry { index: entry.index, term: entry.term, leader: entry.leader })
            }
            (None, Some(segment)) if !segment.contents.is_empty() => {
                let contents = &segment.contents;
                let index = contents.next_index - 1;
                Some(LastEntry { index, term: contents.last_term, leader: contents.last_leader })
            }
            _ => None,
        };
        Ok(())
    }

    /// Lowers what the journal says is durable, before anything durable is removed.
    fn take_marks_back(&self, writer: &mut Writer, next: u64) -> Result<(), LogError> {
        let id = self.id;
        if writer.clean_mark {
            self.shared.journal_and_wait(id, engine_key::CLEAN, None)?;
            writer.clean_mark = false;
        }
        let value = bytes::Bytes::copy_from_slice(&next.to_le_bytes());
        self.shared.journal_and_wait(id, engine_key::DURABLE_MARK, Some(value))?;
        self.state.lock().marked = next;
        Ok(())
    }

    /// Removes a segment and its index, durably.
    pub(crate) fn remove_segment(&self, base_index: u64) -> Result<(), LogError> {
        let disk = &self.shared.disk;
        let index = index_path(&self.dir, base_index);
        match disk.remove_file(&index) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(LogError::io(&index, "remove the index", error));
            }
            _ => {}
        }
        let path = self.dir.join(segment_name(base_index));
        disk.remove_file(&path).map_err(|error| LogError::io(&path, "remove the segment", error))?;
        disk.sync_dir(&self.dir).map_err(|error| LogError::io(&self.dir, "flush the directory", error))
    }

    /// Cuts a segment so that it ends before `next`, durably, and opens it for writing.
    fn shorten(&self, contents: &Contents, next: u64) -> Result<(Active, Vec<crate::index::IndexEntry>), LogError> {
        let disk = &self.shared.disk;
        let path = self.dir.join(segment_name(contents.base_index));
        let io = |action| {
            let path = path.clone();
            move |error| LogError::io(path, action, error)
        };
        let file = disk.open(&path, OpenMode::Write).map_err(io("open the segment"))?;
        let header = self.read_header(&*file, contents.base_index)?;
        let seed = frame::seed(self.id, contents.base_index);
        let end = self.position_of(&file, seed, contents, next)?;
        let interval = self.shared.config.index_interval_bytes;
        let walked = walk(&file, &header, seed, end, interval, |_, _| {}).map_err(io("read the segment"))?;
        if let Some(bad) = walked.bad {
            self.shared.metrics.damage_found.add(1);
            let at = &walked.contents;
            return Err(LogError::damaged(&path, at.data_len, Some(at.next_index), bad));
        }
        let index = index_path(&self.dir, contents.base_index);
        match disk.remove_file(&index) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(LogError::io(&index, "remove the index", error));
            }
            _ => {}
        }
        file.set_len(end).map_err(io("cut the segment"))?;
        file.sync_data().map_err(io("flush the segment"))?;
        let last = walked.index.last().map(|entry| entry.position);
        let builder = IndexBuilder::resume(interval, last, walked.contents.max_timestamp);
        Ok((Active { file, path, contents: walked.contents, builder }, walked.index))
    }

    /// Where the frame of entry `next` starts.
    fn position_of(
        &self,
        file: &Arc<dyn DiskFile>,
        seed: u32,
        contents: &Contents,
        next: u64,
    ) -> Result<u64, LogError> {
        let path = self.dir.join(segment_name(contents.base_index));
        let mut reader = FrameReader::new(file.clone(), seed, SEGMENT_HEADER as u64, contents.data_len, SCAN_CHUNK);
        let mut at = contents.base_index;
        loop {
            let position = reader.position();
            match reader.peek() {
                Ok(Some(header)) if header.index >= next => return Ok(position),
                Ok(Some(header)) => {
                    at = header.index.saturating_add(1);
                    reader.skip(&header);
                }
                Ok(None) => return Ok(position),
                Err(Stop::Bad(error)) => return Err(LogError::damaged(&path, position, Some(at), error)),
                Err(Stop::Io(error)) => return Err(LogError::io(&path, "read the segment", error)),
            }
        }
    }

    pub(crate) fn read_header(&self, file: &dyn DiskFile, base_index: u64) -> Result<SegmentHeader, LogError> {
        let path = self.dir.join(segment_name(base_index));
        let bytes =
            file.read_at(0, SEGMENT_HEADER).map_err(|error| LogError::io(&path, "read the segment's header", error))?;
        SegmentHeader::decode(&bytes).map_err(|error| LogError::damaged(&path, 0, Some(base_index), error))
    }

    fn reset(self: &Arc<Self>, next_index: u64, next_offset: u64) -> Result<(), LogError> {
        let mut writer = self.begin_change()?;
        let result = {
            let _seal = self.seal_lock.lock();
            self.empty(&mut writer, next_index, next_offset)
        };
        self.finish_change(writer, result)
    }

    fn empty(self: &Arc<Self>, writer: &mut Writer, next_index: u64, next_offset: u64) -> Result<(), LogError> {
        let bases: Vec<u64> = self.state.lock().segments.iter().map(|segment| segment.contents.base_index).collect();
        self.make_dir_durable()?;
        self.empty_on_disk(bases, next_index, next_offset)?;
        writer.active = None;
        writer.clean_mark = false;
        writer.expect = Expect { index: next_index, offset: next_offset, prev_crc: 0 };
        writer.unsynced.clear();
        let mut state = self.state.lock();
        state.generation += 1;
        self.shared.files.forget(self.id);
        state.segments.clear();
        state.last_is_active = false;
        self.release(&mut state);
        state.next_index = next_index;
        state.next_offset = next_offset;
        state.written_next = next_index;
        state.durable_next = next_index;
        state.marked = next_index;
        state.last = None;
        Ok(())
    }

    /// The durable steps of a reset, which recovery repeats when the first of them was done and the last was not.
    pub(crate) fn empty_on_disk(&self, bases: Vec<u64>, next_index: u64, next_offset: u64) -> Result<(), LogError> {
        let mut mark = StartMark { first_index: next_index, start_offset: next_offset, resetting: true };
        let shared = &self.shared;
        shared.journal_and_wait(self.id, engine_key::START, Some(mark.encode()))?;
        shared.journal_and_wait(self.id, engine_key::CLEAN, None)?;
        for base_index in bases.into_iter().rev() {
            self.remove_segment(base_index)?;
        }
        let value = bytes::Bytes::copy_from_slice(&next_index.to_le_bytes());
        shared.journal_and_wait(self.id, engine_key::DURABLE_MARK, Some(value))?;
        mark.resetting = false;
        shared.journal_and_wait(self.id, engine_key::START, Some(mark.encode()))
    }

    fn delete_before(self: &Arc<Self>, index: u64) -> Result<DeletedSegments, LogError> {
        // No other change moves the log's start or the ends of sealed segments meanwhile; appends go on.
        let _seal = self.seal_lock.lock();
        let (gone, deleted) = {
            let state = self.state.lock();
            state.check_usable()?;
            let may_go = state.segments.len().saturating_sub(1);
            let goes = |segment: &&Segment| {
                segment.contents.next_index <= index && matches!(segment.phase, Phase::Sealed { .. })
            };
            let gone: Vec<u64> = state
                .segments
                .iter()
                .take(may_go)
                .take_while(goes)
                .map(|segment| segment.contents.base_index)
                .collect();
            let start = state.segments.get(gone.len()).map(|segment| &segment.contents);
            let deleted = DeletedSegments {
                segments: gone.len(),
                bytes: state.segments.iter().take(gone.len()).map(Segment::file_len).sum(),
                first_index: start.map_or(state.first_index(), |start| start.base_index),
                start_offset: start.map_or(state.start_offset(), |start| start.base_offset),
            };
            (gone, deleted)
        };
        if gone.is_empty() {
            return Ok(deleted);
        }
        let DeletedSegments { first_index, start_offset, .. } = deleted;
        let start = StartMark { first_index, start_offset, resetting: false };
        self.shared.journal_and_wait(self.id, engine_key::START, Some(start.encode()))?;
        {
            // Readers stop finding them before they go.
            let mut state = self.state.lock();
            state.segments.drain(..gone.len());
            state.generation += 1;
            self.shared.files.forget(self.id);
        }
        for base_index in gone {
            self.remove_segment(base_index).inspect_err(|error| self.fail(error.clone()))?;
        }
        Ok(deleted)
    }

    /// Everything of closing but the journal's flush. `None`: there is nothing to note (the log was closed cleanly and
    /// not written since).
    pub(crate) fn start_close(self: &Arc<Self>) -> Result<Option<CleanMark>, LogError> {
        let writer = self.begin_change()?;
        let mut state = self.state.lock();
        while state.sealing > 0 {
            self.wait(&mut state);
        }
        let mark = Some(CleanMark::of(&state, &writer)).filter(|mark| self.journal_clean_mark() != Some(*mark));
        if mark.is_some() {
            self.write_active_index(&state);
        }
        state.closed = true;
        let failed = state.failure.clone();
        self.end_change(state, writer);
        match failed {
            Some(failure) => Err(failure.sticky()),
            None => Ok(mark),
        }
    }

    pub(crate) fn finish_close(self: &Arc<Self>) {
        let mut state = self.state.lock();
        state.closed = true;
        // A log that was dropped may have entries on their way still.
        while !state.is_idle() {
            self.wait(&mut state);
        }
        self.release(&mut state);
        drop(state);
        self.shared.deregister(self);
    }

    /// Lets a log rest whose last handle was dropped, once nothing in the background works on it any more: until then nobody
    /// may open it again. Called by whoever may have been the last.
    pub(crate) fn rest_if_done(self: &Arc<Self>, mut state: MutexGuard<'_, State>) {
        let done = state.closed && state.is_idle();
        if done {
            self.rest(&mut state);
        }
        drop(state);
        self.changed.notify_all();
        if done {
            self.shared.deregister(self);
        }
    }

    /// Lets go of what a log holds that has nothing left to do. If all of it is on disk, the journal
    /// is to say, at its next flush, that it was closed cleanly.
    pub(crate) fn rest(&self, state: &mut MutexGuard<'_, State>) {
        if let Some(writer) = &state.writer
            && state.durable_next == state.next_index
            && state.failure.is_none()
            && state.sealing == 0
        {
            let mark = CleanMark::of(state, writer);
            if self.journal_clean_mark() != Some(mark) {
                self.write_active_index(state);
                let config = &self.shared.config;
                let due = config.clock.monotonic() + config.journal_lazy_delay;
                let key = (self.id, Space::Engine, engine_key::CLEAN);
                match self.shared.journal.put(key, Some(mark.encode()), false, due, None) {
                    Ok(true) => self.shared.queue.wake(),
                    Ok(false) => {}
                    Err(error) => tracing::warn!(log = %self.id, %error, "the log will be scanned when it is opened"),
                }
            }
        }
        self.release(state);
    }

    /// Writes the index of the newest segment, if it is in memory only. Failing to is no failure: it is rebuilt when needed.
    fn write_active_index(&self, state: &MutexGuard<'_, State>) {
        let Some(Segment { contents, phase: Phase::Open { index, .. } }) = state.segments.back() else { return };
        let path = index_path(&self.dir, contents.base_index);
        let seed = frame::seed(self.id, contents.base_index);
        let owner = IndexOwner { seed, data_len: contents.data_len, last_crc: contents.last_crc };
        if let Err(error) = write_index(&*self.shared.disk, &path, owner, index) {
            tracing::warn!(log = %self.id, %error, "cannot write the index; it will be rebuilt");
        }
    }
}
