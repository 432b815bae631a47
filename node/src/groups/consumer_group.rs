//! One group on its coordinator: its members, the partitions that they own, and the target assignment. Decides, without I/O.
//!
//! Time is an argument, and durable state is returned as [`Change`]s: the caller makes them durable before it sends the response,
//! or drops the group and [recovers](ConsumerGroup::recover) it.
//!
//! Rebalancing is cooperative (as in KIP-848): `target` has the new owner of each partition, `held` the current owner. A partition
//! is assigned to a member only when no other member owns it: its owner's heartbeat does not contain it any more, or the owner is
//! not a member any more.
//!
//! Invariants:
//! - `held` has at most one owner for each partition, and owners are members.
//! - The generation increases with every change of members, of their topics and of the topics' partitions.
//! - After a change of coordinator the members are known and the partitions that they own are not: no partition is reassigned
//!   until each member has sent a heartbeat or its session has expired.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use super::assignment::{Assignment, assign};
use super::requests::{GroupState, Heartbeat, HeartbeatResponse, MemberDescription, Partitions};
use super::table::{Change, GroupRecord, MemberRecord};
use crate::model::{ApiError, Reason};

/// Maximum number of members of a group.
pub(super) const MEMBERS_MAX: usize = 1000;
/// Longest wait between heartbeats of a member.
const INTERVAL_MAX: Duration = Duration::from_secs(3);
/// Wait between heartbeats while partitions are reassigned.
const INTERVAL_REBALANCING: Duration = Duration::from_millis(250);
/// Heartbeats that fit into a session.
const HEARTBEATS_PER_SESSION: u32 = 4;

/// A member, with the state of its session.
struct GroupMember {
    record: MemberRecord,
    /// When its session expires.
    expires: Instant,
    /// Generation in the last response to it; 0: none from this coordinator.
    sent_generation: i32,
    /// This coordinator has received a heartbeat from it, so `held` contains the partitions that it owns.
    reported: bool,
}

impl GroupMember {
    fn timeout(&self) -> Duration {
        Duration::from_millis(self.record.session_timeout_ms.into())
    }
}

/// A group and its members.
pub(super) struct ConsumerGroup {
    name: String,
    generation: i32,
    members: BTreeMap<String, GroupMember>,
    /// Partition counts of the topics that members read, as last seen.
    topics: BTreeMap<String, i32>,
    target: Assignment,
    held: Assignment,
}

impl ConsumerGroup {
    /// A group as stored. Sessions of its members start at `now`.
    pub(super) fn recover(name: &str, record: &GroupRecord, now: Instant) -> Self {
        let member = |record: &MemberRecord| {
            let mut member = GroupMember { record: record.clone(), expires: now, sent_generation: 0, reported: false };
            member.expires += member.timeout();
            member
        };
        Self {
            name: name.to_owned(),
            generation: record.generation,
            members: record.members.iter().map(|(id, record)| (id.clone(), member(record))).collect(),
            topics: BTreeMap::new(),
            target: Assignment::new(),
            held: Assignment::new(),
        }
    }

    /// Whether the group has no members.
    pub(super) fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// How many members there are.
    pub(super) fn len(&self) -> usize {
        self.members.len()
    }

    /// The current generation.
    pub(super) fn generation(&self) -> i32 {
        self.generation
    }

    /// When the first session expires.
    pub(super) fn next_expiry(&self) -> Option<Instant> {
        self.members.values().map(|member| member.expires).min()
    }

    /// Partition counts of the topics that members read.
    pub(super) fn topics(&self) -> &BTreeMap<String, i32> {
        &self.topics
    }

    /// The member that owns a partition.
    pub(super) fn owner(&self, topic: &str, partition: i32) -> Option<&str> {
        self.held.get(&(topic.to_owned(), partition)).map(String::as_str)
    }

    /// The group's state.
    pub(super) fn state(&self) -> GroupState {
        if self.members.is_empty() {
            GroupState::Empty
        } else if self.waits_for_reports() || self.held != self.target {
            GroupState::Rebalancing
        } else {
            GroupState::Stable
        }
    }

    /// The members, by id.
    pub(super) fn describe(&self) -> Vec<MemberDescription> {
        let describe = |(id, member): (&String, &GroupMember)| MemberDescription {
            member_id: id.clone(),
            client_name: member.record.client_name.clone(),
            topics: member.record.topics.clone(),
            assigned: by_topic(self.held.iter().filter(|(_, owner)| *owner == id).map(|(partition, _)| partition)),
        };
        self.members.iter().map(describe).collect()
    }

    /// Applies a validated heartbeat: without a member id the member joins, with the id from `new_id`. `partitions_of`: number of
    /// partitions of a topic; 0: the topic does not exist.
    ///
    /// # Errors
    /// [`Reason::UnknownMember`] when the member's session has expired; [`Reason::Overloaded`] when the group is full;
    /// [`Reason::InvalidRequest`] for a generation that the group has not reached. Nothing has changed then.
    pub(super) fn heartbeat(
        &mut self,
        request: &Heartbeat,
        record: MemberRecord,
        new_id: impl FnOnce() -> String,
        partitions_of: impl Fn(&str) -> i32,
        now: Instant,
    ) -> Result<(HeartbeatResponse, Vec<Change>), ApiError> {
        let mut changes = Vec::new();
        let waited = self.waits_for_reports();
        let id = if request.member_id.is_empty() {
            if self.members.len() >= MEMBERS_MAX {
                let message = format!("group {:?}: has {MEMBERS_MAX} members, the maximum", self.name);
                return Err(ApiError::new(Reason::Overloaded, message).with("limit", MEMBERS_MAX));
            }
            let id = new_id();
            changes.push(Change::Member(id.clone(), Some(record.clone())));
            self.members.insert(id.clone(), GroupMember { record, expires: now, sent_generation: 0, reported: true });
            id
        } else {
            self.known(&request.member_id, request.generation)?;
            let id = request.member_id.clone();
            let member = self.members.get_mut(&id).expect("the member was just found");
            member.reported = true;
            if member.record != record {
                changes.push(Change::Member(id.clone(), Some(record.clone())));
                member.record = record;
            }
            id
        };
        if let Some(member) = self.members.get_mut(&id) {
            member.expires = now + member.timeout();
        }
        if self.refresh(partitions_of) || !changes.is_empty() {
            changes.push(self.next_generation());
        }
        self.take_reported(&id, &request.owned);
        if !changes.is_empty() || waited {
            self.update_target();
        }
        let assigned = self.assign_to(&id);
        if let Some(member) = self.members.get_mut(&id) {
            member.sent_generation = self.generation;
        }
        let interval = self.interval(&id);
        Ok((HeartbeatResponse { member_id: id, generation: self.generation, assigned, interval }, changes))
    }

    /// Removes a member.
    ///
    /// # Errors
    /// [`Reason::UnknownMember`].
    pub(super) fn leave(&mut self, member_id: &str) -> Result<Vec<Change>, ApiError> {
        self.known(member_id, 0)?;
        Ok(self.remove(vec![member_id.to_owned()]))
    }

    /// Removes members whose session has expired.
    pub(super) fn expire(&mut self, now: Instant) -> Vec<Change> {
        let late = self.members.iter().filter(|(_, member)| member.expires <= now);
        let late: Vec<String> = late.map(|(id, _)| id.clone()).collect();
        if late.is_empty() { Vec::new() } else { self.remove(late) }
    }

    /// Extends every session, because the coordinator itself was paused for this long.
    pub(super) fn postpone(&mut self, by: Duration) {
        self.members.values_mut().for_each(|member| member.expires += by);
    }

    /// Checks that a member may commit offsets of these partitions. A member that has lost a partition must not overwrite the
    /// commits of the new owner.
    ///
    /// # Errors
    /// [`Reason::UnknownMember`]; [`Reason::StaleGeneration`] when the member is at a later generation, or does not own one of the
    /// partitions; [`Reason::InvalidRequest`].
    pub(super) fn may_commit<'a>(
        &self,
        member_id: &str,
        generation: i32,
        partitions: impl Iterator<Item = (&'a str, i32)>,
    ) -> Result<(), ApiError> {
        self.known(member_id, generation)?;
        let member = &self.members[member_id];
        if generation < member.sent_generation {
            let why =
                format!("generation: {generation}: member {member_id:?} is at generation {}", member.sent_generation);
            return Err(self.stale(why));
        }
        for (topic, partition) in partitions {
            let may = match self.owner(topic, partition) {
                Some(owner) => owner == member_id,
                // The member's first request to a new coordinator may be a commit.
                None => !member.reported,
            };
            if !may {
                return Err(
                    self.stale(format!("member {member_id:?} does not own partition {partition} of topic {topic:?}"))
                );
            }
        }
        Ok(())
    }

    fn stale(&self, why: String) -> ApiError {
        ApiError::new(Reason::StaleGeneration, format!("group {:?}: {why}", self.name))
            .with("generation", self.generation)
    }

    fn known(&self, member_id: &str, generation: i32) -> Result<(), ApiError> {
        if !self.members.contains_key(member_id) {
            let message =
                format!("group {:?}: member {member_id:?}: not a member: left, or session expired", self.name);
            return Err(ApiError::new(Reason::UnknownMember, message));
        }
        if generation > self.generation {
            let rule = format!("must be at most {}, the group's generation", self.generation);
            return Err(ApiError::invalid("generation", generation, &rule));
        }
        Ok(())
    }

    fn waits_for_reports(&self) -> bool {
        self.members.values().any(|member| !member.reported)
    }

    fn next_generation(&mut self) -> Change {
        self.generation = self.generation.saturating_add(1);
        Change::Generation(Some(self.generation))
    }

    /// Reads the topics' partition counts again. Returns whether they changed.
    fn refresh(&mut self, partitions_of: impl Fn(&str) -> i32) -> bool {
        let read: BTreeSet<&String> = self.members.values().flat_map(|member| &member.record.topics).collect();
        let topics: BTreeMap<String, i32> =
            read.into_iter().map(|topic| (topic.clone(), partitions_of(topic))).collect();
        // The first read of a new coordinator is not a change.
        let changed = !self.topics.is_empty() && topics != self.topics;
        self.topics = topics;
        changed
    }

    /// Takes over the partitions that the member reports, those that exist and have no other owner; releases the others that it
    /// owned.
    fn take_reported(&mut self, id: &str, owned: &Partitions) {
        let owned: BTreeMap<&str, BTreeSet<i32>> =
            owned.iter().map(|(topic, partitions)| (topic.as_str(), partitions.iter().copied().collect())).collect();
        self.held.retain(|(topic, partition), owner| {
            owner != id || owned.get(topic.as_str()).is_some_and(|partitions| partitions.contains(partition))
        });
        for (topic, partitions) in owned {
            let Some(count) = self.topics.get(topic) else { continue };
            for partition in partitions.range(0..(*count).max(0)) {
                self.held.entry((topic.to_owned(), *partition)).or_insert_with(|| id.to_owned());
            }
        }
    }

    /// Computes the target assignment, unless the current owners are not known yet.
    fn update_target(&mut self) {
        if self.waits_for_reports() {
            return;
        }
        let mut current = self.held.clone();
        let members = &self.members;
        // A pending target is kept where its member still exists.
        current.extend(std::mem::take(&mut self.target).into_iter().filter(|(_, id)| members.contains_key(id)));
        let wanted = members.iter().map(|(id, member)| (id.clone(), member.record.topics.clone())).collect();
        self.target = assign(&wanted, &self.topics, &current);
    }

    /// Assigns to a member its target partitions that no other member owns; returns its whole assignment.
    fn assign_to(&mut self, id: &str) -> Partitions {
        if self.waits_for_reports() {
            let reads = &self.members[id].record.topics;
            let keeps = |((topic, _), owner): &(&(String, i32), &String)| *owner == id && reads.contains(topic);
            return by_topic(self.held.iter().filter(keeps).map(|(partition, _)| partition));
        }
        let wanted = self.target.iter().filter(|(_, owner)| *owner == id).map(|(partition, _)| partition);
        let free: Vec<(String, i32)> =
            wanted.filter(|partition| self.held.get(*partition).is_none_or(|owner| owner == id)).cloned().collect();
        let assigned = by_topic(free.iter());
        self.held.extend(free.into_iter().map(|partition| (partition, id.to_owned())));
        assigned
    }

    fn interval(&self, id: &str) -> Duration {
        let session = self.members[id].timeout() / HEARTBEATS_PER_SESSION;
        match self.state() {
            GroupState::Rebalancing => session.min(INTERVAL_REBALANCING + Duration::from_millis(self.len() as u64)),
            GroupState::Stable | GroupState::Empty => session.min(INTERVAL_MAX),
        }
    }

    fn remove(&mut self, ids: Vec<String>) -> Vec<Change> {
        let mut changes = Vec::with_capacity(ids.len() + 1);
        for id in ids {
            self.members.remove(&id);
            self.held.retain(|_, owner| *owner != id);
            changes.push(Change::Member(id, None));
        }
        // Topics that no member reads any more are dropped by the next heartbeat.
        changes.push(self.next_generation());
        self.update_target();
        changes
    }
}

fn by_topic<'a>(partitions: impl Iterator<Item = &'a (String, i32)>) -> Partitions {
    partitions.fold(Partitions::new(), |mut all, (topic, partition)| {
        all.entry(topic.clone()).or_default().push(*partition);
        all
    })
}

#[cfg(test)]
mod tests;
