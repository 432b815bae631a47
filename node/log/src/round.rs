//! One log's part of a round, and the barrier for all parts.
//!
//! Promise: an append is answered `Ok` only after a barrier that began after its bytes were written. A failed write stops its
//! log; a failed barrier stops every log it covered; neither is tried again.
//!
//! Neighbours: `scheduler.rs` runs rounds. The only other holders of a log's writer are the changes in `log/`. Names no queue,
//! timer or journal.

use std::{io, path::Path, sync::Arc};

use parking_lot::MutexGuard;

use crate::{
    Barrier, LogError, StoredEntry,
    barrier::{FlushPool, Target},
    context::StoreContext,
    open_log::OpenLog,
    state::{AfterRound, LogState},
    writer::Writer,
};

/// Files that the scheduler flushes itself rather than hand to the pool.
const INLINE_FLUSHES: usize = 2;

/// One log's part of a round.
pub(crate) struct Job {
    pub(crate) log: Arc<OpenLog>,
    writer: Box<Writer>,
    entries: Vec<StoredEntry>,
    durable_next: u64,
    /// Goes through the barrier of this round.
    flush: bool,
    result: Result<(), LogError>,
}

impl Job {
    /// Takes what a log has to write. `None` while another holds its writer; the log comes back to the queue then.
    pub(crate) fn begin(log: &Arc<OpenLog>) -> Option<Self> {
        let mut state = log.lock();
        let Some(input) = state.begin_round() else {
            let failed = state.failure().is_some();
            drop(state);
            if failed {
                log.notify();
            }
            return None;
        };
        let flush = log.is_fsync() || input.flush_requested;
        Some(Self {
            log: log.clone(),
            writer: input.writer,
            entries: input.entries,
            durable_next: input.durable_next,
            flush,
            result: Ok(()),
        })
    }

    /// The durable end of a log whose clean mark must leave the journal before this round writes to it.
    pub(crate) fn clean_mark_end(&self) -> Option<u64> {
        (self.writer.has_clean_mark() && !self.entries.is_empty()).then_some(self.durable_next)
    }

    /// Takes the log out of the round, unless it is already.
    pub(crate) fn fail(&mut self, error: LogError) {
        if self.result.is_ok() {
            self.result = Err(error);
        }
    }

    /// Writes the entries to the page cache, and answers appends that need no more than that.
    pub(crate) fn write(&mut self) {
        if self.result.is_err() || self.entries.is_empty() {
            return;
        }
        self.writer.clean_mark_removed();
        let written = match self.writer.write(&self.log.write_context(self.durable_next), &self.entries) {
            Ok(written) => written,
            Err(error) => {
                self.result = Err(error);
                return;
            }
        };
        let mut state = self.log.lock();
        state.written(written);
        if !self.log.is_fsync() || crate::mutant!("answer-before-flush") {
            let answered = state.take_written();
            drop(state);
            self.log.complete(answered, &Ok(()));
        }
    }

    /// Answers the appends, or stops the log with what went wrong. The writer is still out.
    pub(crate) fn finish(self) -> (Arc<OpenLog>, Finished) {
        let Self { log, mut writer, entries, flush, result, .. } = self;
        if let Err(error) = result {
            writer.discard_unsynced();
            log.fail(error);
        } else {
            let answered = {
                let mut state = log.lock();
                if flush {
                    state.flushed();
                }
                state.take_written()
            };
            log.complete(answered, &Ok(()));
        }
        let wrote = entries.last().map(|last| last.entry.index + 1);
        (log, Finished { writer, wrote, flush })
    }
}

/// What a log's part of a round leaves once its appends are answered.
pub(crate) struct Finished {
    writer: Box<Writer>,
    /// Index after the last entry that was written, `None` if there was none.
    pub(crate) wrote: Option<u64>,
    flush: bool,
}

impl Finished {
    /// Gives the writer back to its log. Returns the state, still locked, and what is to be done for the log.
    pub(crate) fn give_back(self, log: &OpenLog) -> (MutexGuard<'_, LogState>, AfterRound) {
        let mut state = log.lock();
        let after = state.end_round(self.writer, self.wrote.is_some(), self.flush, !log.is_fsync());
        (state, after)
    }
}

/// Makes everything that the jobs wrote durable.
pub(crate) fn barrier(context: &StoreContext, pool: &FlushPool, jobs: &mut [Job]) {
    let mut targets = Vec::new();
    let mut owners = Vec::new();
    for (at, job) in jobs.iter_mut().enumerate() {
        if !job.flush || job.result.is_err() {
            continue;
        }
        for (file, path) in job.writer.take_unsynced() {
            owners.push((at, path));
            targets.push(Target::File(file));
        }
        if job.writer.take_names_unsynced() && !crate::mutant!("directory-not-synced") {
            let dir = &job.log.dir;
            let mut sync_dir = |path: &Path| {
                owners.push((at, path.to_owned()));
                targets.push(Target::Dir(dir.disk().clone(), path.to_owned()));
            };
            sync_dir(dir.path());
            if !dir.is_durable() {
                sync_dir(dir.parent());
            }
        }
    }
    if targets.is_empty() {
        return;
    }
    let config = &context.config;
    let started = config.clock.monotonic();
    let volume = context.data.volume();
    let wanted = match config.barrier {
        Barrier::Fdatasync => false,
        Barrier::Syncfs => targets.len() > INLINE_FLUSHES,
        Barrier::Auto => volume.is_dedicated() && targets.len() >= config.syncfs_threshold,
    };
    // An append may be answered only when it is known that nothing of it failed to be written.
    let whole_volume = wanted && volume.reports_write_errors();
    let metrics = &context.metrics;
    if whole_volume {
        metrics.flushes.add(1);
        if let Err(error) = volume.sync() {
            let error = flush_failed(context.data.path(), error);
            for (at, _) in owners {
                jobs[at].result = Err(error.clone());
            }
            return;
        }
    } else {
        metrics.flushes.add(targets.len() as u64);
        let results = if targets.len() <= INLINE_FLUSHES {
            targets.iter().map(Target::flush).collect()
        } else {
            pool.flush(targets)
        };
        for ((at, path), result) in owners.into_iter().zip(results) {
            if let Err(error) = result {
                jobs[at].result = Err(flush_failed(&path, error));
            }
        }
    }
    metrics.record_flush(config.clock.monotonic().saturating_sub(started));
    for job in jobs.iter().filter(|job| job.flush && job.result.is_ok()) {
        job.log.dir.note_durable();
    }
}

/// A failed flush leaves unknown what is on disk, whatever its reason: never reported as a mere lack of space.
fn flush_failed(path: &Path, error: io::Error) -> LogError {
    LogError::Io { path: path.to_owned(), action: "flush to the disk", source: Arc::new(error) }
}
