//! The replicas on this node: found by log, opened on first use, maintained while they are open.
//!
//! Invariants:
//! - The table has at most one [`Replica`] of a log; one that was removed from it is closed and never opens again.
//! - Only functions whose purpose is to open a partition wait for a dormant one to open.
//!
//! `replica.rs` owns the lifecycle of one of them; `housekeeping.rs` runs the background tasks for all of them;
//! `inspect.rs` has the read-only views.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use chronicle_log::LogId;
use chronicle_proto::internal::group_request::Ask;
use futures::StreamExt;
use parking_lot::RwLock;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use super::{Environment, Partition, PartitionRole, Replica, ReplicaState, reassigned};
use crate::host::blocking;
use crate::model::{PartitionError, Topic};

/// Concurrent leadership transfers of a node that stops: they share the flushes of their votes.
const HAND_OVERS: usize = 64;
/// Opening or closing a partition waits for the disk; this many at a time share its flushes.
const CLOSES: usize = 32;

/// The replicas on this node. Cheap to clone.
#[derive(Clone)]
pub struct Replicas {
    pub(super) inner: Arc<ReplicaTable>,
}

/// The replicas, and what they share.
pub(super) struct ReplicaTable {
    pub(super) env: Arc<Environment>,
    /// Replicas that have been used, by log.
    replicas: RwLock<HashMap<LogId, Arc<Replica>>>,
    pub(super) stop: CancellationToken,
    pub(super) tasks: TaskTracker,
}

/// The log of a partition of a topic.
pub(super) fn log_of(topic: &Topic, partition: i32) -> LogId {
    LogId { topic: topic.id, partition: partition as u32 }
}

impl Replicas {
    /// No replica is open yet; none is opened after `stop`. `start` starts the background tasks.
    pub fn new(env: Arc<Environment>, stop: CancellationToken) -> Self {
        let table = ReplicaTable { env, replicas: RwLock::default(), stop, tasks: TaskTracker::new() };
        Self { inner: Arc::new(table) }
    }

    /// The state that all replicas share.
    pub fn environment(&self) -> &Arc<Environment> {
        &self.inner.env
    }

    /// All replicas that have been used.
    pub(super) fn all(&self) -> Vec<Arc<Replica>> {
        self.inner.replicas.read().values().cloned().collect()
    }

    /// The replica of a log, if it has been used.
    pub(crate) fn used(&self, id: LogId) -> Option<Arc<Replica>> {
        self.inner.replicas.read().get(&id).cloned()
    }

    /// The replica of a partition.
    ///
    /// # Errors
    /// [`PartitionError::TopicDeleted`] when the topic was deleted since the caller looked it up.
    pub(crate) fn replica(&self, topic: &Topic, partition: i32) -> Result<Arc<Replica>, PartitionError> {
        let id = log_of(topic, partition);
        if let Some(replica) = self.used(id) {
            return Ok(replica);
        }
        let mut replicas = self.inner.replicas.write();
        let env = &self.inner.env;
        if env.cluster.state().topics.get(&topic.name).is_none_or(|current| current.id != topic.id) {
            return Err(PartitionError::TopicDeleted);
        }
        Ok(replicas.entry(id).or_insert_with(|| Arc::new(Replica::new(env.clone(), id))).clone())
    }

    /// The replica of a log that is in the committed metadata.
    ///
    /// # Errors
    /// [`PartitionError::NoSuchPartition`].
    pub(crate) fn placed(&self, id: LogId) -> Result<Arc<Replica>, PartitionError> {
        if let Some(replica) = self.used(id) {
            return Ok(replica);
        }
        let state = self.inner.env.cluster.state();
        let topic = state.topics.values().find(|topic| topic.id == id.topic);
        let topic = topic.filter(|topic| (id.partition as i64) < i64::from(topic.partitions));
        let topic = topic.ok_or_else(|| PartitionError::NoSuchPartition { partition: id.to_string() })?;
        self.replica(topic, id.partition as i32)
    }

    /// The replica of a partition on this node, open.
    ///
    /// # Errors
    /// Why it cannot be opened.
    pub(crate) async fn open(&self, topic: &Topic, partition: i32) -> Result<Arc<Partition>, PartitionError> {
        self.not_stopping()?;
        self.replica(topic, partition)?.get().await
    }

    /// The replica of a partition on this node, leading: opened and elected if needed.
    ///
    /// # Errors
    /// [`PartitionError::NotLeader`]; why it cannot be opened or elected.
    pub(crate) async fn lead(&self, topic: &Topic, partition: i32) -> Result<Arc<Partition>, PartitionError> {
        self.not_stopping()?;
        let replica = self.replica(topic, partition)?;
        // Boxed: keeps the caller's future small.
        Box::pin(replica.lead()).await
    }

    fn not_stopping(&self) -> Result<(), PartitionError> {
        match self.inner.stop.is_cancelled() {
            true => Err(PartitionError::Unavailable("the node is stopping".into())),
            false => Ok(()),
        }
    }

    /// Opens the replica that should lead, once, when a replica that was opened for a read has received nothing from a leader:
    /// that replica may lack entries that others acknowledged while it was closed.
    pub(crate) fn wake_leader(&self, topic: &Topic, number: i32, partition: &Arc<Partition>) {
        if !partition.wants_leader() {
            return;
        }
        let id = log_of(topic, number);
        let cluster = self.inner.env.cluster.clone();
        let replica = self.replica(topic, number);
        self.inner.tasks.spawn(async move {
            match cluster.designated(id) {
                Some(leader) if leader != cluster.node() => {
                    let _ = cluster.ask(id, leader, Ask::Lead(true)).await;
                }
                Some(_) => {
                    if let Ok(replica) = replica {
                        let _ = replica.lead().await;
                    }
                }
                None => {}
            }
        });
    }

    /// Starts to repair damage that a read has found, in the background.
    pub(crate) fn report_damage(&self, id: LogId, error: &PartitionError) {
        if let (Some(replica), Some(index)) = (self.used(id), error.damaged_index()) {
            self.inner.tasks.spawn(async move { replica.damaged(index).await });
        }
    }

    /// Transfers leadership of a partition that this node leads to another replica; `to` 0: to the one with the longest log.
    /// Returns the raft id of the new leader.
    ///
    /// # Errors
    /// When this node does not lead, or no other replica becomes the leader.
    pub(crate) async fn hand_over(&self, id: LogId, to: u64) -> Result<u64, PartitionError> {
        let cluster = &self.inner.env.cluster;
        let partition = self.placed(id)?.lead().await?;
        let status = partition.group().status();
        let to = match to {
            0 => status
                .voters
                .iter()
                .copied()
                .filter(|node| *node != cluster.node() && cluster.alive(*node))
                .max_by_key(|node| status.matched.get(node).copied().flatten()),
            to => Some(to),
        };
        let to = to.ok_or_else(|| PartitionError::Unavailable("no other replica can lead".into()))?;
        if to != cluster.node() {
            partition.hand_over(to).await?;
        }
        Ok(to)
    }

    /// Transfers leadership of every partition that this node leads and another node could lead.
    pub(crate) async fn hand_over_all(&self) {
        let led = self.all().into_iter().filter_map(|replica| match replica.state() {
            ReplicaState::Active(partition) if matches!(partition.role(), PartitionRole::Leading(_)) => {
                Some(partition.id())
            }
            _ => None,
        });
        let cluster = &self.inner.env.cluster;
        let others = |id: &LogId| cluster.placement(*id).is_some_and(|placement| placement.voters.len() > 1);
        let led: Vec<LogId> = led.filter(others).collect();
        futures::stream::iter(led)
            .for_each_concurrent(HAND_OVERS, |id| async move {
                if let Err(error) = self.hand_over(id, 0).await {
                    tracing::debug!(partition = %id, %error, "cannot transfer leadership");
                }
            })
            .await;
    }

    /// Closes the replicas of a topic, so that their next use opens them with the current settings.
    pub(crate) async fn restart_topic(&self, topic: Uuid) {
        for replica in self.all().into_iter().filter(|replica| replica.id().topic == topic) {
            replica.restart().await;
        }
    }

    /// Deletes this node's files of a topic that was deleted, and reports it. Failures are retried later.
    pub(crate) async fn delete_topic_files(&self, topic: Uuid) {
        for replica in self.all().into_iter().filter(|replica| replica.id().topic == topic) {
            replica.close().await;
            self.inner.replicas.write().remove(&replica.id());
        }
        let mut complete = true;
        for log in self.existing_logs().await.into_iter().filter(|log| log.topic == topic) {
            complete &= self.delete_log(log, "cannot delete the files of a deleted topic, retrying").await;
        }
        let Some(reports) = self.inner.env.reports.get() else { return };
        if complete && let Err(error) = reports.topic_files_deleted(topic).await {
            tracing::warn!(%topic, error, "cannot report the deletion of a topic, retrying");
        }
    }

    /// Closes and deletes the replica of a log that was reassigned to another node, once that is certain. Returns `false` when it
    /// must be tried again.
    pub(super) async fn delete_reassigned(&self, id: LogId) -> bool {
        let env = &self.inner.env;
        if !reassigned::confirm(env, id).await {
            return false;
        }
        // Closed and kept in the table, it acknowledges nothing between the check and the deletion.
        let new = || Arc::new(Replica::new(env.clone(), id));
        let replica = self.inner.replicas.write().entry(id).or_insert_with(new).clone();
        replica.close().await;
        let deleted = reassigned::confirm(env, id).await
            && self.delete_log(id, "cannot delete a reassigned replica, retrying").await;
        self.inner.replicas.write().remove(&id);
        if deleted {
            tracing::info!(partition = %id, "reassigned replica deleted");
        }
        deleted
    }

    /// Deletes the files of a log. Returns `false` when they could not be deleted, after logging the error as `failed`.
    async fn delete_log(&self, id: LogId, failed: &'static str) -> bool {
        let store = self.inner.env.cluster.store.clone();
        match blocking(move || store.delete_log(id)).await {
            Ok(Ok(())) => return true,
            Ok(Err(error)) => tracing::warn!(partition = %id, %error, "{failed}"),
            Err(error) => tracing::error!(partition = %id, %error, "deleting a log panicked"),
        }
        false
    }

    /// Logs that have files in the data directory.
    pub(crate) async fn existing_logs(&self) -> HashSet<LogId> {
        let store = self.inner.env.cluster.store.clone();
        match blocking(move || store.list_logs()).await {
            Ok(Ok(logs)) => logs.into_iter().collect(),
            Ok(Err(error)) => {
                tracing::warn!(%error, "cannot list the data directory");
                HashSet::new()
            }
            Err(error) => {
                tracing::error!(%error, "listing the data directory panicked");
                HashSet::new()
            }
        }
    }

    /// Waits for the background tasks; they end with `stop`.
    pub(crate) async fn join(&self) {
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
    }

    /// Finishes accepted appends and closes every replica.
    pub(crate) async fn close(&self) {
        let replicas = self.all();
        // Replicas that wait to be closed must not continue elections: the majority may have stopped.
        for replica in &replicas {
            if let ReplicaState::Active(partition) = replica.state() {
                partition.retire();
            }
        }
        for_each_bounded(replicas, |replica| async move { replica.close().await }).await;
    }
}

/// Opening or closing a partition waits for the disk; a few at a time share its flushes.
pub(super) async fn for_each_bounded<F, Fut>(replicas: Vec<Arc<Replica>>, act: F)
where
    F: Fn(Arc<Replica>) -> Fut,
    Fut: Future<Output = ()>,
{
    futures::stream::iter(replicas).for_each_concurrent(CLOSES, act).await;
}
