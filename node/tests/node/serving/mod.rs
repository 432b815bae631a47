//! A node with its listeners on free loopback ports, and what their tests share.
#![allow(dead_code, unreachable_pub, reason = "every test binary uses its own part")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use chronicle_log::disk::Disk;
use chronicle_node::broker::Broker;
use chronicle_node::config::Config;
use chronicle_node::host::Host;
use chronicle_node::listeners::{self, Server};
use chronicle_node::runtime;
use chronicle_node::telemetry::Metrics;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// A node that serves.
pub struct Node {
    pub core: runtime::Node,
    pub broker: Broker,
    pub metrics: Metrics,
    pub address: SocketAddr,
    shutdown: CancellationToken,
    serving: JoinHandle<()>,
    _directory: tempfile::TempDir,
}

impl Node {
    /// A node with the defaults.
    pub async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    /// A node with a changed configuration.
    pub async fn start_with(change: impl FnOnce(&mut Config)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.node.data_dir = directory.path().join("data");
        config.listeners.data = "127.0.0.1:0".parse().unwrap();
        config.listeners.ops = "127.0.0.1:0".parse().unwrap();
        // Longer than `stop` waits, so that a connection that does not end by itself shows.
        config.limits.shutdown_grace_ms = 600_000;
        change(&mut config);
        let core = runtime::Node::start(Arc::new(config)).await.unwrap();
        let broker = core.broker().clone();
        let metrics = Metrics::new();
        let server = Server::bind(core.services(metrics.clone())).await.unwrap();
        let (address, shutdown) = (server.local_addr(), CancellationToken::new());
        let serving = tokio::spawn(server.serve(shutdown.clone()));
        Self { core, broker, metrics, address, shutdown, serving, _directory: directory }
    }

    /// A cluster of one node for each disk, established.
    pub async fn start_cluster(disks: Vec<Arc<dyn Disk>>, change: impl Fn(&mut Config)) -> Vec<Self> {
        let mut ports = Vec::new();
        for _ in &disks {
            ports.push(listeners::listen("127.0.0.1:0".parse().unwrap()).await.unwrap());
        }
        let seeds: Vec<String> = ports.iter().map(|(_, address)| address.to_string()).collect();
        let mut nodes = Vec::new();
        for (number, (disk, (acceptor, address))) in disks.into_iter().zip(ports).enumerate() {
            let directory = tempfile::tempdir().unwrap();
            let mut config = Config::default();
            config.node.name = format!("n{number}");
            config.node.data_dir = directory.path().join("data");
            config.listeners.data = address;
            config.cluster.bootstrap_expect = seeds.len() as u32;
            config.cluster.seeds = seeds.clone();
            change(&mut config);
            let shutdown = CancellationToken::new();
            let core = runtime::Node::prepare(Arc::new(config), Host::with_disk(disk), &shutdown).await.unwrap();
            let (broker, metrics) = (core.broker().clone(), Metrics::new());
            let server = Server::new(acceptor, address, core.services(metrics.clone()));
            let serving = tokio::spawn(server.serve(shutdown.clone()));
            nodes.push(Self { core, broker, metrics, address, shutdown, serving, _directory: directory });
        }
        let established = nodes.iter().map(|node| node.core.establish());
        futures::future::try_join_all(established).await.unwrap();
        nodes
    }

    /// `http://HOST:PORT` and a path.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Tells the listeners to stop.
    pub fn begin_stop(&self) {
        self.shutdown.cancel();
    }

    /// Stops listeners, then the node; every test ends with it, so that tasks that do not end show.
    pub async fn stop(self) {
        self.shutdown.cancel();
        let ended = tokio::time::timeout(Duration::from_secs(20), self.serving).await;
        ended.expect("every connection ends").unwrap();
        self.core.shutdown().await;
    }

    /// The value of a metric, by the start of its line; 0 when it is not there.
    pub fn metric(&self, line: &str) -> f64 {
        let text = self.metrics.encode();
        let found = text.lines().find_map(|l| l.strip_prefix(line)?.strip_prefix(' '));
        found.map_or(0.0, |value| value.parse().unwrap())
    }

    /// Waits until a metric is at least this.
    pub async fn reaches(&self, line: &str, value: f64) {
        let reached = async {
            while self.metric(line) < value {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let reached = tokio::time::timeout(Duration::from_secs(30), reached).await;
        assert!(reached.is_ok(), "{line} stays below {value}:\n{}", self.metrics.encode());
    }
}
