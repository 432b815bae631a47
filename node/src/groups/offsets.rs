//! Offsets of groups: commit, fetch, reset, and lag.

use std::collections::{BTreeMap, BTreeSet};

use futures::StreamExt;

use super::backend::{Backend, now_ms};
use super::consumer_group::ConsumerGroup;
use super::{
    Change, Commit, CommittedOffset, GroupDescription, GroupRecord, Groups, OffsetRecord, PartitionLag, Partitions,
    Reset, ResetTo, check_name, not_empty, partition_of, unknown_group,
};
use crate::model::{ApiError, Reason, Topic, unknown_topic};

/// Maximum number of offsets in one commit.
const OFFSETS_MAX: usize = 10_000;
/// Maximum length of metadata, in bytes.
const METADATA_MAX: usize = 4096;
/// Concurrent reads of partitions' ends.
const AT_ONCE: usize = 32;
/// Age at which offsets of a deleted topic are deleted. Not immediately: this node may not have applied the creation of a new topic
/// yet.
const DELETE_AFTER_MS: i64 = 24 * 60 * 60 * 1000;

impl Groups {
    /// Stores offsets durably.
    ///
    /// # Errors
    /// [`Reason::InvalidRequest`], [`Reason::UnknownTopic`], [`Reason::UnknownPartition`]; with a member id
    /// [`Reason::UnknownMember`] and [`Reason::StaleGeneration`], without one [`Reason::GroupNotEmpty`]; [`Reason::NotLeader`];
    /// [`Reason::OutcomeUnknown`], when the offsets may have been stored.
    pub async fn commit(&self, request: Commit) -> Result<(), ApiError> {
        let backend = &self.inner.backend;
        check_name(&request.group)?;
        backend.know(request.offsets.iter().map(|one| (one.topic.as_str(), one.partition))).await?;
        let mut changes = checked(backend, &request)?;
        let is_member = !request.member_id.is_empty();
        let topic = backend.groups_topic_or_new().await?;
        let mut locked = self.inner.lock_group(&request.group, &topic).await?;
        let group = locked.take(&request.group);
        let partitions = request.offsets.iter().map(|one| (one.topic.as_str(), one.partition));
        let may = if is_member {
            group.may_commit(&request.member_id, request.generation, partitions)
        } else if group.is_empty() {
            if locked.record.is_none() { self.inner.check_room() } else { Ok(()) }
        } else {
            Err(not_empty(&request.group, group.len()))
        };
        *locked.cached = Some(group);
        if let Err(error) = may {
            return Err(locked.refuse(error).await);
        }
        if let Some(record) = &locked.record {
            changes.extend(expired(backend, record));
        }
        // Queued in order while the group is locked; the wait for the flush, which takes long, is without the lock.
        let pending = locked.lead.submit(&request.group, &changes).await?;
        drop(locked);
        pending.wait().await
    }

    /// Returns stored offsets of the `wanted` partitions; of all, when `wanted` is empty.
    ///
    /// # Errors
    /// [`Reason::InvalidRequest`], [`Reason::NotLeader`]. A group that does not exist has no offsets, which is not an error.
    pub async fn offsets(&self, name: &str, wanted: &Partitions) -> Result<Vec<CommittedOffset>, ApiError> {
        check_name(name)?;
        let backend = &self.inner.backend;
        let Some(topic) = backend.existing_groups_topic().await? else { return Ok(Vec::new()) };
        let lead = backend.lead(&topic, partition_of(name, topic.partitions)).await?;
        let record = lead.read(|table| table.get(name).cloned())?.unwrap_or_default();
        lead.confirm().await?;
        // Offsets of topics that this node does not know are left out, as those of deleted topics.
        let stored = record.offsets.keys().filter(|topic| wanted.is_empty() || wanted.contains_key(*topic));
        backend.know(stored.map(|topic| (topic.as_str(), 0))).await?;
        let wanted: BTreeMap<&str, BTreeSet<i32>> =
            wanted.iter().map(|(topic, partitions)| (topic.as_str(), partitions.iter().copied().collect())).collect();
        let is_wanted = |topic: &str, partition: i32| {
            wanted.is_empty() || wanted.get(topic).is_some_and(|partitions| partitions.contains(&partition))
        };
        let valid = valid_offsets(backend, &record).into_iter();
        let wanted = valid.filter(|((topic, partition), _)| is_wanted(topic, *partition));
        Ok(wanted.map(|((topic, partition), offset)| committed(topic, partition, offset)).collect())
    }

    /// A group in detail: members, the partitions that they own, offsets and lag.
    ///
    /// # Errors
    /// [`Reason::UnknownGroup`], [`Reason::NotLeader`].
    pub async fn describe(&self, name: &str) -> Result<GroupDescription, ApiError> {
        check_name(name)?;
        let backend = &self.inner.backend;
        let mut locked = self.inner.lock_group(name, &self.topic(name).await?).await?;
        let Some(record) = locked.record.clone() else { return Err(locked.refuse(unknown_group(name)).await) };
        let group = locked.take(name);
        let mut description = GroupDescription {
            group: name.to_owned(),
            state: group.state(),
            generation: group.generation(),
            coordinator: backend.node(),
            members: group.describe(),
            partitions: Vec::new(),
        };
        let owners = owners(&group);
        *locked.cached = Some(group);
        locked.confirm().await?;
        let mut offsets: BTreeMap<(String, i32), Option<i64>> =
            owners.keys().map(|partition| (partition.clone(), None)).collect();
        offsets.extend(valid_offsets(backend, &record).into_iter().map(|(at, offset)| (at, Some(offset.offset))));
        let lags = futures::stream::iter(offsets).map(|((topic, partition), offset)| {
            let member_id = owners.get(&(topic.clone(), partition)).cloned().unwrap_or_default();
            async move { PartitionLag { member_id, ..lag(backend, topic, partition, offset).await } }
        });
        description.partitions = lags.buffered(AT_ONCE).collect().await;
        Ok(description)
    }

    /// Sets the offsets of a group without members; returns the offsets that were, or with `dry_run` would be, set.
    ///
    /// # Errors
    /// [`Reason::GroupNotEmpty`], [`Reason::UnknownTopic`], [`Reason::UnknownPartition`], [`Reason::InvalidRequest`],
    /// [`Reason::NotLeader`]; why a partition cannot be read.
    pub async fn reset(&self, request: Reset) -> Result<Vec<CommittedOffset>, ApiError> {
        let backend = &self.inner.backend;
        check_name(&request.group)?;
        match request.to {
            ResetTo::Offset(offset) if offset < 0 => {
                return Err(ApiError::invalid("offset", offset, "must be at least 0"));
            }
            ResetTo::Timestamp(time) if time < 0 => {
                return Err(ApiError::invalid("timestamp_ms", time, "must be at least 0"));
            }
            _ => {}
        }
        let last = request.partitions.iter().copied().max().unwrap_or(0);
        backend.know([(request.topic.as_str(), last)]).await?;
        let target = backend.topic(&request.topic).ok_or_else(|| unknown_topic(&request.topic))?;
        let partitions: BTreeSet<i32> = match request.partitions.is_empty() {
            true => (0..target.partitions).collect(),
            false => request.partitions.iter().copied().collect(),
        };
        partitions.iter().try_for_each(|partition| check_partition(&target, *partition))?;
        let topic = backend.groups_topic_or_new().await?;
        let mut locked = self.inner.lock_group(&request.group, &topic).await?;
        let group = locked.take(&request.group);
        let members = group.len();
        *locked.cached = Some(group);
        if members > 0 {
            return Err(locked.refuse(not_empty(&request.group, members)).await);
        }
        if locked.record.is_none() {
            self.inner.check_room()?;
        }
        let found = futures::stream::iter(partitions).map(|partition| resolve(backend, &request, partition));
        let found: Vec<Result<CommittedOffset, ApiError>> = found.buffered(AT_ONCE).collect().await;
        let offsets: Vec<CommittedOffset> = found.into_iter().collect::<Result<_, _>>()?;
        if request.dry_run {
            locked.confirm().await?;
        } else {
            let changes: Vec<Change> = offsets.iter().map(|one| change(&target, one)).collect();
            locked.lead.append(&request.group, &changes).await?;
        }
        Ok(offsets)
    }
}

/// Checks a commit; returns its changes.
fn checked(backend: &Backend, request: &Commit) -> Result<Vec<Change>, ApiError> {
    if request.offsets.len() > OFFSETS_MAX {
        let rule = format!("at most {OFFSETS_MAX} in a commit");
        return Err(ApiError::invalid("offsets", request.offsets.len(), &rule));
    }
    let check = |one: &CommittedOffset| {
        let topic = backend.topic(&one.topic).ok_or_else(|| unknown_topic(&one.topic))?;
        check_partition(&topic, one.partition)?;
        if one.offset < 0 {
            return Err(ApiError::invalid("offsets.offset", one.offset, "must be at least 0"));
        }
        if one.metadata.len() > METADATA_MAX {
            let rule = format!("at most {METADATA_MAX} bytes");
            return Err(ApiError::invalid("offsets.metadata", format!("{} bytes", one.metadata.len()), &rule));
        }
        Ok(change(&topic, one))
    };
    request.offsets.iter().map(check).collect()
}

fn change(topic: &Topic, offset: &CommittedOffset) -> Change {
    let record = OffsetRecord {
        topic_id: topic.id,
        offset: offset.offset,
        metadata: offset.metadata.clone(),
        committed_ms: now_ms(),
    };
    Change::Offset(offset.topic.clone(), offset.partition, Some(record))
}

fn check_partition(topic: &Topic, partition: i32) -> Result<(), ApiError> {
    if (0..topic.partitions).contains(&partition) {
        return Ok(());
    }
    let message =
        format!("partition: {partition}: topic {:?} has partitions 0 to {}", topic.name, topic.partitions - 1);
    Err(ApiError::new(Reason::UnknownPartition, message))
}

fn committed(topic: String, partition: i32, offset: OffsetRecord) -> CommittedOffset {
    CommittedOffset { topic, partition, offset: offset.offset, metadata: offset.metadata }
}

/// The offsets whose topics still exist and were not created again.
pub(super) fn valid_offsets(backend: &Backend, record: &GroupRecord) -> BTreeMap<(String, i32), OffsetRecord> {
    let mut valid = BTreeMap::new();
    for (name, partitions) in &record.offsets {
        let Some(topic) = backend.topic(name) else { continue };
        for (partition, offset) in partitions.iter().filter(|(_, offset)| offset.topic_id == topic.id) {
            valid.insert((name.clone(), *partition), offset.clone());
        }
    }
    valid
}

/// Deletions of old offsets of topics that do not exist any more.
fn expired(backend: &Backend, record: &GroupRecord) -> Vec<Change> {
    let old = now_ms() - DELETE_AFTER_MS;
    let mut changes = Vec::new();
    for (name, partitions) in &record.offsets {
        let id = backend.topic(name).map(|topic| topic.id);
        for (partition, offset) in partitions {
            if Some(offset.topic_id) != id && offset.committed_ms < old {
                changes.push(Change::Offset(name.clone(), *partition, None));
            }
        }
    }
    changes
}

/// Every partition of the topics that members read, with its owner's id; empty: no owner.
fn owners(group: &ConsumerGroup) -> BTreeMap<(String, i32), String> {
    let partitions = group.topics().iter().flat_map(|(topic, count)| (0..*count).map(move |n| (topic, n)));
    partitions.map(|(topic, n)| ((topic.clone(), n), group.owner(topic, n).unwrap_or_default().to_owned())).collect()
}

async fn lag(backend: &Backend, topic: String, partition: i32, offset: Option<i64>) -> PartitionLag {
    let mut lag = PartitionLag {
        topic,
        partition,
        offset: offset.unwrap_or(-1),
        end: -1,
        lag_records: -1,
        lag_ms: -1,
        member_id: String::new(),
    };
    let Ok(offsets) = backend.offsets(&lag.topic, partition, None).await else { return lag };
    lag.end = offsets.next;
    let Some(offset) = offset else { return lag };
    let next = offset.max(offsets.earliest);
    lag.lag_records = (offsets.next - next).max(0);
    lag.lag_ms = match lag.lag_records {
        0 => 0,
        _ => match backend.timestamp(&lag.topic, partition, next).await {
            Ok(timestamp) => (now_ms() - timestamp).max(0),
            Err(_) => -1,
        },
    };
    lag
}

async fn resolve(backend: &Backend, request: &Reset, partition: i32) -> Result<CommittedOffset, ApiError> {
    let time = match request.to {
        ResetTo::Timestamp(time) => Some(time),
        ResetTo::Offset(_) | ResetTo::Earliest | ResetTo::Latest => None,
    };
    let offsets = backend.offsets(&request.topic, partition, time).await?;
    let offset = match request.to {
        ResetTo::Offset(offset) => offset.clamp(offsets.earliest, offsets.next),
        ResetTo::Timestamp(_) => offsets.at_timestamp.map_or(offsets.next, |(offset, _)| offset),
        ResetTo::Earliest => offsets.earliest,
        ResetTo::Latest => offsets.next,
    };
    Ok(CommittedOffset { topic: request.topic.clone(), partition, offset, metadata: String::new() })
}
