//! One log that is open, as the store's threads see it: its state behind a lock, its directory, and the queues it goes into.
//!
//! Promise: no callback runs under a lock, and no method here waits for another thread; [`OpenLog::wait`] only blocks where
//! the caller decided to.
//!
//! Lock order: the writer token, `seal_lock`, the state, then the store's small locks (journal, queues, open sealed files).
//!
//! Neighbours: the public [`crate::Log`] (`log/`), the scheduler and the sealer hold it. Names none of them, nor any thread.

use std::{sync::Arc, time::Duration};

use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::{
    Durability, LogConfig, LogError, LogId, StoreMetrics,
    context::StoreContext,
    done::complete,
    journal::{Space, engine_key},
    log_dir::LogDir,
    marks::{CleanMark, durable_mark},
    queue::{RoundQueue, SealQueue},
    segments::{Phase, Segment},
    state::{LogState, PendingAppend},
    writer::WriteContext,
};

/// The work of a store's scheduler and sealer.
#[derive(Debug)]
pub(crate) struct Queues {
    /// Logs that have something to write or to flush.
    pub(crate) rounds: RoundQueue<Arc<OpenLog>>,
    /// Finished segments: log and base index. Each is counted in its log's state.
    pub(crate) seals: SealQueue<(Arc<OpenLog>, u64)>,
}

/// One log, open.
#[derive(Debug)]
pub(crate) struct OpenLog {
    pub(crate) dir: LogDir,
    pub(crate) context: Arc<StoreContext>,
    durability: Durability,
    segment_bytes: u64,
    queues: Arc<Queues>,
    state: Mutex<LogState>,
    /// Signalled when the writer is given back, a change ends, a seal ends, or the log fails.
    changed: Condvar,
    /// Held while a footer is written, and by changes that move segment ends.
    seal_lock: Mutex<()>,
}

impl OpenLog {
    /// A log that is about to be opened: no one may write to it before [`Self::start`].
    pub(crate) fn new(dir: LogDir, config: LogConfig, context: Arc<StoreContext>, queues: Arc<Queues>) -> Self {
        Self {
            dir,
            durability: config.durability,
            segment_bytes: if config.segment_bytes == 0 { context.config.segment_bytes } else { config.segment_bytes },
            context,
            queues,
            state: Mutex::new(LogState::unopened()),
            changed: Condvar::new(),
            seal_lock: Mutex::new(()),
        }
    }

    pub(crate) fn id(&self) -> LogId {
        self.dir.id()
    }

    pub(crate) fn durability(&self) -> Durability {
        self.durability
    }

    pub(crate) fn is_fsync(&self) -> bool {
        self.durability == Durability::Fsync
    }

    pub(crate) fn metrics(&self) -> &StoreMetrics {
        &self.context.metrics
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, LogState> {
        self.state.lock()
    }

    /// Holds off footers and other changes that move segment ends.
    pub(crate) fn lock_seals(&self) -> MutexGuard<'_, ()> {
        self.seal_lock.lock()
    }

    /// Blocks until [`Self::notify`], or spuriously less long.
    pub(crate) fn wait(&self, state: &mut MutexGuard<'_, LogState>) {
        self.changed.wait(state);
    }

    /// Blocks until [`Self::notify`], or for this long.
    pub(crate) fn wait_for(&self, state: &mut MutexGuard<'_, LogState>, limit: Duration) {
        self.changed.wait_for(state, limit);
    }

    /// Wakes the threads that wait for a change of the state.
    pub(crate) fn notify(&self) {
        self.changed.notify_all();
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.lock().is_closed()
    }

    /// What the writer needs for a round.
    pub(crate) fn write_context(&self, durable_next: u64) -> WriteContext<'_> {
        WriteContext {
            dir: &self.dir,
            segment_bytes: self.segment_bytes,
            now_ms: self.context.config.clock.wall_ms(),
            entropy: &*self.context.config.entropy,
            durable_next,
        }
    }

    /// Subtracts bytes that left memory from the store's gauge.
    pub(crate) fn count_freed(&self, bytes: u64) {
        self.metrics().cache_bytes.sub(bytes);
    }

    /// Calls the `done` of appends; never under a lock.
    pub(crate) fn complete(&self, appends: Vec<PendingAppend>, result: &Result<(), LogError>) {
        for append in appends {
            self.metrics().pending_bytes.sub(append.bytes);
            complete(append.done, result.clone());
        }
    }

    /// Stops the log for good: every append that waits, and every later one, gets the error.
    pub(crate) fn fail(&self, error: LogError) {
        let pending = {
            let mut state = self.lock();
            let (first, pending) = state.fail(&error);
            if first {
                let durable_next = state.durable_next();
                tracing::error!(log = %self.id(), %error, durable_next, "log stopped");
                self.metrics().failed_logs.add(1);
                self.context.failed.add(self.id(), durable_next);
            }
            pending
        };
        self.complete(pending, &Err(error));
        self.notify();
    }

    /// Puts the log into the scheduler's queue unless it is there.
    pub(crate) fn enqueue(self: &Arc<Self>, state: &mut LogState) {
        if state.enter_queue() {
            self.queues.rounds.push(self.clone());
        }
    }

    /// Hands every finished, unsealed segment to the sealer.
    pub(crate) fn request_seals(self: &Arc<Self>, state: &mut LogState) {
        self.push_seals(state.queue_seals());
    }

    /// Hands segments to the sealer that are counted in the state already.
    pub(crate) fn push_seals(self: &Arc<Self>, bases: Vec<u64>) {
        for base_index in bases {
            self.queues.seals.push((self.clone(), base_index));
        }
    }

    /// The log is open: `state` is what recovery found. Recovered entries count as acknowledged from now on, so that their
    /// durable mark goes to the journal.
    pub(crate) fn start(self: &Arc<Self>, recovered: LogState) {
        let mut state = self.lock();
        *state = recovered;
        if let Some(end) = state.unmarked_end() {
            let config = &self.context.config;
            let due = config.next_mark();
            let key = (self.id(), Space::Engine, engine_key::DURABLE_MARK);
            // If the journal cannot take it now, a later mark replaces it.
            if let Ok(wake) = self.context.journal.put(key, Some(durable_mark(end)), false, due, None) {
                state.mark_put(end);
                if wake {
                    self.queues.rounds.wake();
                }
            }
        }
        self.request_seals(&mut state);
        drop(state);
        self.notify();
    }

    /// Gives up a log that could not be opened.
    pub(crate) fn abandon(&self) {
        // A close of the store that runs meanwhile waits for the writer.
        self.lock().close_unopened();
        self.notify();
    }

    /// Releases a log whose last handle was dropped, if nothing in the background works on it any more. Returns whether it is
    /// released, so that the log may be opened again. Called by each thread that may have been the last to work on it.
    pub(crate) fn release_if_idle(&self, mut state: MutexGuard<'_, LogState>) -> bool {
        let done = state.is_closed() && state.is_idle();
        if done {
            self.release(&mut state);
        }
        drop(state);
        self.notify();
        done
    }

    /// Drops what a log holds that has nothing left to do. If all of it is on disk, the journal notes, at its next flush, that
    /// the log was closed cleanly.
    pub(crate) fn release(&self, state: &mut LogState) {
        if let Some(mark) = state.clean_mark_at_rest()
            && CleanMark::read(&self.context.journal, self.id()) != Some(mark)
        {
            self.write_newest_index(state);
            let config = &self.context.config;
            let due = config.clock.monotonic() + config.journal_lazy_delay;
            let key = (self.id(), Space::Engine, engine_key::CLEAN);
            match self.context.journal.put(key, Some(mark.encode()), false, due, None) {
                Ok(true) => self.queues.rounds.wake(),
                Ok(false) => {}
                Err(error) => tracing::warn!(log = %self.id(), %error, "the log will be scanned when it is opened"),
            }
        }
        self.count_freed(state.release());
    }

    /// Writes the index of the newest segment, if it is in memory only. An error is only logged: the index is rebuilt when needed.
    pub(crate) fn write_newest_index(&self, state: &LogState) {
        let Some(Segment { contents, seed, phase: Phase::Open { index, .. } }) = state.segments().last() else {
            return;
        };
        if let Err(error) = self.dir.write_index(contents, *seed, index) {
            tracing::warn!(log = %self.id(), %error, "cannot write the index; it will be rebuilt");
        }
    }
}
