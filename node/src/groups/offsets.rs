//! Offsets of groups: commit, fetch, reset, and how far behind they are.

use std::collections::{BTreeMap, BTreeSet};

use futures::StreamExt;

use super::backing::{Backing, now_ms};
use super::group::Group;
use super::{
    Change, Commit, CommittedOffset, GroupDescription, GroupRecord, Groups, OffsetRecord, PartitionLag, Partitions,
    Reset, ResetTo, check_name, not_empty, partition_of, unknown_group,
};
use crate::model::{ApiError, Reason, Topic, unknown_topic};

/// Most offsets of one commit.
const OFFSETS_MAX: usize = 10_000;
/// Longest metadata, in bytes.
const METADATA_MAX: usize = 4096;
/// Partitions that are asked for their end at a time.
const AT_ONCE: usize = 32;
/// Offsets of a topic that is gone are forgotten when they are as old as this. Not at once: this node may not have heard yet of
/// a topic that is new.
const FORGET_AFTER_MS: i64 = 24 * 60 * 60 * 1000;

impl Groups {
    /// Remembers offsets, durably.
    ///
    /// # Errors
    /// [`Reason::InvalidRequest`], [`Reason::UnknownTopic`], [`Reason::UnknownPartition`]; with a member id
    /// [`Reason::UnknownMember`] and [`Reason::StaleGeneration`], without one [`Reason::GroupNotEmpty`]; [`Reason::NotLeader`];
    /// [`Reason::OutcomeUnknown`], when the offsets may or may not be remembered.
    pub async fn commit(&self, request: Commit) -> Result<(), ApiError> {
        let backing = &self.inner.backing;
        check_name(&request.group)?;
        let mut changes = checked(backing, &request)?;
        let is_member = !request.member_id.is_empty();
        let topic = backing.groups_topic_or_new().await?;
        let mut seat = self.inner.sit(&request.group, &topic).await?;
        let group = seat.take(&request.group);
        let partitions = request.offsets.iter().map(|one| (one.topic.as_str(), one.partition));
        let may = if is_member {
            group.may_commit(&request.member_id, request.generation, partitions)
        } else if group.is_empty() {
            if seat.record.is_none() { self.inner.check_room() } else { Ok(()) }
        } else {
            Err(not_empty(&request.group, group.len()))
        };
        *seat.slot = Some(group);
        may?;
        if let Some(record) = &seat.record {
            changes.extend(forgotten(backing, record));
        }
        // In order while the group is held; what takes long, the flush, is waited for without it.
        let pending = seat.lead.submit(&request.group, &changes).await?;
        drop(seat);
        pending.wait().await
    }

    /// Remembered offsets: of these partitions, or when there are none of all.
    ///
    /// # Errors
    /// [`Reason::InvalidRequest`], [`Reason::NotLeader`]. A group that is not there has no offsets, which is no error.
    pub async fn offsets(&self, name: &str, wanted: &Partitions) -> Result<Vec<CommittedOffset>, ApiError> {
        check_name(name)?;
        let backing = &self.inner.backing;
        let Some(topic) = backing.groups_topic() else { return Ok(Vec::new()) };
        let lead = backing.lead(&topic, partition_of(name, topic.partitions)).await?;
        let record = lead.read(|table| table.get(name).cloned())?.unwrap_or_default();
        let wanted: BTreeMap<&str, BTreeSet<i32>> =
            wanted.iter().map(|(topic, partitions)| (topic.as_str(), partitions.iter().copied().collect())).collect();
        let is_wanted = |topic: &str, partition: i32| {
            wanted.is_empty() || wanted.get(topic).is_some_and(|partitions| partitions.contains(&partition))
        };
        let valid = valid_offsets(backing, &record).into_iter();
        let wanted = valid.filter(|((topic, partition), _)| is_wanted(topic, *partition));
        Ok(wanted.map(|((topic, partition), offset)| committed(topic, partition, offset)).collect())
    }

    /// A group in detail: members, what they hold, offsets and lag.
    ///
    /// # Errors
    /// [`Reason::UnknownGroup`], [`Reason::NotLeader`].
    pub async fn describe(&self, name: &str) -> Result<GroupDescription, ApiError> {
        check_name(name)?;
        let backing = &self.inner.backing;
        let mut seat = self.inner.sit(name, &self.topic(name)?).await?;
        let record = seat.record.clone().ok_or_else(|| unknown_group(name))?;
        let group = seat.take(name);
        let mut description = GroupDescription {
            group: name.to_owned(),
            state: group.state(),
            generation: group.generation(),
            coordinator: backing.node(),
            members: group.describe(),
            partitions: Vec::new(),
        };
        let owners = owners(&group);
        *seat.slot = Some(group);
        drop(seat);
        let mut offsets: BTreeMap<(String, i32), Option<i64>> =
            owners.keys().map(|partition| (partition.clone(), None)).collect();
        offsets.extend(valid_offsets(backing, &record).into_iter().map(|(at, offset)| (at, Some(offset.offset))));
        let lags = futures::stream::iter(offsets).map(|((topic, partition), offset)| {
            let member_id = owners.get(&(topic.clone(), partition)).cloned().unwrap_or_default();
            async move { PartitionLag { member_id, ..lag(backing, topic, partition, offset).await } }
        });
        description.partitions = lags.buffered(AT_ONCE).collect().await;
        Ok(description)
    }

    /// Sets the offsets of a group without members; answers what was, or would be, set.
    ///
    /// # Errors
    /// [`Reason::GroupNotEmpty`], [`Reason::UnknownTopic`], [`Reason::UnknownPartition`], [`Reason::InvalidRequest`],
    /// [`Reason::NotLeader`]; what keeps a partition from being read.
    pub async fn reset(&self, request: Reset) -> Result<Vec<CommittedOffset>, ApiError> {
        let backing = &self.inner.backing;
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
        let target = backing.topic(&request.topic).ok_or_else(|| unknown_topic(&request.topic))?;
        let partitions: BTreeSet<i32> = match request.partitions.is_empty() {
            true => (0..target.partitions).collect(),
            false => request.partitions.iter().copied().collect(),
        };
        partitions.iter().try_for_each(|partition| check_partition(&target, *partition))?;
        let topic = backing.groups_topic_or_new().await?;
        let mut seat = self.inner.sit(&request.group, &topic).await?;
        let group = seat.take(&request.group);
        let members = group.len();
        *seat.slot = Some(group);
        if members > 0 {
            return Err(not_empty(&request.group, members));
        }
        if seat.record.is_none() {
            self.inner.check_room()?;
        }
        let found = futures::stream::iter(partitions).map(|partition| resolve(backing, &request, partition));
        let found: Vec<Result<CommittedOffset, ApiError>> = found.buffered(AT_ONCE).collect().await;
        let offsets: Vec<CommittedOffset> = found.into_iter().collect::<Result<_, _>>()?;
        if !request.dry_run {
            let changes: Vec<Change> = offsets.iter().map(|one| change(&target, one)).collect();
            seat.lead.append(&request.group, &changes).await?;
        }
        Ok(offsets)
    }
}

/// The changes that a commit asks for, if it keeps the rules.
fn checked(backing: &Backing, request: &Commit) -> Result<Vec<Change>, ApiError> {
    if request.offsets.len() > OFFSETS_MAX {
        let rule = format!("a commit has at most {OFFSETS_MAX}");
        return Err(ApiError::invalid("offsets", request.offsets.len(), &rule));
    }
    let check = |one: &CommittedOffset| {
        let topic = backing.topic(&one.topic).ok_or_else(|| unknown_topic(&one.topic))?;
        check_partition(&topic, one.partition)?;
        if one.offset < 0 {
            return Err(ApiError::invalid("offsets.offset", one.offset, "must be at least 0"));
        }
        if one.metadata.len() > METADATA_MAX {
            let rule = format!("must have at most {METADATA_MAX} bytes");
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
    let message = format!("partition: {partition}: topic {} has partitions 0 to {}", topic.name, topic.partitions - 1);
    Err(ApiError::new(Reason::UnknownPartition, message))
}

fn committed(topic: String, partition: i32, offset: OffsetRecord) -> CommittedOffset {
    CommittedOffset { topic, partition, offset: offset.offset, metadata: offset.metadata }
}

/// The offsets whose topics are still there, and are still the same.
pub(super) fn valid_offsets(backing: &Backing, record: &GroupRecord) -> BTreeMap<(String, i32), OffsetRecord> {
    let mut valid = BTreeMap::new();
    for (name, partitions) in &record.offsets {
        let Some(topic) = backing.topic(name) else { continue };
        for (partition, offset) in partitions.iter().filter(|(_, offset)| offset.topic_id == topic.id) {
            valid.insert((name.clone(), *partition), offset.clone());
        }
    }
    valid
}

/// Old offsets of topics that are gone.
fn forgotten(backing: &Backing, record: &GroupRecord) -> Vec<Change> {
    let old = now_ms() - FORGET_AFTER_MS;
    let mut changes = Vec::new();
    for (name, partitions) in &record.offsets {
        let id = backing.topic(name).map(|topic| topic.id);
        for (partition, offset) in partitions {
            if Some(offset.topic_id) != id && offset.committed_ms < old {
                changes.push(Change::Offset(name.clone(), *partition, None));
            }
        }
    }
    changes
}

/// Every partition of the topics that members read, with its holder's id; empty: nobody.
fn owners(group: &Group) -> BTreeMap<(String, i32), String> {
    let partitions = group.topics().iter().flat_map(|(topic, count)| (0..*count).map(move |n| (topic, n)));
    partitions.map(|(topic, n)| ((topic.clone(), n), group.holder(topic, n).unwrap_or_default().to_owned())).collect()
}

async fn lag(backing: &Backing, topic: String, partition: i32, offset: Option<i64>) -> PartitionLag {
    let mut lag = PartitionLag {
        topic,
        partition,
        offset: offset.unwrap_or(-1),
        end: -1,
        lag_records: -1,
        lag_ms: -1,
        member_id: String::new(),
    };
    let Ok(offsets) = backing.offsets(&lag.topic, partition, None).await else { return lag };
    lag.end = offsets.next;
    let Some(offset) = offset else { return lag };
    let next = offset.max(offsets.earliest);
    lag.lag_records = (offsets.next - next).max(0);
    lag.lag_ms = match lag.lag_records {
        0 => 0,
        _ => match backing.timestamp(&lag.topic, partition, next).await {
            Ok(timestamp) => (now_ms() - timestamp).max(0),
            Err(_) => -1,
        },
    };
    lag
}

async fn resolve(backing: &Backing, request: &Reset, partition: i32) -> Result<CommittedOffset, ApiError> {
    let time = match request.to {
        ResetTo::Timestamp(time) => Some(time),
        ResetTo::Offset(_) | ResetTo::Earliest | ResetTo::Latest => None,
    };
    let offsets = backing.offsets(&request.topic, partition, time).await?;
    let offset = match request.to {
        ResetTo::Offset(offset) => offset.clamp(offsets.earliest, offsets.next),
        ResetTo::Timestamp(_) => offsets.at_timestamp.map_or(offsets.next, |(offset, _)| offset),
        ResetTo::Earliest => offsets.earliest,
        ResetTo::Latest => offsets.next,
    };
    Ok(CommittedOffset { topic: request.topic.clone(), partition, offset, metadata: String::new() })
}
