//! Measures three nodes on this machine: the cost of replication, and the time until they serve again after a failure.
//!
//! All three nodes share the disk and the cores with the client. Separate machines are not available here, so the
//! figures are compared with those of one node, or of the disk, from the same run.

mod catchup;
mod failover;
mod idle;
mod pacer;
mod replicas;
mod restart;
mod soak;

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use chronicle_client::Client;
use chronicle_tests::cluster::{Cluster, ClusterSetup};
use chronicle_tests::node::PATIENCE;
use chronicle_tests::tls;

pub(crate) use catchup::run as catchup;
pub(crate) use failover::run as failover;
pub(crate) use idle::run as idle;
pub(crate) use replicas::run as replicas;
pub(crate) use restart::run as restart;
pub(crate) use soak::run as soak;

use super::load::Place;

const NODES: usize = 3;
const TOPIC: &str = "measured";

/// Three nodes with their data in folders of `dir`, not started.
fn setup(dir: &Path) -> ClusterSetup {
    (0..NODES).fold(Cluster::of(NODES), |setup, node| setup.data_dir(node, dir.join(format!("node-{node}"))))
}

/// Three nodes that run and have a topic of one partition on all of them.
async fn with_topic(dir: &Path) -> Result<Cluster> {
    let cluster = setup(dir).start().await?;
    cluster.create_topic(TOPIC, 1, 3, None).await?;
    cluster.leader(TOPIC, 0).await?;
    Ok(cluster)
}

/// Where the leader of the measured partition is.
async fn place(cluster: &Cluster) -> Result<Place<'static>> {
    let leader = cluster.leader(TOPIC, 0).await?;
    Ok(Place { address: cluster.node(leader).address(), topic: TOPIC })
}

fn client(cluster: &Cluster) -> Result<Client> {
    Ok(Client::connect(tls::client_config(&cluster.servers()))?)
}

/// Waits until a condition holds, checking it every few milliseconds; returns the seconds from `start`.
async fn until(start: Instant, what: &str, mut look: impl AsyncFnMut() -> Result<bool>) -> Result<f64> {
    let deadline = Instant::now() + 5 * PATIENCE;
    while !look().await.with_context(|| what.to_owned())? {
        ensure!(Instant::now() < deadline, "not within {:?}: {what}", 5 * PATIENCE);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(start.elapsed().as_secs_f64())
}
