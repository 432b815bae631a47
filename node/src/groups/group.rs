//! One group on its coordinator: who is a member, who holds what, and what is next. Decides, and does nothing.
//!
//! Time comes in as an argument, and what must be remembered goes out as [`Change`]s: the caller makes them durable before
//! anybody hears of the answer, or throws the group away and [recovers](Group::recover) it.
//!
//! Hand-over is cooperative (as in KIP-848): `target` is who should have a partition, `held` who has it. A member is told of a
//! partition only when nobody else holds it, which is when its holder's heartbeat no longer names it, or the holder has gone.
//!
//! Invariants:
//! - `held` has one holder for each partition, and only members hold.
//! - The generation rises with every change of members, of their topics and of the topics' partitions.
//! - After a change of coordinator the members are known and what they hold is not: nothing is given away until each has
//!   said so or its session has ended.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use super::assignment::{Assignment, assign};
use super::table::{Change, GroupRecord, MemberRecord};
use super::types::{GroupState, Heartbeat, MemberDescription, Membership, Partitions};
use crate::model::{ApiError, Reason};

/// Most members of a group.
pub(super) const MEMBERS_MAX: usize = 1000;
/// Longest wait between heartbeats of a member.
const INTERVAL_MAX: Duration = Duration::from_secs(3);
/// Wait between heartbeats while partitions change hands.
const INTERVAL_REBALANCING: Duration = Duration::from_millis(250);
/// Heartbeats that fit into a session.
const HEARTBEATS_PER_SESSION: u32 = 4;

struct Member {
    record: MemberRecord,
    /// When its session ends.
    expires: Instant,
    /// Generation that it was last told; 0: none by this coordinator.
    told: i32,
    /// This coordinator has heard from it, so that `held` says what it holds.
    heard: bool,
}

impl Member {
    fn timeout(&self) -> Duration {
        Duration::from_millis(self.record.session_timeout_ms.into())
    }
}

/// A group and its members.
pub(super) struct Group {
    name: String,
    generation: i32,
    members: BTreeMap<String, Member>,
    /// Partition counts of the topics that members read, as last seen.
    topics: BTreeMap<String, i32>,
    target: Assignment,
    held: Assignment,
}

impl Group {
    /// A group as it is remembered. Sessions of its members begin `now`.
    pub(super) fn recover(name: &str, record: &GroupRecord, now: Instant) -> Self {
        let member = |record: &MemberRecord| {
            let mut member = Member { record: record.clone(), expires: now, told: 0, heard: false };
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

    /// There are no members.
    pub(super) fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// How many members there are.
    pub(super) fn len(&self) -> usize {
        self.members.len()
    }

    /// The generation in force.
    pub(super) fn generation(&self) -> i32 {
        self.generation
    }

    /// When the first session ends.
    pub(super) fn next_expiry(&self) -> Option<Instant> {
        self.members.values().map(|member| member.expires).min()
    }

    /// Partition counts of the topics that members read.
    pub(super) fn topics(&self) -> &BTreeMap<String, i32> {
        &self.topics
    }

    /// Who holds a partition.
    pub(super) fn holder(&self, topic: &str, partition: i32) -> Option<&str> {
        self.held.get(&(topic.to_owned(), partition)).map(String::as_str)
    }

    /// Whether the group is at rest.
    pub(super) fn state(&self) -> GroupState {
        if self.members.is_empty() {
            GroupState::Empty
        } else if self.waits_for_members() || self.held != self.target {
            GroupState::Rebalancing
        } else {
            GroupState::Stable
        }
    }

    /// The members, by id.
    pub(super) fn describe(&self) -> Vec<MemberDescription> {
        let describe = |(id, member): (&String, &Member)| MemberDescription {
            member_id: id.clone(),
            client_name: member.record.client_name.clone(),
            topics: member.record.topics.clone(),
            assigned: by_topic(self.held.iter().filter(|(_, owner)| *owner == id).map(|(partition, _)| partition)),
        };
        self.members.iter().map(describe).collect()
    }

    /// Takes a checked heartbeat: joins when it has no member id, with the id `new_id` then. `partitions_of` says how many
    /// partitions a topic has; 0: it is not there.
    ///
    /// # Errors
    /// [`Reason::UnknownMember`] when the member's session has ended; [`Reason::Overloaded`] when the group is full;
    /// [`Reason::InvalidRequest`] for a generation that never was. Nothing has changed then.
    pub(super) fn heartbeat(
        &mut self,
        request: &Heartbeat,
        record: MemberRecord,
        new_id: impl FnOnce() -> String,
        partitions_of: impl Fn(&str) -> i32,
        now: Instant,
    ) -> Result<(Membership, Vec<Change>), ApiError> {
        let mut changes = Vec::new();
        let waited = self.waits_for_members();
        let id = if request.member_id.is_empty() {
            if self.members.len() >= MEMBERS_MAX {
                let message = format!("group {}: has {MEMBERS_MAX} members, the most there may be", self.name);
                return Err(ApiError::new(Reason::Overloaded, message).with("limit", MEMBERS_MAX));
            }
            let id = new_id();
            changes.push(Change::Member(id.clone(), Some(record.clone())));
            self.members.insert(id.clone(), Member { record, expires: now, told: 0, heard: true });
            id
        } else {
            self.known(&request.member_id, request.generation)?;
            let id = request.member_id.clone();
            let member = self.members.get_mut(&id).expect("the member was just found");
            member.heard = true;
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
        self.take_claims(&id, &request.owned);
        if !changes.is_empty() || waited {
            self.aim();
        }
        let assigned = self.give(&id);
        if let Some(member) = self.members.get_mut(&id) {
            member.told = self.generation;
        }
        let interval = self.interval(&id);
        Ok((Membership { member_id: id, generation: self.generation, assigned, interval }, changes))
    }

    /// A member goes.
    ///
    /// # Errors
    /// [`Reason::UnknownMember`].
    pub(super) fn leave(&mut self, member_id: &str) -> Result<Vec<Change>, ApiError> {
        self.known(member_id, 0)?;
        Ok(self.remove(vec![member_id.to_owned()]))
    }

    /// Ends sessions that nothing was heard of in time.
    pub(super) fn expire(&mut self, now: Instant) -> Vec<Change> {
        let late = self.members.iter().filter(|(_, member)| member.expires <= now);
        let late: Vec<String> = late.map(|(id, _)| id.clone()).collect();
        if late.is_empty() { Vec::new() } else { self.remove(late) }
    }

    /// Lengthens every session: the coordinator itself was not there for so long.
    pub(super) fn postpone(&mut self, by: Duration) {
        self.members.values_mut().for_each(|member| member.expires += by);
    }

    /// Whether a member may commit offsets of these partitions. One that lost a partition to another must not overwrite what that
    /// one commits.
    ///
    /// # Errors
    /// [`Reason::UnknownMember`]; [`Reason::StaleGeneration`] when the member was told of a later generation, or does not hold
    /// one of the partitions; [`Reason::InvalidRequest`].
    pub(super) fn may_commit<'a>(
        &self,
        member_id: &str,
        generation: i32,
        partitions: impl Iterator<Item = (&'a str, i32)>,
    ) -> Result<(), ApiError> {
        self.known(member_id, generation)?;
        let member = &self.members[member_id];
        if generation < member.told {
            let why = format!("generation: {generation}: member {member_id} was told of generation {}", member.told);
            return Err(self.stale(why));
        }
        for (topic, partition) in partitions {
            let may = match self.holder(topic, partition) {
                Some(holder) => holder == member_id,
                // The first word of the member to a new coordinator may be a commit.
                None => !member.heard,
            };
            if !may {
                return Err(self.stale(format!("member {member_id} does not hold partition {partition} of {topic}")));
            }
        }
        Ok(())
    }

    fn stale(&self, why: String) -> ApiError {
        ApiError::new(Reason::StaleGeneration, format!("group {}: {why}", self.name))
            .with("generation", self.generation)
    }

    fn known(&self, member_id: &str, generation: i32) -> Result<(), ApiError> {
        if !self.members.contains_key(member_id) {
            let message = format!("group {}: no member {member_id:?}: it left, or its session has ended", self.name);
            return Err(ApiError::new(Reason::UnknownMember, message));
        }
        if generation > self.generation {
            let rule = format!("the group has reached {}", self.generation);
            return Err(ApiError::invalid("generation", generation, &rule));
        }
        Ok(())
    }

    fn waits_for_members(&self) -> bool {
        self.members.values().any(|member| !member.heard)
    }

    fn next_generation(&mut self) -> Change {
        self.generation = self.generation.saturating_add(1);
        Change::Generation(Some(self.generation))
    }

    /// Looks at the topics' partitions again. True: they changed.
    fn refresh(&mut self, partitions_of: impl Fn(&str) -> i32) -> bool {
        let read: BTreeSet<&String> = self.members.values().flat_map(|member| &member.record.topics).collect();
        let topics: BTreeMap<String, i32> =
            read.into_iter().map(|topic| (topic.clone(), partitions_of(topic))).collect();
        // A new coordinator sees them for the first time, which is no change.
        let changed = !self.topics.is_empty() && topics != self.topics;
        self.topics = topics;
        changed
    }

    /// What the member says that it holds, as far as it can be; the rest of what it held is free.
    fn take_claims(&mut self, id: &str, owned: &Partitions) {
        let owned: BTreeMap<&str, BTreeSet<i32>> =
            owned.iter().map(|(topic, partitions)| (topic.as_str(), partitions.iter().copied().collect())).collect();
        self.held.retain(|(topic, partition), holder| {
            holder != id || owned.get(topic.as_str()).is_some_and(|partitions| partitions.contains(partition))
        });
        for (topic, partitions) in owned {
            let Some(count) = self.topics.get(topic) else { continue };
            for partition in partitions.range(0..(*count).max(0)) {
                self.held.entry((topic.to_owned(), *partition)).or_insert_with(|| id.to_owned());
            }
        }
    }

    /// Decides anew who should have what, unless it is not known yet who has what.
    fn aim(&mut self) {
        if self.waits_for_members() {
            return;
        }
        let mut current = self.held.clone();
        let members = &self.members;
        // Who was to get a partition still is.
        current.extend(std::mem::take(&mut self.target).into_iter().filter(|(_, id)| members.contains_key(id)));
        let wanted = members.iter().map(|(id, member)| (id.clone(), member.record.topics.clone())).collect();
        self.target = assign(&wanted, &self.topics, &current);
    }

    /// Gives a member what it should have and nobody else holds; the answer is all that it should have now.
    fn give(&mut self, id: &str) -> Partitions {
        if self.waits_for_members() {
            let reads = &self.members[id].record.topics;
            let keeps = |((topic, _), holder): &(&(String, i32), &String)| *holder == id && reads.contains(topic);
            return by_topic(self.held.iter().filter(keeps).map(|(partition, _)| partition));
        }
        let wanted = self.target.iter().filter(|(_, owner)| *owner == id).map(|(partition, _)| partition);
        let free: Vec<(String, i32)> =
            wanted.filter(|partition| self.held.get(*partition).is_none_or(|holder| holder == id)).cloned().collect();
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
            self.held.retain(|_, holder| *holder != id);
            changes.push(Change::Member(id, None));
        }
        // What nobody reads any more is not worth a look at the topics: the next heartbeat does that.
        changes.push(self.next_generation());
        self.aim();
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
