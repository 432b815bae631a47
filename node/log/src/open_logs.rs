//! The logs of a store that are open, or were dropped and still have work in the background.
//!
//! Invariant: a log id appears once, and only the log that is listed here touches the directory of that id. So a log is opened again only
//! after all work on its predecessor is done.
//!
//! Neighbours: `store.rs` adds logs; scheduler, sealer and the dropped handle remove them. Names no thread.

use std::sync::Arc;

use hashbrown::HashMap;
use parking_lot::{Mutex, MutexGuard};

use crate::{LogId, open_log::OpenLog, state::LogState};

/// The open logs of a store.
#[derive(Debug, Default)]
pub(crate) struct OpenLogs {
    logs: Mutex<HashMap<LogId, Arc<OpenLog>>>,
}

impl OpenLogs {
    pub(crate) fn get(&self, id: LogId) -> Option<Arc<OpenLog>> {
        self.logs.lock().get(&id).cloned()
    }

    pub(crate) fn contains(&self, id: LogId) -> bool {
        self.logs.lock().contains_key(&id)
    }

    /// Every log, by id: the order of what is done with them shows in the journal.
    pub(crate) fn all(&self) -> Vec<Arc<OpenLog>> {
        let mut logs: Vec<_> = self.logs.lock().values().cloned().collect();
        logs.sort_unstable_by_key(|log| log.id());
        logs
    }

    /// Adds a log.
    ///
    /// # Errors
    /// The log with the same id that is here already.
    pub(crate) fn add(&self, log: &Arc<OpenLog>) -> Result<(), Arc<OpenLog>> {
        let mut logs = self.logs.lock();
        match logs.get(&log.id()) {
            Some(other) => Err(other.clone()),
            None => {
                logs.insert(log.id(), log.clone());
                Ok(())
            }
        }
    }

    /// Removes a log that is closed, and closes its sealed segments.
    pub(crate) fn remove(&self, log: &Arc<OpenLog>) {
        let mut logs = self.logs.lock();
        if logs.get(&log.id()).is_some_and(|found| Arc::ptr_eq(found, log)) {
            logs.remove(&log.id());
        }
        drop(logs);
        log.context.sealed_files.forget(log.id());
    }

    /// Removes a log whose last handle was dropped, if nothing in the background works on it any more.
    pub(crate) fn remove_if_idle(&self, log: &Arc<OpenLog>, state: MutexGuard<'_, LogState>) {
        if log.release_if_idle(state) {
            self.remove(log);
        }
    }
}
