//! What every part of a store uses: the data directory, the settings, the counters, the journal, and the memory of failed logs.
//!
//! Invariant: nothing here knows a log's state, a queue or a thread, so that each part of the store may hold it. Each member
//! guards itself: no method takes two locks.
//!
//! Neighbours: `store.rs` makes it; logs, scheduler, sealer and workers hold it.

use hashbrown::HashMap;
use parking_lot::Mutex;

use crate::{LogId, StoreConfig, StoreMetrics, data_dir::DataDir, journal::Journal, sealed_files::SealedFiles};

/// What every part of a store uses.
#[derive(Debug)]
pub(crate) struct StoreContext {
    pub(crate) data: DataDir,
    pub(crate) config: StoreConfig,
    pub(crate) metrics: StoreMetrics,
    pub(crate) journal: Journal,
    pub(crate) sealed_files: SealedFiles,
    pub(crate) failed: FailedLogs,
}

/// The logs that failed since the store was opened, and up to where (exclusive) each is known to be on disk. What their files
/// hold beyond that cannot be trusted, however well it reads.
#[derive(Debug, Default)]
pub(crate) struct FailedLogs {
    durable_ends: Mutex<HashMap<LogId, u64>>,
}

impl FailedLogs {
    pub(crate) fn add(&self, id: LogId, durable_next: u64) {
        self.durable_ends.lock().insert(id, durable_next);
    }

    /// Up to where a log that failed is known to be on disk; `None` if it did not fail.
    pub(crate) fn known_durable(&self, id: LogId) -> Option<u64> {
        self.durable_ends.lock().get(&id).copied()
    }

    /// The log was recovered, cut or deleted.
    pub(crate) fn remove(&self, id: LogId) {
        self.durable_ends.lock().remove(&id);
    }
}
