//! One raft group on this node: start, propose, change members, checkpoint, stop.
//!
//! Groups have no timers: the node triggers heartbeats and elections (`partition::upkeep`), because it knows which
//! nodes are alive. Elections and leadership transfers are in `election.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use chronicle_log::{Log, LogError, LogId, Store};
use chronicle_proto::internal as proto;
use chronicle_proto::internal::raft_frame::Message;
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{ClientWriteError, Fatal, ForwardToLeader, LinearizableReadError, RaftError};
use openraft::raft::AppendEntriesResponse;
use openraft::raft::linearizable_read::LinearizerOption;
use openraft::{ChangeMembers, Config, Instant as _, Raft, ServerState, SnapshotPolicy};

use super::contact::LeaderContact;
use super::doubt::{DoubtState, TailDoubt};
use super::lease::{LeaderLease, LeasePromise};
use super::network::{Network, Transport};
use super::state_machine::{Machine, MachineStore};
use super::store::LogStorage;
use super::type_config::{Callback, LeaderTerm, Proposal, RaftLogId, RaftMember, RaftMembership, RaftVote, TypeConfig};
use super::wire;
use crate::config::LinearizableReads;
use crate::host::Suspension;
use crate::host::flushed::settled;
use crate::model::PartitionError;
use crate::telemetry::RaftMetrics;

/// Longer than the time without responses after which the node itself acts on a leader.
const NO_LEASE_END_MS: u64 = 24 * 3600 * 1000;
/// Interval between heartbeats of a leader.
pub const HEARTBEAT: Duration = Duration::from_millis(500);

/// Why a group cannot be used.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RaftGroupError {
    /// The log failed: the group stops and is restarted from the data on disk.
    #[error(transparent)]
    Log(#[from] LogError),
    /// openraft stopped or did not start.
    #[error("raft group {group}: {reason}")]
    Raft {
        /// Which.
        group: LogId,
        /// Why.
        reason: String,
    },
    /// This node is not the leader.
    #[error("raft group {group}: this node is not the leader")]
    NotLeader {
        /// Which.
        group: LogId,
        /// Raft id of the leader, if it is known.
        leader: Option<u64>,
    },
    /// No majority confirmed this node's leadership in time.
    #[error("raft group {group}: leadership not confirmed within {waited_ms} ms")]
    NoLeader {
        /// Which.
        group: LogId,
        /// Length of the wait, in milliseconds.
        waited_ms: u64,
    },
}

impl RaftGroupError {
    /// The error for a request that only the leader answers: names the leader, if it is known.
    pub(crate) fn refusal(self) -> PartitionError {
        match self {
            Self::NotLeader { leader: Some(leader), .. } => PartitionError::NotLeader { leader },
            Self::NotLeader { leader: None, .. } => PartitionError::NoLeader,
            other => other.into(),
        }
    }
}

impl From<RaftGroupError> for PartitionError {
    fn from(error: RaftGroupError) -> Self {
        match error {
            RaftGroupError::Log(error) => error.into(),
            RaftGroupError::Raft { .. } | RaftGroupError::NoLeader { .. } | RaftGroupError::NotLeader { .. } => {
                Self::Unavailable(error.to_string())
            }
        }
    }
}

/// Outcome of a proposal that did not commit here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProposeError {
    /// Not accepted, nothing was appended: this node is not the leader in the requested term. Raft id of the leader, if
    /// known.
    NotAccepted(Option<u64>, String),
    /// Outcome unknown: appended here, and the entry may have committed.
    Unknown(String),
}

impl fmt::Display for ProposeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAccepted(_, why) => write!(f, "not accepted: {why}"),
            Self::Unknown(why) => write!(f, "outcome unknown: {why}"),
        }
    }
}

/// The response of the machine, or the error.
pub type ProposeResult = Result<Bytes, ProposeError>;

/// The state of a group, for metrics and diagnostics.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RaftGroupStatus {
    /// Current term.
    pub term: u64,
    /// Raft id of the leader, as known to this node.
    pub leader: Option<u64>,
    /// Whether this node leads.
    pub is_leader: bool,
    /// Last raft index in the log.
    pub last: Option<u64>,
    /// Last applied raft index.
    pub applied: Option<u64>,
    /// Last raft index that the checkpoint covers.
    pub checkpoint: Option<u64>,
    /// Voters; during a change of membership, the old and the new ones.
    pub voters: BTreeSet<u64>,
    /// Replicas without a vote.
    pub learners: BTreeSet<u64>,
    /// Whether the membership is changing (joint consensus).
    pub joint: bool,
    /// Whether the membership is committed.
    pub membership_committed: bool,
    /// Raft index of the membership's entry.
    pub membership_index: u64,
    /// On the leader: the last index known to be stored on each other replica.
    pub matched: BTreeMap<u64, Option<u64>>,
    /// What this replica may have lost from the end of its log.
    pub doubt: Option<TailDoubt>,
}

/// Role of this node in a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// This node leads in this term.
    Leader(LeaderTerm),
    /// Another node leads, or no leader is known.
    Follower {
        /// Raft id of the leader.
        leader: Option<u64>,
        /// Its term.
        term: u64,
    },
}

/// Follows the role of a group.
pub struct Roles {
    rx: openraft::type_config::alias::WatchReceiverOf<TypeConfig, openraft::metrics::RaftServerMetrics<TypeConfig>>,
}

impl Roles {
    /// Returns the current role.
    pub fn now(&self) -> Role {
        let metrics = self.rx.borrow_watched();
        let vote = &metrics.vote;
        let term = LeaderTerm { term: vote.leader_id.term, leader: vote.leader_id.node_id };
        match metrics.state {
            ServerState::Leader if vote.committed => Role::Leader(term),
            _ => Role::Follower { leader: metrics.current_leader, term: term.term },
        }
    }

    /// Waits until the role differs from `from` and returns it. `None`: the group has stopped. Safe to cancel.
    pub async fn other(&mut self, from: Role) -> Option<Role> {
        loop {
            let now = self.now();
            if now != from {
                return Some(now);
            }
            self.rx.changed().await.ok()?;
        }
    }
}

/// Arguments of [`RaftGroup::start`].
pub struct RaftGroupConfig {
    /// The data directory.
    pub store: Arc<Store>,
    /// The group's log, open.
    pub log: Arc<Log>,
    /// Its id.
    pub id: LogId,
    /// This node's raft id.
    pub node: u64,
    /// Transport to the other replicas.
    pub transport: Arc<dyn Transport>,
    /// Voters of a new group, the same on each of them. `None`: this replica was added later and reads the members from
    /// its log.
    pub founders: Option<BTreeMap<u64, RaftMember>>,
    /// Time without responses from a majority after which a leader stops accepting proposals.
    pub election_timeout: Duration,
    /// How the leader proves its leadership for a linearizable read.
    pub reads: LinearizableReads,
    /// What this replica has promised as a voter; it outlives the group.
    pub promise: Arc<LeasePromise>,
    /// Reads for how long the machine has been suspended: [`crate::host::suspension`].
    pub suspension: fn() -> Suspension,
    /// Metrics of raft groups.
    pub metrics: RaftMetrics,
}

/// One raft group on this node. Dropping it without [`RaftGroup::shutdown`] leaves its tasks running.
pub struct RaftGroup<M: Machine> {
    pub(super) raft: Raft<TypeConfig, MachineStore<M>>,
    pub(super) id: LogId,
    pub(super) node: u64,
    storage: LogStorage,
    log: Arc<Log>,
    pub(super) transport: Arc<dyn Transport>,
    pub(super) election_timeout: Duration,
    pub(super) metrics: RaftMetrics,
    pub(super) heard: LeaderContact,
    pub(super) promise: Arc<LeasePromise>,
    lease: LeaderLease,
    pub(super) doubt: DoubtState,
    /// Held while this replica is a candidate.
    pub(super) campaigning: tokio::sync::Mutex<()>,
    checkpointing: tokio::sync::Mutex<()>,
}

/// Longest wait for openraft to take a checkpoint or purge.
const OPENRAFT_TIMEOUT: Duration = Duration::from_secs(30);

impl<M: Machine> RaftGroup<M> {
    /// Restores the machine from the log's checkpoint, then starts the group on the current runtime, as a follower.
    ///
    /// # Errors
    /// [`LogError::Damaged`] when the checkpoint is damaged and the log does not have all entries that it covers; when the log
    /// cannot be read, or openraft rejects the stored state.
    pub async fn start(start: RaftGroupConfig, machine: M) -> Result<Self, RaftGroupError> {
        let RaftGroupConfig { store, log, id, node, transport, founders, election_timeout, .. } = start;
        let RaftGroupConfig { reads, promise, suspension, metrics, .. } = start;
        // The journal also has a vote whose flush failed because the disk was full: no other node may rely on it yet.
        settled(&store, id).await?;
        let storage = LogStorage::open(store.clone(), log.clone(), id, metrics.clone())
            .map_err(|e| RaftGroupError::Raft { group: id, reason: e.to_string() })?;
        let reader = storage.clone();
        let doubt = DoubtState::open(&store, &log, storage.vote()).await?;
        let failed = |reason: String| match log.failure().or_else(|| reader.damage()) {
            Some(error) => RaftGroupError::Log(error),
            None => RaftGroupError::Raft { group: id, reason },
        };
        // openraft would take a log that has lost its end for one that a snapshot has overtaken, and empty it.
        storage.check_end(None)?;
        let (traced, first) = (storage.traced(), storage.first_index());
        let machine = MachineStore::open(log.clone(), machine, metrics.clone(), traced, first)?;
        storage.check_end(machine.applied_index())?;
        if let Some(founders) = founders
            && storage.is_new()
        {
            // The first entry is written before raft starts. openraft's own `initialize` journals a vote beside it, and
            // a crash between the two would leave a group that counts as initialised and has no voter. Every initial
            // member writes the same entry, so that no message is needed.
            let voters: BTreeSet<u64> = founders.keys().copied().collect();
            let membership = RaftMembership::new(vec![voters], founders).map_err(|e| failed(e.to_string()))?;
            storage.append_first(membership).await.map_err(|e| failed(e.to_string()))?;
        }
        let config = Config {
            cluster_name: id.to_string(),
            // The node triggers heartbeats and elections: an idle group causes no wake-ups.
            enable_tick: false,
            enable_heartbeat: false,
            enable_elect: false,
            // `campaign` has its own pre-vote, which takes into account which nodes are alive.
            enable_pre_vote: Some(false),
            heartbeat_interval: HEARTBEAT.as_millis() as u64,
            // The upper bound is openraft's lease, which must not expire: openraft checks it for each entry, and an
            // entry rejected between two accepted ones would leave a gap in the offsets that the sequencer has
            // assigned. The node itself checks whether a majority still responds (`quorum_silent`) and whether a leader
            // has failed.
            election_timeout_min: NO_LEASE_END_MS - 1,
            election_timeout_max: NO_LEASE_END_MS,
            // A restarted node must win a new election, in a new term.
            enable_leader_restore: Some(false),
            // Checkpoints are taken when segments roll; purging follows retention.
            snapshot_policy: SnapshotPolicy::Never,
            max_in_snapshot_log_to_keep: u64::MAX,
            // When the last, acknowledged entry of a follower was damaged while its node was down, the follower cuts it
            // as it would a torn write (`doubt.rs`); the leader then sends it again.
            allow_log_reversion: Some(true),
            api_channel_size: Some(1024),
            notification_channel_size: Some(1024),
            ..Config::default()
        };
        let config = Arc::new(config.validate().map_err(|e| failed(e.to_string()))?);
        let network =
            Network { transport: transport.clone(), group: id, metrics: metrics.clone(), traced: storage.traced() };
        let raft = Raft::new(node, config, network, storage, machine).await.map_err(|e| failed(e.to_string()))?;
        // The group's task publishes `status`. Its response here shows that it has started; before that, `status` has
        // no log and no members.
        raft.with_raft_state(|_| ()).await.map_err(|e| failed(e.to_string()))?;
        Ok(Self {
            raft,
            id,
            node,
            storage: reader,
            log,
            transport,
            election_timeout,
            metrics,
            heard: LeaderContact::new(),
            promise,
            lease: LeaderLease::new(reads, suspension),
            doubt,
            campaigning: tokio::sync::Mutex::new(()),
            checkpointing: tokio::sync::Mutex::new(()),
        })
    }

    /// Returns the id of the group's log.
    pub fn id(&self) -> LogId {
        self.id
    }

    /// Returns a watch of this node's role in the group.
    pub fn roles(&self) -> Roles {
        Roles { rx: self.raft.server_metrics() }
    }

    /// Returns the current term.
    pub fn term(&self) -> u64 {
        self.raft.metrics().borrow_watched().current_term
    }

    /// Whether this node leads and has had no responses from a majority for the election timeout.
    pub fn quorum_silent(&self) -> bool {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        metrics.state == ServerState::Leader
            && metrics.membership_config.membership().voter_ids().count() > 1
            && metrics.last_quorum_acked.is_some_and(|at| at.elapsed() > self.election_timeout)
    }

    /// Returns the position of the last entry of the log.
    pub async fn last_position(&self) -> Option<proto::LogPosition> {
        let last = self.raft.with_raft_state(|state| state.log_ids.last().copied()).await.ok()?;
        last.as_ref().map(wire::position_out)
    }

    /// Returns the first index that raft may read. Entries before it are covered by the checkpoint or deleted.
    pub fn first_index(&self) -> u64 {
        self.raft.metrics().borrow_watched().purged.map(|id| id.index + 1).unwrap_or(0)
    }

    /// Returns the position of the entry before [`RaftGroup::first_index`].
    pub fn purged_position(&self) -> Option<proto::LogPosition> {
        self.raft.metrics().borrow_watched().purged.as_ref().map(wire::position_out)
    }

    /// Handles a request of another replica and returns the response.
    pub async fn handle(&self, from: u64, message: Message) -> Message {
        let refuse = |why: String| Message::Refused(why);
        match message {
            Message::Append(mut request) => {
                let traces = std::mem::take(&mut request.traces);
                let request = match wire::append_in(request) {
                    Ok(request) => request,
                    Err(why) => return refuse(why),
                };
                let leader = request.vote;
                self.heard.arrived((leader.leader_id.term, leader.leader_id.node_id));
                let traced = self.storage.traced();
                let indexes = if traces.is_empty() { Vec::new() } else { traced.received(&traces) };
                let answer = self.raft.append_entries(request).await;
                traced.remove(&indexes);
                match answer {
                    Ok(higher @ AppendEntriesResponse::HigherVote(_)) => {
                        Message::AppendDone(wire::append_done_out(&higher))
                    }
                    Ok(response) => match self.acknowledge(&leader).await {
                        Ok(()) => {
                            self.heard.leader();
                            Message::AppendDone(wire::append_done_out(&response))
                        }
                        Err(vote) => {
                            Message::AppendDone(wire::append_done_out(&AppendEntriesResponse::HigherVote(vote)))
                        }
                    },
                    Err(error) => refuse(error.to_string()),
                }
            }
            Message::Vote(request) => match self.vote(from, request).await {
                Ok(response) => Message::VoteDone(response),
                Err(why) => refuse(why),
            },
            Message::Transfer(request) => self.take_over(request).await,
            Message::Snapshot(request) => {
                let wanted = request.last.map(|last| last.index);
                let theirs = match wire::vote_in(request.vote) {
                    Ok(vote) => vote,
                    Err(why) => return refuse(why),
                };
                let applied = self.status().applied;
                let done = |vote| Message::SnapshotDone(proto::SnapshotResponse { vote: Some(wire::vote_out(&vote)) });
                match self.raft.with_raft_state(|state| *state.vote_ref()).await {
                    // The vote in the response shows a former leader that it is one.
                    Ok(vote) if theirs < vote => done(vote),
                    // Only entries applied here are known to be the same on the leader.
                    Ok(vote) if applied >= wanted => match self.acknowledge(&theirs).await {
                        Ok(()) => done(vote),
                        Err(granted) => done(granted),
                    },
                    Ok(_) => refuse("the log must catch up first".into()),
                    Err(error) => refuse(error.to_string()),
                }
            }
            _ => refuse("message: must be a request".into()),
        }
    }

    /// Makes the promise that belongs to an acknowledgement of `leader`'s message.
    ///
    /// # Errors
    /// The vote that this replica has granted meanwhile, or that of a later leader whose message has arrived meanwhile, to be
    /// sent instead of the acknowledgement. openraft acknowledges an append when it is flushed, even if it has accepted another
    /// leader since: the former leader could commit the entry with that, and the later one, elected without it, does not have it.
    async fn acknowledge(&self, leader: &RaftVote) -> Result<(), RaftVote> {
        let leader = (leader.leader_id.term, leader.leader_id.node_id);
        if let Some((term, node)) = self.heard.later_than(leader) {
            return Err(RaftVote::new_committed(term, node));
        }
        self.promise.acknowledge(leader).await.map_err(|(term, node)| RaftVote::new(term, node))
    }

    /// Sends heartbeats to the other replicas. Does nothing on a follower, in a group of one, and after a leadership
    /// transfer: if the new leader does not take over, the other replicas must notice the missing heartbeats.
    pub async fn heartbeat(&self) {
        if self.heard.has_resigned(self.status().term) {
            return;
        }
        // `failure` reports a group that has stopped.
        let _ = self.raft.trigger().heartbeat().await;
    }

    /// On the leader, waits until every entry committed at the time of the call is applied, so that a read after it is
    /// linearizable. Returns that raft index.
    ///
    /// # Errors
    /// [`RaftGroupError::NotLeader`]; [`RaftGroupError::NoLeader`] without a majority within the election timeout.
    pub async fn read_index(&self) -> Result<Option<u64>, RaftGroupError> {
        self.prove().await.map(|at| Some(at.index))
    }

    /// Proves that this node led in `term` at some time since the call: what it knew of the log before the call was not
    /// outdated by another leader. Returns once every entry committed at the time of the call is applied.
    ///
    /// Costs one message to the group's task while the lease holds, otherwise a round of heartbeats.
    ///
    /// # Errors
    /// As [`RaftGroup::read_index`]; [`RaftGroupError::NotLeader`] when this node leads in another term.
    pub async fn confirm(&self, term: LeaderTerm) -> Result<(), RaftGroupError> {
        // openraft reports a log id of the term in which leadership was confirmed.
        let of = self.prove().await?.leader_id;
        match (of.term, of.node_id) == (term.term, term.leader) {
            true => Ok(()),
            false => Err(RaftGroupError::NotLeader { group: self.id, leader: self.status().leader }),
        }
    }

    /// Proves leadership by the lease or by a majority: see the module `lease`.
    async fn prove(&self) -> Result<RaftLogId, RaftGroupError> {
        let (age_max, before) = self.lease.age_max();
        let option = LinearizerOption::new(Some(age_max), true).with_wait_timeout(self.election_timeout);
        match tokio::time::timeout(2 * self.election_timeout, self.raft.ensure_linearizable(option)).await {
            Err(_) => Err(RaftGroupError::NoLeader {
                group: self.id,
                waited_ms: 2 * self.election_timeout.as_millis() as u64,
            }),
            Ok(Err(RaftError::Fatal(fatal))) => Err(self.fatal(fatal)),
            Ok(Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(forward)))) => {
                let leader = forward.leader_id.filter(|leader| *leader != self.node);
                Err(RaftGroupError::NotLeader { group: self.id, leader })
            }
            Ok(Err(RaftError::APIError(_))) => {
                Err(RaftGroupError::NoLeader { group: self.id, waited_ms: self.election_timeout.as_millis() as u64 })
            }
            Ok(Ok(read)) => {
                if age_max.is_zero() {
                    self.lease.renewed(before);
                }
                Ok(*read.log_id())
            }
        }
    }

    /// Waits until this node, which has won an election, has applied everything that was in its log when it won.
    ///
    /// # Errors
    /// When the group has failed, or another node leads after the wait.
    pub async fn settle(&self, term: LeaderTerm) -> Result<(), RaftGroupError> {
        self.read_index().await?;
        match self.roles().now() {
            Role::Leader(now) if now == term => Ok(()),
            _ => Err(RaftGroupError::NotLeader { group: self.id, leader: self.status().leader }),
        }
    }

    /// Adds a learner. Returns once the change is committed, which may be before the learner has caught up.
    ///
    /// # Errors
    /// When this node does not lead, or another change of membership is in progress.
    pub async fn add_learner(&self, id: u64, member: RaftMember) -> Result<(), RaftGroupError> {
        self.raft.add_learner(id, member, false).await.map(|_| ()).map_err(|e| self.change_error(e))
    }

    /// Makes exactly these replicas, which must be members already, the voters, by joint consensus. Removes all other
    /// replicas.
    ///
    /// # Errors
    /// As [`RaftGroup::add_learner`].
    pub async fn change_voters(&self, voters: BTreeSet<u64>) -> Result<(), RaftGroupError> {
        self.raft.change_membership(voters, false).await.map(|_| ()).map_err(|e| self.change_error(e))
    }

    /// As [`RaftGroup::change_voters`], but voters that lose their vote stay as learners.
    ///
    /// # Errors
    /// As [`RaftGroup::add_learner`].
    pub async fn change_voters_retain(&self, voters: BTreeSet<u64>) -> Result<(), RaftGroupError> {
        self.raft.change_membership(voters, true).await.map(|_| ()).map_err(|e| self.change_error(e))
    }

    /// Removes learners.
    ///
    /// # Errors
    /// As [`RaftGroup::add_learner`].
    pub async fn remove_learners(&self, ids: BTreeSet<u64>) -> Result<(), RaftGroupError> {
        let change = ChangeMembers::RemoveNodes(ids);
        self.raft.change_membership(change, false).await.map(|_| ()).map_err(|e| self.change_error(e))
    }

    fn change_error(&self, error: RaftError<TypeConfig, ClientWriteError<TypeConfig>>) -> RaftGroupError {
        match error {
            RaftError::Fatal(fatal) => self.fatal(fatal),
            RaftError::APIError(ClientWriteError::ForwardToLeader(forward)) => {
                RaftGroupError::NotLeader { group: self.id, leader: forward.leader_id }
            }
            RaftError::APIError(other) => RaftGroupError::Raft { group: self.id, reason: other.to_string() },
        }
    }

    /// Proposes an entry pinned to `leader`: it is appended in that term or not at all. `done` is called exactly once
    /// or, when the group stops, dropped; it must be cheap. Returns once the proposal is queued, so that the entries of
    /// consecutive calls are appended in the order of the calls.
    ///
    /// # Errors
    /// When the group has stopped; nothing was appended.
    pub async fn propose(
        &self,
        leader: LeaderTerm,
        proposal: Proposal,
        done: impl FnOnce(ProposeResult) + Send + 'static,
    ) -> Result<(), RaftGroupError> {
        let callback = Callback(Box::new(move |result: openraft::raft::ClientWriteResult<TypeConfig>| {
            done(match result {
                Ok(response) => Ok(response.data),
                Err(ClientWriteError::ForwardToLeader(ForwardToLeader { leader_id, .. })) => {
                    let why = match leader_id {
                        Some(id) => format!("node {id} leads"),
                        None => "no leader is known".into(),
                    };
                    Err(ProposeError::NotAccepted(leader_id, why))
                }
                Err(ClientWriteError::LogEntryDiscarded(_)) => {
                    Err(ProposeError::Unknown("the leader changed before the entry committed".into()))
                }
                Err(other) => Err(ProposeError::NotAccepted(None, other.to_string())),
            })
        }));
        let leader_id = super::type_config::CommittedLeaderId { term: leader.term, node_id: leader.leader };
        self.raft.write(proposal).with_leader(leader_id).responder(callback).await.map_err(|e| self.fatal(e))
    }

    /// Appends an entry without data and waits until it is committed.
    ///
    /// # Errors
    /// When the group has stopped or no longer leads.
    pub async fn blank(&self) -> Result<(), RaftGroupError> {
        match self.raft.write_blank().await {
            Ok(_) => Ok(()),
            Err(openraft::errors::RaftError::Fatal(fatal)) => Err(self.fatal(fatal)),
            Err(other) => Err(RaftGroupError::Raft { group: self.id, reason: other.to_string() }),
        }
    }

    /// Saves the machine's state as the log's checkpoint.
    ///
    /// # Errors
    /// When the group has stopped or the checkpoint cannot be written.
    pub async fn checkpoint(&self) -> Result<(), RaftGroupError> {
        // openraft drops a request for a checkpoint while another is in progress.
        let _one = self.checkpointing.lock().await;
        let applied = self.status().applied;
        if applied.is_none() || self.status().checkpoint >= applied {
            return Ok(());
        }
        self.raft.trigger().snapshot().await.map_err(|e| self.fatal(e))?;
        let wait = self.raft.wait(Some(OPENRAFT_TIMEOUT));
        wait.metrics(|m| m.snapshot.map(|id| id.index) >= applied, "checkpoint").await.map(|_| ()).map_err(|e| {
            match self.log.failure() {
                Some(error) => RaftGroupError::Log(error),
                None => RaftGroupError::Raft { group: self.id, reason: format!("checkpoint: {e}") },
            }
        })
    }

    /// Takes a checkpoint when the log has rolled since the last one, so that a start replays about one segment at
    /// most.
    ///
    /// # Errors
    /// As [`RaftGroup::checkpoint`].
    pub async fn checkpoint_if_rolled(&self) -> Result<(), RaftGroupError> {
        let active_base = self.log.segments().last().map(|segment| segment.base_index).unwrap_or(0);
        let covered = self.status().checkpoint.unwrap_or(0);
        if active_base > 0 && covered + 1 < active_base {
            self.checkpoint().await?;
        }
        Ok(())
    }

    /// Moves raft's low-water mark: entries up to `index` (inclusive) may be deleted once this returns. A checkpoint
    /// must cover them.
    ///
    /// # Errors
    /// When the group has stopped.
    pub async fn purge(&self, index: u64) -> Result<(), RaftGroupError> {
        self.raft.trigger().purge_log(index).await.map_err(|e| self.fatal(e))?;
        let wait = self.raft.wait(Some(OPENRAFT_TIMEOUT));
        wait.metrics(|m| m.purged.map(|id| id.index) >= Some(index), "purge")
            .await
            .map(|_| ())
            .map_err(|e| RaftGroupError::Raft { group: self.id, reason: format!("purge up to {index}: {e}") })
    }

    /// Returns why the group has stopped, if it has.
    pub fn failure(&self) -> Option<RaftGroupError> {
        if let Some(error) = self.log.failure() {
            return Some(RaftGroupError::Log(error));
        }
        let metrics = self.raft.metrics();
        let stopped = metrics.borrow_watched().running_state.clone().err()?;
        Some(self.fatal(stopped))
    }

    /// Returns the current state of the group.
    pub fn status(&self) -> RaftGroupStatus {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let membership = metrics.membership_config.membership();
        let matched = metrics.replication.iter().flatten().filter(|(id, _)| **id != self.node);
        RaftGroupStatus {
            term: metrics.current_term,
            leader: metrics.current_leader,
            is_leader: metrics.state == ServerState::Leader,
            last: metrics.last_log_index,
            applied: metrics.last_applied.map(|id| id.index),
            checkpoint: metrics.snapshot.map(|id| id.index),
            voters: membership.voter_ids().collect(),
            learners: membership.learner_ids().collect(),
            joint: membership.get_joint_config().len() > 1,
            membership_committed: metrics.membership_config.log_id() == metrics.committed_membership_config.log_id(),
            membership_index: metrics.membership_config.log_id().map(|id| id.index).unwrap_or(0),
            matched: matched.map(|(id, at)| (*id, at.as_ref().map(|at| at.index))).collect(),
            doubt: self.doubt(),
        }
    }

    /// Stops the group's tasks and waits for their end. Pending proposals get no response.
    pub async fn shutdown(&self) {
        if let Err(error) = self.raft.shutdown().await {
            tracing::warn!(group = %self.id, %error, "cannot stop raft group cleanly");
        }
    }

    /// Saves a checkpoint (unless the group failed), stops the group and closes its log, so that the next start has
    /// nothing to replay.
    pub async fn close(&self, failed: bool) {
        if !failed && let Err(error) = self.checkpoint().await {
            tracing::warn!(group = %self.id, %error, "cannot write checkpoint at close, the next start replays more");
        }
        self.shutdown().await;
        let log = self.log.clone();
        match crate::host::blocking(move || log.close()).await {
            Ok(Ok(())) => tracing::debug!(group = %self.id, "raft group closed"),
            Ok(Err(error)) => tracing::warn!(group = %self.id, %error, "cannot close log cleanly"),
            Err(error) => tracing::error!(group = %self.id, %error, "close of log panicked"),
        }
    }

    pub(super) fn fatal(&self, fatal: Fatal<TypeConfig>) -> RaftGroupError {
        match self.log.failure().or_else(|| self.storage.damage()) {
            Some(error) => RaftGroupError::Log(error),
            None => RaftGroupError::Raft { group: self.id, reason: fatal.to_string() },
        }
    }
}
