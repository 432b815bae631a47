//! The controller group: nodes, topics, placement, producer ids, rules and quotas, agreed through raft.
//!
//! Every node has a replica, with or without a vote, so that every node knows what is agreed. Commands are JSON in data
//! entries of the group's log; they carry everything that is decided outside (ids, times), so that applying them is
//! deterministic. A node that does not lead sends its commands to the one that does, and waits until its own replica has
//! applied them.
//!
//! `state` decides, `placement` and `balancer` plan (pure), `steward` is what the leader does from time to time.

mod access;
mod balancer;
#[cfg(test)]
mod fixtures;
mod nodes;
mod operations;
mod placement;
mod refusal;
mod state;
mod steward;
mod types;
mod voters;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use chronicle_log::{LogConfig, LogId};
use chronicle_proto::internal as proto;
use chronicle_proto::internal::group_request::Ask;
use chronicle_proto::internal::raft_frame::Message;
use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

pub use access::{Access, QUOTAS_MAX, RULES_BYTES_MAX, RULES_MAX};
pub use balancer::{BalancerConfig, Observed};
pub use operations::{remaining, waiting_for};
pub use placement::{designated_leader, leader_candidates};
pub use refusal::Refusal;
pub use state::{Command, ControllerState, DeletedTopic, Outcome};
pub use types::{NodeInfo, NodeState, Operation, OperationKind, OperationState, Placement};

use crate::broker::{BrokerError, Reason, Topic};
use crate::partition::{Environment, Watcher, ask_group, group_error, log_error};
use crate::raft::{Committed, Group, LeaderTerm, Machine, Member, Proposal, ProposeError, Role, Start};

/// The controller group's log.
pub const CONTROLLER_LOG: LogId = LogId { topic: Uuid::nil(), partition: 0 };

/// Producer ids that one command reserves; what is left at a restart is never used.
const PRODUCER_BLOCK: i64 = 1000;
/// How long a command waits for somebody to lead.
const LEADER_PATIENCE: Duration = Duration::from_secs(10);
/// Pause before a command that found no leader looks again.
const PAUSE: Duration = Duration::from_millis(50);

type Shared = Arc<RwLock<Arc<ControllerState>>>;

struct ControllerMachine {
    shared: Shared,
    applied: watch::Sender<u64>,
}

impl Machine for ControllerMachine {
    fn apply(&mut self, entry: &Committed<'_>) -> Result<Bytes, String> {
        let Some(data) = entry.data else { return Ok(Bytes::new()) };
        let outcome = match serde_json::from_slice(&data.payload) {
            Ok(command) => {
                // Copied only when somebody looks at it just now: they keep what they see.
                Arc::make_mut(&mut *self.shared.write()).apply(command)
            }
            // Every replica of this version sees the same bytes and refuses alike; none may stop for it.
            Err(error) => Outcome::Refused(Refusal::UnknownCommand(error.to_string())),
        };
        Ok(serde_json::to_vec(&outcome).expect("an outcome has only plain values").into())
    }

    fn applied(&mut self, index: u64) {
        self.applied.send_replace(index + 1);
    }

    fn save(&self) -> Vec<u8> {
        serde_json::to_vec(&**self.shared.read()).expect("the controller's state has string keys and plain values")
    }

    fn restore(&mut self, bytes: &[u8], applied_index: Option<u64>) -> Result<(), String> {
        let state: ControllerState = serde_json::from_slice(bytes).map_err(|e| format!("controller state: {e}"))?;
        *self.shared.write() = Arc::new(state);
        self.applied.send_replace(applied_index.map(|index| index + 1).unwrap_or(0));
        Ok(())
    }
}

/// The controller group on this node.
pub struct Controller {
    env: Arc<Environment>,
    group: Arc<Group<ControllerMachine>>,
    shared: Shared,
    /// Raft index after the last applied entry.
    applied: watch::Receiver<u64>,
    watcher: Watcher,
    calm: std::sync::atomic::AtomicBool,
    stop: CancellationToken,
    task: Mutex<Option<JoinHandle<()>>>,
    /// Producer ids reserved and not handed out yet: next and end (exclusive).
    producer_ids: tokio::sync::Mutex<(i64, i64)>,
}

impl Controller {
    /// Opens the controller's log and starts its group, as a follower. `founders`: the first members, on a node that founds.
    ///
    /// # Errors
    /// When the log cannot be opened (damage included) or the group does not start.
    pub async fn start(
        env: Arc<Environment>,
        founders: Option<BTreeMap<u64, Member>>,
    ) -> Result<Arc<Self>, BrokerError> {
        let handle = env.consensus.clone();
        handle
            .spawn(Self::start_here(env, founders))
            .await
            .map_err(|e| BrokerError::new(Reason::Internal, format!("controller: {e}")))?
    }

    async fn start_here(
        env: Arc<Environment>,
        founders: Option<BTreeMap<u64, Member>>,
    ) -> Result<Arc<Self>, BrokerError> {
        let store = env.store.clone();
        let log = crate::host::blocking(move || store.open_log(CONTROLLER_LOG, LogConfig::default()))
            .await
            .map_err(|e| BrokerError::new(Reason::Internal, format!("controller: {e}")))?
            .map_err(|e| log_error(&e))?;
        let shared = env.agreed.clone();
        let (applied_sender, applied) = watch::channel(0);
        let machine = ControllerMachine { shared: shared.clone(), applied: applied_sender };
        let start = Start {
            store: env.store.clone(),
            log,
            id: CONTROLLER_LOG,
            node: env.node(),
            transport: env.peers.clone(),
            founders,
            election_timeout: env.election_timeout(),
            metrics: env.metrics.clone(),
        };
        let group = Arc::new(Group::start(start, machine).await.map_err(|e| group_error(&e))?);
        let controller = Arc::new(Self {
            env,
            group,
            shared,
            applied,
            watcher: Watcher::new(false),
            calm: Default::default(),
            stop: CancellationToken::new(),
            task: Mutex::new(None),
            producer_ids: tokio::sync::Mutex::new((0, 0)),
        });
        let steward = steward::run(controller.clone(), controller.stop.clone());
        *controller.task.lock() = Some(tokio::spawn(steward));
        Ok(controller)
    }

    /// What is agreed now, as far as this node knows.
    pub fn state(&self) -> Arc<ControllerState> {
        self.shared.read().clone()
    }

    /// Why the controller group cannot go on here, if it cannot.
    pub fn failure(&self) -> Option<BrokerError> {
        self.group.failure().map(|e| group_error(&e))
    }

    /// Raft id of the leader, and the term, as this node knows.
    pub fn leader(&self) -> (Option<u64>, u64) {
        let status = self.group.status();
        (status.leader, status.term)
    }

    /// Raft ids that vote in the controller group.
    pub fn voters(&self) -> std::collections::BTreeSet<u64> {
        self.group.status().voters
    }

    /// The raft group, for messages of peers.
    pub(crate) async fn raft(&self, from: u64, message: Message) -> Message {
        self.group.handle(from, message).await
    }

    /// Status for peers.
    pub(crate) fn status(&self) -> crate::raft::GroupStatus {
        self.group.status()
    }

    /// The log, to compare replicas.
    pub(crate) async fn read_index(&self) -> Result<u64, BrokerError> {
        self.group.read_index().await.map(|index| index.map(|i| i + 1).unwrap_or(0)).map_err(|e| group_error(&e))
    }

    /// One look at the group: see [`Watcher`].
    fn look_after(&self) {
        let status = self.group.status();
        if status.is_leader {
            let alone = status.voters.len() == 1 && status.learners.is_empty();
            self.watcher.led(&self.env, &self.group, alone);
            return;
        }
        let me = self.env.node();
        let ahead = |id: &&u64| **id < me && self.env.alive(**id);
        let rank = status.voters.iter().filter(ahead).count() as u32;
        if status.voters.contains(&me) {
            self.watcher.followed(&self.env, &self.group, status.leader, rank);
        }
    }

    /// Carries out a command, wherever the leader is, and waits until it is applied here.
    ///
    /// # Errors
    /// [`Reason::Unavailable`] when nobody leads in time and nothing was proposed; [`Reason::OutcomeUnknown`].
    pub(crate) async fn command(&self, command: &Command) -> Result<Outcome, BrokerError> {
        let payload: Bytes = serde_json::to_vec(command).expect("a command has only plain values").into();
        let until = Instant::now() + LEADER_PATIENCE;
        loop {
            let error = match self.group.roles().now() {
                Role::Leader(term) => match self.propose(term, payload.clone()).await {
                    Ok(answer) => return decode(&answer),
                    Err(error) => error,
                },
                Role::Follower { leader: Some(leader), .. } if leader != self.env.node() => {
                    match self.forward(leader, payload.clone()).await {
                        Ok(answer) => return decode(&answer),
                        Err(error) => error,
                    }
                }
                Role::Follower { .. } => {
                    BrokerError::new(Reason::Unavailable, "the controller group has no leader that is known")
                }
            };
            if error.reason != Reason::Unavailable || Instant::now() >= until || self.stop.is_cancelled() {
                return Err(error);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// A command of a peer, on the leader: the outcome, and the raft index after it.
    ///
    /// # Errors
    /// As [`Controller::command`]; never forwards.
    pub(crate) async fn serve(&self, payload: Bytes) -> Result<(Bytes, u64), BrokerError> {
        if let Err(error) = serde_json::from_slice::<Command>(&payload) {
            return Err(BrokerError::new(
                Reason::InvalidRequest,
                format!("command: this version does not know it: {error}"),
            ));
        }
        match self.group.roles().now() {
            Role::Leader(term) => {
                let answer = self.propose(term, payload).await?;
                Ok((answer, *self.applied.borrow()))
            }
            Role::Follower { .. } => {
                Err(BrokerError::new(Reason::Unavailable, "this node does not lead the controller group"))
            }
        }
    }

    async fn forward(&self, leader: u64, payload: Bytes) -> Result<Bytes, BrokerError> {
        let unavailable = |why: String| BrokerError::new(Reason::Unavailable, why);
        let mut client = self.env.peers.client(leader).map_err(|e| unavailable(e.to_string()))?;
        let request = self.env.peers.request(leader, proto::CommandRequest { command: payload });
        let answer = tokio::time::timeout(LEADER_PATIENCE, client.command(request));
        match answer.await {
            Ok(Ok(answer)) => {
                let answer = answer.into_inner();
                // Done; only this node does not know it yet.
                self.applied_to(answer.applied).await.map_err(|error| BrokerError::unknown(&error))?;
                Ok(answer.outcome)
            }
            // What the peer itself says was not accepted; a broken connection leaves it open.
            Ok(Err(status)) if status.code() == tonic::Code::FailedPrecondition => {
                Err(unavailable(status.message().to_owned()))
            }
            Ok(Err(status)) => Err(BrokerError::unknown(&unavailable(status.message().to_owned()))),
            Err(_) => Err(BrokerError::unknown(&unavailable("the controller leader does not answer".into()))),
        }
    }

    /// Waits until this node has applied everything below a raft index.
    async fn applied_to(&self, index: u64) -> Result<(), BrokerError> {
        let mut applied = self.applied.clone();
        let reached = tokio::time::timeout(LEADER_PATIENCE, applied.wait_for(|applied| *applied >= index)).await;
        match reached {
            Ok(Ok(_)) => Ok(()),
            _ => Err(BrokerError::new(Reason::Unavailable, "this node lags behind the controller group")),
        }
    }

    /// Waits until this node knows everything that was agreed when this was called.
    ///
    /// # Errors
    /// [`Reason::Unavailable`] when the leader cannot be asked.
    pub async fn sync(&self) -> Result<(), BrokerError> {
        match self.group.roles().now() {
            Role::Leader(_) => self.read_index().await.map(drop),
            Role::Follower { leader: Some(leader), .. } => {
                let answer = ask_group(&self.env, CONTROLLER_LOG, leader, Ask::ReadIndex(true)).await;
                let answer = answer.map_err(|e| BrokerError::new(Reason::Unavailable, e))?;
                self.applied_to(answer.read_index).await
            }
            Role::Follower { leader: None, .. } => {
                Err(BrokerError::new(Reason::Unavailable, "the controller group has no leader that is known"))
            }
        }
    }

    async fn propose(&self, term: LeaderTerm, payload: Bytes) -> Result<Bytes, BrokerError> {
        let proposal = Proposal { record_count: 1, max_timestamp: 0, payload, trace: None };
        let (tx, rx) = tokio::sync::oneshot::channel();
        let done = move |result| {
            let _ = tx.send(result);
        };
        self.group.propose(term, proposal, done).await.map_err(|e| group_error(&e))?;
        let stopped = || {
            let cause = self
                .failure()
                .unwrap_or_else(|| BrokerError::new(Reason::Unavailable, "the controller leader changed"));
            BrokerError::unknown(&cause)
        };
        match tokio::time::timeout(LEADER_PATIENCE, rx).await {
            Ok(Ok(Ok(bytes))) => Ok(bytes),
            Ok(Ok(Err(ProposeError::NotAccepted(_, why)))) => Err(BrokerError::new(Reason::Unavailable, why)),
            Ok(Ok(Err(ProposeError::Unknown(_)))) | Ok(Err(_)) | Err(_) => Err(stopped()),
        }
    }

    /// Carries out a command whose repetition does no harm, again while its outcome is open.
    pub(crate) async fn command_again(&self, command: &Command) -> Result<Outcome, BrokerError> {
        let until = Instant::now() + LEADER_PATIENCE;
        loop {
            match self.command(command).await {
                // A leader whose process is gone refuses at once, again and again, until somebody else leads.
                Err(error) if error.reason == Reason::OutcomeUnknown && Instant::now() < until => {
                    tokio::time::sleep(PAUSE).await;
                }
                done => return done,
            }
        }
    }

    pub(crate) async fn decide(&self, command: &Command) -> Result<Option<Topic>, BrokerError> {
        match self.command(command).await? {
            Outcome::Done(topic) => Ok(topic),
            other => Err(unexpected(other)),
        }
    }

    /// Leads for long enough to know who is alive.
    pub(crate) fn calm(&self) -> bool {
        self.state().nodes.len() <= 1 || self.calm.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// As [`Controller::alive`], and who was heard within this time.
    pub(crate) fn heard_lately(&self, within: Duration) -> BTreeSet<u64> {
        let liveness = self.env.peers.liveness();
        let lately = |id: &u64| self.env.alive(*id) || liveness.dead_for_ms(*id) < within.as_millis() as u64;
        self.state().nodes.keys().copied().filter(lately).collect()
    }

    /// What this node sees of the others, for plans.
    pub(crate) fn observed(&self) -> Observed {
        let state = self.state();
        let liveness = self.env.peers.liveness();
        let alive = self.alive();
        let dead = state.nodes.keys().filter(|id| !alive.contains(id));
        Observed {
            dead_for_ms: dead.map(|id| (*id, liveness.dead_for_ms(*id))).collect(),
            alive,
            controller_voters: self.voters(),
        }
    }

    /// Creates a topic.
    ///
    /// # Errors
    /// [`Reason::TopicExists`]; failures of the group.
    pub async fn create_topic(&self, topic: Topic, topics_max: usize) -> Result<Topic, BrokerError> {
        let default_replication = self.env.config().cluster.replication_factor;
        let created = self.decide(&Command::CreateTopic { topic, topics_max, default_replication }).await?;
        created.ok_or_else(|| BrokerError::new(Reason::Internal, "controller: no topic in the answer"))
    }

    /// Replaces the settings and the partition count of a topic; `topic` is what the caller saw, changed.
    ///
    /// # Errors
    /// [`Reason::UnknownTopic`]; [`Reason::InvalidRequest`] when partitions would shrink; failures of the group.
    pub async fn alter_topic(&self, topic: Topic) -> Result<Topic, BrokerError> {
        let altered = self.decide(&Command::AlterTopic { topic }).await?;
        altered.ok_or_else(|| BrokerError::new(Reason::Internal, "controller: no topic in the answer"))
    }

    /// Takes a topic away; each node then deletes its data and calls [`Controller::forget`].
    ///
    /// # Errors
    /// [`Reason::UnknownTopic`]; failures of the group.
    pub async fn delete_topic(&self, name: &str) -> Result<Topic, BrokerError> {
        let deleted = self.decide(&Command::DeleteTopic { name: name.into() }).await?;
        deleted.ok_or_else(|| BrokerError::new(Reason::Internal, "controller: no topic in the answer"))
    }

    /// Notes that the files of a deleted topic are gone from this node.
    ///
    /// # Errors
    /// Failures of the group.
    pub async fn forget(&self, id: Uuid) -> Result<(), BrokerError> {
        let node = self.env.node();
        self.command_again(&Command::ForgetTopic { id, node }).await.map(|_| ())
    }

    /// Notes who votes in a partition's group, since the membership entry at this raft index.
    ///
    /// # Errors
    /// Failures of the group.
    pub async fn settle(&self, id: LogId, voters: Vec<u64>, index: u64) -> Result<(), BrokerError> {
        let command = Command::Settle { topic: id.topic, partition: id.partition, voters, index };
        match self.command_again(&command).await? {
            Outcome::Refused(refusal) => Err(refused(refusal)),
            _ => Ok(()),
        }
    }

    /// A producer id that nobody has had.
    ///
    /// # Errors
    /// Failures of the group.
    pub async fn producer_id(&self) -> Result<i64, BrokerError> {
        let mut ids = self.producer_ids.lock().await;
        if ids.0 == ids.1 {
            // Ids whose reservation was not heard of are never used.
            match self.command_again(&Command::ReserveProducerIds { count: PRODUCER_BLOCK }).await? {
                Outcome::ProducerIds { first, count } => *ids = (first, first + count),
                other => return Err(unexpected(other)),
            }
        }
        let id = ids.0;
        ids.0 += 1;
        Ok(id)
    }

    /// Hands leadership of the controller group to another voter.
    ///
    /// # Errors
    /// When this node does not lead, or the other one does not take over in time.
    pub async fn hand_over(&self, to: u64) -> Result<(), BrokerError> {
        self.group.transfer(to).await.map_err(|e| group_error(&e))
    }

    /// Saves a checkpoint once the log has rolled since the last one.
    pub async fn maintain(&self) {
        if let Err(error) = self.group.checkpoint_if_rolled().await {
            tracing::warn!(%error, "controller checkpoint failed");
        }
    }

    /// Saves a checkpoint, stops the group and closes its log.
    pub async fn close(&self) {
        self.stop.cancel();
        let task = self.task.lock().take();
        if let Some(task) = task
            && let Err(error) = task.await
        {
            tracing::error!(%error, "the controller's steward panicked");
        }
        self.group.close(self.failure().is_some()).await;
    }
}

fn decode(answer: &Bytes) -> Result<Outcome, BrokerError> {
    serde_json::from_slice(answer).map_err(|e| BrokerError::new(Reason::Internal, format!("controller answer: {e}")))
}

pub(crate) fn unexpected(outcome: Outcome) -> BrokerError {
    match outcome {
        Outcome::Refused(refusal) => refused(refusal),
        _ => BrokerError::new(Reason::Internal, "controller: unexpected answer"),
    }
}

/// The answer for a name that no topic has.
pub(crate) fn unknown_topic(name: &str) -> BrokerError {
    BrokerError::new(Reason::UnknownTopic, format!("topic {name:?}: no such topic"))
}

/// What a refusal of the controller means to a client.
pub(crate) fn refused(refusal: Refusal) -> BrokerError {
    let message = refusal.to_string();
    match refusal {
        Refusal::TopicExists(_) => BrokerError::new(Reason::TopicExists, message),
        Refusal::UnknownTopic(_) => BrokerError::new(Reason::UnknownTopic, message),
        Refusal::TooManyTopics(_) => BrokerError::new(Reason::Overloaded, message),
        Refusal::TooManyRules { .. } | Refusal::RulesTooLarge { .. } | Refusal::TooManyQuotas(_) => {
            BrokerError::new(Reason::Overloaded, message)
        }
        _ => BrokerError::new(Reason::InvalidRequest, message),
    }
}
