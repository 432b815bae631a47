//! What a node takes from the machine that it runs on: its data directory, the network, runtimes, threads for calls that
//! block, and the wall clock.
//!
//! [`Host`] is handed to the node when it starts. What is needed far down and everywhere (blocking calls, the wall clock)
//! belongs to the thread instead: [`simulate`] makes a thread one on which nothing depends on the machine. Time as such comes
//! from tokio; chance comes from `getrandom`, which a simulation replaces as a whole, hash tables included.

use std::cell::Cell;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use chronicle_client::{Connector, tcp_connector};
use chronicle_log::disk::{Disk, RealDisk};
use chronicle_log::{LogError, Store, StoreConfig};
use rand::RngCore;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use uuid::Uuid;

/// Opens a data directory with these settings; may change those that say who does the store's work and what time it is.
pub type OpenStore = Arc<dyn Fn(&Path, StoreConfig) -> Result<Arc<Store>, LogError> + Send + Sync>;

/// See the module.
#[derive(Clone)]
pub struct Host {
    /// Opens the data directory.
    pub open_store: OpenStore,
    /// Opens connections to other nodes.
    pub connector: Connector,
    /// Where consensus and liveness run; `None`: on runtimes of their own, which nothing else can starve.
    pub runtime: Option<Handle>,
}

impl Host {
    /// The real machine.
    pub fn system() -> Self {
        Self::with_disk(Arc::new(RealDisk))
    }

    /// The real machine with another disk: one that fails on purpose.
    pub fn with_disk(disk: Arc<dyn Disk>) -> Self {
        Self {
            open_store: Arc::new(move |dir, config| Store::open(disk.clone(), dir, config)),
            connector: tcp_connector(),
            runtime: None,
        }
    }
}

/// What a simulated thread has in place of the machine.
#[derive(Debug, Clone, Copy)]
pub struct Simulated {
    /// Time since the Unix epoch.
    pub since_epoch: fn() -> Duration,
    /// How long the next blocking call takes before it has its effect.
    pub blocking_delay: fn() -> Duration,
}

thread_local! {
    static SIMULATED: Cell<Option<Simulated>> = const { Cell::new(None) };
}

/// From now on, nodes on this thread take wall clock and blocking calls from `simulated`. All of a simulated node runs on one
/// thread.
pub fn simulate(simulated: Simulated) {
    SIMULATED.set(Some(simulated));
}

/// Runs a call that blocks where it starves nobody. It runs to its end even when the handle is dropped.
#[expect(clippy::disallowed_methods, reason = "a real thread, unless the thread is simulated")]
pub(crate) fn blocking<T: Send + 'static>(call: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    match SIMULATED.get() {
        None => tokio::task::spawn_blocking(call),
        Some(simulated) => tokio::spawn(async move {
            tokio::time::sleep((simulated.blocking_delay)()).await;
            call()
        }),
    }
}

/// Wall-clock time in milliseconds since the Unix epoch: the default timestamp of records.
#[expect(clippy::disallowed_methods, reason = "the real clock, unless the thread is simulated")]
pub(crate) fn now_ms() -> i64 {
    let since = match SIMULATED.get() {
        None => SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default(),
        Some(simulated) => (simulated.since_epoch)(),
    };
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// A UUID of version 7: never the same twice, in the order of time.
#[expect(clippy::disallowed_methods, reason = "the real clock and counter, unless the thread is simulated")]
pub(crate) fn new_uuid() -> Uuid {
    match SIMULATED.get() {
        None => Uuid::now_v7(),
        Some(simulated) => {
            // The counter of `now_v7` is the process's.
            let mut random = [0; 10];
            rand::rng().fill_bytes(&mut random);
            let ms = (simulated.since_epoch)().as_millis() as u64;
            uuid::Builder::from_unix_timestamp_millis(ms, &random).into_uuid()
        }
    }
}
