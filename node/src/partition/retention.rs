//! Checkpoints and retention of one partition.
//!
//! Order: a checkpoint that covers the entries to delete, then raft's purge mark (durable), then the files, oldest first. After a
//! crash between any two of them the log still opens: at worst it keeps more than it must.

use std::sync::Arc;

use chronicle_log::Log;

use super::state_machine::{AppliedState, PartitionMachine};
use super::storage::on_disk;
use crate::model::{PartitionError, TopicSettings};
use crate::raft::RaftGroup;

pub(super) async fn run(
    log: &Arc<Log>,
    group: &RaftGroup<PartitionMachine>,
    shared: &AppliedState,
    settings: &TopicSettings,
    now_ms: i64,
) -> Result<(), PartitionError> {
    let Some(applied) = shared.progress.borrow().index else { return Ok(()) };
    group.checkpoint_if_rolled().await.map_err(PartitionError::from)?;
    let max_bytes = u64::try_from(settings.retention_bytes).ok();
    let min_time = (settings.retention_ms >= 0).then(|| now_ms.saturating_sub(settings.retention_ms));
    if max_bytes.is_none() && min_time.is_none() {
        return Ok(());
    }
    // Followers roll with the blank entry of their leader.
    if let Some(min_time) = min_time
        && group.status().is_leader
    {
        roll_if_expired(log, group, min_time).await?;
    }
    let Some(keep) = log.retention_index(max_bytes, min_time, applied) else { return Ok(()) };
    let first = log.position().first_index;
    if keep <= first {
        return Ok(());
    }
    group.checkpoint().await.map_err(PartitionError::from)?;
    group.purge(keep - 1).await.map_err(PartitionError::from)?;
    let target = log.clone();
    let deleted = on_disk(move || target.delete_before(keep)).await?;
    tracing::info!(
        segments = deleted.segments,
        bytes = deleted.bytes,
        first_index = log.position().first_index,
        "retention deleted segments"
    );
    Ok(())
}

/// Rolls an active segment whose newest record has expired, so that it can be deleted: `retention_ms` also holds for a partition
/// without writes. The newest segment is never deleted, so a blank entry starts the next one.
async fn roll_if_expired(
    log: &Arc<Log>,
    group: &RaftGroup<PartitionMachine>,
    min_time: i64,
) -> Result<(), PartitionError> {
    let expired = log.segments().last().and_then(|active| active.max_timestamp).is_some_and(|newest| newest < min_time);
    if !expired {
        return Ok(());
    }
    let target = log.clone();
    on_disk(move || target.roll()).await?;
    group.blank().await.map_err(PartitionError::from)
}
