//! Which threads do a store's work, and how a caller waits for it: two threads of the store, or the callers' own.
//!
//! With [`crate::Threads::Own`] the scheduler and the sealer have a thread each. With [`crate::Threads::Driven`] there are none,
//! for deterministic simulation: what happens, and in which order, depends on nothing but the calls. [`crate::Store::drive`]
//! does a step; calls that would wait for the threads do steps themselves until they have what they wait for.
//!
//! Invariant: the driven scheduler is *taken out* while it runs, so that a callback which ends up here again finds nothing to
//! run instead of a lock that it holds itself.
//!
//! Neighbours: everything above (`log/`, `store.rs`) waits through here; scheduler and sealer below know nothing of it.

use std::{
    io,
    sync::{
        Arc,
        mpsc::{RecvTimeoutError, TryRecvError},
    },
    thread::JoinHandle,
    time::Duration,
};

use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};

use crate::{
    LogError, LogId,
    context::StoreContext,
    done::{Answer, waiter},
    journal::{JournalFile, Space},
    open_log::{OpenLog, Queues},
    open_logs::OpenLogs,
    scheduler::Scheduler,
    sealer::Sealer,
    state::LogState,
};

/// How long to wait while another thread drives the same store.
const DRIVEN_ELSEWHERE: Duration = Duration::from_millis(1);

/// The scheduler and the sealer of a store, and the threads that run them.
pub(crate) struct Workers {
    pub(crate) context: Arc<StoreContext>,
    pub(crate) queues: Arc<Queues>,
    pub(crate) logs: Arc<OpenLogs>,
    sealer: Sealer,
    driven: bool,
    /// The scheduler of a driven store while no caller runs it. Empty in a store with threads, and after the end.
    scheduler: Mutex<Option<Box<Scheduler>>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl std::fmt::Debug for Workers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Workers").field("context", &self.context).field("driven", &self.driven).finish_non_exhaustive()
    }
}

impl Workers {
    /// Workers that do nothing before [`Self::start`].
    pub(crate) fn new(context: Arc<StoreContext>, queues: Arc<Queues>, logs: Arc<OpenLogs>) -> Self {
        Self {
            sealer: Sealer::new(queues.clone(), logs.clone()),
            driven: context.config.threads.is_driven(),
            context,
            queues,
            logs,
            scheduler: Mutex::new(None),
            threads: Mutex::default(),
        }
    }

    /// Starts the threads, unless the store is driven.
    pub(crate) fn start(&self, journal: JournalFile) -> io::Result<()> {
        let flush_threads = if self.driven { 0 } else { self.context.config.flush_threads };
        let (context, queues, logs) = (self.context.clone(), self.queues.clone(), self.logs.clone());
        let scheduler = Scheduler::new(context, queues, logs, journal, flush_threads)?;
        if self.driven {
            *self.scheduler.lock() = Some(Box::new(scheduler));
            return Ok(());
        }
        self.spawn("log-writer", move || scheduler.run())?;
        let sealer = self.sealer.clone();
        self.spawn("log-sealer", move || sealer.run())
    }

    fn spawn(&self, name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(run)?;
        self.threads.lock().push(thread);
        Ok(())
    }

    /// Ends scheduler and sealer, once what is queued is written; seals that wait are given up.
    pub(crate) fn stop(&self) {
        self.queues.seals.stop();
        self.queues.rounds.stop();
        if self.driven {
            self.sealer.give_up();
            // If the scheduler is running further up the stack it ends there.
            let scheduler = self.scheduler.lock().take();
            if let Some(scheduler) = scheduler {
                scheduler.run_rounds();
            }
        }
        let own = std::thread::current().id();
        for thread in self.threads.lock().drain(..) {
            // The last handle may be dropped by a `done`, on one of these threads.
            if thread.thread().id() != own {
                let _ = thread.join();
            }
        }
    }

    pub(crate) fn is_driven(&self) -> bool {
        self.driven
    }

    /// Runs one round of the scheduler. Returns whether there was anything to do.
    fn drive_round(&self) -> bool {
        let Some(mut scheduler) = self.scheduler.lock().take() else { return false };
        let worked = scheduler.round_now();
        let mut home = self.scheduler.lock();
        if self.queues.rounds.is_stopping() {
            drop(home);
            scheduler.run_rounds();
        } else {
            *home = Some(scheduler);
        }
        worked
    }

    /// Runs one round of the scheduler and seals one segment. Returns whether there was anything to do.
    pub(crate) fn drive(&self) -> bool {
        let worked = self.drive_round();
        self.sealer.seal_one() || worked
    }

    /// When, by the store's clock, something will be due without any further call; not before now if something is already.
    pub(crate) fn next_due(&self) -> Option<Duration> {
        let (urgent, journal_due) = self.context.journal.wanted();
        let timer_due = self.scheduler.lock().as_ref().and_then(|scheduler| scheduler.next_timer());
        let waiting = urgent || !self.queues.rounds.is_empty() || !self.queues.seals.is_empty();
        let now = waiting.then(|| self.context.config.clock.monotonic());
        [now, journal_due, timer_due].into_iter().flatten().min()
    }

    /// Waits for the scheduler's answer; a driven store works until it is there. Seals nothing: the caller may hold a `seal_lock`.
    pub(crate) fn wait_for(&self, answer: &Answer) -> Result<(), LogError> {
        if !self.driven {
            return answer.recv().unwrap_or(Err(LogError::Closed));
        }
        loop {
            match answer.try_recv() {
                Ok(result) => return result,
                Err(TryRecvError::Disconnected) => return Err(LogError::Closed),
                Err(TryRecvError::Empty) if self.drive_round() => {}
                Err(TryRecvError::Empty) => match answer.recv_timeout(DRIVEN_ELSEWHERE) {
                    Ok(result) => return result,
                    Err(RecvTimeoutError::Disconnected) => return Err(LogError::Closed),
                    Err(RecvTimeoutError::Timeout) => {}
                },
            }
        }
    }

    /// Waits until the log's state may have changed; a driven store works meanwhile. May return without a change.
    pub(crate) fn wait_for_change(&self, log: &OpenLog, state: &mut MutexGuard<'_, LogState>) {
        if !self.driven {
            log.wait(state);
        } else if !MutexGuard::unlocked(state, || self.drive()) {
            log.wait_for(state, DRIVEN_ELSEWHERE);
        }
    }

    /// Puts or removes a key of the engine and waits until that is durable.
    pub(crate) fn put_and_wait(&self, id: LogId, key: u8, value: Option<Bytes>) -> Result<(), LogError> {
        let (done, answer) = waiter();
        let now = self.context.config.clock.monotonic();
        self.context.journal.put((id, Space::Engine, key), value, true, now, Some(done))?;
        self.queues.rounds.wake();
        self.wait_for(&answer)
    }
}
