//! Three nodes whose clocks differ: what retention deletes is decided by the clocks of the majority, and every replica has the same
//! segments and the same start.
//!
//! Each node runs on a thread of its own, which has a clock of its own. The network and the disks are real.

#[path = "node/support/mod.rs"]
mod support;

use std::cell::RefCell;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use chronicle_log::disk::RealDisk;
use chronicle_log::{LogConfig, LogId, Store, StoreConfig};
use chronicle_node::broker::{Broker, Route};
use chronicle_node::config::Config;
use chronicle_node::host::net::Acceptor;
use chronicle_node::host::{Host, Simulated, simulate};
use chronicle_node::model::{ApiError, Fetch, Fetched, NewRecord, NewTopic, Position, Produce, Reason, SettingsChange};
use chronicle_node::runtime;
use chronicle_node::telemetry::Metrics;
use support::*;
use tempfile::TempDir;
use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(120);
const PAUSE: Duration = Duration::from_millis(10);
const HOUR_MS: i64 = 3_600_000;
const SEGMENT_BYTES: i64 = 65_536;

thread_local! {
    /// By how many milliseconds the clock of the node on this thread is ahead.
    static AHEAD_MS: RefCell<Arc<AtomicI64>> = RefCell::default();
}

#[expect(clippy::disallowed_methods, reason = "the real clock, which the nodes' clocks are ahead of")]
fn wall() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap()
}

fn wall_ms() -> i64 {
    wall().as_millis() as i64
}

fn clock_of_this_thread() -> Duration {
    let ahead = AHEAD_MS.with_borrow(|ahead| ahead.load(Ordering::SeqCst));
    Duration::from_millis((wall_ms() + ahead) as u64)
}

struct Node {
    broker: Broker,
    /// See [`AHEAD_MS`].
    ahead_ms: Arc<AtomicI64>,
    stop: CancellationToken,
    thread: std::thread::JoinHandle<Result<(), ApiError>>,
}

impl Node {
    fn stop(self) {
        self.stop.cancel();
        self.thread.join().unwrap().unwrap();
    }
}

struct Cluster {
    directories: Vec<TempDir>,
    addresses: Vec<SocketAddr>,
    nodes: Vec<Node>,
}

impl Cluster {
    async fn new() -> Self {
        // All are held until each has its own.
        let ports: Vec<_> = (0..3).map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let addresses = ports.iter().map(|port| port.local_addr().unwrap()).collect();
        drop(ports);
        let directories = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
        let mut cluster = Self { directories, addresses, nodes: Vec::new() };
        cluster.start().await;
        cluster
    }

    fn data_dir(&self, number: usize) -> PathBuf {
        self.directories[number].path().join("data")
    }

    fn config(&self, number: usize) -> Config {
        let mut config = config(self.directories[number].path());
        config.node.name = format!("n{number}");
        config.node.default_topic = String::new();
        config.listeners.data = self.addresses[number];
        config.cluster.bootstrap_expect = 3;
        config.cluster.seeds = self.addresses.iter().map(ToString::to_string).collect();
        config.partitions.retention_check_ms = 20;
        config
    }

    /// Starts all nodes and waits until they are ready.
    async fn start(&mut self) {
        let mut starting = Vec::new();
        for (number, address) in self.addresses.iter().copied().enumerate() {
            let config = self.config(number);
            let (stop, ahead_ms) = (CancellationToken::new(), Arc::new(AtomicI64::new(0)));
            let (opened, broker) = oneshot::channel();
            let (ready, is_ready) = oneshot::channel();
            let (stopping, ahead) = (stop.clone(), ahead_ms.clone());
            let thread = std::thread::spawn(move || {
                AHEAD_MS.set(ahead);
                simulate(Simulated { since_epoch: clock_of_this_thread, blocking_delay: || Duration::ZERO });
                Builder::new_current_thread().enable_all().build().unwrap().block_on(async move {
                    let acceptor = Acceptor::bind(address).await.unwrap();
                    let host = Host { runtime: Some(Handle::current()), ..Host::system() };
                    let opened = |node: &runtime::Node| drop(opened.send(node.broker().clone()));
                    let ready = || _ = ready.send(());
                    runtime::run_on(host, acceptor, config, Metrics::new(), stopping, opened, ready).await
                })
            });
            starting.push((broker, is_ready, ahead_ms, stop, thread));
        }
        for (broker, is_ready, ahead_ms, stop, thread) in starting {
            let broker = broker.await.unwrap();
            tokio::time::timeout(PATIENCE, is_ready).await.expect("the node joins").unwrap();
            self.nodes.push(Node { broker, ahead_ms, stop, thread });
        }
    }

    async fn stop(&mut self) {
        let nodes = std::mem::take(&mut self.nodes);
        // Together: each transfers what it leads as long as another one is there.
        nodes.iter().for_each(|node| node.stop.cancel());
        #[expect(clippy::disallowed_methods, reason = "the nodes' threads are real")]
        tokio::task::spawn_blocking(|| nodes.into_iter().for_each(Node::stop)).await.unwrap();
    }

    /// The node that leads partition 0 of a topic.
    async fn leader(&self, topic: &str) -> usize {
        let mut turn = 0;
        eventually("a leader", async || {
            turn += 1;
            let number = turn % self.nodes.len();
            self.nodes[number].broker.offsets(&target(topic), None, Route::Local).await.ok().map(|_| number)
        })
        .await
    }

    async fn earliest(&self, topic: &str) -> i64 {
        let ask = async || self.nodes[0].broker.offsets(&target(topic), None, Route::Leader).await.ok();
        eventually("offsets", ask).await.earliest
    }
}

async fn eventually<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let since = tokio::time::Instant::now();
    loop {
        if let Some(found) = ask().await {
            return found;
        }
        assert!(since.elapsed() < PATIENCE, "timed out: {what}");
        tokio::time::sleep(PAUSE).await;
    }
}

async fn create(broker: &Broker, topic: &str, settings: SettingsChange) {
    let topic = NewTopic { name: topic.into(), partitions: 1, replication_factor: 3, settings, if_not_exists: true };
    eventually("create a topic", async || broker.create_topic(topic.clone()).await.ok()).await;
}

/// Appends records of 1000 bytes with this timestamp.
async fn write(broker: &Broker, topic: &str, records: usize, timestamp_ms: i64) {
    for number in 0..records {
        let one = NewRecord { timestamp_ms: Some(timestamp_ms), ..record(vec![number as u8; 1000]) };
        let request = Produce { target: target(topic), ..append(vec![one]) };
        eventually("append", async || broker.produce(request.clone(), Route::Leader).await.ok()).await;
    }
}

async fn fetch_here(broker: &Broker, topic: &str, offset: i64) -> Result<Fetched, ApiError> {
    let request =
        Fetch { target: target(topic), from: Position::Offset(offset), max_bytes: 0, max_wait: Duration::ZERO };
    broker.fetch(request, Route::Local).await
}

/// The log of the only topic on a node.
fn log_folder(data_dir: &Path) -> PathBuf {
    let logs = std::fs::read_dir(data_dir.join("logs")).unwrap().map(|entry| entry.unwrap().path());
    let controller = LogId { topic: uuid::Uuid::nil(), partition: 0 }.to_string();
    logs.filter(|path| path.file_name().unwrap() != controller.as_str()).max().unwrap()
}

/// Names of the segments, oldest first.
fn segment_files(data_dir: &Path) -> Vec<PathBuf> {
    let files = std::fs::read_dir(log_folder(data_dir)).unwrap().map(|entry| entry.unwrap().path());
    let mut segments: Vec<_> = files.filter(|path| path.extension().is_some_and(|end| end == "log")).collect();
    segments.sort();
    segments
}

/// Of a node that is stopped: first index, next index and content hash of every sealed segment of the log.
fn sealed(data_dir: &Path) -> Vec<(u64, u64, [u8; 32])> {
    let store = Store::open(Arc::new(RealDisk), data_dir, StoreConfig::default()).unwrap();
    let id = store.list_logs().unwrap().into_iter().find(|id| !id.topic.is_nil()).unwrap();
    let log = store.open_log(id, LogConfig::default()).unwrap();
    let segments = log.segments();
    let sealed = segments.iter().filter_map(|s| s.content_hash.map(|hash| (s.base_index, s.next_index, hash)));
    let sealed = sealed.collect();
    drop(log);
    store.close().unwrap();
    sealed
}

/// Checks that the replicas have the same segments, as far as they have all been sealed. Returns how many.
fn assert_same_segments(cluster: &Cluster) -> usize {
    let all: Vec<_> = (0..3).map(|number| sealed(&cluster.data_dir(number))).collect();
    let common = all.iter().map(Vec::len).min().unwrap();
    for other in &all[1..] {
        assert_eq!(other[..common], all[0][..common]);
    }
    common
}

/// Waits until every replica starts with the same segment and answers reads below `earliest` alike.
async fn until_same_start(cluster: &Cluster, topic: &str, earliest: i64) {
    eventually("the same start on every replica", async || {
        for node in &cluster.nodes {
            match fetch_here(&node.broker, topic, earliest - 1).await {
                Err(error) if error.reason == Reason::OffsetOutOfRange => {
                    let said = error.metadata.iter().find(|(name, _)| name == "earliest");
                    if said.unwrap().1 != earliest.to_string() {
                        return None;
                    }
                }
                _ => return None,
            }
            if fetch_here(&node.broker, topic, earliest).await.ok()?.batches.is_empty() {
                return None;
            }
        }
        let first = |number| {
            segment_files(&cluster.data_dir(number)).first().and_then(|path| path.file_name().map(ToOwned::to_owned))
        };
        (first(0).is_some() && first(0) == first(1) && first(0) == first(2)).then_some(())
    })
    .await;
}

/// A cluster whose topic has lost records of two hours ago, and none that only a wrong clock takes for old: that of the leader, or of
/// another node. Returns the first offset that is left.
async fn with_a_clock_ahead(of_leader: bool) -> (Cluster, i64) {
    let cluster = Cluster::new().await;
    let settings =
        SettingsChange { segment_bytes: Some(SEGMENT_BYTES), retention_ms: Some(HOUR_MS), ..SettingsChange::default() };
    create(&cluster.nodes[0].broker, "t", settings).await;
    let leader = cluster.leader("t").await;
    let ahead = if of_leader { leader } else { (leader + 1) % 3 };
    cluster.nodes[ahead].ahead_ms.store(12 * HOUR_MS, Ordering::SeqCst);
    // At least three segments of each.
    let (old, young) = (200, 200);
    write(&cluster.nodes[leader].broker, "t", old, wall_ms() - 2 * HOUR_MS).await;
    write(&cluster.nodes[leader].broker, "t", young, wall_ms()).await;
    // Retention has come and decided.
    let earliest = eventually("expired records to go", async || {
        let earliest = cluster.earliest("t").await;
        (earliest > old as i64 - 60).then_some(earliest)
    })
    .await;
    assert!(earliest <= old as i64, "the log begins at {earliest}, records younger than an hour at {old}");
    until_same_start(&cluster, "t", earliest).await;
    (cluster, earliest)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_clock_of_a_follower_that_is_ahead_expires_nothing() {
    let (mut cluster, _) = with_a_clock_ahead(false).await;
    cluster.stop().await;
    assert!(assert_same_segments(&cluster) >= 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_clock_of_a_leader_that_is_ahead_expires_nothing_and_a_filled_replica_has_the_same_segments() {
    let (mut cluster, earliest) = with_a_clock_ahead(true).await;
    cluster.stop().await;
    assert!(assert_same_segments(&cluster) >= 2);
    // The log of one replica is damaged at its start: it gets all of it from another.
    let first = segment_files(&cluster.data_dir(2)).remove(0);
    let mut bytes = std::fs::read(&first).unwrap();
    bytes[..64].fill(0);
    std::fs::write(&first, bytes).unwrap();
    cluster.start().await;
    until_same_start(&cluster, "t", earliest).await;
    write(&cluster.nodes[0].broker, "t", 100, wall_ms()).await;
    until_same_start(&cluster, "t", earliest).await;
    cluster.stop().await;
    assert!(assert_same_segments(&cluster) >= 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn retention_by_size_leaves_every_replica_with_the_same_segments() {
    let mut cluster = Cluster::new().await;
    let settings = SettingsChange {
        segment_bytes: Some(SEGMENT_BYTES),
        retention_bytes: Some(3 * SEGMENT_BYTES),
        ..SettingsChange::default()
    };
    create(&cluster.nodes[0].broker, "t", settings).await;
    write(&cluster.nodes[0].broker, "t", 600, wall_ms()).await;
    let mut before = -1;
    let earliest = eventually("the log start to stay", async || {
        let earliest = cluster.earliest("t").await;
        let stays = earliest > 0 && std::mem::replace(&mut before, earliest) == earliest;
        stays.then_some(earliest)
    })
    .await;
    until_same_start(&cluster, "t", earliest).await;
    // The next leader decides on segments with the same ends.
    cluster.stop().await;
    let common = assert_same_segments(&cluster);
    assert!(common >= 2, "{common} sealed segments in common");
    for (base, next, _) in sealed(&cluster.data_dir(0)) {
        let name = format!("{base:020}.log");
        let bytes = std::fs::metadata(log_folder(&cluster.data_dir(0)).join(name)).unwrap().len() as i64;
        assert!(bytes <= SEGMENT_BYTES + 1024, "segment {base}..{next} has {bytes} bytes");
        assert!(bytes > SEGMENT_BYTES / 2, "segment {base}..{next} has {bytes} bytes");
    }
}
