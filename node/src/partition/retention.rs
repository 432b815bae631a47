//! Checkpoints and retention of one partition.
//!
//! The leader decides where the log starts and proposes that as a control entry; every replica carries it out once it has applied the
//! entry. What has expired by age is decided on the agreed time and not by the leader's clock.
//!
//! Order on each replica: a checkpoint that covers the entries to delete, then raft's purge mark (durable), then the files, oldest
//! first. After a crash between any two of them the log still opens: at worst it keeps more than it must.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::leading::PartitionRole;
use super::open::Partition;
use super::segment_ends::may_propose_control;
use super::storage::on_disk;
use crate::model::PartitionError;
use crate::raft::{ControlEntry, LeaderTerm, StartReason};

/// How long a decision is awaited before the next partition has its turn.
const APPLY_PATIENCE: Duration = Duration::from_secs(1);

/// What one run of retention did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Maintained {
    /// Everything that was due here.
    Done,
    /// This node leads, and decides nothing before all members of the group know control entries.
    Waits,
}

impl Partition {
    /// Saves a checkpoint when the log has rolled; decides, while this node leads, what the topic's retention does not keep; and
    /// deletes what was decided. `now_ms`: the agreed time, in milliseconds since the Unix epoch, if there is one.
    ///
    /// # Errors
    /// When the group or the disk fails.
    pub async fn maintain(&self, now_ms: Option<i64>) -> Result<Maintained, PartitionError> {
        let mut proposed = self.retention.lock().await;
        let maintained = decide(self, now_ms, &mut proposed).await?;
        delete(self).await?;
        Ok(maintained)
    }

    /// Deletes what was decided to be deleted.
    ///
    /// # Errors
    /// As [`Partition::maintain`].
    pub(super) async fn delete_expired(&self) -> Result<(), PartitionError> {
        let _one = self.retention.lock().await;
        delete(self).await
    }
}

/// Decides, on the leader, what retention removes and proposes it. `now_ms`: the agreed time; `None`: it is not known, and nothing
/// expires by age. `proposed`: the last log start that was proposed here, which is not proposed again in its term.
async fn decide(
    partition: &Partition,
    now_ms: Option<i64>,
    proposed: &mut Option<(LeaderTerm, u64)>,
) -> Result<Maintained, PartitionError> {
    let Partition { env, log, group, shared, settings, .. } = partition;
    let Some(applied) = shared.progress.borrow().index else { return Ok(Maintained::Done) };
    group.checkpoint_if_rolled().await.map_err(PartitionError::from)?;
    let PartitionRole::Leading(term) = partition.role() else { return Ok(Maintained::Done) };
    let max_bytes = u64::try_from(settings.retention_bytes).ok();
    let min_time = now_ms.filter(|_| settings.retention_ms >= 0).map(|now| now.saturating_sub(settings.retention_ms));
    let position = log.position();
    let limited = settings.retention_bytes >= 0 || settings.retention_ms >= 0;
    if !limited && position.first_index == 0 {
        return Ok(Maintained::Done);
    }
    if !may_propose_control(env, group, shared) {
        return Ok(Maintained::Waits);
    }
    let time_ms = now_ms.unwrap_or_else(crate::host::now_ms);
    if min_time.is_some_and(|min_time| newest_expired(partition, min_time)) {
        propose(partition, term, ControlEntry::SegmentEnd { time_ms }).await?;
        shared.open_bytes.store(0, Ordering::Relaxed);
    }

    let by_size = log.retention_index(max_bytes, None, applied + 1);
    let expired = log.retention_index(max_bytes, min_time, applied + 1);
    let (index, reason) = match expired {
        Some(index) if index > position.first_index && by_size >= expired => (index, StartReason::Size),
        Some(index) if index > position.first_index => (index, StartReason::Age),
        _ => (position.first_index, StartReason::Existing),
    };
    let started = shared.start();
    if index <= started.index || *proposed == Some((term, index)) {
        return Ok(Maintained::Done);
    }
    let offset = match reason {
        StartReason::Existing => Some(position.start_offset),
        StartReason::Size | StartReason::Age => {
            log.segments().iter().find(|segment| segment.next_index == index).map(|segment| segment.next_offset)
        }
    };
    // Deleted since: the log starts there already.
    let Some(offset) = offset.filter(|offset| *offset >= started.offset) else { return Ok(Maintained::Done) };
    *proposed = Some((term, index));
    propose(partition, term, ControlEntry::LogStart { index, offset, time_ms, reason }).await?;
    tracing::info!(partition = %partition.id(), index, offset, ?reason, "retention moves the log start");
    Ok(Maintained::Done)
}

/// Whether the segment that the next entry would continue has expired. It is ended then, so that it can be deleted: `retention_ms`
/// also holds for a partition without writes.
fn newest_expired(partition: &Partition, min_time: i64) -> bool {
    let newest = partition.log.segments().last().and_then(|newest| newest.max_timestamp);
    newest.is_some_and(|newest| newest < min_time) && partition.log.open_bytes() > 0
}

/// Proposes an entry and waits a while until it is applied here. It may be applied later, or never if the leader changes.
async fn propose(partition: &Partition, term: LeaderTerm, entry: ControlEntry) -> Result<(), PartitionError> {
    let (applied, waiting) = tokio::sync::oneshot::channel();
    let done = move |_| {
        let _ = applied.send(());
    };
    partition.group.propose(term, entry.into(), done).await.map_err(PartitionError::from)?;
    let _ = tokio::time::timeout(APPLY_PATIENCE, waiting).await;
    Ok(())
}

/// The first raft index to keep, when segments below the agreed start are still on disk and may be deleted now.
pub(super) fn deletable(partition: &Partition) -> Option<u64> {
    let Partition { log, shared, .. } = partition;
    let start = shared.start().index;
    if start <= log.position().first_index {
        return None;
    }
    let applied = shared.progress.borrow().index?;
    log.deletable_before(start.min(applied + 1))
}

/// Deletes the segments below the agreed start. One that is only in part below it stays.
async fn delete(partition: &Partition) -> Result<(), PartitionError> {
    let Partition { log, group, .. } = partition;
    let Some(keep) = deletable(partition) else { return Ok(()) };
    group.checkpoint().await.map_err(PartitionError::from)?;
    group.purge(keep - 1).await.map_err(PartitionError::from)?;
    let target = log.clone();
    let deleted = on_disk(move || target.delete_before(keep)).await?;
    tracing::info!(
        partition = %partition.id(),
        segments = deleted.segments,
        bytes = deleted.bytes,
        first_index = deleted.first_index,
        "retention deleted segments"
    );
    Ok(())
}
