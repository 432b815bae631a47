//! Bytes being served, under the limits of the node, of one principal and of one connection.
//!
//! Invariants:
//! - `used` is the sum of what all live [`Ticket`]s and [`Hold`]s have taken; dropping one gives its bytes back.
//! - What is taken of a connection's share is taken of its principal's and of the node's, too, or of none.
//! - Taking never waits: over the limit the request is refused with OVERLOADED. Waiting for room while holding bytes
//!   could leave everybody waiting.
//!
//! What is counted: request bodies as they arrive until the request is answered, and what reads fetched until the
//! client has taken it. What HTTP/2 buffers before a handler reads it comes on top and is bounded by the connection
//! window (see `connection.rs`).

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::identity::Principal;
use crate::model::{ApiError, Reason};

/// A limit of bytes, and what is left of it. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Budget(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// The limit's name in the configuration.
    field: &'static str,
    used: AtomicUsize,
    max: AtomicUsize,
    /// What this is a share of.
    whole: Option<Budget>,
}

impl Budget {
    pub(crate) fn new(field: &'static str, max: usize) -> Self {
        Self(Arc::new(Inner { field, used: AtomicUsize::new(0), max: max.into(), whole: None }))
    }

    /// No limit.
    pub(crate) fn unlimited() -> Self {
        Self::new("", usize::MAX)
    }

    /// A share of this: what is taken of it is taken of both.
    pub(crate) fn share(&self, field: &'static str, max: usize) -> Self {
        Self(Arc::new(Inner { field, used: AtomicUsize::new(0), max: max.into(), whole: Some(self.clone()) }))
    }

    /// Another limit. What is over it was taken before, and is given back in time.
    pub(crate) fn resize(&self, max: usize) {
        self.0.max.store(max, Ordering::Relaxed);
    }

    /// The limit.
    pub(crate) fn max(&self) -> usize {
        self.0.max.load(Ordering::Relaxed)
    }

    /// Bytes taken now.
    pub(crate) fn used(&self) -> usize {
        self.0.used.load(Ordering::Relaxed)
    }

    /// Whether a stream should take on more work: three quarters of the limit are the point where streams stop reading
    /// ahead, which leaves the last quarter to requests that cannot be put off.
    pub(crate) fn has_room(&self) -> bool {
        self.used() < self.max() - self.max() / 4 && self.0.whole.as_ref().is_none_or(Self::has_room)
    }

    /// Takes bytes for as long as the answer lives.
    ///
    /// # Errors
    /// OVERLOADED when the limit would be passed.
    pub(crate) fn hold(&self, bytes: usize) -> Result<Hold, ApiError> {
        self.take(bytes)?;
        Ok(Hold { budget: self.clone(), bytes })
    }

    /// An empty ticket, which takes bytes as they come.
    pub(crate) fn ticket(&self) -> Arc<Ticket> {
        Arc::new(Ticket { budget: self.clone(), held: AtomicUsize::new(0) })
    }

    fn take(&self, bytes: usize) -> Result<(), ApiError> {
        let Inner { field, used, whole, .. } = &*self.0;
        let max = self.max();
        used.try_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
            used.checked_add(bytes).filter(|total| *total <= max)
        })
        .map_err(|used| {
            let message =
                format!("{field}: {used} bytes are being served and {bytes} more would pass {max}: try again later");
            ApiError::new(Reason::Overloaded, message).with("limit", max)
        })?;
        if let Some(Err(error)) = whole.as_ref().map(|whole| whole.take(bytes)) {
            used.fetch_sub(bytes, Ordering::Relaxed);
            return Err(error);
        }
        Ok(())
    }

    fn give_back(&self, bytes: usize) {
        self.0.used.fetch_sub(bytes, Ordering::Relaxed);
        if let Some(whole) = &self.0.whole {
            whole.give_back(bytes);
        }
    }
}

/// Whose connections share a limit.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Holder {
    Principal(Principal),
    /// Of somebody who has not said who it is.
    Address(IpAddr),
}

/// The shares of all who are connected.
#[derive(Debug, Clone)]
pub(crate) struct Shares {
    node: Budget,
    field: &'static str,
    max: Arc<AtomicUsize>,
    of: Arc<Mutex<HashMap<Holder, Weak<Inner>>>>,
}

impl Shares {
    /// Shares of `node`, of at most `max` bytes each.
    pub(crate) fn new(node: Budget, field: &'static str, max: usize) -> Self {
        Self { node, field, max: Arc::new(max.into()), of: Arc::default() }
    }

    /// Another limit for each, those that are held too.
    pub(crate) fn resize(&self, max: usize) {
        let of = self.of.lock();
        self.max.store(max, Ordering::Relaxed);
        for share in of.values().filter_map(Weak::upgrade) {
            Budget(share).resize(max);
        }
    }

    /// The share of a holder: the same one for as long as anybody has it.
    pub(crate) fn of(&self, holder: Holder) -> Budget {
        let mut of = self.of.lock();
        if let Some(share) = of.get(&holder).and_then(Weak::upgrade) {
            return Budget(share);
        }
        if of.len() == of.capacity() {
            of.retain(|_, share| share.strong_count() > 0);
        }
        let share = self.node.share(self.field, self.max.load(Ordering::Relaxed));
        of.insert(holder, Arc::downgrade(&share.0));
        share
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
    pub(crate) fn take(&self, bytes: usize) -> Result<(), ApiError> {
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
        let budget = Budget::new("limits.in-flight-bytes-max", 100);
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

    #[test]
    fn limits_change_under_what_is_held() {
        let node = Budget::new("node", 100);
        let shares = Shares::new(node.clone(), "principal", 60);
        let ann = shares.of(Holder::Address([127, 0, 0, 1].into()));
        let held = ann.hold(60).unwrap();
        shares.resize(80);
        let more = ann.hold(20).unwrap();
        node.resize(70);
        drop(more);
        assert!(ann.hold(11).unwrap_err().message.starts_with("node: 60 bytes"));
        drop(held);
        assert_eq!(shares.of(Holder::Address([127, 0, 0, 2].into())).max(), 80);
        assert_eq!((node.used(), node.max()), (0, 70));
    }

    #[test]
    fn a_share_ends_before_the_whole_and_gives_back_to_both() {
        let node = Budget::new("node", 100);
        let shares = Shares::new(node.clone(), "principal", 60);
        let ann = || shares.of(Holder::Principal(Principal::new("ann").unwrap()));
        let (first, second) = (ann().share("connection", 50), ann().share("connection", 50));
        let held = first.hold(40).unwrap();
        assert!(first.hold(11).unwrap_err().message.starts_with("connection: 40 bytes"));
        assert!(second.hold(21).unwrap_err().message.starts_with("principal: 40 bytes"));
        assert_eq!((second.used(), node.used()), (0, 40), "what is refused takes nothing");
        let other = shares.of(Holder::Address([127, 0, 0, 1].into()));
        let rest = other.hold(60).unwrap();
        assert!(second.hold(1).unwrap_err().message.starts_with("node: 100 bytes"));
        drop((held, rest));
        assert_eq!((first.used(), second.used(), other.used(), node.used()), (0, 0, 0, 0));
        drop((first, second, other));
        assert_eq!(ann().used(), 0);
    }
}
