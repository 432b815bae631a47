//! The node as a whole: what starts it, brings it into its cluster, answers its peers, and stops it.
//!
//! This is the composition root, the only place that knows every part and the order in which they depend on one another:
//!
//! ```text
//! serve.rs         ports, listeners, the configuration file; runs a node until shutdown is requested
//! start.rs         data directory, runtimes, peers, cluster, replicas, broker: opened bottom up, closed top down
//! join_cluster.rs  bootstraps or joins the cluster, starts the controller group, admits other nodes
//! peer_calls.rs    answers the calls of other nodes
//! offline_repair.rs  repairs in the data directory of a stopped node, for the command line
//! generation.rs    the generation of the data directory, by which a rollback is noticed
//! offline.rs       changes to the data directory of a node that does not run
//! tasks.rs         background tasks of the node
//! collect.rs       collects the metrics of all parts
//! ```
//!
//! Makes no decisions about data. Neighbours: `cli/` above; everything else below.

mod collect;
mod generation;
mod join_cluster;
mod offline;
mod offline_repair;
mod peer_calls;
mod serve;
mod start;
mod tasks;

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

pub use collect::collect_node;
pub use offline::{DirectoryOwner, OfflineDirectory, OfflineError};
pub use offline_repair::{
    JournalRepairMode, JournalRepairReport, OfflineRepairError, OfflineRole, recover_offline, repair_journal,
};
pub use serve::{Serving, StartError, run, run_on};

use crate::broker::Broker;
use crate::cluster::Cluster;
use crate::discovery::Discovery;
use crate::membership::{JoinRefusal, Membership};
use crate::model::{ApiError, Reason};
use crate::partition::Replicas;
use crate::peers::Expulsion;
use crate::security::Tls;

/// Interval at which the controller group is checked for a failure.
const FAILURE_CHECK: Duration = Duration::from_millis(500);

/// The error of a node that its cluster permanently refuses, with the code of the refusal as the value `refusal`.
fn refused(refusal: JoinRefusal, why: &str) -> ApiError {
    ApiError::new(Reason::Unavailable, format!("the cluster refuses this node: {refusal}: {why}"))
        .with("refusal", refusal.code())
}

/// A node without its listeners: from [`Node::prepare`] to [`Node::shutdown`]. Cheap to clone.
#[derive(Clone)]
pub struct Node {
    inner: Arc<NodeInner>,
}

struct NodeInner {
    broker: Broker,
    cluster: Arc<Cluster>,
    replicas: Replicas,
    /// `None`: plaintext.
    tls: Option<Arc<Tls>>,
    membership: Arc<Membership>,
    discovery: Arc<dyn Discovery>,
    /// True once this process is registered with the controller.
    established: watch::Sender<bool>,
    stop: CancellationToken,
    /// Stops serving peers; cancelled last of all.
    peer_stop: CancellationToken,
    tasks: TaskTracker,
    /// Consensus and liveness. Taken at shutdown: a runtime must not be dropped inside another one.
    runtimes: parking_lot::Mutex<Vec<Runtime>>,
}

impl Drop for NodeInner {
    fn drop(&mut self) {
        // The node was dropped without `shutdown`: dropping the runtime here would panic inside another one.
        for runtime in self.runtimes.lock().drain(..) {
            runtime.shutdown_background();
        }
    }
}

impl Node {
    /// The node's API.
    pub fn broker(&self) -> &Broker {
        &self.inner.broker
    }

    /// The cluster of this node; `None` before the node is part of one.
    pub fn cluster_id(&self) -> Option<Uuid> {
        self.inner.cluster.peers.me().map(|me| me.cluster)
    }

    /// Encryption of the data port; `None`: it speaks plaintext.
    pub fn tls(&self) -> Option<Arc<Tls>> {
        self.inner.tls.clone()
    }

    /// Waits until the node cannot continue, and returns why: the controller group has failed, or the cluster has
    /// removed the node or found that its data directory was rolled back. Does not return while the node is a healthy member.
    pub async fn failed(&self) -> ApiError {
        let mut expelled = self.inner.cluster.peers.liveness().expelled();
        let mut tick = tokio::time::interval(FAILURE_CHECK);
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                Ok(expelled) = expelled.wait_for(Option::is_some) => match &*expelled {
                    Some(Expulsion::Removed(why)) => return refused(JoinRefusal::Removed, why),
                    Some(Expulsion::RolledBack(why)) => return refused(JoinRefusal::RolledBack, why),
                    None => {}
                }
            }
            if let Some(error) = self.inner.broker.controller().ok().and_then(|controller| controller.failure()) {
                return error.into();
            }
        }
    }

    fn not_stopping(&self) -> Result<(), ApiError> {
        match self.inner.stop.is_cancelled() {
            true => Err(ApiError::new(Reason::Unavailable, "the node is stopping")),
            false => Ok(()),
        }
    }
}
