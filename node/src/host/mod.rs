//! The node's interface to the machine: data directory, network, runtimes, threads for blocking calls, and the wall
//! clock.
//!
//! The node receives a [`Host`] when it starts. Blocking calls and the wall clock, which every layer needs, are per
//! thread instead: [`simulate`] replaces them on a thread, so that nothing on it depends on the machine. Timers come
//! from tokio. Random numbers come from `getrandom`, which a simulation replaces completely, including the seeds of
//! hash tables.

pub(crate) mod flushed;
pub mod net;

use std::cell::Cell;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use chronicle_client::{Connector, tcp_connector};
use chronicle_log::disk::{Disk, RealDisk};
use chronicle_log::{LogError, Store, StoreConfig};
use rand::{Rng, RngCore};
use rustix::time::{ClockId, clock_gettime};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use uuid::Uuid;

/// Opens a data directory with these settings. May replace the settings for the store's threads and clock.
pub type OpenStore = Arc<dyn Fn(&Path, StoreConfig) -> Result<Arc<Store>, LogError> + Send + Sync>;

/// The machine that a node runs on.
#[derive(Clone)]
pub struct Host {
    /// Opens the data directory.
    pub open_store: OpenStore,
    /// Opens connections to other nodes.
    pub connector: Connector,
    /// Runtime of consensus and liveness; `None`: each has a dedicated runtime, which no other work can starve.
    pub runtime: Option<Handle>,
}

impl Host {
    /// Returns the real machine.
    pub fn system() -> Self {
        Self::with_disk(Arc::new(RealDisk))
    }

    /// Returns the real machine with another disk, such as one that injects failures.
    pub fn with_disk(disk: Arc<dyn Disk>) -> Self {
        Self {
            open_store: Arc::new(move |dir, config| Store::open(disk.clone(), dir, config)),
            connector: tcp_connector(),
            runtime: None,
        }
    }
}

/// Replaces the machine on a simulated thread.
#[derive(Debug, Clone, Copy)]
pub struct Simulated {
    /// Time since the Unix epoch.
    pub since_epoch: fn() -> Duration,
    /// Delay before the next blocking call has its effect.
    pub blocking_delay: fn() -> Duration,
}

thread_local! {
    static SIMULATED: Cell<Option<Simulated>> = const { Cell::new(None) };
}

/// Makes nodes on this thread use `simulated` for wall clock and blocking calls from now on. A simulated node runs
/// completely on one thread.
pub fn simulate(simulated: Simulated) {
    SIMULATED.set(Some(simulated));
}

/// Runs a blocking call on a thread where it starves no other task. The call runs to its end even when the handle is
/// dropped.
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

/// Returns wall-clock time in milliseconds since the Unix epoch: the default timestamp of records.
#[expect(clippy::disallowed_methods, reason = "the real clock, unless the thread is simulated")]
pub(crate) fn now_ms() -> i64 {
    let since = match SIMULATED.get() {
        None => SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default(),
        Some(simulated) => (simulated.since_epoch)(),
    };
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// For how long the machine has been suspended since it booted: bounds, because it is the difference of two clocks that
/// are read one after the other.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Suspension {
    /// Not longer than it was when the reading began.
    pub at_least: Duration,
    /// Not shorter than it was when the reading ended.
    pub at_most: Duration,
}

/// Reads for how long the machine has been suspended: `CLOCK_BOOTTIME` counts that time, `CLOCK_MONOTONIC` does not. Zero
/// on a simulated thread.
pub fn suspension() -> Suspension {
    if SIMULATED.get().is_some() {
        return Suspension::default();
    }
    let read = |clock| {
        let time = clock_gettime(clock);
        Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
    };
    let before = read(ClockId::Monotonic);
    let boot = read(ClockId::Boottime);
    let after = read(ClockId::Monotonic);
    Suspension { at_least: boot.saturating_sub(after), at_most: boot.saturating_sub(before) }
}

/// Returns a unique UUID of version 7, ordered by time.
#[expect(clippy::disallowed_methods, reason = "the real clock and counter, unless the thread is simulated")]
pub(crate) fn new_uuid() -> Uuid {
    match SIMULATED.get() {
        None => Uuid::now_v7(),
        Some(simulated) => {
            // Not `now_v7`: its counter is global to the process, so results would depend on other threads.
            let mut random = [0; 10];
            rand::rng().fill_bytes(&mut random);
            let ms = (simulated.since_epoch)().as_millis() as u64;
            uuid::Builder::from_unix_timestamp_millis(ms, &random).into_uuid()
        }
    }
}

/// Returns a random duration between 0.5 and 1.5 times `duration`.
#[expect(clippy::disallowed_methods, reason = "jitter; a simulation replaces the source of randomness as a whole")]
pub(crate) fn jitter(duration: Duration) -> Duration {
    duration.mul_f64(rand::rng().random_range(0.5..1.5))
}
