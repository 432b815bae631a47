//! A data directory, open: the logs in it, the journal, and the workers that serve them.
//!
//! Promise: everything that was acknowledged before a crash is there after [`Store::open`], and a deletion that began is
//! finished.
//!
//! Neighbours: the owner of the crate's other parts. It opens the data directory (`data_dir.rs`) and the journal, starts the
//! workers (`workers.rs`) and hands out [`Log`]s. Nothing else in the crate names it.

use std::{io, path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use hashbrown::HashSet;
use parking_lot::Mutex;
use uuid::Uuid;

use crate::{
    Cut, Done, Log, LogConfig, LogError, LogId, StoreConfig, StoreMetrics,
    context::{FailedLogs, StoreContext},
    data_dir::DataDir,
    disk::Disk,
    done::waiter,
    journal::{JournalFile, Space, engine_key},
    log,
    log_dir::LogDir,
    marks::{CleanMark, StartMark, read_origin},
    open_log::{OpenLog, Queues},
    open_logs::OpenLogs,
    queue::{RoundQueue, SealQueue},
    sealed_files::SealedFiles,
    workers::Workers,
};

/// A log that is not open, as its clean mark in the journal describes it; no file is read for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogSummary {
    /// First index stored.
    pub first_index: u64,
    /// Index that the next append must start with (exclusive end).
    pub next_index: u64,
    /// First offset stored.
    pub start_offset: u64,
    /// Offset that the next record takes (exclusive end).
    pub next_offset: u64,
    /// Bytes of segment files.
    pub bytes: u64,
    /// Segment files.
    pub segments: u64,
    /// Greatest timestamp of any data entry, in ms since the Unix epoch; `None` if there is none.
    pub max_timestamp: Option<i64>,
    /// Greatest timestamp of the oldest segment that has data entries, in ms since the Unix epoch; `None` if there is none.
    /// What retention by age looks at first.
    pub oldest_segment_max_timestamp: Option<i64>,
}

/// One data directory. Dropping it without [`Store::close`] flushes what is pending and stops its threads, but leaves logs that
/// are still open to be scanned next time.
#[derive(Debug)]
pub struct Store {
    context: Arc<StoreContext>,
    workers: Arc<Workers>,
    /// Logs whose directories are known to survive a crash.
    durable_dirs: Mutex<HashSet<LogId>>,
}

impl Store {
    /// Opens a data directory, making it if it does not exist.
    ///
    /// # Errors
    /// [`LogError::Locked`] when another process has it open, [`LogError::NewerFormat`], [`LogError::ReadOnly`],
    /// [`LogError::NotADirectory`], [`LogError::Damaged`] when the journal is, [`LogError::InvalidConfig`].
    pub fn open(disk: Arc<dyn Disk>, dir: &Path, config: StoreConfig) -> Result<Arc<Self>, LogError> {
        config.validate()?;
        let data = DataDir::open(disk.clone(), dir, config.new_node_id)?;
        let rewrite = config.journal_rewrite_bytes;
        let (journal, journal_file) = JournalFile::open(disk, &data.meta(), data.node_id(), rewrite, data.is_fresh())?;
        data.complete()?;

        // Names left by a process that was killed may be in memory only.
        data.sync_logs()?;
        let durable_dirs = data.log_ids()?.into_iter().collect();
        let on_work = config.threads.on_work();
        let queues = Queues { rounds: RoundQueue::new(on_work.clone()), seals: SealQueue::new(on_work) };
        let context = Arc::new(StoreContext {
            data,
            sealed_files: SealedFiles::new(config.open_segments),
            config,
            metrics: StoreMetrics::default(),
            journal,
            failed: FailedLogs::default(),
        });
        let workers = Arc::new(Workers::new(context.clone(), Arc::new(queues), Arc::new(OpenLogs::default())));
        let store = Arc::new(Self { context, workers, durable_dirs: Mutex::new(durable_dirs) });
        store.workers.start(journal_file).map_err(|error| LogError::io(dir, "start a thread", error))?;
        store.finish_deletions()?;
        Ok(store)
    }

    /// The identity that the directory got when it was made.
    pub fn node_id(&self) -> Uuid {
        self.context.data.node_id()
    }

    /// The data directory.
    pub fn dir(&self) -> &Path {
        self.context.data.path()
    }

    /// Opens a log, making it if it does not exist and recovering it if it was not closed.
    ///
    /// # Errors
    /// [`LogError::Damaged`] when entries that were durable are bad or missing, [`LogError::AlreadyOpen`],
    /// [`LogError::InvalidConfig`].
    pub fn open_log(&self, id: LogId, config: LogConfig) -> Result<Arc<Log>, LogError> {
        if config.segment_bytes != 0 && config.segment_bytes < 1024 {
            let rule = "it must be 0 or at least 1024";
            return Err(LogError::InvalidConfig { field: "segment_bytes", value: config.segment_bytes, rule });
        }
        if let Some(failure) = self.context.journal.failure() {
            return Err(failure.sticky());
        }
        let claimed = self.claim(id, config)?;
        let recovered = self.context.data.create_log_dir(claimed.dir.path()).and_then(|()| {
            log::recover(
                &self.workers,
                &claimed.dir,
                self.context.failed.known_durable(id).filter(|_| !crate::mutant!("failed-flush-trusted")),
            )
        });
        match recovered {
            Ok(state) => {
                self.context.failed.remove(id);
                claimed.start(state);
                Ok(Arc::new(Log::new(claimed, self.workers.clone())))
            }
            Err(error) => {
                self.unclaim(&claimed);
                Err(error)
            }
        }
    }

    /// Makes segment files of another log part of a log that was never opened: the caller puts copies of them into the log's
    /// directory (`logs/<id>` in the data directory), flushed with their names, and [`Store::open_log`] takes them for
    /// the log's own. Segments that name any third log stay damage. The first of the files starts at `first_index` and `start_offset`. New
    /// segments name the log itself. Durable when it returns.
    ///
    /// # Errors
    /// [`LogError::AlreadyOpen`]; the failure of the journal.
    pub fn set_origin(&self, id: LogId, origin: LogId, first_index: u64, start_offset: u64) -> Result<(), LogError> {
        let claimed = self.claim(id, LogConfig::default())?;
        let start = StartMark { first_index, start_offset, resetting: false };
        let put = |key, value| self.workers.put_and_wait(id, key, Some(value));
        let put = put(engine_key::START, start.encode())
            .and_then(|()| put(engine_key::ORIGIN, Bytes::copy_from_slice(&origin.to_bytes())));
        self.unclaim(&claimed);
        put
    }

    /// Adds a log to the open ones, once the background work of a handle that was dropped is done. The log's files belong to the
    /// caller until [`Self::unclaim`].
    fn claim(&self, id: LogId, config: LogConfig) -> Result<Arc<OpenLog>, LogError> {
        let context = &self.context;
        let durable = self.durable_dirs.lock().contains(&id);
        let (interval, origin) = (context.config.index_interval_bytes, read_origin(&context.journal, id));
        let dir = LogDir::new(context.data.disk().clone(), context.data.logs(), id, origin, interval, durable);
        let log = Arc::new(OpenLog::new(dir, config, context.clone(), self.workers.queues.clone()));
        loop {
            match self.workers.logs.add(&log) {
                Ok(()) => return Ok(log),
                Err(other) if !other.is_closed() => return Err(LogError::AlreadyOpen(id)),
                Err(other) => log::wait_until_idle(&self.workers, &other),
            }
        }
    }

    /// Removes a log that was claimed and not opened.
    fn unclaim(&self, log: &Arc<OpenLog>) {
        log.abandon();
        self.workers.logs.remove(log);
    }

    /// Cuts everything from the first damaged place on out of a closed log whose open fails with [`LogError::Damaged`], so that it
    /// opens again, shorter. Good entries before the damage stay. The files are moved to a folder `quarantine-<n>` in the log's
    /// directory (the two newest are kept). Does nothing to a log that is not damaged. A crash at any step leaves a log whose open
    /// still fails with [`LogError::Damaged`], or one that is cut.
    ///
    /// Entries below [`Cut::was`] may have been acknowledged: before calling this, the caller notes durably that this replica
    /// must not vote until it has been filled again.
    ///
    /// # Errors
    /// [`LogError::AlreadyOpen`]; [`LogError::Damaged`] when nothing is damaged but a newer release wrote entries that this
    /// one does not know; [`LogError::NewerFormat`]; [`LogError::NoSpace`] and the like: try again, nothing is lost.
    pub fn cut_damaged(&self, id: LogId) -> Result<Cut, LogError> {
        self.cut_out(id, None)
    }

    /// Like [`Store::cut_damaged`], for damage that was found by reading (or by comparing with another replica) at `index`. The
    /// segment that holds `index` is checked: the cut is at its first bad entry, or at `index` if all of it reads well. When
    /// the log is damaged at an earlier place too, the cut is there.
    ///
    /// # Errors
    /// As [`Store::cut_damaged`]. A crash may also leave the log as it was.
    pub fn cut_from(&self, id: LogId, index: u64) -> Result<Cut, LogError> {
        self.cut_out(id, Some(index))
    }

    /// Removes the quarantine folders that cuts left in a log, open or not. They may be as large as the log itself: delete
    /// them once the log has been filled again and they are no longer needed for analysis, or when the volume is short of space.
    ///
    /// # Errors
    /// [`LogError::Io`] and the like; also when there is no such log.
    pub fn delete_quarantines(&self, id: LogId) -> Result<(), LogError> {
        let data = &self.context.data;
        log::prune_quarantines(&**data.disk(), &data.logs().join(id.to_string()), 0)
    }

    fn cut_out(&self, id: LogId, from: Option<u64>) -> Result<Cut, LogError> {
        if let Some(failure) = self.context.journal.failure() {
            return Err(failure.sticky());
        }
        let claimed = self.claim(id, LogConfig::default())?;
        let cut = log::cut_out(&self.workers, &claimed.dir, from, self.context.failed.known_durable(id));
        if cut.is_ok() {
            self.context.failed.remove(id);
        }
        self.unclaim(&claimed);
        cut
    }

    /// Removes a closed log: its files and its keys in the journal. Complete after a crash once it returned; begun and not
    /// finished, it is finished at the next open of the store. Fine if the log does not exist.
    ///
    /// # Errors
    /// [`LogError::StillOpen`].
    pub fn delete_log(&self, id: LogId) -> Result<(), LogError> {
        if let Some(log) = self.workers.logs.get(id) {
            if !log.is_closed() {
                return Err(LogError::StillOpen(id));
            }
            log::wait_until_idle(&self.workers, &log);
        }
        self.workers.put_and_wait(id, engine_key::DELETING, Some(Bytes::new()))?;
        self.finish_deletion(id)
    }

    fn finish_deletion(&self, id: LogId) -> Result<(), LogError> {
        let context = &self.context;
        self.durable_dirs.lock().remove(&id);
        let aside = context.data.set_log_aside(id)?;
        context.failed.remove(id);
        let (done, answer) = waiter();
        context.journal.remove_log(id, done)?;
        self.workers.queues.rounds.wake();
        self.workers.wait_for(&answer)?;
        context.data.remove_dir(&aside)
    }

    /// Finishes deletions that a crash interrupted.
    fn finish_deletions(&self) -> Result<(), LogError> {
        for id in self.context.journal.logs_with(engine_key::DELETING) {
            self.finish_deletion(id)?;
        }
        self.context.data.remove_logs_set_aside()
    }

    /// Every log in the directory, open or not, in no particular order.
    ///
    /// # Errors
    /// [`LogError::Io`] when the directory cannot be listed.
    pub fn list_logs(&self) -> Result<Vec<LogId>, LogError> {
        self.context.data.log_ids()
    }

    /// What the journal has of a log that is not open. `None` when it does not exist, was not closed cleanly, or is open.
    ///
    /// # Errors
    /// None at present; reserved for reading files.
    pub fn summary(&self, id: LogId) -> Result<Option<LogSummary>, LogError> {
        if self.workers.logs.contains(id) {
            return Ok(None);
        }
        let summary = |mark: CleanMark| LogSummary {
            first_index: mark.first_index,
            next_index: mark.newest.next_index,
            start_offset: mark.start_offset,
            next_offset: mark.newest.next_offset,
            bytes: mark.bytes,
            segments: mark.segments,
            max_timestamp: (mark.max_timestamp != i64::MIN).then_some(mark.max_timestamp),
            oldest_segment_max_timestamp: (mark.oldest_max_timestamp != i64::MIN).then_some(mark.oldest_max_timestamp),
        };
        Ok(CleanMark::read(&self.context.journal, id).map(summary))
    }

    /// Puts a small value under a key of a log (which need not be open). Read back at once by [`Store::journal_get`]; `done` is
    /// called when it is durable, and an append made after this call is not durable before it. Without `done` it becomes
    /// durable with a later round, within [`StoreConfig::journal_lazy_delay`].
    ///
    /// When this returns an error nothing was put and `done` is dropped without a call. A `done` that gets
    /// [`LogError::NoSpace`]: not durable yet; it becomes so when there is room.
    ///
    /// # Errors
    /// [`LogError::InvalidConfig`] for a value above [`crate::MAX_JOURNAL_VALUE`], [`LogError::Overloaded`], [`LogError::Failed`].
    pub fn journal_put(&self, id: LogId, key: u8, value: Bytes, done: Option<Done>) -> Result<(), LogError> {
        let StoreContext { config, journal, .. } = &*self.context;
        let urgent = done.is_some();
        let now = config.clock.monotonic();
        let due = if urgent { now } else { now + config.journal_lazy_delay };
        if journal.put((id, Space::User, key), Some(value), urgent, due, done)? {
            self.workers.queues.rounds.wake();
        }
        Ok(())
    }

    /// Calls `done` when every value put for this log so far is durable; at once if all are. [`Store::journal_get`] also returns
    /// values that are not: a caller that acts on a value which it has not put itself, or whose put failed, waits for this first.
    ///
    /// `done` may get [`LogError::NoSpace`] as in [`Store::journal_put`].
    ///
    /// # Errors
    /// [`LogError::Failed`]; `done` is dropped without a call.
    pub fn journal_settle(&self, id: LogId, done: Done) -> Result<(), LogError> {
        if self.context.journal.settle(id, done)? {
            self.workers.queues.rounds.wake();
        }
        Ok(())
    }

    /// The newest value put under a key of a log, durable or not.
    pub fn journal_get(&self, id: LogId, key: u8) -> Option<Bytes> {
        self.context.journal.get((id, Space::User, key))
    }

    /// Bytes that may still be written to the volume.
    ///
    /// # Errors
    /// The operating system's.
    pub fn free_bytes(&self) -> io::Result<u64> {
        self.context.data.volume().free_bytes()
    }

    /// Size of the volume in bytes.
    ///
    /// # Errors
    /// The operating system's.
    pub fn volume_bytes(&self) -> io::Result<u64> {
        self.context.data.volume().size_bytes()
    }

    /// For how long the round of writes and flushes that is on the disk has been there; zero: none is. A long time means a
    /// disk that does not answer: appends to every log wait for the round.
    pub fn round_age(&self) -> Duration {
        self.context.metrics.round_age(self.context.config.clock.monotonic())
    }

    /// The store's counters.
    pub fn metrics(&self) -> &StoreMetrics {
        &self.context.metrics
    }

    /// With [`crate::Threads::Driven`]: runs one round of the scheduler, with what is due by the clock, and seals one segment. Returns
    /// whether there was anything to do; `false` in a store with threads. Must not be called by a `done` or by
    /// `on_work`.
    pub fn drive(&self) -> bool {
        self.workers.is_driven() && self.workers.drive()
    }

    /// With [`crate::Threads::Driven`]: when, by the monotonic time of [`StoreConfig::clock`], [`Store::drive`] is to be called at the latest,
    /// unless more work is queued before. `None`: nothing is due.
    pub fn next_due(&self) -> Option<Duration> {
        self.workers.next_due()
    }

    /// Makes timers look at the clock again; for clocks that do not move by themselves.
    pub fn wake(&self) {
        self.workers.queues.rounds.wake();
    }

    /// Closes every log cleanly, flushes the journal, stops and joins the threads, and unlocks the directory.
    ///
    /// # Errors
    /// The first failure of closing a log; everything is closed all the same.
    pub fn close(&self) -> Result<(), LogError> {
        let logs = self.workers.logs.all();
        let mut first_error = Ok(());
        let mut keep_first = |result: Result<(), LogError>| {
            if first_error.is_ok() {
                first_error = result;
            }
        };
        // One flush of the journal makes all marks durable.
        let mut answers = Vec::new();
        for log in logs.iter().filter(|log| !log.is_closed()) {
            match log::start_close(&self.workers, log) {
                // Nothing to note, or closed by its owner meanwhile.
                Ok(None) | Err(LogError::Closed) => {}
                Ok(Some(mark)) => {
                    let (done, answer) = waiter();
                    let key = (log.id(), Space::Engine, engine_key::CLEAN);
                    let now = self.context.config.clock.monotonic();
                    match self.context.journal.put(key, Some(mark.encode()), false, now, Some(done)) {
                        Ok(_) => answers.push(answer),
                        Err(error) => keep_first(Err(error)),
                    }
                }
                Err(error) => keep_first(Err(error)),
            }
        }
        self.workers.queues.rounds.wake();
        for answer in answers {
            keep_first(self.workers.wait_for(&answer));
        }
        for log in &logs {
            log::finish_close(&self.workers, log);
        }
        self.stop();
        first_error
    }

    fn stop(&self) {
        // No log may take appends any more: there will be no scheduler to write them.
        for log in self.workers.logs.all() {
            log.lock().close();
            log.notify();
        }
        self.workers.stop();
        self.context.data.unlock();
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.stop();
    }
}
