//! Limits the bytes in flight of the node, of one principal and of one connection.
//!
//! Invariants:
//! - `used` is the sum of the bytes of all live [`Ticket`]s and [`Hold`]s; dropping one releases its bytes.
//! - Bytes are taken from the budgets of the connection, its principal and the node together, or from none of them.
//! - Taking never waits: over the limit the request is rejected with OVERLOADED. Requests that wait for room while they
//!   hold bytes could deadlock.
//!
//! Counted are request bodies, from their arrival to the response, and fetched records, until the client has read them.
//! Data that HTTP/2 buffers before a handler reads it is not counted; the connection window bounds it (see
//! `listeners/connection.rs`).

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::identity::Principal;
use crate::model::{ApiError, Reason};

/// A limit in bytes and the bytes taken from it. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Budget(Arc<BudgetState>);

#[derive(Debug)]
struct BudgetState {
    /// Configuration field of the limit.
    field: &'static str,
    used: AtomicUsize,
    max: AtomicUsize,
    /// The budget that this one is a share of.
    whole: Option<Budget>,
}

impl Budget {
    pub(crate) fn new(field: &'static str, max: usize) -> Self {
        Self(Arc::new(BudgetState { field, used: AtomicUsize::new(0), max: max.into(), whole: None }))
    }

    /// Returns a budget without a limit.
    pub(crate) fn unlimited() -> Self {
        Self::new("", usize::MAX)
    }

    /// Returns a share of this budget: bytes taken from the share are also taken from this budget.
    pub(crate) fn share(&self, field: &'static str, max: usize) -> Self {
        Self(Arc::new(BudgetState { field, used: AtomicUsize::new(0), max: max.into(), whole: Some(self.clone()) }))
    }

    /// Changes the limit. Bytes already taken beyond a smaller limit stay taken until their holders release them.
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

    /// Whether a stream may read ahead: true below three quarters of the limit. The last quarter is left to requests
    /// that cannot be postponed.
    pub(crate) fn has_room(&self) -> bool {
        self.used() < self.max() - self.max() / 4 && self.0.whole.as_ref().is_none_or(Self::has_room)
    }

    /// Takes bytes until the returned value is dropped.
    ///
    /// # Errors
    /// OVERLOADED when the limit would be passed.
    pub(crate) fn hold(&self, bytes: usize) -> Result<Hold, ApiError> {
        self.take(bytes)?;
        Ok(Hold { budget: self.clone(), bytes })
    }

    /// Returns an empty ticket, which takes bytes as they arrive.
    pub(crate) fn ticket(&self) -> Arc<Ticket> {
        Arc::new(Ticket { budget: self.clone(), held: AtomicUsize::new(0) })
    }

    fn take(&self, bytes: usize) -> Result<(), ApiError> {
        let BudgetState { field, used, whole, .. } = &*self.0;
        let max = self.max();
        used.try_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
            used.checked_add(bytes).filter(|total| *total <= max)
        })
        .map_err(|used| {
            let message = format!("{field}: {used} bytes in flight and {bytes} more: at most {max}: retry later");
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
    /// Address of clients without a principal.
    Address(IpAddr),
}

/// The shares of all principals and addresses with connections.
#[derive(Debug, Clone)]
pub(crate) struct Shares {
    node: Budget,
    field: &'static str,
    max: Arc<AtomicUsize>,
    of: Arc<Mutex<HashMap<Holder, Weak<BudgetState>>>>,
}

impl Shares {
    /// Returns the shares of `node`, of at most `max` bytes each.
    pub(crate) fn new(node: Budget, field: &'static str, max: usize) -> Self {
        Self { node, field, max: Arc::new(max.into()), of: Arc::default() }
    }

    /// Changes the limit of each share, including those in use.
    pub(crate) fn resize(&self, max: usize) {
        let of = self.of.lock();
        self.max.store(max, Ordering::Relaxed);
        for share in of.values().filter_map(Weak::upgrade) {
            Budget(share).resize(max);
        }
    }

    /// Returns the share of a holder: the same one for as long as a connection uses it.
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

/// The bytes taken for one request as they arrive.
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

    /// Releases bytes of a part that is complete, at most the bytes held.
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
    fn a_share_ends_before_the_whole_and_releases_to_both() {
        let node = Budget::new("node", 100);
        let shares = Shares::new(node.clone(), "principal", 60);
        let ann = || shares.of(Holder::Principal(Principal::new("ann").unwrap()));
        let (first, second) = (ann().share("connection", 50), ann().share("connection", 50));
        let held = first.hold(40).unwrap();
        assert!(first.hold(11).unwrap_err().message.starts_with("connection: 40 bytes"));
        assert!(second.hold(21).unwrap_err().message.starts_with("principal: 40 bytes"));
        assert_eq!((second.used(), node.used()), (0, 40), "a rejected request takes nothing");
        let other = shares.of(Holder::Address([127, 0, 0, 1].into()));
        let rest = other.hold(60).unwrap();
        assert!(second.hold(1).unwrap_err().message.starts_with("node: 100 bytes"));
        drop((held, rest));
        assert_eq!((first.used(), second.used(), other.used(), node.used()), (0, 0, 0, 0));
        drop((first, second, other));
        assert_eq!(ann().used(), 0);
    }
}
