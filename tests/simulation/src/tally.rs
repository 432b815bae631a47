//! How much a simulation did: operations by their outcome, faults by their kind, checks.

use std::cell::RefCell;
use std::collections::BTreeMap;

thread_local! {
    static TALLY: RefCell<BTreeMap<&'static str, u64>> = RefCell::default();
}

/// Counts one of a kind. Kinds begin with `ops.`, `faults.` or `checks.`.
pub(crate) fn count(kind: &'static str) {
    count_many(kind, 1);
}

/// Counts some of a kind.
pub(crate) fn count_many(kind: &'static str, more: u64) {
    TALLY.with_borrow_mut(|tally| *tally.entry(kind).or_default() += more);
}

/// Everything counted since the last call.
pub(crate) fn take() -> BTreeMap<&'static str, u64> {
    TALLY.take()
}
