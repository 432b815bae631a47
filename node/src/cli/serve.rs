//! A node from start to stop, for `node` and `dev`.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use chronicle_node::broker::Broker;
use chronicle_node::config::Config;

use super::signal;

/// Where a node that is ready serves.
#[derive(Debug)]
pub(super) struct Serving {
    data: SocketAddr,
    ops: SocketAddr,
    data_dir: PathBuf,
}

impl fmt::Display for Serving {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { data, ops, data_dir } = self;
        write!(f, "chronicle serves on {data} (gRPC, HTTP), ops on {ops}, data in {}", data_dir.display())
    }
}

/// Opens the data directory, serves, calls `ready` once requests are accepted, and stops in good order on SIGINT or SIGTERM.
pub(super) async fn run(config: Arc<Config>, ready: impl FnOnce(&Serving) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let broker = Broker::start(config.clone()).await?;
    let serving =
        Serving { data: config.listeners.data, ops: config.listeners.ops, data_dir: config.node.data_dir.clone() };
    let result = match ready(&serving) {
        Ok(()) => signal::stop_requested().await.map_err(Into::into),
        Err(error) => Err(error),
    };
    broker.shutdown().await;
    result
}
