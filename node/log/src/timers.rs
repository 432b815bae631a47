//! The timers of the flush scheduler, soonest first.
//!
//! A timer holds its log weakly: a log that was closed meanwhile is not kept, and its timer does nothing.
//!
//! Neighbours: `scheduler.rs` arms and fires them. Takes no lock.

use std::{
    cmp::{Ordering, Reverse},
    collections::BinaryHeap,
    sync::Weak,
    time::Duration,
};

use crate::open_log::OpenLog;

/// What is due.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum TimerKind {
    /// Write the log's durable mark.
    DurableMark,
    /// A log in memory mode is to be flushed.
    Flush,
    /// The journal may have gone idle.
    JournalMark,
}

/// Something that is due at a time of the store's clock.
pub(crate) struct Timer {
    at: Duration,
    pub(crate) kind: TimerKind,
    pub(crate) log: Weak<OpenLog>,
}

impl PartialEq for Timer {
    fn eq(&self, other: &Self) -> bool {
        self.at == other.at
    }
}
impl Eq for Timer {}
impl PartialOrd for Timer {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Timer {
    fn cmp(&self, other: &Self) -> Ordering {
        self.at.cmp(&other.at)
    }
}

/// The timers that are armed.
#[derive(Default)]
pub(crate) struct Timers {
    heap: BinaryHeap<Reverse<Timer>>,
}

impl Timers {
    pub(crate) fn arm(&mut self, at: Duration, kind: TimerKind, log: Weak<OpenLog>) {
        self.heap.push(Reverse(Timer { at, kind, log }));
    }

    /// When the next timer is due.
    pub(crate) fn next_due(&self) -> Option<Duration> {
        self.heap.peek().map(|Reverse(timer)| timer.at)
    }

    /// Takes a timer out that is due.
    pub(crate) fn pop_due(&mut self, now: Duration) -> Option<Timer> {
        if self.next_due()? > now {
            return None;
        }
        self.heap.pop().map(|Reverse(timer)| timer)
    }
}
