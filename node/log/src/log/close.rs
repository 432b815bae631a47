//! Closing a log, in two steps so that a store that closes all of its logs flushes the journal once.
//!
//! Promise: a log that is closed with everything on disk leaves a clean mark in the journal, so that opening it again needs no
//! scan.
//!
//! Neighbours: `store.rs` closes all logs, and waits for those that were dropped. Names no segment file.

use std::sync::Arc;

use super::{
    Log,
    change::{begin_change, end_change},
};
use crate::{LogError, journal::engine_key, marks::CleanMark, open_log::OpenLog, workers::Workers};

impl Log {
    /// Flushes, waits for seals, and notes in the journal that the log was closed, so that opening it again needs no scan.
    /// Appends afterwards get [`LogError::Closed`].
    ///
    /// # Errors
    /// The failure that stopped the log; it is closed all the same.
    pub fn close(&self) -> Result<(), LogError> {
        let closed = start_close(&self.workers, &self.log);
        let durable = closed.and_then(|mark| match mark {
            Some(mark) => self.workers.put_and_wait(self.id(), engine_key::CLEAN, Some(mark.encode())),
            None => Ok(()),
        });
        finish_close(&self.workers, &self.log);
        durable
    }
}

/// Everything of closing but the journal's flush. `None`: there is nothing to note (the log was closed cleanly and
/// not written since).
pub(crate) fn start_close(workers: &Workers, log: &Arc<OpenLog>) -> Result<Option<CleanMark>, LogError> {
    let writer = begin_change(workers, log)?;
    let mut state = log.lock();
    while state.is_sealing() {
        workers.wait_for_change(log, &mut state);
    }
    let in_journal = CleanMark::read(&log.context.journal, log.id());
    let mark = Some(state.clean_mark(&writer)).filter(|mark| in_journal != Some(*mark));
    if mark.is_some() {
        log.write_newest_index(&state);
    }
    state.close();
    let failed = state.failure().map(LogError::sticky);
    end_change(log, state, writer);
    match failed {
        Some(failure) => Err(failure),
        None => Ok(mark),
    }
}

/// Releases a log whose close was started, also when that failed, and lets it be opened again.
pub(crate) fn finish_close(workers: &Workers, log: &Arc<OpenLog>) {
    let mut state = log.lock();
    state.close();
    // A log that was dropped may still have entries that no round has written.
    while !state.is_idle() {
        workers.wait_for_change(log, &mut state);
    }
    log.count_freed(state.release());
    drop(state);
    workers.logs.remove(log);
}

/// Waits until a log that was dropped without `close` has no work left in the background, and lets it be opened again.
pub(crate) fn wait_until_idle(workers: &Workers, log: &Arc<OpenLog>) {
    let mut state = log.lock();
    while !state.is_idle() {
        workers.wait_for_change(log, &mut state);
    }
    log.release(&mut state);
    drop(state);
    workers.logs.remove(log);
}
