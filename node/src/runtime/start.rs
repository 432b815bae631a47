//! Starting and stopping a node's core.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use chronicle_log::disk::{Disk, RealDisk};
use chronicle_log::{Barrier, LogError, Store, StoreConfig};
use futures::future::BoxFuture;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::generation;
use super::join_cluster::{Calls, JournalMemory, advertised};
use super::{Node, NodeInner};
use crate::broker::Broker;
use crate::cluster::Cluster;
use crate::config::{BarrierKind, Config, Live, StorageConfig, TlsMode};
use crate::controller::ControllerError;
use crate::discovery::{self, Announced};
use crate::groups;
use crate::host::Host;
use crate::membership::{Chance, Membership, Own};
use crate::model::{ApiError, PartitionError, Reason};
use crate::partition::{Environment, Replicas};
use crate::peers::{Handler, Liveness, LivenessConfig, PeerServer, Peers};
use crate::security::Tls;

/// Longest wait for leadership transfers when the node stops.
const HAND_OVER_TIMEOUT: Duration = Duration::from_secs(5);

/// Interval at which a node checks whether another process has released the data directory.
const LOCK_RETRY: Duration = Duration::from_millis(200);

impl Node {
    /// [`Node::prepare`] and [`Node::establish`] on the real disk: for a node that is its own cluster.
    ///
    /// # Errors
    /// Everything that prevents opening the data directory (in use, newer format, read-only, damaged, full), with a
    /// message that names the directory.
    pub fn start(config: Arc<Config>) -> BoxFuture<'static, Result<Node, ApiError>> {
        Self::start_on(config, Arc::new(RealDisk))
    }

    /// As [`Node::start`], on another disk: a simulated disk, or one that fails on purpose.
    ///
    /// # Errors
    /// As [`Node::start`].
    pub fn start_on(config: Arc<Config>, disk: Arc<dyn Disk>) -> BoxFuture<'static, Result<Node, ApiError>> {
        // Boxed: compiled here, not in every program that starts a node.
        Box::pin(async move {
            let node = Self::prepare(config, Host::with_disk(disk), &CancellationToken::new()).await?;
            match node.establish().await {
                Ok(()) => Ok(node),
                Err(error) => {
                    node.shutdown().await;
                    Err(error)
                }
            }
        })
    }

    /// Opens the data directory of `config`. From now on the node answers its peers, if the caller serves them
    /// ([`Node::peer_server`]); everything else requires [`Node::establish`]. When `stop` is cancelled, the call no
    /// longer waits for another process to release the directory.
    ///
    /// # Errors
    /// As [`Node::start`]; invalid configuration of discovery.
    pub async fn prepare(config: Arc<Config>, host: Host, stop: &CancellationToken) -> Result<Node, ApiError> {
        let tls = security(&config).await?;
        let store = open_store(&config, &host, stop).await?;
        #[expect(
            clippy::disallowed_methods,
            reason = "two starts of a process must differ, and two copies of a directory"
        )]
        let (boot, lineage) = (rand::random::<u64>().max(1), rand::random());
        let start = match generation::begin(&store, boot, lineage).await {
            Ok(start) => start,
            Err(error) => {
                close_store(store).await;
                return Err(error);
            }
        };
        let mut runtimes = Vec::new();
        let consensus = runtime(&host, "consensus", consensus_threads(), &mut runtimes)?;
        let liveness_runtime = runtime(&host, "liveness", 1, &mut runtimes)?;
        let liveness = Liveness::new(
            LivenessConfig {
                interval: Duration::from_millis(config.cluster.beat_interval_ms),
                suspect_after: Duration::from_millis(config.cluster.suspect_after_ms),
                start,
            },
            tls.clone(),
            liveness_runtime,
        );
        for (node, seen) in generation::remembered(&store) {
            liveness.generations().learn(node, seen);
        }
        let window = config.cluster.peer_window_bytes;
        let peers = Peers::new(host.connector, tls.clone(), consensus.clone(), window, liveness);
        let discovered = discover(&config, &store, &peers, boot).await;
        let (membership, discovery) = match discovered {
            Ok(found) => found,
            Err(error) => {
                peers.close();
                for runtime in runtimes {
                    runtime.shutdown_background();
                }
                close_store(store).await;
                return Err(error);
            }
        };
        let live = Live::new(config.clone());
        let cluster = Arc::new(Cluster::new(store, consensus, peers, live));
        if config.security.authorization.enabled && tls.is_none() {
            tracing::warn!(
                "security.authorization is on and TLS is off: every client is anonymous, so no client can be a super user"
            );
        }
        let stop = CancellationToken::new();
        let replicas = Replicas::new(Arc::new(Environment::new(cluster.clone(), groups::view_of)), stop.clone());
        let established = watch::Sender::new(false);
        let broker = Broker::new(replicas.clone(), membership.status(), established.subscribe(), stop.clone());
        let inner = NodeInner {
            broker,
            cluster,
            replicas,
            tls,
            membership,
            discovery,
            established,
            stop,
            peer_stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
            runtimes: parking_lot::Mutex::new(runtimes),
        };
        let node = Node { inner: Arc::new(inner) };
        node.start_tasks();
        Ok(node)
    }

    /// Serves the connections of peers that the listener passes on, until [`Node::shutdown`] is complete.
    pub fn peer_server(&self) -> PeerServer {
        let cluster = &self.inner.cluster;
        let handler: Arc<dyn Handler> = Arc::new(self.clone());
        PeerServer::new(cluster.peers.clone(), handler, cluster.consensus.clone(), self.inner.peer_stop.clone())
    }

    /// Transfers all leadership to other nodes, finishes accepted requests, then closes every partition and the data
    /// directory. Ends long polls at once.
    pub fn shutdown(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let inner = &self.inner;
            if tokio::time::timeout(HAND_OVER_TIMEOUT, inner.broker.hand_over_all()).await.is_err() {
                tracing::warn!("leadership transfers timed out, stopping anyway");
            }
            inner.stop.cancel();
            inner.discovery.shutdown().await;
            inner.tasks.close();
            inner.tasks.wait().await;
            inner.replicas.join().await;
            inner.replicas.close().await;
            if let Ok(controller) = inner.broker.controller() {
                controller.close().await;
            }
            generation::finish(self).await;
            inner.peer_stop.cancel();
            inner.cluster.peers.close();
            close_store(inner.cluster.store.clone()).await;
            for runtime in inner.runtimes.lock().drain(..) {
                runtime.shutdown_background();
            }
        })
    }
}

/// The certificates of a node that has any; logs a warning when TLS is off.
async fn security(config: &Arc<Config>) -> Result<Option<Arc<Tls>>, ApiError> {
    if config.security.tls.mode != TlsMode::Enabled {
        let address = config.listeners.data;
        tracing::warn!(%address, "TLS is off (security.tls.mode): any client that can connect can read and write everything");
        return Ok(None);
    }
    let config = config.clone();
    let opened = crate::host::blocking(move || Tls::open(&config.security)).await;
    let failed = |error: String| ApiError::new(Reason::Internal, error);
    opened.map_err(|e| failed(e.to_string()))?.map(Some).map_err(|e| failed(e.to_string()))
}

async fn discover(
    config: &Config,
    store: &Arc<Store>,
    peers: &Arc<Peers>,
    boot: u64,
) -> Result<(Arc<Membership>, Arc<dyn discovery::Discovery>), ApiError> {
    let refused = |error: String| ApiError::new(Reason::Unavailable, error);
    let addresses = advertised(config);
    let announced = Announced { node_id: store.node_id(), boot, address: addresses.data().to_owned() };
    let discovery = discovery::from_config(&config.cluster, &announced).await.map_err(|e| refused(e.to_string()))?;
    let seeded = config.cluster.discovery != crate::config::DiscoveryKind::Static || !config.cluster.seeds.is_empty();
    let own = Own {
        node_id: store.node_id(),
        name: config.node.name.clone(),
        addresses,
        zone: config.cluster.zone.clone(),
        version: env!("CARGO_PKG_VERSION").into(),
        start: peers.liveness().generations().at_start(),
        bootstrap_expect: config.cluster.bootstrap_expect,
        seeded,
    };
    let memory = Arc::new(JournalMemory(store.clone()));
    let calls = Arc::new(Calls(peers.clone()));
    let membership = Membership::open(own, memory, calls, discovery.clone(), Chance::system())
        .await
        .map_err(|e| refused(e.to_string()))?;
    Ok((Arc::new(membership), discovery))
}

/// The host's runtime, or a new one that is added to `own`.
fn runtime(host: &Host, name: &'static str, threads: usize, own: &mut Vec<Runtime>) -> Result<Handle, ApiError> {
    if let Some(runtime) = &host.runtime {
        return Ok(runtime.clone());
    }
    let runtime = Builder::new_multi_thread()
        .worker_threads(threads)
        .thread_name(name)
        .enable_all()
        .build()
        .map_err(|e| ApiError::new(Reason::Internal, format!("{name} runtime: {e}")))?;
    let handle = runtime.handle().clone();
    own.push(runtime);
    Ok(handle)
}

async fn close_store(store: Arc<Store>) {
    match crate::host::blocking(move || store.close()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%error, "the data directory did not close cleanly"),
        Err(error) => tracing::error!(%error, "closing the data directory panicked"),
    }
}

/// Half the cores: the API and the storage threads need the rest.
fn consensus_threads() -> usize {
    std::thread::available_parallelism().map(|cores| (cores.get() / 2).clamp(1, 8)).unwrap_or(1)
}

/// Opens the data directory. Waits at most the configured time for another process to release it, and not after `stop`.
async fn open_store(config: &Config, host: &Host, stop: &CancellationToken) -> Result<Arc<Store>, ApiError> {
    let end = Instant::now() + Duration::from_millis(config.storage.lock_wait_ms);
    let mut logged = false;
    loop {
        let (open, dir) = (host.open_store.clone(), config.node.data_dir.clone());
        let store_config = store_config(&config.storage);
        let opened = crate::host::blocking(move || open(&dir, store_config))
            .await
            .map_err(|e| ApiError::new(Reason::Internal, format!("opening the data directory: {e}")))?;
        match opened {
            Err(error @ LogError::Locked { .. }) if Instant::now() < end && !stop.is_cancelled() => {
                if !logged {
                    let wait_ms = config.storage.lock_wait_ms;
                    tracing::warn!(%error, wait_ms, "data directory in use, waiting for the other process (storage.lock-wait-ms)");
                    logged = true;
                }
                stop.run_until_cancelled(tokio::time::sleep(LOCK_RETRY)).await;
            }
            opened => {
                return opened.map_err(|error| {
                    let way_out = way_out(&error, &config.node.data_dir);
                    let mut error = ApiError::from(ControllerError::from(PartitionError::from(error)));
                    error.message += &way_out;
                    error
                });
            }
        }
    }
}

/// What can be done when the data directory does not open, for the error.
fn way_out(error: &LogError, dir: &Path) -> String {
    match error.root() {
        LogError::Damaged { path, .. } if path.starts_with(dir.join("meta")) => format!(
            ". The journal may have lost votes, so that the node does not start with it. To go on with what can be read of it, and fill \
             the logs from other nodes: `chronicle debug repair-journal --data {}` (docs/operations/damage.md)",
            dir.display()
        ),
        _ => String::new(),
    }
}

fn store_config(storage: &StorageConfig) -> StoreConfig {
    StoreConfig {
        index_interval_bytes: storage.index_interval_bytes,
        tail_cache_bytes: storage.tail_cache_bytes,
        // The budget of the sequencers keeps this bound: a refusal below raft would stop the group.
        max_pending_bytes: u64::MAX,
        barrier: match storage.barrier {
            BarrierKind::Auto => Barrier::Auto,
            BarrierKind::Fdatasync => Barrier::Fdatasync,
            BarrierKind::Syncfs => Barrier::Syncfs,
        },
        flush_threads: storage.flush_threads,
        ..StoreConfig::default()
    }
}
