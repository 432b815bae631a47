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
//! Promise: a round's journal records are durable before anything that the round writes to segments. What an append may rely
//! on is in `round.rs`.
//!
//! Neighbours: `workers.rs` runs the scheduler, on its own thread or step by step. It owns the journal's file and the timers;
//! logs reach it through the queue. Names no public handle and nothing that waits for it.

use std::{
    collections::VecDeque,
    io,
    sync::{Arc, Weak},
    time::Duration,
};

use crate::{
    Durability, LogError,
    barrier::FlushPool,
    context::StoreContext,
    journal::{JournalFile, Space, engine_key},
    marks::durable_mark,
    open_log::{OpenLog, Queues},
    open_logs::OpenLogs,
    round::{Job, barrier},
    state::MarkDue,
    timers::{TimerKind, Timers},
};

/// The scheduler's own state; [`Scheduler::run`] is its thread.
pub(crate) struct Scheduler {
    context: Arc<StoreContext>,
    queues: Arc<Queues>,
    logs: Arc<OpenLogs>,
    journal: JournalFile,
    pool: FlushPool,
    timers: Timers,
    journal_timer: bool,
    /// What is in memory, oldest first: log, end of a run of entries.
    cached: VecDeque<(Weak<OpenLog>, u64)>,
    /// Length of `cached` at which closed logs are swept out of it.
    sweep_at: usize,
}

/// Least length at which [`Scheduler::cached`] is swept.
const SWEEP_AT_LEAST: usize = 64;

impl Scheduler {
    /// A scheduler that flushes many files with `flush_threads` threads beside its own.
    pub(crate) fn new(
        context: Arc<StoreContext>,
        queues: Arc<Queues>,
        logs: Arc<OpenLogs>,
        journal: JournalFile,
        flush_threads: usize,
    ) -> io::Result<Self> {
        Ok(Self {
            context,
            queues,
            logs,
            journal,
            pool: FlushPool::start(flush_threads)?,
            timers: Timers::default(),
            journal_timer: false,
            cached: VecDeque::new(),
            sweep_at: SWEEP_AT_LEAST,
        })
    }

    /// The scheduler's thread.
    pub(crate) fn run(self) {
        // Best effort: unprivileged processes may not. A writer thread that gets no CPU delays every append of the store.
        let _ = rustix::process::setpriority_process(None, -10);
        self.run_rounds();
    }

    /// Runs rounds until stopped and drained.
    pub(crate) fn run_rounds(mut self) {
        loop {
            let next_due = || [self.context.journal.wanted().1, self.next_timer()].into_iter().flatten().min();
            let gathered = self.queues.rounds.wait(&*self.context.config.clock, next_due);
            let due = self.fire_timers();
            let idle = gathered.items.is_empty() && !due;
            self.round(gathered.items);
            self.evict();
            if gathered.stop && idle && !self.context.journal.wanted().0 {
                self.flush_journal_at_end();
                return;
            }
        }
    }

    /// Runs one round if there is anything to do now. Returns whether there was.
    pub(crate) fn round_now(&mut self) -> bool {
        let logs = self.queues.rounds.take();
        let fired = self.fire_timers();
        let (urgent, due) = self.context.journal.wanted();
        let due = urgent || due.is_some_and(|due| due <= self.now());
        if logs.is_empty() && !fired && !due {
            return false;
        }
        self.round(logs);
        self.evict();
        true
    }

    /// When the next timer is due.
    pub(crate) fn next_timer(&self) -> Option<Duration> {
        self.timers.next_due()
    }

    fn now(&self) -> Duration {
        self.context.config.clock.monotonic()
    }

    fn arm(&mut self, delay: Duration, kind: TimerKind, log: Weak<OpenLog>) {
        self.timers.arm(self.now() + delay, kind, log);
    }

    /// Does what is due. Returns whether anything was.
    fn fire_timers(&mut self) -> bool {
        let now = self.now();
        let mut fired = false;
        while let Some(timer) = self.timers.pop_due(now) {
            fired = true;
            match (timer.kind, timer.log.upgrade()) {
                (TimerKind::JournalMark, _) => {
                    self.journal_timer = false;
                    if self.journal.unconfirmed() {
                        self.journal.confirm(&self.context.journal, now);
                    }
                }
                (TimerKind::DurableMark, Some(log)) => self.mark(&log, now),
                (TimerKind::Flush, Some(log)) => {
                    let mut state = log.lock();
                    state.flush_timer_fired();
                    log.enqueue(&mut state);
                }
                (_, None) => {}
            }
        }
        fired
    }

    /// Puts a log's durable end into the journal, which this round flushes. The timers of all logs fire at the same times, so that
    /// their marks share a flush.
    fn mark(&mut self, log: &Arc<OpenLog>, now: Duration) {
        let mut state = log.lock();
        match state.mark_timer_fired() {
            _ if crate::mutant!("mark-never-written") => {}
            MarkDue::Nothing => {}
            MarkDue::Later => {
                drop(state);
                self.arm_mark(log);
            }
            MarkDue::Write(end) => {
                let key = (log.id(), Space::Engine, engine_key::DURABLE_MARK);
                // Lost if the journal is full or failed; the next round of the log arms the timer again.
                if self.context.journal.put(key, Some(durable_mark(end)), false, now, None).is_ok() {
                    state.mark_put(end);
                }
            }
        }
    }

    fn arm_mark(&mut self, log: &Arc<OpenLog>) {
        let at = self.context.config.next_mark();
        self.timers.arm(at, TimerKind::DurableMark, Arc::downgrade(log));
    }

    fn round(&mut self, logs: Vec<Arc<OpenLog>>) {
        self.context.metrics.round_begins(self.now());
        let mut jobs: Vec<Job> = logs.iter().filter_map(Job::begin).collect();
        for job in &mut jobs {
            self.remove_clean_mark(job);
        }
        let journal = self.flush_journal(jobs.is_empty());
        for job in &mut jobs {
            if let Err(error) = &journal
                && job.clean_mark_end().is_some()
            {
                job.fail(error.clone());
            }
            job.write();
        }
        barrier(&self.context, &self.pool, &mut jobs);
        self.context.metrics.round_ended();
        if !jobs.is_empty() {
            self.context.metrics.flush_rounds.add(1);
        }
        for job in jobs {
            self.finish(job);
        }
    }

    /// Queues the removal of a log's clean mark before the log is written to, with a durable mark for the entries on disk.
    fn remove_clean_mark(&self, job: &mut Job) {
        let Some(end) = job.clean_mark_end() else { return };
        let id = job.log.id();
        let journal = &self.context.journal;
        let put = |key, value| journal.put((id, Space::Engine, key), value, true, Duration::ZERO, None);
        let marked = put(engine_key::DURABLE_MARK, Some(durable_mark(end))).and_then(|_| put(engine_key::CLEAN, None));
        if let Err(error) = marked {
            job.fail(error);
        }
    }

    /// Flushes the journal if something urgent waits or something lazy is due.
    fn flush_journal(&mut self, idle: bool) -> Result<(), LogError> {
        let (urgent, due) = self.context.journal.wanted();
        let now = self.now();
        if !urgent && due.is_none_or(|due| due > now) {
            return Ok(());
        }
        let retry_at = now + self.context.config.journal_lazy_delay;
        let flushed = self.journal.flush(&self.context.journal, retry_at);
        match flushed {
            Ok(false) => Ok(()),
            Ok(true) => {
                self.context.metrics.journal_flushes.add(1);
                if self.journal.unconfirmed() && !self.journal_timer {
                    self.journal_timer = true;
                    self.arm(self.context.config.idle_mark_delay, TimerKind::JournalMark, Weak::new());
                }
                // Rewriting takes a while: not while appends wait for this round, unless they always do.
                if idle || self.journal.overgrown() {
                    let rewritten = self.journal.rewrite_if_due(&self.context.journal);
                    return rewritten.inspect_err(|error| self.stop_all(error));
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

    /// Stops every log: without a journal no vote and no mark can be kept.
    fn stop_all(&self, error: &LogError) {
        for log in self.logs.all() {
            log.fail(error.clone());
        }
    }

    fn flush_journal_at_end(&mut self) {
        let journal = &self.context.journal;
        let now = self.now();
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
                break;
            }
            flush(&mut self.journal);
        }
        if matches!(journal.failure(), None | Some(LogError::Closed))
            && let Err(error) = self.journal.note_end()
        {
            tracing::warn!(%error, "cannot note how far the journal is on disk");
        }
    }

    /// Answers a job's appends and gives the writer back.
    fn finish(&mut self, job: Job) {
        let (log, finished) = job.finish();
        if let Some(next) = finished.wrote {
            self.cached.push_back((Arc::downgrade(&log), next));
        }
        let (mut state, after) = finished.give_back(&log);
        log.push_seals(after.seals);
        if after.more {
            log.enqueue(&mut state);
        }
        if let Durability::Memory { flush_interval } = log.durability()
            && after.arm_flush
        {
            self.arm(flush_interval, TimerKind::Flush, Arc::downgrade(&log));
        }
        if after.arm_mark {
            self.arm_mark(&log);
        }
        self.logs.remove_if_idle(&log, state);
    }

    /// Drops the oldest cached entries until the cache fits its budget. What is not safe yet stays.
    fn evict(&mut self) {
        // Logs that were closed took their entries along. A weak handle keeps their memory, so that they may not stay here.
        if self.cached.len() >= self.sweep_at {
            self.cached.retain(|(log, _)| log.strong_count() > 0);
            self.cached.shrink_to(self.cached.len() * 2);
            self.sweep_at = (self.cached.len() * 2).max(SWEEP_AT_LEAST);
        }
        while self.context.metrics.cache_bytes.get() > self.context.config.tail_cache_bytes {
            let Some((log, next)) = self.cached.pop_front() else { return };
            if let Some(log) = log.upgrade() {
                let freed = log.lock().evict(next, log.is_fsync());
                log.count_freed(freed);
            }
        }
    }
}
