//! One log: the handle that callers hold, and what they do with it.
//!
//! This file appends, flushes and reports the position; the files beside it hold one operation each, or two that belong together.
//! All of them may wait for the store's threads, through [`Workers`]; nothing below this directory does.
//!
//! Neighbours: `store.rs` hands out [`Log`]; the state is in `open_log.rs`. Names no scheduler, sealer or queue.

mod change;
mod checkpoint;
mod close;
mod extent;
mod read;
mod recover;
mod repair;
mod verify;

use std::{path::Path, sync::Arc};

pub(crate) use close::{finish_close, start_close, wait_until_idle};
pub(crate) use recover::recover;
pub use repair::Cut;
pub(crate) use repair::{cut_out, prune_quarantines};

use crate::{
    Appended, Done, Entry, LogError, LogId, LogPosition, LostTail, SegmentInfo, frame::FRAME_HEADER,
    journal::engine_key, open_log::OpenLog, segments::Segment, workers::Workers,
};

/// One log, open. Dropping the last handle without [`Log::close`] closes the log in the background, once what was appended is
/// flushed; a failure is only logged then.
#[derive(Debug)]
pub struct Log {
    log: Arc<OpenLog>,
    workers: Arc<Workers>,
}

impl Log {
    /// The handle of a log that was opened.
    pub(crate) fn new(log: Arc<OpenLog>, workers: Arc<Workers>) -> Self {
        Self { log, workers }
    }

    /// The log's name.
    pub fn id(&self) -> LogId {
        self.log.id()
    }

    /// The log's directory.
    pub fn dir(&self) -> &Path {
        self.log.dir.path()
    }

    /// Adds entries at the end. They can be read as soon as this returns; `done` is called exactly once when they are durable
    /// or have failed, in the order of appends, on a thread of the store: it must be quick and must not wait for this log.
    /// When this returns an error nothing was added and `done` is dropped without a call.
    ///
    /// The first entry's index must be [`LogPosition::next_index`] and the others must follow. May wait for a truncation,
    /// reset or close that is under way.
    ///
    /// # Errors
    /// [`LogError::NotContiguous`], [`LogError::InvalidEntry`], [`LogError::Overloaded`] (retry later),
    /// [`LogError::Failed`] (until reopened), [`LogError::Closed`].
    pub fn append(&self, entries: Vec<Entry>, done: Done) -> Result<Appended, LogError> {
        let log = &self.log;
        let metrics = log.metrics();
        let payload: u64 = entries.iter().map(|entry| entry.payload.len() as u64).sum();
        let count = entries.len() as u64;
        let pending = payload + count * FRAME_HEADER as u64;

        let mut state = log.lock();
        while state.is_changing() {
            self.workers.wait_for_change(log, &mut state);
        }
        state.check_usable()?;
        state.tail().check(&entries)?;
        let limit = log.context.config.max_pending_bytes;
        if let Err(waiting) = metrics.pending_bytes.add_within(pending, limit) {
            metrics.overloaded.add(1);
            return Err(LogError::Overloaded { pending: waiting, limit });
        }
        let (appended, cached) = state.append(entries, pending, done);
        metrics.cache_bytes.add(cached);
        log.enqueue(&mut state);
        drop(state);
        metrics.appended_bytes.add(payload);
        metrics.appended_entries.add(count);
        Ok(appended)
    }

    /// Where the log begins and ends.
    pub fn position(&self) -> LogPosition {
        self.log.lock().position()
    }

    /// Checks that the log ends after entry `index`, which its owner knows to have been on disk: an entry that a checkpoint
    /// covers, or that was deleted. `witness` names what says so, for the error.
    ///
    /// # Errors
    /// [`LogError::Damaged`] with the index of the first entry that is missing. The log stays open and whatever it has is intact.
    pub fn check_reaches(&self, index: u64, witness: &str) -> Result<(), LogError> {
        let state = self.log.lock();
        let next = state.next_index();
        if index < next {
            return Ok(());
        }
        let last = state.segments().last();
        let path =
            last.map_or_else(|| self.dir().to_owned(), |last| self.log.dir.segment_path(last.contents.base_index));
        let position = last.map_or(0, |last| last.contents.data_len);
        drop(state);
        self.log.metrics().damage_found.add(1);
        let reason = format!(
            "the log ends before entry {next}, but its {witness} covers entry {index}: entries {next} to {index} are missing"
        );
        Err(LogError::damaged(path, position, Some(next), reason))
    }

    /// What was cut off the end of this log when it was opened, now or earlier, and has not been settled since. `None` for
    /// a log that lost nothing, or only what cannot have been acknowledged.
    pub fn lost_tail(&self) -> Option<LostTail> {
        LostTail::read(&self.log.context.journal, self.id())
    }

    /// Forgets [`Log::lost_tail`], once its owner has settled or noted it. Durable when it returns.
    ///
    /// # Errors
    /// [`LogError::Failed`] when the journal has failed, [`LogError::NoSpace`].
    pub fn forget_lost_tail(&self) -> Result<(), LogError> {
        match self.lost_tail() {
            Some(_) => self.workers.put_and_wait(self.id(), engine_key::LOST_TAIL, None),
            None => Ok(()),
        }
    }

    /// Every segment file, oldest first.
    pub fn segments(&self) -> Vec<SegmentInfo> {
        self.log.lock().segments().iter().map(Segment::info).collect()
    }

    /// Bytes of the entries, on disk or not, in the segment that the next entry continues; 0: the next entry starts a segment.
    pub fn open_bytes(&self) -> u64 {
        self.log.lock().open_bytes()
    }

    /// The failure that stopped this log, if one did. It accepts nothing more until it is opened again.
    pub fn failure(&self) -> Option<LogError> {
        self.log.lock().failure().cloned()
    }

    /// Waits until everything appended so far is on disk, whatever the durability mode.
    ///
    /// # Errors
    /// The failure that stopped the log.
    pub fn flush(&self) -> Result<(), LogError> {
        let log = &self.log;
        let mut state = log.lock();
        let target = state.next_index();
        let generation = state.generation();
        while state.durable_next() < target && state.generation() == generation {
            state.check_usable()?;
            state.request_flush();
            log.enqueue(&mut state);
            self.workers.wait_for_change(log, &mut state);
        }
        Ok(())
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        let mut state = self.log.lock();
        if state.is_closed() {
            return;
        }
        // Never waits: the last handle may be dropped by a `done` on the scheduler's own thread. What is pending still gets
        // flushed, then the scheduler releases the log; opening the log again waits for that.
        state.close();
        self.workers.logs.remove_if_idle(&self.log, state);
    }
}
