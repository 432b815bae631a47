//! The callback that reports whether an append or a journal put became durable.
//!
//! Promise: a [`Done`] is called exactly once, and a panic in it does not end the thread that calls it: every log of the
//! store depends on that thread. Neighbours: the journal and every append hold one. Names no log and no thread.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::mpsc::{self, Receiver},
};

use crate::LogError;

/// The result of an append or a journal put: called exactly once, on a thread of the store. Must be quick and must not wait
/// for the store.
pub type Done = Box<dyn FnOnce(Result<(), LogError>) + Send>;

/// The receiving end of a [`Done`] made by [`waiter`].
pub(crate) type Answer = Receiver<Result<(), LogError>>;

/// Calls a `done`, and logs its panic if it panics.
pub(crate) fn complete(done: Done, result: Result<(), LogError>) {
    if catch_unwind(AssertUnwindSafe(|| done(result))).is_err() {
        tracing::error!("the callback of an append or journal put panicked");
    }
}

/// A `done` and the channel that receives its result.
pub(crate) fn waiter() -> (Done, Answer) {
    let (sender, receiver) = mpsc::sync_channel(1);
    let done = Box::new(move |result| {
        // The receiver may have stopped waiting.
        let _ = sender.send(result);
    });
    (done, receiver)
}
