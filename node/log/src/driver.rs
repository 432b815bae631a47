//! A store without threads: its rounds and seals run on the thread of whoever calls.
//!
//! For deterministic simulation: what happens, and in which order, depends on nothing but the calls. [`crate::Store::drive`] does a
//! step; calls that would wait for the store's threads do steps themselves until they have what they wait for.
//!
//! The scheduler is *taken out* while it runs, so that a callback which ends up here again finds nothing to run instead of a
//! lock that it holds itself.

use std::{
    sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError},
    time::Duration,
};

use parking_lot::Mutex;

use crate::{LogError, scheduler::Scheduler, shared::Shared};

/// How long to wait for somebody else who drives the same store just now.
pub(crate) const OTHERS: Duration = Duration::from_millis(1);

/// Holds the scheduler of a driven store while nobody runs it. Empty in a store with threads, and after the end.
#[derive(Default)]
pub(crate) struct Driver {
    scheduler: Mutex<Option<Box<Scheduler>>>,
}

impl std::fmt::Debug for Driver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Driver").finish_non_exhaustive()
    }
}

impl Driver {
    pub(crate) fn start(&self, scheduler: Scheduler) {
        *self.scheduler.lock() = Some(Box::new(scheduler));
    }

    /// Ends the scheduler, once the queue was told to stop. If it is running further up the stack it ends there.
    pub(crate) fn stop(&self) {
        let scheduler = self.scheduler.lock().take();
        if let Some(scheduler) = scheduler {
            scheduler.run_rounds();
        }
    }
}

impl Shared {
    pub(crate) fn is_driven(&self) -> bool {
        self.config.threads.is_driven()
    }

    /// Runs one round of the scheduler. Returns whether there was anything to do.
    pub(crate) fn drive_round(&self) -> bool {
        let Some(mut scheduler) = self.driver.scheduler.lock().take() else { return false };
        let worked = scheduler.round_now();
        let mut home = self.driver.scheduler.lock();
        if self.queue.is_stopping() {
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
        self.sealer.drive(self) || worked
    }

    /// When, by the store's clock, something will be due without any further call; not before now if something is already.
    pub(crate) fn next_due(&self) -> Option<Duration> {
        let (urgent, journal_due) = self.journal.wanted();
        let timer_due = self.driver.scheduler.lock().as_ref().and_then(|scheduler| scheduler.next_timer());
        let waiting = urgent || !self.queue.is_empty() || !self.sealer.is_empty();
        let now = waiting.then(|| self.config.clock.monotonic());
        [now, journal_due, timer_due].into_iter().flatten().min()
    }

    /// Waits for the scheduler's answer, or works until it is there. Seals nothing: the caller may hold a `seal_lock`.
    pub(crate) fn wait_for(&self, answer: &Receiver<Result<(), LogError>>) -> Result<(), LogError> {
        if !self.is_driven() {
            return answer.recv().unwrap_or(Err(LogError::Closed));
        }
        loop {
            match answer.try_recv() {
                Ok(result) => return result,
                Err(TryRecvError::Disconnected) => return Err(LogError::Closed),
                Err(TryRecvError::Empty) if self.drive_round() => {}
                Err(TryRecvError::Empty) => match answer.recv_timeout(OTHERS) {
                    Ok(result) => return result,
                    Err(RecvTimeoutError::Disconnected) => return Err(LogError::Closed),
                    Err(RecvTimeoutError::Timeout) => {}
                },
            }
        }
    }
}
