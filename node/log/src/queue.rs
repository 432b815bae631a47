//! The two queues of a store: logs that wait for a round of the flush scheduler, and segments that wait for the sealer.
//!
//! Invariants: the owner of an item queues it at most once at a time, so that neither queue grows beyond the logs and
//! segments that are open. A consumer sleeps only while its queue is empty. With `on_work` there is no consumer thread; the
//! callback wakes the thread that drives the store.
//!
//! Neighbours: `open_log.rs` fills both, `scheduler.rs` and `sealer.rs` empty them. Names no log: the items are a type
//! parameter.

use std::{collections::VecDeque, fmt, mem, time::Duration};

use parking_lot::{Condvar, Mutex};

use crate::{Clock, OnWork};

/// Work that is taken all at once, for the next round.
pub(crate) struct RoundQueue<T> {
    waiting: Mutex<Waiting<T>>,
    changed: Condvar,
    on_work: Option<OnWork>,
}

struct Waiting<T> {
    items: Vec<T>,
    /// The journal or the timers are to be looked at.
    wake: bool,
    stop: bool,
}

/// What [`RoundQueue::wait`] returns.
pub(crate) struct Gathered<T> {
    pub(crate) items: Vec<T>,
    /// The queue was stopped.
    pub(crate) stop: bool,
}

impl<T> fmt::Debug for RoundQueue<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RoundQueue").finish_non_exhaustive()
    }
}

impl<T> RoundQueue<T> {
    pub(crate) fn new(on_work: Option<OnWork>) -> Self {
        let waiting = Waiting { items: Vec::new(), wake: false, stop: false };
        Self { waiting: Mutex::new(waiting), changed: Condvar::new(), on_work }
    }

    fn notify(&self) {
        match &self.on_work {
            Some(on_work) => on_work(),
            None => drop(self.changed.notify_one()),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.lock().items.is_empty()
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.waiting.lock().stop
    }

    pub(crate) fn push(&self, item: T) {
        let mut waiting = self.waiting.lock();
        waiting.items.push(item);
        // The scheduler sleeps only on an empty queue.
        if waiting.items.len() == 1 {
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

    /// Takes what waits, without waiting.
    pub(crate) fn take(&self) -> Vec<T> {
        let mut waiting = self.waiting.lock();
        waiting.wake = false;
        mem::take(&mut waiting.items)
    }

    /// Waits for an item, a wake-up, the stop, or the time that `next_due` names, and takes what waits.
    pub(crate) fn wait(&self, clock: &dyn Clock, next_due: impl Fn() -> Option<Duration>) -> Gathered<T> {
        let mut waiting = self.waiting.lock();
        loop {
            if !waiting.items.is_empty() || waiting.wake || waiting.stop {
                waiting.wake = false;
                return Gathered { items: mem::take(&mut waiting.items), stop: waiting.stop };
            }
            match next_due() {
                None => self.changed.wait(&mut waiting),
                Some(due) => {
                    let now = clock.monotonic();
                    if due <= now {
                        return Gathered { items: Vec::new(), stop: false };
                    }
                    self.changed.wait_for(&mut waiting, due - now);
                }
            }
        }
    }
}

/// Work that is taken one by one, oldest first.
pub(crate) struct SealQueue<T> {
    waiting: Mutex<WaitingSeals<T>>,
    changed: Condvar,
    on_work: Option<OnWork>,
}

struct WaitingSeals<T> {
    items: VecDeque<T>,
    stop: bool,
}

/// What [`SealQueue::wait`] returns.
pub(crate) enum NextSeal<T> {
    Seal(T),
    /// The queue was stopped: the item is to be given up.
    GiveUp(T),
}

impl<T> fmt::Debug for SealQueue<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SealQueue").finish_non_exhaustive()
    }
}

impl<T> SealQueue<T> {
    pub(crate) fn new(on_work: Option<OnWork>) -> Self {
        let waiting = WaitingSeals { items: VecDeque::new(), stop: false };
        Self { waiting: Mutex::new(waiting), changed: Condvar::new(), on_work }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.lock().items.is_empty()
    }

    pub(crate) fn push(&self, item: T) {
        self.waiting.lock().items.push_back(item);
        match &self.on_work {
            Some(on_work) => on_work(),
            None => drop(self.changed.notify_one()),
        }
    }

    pub(crate) fn stop(&self) {
        self.waiting.lock().stop = true;
        self.changed.notify_all();
    }

    /// The oldest item, without waiting.
    pub(crate) fn pop(&self) -> Option<T> {
        self.waiting.lock().items.pop_front()
    }

    /// Waits for an item. `None`: stopped and empty.
    pub(crate) fn wait(&self) -> Option<NextSeal<T>> {
        let mut waiting = self.waiting.lock();
        while waiting.items.is_empty() && !waiting.stop {
            self.changed.wait(&mut waiting);
        }
        let stop = waiting.stop;
        let item = waiting.items.pop_front()?;
        Some(if stop { NextSeal::GiveUp(item) } else { NextSeal::Seal(item) })
    }

    /// Takes everything that waits.
    pub(crate) fn drain(&self) -> VecDeque<T> {
        mem::take(&mut self.waiting.lock().items)
    }
}
