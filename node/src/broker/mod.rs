//! The one API of every listener: who may, admission, routing, appends, reads, topics, and the cluster as it is described.
//!
//! Listeners turn bytes into the requests of `model/` and answers into bytes; everything that is decided is decided here or
//! below. They come in by `for_caller.rs`, which judges who asks; [`Broker`] itself judges nobody and serves the node.
//!
//! - `append.rs`, `read.rs`, `wait.rs`: the paths of data; `forward.rs`: to the leader, when it is another node;
//!   `request_checks.rs`: the rules;
//! - `topic_admin.rs`, `nodes.rs`: changes and descriptions of topics and nodes; `metrics_view.rs`: what metrics read;
//! - `authorizer.rs`, `audit.rs`: who may do what, and what is written of it;
//! - `errors.rs`: the table from errors inside to answers; `disk_space.rs`: no appends on a full volume.
//!
//! Never names a protocol, nor what starts and stops the node. Neighbours: `listeners/` and `groups/` above; `partition/` and
//! `controller/` below.

mod append;
mod audit;
mod authorizer;
mod disk_space;
mod errors;
mod for_caller;
mod forward;
mod metrics_view;
mod nodes;
mod read;
mod request_checks;
mod topic_admin;
mod topic_traffic;
mod types;
mod wait;

use std::sync::{Arc, OnceLock};

use chronicle_log::Store;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use append::PendingProduce;
pub use authorizer::Authorizer;
use disk_space::DiskSpace;
pub use for_caller::ForCaller;
pub use metrics_view::ControllerView;
use topic_traffic::TopicTable;
pub use topic_traffic::TopicTraffic;
pub use types::*;

use crate::cluster::Cluster;
use crate::config::{Config, Live};
use crate::controller::Controller;
use crate::membership::JoinRefusal;
use crate::model::{ApiError, PartitionError, Reason, Topic, TopicPartition, unknown_topic};
use crate::partition::{Partition, Replicas};

/// Where a request may be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// On this node, or not at all: for clients that find the leader themselves.
    Local,
    /// By the leader of the partition, forwarded there when it is another node: for clients that cannot.
    Leader,
}

/// The node behind its listeners. Cheap to clone.
#[derive(Clone)]
pub struct Broker {
    inner: Arc<Inner>,
}

struct Inner {
    cluster: Arc<Cluster>,
    replicas: Replicas,
    /// The controller group on this node, once the node is part of a cluster.
    controller: OnceLock<Arc<Controller>>,
    /// How far the node is on its way into a cluster, for people.
    joining: watch::Receiver<String>,
    /// The cluster knows of this process of the node.
    established: watch::Receiver<bool>,
    disk_space: DiskSpace,
    traffic: TopicTable,
    authorizer: Authorizer,
    /// Held while a topic is changed: what is changed is what was read.
    changing_topics: tokio::sync::Mutex<()>,
    stop: CancellationToken,
}

impl Broker {
    /// A broker over these replicas. Until [`Broker::attach`] it knows no controller group, and refuses what needs one.
    /// `joining`, `established`: how far the node is on its way into a cluster; `stop`: requests that wait end with it.
    pub(crate) fn new(
        replicas: Replicas,
        joining: watch::Receiver<String>,
        established: watch::Receiver<bool>,
        stop: CancellationToken,
    ) -> Self {
        let cluster = replicas.environment().cluster.clone();
        let live = cluster.config.clone();
        let inner = Inner {
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

    /// Judges callers on this node.
    pub fn authorizer(&self) -> &Authorizer {
        &self.inner.authorizer
    }

    /// Whether the node can serve.
    pub fn readiness(&self) -> Readiness {
        if self.inner.stop.is_cancelled() {
            return Readiness::NotReady("stopping".into());
        }
        let Some(controller) = self.inner.controller.get() else {
            return Readiness::NotReady(self.inner.joining.borrow().clone());
        };
        match controller.failure() {
            Some(error) => Readiness::NotReady(format!("controller group: {}", ApiError::from(error))),
            None if self.inner.cluster.peers.liveness().removed().borrow().is_some() => {
                Readiness::NotReady(JoinRefusal::Removed.to_string())
            }
            None if !*self.inner.established.borrow() => {
                Readiness::NotReady("the cluster has not taken note of this node yet".into())
            }
            None => Readiness::Ready,
        }
    }

    /// Waits until the node is part of its cluster.
    pub(crate) async fn established(&self) {
        // Ends only with the node.
        let _ = self.inner.established.clone().wait_for(|established| *established).await;
    }

    /// The controller group on this node.
    pub(crate) fn controller(&self) -> Result<&Arc<Controller>, ApiError> {
        self.inner.controller.get().ok_or_else(|| {
            let status = self.inner.joining.borrow().clone();
            ApiError::new(Reason::Unavailable, format!("the node is not part of a cluster yet: {status}"))
        })
    }

    /// What a failure of a partition means to a client.
    pub(crate) fn api_error(&self, error: PartitionError) -> ApiError {
        errors::partition_error(error, &self.inner.cluster.state())
    }

    /// Whether the data volume takes another append.
    ///
    /// # Errors
    /// [`Reason::DiskFull`].
    pub(crate) fn check_space(&self) -> Result<(), ApiError> {
        self.inner.disk_space.check(self.store())
    }

    /// The topic of a request, when it has the partition asked for. What this node does not know it asks the controller
    /// leader for once: it may have been committed a moment ago.
    async fn topic(&self, target: &TopicPartition) -> Result<Topic, ApiError> {
        match self.known_topic(target) {
            Ok(topic) => Ok(topic),
            Err(error) if self.alone() => Err(error),
            // Boxed: rare, and large.
            Err(_) => match Box::pin(self.controller()?.sync()).await {
                Ok(()) => self.known_topic(target),
                // A node that has just started knows of nothing yet: "no such topic" would be final, and wrong.
                Err(unavailable) => Err(unavailable.into()),
            },
        }
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

    /// This node is the whole cluster, and knows what was committed before it started.
    pub(crate) fn alone(&self) -> bool {
        *self.inner.established.borrow() && self.inner.cluster.state().nodes.len() == 1
    }

    /// A partition, opened if need be.
    ///
    /// # Errors
    /// What keeps it from opening.
    pub(crate) async fn partition(&self, topic: &Topic, partition: i32) -> Result<Arc<Partition>, ApiError> {
        self.inner.replicas.open(topic, partition).await.map_err(|error| self.api_error(error))
    }

    /// A partition, led by this node: opened and elected if need be.
    ///
    /// # Errors
    /// [`Reason::NotLeader`]; what keeps it from opening.
    pub(crate) async fn led_partition(&self, topic: &Topic, partition: i32) -> Result<Arc<Partition>, ApiError> {
        self.inner.replicas.lead(topic, partition).await.map_err(|error| self.api_error(error))
    }
}
