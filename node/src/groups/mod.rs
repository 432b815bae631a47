//! Consumer groups: partitions shared out among members, and offsets remembered.
//!
//! A group belongs to one partition of the internal topic `__groups` (a fixed hash of its name, [`partition_of`]), and its
//! coordinator is the leader of that partition. What must not be lost is records of that partition: generations,
//! members, offsets (`table`). What the members hold is in memory only, and is told again by their heartbeats after a change of
//! coordinator.
//!
//! ```text
//! listeners -> access.rs (who may) -> mod.rs (checks, order) -> group.rs (decides) -> backing.rs -> partition -> ... -> table.rs (applied)
//! ```
//!
//! Invariants:
//! - Nobody is told of a generation, a member or an offset that is not durable: when an append fails, the group in memory
//!   is thrown away and made again from the table.
//! - Changes of one group are decided one after the other, and their order in the log is that of the decisions.
//! - State in memory is good for one term of leadership.
//!
//! Free of any protocol: gRPC calls it today, and a Kafka listener can bring its members to the same groups.

mod access;
mod assignment;
mod backing;
mod group;
mod lag;
mod offsets;
mod sessions;
mod table;
mod types;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedMutexGuard};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

pub use access::GroupsForCaller;
use backing::{Backing, Lead};
use group::Group;
pub use lag::GroupLag;
pub use table::{Change, GroupRecord, GroupTable, MemberRecord, OffsetRecord};
pub use types::{
    Commit, CommittedOffset, GroupDescription, GroupState, GroupSummary, Heartbeat, MemberDescription, Membership,
    PartitionLag, Partitions, Reset, ResetTo,
};

use crate::broker::{Broker, BrokerError, Reason, Topic, validate};
use crate::controller::unknown_topic;

/// The internal topic that remembers groups.
pub const GROUPS_TOPIC: &str = "__groups";
/// Its number of partitions, which never changes: groups find theirs by it.
const GROUPS_PARTITIONS: i32 = 16;

/// Most groups that a node coordinates.
const GROUPS_MAX: usize = 10_000;
/// Most topics that a member reads.
const TOPICS_MAX: usize = 1000;
/// Most partitions that a heartbeat names.
const OWNED_MAX: usize = 20_000;
/// Longest name of a client, in bytes.
const CLIENT_NAME_MAX: usize = 256;
/// Session of a member that does not say, in milliseconds.
const SESSION_DEFAULT_MS: u32 = 30_000;
/// Sessions that a member may ask for, in milliseconds.
const SESSION_MS: std::ops::RangeInclusive<u32> = 1000..=600_000;

/// The partition of `__groups` that a group belongs to: the first eight bytes of the name's BLAKE3 hash, little-endian, modulo
/// the number of partitions. Fixed for ever: it is where stored offsets are.
pub fn partition_of(group: &str, partitions: i32) -> i32 {
    let hash = blake3::hash(group.as_bytes());
    let first = hash.as_bytes().first_chunk::<8>().expect("a BLAKE3 hash has 32 bytes");
    (u64::from_le_bytes(*first) % partitions.max(1) as u64) as i32
}

/// The consumer groups that this node coordinates. Cheap to clone.
#[derive(Clone)]
pub struct Groups {
    inner: Arc<Inner>,
}

struct Inner {
    backing: Backing,
    /// By partition of `__groups`.
    coordinators: Mutex<HashMap<i32, Arc<Coordinator>>>,
    /// There is a group in memory.
    wake: Notify,
    stop: CancellationToken,
    /// As last measured, by group and topic.
    lags: Mutex<Vec<GroupLag>>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

/// A group in memory; `None`: to be made from the table.
type Slot = Arc<tokio::sync::Mutex<Option<Group>>>;

/// The groups of one partition in one term.
struct Coordinator {
    term: u64,
    slots: Mutex<HashMap<String, Slot>>,
    /// Groups in the table, when last looked.
    known: AtomicUsize,
}

impl Coordinator {
    /// Begins a term: every member that is remembered is expected from now on.
    fn recover(term: u64, table: &GroupTable, now: Instant) -> Self {
        let with_members = table.iter().filter(|(_, record)| !record.members.is_empty());
        let slot = |(name, record): (&String, &GroupRecord)| {
            (name.clone(), Slot::new(tokio::sync::Mutex::new(Some(Group::recover(name, record, now)))))
        };
        Self { term, slots: Mutex::new(with_members.map(slot).collect()), known: AtomicUsize::new(table.len()) }
    }
}

/// One group, for one decision.
struct Seat {
    lead: Lead,
    slot: OwnedMutexGuard<Option<Group>>,
    /// As remembered.
    record: Option<GroupRecord>,
}

impl Seat {
    /// The group, to be put back when what it decided is durable; until then nobody finds it.
    fn take(&mut self, name: &str) -> Group {
        let record = self.record.clone().unwrap_or_default();
        self.slot.take().unwrap_or_else(|| Group::recover(name, &record, Instant::now()))
    }
}

impl Groups {
    /// The groups of a node. Starts the tasks that end sessions and measure lags; [`Groups::shutdown`] ends them.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn start(broker: Broker) -> Self {
        let live = broker.live().clone();
        let inner = Arc::new(Inner {
            backing: Backing::new(broker),
            coordinators: Mutex::default(),
            wake: Notify::new(),
            stop: CancellationToken::new(),
            lags: Mutex::default(),
            tasks: Mutex::default(),
        });
        let tasks = vec![tokio::spawn(sessions::watch(inner.clone())), tokio::spawn(lag::measure(inner.clone(), live))];
        *inner.tasks.lock() = tasks;
        Self { inner }
    }

    /// Ends the tasks that watch sessions and measure lags, and waits for them.
    pub async fn shutdown(&self) {
        self.inner.stop.cancel();
        let tasks = std::mem::take(&mut *self.inner.tasks.lock());
        for task in tasks {
            if let Err(error) = task.await {
                tracing::error!(%error, "a task of the consumer groups panicked");
            }
        }
    }

    /// Joins a group, or says that a member is still there and what it owns; answers what it should own.
    ///
    /// # Errors
    /// [`Reason::InvalidRequest`], [`Reason::UnknownTopic`] when joining; [`Reason::UnknownMember`] when the session has ended;
    /// [`Reason::Overloaded`] when there are too many members or groups; [`Reason::NotLeader`] with the coordinator's address.
    pub async fn heartbeat(&self, request: Heartbeat) -> Result<Membership, BrokerError> {
        let record = check_heartbeat(&request)?;
        let joins = request.member_id.is_empty();
        if joins && let Some(topic) = record.topics.iter().find(|topic| self.inner.backing.partitions_of(topic) == 0) {
            return Err(unknown_topic(topic));
        }
        let topic = self.inner.backing.groups_topic_or_new().await?;
        let mut seat = self.inner.sit(&request.group, &topic).await?;
        if joins && seat.record.is_none() {
            self.inner.check_room()?;
        }
        let mut group = seat.take(&request.group);
        #[expect(clippy::disallowed_methods, reason = "member ids must be unique, and are never interpreted")]
        let new_id = || Uuid::new_v4().to_string();
        let partitions_of = |topic: &str| self.inner.backing.partitions_of(topic);
        match group.heartbeat(&request, record, new_id, partitions_of, Instant::now()) {
            Ok((membership, changes)) => {
                seat.lead.append(&request.group, &changes).await?;
                *seat.slot = Some(group);
                Ok(membership)
            }
            Err(error) => {
                *seat.slot = Some(group);
                Err(error)
            }
        }
    }

    /// Ends a membership at once.
    ///
    /// # Errors
    /// [`Reason::UnknownMember`] when it has ended before; [`Reason::NotLeader`].
    pub async fn leave(&self, name: &str, member_id: &str) -> Result<(), BrokerError> {
        check_name(name)?;
        let topic = self.inner.backing.groups_topic_or_new().await?;
        let mut seat = self.inner.sit(name, &topic).await?;
        let mut group = seat.take(name);
        let left = group.leave(member_id);
        if let Ok(changes) = &left {
            seat.lead.append(name, changes).await?;
        }
        *seat.slot = Some(group);
        left.map(drop)
    }

    /// The groups of all partitions of `__groups` that this node has a replica of, by name. Of those that another node coordinates, a
    /// change of hands that is under way is not seen.
    ///
    /// # Errors
    /// None today: partitions that cannot be read are left out.
    pub async fn list(&self) -> Result<Vec<GroupSummary>, BrokerError> {
        let Some(topic) = self.inner.backing.groups_topic() else { return Ok(Vec::new()) };
        let mut all = Vec::new();
        for number in 0..topic.partitions {
            match self.inner.summaries(&topic, number).await {
                Ok(found) => all.extend(found),
                Err(error) => tracing::debug!(number, %error, "groups of a partition are left out"),
            }
        }
        for summary in &mut all {
            let coordinator =
                self.inner.coordinators.lock().get(&partition_of(&summary.group, topic.partitions)).cloned();
            let slot = coordinator.and_then(|coordinator| coordinator.slots.lock().get(&summary.group).cloned());
            if let Some(slot) = slot
                && let Some(group) = &*slot.lock().await
            {
                summary.state = group.state();
                summary.members = group.len();
            }
        }
        all.sort_by(|a, b| a.group.cmp(&b.group));
        Ok(all)
    }

    /// Forgets a group without members.
    ///
    /// # Errors
    /// [`Reason::UnknownGroup`], [`Reason::GroupNotEmpty`], [`Reason::NotLeader`].
    pub async fn delete(&self, name: &str) -> Result<(), BrokerError> {
        check_name(name)?;
        let mut seat = self.inner.sit(name, &self.topic(name)?).await?;
        let group = seat.take(name);
        let record = seat.record.clone().ok_or_else(|| unknown_group(name))?;
        if !group.is_empty() {
            let error = not_empty(name, group.len());
            *seat.slot = Some(group);
            return Err(error);
        }
        let offsets = record.offsets.iter().flat_map(|(topic, partitions)| {
            partitions.keys().map(|partition| Change::Offset(topic.clone(), *partition, None))
        });
        let changes: Vec<Change> = offsets.chain([Change::Generation(None)]).collect();
        // The group in memory is gone with its record.
        seat.lead.append(name, &changes).await
    }

    /// The internal topic; without it there is no group of this name.
    fn topic(&self, name: &str) -> Result<Topic, BrokerError> {
        self.inner.backing.groups_topic().ok_or_else(|| unknown_group(name))
    }
}

impl Inner {
    /// The group of this name on its coordinator, for one decision; others wait.
    async fn sit(&self, name: &str, topic: &Topic) -> Result<Seat, BrokerError> {
        let lead = self.backing.lead(topic, partition_of(name, topic.partitions)).await?;
        let coordinator = self.coordinator(&lead)?;
        let slot = coordinator.slots.lock().entry(name.to_owned()).or_default().clone();
        // It may be the first one in memory.
        self.wake.notify_one();
        let slot = slot.lock_owned().await;
        let (record, known) = lead.read(|table| (table.get(name).cloned(), table.len()))?;
        coordinator.known.store(known, Ordering::Relaxed);
        Ok(Seat { lead, slot, record })
    }

    /// The groups of one partition as they are remembered.
    async fn summaries(&self, topic: &Topic, number: i32) -> Result<Vec<GroupSummary>, BrokerError> {
        if let Ok(lead) = self.backing.lead(topic, number).await {
            // From here on the sessions of members run, whether they come or not.
            self.coordinator(&lead)?;
        }
        let summary = |(name, record): (&String, &GroupRecord)| GroupSummary {
            group: name.clone(),
            state: if record.members.is_empty() { GroupState::Empty } else { GroupState::Stable },
            members: record.members.len(),
        };
        self.backing.read(topic, number, |table| table.iter().map(summary).collect()).await
    }

    fn coordinator(&self, lead: &Lead) -> Result<Arc<Coordinator>, BrokerError> {
        let mut coordinators = self.coordinators.lock();
        match coordinators.get(&lead.number) {
            Some(current) if current.term == lead.term => Ok(current.clone()),
            Some(current) if current.term > lead.term => {
                Err(BrokerError::new(Reason::Unavailable, "the group's coordinator has changed"))
            }
            _ => {
                let new = Arc::new(lead.read(|table| Coordinator::recover(lead.term, table, Instant::now()))?);
                coordinators.insert(lead.number, new.clone());
                self.wake.notify_one();
                Ok(new)
            }
        }
    }

    /// Whether there is room for another group.
    fn check_room(&self) -> Result<(), BrokerError> {
        let coordinators = self.coordinators.lock();
        let groups: usize = coordinators.values().map(|one| one.known.load(Ordering::Relaxed)).sum();
        if groups < GROUPS_MAX {
            return Ok(());
        }
        let message = format!("group: the node has {groups} groups, the most there may be is {GROUPS_MAX}");
        Err(BrokerError::new(Reason::Overloaded, message).with("limit", GROUPS_MAX))
    }
}

fn check_name(name: &str) -> Result<(), BrokerError> {
    if validate::is_topic_name(name) {
        return Ok(());
    }
    let shown: String = name.chars().take(64).collect();
    let rule = "a group name has 1 to 249 characters of a-z A-Z 0-9 . _ - and is neither . nor ..";
    Err(BrokerError::invalid("group", format!("{shown:?}"), rule))
}

/// The member that a heartbeat is of.
fn check_heartbeat(request: &Heartbeat) -> Result<MemberRecord, BrokerError> {
    check_name(&request.group)?;
    if request.client_name.len() > CLIENT_NAME_MAX {
        let rule = format!("must have at most {CLIENT_NAME_MAX} bytes");
        return Err(BrokerError::invalid("client_name", format!("{} bytes", request.client_name.len()), &rule));
    }
    if request.topics.is_empty() || request.topics.len() > TOPICS_MAX {
        let rule = format!("a member reads 1 to {TOPICS_MAX} topics");
        return Err(BrokerError::invalid("topics", format!("{} topics", request.topics.len()), &rule));
    }
    if let Some(topic) = request.topics.iter().find(|topic| !validate::is_topic_name(topic)) {
        let shown: String = topic.chars().take(64).collect();
        return Err(BrokerError::invalid("topics", format!("{shown:?}"), "is no topic name"));
    }
    let owned: usize = request.owned.values().map(Vec::len).sum();
    if owned > OWNED_MAX {
        return Err(BrokerError::invalid("owned", format!("{owned} partitions"), &format!("at most {OWNED_MAX}")));
    }
    let session_timeout_ms = match request.session_timeout_ms {
        0 => SESSION_DEFAULT_MS,
        ms if SESSION_MS.contains(&ms) => ms,
        ms => {
            let rule = format!("must be 0 or from {} to {}", SESSION_MS.start(), SESSION_MS.end());
            return Err(BrokerError::invalid("session_timeout_ms", ms, &rule));
        }
    };
    let mut topics = request.topics.clone();
    topics.sort_unstable();
    topics.dedup();
    Ok(MemberRecord { client_name: request.client_name.clone(), topics, session_timeout_ms })
}

fn unknown_group(name: &str) -> BrokerError {
    BrokerError::new(Reason::UnknownGroup, format!("group {name:?}: no such group"))
}

fn not_empty(name: &str, members: usize) -> BrokerError {
    let message = format!("group {name}: has {members} members; stop them first");
    BrokerError::new(Reason::GroupNotEmpty, message).with("members", members)
}

#[cfg(test)]
mod tests;
