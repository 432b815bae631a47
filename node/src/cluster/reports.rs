//! What replicas report to the controller group.

use chronicle_log::LogId;
use futures::future::BoxFuture;
use uuid::Uuid;

/// Takes reports to the controller group. Reporting twice is reporting once.
pub trait Reports: Send + Sync {
    /// A partition's group has these voters (raft ids) since the membership entry at this raft index.
    fn voters(&self, id: LogId, voters: Vec<u64>, index: u64) -> BoxFuture<'_, Result<(), String>>;

    /// This node has no file of a deleted topic any more.
    fn topic_files_deleted(&self, topic: Uuid) -> BoxFuture<'_, Result<(), String>>;
}
