//! Bytes being served, all connections of the node together, under one limit.
//!
//! Invariants:
//! - `used` is the sum of what all live [`Ticket`]s and [`Hold`]s have taken; dropping one gives its bytes back.
//! - Taking never waits: over the limit the request is refused with OVERLOADED. Waiting for room while holding bytes
//!   could leave everybody waiting.
//!
//! What is counted: request bodies as they arrive until the request is answered, and what reads fetched until the
//! client has taken it. What HTTP/2 buffers before a handler reads it comes on top and is bounded by the connection
//! window (see `connection.rs`).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::broker::{BrokerError, Reason};

/// The node's budget. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Budget(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    used: AtomicUsize,
    max: usize,
}

impl Budget {
    pub(crate) fn new(max: usize) -> Self {
        Self(Arc::new(Inner { used: AtomicUsize::new(0), max }))
    }

    /// Bytes taken now.
    pub(crate) fn used(&self) -> usize {
        self.0.used.load(Ordering::Relaxed)
    }

    /// Whether a stream should take on more work: three quarters of the limit are the point where streams stop reading
    /// ahead, which leaves the last quarter to requests that cannot be put off.
    pub(crate) fn has_room(&self) -> bool {
        self.used() < self.0.max - self.0.max / 4
    }

    /// Takes bytes for as long as the answer lives.
    ///
    /// # Errors
    /// OVERLOADED when the limit would be passed.
    pub(crate) fn hold(&self, bytes: usize) -> Result<Hold, BrokerError> {
        self.take(bytes)?;
        Ok(Hold { budget: self.clone(), bytes })
    }

    /// An empty ticket, which takes bytes as they come.
    pub(crate) fn ticket(&self) -> Arc<Ticket> {
        Arc::new(Ticket { budget: self.clone(), held: AtomicUsize::new(0) })
    }

    fn take(&self, bytes: usize) -> Result<(), BrokerError> {
        let max = self.0.max;
        self.0
            .used
            .try_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                used.checked_add(bytes).filter(|total| *total <= max)
            })
            .map(drop)
            .map_err(|used| {
                let message = format!(
                    "limits.in-flight-bytes-max: {used} bytes are being served and {bytes} more would pass {max}: \
                     try again later"
                );
                BrokerError::new(Reason::Overloaded, message).with("limit", max)
            })
    }

    fn give_back(&self, bytes: usize) {
        self.0.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// A fixed number of bytes.
#[derive(Debug)]
pub(crate) struct Hold {
    budget: Budget,
    bytes: usize,
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.budget.give_back(self.bytes);
    }
}

/// The bytes of one request as they arrive.
#[derive(Debug)]
pub(crate) struct Ticket {
    budget: Budget,
    held: AtomicUsize,
}

impl Ticket {
    /// # Errors
    /// OVERLOADED when the limit would be passed.
    pub(crate) fn take(&self, bytes: usize) -> Result<(), BrokerError> {
        self.budget.take(bytes)?;
        self.held.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }

    /// Gives back bytes of a part that is done, at most what is held.
    pub(crate) fn release(&self, bytes: usize) {
        let given = self.held.update(Ordering::Relaxed, Ordering::Relaxed, |held| held.saturating_sub(bytes));
        self.budget.give_back(given.min(bytes));
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.budget.give_back(*self.held.get_mut());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_holds_and_everything_taken_comes_back() {
        let budget = Budget::new(100);
        let ticket = budget.ticket();
        ticket.take(60).unwrap();
        let hold = budget.hold(40).unwrap();
        assert!(!budget.has_room());
        let refused = ticket.take(1).unwrap_err();
        assert_eq!(refused.reason, Reason::Overloaded);
        assert_eq!(refused.value("limit"), Some("100"));
        ticket.release(50);
        assert_eq!(budget.used(), 50);
        ticket.release(1000);
        assert_eq!(budget.used(), 40);
        drop(ticket);
        drop(hold);
        assert_eq!(budget.used(), 0);
        assert!(budget.hold(usize::MAX).is_err());
    }
}
