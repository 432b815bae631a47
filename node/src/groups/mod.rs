//! Consumer groups: assigns partitions to members, and stores offsets.
//!
//! A group belongs to one partition of the internal topic `__groups` (a fixed hash of its name, [`partition_of`]), and its
//! coordinator is the leader of that partition. Durable state is stored as records of that partition: generations, members,
//! offsets (`table.rs`). Which member owns which partition is in memory only; after a change of coordinator, the members'
//! heartbeats report it again.
//!
//! ```text
//! listeners -> for_caller.rs (access) -> mod.rs (checks, order) -> consumer_group.rs (decides)
//!   -> backend.rs -> partition -> ... -> table.rs (applies)
//! ```
//!
//! Invariants:
//! - No response contains a generation, a member or an offset that is not durable: when an append fails, the cached group
//!   is dropped and recovered from the table.
//! - Changes of one group are decided sequentially, and their order in the log is that of the decisions.
//! - State in memory is valid for one term of leadership.
//! - An answer that appends nothing (a refusal, stored offsets, a heartbeat without a change) is a read: it leaves after the
//!   proof that this node still coordinates the group (`LedPartition::confirm` in `backend.rs`). [`Groups::list`] alone reads what
//!   this node's replicas have.
//!
//! Independent of any protocol: gRPC calls it today, and a Kafka listener could serve members of the same groups.

mod assignment;
mod backend;
mod consumer_group;
mod for_caller;
mod group_lag;
#[cfg(test)]
mod group_records_fuzz;
mod offsets;
mod requests;
mod sessions;
mod table;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedMutexGuard};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use backend::{Backend, LedPartition};
use consumer_group::ConsumerGroup;
pub use for_caller::GroupsForCaller;
pub use group_lag::GroupLag;
pub use requests::{
    Commit, CommittedOffset, GROUPS_TOPIC, GroupDescription, GroupState, GroupSummary, Heartbeat, HeartbeatResponse,
    MemberDescription, PartitionLag, Partitions, Reset, ResetTo,
};
pub use table::{Change, GroupRecord, GroupTable, MemberRecord, OffsetRecord};

use crate::broker::Broker;
use crate::model::{ApiError, Reason, Topic, is_topic_name, unknown_topic};
use crate::partition::View;

/// Maximum number of groups that a node coordinates.
const GROUPS_MAX: usize = 10_000;
/// Maximum number of topics of a member.
const TOPICS_MAX: usize = 1000;
/// Maximum number of partitions in a heartbeat.
const OWNED_MAX: usize = 20_000;
/// Maximum length of a client name, in bytes.
const CLIENT_NAME_MAX: usize = 256;
/// Default session timeout, in milliseconds.
const SESSION_DEFAULT_MS: u32 = 30_000;
/// Session timeouts that a member may request, in milliseconds.
const SESSION_MS: std::ops::RangeInclusive<u32> = 1000..=600_000;

/// Returns an empty view for the internal topic, none for any other. `partition/` calls it when it opens a log.
pub fn view_of(topic: &str) -> Option<Box<dyn View>> {
    (topic == GROUPS_TOPIC).then(|| Box::new(GroupTable::default()) as Box<dyn View>)
}

/// The partition of `__groups` that a group belongs to: the first eight bytes of the name's BLAKE3 hash, little-endian, modulo
/// the number of partitions. Must never change: it determines where stored offsets are.
pub fn partition_of(group: &str, partitions: i32) -> i32 {
    let hash = blake3::hash(group.as_bytes());
    let first = hash.as_bytes().first_chunk::<8>().expect("a BLAKE3 hash has 32 bytes");
    (u64::from_le_bytes(*first) % partitions.max(1) as u64) as i32
}

/// The consumer groups that this node coordinates. Cheap to clone.
#[derive(Clone)]
pub struct Groups {
    inner: Arc<NodeGroups>,
}

/// The groups of a node: coordinators, cached groups, and background tasks.
struct NodeGroups {
    backend: Backend,
    /// By partition of `__groups`.
    coordinators: Mutex<HashMap<i32, Arc<Coordinator>>>,
    /// Notified when a group is cached.
    wake: Notify,
    stop: CancellationToken,
    /// As last measured, by group and topic.
    lags: Mutex<Vec<GroupLag>>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

/// A cached group; `None`: must be recovered from the table.
type CachedGroup = Arc<tokio::sync::Mutex<Option<ConsumerGroup>>>;

/// The cached groups of one partition in one term.
struct Coordinator {
    term: u64,
    cached_groups: Mutex<HashMap<String, CachedGroup>>,
    /// Number of groups in the table, as last read.
    known: AtomicUsize,
}

impl Coordinator {
    /// Starts a term: the sessions of all stored members start at `now`.
    fn recover(term: u64, table: &GroupTable, now: Instant) -> Self {
        let with_members = table.iter().filter(|(_, record)| !record.members.is_empty());
        let cached = |(name, record): (&String, &GroupRecord)| {
            (name.clone(), CachedGroup::new(tokio::sync::Mutex::new(Some(ConsumerGroup::recover(name, record, now)))))
        };
        Self {
            term,
            cached_groups: Mutex::new(with_members.map(cached).collect()),
            known: AtomicUsize::new(table.len()),
        }
    }
}

/// A cached group that is locked for one decision.
struct LockedGroup {
    lead: LedPartition,
    cached: OwnedMutexGuard<Option<ConsumerGroup>>,
    /// As stored in the table.
    record: Option<GroupRecord>,
}

impl LockedGroup {
    /// Takes the group out of the cache. The caller puts it back once its decision is durable; until then the cache is empty.
    fn take(&mut self, name: &str) -> ConsumerGroup {
        let record = self.record.clone().unwrap_or_default();
        self.cached.take().unwrap_or_else(|| ConsumerGroup::recover(name, &record, Instant::now()))
    }

    /// Releases the group, then proves that this node still coordinates it: for an answer that appends nothing.
    async fn confirm(self) -> Result<(), ApiError> {
        let Self { lead, cached, .. } = self;
        drop(cached);
        lead.confirm().await
    }

    /// As [`LockedGroup::confirm`]: the error for a request that was refused with `error`.
    async fn refuse(self, error: ApiError) -> ApiError {
        self.confirm().await.err().unwrap_or(error)
    }
}

impl Groups {
    /// Starts the groups of a node, and the tasks that expire sessions and measure lags; [`Groups::shutdown`] ends them.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn start(broker: Broker) -> Self {
        let live = broker.live().clone();
        let inner = Arc::new(NodeGroups {
            backend: Backend::new(broker),
            coordinators: Mutex::default(),
            wake: Notify::new(),
            stop: CancellationToken::new(),
            lags: Mutex::default(),
            tasks: Mutex::default(),
        });
        let tasks =
            vec![tokio::spawn(sessions::watch(inner.clone())), tokio::spawn(group_lag::measure(inner.clone(), live))];
        *inner.tasks.lock() = tasks;
        Self { inner }
    }

    /// Ends the tasks that expire sessions and measure lags, and waits for them.
    pub async fn shutdown(&self) {
        self.inner.stop.cancel();
        let tasks = std::mem::take(&mut *self.inner.tasks.lock());
        for task in tasks {
            if let Err(error) = task.await {
                tracing::error!(%error, "a task of the consumer groups panicked");
            }
        }
    }

    /// Joins a group, or renews the session of a member and reports its partitions; returns its assignment.
    ///
    /// # Errors
    /// [`Reason::InvalidRequest`], [`Reason::UnknownTopic`] when joining; [`Reason::UnknownMember`] when the session has expired;
    /// [`Reason::Overloaded`] when there are too many members or groups; [`Reason::NotLeader`] with the coordinator's address.
    pub async fn heartbeat(&self, request: Heartbeat) -> Result<HeartbeatResponse, ApiError> {
        let record = check_heartbeat(&request)?;
        let joins = request.member_id.is_empty();
        if joins {
            self.inner.backend.know(record.topics.iter().map(|topic| (topic.as_str(), 0))).await?;
        }
        if joins && let Some(topic) = record.topics.iter().find(|topic| self.inner.backend.partitions_of(topic) == 0) {
            return Err(unknown_topic(topic));
        }
        let topic = self.inner.backend.groups_topic_or_new().await?;
        let mut locked = self.inner.lock_group(&request.group, &topic).await?;
        if joins && locked.record.is_none() {
            self.inner.check_room()?;
        }
        let mut group = locked.take(&request.group);
        #[expect(clippy::disallowed_methods, reason = "member ids must be unique, and are never interpreted")]
        let new_id = || Uuid::new_v4().to_string();
        let partitions_of = |topic: &str| self.inner.backend.partitions_of(topic);
        match group.heartbeat(&request, record, new_id, partitions_of, Instant::now()) {
            Ok((membership, changes)) if changes.is_empty() => {
                *locked.cached = Some(group);
                locked.confirm().await?;
                Ok(membership)
            }
            Ok((membership, changes)) => {
                locked.lead.append(&request.group, &changes).await?;
                *locked.cached = Some(group);
                Ok(membership)
            }
            Err(error) => {
                *locked.cached = Some(group);
                Err(locked.refuse(error).await)
            }
        }
    }

    /// Removes a member immediately.
    ///
    /// # Errors
    /// [`Reason::UnknownMember`] when it is not a member any more; [`Reason::NotLeader`].
    pub async fn leave(&self, name: &str, member_id: &str) -> Result<(), ApiError> {
        check_name(name)?;
        let topic = self.inner.backend.groups_topic_or_new().await?;
        let mut locked = self.inner.lock_group(name, &topic).await?;
        let mut group = locked.take(name);
        let left = group.leave(member_id);
        if let Ok(changes) = &left {
            locked.lead.append(name, changes).await?;
        }
        *locked.cached = Some(group);
        match left {
            Ok(_) => Ok(()),
            Err(error) => Err(locked.refuse(error).await),
        }
    }

    /// The groups of all partitions of `__groups` with a replica on this node, by name. For groups that another node coordinates, a
    /// running rebalance is not visible.
    ///
    /// # Errors
    /// None today: partitions that cannot be read are left out.
    pub async fn list(&self) -> Result<Vec<GroupSummary>, ApiError> {
        let Some(topic) = self.inner.backend.groups_topic() else { return Ok(Vec::new()) };
        let mut all = Vec::new();
        for number in 0..topic.partitions {
            match self.inner.summaries(&topic, number).await {
                Ok(found) => all.extend(found),
                Err(error) => tracing::debug!(number, %error, "cannot list the groups of a partition"),
            }
        }
        for summary in &mut all {
            let coordinator =
                self.inner.coordinators.lock().get(&partition_of(&summary.group, topic.partitions)).cloned();
            let cached =
                coordinator.and_then(|coordinator| coordinator.cached_groups.lock().get(&summary.group).cloned());
            if let Some(cached) = cached
                && let Some(group) = &*cached.lock().await
            {
                summary.state = group.state();
                summary.members = group.len();
            }
        }
        all.sort_by(|a, b| a.group.cmp(&b.group));
        Ok(all)
    }

    /// Deletes a group without members.
    ///
    /// # Errors
    /// [`Reason::UnknownGroup`], [`Reason::GroupNotEmpty`], [`Reason::NotLeader`].
    pub async fn delete(&self, name: &str) -> Result<(), ApiError> {
        check_name(name)?;
        let mut locked = self.inner.lock_group(name, &self.topic(name).await?).await?;
        let Some(record) = locked.record.clone() else { return Err(locked.refuse(unknown_group(name)).await) };
        let group = locked.take(name);
        if !group.is_empty() {
            let error = not_empty(name, group.len());
            *locked.cached = Some(group);
            return Err(locked.refuse(error).await);
        }
        let offsets = record.offsets.iter().flat_map(|(topic, partitions)| {
            partitions.keys().map(|partition| Change::Offset(topic.clone(), *partition, None))
        });
        let changes: Vec<Change> = offsets.chain([Change::Generation(None)]).collect();
        // The cached group is not put back.
        locked.lead.append(name, &changes).await
    }

    /// The internal topic; without it the group does not exist.
    async fn topic(&self, name: &str) -> Result<Topic, ApiError> {
        self.inner.backend.existing_groups_topic().await?.ok_or_else(|| unknown_group(name))
    }
}

impl NodeGroups {
    /// Locks the group with this name on its coordinator for one decision; other callers wait.
    async fn lock_group(&self, name: &str, topic: &Topic) -> Result<LockedGroup, ApiError> {
        let lead = self.backend.lead(topic, partition_of(name, topic.partitions)).await?;
        let coordinator = self.coordinator(&lead)?;
        let cached = coordinator.cached_groups.lock().entry(name.to_owned()).or_default().clone();
        // It may be the first cached group.
        self.wake.notify_one();
        let cached = cached.lock_owned().await;
        let (record, known) = lead.read(|table| (table.get(name).cloned(), table.len()))?;
        coordinator.known.store(known, Ordering::Relaxed);
        Ok(LockedGroup { lead, cached, record })
    }

    /// The groups of one partition, as stored in the table.
    async fn summaries(&self, topic: &Topic, number: i32) -> Result<Vec<GroupSummary>, ApiError> {
        if let Ok(lead) = self.backend.lead(topic, number).await {
            // Starts the sessions of the members, even if they never send a heartbeat.
            self.coordinator(&lead)?;
        }
        let summary = |(name, record): (&String, &GroupRecord)| GroupSummary {
            group: name.clone(),
            state: if record.members.is_empty() { GroupState::Empty } else { GroupState::Stable },
            members: record.members.len(),
        };
        self.backend.read(topic, number, |table| table.iter().map(summary).collect()).await
    }

    /// The coordinator of a partition in the current term; recovers the groups when the term is new.
    fn coordinator(&self, lead: &LedPartition) -> Result<Arc<Coordinator>, ApiError> {
        let mut coordinators = self.coordinators.lock();
        match coordinators.get(&lead.number) {
            Some(current) if current.term == lead.term => Ok(current.clone()),
            Some(current) if current.term > lead.term => {
                Err(ApiError::new(Reason::Unavailable, "the group's coordinator has changed"))
            }
            _ => {
                let new = Arc::new(lead.read(|table| Coordinator::recover(lead.term, table, Instant::now()))?);
                coordinators.insert(lead.number, new.clone());
                self.wake.notify_one();
                Ok(new)
            }
        }
    }

    /// Checks that the node may coordinate another group.
    fn check_room(&self) -> Result<(), ApiError> {
        let coordinators = self.coordinators.lock();
        let groups: usize = coordinators.values().map(|one| one.known.load(Ordering::Relaxed)).sum();
        if groups < GROUPS_MAX {
            return Ok(());
        }
        let message = format!("groups: the node coordinates {groups}: at most {GROUPS_MAX}");
        Err(ApiError::new(Reason::Overloaded, message).with("limit", GROUPS_MAX))
    }
}

fn check_name(name: &str) -> Result<(), ApiError> {
    if is_topic_name(name) {
        return Ok(());
    }
    let shown: String = name.chars().take(64).collect();
    let rule = "must have 1 to 249 characters of a-z A-Z 0-9 . _ - and be neither . nor ..";
    Err(ApiError::invalid("group", format!("{shown:?}"), rule))
}

/// Checks a heartbeat; returns its member.
fn check_heartbeat(request: &Heartbeat) -> Result<MemberRecord, ApiError> {
    check_name(&request.group)?;
    if request.client_name.len() > CLIENT_NAME_MAX {
        let rule = format!("at most {CLIENT_NAME_MAX} bytes");
        return Err(ApiError::invalid("client_name", format!("{} bytes", request.client_name.len()), &rule));
    }
    if request.topics.is_empty() || request.topics.len() > TOPICS_MAX {
        let rule = format!("must be 1 to {TOPICS_MAX} topics");
        return Err(ApiError::invalid("topics", format!("{} topics", request.topics.len()), &rule));
    }
    if let Some(topic) = request.topics.iter().find(|topic| !is_topic_name(topic)) {
        let shown: String = topic.chars().take(64).collect();
        return Err(ApiError::invalid("topics", format!("{shown:?}"), "must be a topic name"));
    }
    let owned: usize = request.owned.values().map(Vec::len).sum();
    if owned > OWNED_MAX {
        return Err(ApiError::invalid("owned", format!("{owned} partitions"), &format!("at most {OWNED_MAX}")));
    }
    let session_timeout_ms = match request.session_timeout_ms {
        0 => SESSION_DEFAULT_MS,
        ms if SESSION_MS.contains(&ms) => ms,
        ms => {
            let rule = format!("must be 0 or from {} to {}", SESSION_MS.start(), SESSION_MS.end());
            return Err(ApiError::invalid("session_timeout_ms", ms, &rule));
        }
    };
    let mut topics = request.topics.clone();
    topics.sort_unstable();
    topics.dedup();
    Ok(MemberRecord { client_name: request.client_name.clone(), topics, session_timeout_ms })
}

fn unknown_group(name: &str) -> ApiError {
    ApiError::new(Reason::UnknownGroup, format!("group {name:?}: does not exist"))
}

fn not_empty(name: &str, members: usize) -> ApiError {
    let message = format!("group {name:?}: has {members} members: stop them first");
    ApiError::new(Reason::GroupNotEmpty, message).with("members", members)
}

#[cfg(test)]
mod tests;
