//! State that all partitions of a node share.

use std::sync::{Arc, OnceLock};

use chronicle_log::LogId;
use tokio::sync::Semaphore;

use super::views::View;
use crate::cluster::{Cluster, Reports};
use crate::config::Config;

/// Returns an empty view for the topic with this name; `None`: the topic has no view. The layers above define the views.
pub type ViewOf = fn(topic: &str) -> Option<Box<dyn View>>;

/// State that all partitions of a node share.
pub struct Environment {
    /// The cluster as this node sees it.
    pub cluster: Arc<Cluster>,
    /// KiB that all partitions together may have proposed and not yet committed.
    pub budget: Arc<Semaphore>,
    /// Which topics have a view.
    pub view_of: ViewOf,
    /// Sends reports to the controller group; set once the node is a member of a cluster and has applied the metadata that was committed
    /// before.
    pub reports: OnceLock<Arc<dyn Reports>>,
}

impl Environment {
    /// An environment with the limits of the configuration.
    pub fn new(cluster: Arc<Cluster>, view_of: ViewOf) -> Self {
        let budget = Arc::new(Semaphore::new((cluster.config().storage.pending_bytes_max / 1024) as usize));
        Self { cluster, budget, view_of, reports: OnceLock::new() }
    }

    /// An empty view for a log, if its topic has one.
    pub(super) fn view(&self, id: LogId) -> Option<Box<dyn View>> {
        let state = self.cluster.state();
        let topic = state.topics.values().find(|topic| topic.id == id.topic)?;
        (self.view_of)(&topic.name)
    }

    /// The current configuration.
    pub fn config(&self) -> Arc<Config> {
        self.cluster.config()
    }

    /// Waits until the metadata is as current as the leader of the controller group confirms. What cannot be undone is done only
    /// after that: a node that has restarted, or lags, has metadata of the past.
    ///
    /// # Errors
    /// Why it is not known to be current.
    pub(super) async fn confirm_metadata(&self) -> Result<(), String> {
        match self.reports.get() {
            Some(reports) => reports.current().await,
            None => Err("the metadata that was committed before the start is not applied yet".into()),
        }
    }

    /// Reports the voters of a partition's group to the controller, as of the membership entry at raft index `index`.
    ///
    /// # Errors
    /// Why the controller group has not stored the report.
    pub(super) async fn report_voters(&self, id: LogId, voters: Vec<u64>, index: u64) -> Result<(), String> {
        match self.reports.get() {
            Some(reports) => reports.voters(id, voters, index).await,
            None => Ok(()),
        }
    }
}
