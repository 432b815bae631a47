//! One simulated machine: a disk that survives its crashes, and the node that starts on it again and again.

use std::cell::{Cell, RefCell};
use std::io;
use std::path::Path;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use chronicle_log::disk::{Disk, FaultyDisk, MemoryDisk};
use chronicle_log::{Clock, Store, StoreConfig, Threads};
use chronicle_node::config::Config;
use chronicle_node::host::{Host, Simulated};
use chronicle_node::membership::JoinRefusal;
use chronicle_node::runtime;
use chronicle_node::telemetry::Metrics;
use rand::Rng;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::network::{PORT, connector, listen};
use crate::trace::note;
use chronicle_log::simulated;

/// When simulations begin: 2026-01-01.
const EPOCH: Duration = Duration::from_secs(1_767_225_600);
/// Pause of a node that has ended before it is started again.
const RESTART_PAUSE: Duration = Duration::from_millis(500);
/// The data directory on each machine's disk.
pub(crate) const DATA_DIR: &str = "/data";

thread_local! {
    /// How many milliseconds the wall clocks of processes are ahead, by the runtime of each.
    static AHEAD: RefCell<Vec<(tokio::runtime::Id, Arc<AtomicI64>)>> = const { RefCell::new(Vec::new()) };
    /// Last time seen inside a host: what is dropped with a host asks for the time outside of any.
    static LAST: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

/// Time since the simulation began.
pub(crate) fn elapsed() -> Duration {
    if let Some(now) = turmoil::sim_elapsed() {
        LAST.set(now.max(LAST.get()));
    }
    LAST.get()
}

/// Time goes on outside of any host as well.
pub(crate) fn set_elapsed(now: Duration) {
    LAST.set(now.max(LAST.get()));
    simulated::set_clocks(EPOCH + LAST.get());
}

/// The true time of day.
pub(crate) fn wall_ms() -> i64 {
    (EPOCH + elapsed()).as_millis() as i64
}

/// What the wall clock of the machine says whose process asks.
fn since_epoch() -> Duration {
    let id = tokio::runtime::Handle::try_current().ok().map(|runtime| runtime.id());
    let ahead = AHEAD.with_borrow(|clocks| {
        let clock = clocks.iter().rev().find(|(of, _)| Some(*of) == id);
        clock.map_or(0, |(_, ahead)| ahead.load(Ordering::Relaxed))
    });
    Duration::from_millis((wall_ms() + ahead) as u64)
}

/// Makes this thread a simulated one.
pub(crate) fn simulate() {
    LAST.set(Duration::ZERO);
    AHEAD.take();
    simulated::set_clocks(EPOCH);
    chronicle_node::host::simulate(Simulated {
        since_epoch,
        // Mostly nothing, sometimes enough for something else to come between.
        blocking_delay: || {
            let mut random = rand::rng();
            if random.random_ratio(3, 4) { Duration::ZERO } else { Duration::from_millis(random.random_range(1..5)) }
        },
    });
}

/// The clocks of one machine.
#[derive(Debug)]
struct SimulatedClock {
    /// Milliseconds that the wall clock is ahead.
    ahead: Arc<AtomicI64>,
}

impl Clock for SimulatedClock {
    fn monotonic(&self) -> Duration {
        elapsed()
    }

    fn wall_ms(&self) -> i64 {
        wall_ms() + self.ahead.load(Ordering::Relaxed)
    }
}

/// How fast a disk does its rounds of writes and flushes.
#[derive(Debug, Default)]
pub(crate) struct DiskPace {
    /// Added to each round, in milliseconds.
    pub(crate) slow_ms: AtomicU64,
    /// No round begins.
    pub(crate) hangs: AtomicBool,
}

/// What varies from seed to seed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Knobs {
    /// Size of a segment file, in bytes.
    pub(crate) segment_bytes: u64,
    /// Longest time that a round of the store takes, in milliseconds.
    pub(crate) disk_ms_max: u64,
    /// Unused partitions go to sleep after this, in milliseconds.
    pub(crate) idle_ms: u64,
    /// Bytes of recent entries that a node keeps in memory.
    pub(crate) cache_bytes: u64,
    /// Idempotent producers whose state a partition keeps.
    pub(crate) producers_max: usize,
}

/// One machine.
#[derive(Clone)]
pub(crate) struct Machine {
    /// `n1`, `n2`, …
    pub(crate) name: String,
    /// What is left after a crash.
    pub(crate) disk: MemoryDisk,
    /// Makes operations of the present process fail.
    pub(crate) faults: Rc<RefCell<FaultyDisk>>,
    /// How fast the disk is.
    pub(crate) pace: Arc<DiskPace>,
    /// Milliseconds that the wall clock is ahead.
    pub(crate) ahead: Arc<AtomicI64>,
    /// Stops the process that runs now, in order.
    stop: Rc<RefCell<CancellationToken>>,
    config: Config,
    knobs: Knobs,
}

impl Machine {
    /// A machine with an empty disk, whose node looks for the others at `seeds`.
    pub(crate) fn new(name: &str, seeds: &[String], founders: u32, knobs: Knobs) -> io::Result<Self> {
        let mut config = Config::default();
        config.node.name = name.into();
        config.node.data_dir = DATA_DIR.into();
        config.node.advertised_address = format!("{name}:{PORT}");
        config.node.default_topic = String::new();
        config.cluster.bootstrap_expect = founders;
        config.cluster.seeds = seeds.iter().map(|seed| format!("{seed}:{PORT}")).collect();
        config.cluster.voters = 3;
        config.partitions.idle_ms = knobs.idle_ms;
        config.partitions.retention_check_ms = 1000;
        config.partitions.producers_max = knobs.producers_max;
        config.storage.tail_cache_bytes = knobs.cache_bytes;
        config.storage.reserve_bytes = 0;
        config.listeners.data = ([0, 0, 0, 0], PORT).into();
        let disk = MemoryDisk::new();
        disk.create_dir(Path::new(DATA_DIR))?;
        disk.sync_dir(Path::new("/"))?;
        let faults = Rc::new(RefCell::new(FaultyDisk::new(Arc::new(disk.clone()))));
        let (pace, ahead) = (Arc::default(), Arc::default());
        Ok(Self { name: name.into(), disk, faults, pace, ahead, stop: Rc::default(), config, knobs })
    }

    /// The process: the node, started again when it ends for a reason of its own, as a supervisor does. Returns when it was
    /// stopped, or has been removed from the cluster.
    pub(crate) async fn run(self) -> turmoil::Result {
        let stop = CancellationToken::new();
        self.stop.replace(stop.clone());
        let runtime = tokio::runtime::Handle::current();
        AHEAD.with_borrow_mut(|clocks| clocks.push((runtime.id(), self.ahead.clone())));
        let disk = FaultyDisk::new(Arc::new(self.disk.mount()));
        self.faults.replace(disk.clone());
        loop {
            note(&self.name, "start");
            let host = Host {
                open_store: self.open_store(disk.clone()),
                connector: connector(&self.name),
                runtime: Some(tokio::runtime::Handle::current()),
            };
            let name = self.name.clone();
            let ready = move || note(&name, "ready");
            let acceptor = listen().await?;
            let config = self.config.clone();
            // A child, because a node that fails cancels the token that it was given.
            let stopping = stop.child_token();
            let ended = runtime::run_on(host, acceptor, config, Metrics::new(), stopping, |_| {}, ready).await;
            match ended {
                Ok(()) => {
                    note(&self.name, "stopped");
                    return Ok(());
                }
                Err(error) if error.value("refusal") == Some(JoinRefusal::Removed.code()) => {
                    note(&self.name, &format!("removed: {}", error.message));
                    return Ok(());
                }
                Err(error) => note(&self.name, &format!("ended: {}", error.message)),
            }
            tokio::time::sleep(RESTART_PAUSE).await;
        }
    }

    /// Stops the process in order.
    pub(crate) fn stop(&self) {
        self.stop.borrow().cancel();
    }

    /// Nothing is wrong with the disk and the clock any more.
    pub(crate) fn heal(&self) {
        self.faults.borrow().heal();
        self.pace.slow_ms.store(0, Ordering::Relaxed);
        self.pace.hangs.store(false, Ordering::Relaxed);
        self.ahead.store(0, Ordering::Relaxed);
    }

    fn open_store(&self, disk: FaultyDisk) -> chronicle_node::host::OpenStore {
        let (knobs, pace, ahead) = (self.knobs, self.pace.clone(), self.ahead.clone());
        Arc::new(move |dir, config| {
            let wake = Arc::new(Notify::new());
            let waker = wake.clone();
            let config = StoreConfig {
                segment_bytes: knobs.segment_bytes,
                journal_rewrite_bytes: 16 << 10,
                threads: Threads::Driven { on_work: Some(Arc::new(move || waker.notify_one())) },
                clock: Arc::new(SimulatedClock { ahead: ahead.clone() }),
                ..config
            };
            let store = Store::open(Arc::new(disk.clone()), dir, config)?;
            tokio::spawn(drive(Arc::downgrade(&store), wake, knobs.disk_ms_max, pace.clone()));
            Ok(store)
        })
    }
}

/// The store's thread: does its rounds when there is something to do, each after the time that a disk takes.
async fn drive(store: Weak<Store>, wake: Arc<Notify>, disk_ms_max: u64, pace: Arc<DiskPace>) {
    loop {
        let Some(due) = store.upgrade().map(|store| store.next_due()) else { return };
        let Some(due) = due else {
            wake.notified().await;
            continue;
        };
        let now = elapsed();
        if due > now {
            // Either way the question is asked again.
            let _ = tokio::time::timeout(due - now, wake.notified()).await;
            continue;
        }
        let delay = rand::rng().random_range(0..=disk_ms_max) + pace.slow_ms.load(Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(delay)).await;
        while pace.hangs.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let Some(store) = store.upgrade() else { return };
        if !store.drive() {
            drop(store);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}
