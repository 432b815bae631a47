//! The flush scheduler: one thread that writes and flushes for every log of a store.
//!
//! Each round takes all logs with something to write and goes through four steps:
//!
//! ```text
//! journal (write, sync) -> write every log's entries -> one barrier for all -> answer every append
//! ```
//!
//! The next round gathers while this one is on the disk, so the number of flushes grows with rounds, not with appends. There
//! is no timer and no linger: a lone append on an idle log is written at once, by this thread, with no further hop.
//!
//! Promise: an append is answered `Ok` only after a barrier that began after its bytes were written. A failed write stops its
//! log; a failed barrier stops every log it covered; neither is tried again.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
    io,
    path::PathBuf,
    sync::{Arc, Weak},
    time::Duration,
};

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};

use crate::{
    Barrier, Durability, LogError, OnWork, StoredEntry,
    barrier::{FlushPool, Target},
    journal::{JournalFile, Space, engine_key},
    log::{LogInner, Piece, Writer},
    shared::Shared,
};

/// Files that the scheduler flushes itself rather than hand to the pool.
const INLINE_FLUSHES: usize = 2;

#[derive(Default)]
struct Waiting {
    logs: Vec<Arc<LogInner>>,
    wake: bool,
    stop: bool,
}

/// Logs that wait for the next round. Bounded by the logs that are open: each stands here once.
pub(crate) struct Queue {
    waiting: Mutex<Waiting>,
    changed: Condvar,
    on_work: Option<OnWork>,
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queue").finish_non_exhaustive()
    }
}

impl Queue {
    pub(crate) fn new(on_work: Option<OnWork>) -> Self {
        Self { waiting: Mutex::default(), changed: Condvar::new(), on_work }
    }

    fn notify(&self) {
        match &self.on_work {
            Some(on_work) => on_work(),
            None => drop(self.changed.notify_one()),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.lock().logs.is_empty()
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.waiting.lock().stop
    }

    pub(crate) fn push(&self, log: Arc<LogInner>) {
        let mut waiting = self.waiting.lock();
        waiting.logs.push(log);
        // The scheduler sleeps only on an empty queue.
        if waiting.logs.len() == 1 {
            drop(waiting);
            self.notify();
        }
    }

    /// Makes the scheduler look at journal and timers.
    pub(crate) fn wake(&self) {
        self.waiting.lock().wake = true;
        self.notify();
    }

    /// Makes the scheduler end once nothing is left to write.
    pub(crate) fn stop(&self) {
        self.waiting.lock().stop = true;
        self.changed.notify_one();
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum TimerKind {
    /// The log may have gone idle since its durable end was this: write its mark.
    IdleMark(u64),
    /// A log in memory mode is to be flushed.
    Flush,
    /// The journal may have gone idle.
    JournalMark,
}

struct Timer {
    at: Duration,
    kind: TimerKind,
    log: Weak<LogInner>,
}

impl PartialEq for Timer {
    fn eq(&self, other: &Self) -> bool {
        self.at == other.at
    }
}
impl Eq for Timer {}
impl PartialOrd for Timer {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Timer {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.at.cmp(&other.at)
    }
}

/// One log's part of a round.
struct Job {
    log: Arc<LogInner>,
    writer: Box<Writer>,
    entries: Vec<StoredEntry>,
    durable_next: u64,
    /// Goes through the barrier of this round.
    flush: bool,
    result: Result<(), LogError>,
}

/// The scheduler's own state; [`Scheduler::run`] is its thread.
pub(crate) struct Scheduler {
    shared: Arc<Shared>,
    journal: JournalFile,
    pool: FlushPool,
    timers: BinaryHeap<Reverse<Timer>>,
    journal_timer: bool,
    /// What is in the tail caches, oldest first: log, end of a run of entries.
    cached: VecDeque<(Weak<LogInner>, u64)>,
    /// Length of `cached` at which closed logs are swept out of it.
    sweep_at: usize,
}

/// Least length at which [`Scheduler::cached`] is swept.
const SWEEP_AT_LEAST: usize = 64;

impl Scheduler {
    pub(crate) fn new(shared: Arc<Shared>, journal: JournalFile) -> io::Result<Self> {
        let threads = if shared.is_driven() { 0 } else { shared.config.flush_threads };
        let pool = FlushPool::start(threads)?;
        Ok(Self {
            shared,
            journal,
            pool,
            timers: BinaryHeap::new(),
            journal_timer: false,
            cached: VecDeque::new(),
            sweep_at: SWEEP_AT_LEAST,
        })
    }

    /// The scheduler's thread.
    pub(crate) fn run(self) {
        // Best effort: unprivileged processes may not. A lone writer that starves holds everybody up.
        let _ = rustix::process::setpriority_process(None, -10);
        self.run_rounds();
    }

    /// Runs rounds until stopped and drained.
    pub(crate) fn run_rounds(mut self) {
        loop {
            let (logs, stop) = self.gather();
            let due = self.fire_timers();
            let idle = logs.is_empty() && !due;
            self.round(logs);
            self.evict();
            if stop && idle && !self.shared.journal.wanted().0 {
                self.flush_journal_at_end();
                return;
            }
        }
    }

    /// Runs one round if there is anything to do now. Returns whether there was.
    pub(crate) fn round_now(&mut self) -> bool {
        let logs = {
            let mut waiting = self.shared.queue.waiting.lock();
            waiting.wake = false;
            std::mem::take(&mut waiting.logs)
        };
        let fired = self.fire_timers();
        let (urgent, due) = self.shared.journal.wanted();
        let due = urgent || due.is_some_and(|due| due <= self.shared.config.clock.monotonic());
        if logs.is_empty() && !fired && !due {
            return false;
        }
        self.round(logs);
        self.evict();
        true
    }

    /// When the next timer is due.
    pub(crate) fn next_timer(&self) -> Option<Duration> {
        self.timers.peek().map(|Reverse(timer)| timer.at)
    }

    /// Waits until there is something to do.
    fn gather(&mut self) -> (Vec<Arc<LogInner>>, bool) {
        let queue = &self.shared.queue;
        let mut waiting = queue.waiting.lock();
        loop {
            if !waiting.logs.is_empty() || waiting.wake || waiting.stop {
                waiting.wake = false;
                return (std::mem::take(&mut waiting.logs), waiting.stop);
            }
            let (_, journal_due) = self.shared.journal.wanted();
            let timer_due = self.next_timer();
            match [journal_due, timer_due].into_iter().flatten().min() {
                None => queue.changed.wait(&mut waiting),
                Some(due) => {
                    let now = self.shared.config.clock.monotonic();
                    if due <= now {
                        return (Vec::new(), false);
                    }
                    queue.changed.wait_for(&mut waiting, due - now);
                }
            }
        }
    }

    fn arm(&mut self, delay: Duration, kind: TimerKind, log: Weak<LogInner>) {
        let at = self.shared.config.clock.monotonic() + delay;
        self.timers.push(Reverse(Timer { at, kind, log }));
    }

    /// Does what is due. Returns whether anything was.
    fn fire_timers(&mut self) -> bool {
        let now = self.shared.config.clock.monotonic();
        let mut fired = false;
        while self.timers.peek().is_some_and(|Reverse(timer)| timer.at <= now) {
            let Some(Reverse(timer)) = self.timers.pop() else { break };
            fired = true;
            match (timer.kind, timer.log.upgrade()) {
                (TimerKind::JournalMark, _) => {
                    self.journal_timer = false;
                    if self.journal.unconfirmed() {
                        self.journal.confirm(&self.shared.journal, now);
                    }
                }
                (TimerKind::IdleMark(seen), Some(log)) => self.mark_if_idle(&log, seen, now),
                (TimerKind::Flush, Some(log)) => {
                    let mut state = log.state.lock();
                    state.flush_armed = false;
                    state.sync_now = true;
                    log.enqueue(&mut state);
                }
                (_, None) => {}
            }
        }
        fired
    }

    /// Writes a log's durable end to the journal unless it moved since the timer was set.
    fn mark_if_idle(&mut self, log: &Arc<LogInner>, seen: u64, now: Duration) {
        let mut state = log.state.lock();
        state.mark_armed = false;
        if state.closed || state.failure.is_some() || state.durable_next <= state.marked {
            return;
        }
        let end = state.durable_next;
        if end != seen || state.changing {
            state.mark_armed = true;
            drop(state);
            self.arm(self.shared.config.idle_mark_delay, TimerKind::IdleMark(end), Arc::downgrade(log));
            return;
        }
        let value = Bytes::copy_from_slice(&end.to_le_bytes());
        let key = (log.id, Space::Engine, engine_key::DURABLE_MARK);
        // Lost if the journal is full or failed; the next time that the log goes idle brings it again.
        if self.shared.journal.put(key, Some(value), false, now, None).is_ok() {
            state.marked = end;
        }
    }

    fn round(&mut self, logs: Vec<Arc<LogInner>>) {
        let mut jobs: Vec<Job> = logs.iter().filter_map(Job::begin).collect();
        for job in jobs.iter_mut().filter(|job| job.writer.clean_mark && !job.entries.is_empty()) {
            // The mark goes on vouching for what is there, by itself.
            let id = job.log.id;
            let end = Bytes::copy_from_slice(&job.durable_next.to_le_bytes());
            let journal = &self.shared.journal;
            let put = |key, value| journal.put((id, Space::Engine, key), value, true, Duration::ZERO, None);
            job.result = put(engine_key::DURABLE_MARK, Some(end)).and_then(|_| put(engine_key::CLEAN, None)).map(drop);
        }
        let journal = self.flush_journal(jobs.is_empty());
        for job in &mut jobs {
            if let Err(error) = &journal
                && job.writer.clean_mark
                && !job.entries.is_empty()
                && job.result.is_ok()
            {
                job.result = Err(error.clone());
            }
            job.write();
        }
        self.barrier(&mut jobs);
        if !jobs.is_empty() {
            self.shared.metrics.flush_rounds.add(1);
        }
        for job in jobs {
            self.finish(job);
        }
    }

    /// Flushes the journal if something urgent waits or something lazy is due.
    fn flush_journal(&mut self, idle: bool) -> Result<(), LogError> {
        let (urgent, due) = self.shared.journal.wanted();
        let now = self.shared.config.clock.monotonic();
        if !urgent && due.is_none_or(|due| due > now) {
            return Ok(());
        }
        let retry_at = now + self.shared.config.journal_lazy_delay;
        let flushed = self.journal.flush(&self.shared.journal, retry_at);
        match flushed {
            Ok(false) => Ok(()),
            Ok(true) => {
                self.shared.metrics.journal_flushes.add(1);
                if self.journal.unconfirmed() && !self.journal_timer {
                    self.journal_timer = true;
                    self.arm(self.shared.config.idle_mark_delay, TimerKind::JournalMark, Weak::new());
                }
                // Rewriting takes a while: not while appends wait for this round, unless they always do.
                if (idle || self.journal.overgrown())
                    && let Err(error) = self.journal.rewrite_if_due(&self.shared.journal)
                {
                    tracing::warn!(%error, "cannot rewrite the journal; it goes on growing");
                }
                Ok(())
            }
            Err(error) => {
                if !matches!(error, LogError::NoSpace { .. }) {
                    self.stop_all(&error);
                }
                Err(error)
            }
        }
    }

    /// Without a journal no vote and no mark can be kept: every log stops.
    fn stop_all(&self, error: &LogError) {
        let mut logs: Vec<_> = self.shared.open.lock().values().cloned().collect();
        logs.sort_unstable_by_key(|log| log.id);
        for log in logs {
            log.fail(error.clone());
        }
    }

    fn flush_journal_at_end(&mut self) {
        let journal = &self.shared.journal;
        let now = self.shared.config.clock.monotonic();
        let flush = |file: &mut JournalFile| {
            if let Err(error) = file.flush(journal, now) {
                tracing::warn!(%error, "cannot flush the journal at the end");
            }
        };
        flush(&mut self.journal);
        if self.journal.unconfirmed() && journal.failure().is_none() {
            self.journal.confirm(journal, now);
            flush(&mut self.journal);
        }
        // A full disk may keep records queued: they are given up then.
        for _ in 0..3 {
            if journal.close_if_empty() {
                return;
            }
            flush(&mut self.journal);
        }
    }

    /// Makes everything that the jobs wrote durable.
    fn barrier(&mut self, jobs: &mut [Job]) {
        let mut targets = Vec::new();
        let mut owners = Vec::new();
        for (at, job) in jobs.iter_mut().enumerate() {
            if !job.flush || job.result.is_err() {
                continue;
            }
            let files = job.writer.unsynced.drain(..).map(|(file, path)| (Target::File(file), path));
            let mut found: Vec<(Target, PathBuf)> = files.collect();
            if std::mem::take(&mut job.writer.names_unsynced) {
                found.push((Target::Dir(self.shared.disk.clone(), job.log.dir.clone()), job.log.dir.clone()));
                if !job.log.dir_durable.load(std::sync::atomic::Ordering::Acquire) {
                    let logs = self.shared.logs_dir();
                    found.push((Target::Dir(self.shared.disk.clone(), logs.clone()), logs));
                }
            }
            owners.extend(found.iter().map(|(_, path)| (at, path.clone())));
            targets.extend(found.into_iter().map(|(target, _)| target));
        }
        if targets.is_empty() {
            return;
        }
        let clock = &self.shared.config.clock;
        let started = clock.monotonic();
        let whole_volume = match self.shared.config.barrier {
            Barrier::Fdatasync => false,
            Barrier::Syncfs => targets.len() > INLINE_FLUSHES,
            Barrier::Auto => self.shared.volume.is_dedicated() && targets.len() >= self.shared.config.syncfs_threshold,
        };
        let metrics = &self.shared.metrics;
        if whole_volume {
            metrics.flushes.add(1);
            if let Err(error) = self.shared.volume.sync() {
                let error = flush_failed(&self.shared.dir, error);
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
                self.pool.flush(targets)
            };
            for ((at, path), result) in owners.into_iter().zip(results) {
                if let Err(error) = result {
                    jobs[at].result = Err(flush_failed(&path, error));
                }
            }
        }
        metrics.record_flush(clock.monotonic().saturating_sub(started));
        for job in jobs.iter().filter(|job| job.flush && job.result.is_ok()) {
            job.log.dir_durable.store(true, std::sync::atomic::Ordering::Release);
        }
    }

    /// Answers a job's appends and gives the writer back.
    fn finish(&mut self, job: Job) {
        let Job { log, mut writer, entries, flush, result, .. } = job;
        if let Err(error) = result {
            writer.unsynced.clear();
            log.fail(error);
        } else {
            let answered = {
                let mut state = log.state.lock();
                if flush {
                    state.durable_next = state.written_next;
                }
                let next = state.written_next;
                state.take_answered(next)
            };
            log.answer(answered, &Ok(()));
        }
        let wrote = entries.last().map(|last| last.entry.index + 1);
        if let Some(next) = wrote {
            self.cached.push_back((Arc::downgrade(&log), next));
        }

        let mut state = log.state.lock();
        let unflushed = !writer.unsynced.is_empty();
        state.writer = Some(writer);
        let mut timers = Vec::new();
        if state.failure.is_none() {
            if flush {
                state.sync_now = false;
            }
            if wrote.is_some() {
                log.request_seals(&mut state);
            }
            if state.written_next < state.next_index {
                log.enqueue(&mut state);
            }
            if let Durability::Memory { flush_interval } = log.config.durability
                && unflushed
                && !state.flush_armed
            {
                state.flush_armed = true;
                timers.push((flush_interval, TimerKind::Flush));
            }
            if !state.mark_armed && state.durable_next > state.marked {
                state.mark_armed = true;
                timers.push((self.shared.config.idle_mark_delay, TimerKind::IdleMark(state.durable_next)));
            }
        }
        for (delay, kind) in timers {
            self.arm(delay, kind, Arc::downgrade(&log));
        }
        log.rest_if_done(state);
    }

    /// Drops the oldest cached entries until the cache fits its budget. What is not safe yet stays.
    fn evict(&mut self) {
        // Logs that were closed took their entries along. A weak handle keeps their memory, so that they may not stay here.
        if self.cached.len() >= self.sweep_at {
            self.cached.retain(|(log, _)| log.strong_count() > 0);
            self.cached.shrink_to(self.cached.len() * 2);
            self.sweep_at = (self.cached.len() * 2).max(SWEEP_AT_LEAST);
        }
        let metrics = &self.shared.metrics;
        while metrics.cache_bytes.get() > self.shared.config.tail_cache_bytes {
            let Some((log, next)) = self.cached.pop_front() else { return };
            if let Some(log) = log.upgrade() {
                let mut state = log.state.lock();
                let safe = if log.is_fsync() { state.durable_next } else { state.written_next };
                let freed = state.forget_below(next.min(safe));
                metrics.cache_bytes.sub(freed);
            }
        }
    }
}

/// A failed flush leaves unknown what is on disk, whatever its reason: never reported as a mere lack of space.
fn flush_failed(path: &std::path::Path, error: io::Error) -> LogError {
    LogError::Io { path: path.to_owned(), action: "flush to the disk", source: Arc::new(error) }
}

impl Job {
    /// Takes what a log has to write. `None` while somebody else holds its writer; it comes back to the queue then.
    fn begin(log: &Arc<LogInner>) -> Option<Self> {
        let mut state = log.state.lock();
        state.queued = false;
        let writer = state.writer.take()?;
        if state.failure.is_some() {
            state.writer = Some(writer);
            drop(state);
            log.changed.notify_all();
            return None;
        }
        let written = (state.written_next - state.tail_first()) as usize;
        let entries = state.tail.range(written..).cloned().collect();
        let flush = log.is_fsync() || state.sync_now;
        let durable_next = state.durable_next;
        Some(Self { log: log.clone(), writer, entries, durable_next, flush, result: Ok(()) })
    }

    /// Writes the entries to the page cache, and answers appends that need no more than that.
    fn write(&mut self) {
        if self.result.is_err() || self.entries.is_empty() {
            return;
        }
        self.writer.clean_mark = false;
        let context = self.log.write_context(self.durable_next);
        let pieces: Vec<Piece> = match self.writer.write(&context, &self.entries) {
            Ok(pieces) => pieces,
            Err(error) => {
                self.result = Err(error);
                return;
            }
        };
        let mut state = self.log.state.lock();
        state.apply_pieces(pieces);
        if !self.log.is_fsync() {
            let next = state.written_next;
            let answered = state.take_answered(next);
            drop(state);
            self.log.answer(answered, &Ok(()));
        }
    }
}
