//! The one API of every listener: authorization, admission, routing, appends, reads, topics, and descriptions of the
//! cluster.
//!
//! Listeners decode bytes into the requests of `model/` and encode the answers; all decisions are made here or below.
//! Listeners call through `for_caller.rs`, which checks the permissions of the caller. [`Broker`] itself checks no
//! permissions and serves the node.
//!
//! - `append.rs`, `read.rs`, `long_poll.rs`: appends, reads and waits; `forward.rs`: sends requests to the leader when it is
//!   another node; `elsewhere.rs`: reads past a damaged replica; `request_checks.rs`: the rules for requests;
//! - `topic_admin.rs`, `cluster_admin.rs`: changes and descriptions of topics and nodes; `descriptions.rs`: what these return;
//!   `metrics_view.rs`: what metrics read;
//! - `authorizer.rs`, `audit.rs`: permissions and quotas, and the audit trail;
//! - `name_source.rs`: a person names the source of a partition;
//! - `errors.rs`: the table from internal errors to answers; `disk_space.rs`: rejects appends on a full volume.
//!
//! Never names a protocol, nor the code that starts and stops the node. Neighbours: `listeners/` and `groups/` above;
//! `partition/` and `controller/` below.

mod append;
mod audit;
mod authorizer;
mod cluster_admin;
mod descriptions;
mod disk_space;
mod elsewhere;
mod errors;
mod for_caller;
mod forward;
mod long_poll;
mod metrics_view;
mod name_source;
mod read;
mod request_checks;
mod topic_admin;
mod topic_traffic;

use std::sync::{Arc, OnceLock};

use chronicle_log::Store;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use append::PendingProduce;
pub use authorizer::Authorizer;
pub use descriptions::*;
use disk_space::DiskSpace;
pub use for_caller::ForCaller;
pub use metrics_view::ControllerView;
use topic_traffic::TopicTable;
pub use topic_traffic::TopicTraffic;

use crate::cluster::Cluster;
use crate::config::{Config, Live};
use crate::controller::Controller;
use crate::membership::JoinRefusal;
use crate::model::{ApiError, PartitionError, Reason, Topic, TopicPartition, unknown_topic};
use crate::partition::{Partition, Replicas};
use crate::peers::Expulsion;

/// Where a request may be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// Only on this node: for clients that find the leader themselves.
    Local,
    /// By the leader of the partition; forwarded when that is another node: for clients that cannot find the leader.
    Leader,
}

/// The node behind its listeners. Cheap to clone.
#[derive(Clone)]
pub struct Broker {
    inner: Arc<BrokerInner>,
}

struct BrokerInner {
    cluster: Arc<Cluster>,
    replicas: Replicas,
    /// The controller group on this node, once the node is part of a cluster.
    controller: OnceLock<Arc<Controller>>,
    /// The progress of bootstrapping or joining, as human-readable text.
    joining: watch::Receiver<String>,
    /// True once this process is registered with the controller.
    established: watch::Receiver<bool>,
    disk_space: DiskSpace,
    traffic: TopicTable,
    authorizer: Authorizer,
    /// Held while a topic is changed, so that the change applies to the state that was read.
    changing_topics: tokio::sync::Mutex<()>,
    stop: CancellationToken,
}

impl Broker {
    /// Creates a broker over these replicas. Until [`Broker::attach`] it has no controller group, and rejects requests
    /// that need one. `joining`, `established`: the progress of bootstrapping or joining; `stop`: ends requests that
    /// wait.
    pub(crate) fn new(
        replicas: Replicas,
        joining: watch::Receiver<String>,
        established: watch::Receiver<bool>,
        stop: CancellationToken,
    ) -> Self {
        let cluster = replicas.environment().cluster.clone();
        let live = cluster.config.clone();
        let inner = BrokerInner {
            replicas,
            controller: OnceLock::new(),
            joining,
            established,
            disk_space: DiskSpace::new(live.clone()),
            traffic: TopicTable::new(live.now().metrics.topics_max),
            authorizer: Authorizer::new(live, cluster.metadata.clone()),
            changing_topics: tokio::sync::Mutex::new(()),
            stop,
            cluster,
        };
        Self { inner: Arc::new(inner) }
    }

    /// Gives the broker the controller group on this node; `false`: it has one already.
    pub(crate) fn attach(&self, controller: Arc<Controller>) -> bool {
        self.inner.controller.set(controller).is_ok()
    }

    /// The configuration in force.
    pub fn config(&self) -> Arc<Config> {
        self.inner.cluster.config()
    }

    /// The configuration in force, and its changes.
    pub fn live(&self) -> &Live {
        &self.inner.cluster.config
    }

    /// The cluster as this node sees it.
    pub(crate) fn cluster(&self) -> &Arc<Cluster> {
        &self.inner.cluster
    }

    /// The replicas on this node.
    pub(crate) fn replicas(&self) -> &Replicas {
        &self.inner.replicas
    }

    /// The data directory, for its metrics.
    pub fn store(&self) -> &Arc<Store> {
        &self.inner.cluster.store
    }

    /// Checks the permissions and quotas of callers on this node.
    pub fn authorizer(&self) -> &Authorizer {
        &self.inner.authorizer
    }

    /// Whether the node can serve.
    pub fn readiness(&self) -> Readiness {
        if self.inner.stop.is_cancelled() {
            return Readiness::NotReady("stopping".into());
        }
        let Some(controller) = self.inner.controller.get() else {
            return Readiness::NotReady(self.why_no_controller());
        };
        match controller.failure() {
            Some(error) => Readiness::NotReady(format!("controller group: {}", ApiError::from(error))),
            None if let Some(expelled) = &*self.inner.cluster.peers.liveness().expelled().borrow() => {
                let refusal = match expelled {
                    Expulsion::Removed(_) => JoinRefusal::Removed,
                    Expulsion::RolledBack(_) => JoinRefusal::RolledBack,
                };
                Readiness::NotReady(refusal.to_string())
            }
            None if let Some(age) = self.disk_stalled_for() => Readiness::NotReady(format!(
                "the disk does not respond: a write or flush has been running for {} ms (storage.stall-ms)",
                age.as_millis()
            )),
            None if !*self.inner.established.borrow() => {
                Readiness::NotReady("not registered with the controller yet".into())
            }
            None => Readiness::Ready,
        }
    }

    /// Waits until the node is part of its cluster.
    pub(crate) async fn established(&self) {
        // The channel closes only when the node stops.
        let _ = self.inner.established.clone().wait_for(|established| *established).await;
    }

    /// The controller group on this node.
    pub(crate) fn controller(&self) -> Result<&Arc<Controller>, ApiError> {
        self.inner.controller.get().ok_or_else(|| {
            let status = self.why_no_controller();
            ApiError::new(Reason::Unavailable, format!("the node is not part of a cluster yet: {status}"))
        })
    }

    /// Why there is no controller group on this node yet.
    fn why_no_controller(&self) -> String {
        match &**self.inner.cluster.controller_repair.lock() {
            "" => self.inner.joining.borrow().clone(),
            why => format!(
                "the log of the controller group is damaged and waits for another node to be repaired from: {why}; if that node \
                 does not come back, see docs/operations/damage.md"
            ),
        }
    }

    /// Translates a failure of a partition into an error for a client.
    pub(crate) fn api_error(&self, error: PartitionError) -> ApiError {
        errors::partition_error(error, &self.inner.cluster.state())
    }

    /// Checks that the data volume has space for another append.
    ///
    /// # Errors
    /// [`Reason::DiskFull`].
    pub(crate) fn check_space(&self) -> Result<(), ApiError> {
        self.inner.disk_space.check(self.store())
    }

    /// Returns the topic of a request, when it has the requested partition. When this node does not know the topic, it
    /// synchronises once with the controller leader: the topic may have been committed a moment ago.
    async fn topic(&self, target: &TopicPartition) -> Result<Topic, ApiError> {
        match self.known_topic(target) {
            Ok(topic) => Ok(topic),
            Err(error) if self.alone() => Err(error),
            // Boxed: rare, and large.
            Err(_) => match Box::pin(self.controller()?.sync()).await {
                Ok(()) => self.known_topic(target),
                // A node that has just started has applied no metadata yet: "no such topic" would be final, and wrong.
                Err(unavailable) => Err(unavailable.into()),
            },
        }
    }

    /// Synchronises once with the controller leader, unless this node knows all these topics and partitions: afterwards one
    /// that it does not know does not exist.
    ///
    /// # Errors
    /// [`Reason::Unavailable`] when the controller leader does not answer.
    pub(crate) async fn know<'a>(&self, wanted: impl IntoIterator<Item = (&'a str, i32)>) -> Result<(), ApiError> {
        let state = self.inner.cluster.state();
        let known = |(name, number): (&str, i32)| state.topics.get(name).is_some_and(|topic| number < topic.partitions);
        if wanted.into_iter().all(known) || self.alone() {
            return Ok(());
        }
        // Boxed: rare, and large.
        Ok(Box::pin(self.controller()?.sync()).await?)
    }

    fn known_topic(&self, target: &TopicPartition) -> Result<Topic, ApiError> {
        let state = self.inner.cluster.state();
        let topic = match state.topics.get(&target.topic) {
            Some(topic) => topic,
            None => {
                self.controller()?;
                return Err(unknown_topic(&target.topic));
            }
        };
        request_checks::partition(topic, target.partition)?;
        Ok(topic.clone())
    }

    /// This node is the whole cluster, and has applied everything that was committed before it started.
    pub(crate) fn alone(&self) -> bool {
        *self.inner.established.borrow() && self.inner.cluster.state().nodes.len() == 1
    }

    /// Returns a partition, and opens it if necessary.
    ///
    /// # Errors
    /// The failure to open it.
    pub(crate) async fn partition(&self, topic: &Topic, partition: i32) -> Result<Arc<Partition>, ApiError> {
        self.inner.replicas.open(topic, partition).await.map_err(|error| self.api_error(error))
    }

    /// Returns a partition that this node leads; opens it and waits for an election if necessary.
    ///
    /// # Errors
    /// [`Reason::NotLeader`]; the failure to open it.
    pub(crate) async fn led_partition(&self, topic: &Topic, partition: i32) -> Result<Arc<Partition>, ApiError> {
        self.inner.replicas.lead(topic, partition).await.map_err(|error| self.api_error(error))
    }
}
