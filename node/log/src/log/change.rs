//! Changes to what is stored: truncation, reset, deletion of old segments, roll.
//!
//! A change takes the writer first, so that no round touches the log's files meanwhile. Its order on disk is such that a
//! crash in the middle leaves a log that opens: the durable mark in the journal is lowered before anything is removed, files
//! are removed from the end (truncation) or from the start (retention), each durably before the next, and a reset leaves an
//! start mark in the journal that recovery completes.
//!
//! Neighbours: `close.rs` takes the writer in the same way; `recover.rs` shares the durable steps of a reset.

use std::sync::Arc;

use parking_lot::MutexGuard;

use super::{Log, recover::reset_on_disk};
use crate::{
    DeletedSegments, LogError,
    disk::{DiskFile, OpenMode},
    frame::Expect,
    index::SparseIndex,
    journal::engine_key,
    marks::{StartMark, durable_mark},
    open_log::OpenLog,
    reader::{FrameReader, Stop},
    seed::Seed,
    segment::{Contents, SCAN_CHUNK},
    segments::Segment,
    state::LogState,
    workers::Workers,
    writer::{ActiveSegment, Writer},
};

/// Waits until no entry waits for the disk and takes the writer; appends wait until [`end_change`].
pub(super) fn begin_change(workers: &Workers, log: &Arc<OpenLog>) -> Result<Box<Writer>, LogError> {
    let mut state = log.lock();
    while state.is_changing() {
        workers.wait_for_change(log, &mut state);
    }
    state.check_usable()?;
    state.announce_change();
    loop {
        if let Err(error) = state.check_usable() {
            state.cancel_change();
            log.notify();
            return Err(error);
        }
        if let Some(writer) = state.begin_change() {
            return Ok(writer);
        }
        log.enqueue(&mut state);
        workers.wait_for_change(log, &mut state);
    }
}

/// Gives the writer back after a change.
pub(super) fn end_change(log: &OpenLog, mut state: MutexGuard<'_, LogState>, writer: Box<Writer>) {
    state.end_change(writer);
    drop(state);
    log.notify();
}

impl Log {
    /// Removes every entry above `index`; offsets go back too. Durable when it returns. To remove everything, use
    /// [`Log::reset`]. Appends of removed entries that were not answered yet get [`LogError::Truncated`].
    ///
    /// # Errors
    /// [`LogError::Compacted`] when `index + 1` is below the first entry; any failure stops the log.
    pub fn truncate_after(&self, index: u64) -> Result<(), LogError> {
        let log = &self.log;
        let removed = {
            let mut state = log.lock();
            state.check_usable()?;
            if index.saturating_add(1) < state.first_index() {
                return Err(LogError::Compacted { first: state.first_index() });
            }
            if index.saturating_add(1) >= state.next_index() {
                return Ok(());
            }
            let (freed, removed) = state.remove_unwritten(index + 1);
            log.count_freed(freed);
            removed
        };
        let changed = self.change(|writer| self.cut(writer, index + 1));
        log.complete(removed, &Err(LogError::Truncated));
        changed
    }

    /// Removes everything and starts an empty log whose next entry has index `next_index` and offset `next_offset`, as after
    /// the installation of a snapshot. Durable when it returns. Appends not answered yet get [`LogError::Truncated`].
    ///
    /// # Errors
    /// Any failure stops the log; the reset is completed when it is opened again.
    pub fn reset(&self, next_index: u64, next_offset: u64) -> Result<(), LogError> {
        let log = &self.log;
        let removed = {
            let mut state = log.lock();
            state.check_usable()?;
            let first = state.first_index();
            let (freed, removed) = state.remove_unwritten(first);
            log.count_freed(freed);
            removed
        };
        let changed = self.change(|writer| self.remove_all(writer, next_index, next_offset));
        log.complete(removed, &Err(LogError::Truncated));
        changed
    }

    /// Deletes whole sealed segments, oldest first, whose last index is below `index`. The newest segment always stays.
    ///
    /// # Errors
    /// Any failure stops the log.
    pub fn delete_before(&self, index: u64) -> Result<DeletedSegments, LogError> {
        let log = &self.log;
        // Keeps other changes from moving the log's start or the ends of sealed segments; appends continue.
        let _seal = log.lock_seals();
        let (gone, deleted) = {
            let state = log.lock();
            state.check_usable()?;
            let count = state.segments().deletable_below(index);
            let gone: Vec<u64> =
                state.segments().iter().take(count).map(|segment| segment.contents.base_index).collect();
            (gone, state.deletion(count))
        };
        if gone.is_empty() {
            return Ok(deleted);
        }
        let DeletedSegments { first_index, start_offset, .. } = deleted;
        let start = StartMark { first_index, start_offset, resetting: false };
        self.workers.put_and_wait(log.id(), engine_key::START, Some(start.encode()))?;
        {
            // Readers must not find the segments once their files are removed.
            let mut state = log.lock();
            state.delete_oldest(gone.len());
            log.context.sealed_files.forget(log.id());
        }
        for base_index in gone {
            log.dir.remove_segment(base_index).inspect_err(|error| log.fail(error.clone()))?;
        }
        Ok(deleted)
    }

    /// What [`Log::delete_before`] would keep: the first index after the segments that it would delete. `None`: it would delete
    /// nothing.
    pub fn deletable_before(&self, index: u64) -> Option<u64> {
        let state = self.log.lock();
        let segments = state.segments();
        segments.iter().take(segments.deletable_below(index)).last().map(|last| last.contents.next_index)
    }

    /// The first index to keep when segments expire by size or by age. Segments expire, oldest first, while those that remain
    /// still have `max_bytes`, or while they hold nothing at or after `min_timestamp_ms`. Only sealed segments that end at or
    /// below `max_index` expire, the newest only by age. `None`: no segment has expired.
    pub fn retention_index(
        &self,
        max_bytes: Option<u64>,
        min_timestamp_ms: Option<i64>,
        max_index: u64,
    ) -> Option<u64> {
        let state = self.log.lock();
        let segments = state.segments();
        let mut remaining = segments.file_bytes();
        let mut keep = None;
        let ended = |segment: &&Segment| segment.is_sealed() && segment.contents.next_index <= max_index;
        for (at, segment) in segments.iter().take_while(ended).enumerate() {
            let newest = at + 1 == segments.len();
            let too_large = !newest && max_bytes.is_some_and(|max| remaining - segment.file_len() >= max);
            let too_old = min_timestamp_ms.is_some_and(|min| segment.contents.max_timestamp < min);
            if !(too_large || too_old) {
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
        let log = &self.log;
        let mut writer = begin_change(&self.workers, log)?;
        let mut state = log.lock();
        if writer.finish_segment() {
            state.rolled();
            log.request_seals(&mut state);
        }
        end_change(log, state, writer);
        Ok(())
    }

    /// Runs a change of the log's files with the writer, and no footer written meanwhile. An error stops the log.
    fn change(&self, change: impl FnOnce(&mut Writer) -> Result<(), LogError>) -> Result<(), LogError> {
        let log = &self.log;
        let mut writer = begin_change(&self.workers, log)?;
        let result = {
            let _seal = log.lock_seals();
            change(&mut writer)
        };
        if let Err(error) = &result {
            log.fail(error.clone());
        }
        end_change(log, log.lock(), writer);
        result
    }

    /// Removes the entries from `next` on.
    fn cut(&self, writer: &mut Writer, next: u64) -> Result<(), LogError> {
        let log = &self.log;
        let (segments, marked) = {
            let state = log.lock();
            let segments: Vec<Contents> = state.segments().iter().map(|segment| segment.contents).collect();
            (segments, state.marked())
        };
        if segments.last().is_none_or(|last| last.next_index <= next) {
            // What was removed had never been written: only memory changes.
            log.lock().truncated_in_memory();
            return Ok(());
        }
        if !crate::mutant!("truncation-keeps-mark") && (marked > next || writer.has_clean_mark()) {
            self.lower_marks(writer, next)?;
        }
        writer.release_segment();
        let keep = segments.partition_point(|segment| segment.base_index < next).max(1);
        for gone in segments[keep..].iter().rev() {
            log.dir.remove_segment(gone.base_index)?;
        }
        let last = segments[keep - 1];
        let (active, shortened, end) = if last.next_index > next {
            let (active, shortened) = shorten(log, &last, next)?;
            let end = shortened.contents.expect();
            (Some(active), Some(shortened), end)
        } else {
            (None, None, last.expect())
        };

        let mut state = log.lock();
        log.context.sealed_files.forget(log.id());
        let finished = shortened.is_none();
        log.count_freed(state.truncated(keep, shortened, end));
        writer.resume(active, end);
        if finished {
            log.request_seals(&mut state);
        }
        Ok(())
    }

    /// Lowers the durable mark in the journal before durable entries are removed.
    fn lower_marks(&self, writer: &mut Writer, next: u64) -> Result<(), LogError> {
        let id = self.log.id();
        if writer.has_clean_mark() {
            self.workers.put_and_wait(id, engine_key::CLEAN, None)?;
            writer.clean_mark_removed();
        }
        self.workers.put_and_wait(id, engine_key::DURABLE_MARK, Some(durable_mark(next)))?;
        self.log.lock().mark_put(next);
        Ok(())
    }

    /// Removes everything; the next entry takes this index and this offset.
    fn remove_all(&self, writer: &mut Writer, next_index: u64, next_offset: u64) -> Result<(), LogError> {
        let log = &self.log;
        let bases = log.lock().segments().iter().map(|segment| segment.contents.base_index).collect();
        log.dir.make_durable()?;
        reset_on_disk(&self.workers, &log.dir, bases, next_index, next_offset)?;
        writer.reset(Expect { index: next_index, offset: next_offset, prev_crc: 0 });
        let mut state = log.lock();
        log.context.sealed_files.forget(log.id());
        log.count_freed(state.reset(next_index, next_offset));
        Ok(())
    }
}

/// Cuts a segment so that it ends before `next`, durably, and opens it for writing.
fn shorten(log: &OpenLog, contents: &Contents, next: u64) -> Result<(ActiveSegment, Segment), LogError> {
    let dir = &log.dir;
    let base_index = contents.base_index;
    let file = dir.open_segment(base_index, OpenMode::Write)?;
    let header = dir.read_header(&*file, base_index)?;
    let end = position_of(log, &file, contents, header.seed, next)?;
    let walked = dir.walk(&file, &header, end, |_, _| {})?;
    if let Some(bad) = walked.bad {
        log.metrics().damage_found.add(1);
        let at = &walked.contents;
        return Err(LogError::damaged(dir.segment_path(base_index), at.data_len, Some(at.next_index), bad));
    }
    dir.remove_index(base_index)?;
    file.set_len(end).map_err(dir.segment_error(base_index, "cut the segment"))?;
    file.sync_data().map_err(dir.segment_error(base_index, "flush the segment"))?;
    let last = walked.index.last().map(|entry| entry.position);
    let active = ActiveSegment::resume(dir, file.clone(), walked.contents, header.seed, last);
    Ok((active, Segment::open(walked.contents, header.seed, file, SparseIndex::Memory(walked.index))))
}

/// Where the frame of entry `next` starts.
fn position_of(
    log: &OpenLog,
    file: &Arc<dyn DiskFile>,
    contents: &Contents,
    seed: Seed,
    next: u64,
) -> Result<u64, LogError> {
    let dir = &log.dir;
    let mut reader = FrameReader::new(file.clone(), seed, seed.first_frame(), contents.data_len, SCAN_CHUNK);
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
            Err(Stop::Bad(error)) => {
                return Err(LogError::damaged(dir.segment_path(contents.base_index), position, Some(at), error));
            }
            Err(Stop::Io(error)) => return Err(dir.segment_error(contents.base_index, "read the segment")(error)),
        }
    }
}
