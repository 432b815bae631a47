//! What the parts of a store share: the disk, the settings, the queues to its threads.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        mpsc::{self, Receiver},
    },
};

use bytes::Bytes;
use hashbrown::{HashMap, HashSet};
use parking_lot::Mutex;
use uuid::Uuid;

use crate::{
    LogError, LogId, StoreConfig, StoreMetrics,
    disk::{Disk, Volume},
    driver::Driver,
    files::OpenFiles,
    journal::{Journal, Space},
    log::LogInner,
    scheduler::Queue,
    sealer::SealQueue,
};

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) dir: PathBuf,
    pub(crate) node_id: Uuid,
    pub(crate) config: StoreConfig,
    pub(crate) metrics: StoreMetrics,
    pub(crate) journal: Journal,
    pub(crate) queue: Queue,
    pub(crate) sealer: SealQueue,
    pub(crate) driver: Driver,
    pub(crate) files: OpenFiles,
    pub(crate) volume: Arc<dyn Volume>,
    /// Logs that are open, or were dropped and still have work in the background.
    pub(crate) open: Mutex<HashMap<LogId, Arc<LogInner>>>,
    /// Logs whose directories are known to survive a crash.
    pub(crate) durable_dirs: Mutex<HashSet<LogId>>,
    /// Logs that failed since the store was opened, and up to where (exclusive) they are known to be on disk.
    pub(crate) failed: Mutex<HashMap<LogId, u64>>,
}

impl Shared {
    pub(crate) fn logs_dir(&self) -> PathBuf {
        self.dir.join("logs")
    }

    /// Puts or removes a key of the engine and waits until that is durable.
    pub(crate) fn journal_and_wait(&self, id: LogId, key: u8, value: Option<Bytes>) -> Result<(), LogError> {
        let (done, answer) = waiter();
        let now = self.config.clock.monotonic();
        self.journal.put((id, Space::Engine, key), value, true, now, Some(done))?;
        self.queue.wake();
        self.wait_for(&answer)
    }

    /// Forgets a log that is closed.
    pub(crate) fn deregister(&self, log: &Arc<LogInner>) {
        let mut open = self.open.lock();
        if open.get(&log.id).is_some_and(|found| Arc::ptr_eq(found, log)) {
            open.remove(&log.id);
        }
        drop(open);
        self.files.forget(log.id);
    }
}

/// A `done` and what gets its answer, for [`Shared::wait_for`].
pub(crate) fn waiter() -> (crate::Done, Receiver<Result<(), LogError>>) {
    let (sender, receiver) = mpsc::sync_channel(1);
    let done = Box::new(move |result| {
        // Nobody waits any more: nobody needs the answer.
        let _ = sender.send(result);
    });
    (done, receiver)
}
