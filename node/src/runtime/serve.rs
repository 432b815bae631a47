//! A whole node from start to stop: ports, broker, listeners, in the order in which they depend on one another.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use futures::future::BoxFuture;
use tokio_util::sync::CancellationToken;

use super::{Node, collect_node};
use crate::config::live::Reload;
use crate::config::{Config, Live};
use crate::groups::Groups;
use crate::host::Host;
use crate::host::net::{Acceptor, BindError};
use crate::listeners::{self, OpsServer, Probe, Services};
use crate::model::ApiError;
use crate::security::Tls;
use crate::telemetry::traces::Traces;
use crate::telemetry::{Metrics, logging, traces};

/// Why a node does not start, or stops with an error.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A port cannot be listened on.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The data directory or the controller group does not open, or the controller group failed while running.
    #[error("{}", .0.message)]
    Node(ApiError),
}

impl From<ApiError> for StartError {
    fn from(error: ApiError) -> Self {
        Self::Node(error)
    }
}

/// Where a node that is ready serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Serving {
    /// Data port.
    pub data: SocketAddr,
    /// Ops port.
    pub ops: SocketAddr,
    /// Data directory.
    pub data_dir: PathBuf,
}

/// Runs a node until `stop`. Binds the ports first, so that a port in use is found before the data directory is opened,
/// and the ops port responds while the data directory recovers. Calls `ready` once requests are served. Stopping
/// rejects new requests, finishes accepted ones, and closes the data directory so that the next start needs no
/// recovery. With `reload`, changes of the configuration file are applied to the live fields.
///
/// # Errors
/// What prevents the start, or the failure of the controller group. Nothing is left running then.
pub fn run(
    config: Config,
    reload: Option<Reload>,
    stop: CancellationToken,
    ready: impl FnOnce(&Serving) + Send + 'static,
) -> BoxFuture<'static, Result<(), StartError>> {
    // Boxed, and not generic below: compiled here, not in every program that runs a node.
    Box::pin(run_here(config, reload, stop, Box::new(ready)))
}

async fn run_here(
    mut config: Config,
    reload: Option<Reload>,
    stop: CancellationToken,
    ready: Box<dyn FnOnce(&Serving) + Send>,
) -> Result<(), StartError> {
    let started = config.clone();
    let (acceptor, data) = listeners::listen(config.listeners.data).await?;
    config.listeners.data = data;
    let metrics = Metrics::new();
    let probe = Probe::new();
    let ops = OpsServer::bind(config.listeners.ops, probe.clone(), metrics.clone()).await?;
    let serving = Serving { data, ops: ops.local_addr(), data_dir: config.node.data_dir.clone() };

    let ops_stop = CancellationToken::new();
    let ops_task = tokio::spawn(ops.serve(ops_stop.clone()));
    let expiry = logging::control().map(|control| {
        let stop = ops_stop.clone();
        tokio::spawn(async move { _ = stop.run_until_cancelled(control.expire()).await })
    });
    let mut following = None;
    let opened = |node: &Node| {
        collect_node(&metrics, node);
        let broker = node.broker();
        probe.attach(broker.clone());
        if let Some(reload) = reload {
            let (stop, live, tls) = (ops_stop.clone(), broker.live().clone(), node.tls());
            let watch = reload.watch(started, live.clone());
            following = Some(tokio::spawn(async move {
                stop.run_until_cancelled(async { tokio::join!(watch, follow(live, tls)) }).await;
            }));
        }
    };
    let result = run_on(Host::system(), acceptor, config, metrics.clone(), stop, opened, || ready(&serving)).await;
    ops_stop.cancel();
    if let Err(error) = ops_task.await {
        tracing::error!(%error, "the ops listener panicked");
    }
    if let Some(expiry) = expiry
        && let Err(error) = expiry.await
    {
        tracing::error!(%error, "the task that ends log filters panicked");
    }
    if let Some(following) = following
        && let Err(error) = following.await
    {
        tracing::error!(%error, "the task that follows the configuration file panicked");
    }
    result.map_err(StartError::from)
}

/// Passes changed fields to the parts that do not read the configuration themselves. Safe to drop.
async fn follow(live: Live, tls: Option<Arc<Tls>>) {
    let mut changes = live.changes();
    while changes.changed().await.is_ok() {
        let config = changes.borrow_and_update().clone();
        if let Some(tls) = &tls {
            tls.set_principal_rules(&config.security.principal_rules);
        }
        Traces::resample(&config.telemetry.traces);
        if let Some(control) = logging::control()
            && let Err(error) = control.configure(&config.log.filter)
        {
            tracing::error!(%error, "cannot apply log filter, previous filter stays in effect");
        }
    }
}

impl Node {
    /// What its data port serves.
    pub fn services(&self, metrics: Metrics) -> Services {
        let broker = self.broker().clone();
        let groups = Groups::start(broker.clone());
        Services { broker, groups, peers: self.peer_server(), tls: self.tls(), metrics }
    }
}

/// As [`run`], without an ops port, on a host given by the caller: the machine, or a simulated one. Calls `opened` when
/// the data directory is open and nothing is served yet.
///
/// # Errors
/// As [`run`].
pub async fn run_on(
    host: Host,
    acceptor: Acceptor,
    config: Config,
    metrics: Metrics,
    stop: CancellationToken,
    opened: impl FnOnce(&Node),
    ready: impl FnOnce(),
) -> Result<(), ApiError> {
    let data = config.listeners.data;
    let node = Node::prepare(Arc::new(config), host, &stop).await?;
    opened(&node);
    let server = listeners::Server::new(acceptor, data, node.services(metrics));
    // Peers are served from the start: bootstrapping a cluster needs it.
    let server_task = tokio::spawn(server.serve(stop.clone()));
    let failed = serve(&node, &stop, ready).await;
    if let Some(error) = &failed {
        tracing::error!(%error, "node failed, stopping");
    }
    stop.cancel();
    if let Err(error) = server_task.await {
        tracing::error!(%error, "the data listener panicked");
    }
    node.shutdown().await;
    failed.map_or(Ok(()), Err)
}

/// Waits until `stop` (`None`), a permanent refusal by the cluster, or a failure of the controller group. Without its
/// controller group a node has no metadata to act on: it must restart from its data directory.
async fn serve(node: &Node, stop: &CancellationToken, ready: impl FnOnce()) -> Option<ApiError> {
    tokio::select! {
        biased;
        () = stop.cancelled() => return None,
        established = node.establish() => match established {
            Ok(()) => {
                node.cluster_id().into_iter().for_each(traces::of_cluster);
                ready();
            }
            Err(error) => return Some(error),
        },
        // Without a leader nobody answers the registration, but any peer may know that this node must stop.
        error = node.failed() => return Some(error),
    }
    tokio::select! {
        biased;
        () = stop.cancelled() => None,
        error = node.failed() => Some(error),
    }
}
