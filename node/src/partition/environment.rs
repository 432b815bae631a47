//! What every partition of a node shares.

use std::sync::{Arc, OnceLock};

use chronicle_log::LogId;
use tokio::sync::Semaphore;

use super::throttle::Throttle;
use super::view::View;
use crate::cluster::{Cluster, Reports};
use crate::config::Config;

/// An empty view for a topic of this name, if topics of that name have one. What views there are is decided above.
pub type ViewOf = fn(topic: &str) -> Option<Box<dyn View>>;

/// What every partition of a node shares.
pub struct Environment {
    /// The cluster as this node sees it.
    pub cluster: Arc<Cluster>,
    /// KiB that all partitions together may have proposed and not committed.
    pub budget: Arc<Semaphore>,
    /// Bounds how fast replicas on other nodes are filled.
    pub filling: Arc<Throttle>,
    /// Which topics have a view.
    pub view_of: ViewOf,
    /// The way to the controller group, once the node is part of a cluster.
    pub reports: OnceLock<Arc<dyn Reports>>,
}

impl Environment {
    /// The environment of a node whose bounds are those of the configuration.
    pub fn new(cluster: Arc<Cluster>, view_of: ViewOf) -> Self {
        let budget = Arc::new(Semaphore::new((cluster.config().storage.pending_bytes_max / 1024) as usize));
        Self { cluster, budget, filling: Arc::default(), view_of, reports: OnceLock::new() }
    }

    /// An empty view for a log, if its topic has one.
    pub(super) fn view(&self, id: LogId) -> Option<Box<dyn View>> {
        let state = self.cluster.state();
        let topic = state.topics.values().find(|topic| topic.id == id.topic)?;
        (self.view_of)(&topic.name)
    }

    /// The configuration in force.
    pub fn config(&self) -> Arc<Config> {
        self.cluster.config()
    }

    /// Reports to the controller who votes in a partition's group, since the membership entry at this raft index.
    ///
    /// # Errors
    /// Why the controller group has not taken the report.
    pub(super) async fn report_voters(&self, id: LogId, voters: Vec<u64>, index: u64) -> Result<(), String> {
        match self.reports.get() {
            Some(reports) => reports.voters(id, voters, index).await,
            None => Ok(()),
        }
    }
}
