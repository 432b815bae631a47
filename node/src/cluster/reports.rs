//! Reports of replicas to the controller group.

use chronicle_log::LogId;
use futures::future::BoxFuture;
use uuid::Uuid;

/// Sends reports to the controller group. Reports are idempotent.
pub trait Reports: Send + Sync {
    /// Reports that a partition's group has these voters (raft ids) since the membership entry at raft index `index`.
    fn voters(&self, id: LogId, voters: Vec<u64>, index: u64) -> BoxFuture<'_, Result<(), String>>;

    /// Waits until this node has applied all metadata that was committed when this was called, as the leader of the controller
    /// group confirms.
    fn current(&self) -> BoxFuture<'_, Result<(), String>>;

    /// Reports that this node has deleted all files of a deleted topic.
    fn topic_files_deleted(&self, topic: Uuid) -> BoxFuture<'_, Result<(), String>>;
}
