//! The controller group: a raft group that replicates the cluster's metadata (nodes, topics, placement, producer ids, rules, quotas).
//!
//! Every node has a replica, as a voter or a learner, so that every node has the committed metadata. Commands are JSON in data
//! entries of the group's log; they contain everything that is not deterministic (ids, times), so that applying them is
//! deterministic. A follower sends its commands to the leader, and waits until its own replica has applied them.
//!
//! `metadata/` decides and plans (pure); `maintenance.rs` is the loop that each node runs for the group; `repair.rs` opens its log.

mod error;
mod maintenance;
mod repair;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use chronicle_log::{EntryKind, Log, LogError, LogId};
use chronicle_proto::internal as proto;
use chronicle_proto::internal::group_request::Ask;
use chronicle_proto::internal::raft_frame::Message;
use futures::FutureExt;
use futures::future::BoxFuture;
use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

pub use error::ControllerError;

use crate::cluster::{CONTROLLER_LOG, Cluster, Reports, Watcher, check_whole, end_declaration, is_declared, send_log};
use crate::metadata::{ClusterObservation, CommandOutcome, ControllerCommand, ControllerState, Refusal};
use crate::model::{PartitionError, Topic};
use crate::peers::PullStream;
use crate::raft::{
    CommittedEntry, LeaderTerm, LeasePromise, Machine, Proposal, ProposeError, RaftGroup, RaftGroupConfig,
    RaftGroupError, RaftMember, Role,
};

/// Producer ids that one command reserves; ids that are unused at a restart are lost.
const PRODUCER_BLOCK: i64 = 1000;
/// How long a command waits for a leader.
const LEADER_PATIENCE: Duration = Duration::from_secs(10);
/// Pause before a command that found no leader is retried.
const PAUSE: Duration = Duration::from_millis(50);

type CurrentMetadata = Arc<RwLock<Arc<ControllerState>>>;

struct ControllerMachine {
    metadata: CurrentMetadata,
    applied: watch::Sender<u64>,
}

impl Machine for ControllerMachine {
    fn apply(&mut self, entry: &CommittedEntry<'_>) -> Result<Bytes, String> {
        let Some(data) = entry.data else { return Ok(Bytes::new()) };
        let outcome = match serde_json::from_slice(&data.payload) {
            Ok(command) => {
                // Copied only while a reader holds the current state: readers keep a consistent snapshot.
                Arc::make_mut(&mut *self.metadata.write()).apply(command)
            }
            // Every replica of this version rejects the same bytes in the same way; no replica may stop because of them.
            Err(error) => CommandOutcome::Refused(Refusal::UnknownCommand(error.to_string())),
        };
        Ok(serde_json::to_vec(&outcome).expect("an outcome has only plain values").into())
    }

    fn applied(&mut self, index: u64) {
        self.applied.send_replace(index + 1);
    }

    fn save(&self) -> Vec<u8> {
        serde_json::to_vec(&**self.metadata.read()).expect("the controller's state has string keys and plain values")
    }

    fn restore(&mut self, bytes: &[u8], applied_index: Option<u64>) -> Result<(), String> {
        let state: ControllerState = serde_json::from_slice(bytes).map_err(|e| format!("controller state: {e}"))?;
        *self.metadata.write() = Arc::new(state);
        self.applied.send_replace(applied_index.map(|index| index + 1).unwrap_or(0));
        Ok(())
    }
}

/// The controller group on this node.
pub struct Controller {
    cluster: Arc<Cluster>,
    group: Arc<RaftGroup<ControllerMachine>>,
    log: Arc<Log>,
    metadata: CurrentMetadata,
    /// Raft index after the last applied entry.
    applied: watch::Receiver<u64>,
    watcher: Watcher,
    warmed_up: std::sync::atomic::AtomicBool,
    stop: CancellationToken,
    task: Mutex<Option<JoinHandle<()>>>,
    /// Producer ids reserved and not handed out yet: next and end (exclusive).
    producer_ids: tokio::sync::Mutex<(i64, i64)>,
}

impl Controller {
    /// Opens the controller's log and starts its group, as a follower. `founders`: the initial members, on a node that
    /// bootstraps the cluster.
    ///
    /// # Errors
    /// When the log cannot be opened (damage included) or the group does not start.
    pub async fn start(
        cluster: Arc<Cluster>,
        founders: Option<BTreeMap<u64, RaftMember>>,
    ) -> Result<Arc<Self>, ControllerError> {
        let handle = cluster.consensus.clone();
        handle
            .spawn(Self::start_here(cluster, founders))
            .await
            .map_err(|e| ControllerError::Internal(format!("controller: {e}")))?
    }

    async fn start_here(
        cluster: Arc<Cluster>,
        founders: Option<BTreeMap<u64, RaftMember>>,
    ) -> Result<Arc<Self>, ControllerError> {
        let metadata = cluster.metadata.clone();
        let (group, log, applied) = match Self::start_group(&cluster, founders.clone()).await {
            // Starting reads entries that opening the log did not.
            Err(RaftGroupError::Log(error @ LogError::Damaged { .. })) if !cluster.peers.known_ids().is_empty() => {
                tracing::error!(%error, "controller log is damaged, repairing from another node");
                repair::cut(&cluster, PartitionError::from(error).damaged_index())
                    .await
                    .map_err(PartitionError::from)?;
                Self::start_group(&cluster, founders).await?
            }
            started => started?,
        };
        let controller = Arc::new(Self {
            cluster,
            group,
            log,
            metadata,
            applied,
            watcher: Watcher::new(false),
            warmed_up: Default::default(),
            stop: CancellationToken::new(),
            task: Mutex::new(None),
            producer_ids: tokio::sync::Mutex::new((0, 0)),
        });
        let maintenance = maintenance::run(controller.clone(), controller.stop.clone());
        *controller.task.lock() = Some(tokio::spawn(maintenance));
        Ok(controller)
    }

    /// Opens the log and starts the group. Closes the log when the group does not start.
    async fn start_group(
        cluster: &Arc<Cluster>,
        founders: Option<BTreeMap<u64, RaftMember>>,
    ) -> Result<(Arc<RaftGroup<ControllerMachine>>, Arc<Log>, watch::Receiver<u64>), RaftGroupError> {
        let log = repair::open_log(cluster).await?;
        let (applied_sender, applied) = watch::channel(0);
        let machine = ControllerMachine { metadata: cluster.metadata.clone(), applied: applied_sender };
        let start = RaftGroupConfig {
            store: cluster.store.clone(),
            log: log.clone(),
            id: CONTROLLER_LOG,
            node: cluster.node(),
            transport: cluster.peers.clone(),
            founders,
            election_timeout: cluster.election_timeout(),
            reads: cluster.config().cluster.linearizable_reads,
            promise: LeasePromise::new(cluster.started),
            suspension: crate::host::suspension,
            metrics: cluster.metrics.clone(),
        };
        match RaftGroup::start(start, machine).await {
            Ok(group) => Ok((Arc::new(group), log, applied)),
            Err(error) => {
                let _ = crate::host::blocking(move || log.close()).await;
                Err(error)
            }
        }
    }

    /// The committed metadata, as applied on this node, which may lag the leader.
    pub fn state(&self) -> Arc<ControllerState> {
        self.metadata.read().clone()
    }

    /// Why the controller group has stopped on this node, if it has.
    pub fn failure(&self) -> Option<ControllerError> {
        self.group.failure().map(ControllerError::from)
    }

    /// Raft id of the leader, and the term, as known to this node.
    pub fn leader(&self) -> (Option<u64>, u64) {
        let status = self.group.status();
        (status.leader, status.term)
    }

    /// Raft ids of the voters of the controller group.
    pub fn voters(&self) -> std::collections::BTreeSet<u64> {
        self.group.status().voters
    }

    /// Handles a raft message from a peer.
    pub(crate) async fn raft(&self, from: u64, message: Message) -> Message {
        self.group.handle(from, message).await
    }

    /// Sends the log to node `from`, whose own one was damaged. This node must lead the group, which is confirmed with a majority;
    /// without a leader its log must be known to be whole, or declared to be the source.
    ///
    /// # Errors
    /// When none of this holds.
    pub(crate) async fn pull(
        self: &Arc<Self>,
        from: u64,
        request: proto::PullRequest,
    ) -> Result<PullStream, tonic::Status> {
        if let Err(error) = self.read_index().await {
            let alone = match self.group.roles().now() {
                // It led before it restarted.
                Role::Follower { leader: Some(leader), .. } if leader == self.cluster.node() => true,
                Role::Follower { leader: Some(leader), .. } => !self.cluster.alive(leader) || self.group.leader_gone(),
                Role::Follower { leader: None, .. } => true,
                Role::Leader(_) => false,
            };
            let refused = |why: String| tonic::Status::unavailable(format!("{error}; {why}"));
            if !alone || !request.whole {
                return Err(refused("this node does not lead".into()));
            }
            if !is_declared(&self.cluster.store, CONTROLLER_LOG) {
                let last = self.last_position().await;
                let checked = check_whole(&self.cluster, CONTROLLER_LOG, &self.status(), last, from).await;
                checked.map_err(refused)?;
            }
            tracing::warn!(
                to = from,
                "no leader of the controller group is possible: sending this log, which is whole or declared to be the source"
            );
        }
        let held = Box::new(self.clone());
        send_log(self.cluster.clone(), &self.group, self.log.clone(), request, held).await
    }

    /// Position of the last entry of the log.
    pub(crate) async fn last_position(&self) -> Option<proto::LogPosition> {
        self.group.last_position().await
    }

    /// Status of the group.
    pub(crate) fn status(&self) -> crate::raft::RaftGroupStatus {
        self.group.status()
    }

    /// Confirms leadership with a majority; returns the raft index after the last committed entry.
    pub(crate) async fn read_index(&self) -> Result<u64, ControllerError> {
        self.group.read_index().await.map(|index| index.map(|i| i + 1).unwrap_or(0)).map_err(ControllerError::from)
    }

    /// One tick of the group: see [`Watcher`].
    fn tick(&self) {
        let status = self.group.status();
        if (status.is_leader || self.group.heard_leader()) && is_declared(&self.cluster.store, CONTROLLER_LOG) {
            end_declaration(&self.cluster.store, CONTROLLER_LOG);
        }
        if status.is_leader {
            let alone = status.voters.len() == 1 && status.learners.is_empty();
            self.watcher.led(&self.cluster, &self.group, alone);
            return;
        }
        let me = self.cluster.node();
        let ahead = |id: &&u64| **id < me && self.cluster.alive(**id);
        let rank = status.voters.iter().filter(ahead).count() as u32;
        if status.voters.contains(&me) {
            self.watcher.followed(&self.cluster, &self.group, status.leader, rank);
        }
    }

    /// Carries out a command on the leader, here or on another node, and waits until this node has applied it.
    ///
    /// # Errors
    /// [`ControllerError::Unavailable`] when there is no leader in time and nothing was proposed; [`ControllerError::OutcomeUnknown`].
    pub(crate) async fn command(&self, command: &ControllerCommand) -> Result<CommandOutcome, ControllerError> {
        let payload: Bytes = serde_json::to_vec(command).expect("a command has only plain values").into();
        let until = Instant::now() + LEADER_PATIENCE;
        loop {
            let error = match self.group.roles().now() {
                Role::Leader(term) => match self.propose(term, payload.clone()).await {
                    Ok(answer) => return decode(&answer),
                    Err(error) => error,
                },
                Role::Follower { leader: Some(leader), .. } if leader != self.cluster.node() => {
                    match self.forward(leader, payload.clone()).await {
                        Ok(answer) => return decode(&answer),
                        Err(error) => error,
                    }
                }
                Role::Follower { .. } => ControllerError::Unavailable("controller: no leader is known".into()),
            };
            if !matches!(error, ControllerError::Unavailable(_)) || Instant::now() >= until || self.stop.is_cancelled()
            {
                return Err(error);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Carries out a command of a peer, on the leader; returns the outcome, and the raft index after it.
    ///
    /// # Errors
    /// As [`Controller::command`]; never forwards.
    pub(crate) async fn serve(&self, payload: Bytes) -> Result<(Bytes, u64), ControllerError> {
        if let Err(error) = serde_json::from_slice::<ControllerCommand>(&payload) {
            return Err(ControllerError::UnknownCommand(error.to_string()));
        }
        match self.group.roles().now() {
            Role::Leader(term) => {
                let answer = self.propose(term, payload).await?;
                Ok((answer, *self.applied.borrow()))
            }
            Role::Follower { .. } => {
                Err(ControllerError::Unavailable("controller: this node is not the leader".into()))
            }
        }
    }

    async fn forward(&self, leader: u64, payload: Bytes) -> Result<Bytes, ControllerError> {
        let unavailable = |why: String| ControllerError::Unavailable(why);
        let mut client = self.cluster.peers.client(leader).map_err(|e| unavailable(e.to_string()))?;
        let request = self.cluster.peers.request(leader, proto::CommandRequest { command: payload });
        let answer = tokio::time::timeout(LEADER_PATIENCE, client.command(request));
        match answer.await {
            Ok(Ok(answer)) => {
                let answer = answer.into_inner();
                // Committed; only this node has not applied it yet.
                self.applied_to(answer.applied).await.map_err(ControllerError::unknown)?;
                Ok(answer.outcome)
            }
            // This status is the peer's own "not accepted"; with any other error the outcome is unknown.
            Ok(Err(status)) if status.code() == tonic::Code::FailedPrecondition => {
                Err(unavailable(status.message().to_owned()))
            }
            Ok(Err(status)) => Err(ControllerError::unknown(unavailable(status.message().to_owned()))),
            Err(_) => Err(ControllerError::unknown(unavailable("controller: no response from the leader".into()))),
        }
    }

    /// Waits until this node has applied all entries below a raft index.
    async fn applied_to(&self, index: u64) -> Result<(), ControllerError> {
        let mut applied = self.applied.clone();
        let reached = tokio::time::timeout(LEADER_PATIENCE, applied.wait_for(|applied| *applied >= index)).await;
        match reached {
            Ok(Ok(_)) => Ok(()),
            _ => Err(ControllerError::Unavailable("controller: this node lags behind the leader".into())),
        }
    }

    /// Waits until this node has applied everything that was committed when this was called.
    ///
    /// # Errors
    /// [`ControllerError::Unavailable`] when the leader is unreachable.
    pub async fn sync(&self) -> Result<(), ControllerError> {
        match self.group.roles().now() {
            Role::Leader(_) => self.read_index().await.map(drop),
            Role::Follower { leader: Some(leader), .. } => {
                let answer = self.cluster.ask(CONTROLLER_LOG, leader, Ask::ReadIndex(true)).await;
                let answer = answer.map_err(ControllerError::Unavailable)?;
                self.applied_to(answer.read_index).await
            }
            Role::Follower { leader: None, .. } => {
                Err(ControllerError::Unavailable("controller: no leader is known".into()))
            }
        }
    }

    async fn propose(&self, term: LeaderTerm, payload: Bytes) -> Result<Bytes, ControllerError> {
        let kind = EntryKind::Data;
        let proposal = Proposal { kind, record_count: 1, max_timestamp: 0, payload, trace: None, reservation: None };
        let (tx, rx) = tokio::sync::oneshot::channel();
        let done = move |result| {
            let _ = tx.send(result);
        };
        self.group.propose(term, proposal, done).await.map_err(ControllerError::from)?;
        let stopped = || {
            let cause = self
                .failure()
                .unwrap_or_else(|| ControllerError::Unavailable("controller: the leader has changed".into()));
            ControllerError::unknown(cause)
        };
        match tokio::time::timeout(LEADER_PATIENCE, rx).await {
            Ok(Ok(Ok(bytes))) => Ok(bytes),
            Ok(Ok(Err(ProposeError::NotAccepted(_, why)))) => Err(ControllerError::Unavailable(why)),
            Ok(Ok(Err(ProposeError::Unknown(_)))) | Ok(Err(_)) | Err(_) => Err(stopped()),
        }
    }

    /// Carries out an idempotent command; repeats it while its outcome is unknown.
    pub(crate) async fn command_again(&self, command: &ControllerCommand) -> Result<CommandOutcome, ControllerError> {
        let until = Instant::now() + LEADER_PATIENCE;
        loop {
            match self.command(command).await {
                // A leader whose process has stopped fails immediately and repeatedly, until another node leads.
                Err(ControllerError::OutcomeUnknown(_)) if Instant::now() < until => {
                    tokio::time::sleep(PAUSE).await;
                }
                done => return done,
            }
        }
    }

    /// Carries out a command whose outcome is a topic, or nothing.
    pub(crate) async fn decide(&self, command: &ControllerCommand) -> Result<Option<Topic>, ControllerError> {
        match self.command(command).await? {
            CommandOutcome::Done(topic) => Ok(topic),
            other => Err(unexpected(other)),
        }
    }

    /// Returns whether this leader is warmed up: it has led long enough to know which nodes are alive.
    pub(crate) fn warmed_up(&self) -> bool {
        self.state().nodes.len() <= 1 || self.warmed_up.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// The nodes of [`Controller::alive`], and those with a heartbeat within this time.
    pub(crate) fn alive_within(&self, within: Duration) -> BTreeSet<u64> {
        let liveness = self.cluster.peers.liveness();
        let lately = |id: &u64| self.cluster.alive(*id) || liveness.dead_for_ms(*id) < within.as_millis() as u64;
        self.state().nodes.keys().copied().filter(lately).collect()
    }

    /// This node's observation of the cluster, for plans.
    pub(crate) fn observed(&self) -> ClusterObservation {
        let state = self.state();
        let liveness = self.cluster.peers.liveness();
        let alive = self.alive();
        let dead = state.nodes.keys().filter(|id| !alive.contains(id));
        ClusterObservation {
            dead_for_ms: dead.map(|id| (*id, liveness.dead_for_ms(*id))).collect(),
            alive,
            controller_voters: self.voters(),
        }
    }

    /// Creates a topic.
    ///
    /// # Errors
    /// [`Refusal::TopicExists`]; failures of the group.
    pub async fn create_topic(&self, topic: Topic, topics_max: usize) -> Result<Topic, ControllerError> {
        let default_replication = self.cluster.config().cluster.replication_factor;
        let created = self.decide(&ControllerCommand::CreateTopic { topic, topics_max, default_replication }).await?;
        created.ok_or_else(|| ControllerError::Internal("controller: the outcome has no topic".into()))
    }

    /// Replaces the settings and the partition count of a topic. `topic`: the topic as the caller read it, with its changes.
    ///
    /// # Errors
    /// [`Refusal::UnknownTopic`]; [`Refusal::PartitionsShrink`] when partitions would shrink; failures of the group.
    pub async fn alter_topic(&self, topic: Topic) -> Result<Topic, ControllerError> {
        let altered = self.decide(&ControllerCommand::AlterTopic { topic }).await?;
        altered.ok_or_else(|| ControllerError::Internal("controller: the outcome has no topic".into()))
    }

    /// Deletes a topic; each node then deletes its files and calls [`Reports::topic_files_deleted`].
    ///
    /// # Errors
    /// [`Refusal::UnknownTopic`]; failures of the group.
    pub async fn delete_topic(&self, name: &str) -> Result<Topic, ControllerError> {
        let deleted = self.decide(&ControllerCommand::DeleteTopic { name: name.into() }).await?;
        deleted.ok_or_else(|| ControllerError::Internal("controller: the outcome has no topic".into()))
    }

    /// Returns a producer id that was never used.
    ///
    /// # Errors
    /// Failures of the group.
    pub async fn producer_id(&self) -> Result<i64, ControllerError> {
        let mut ids = self.producer_ids.lock().await;
        if ids.0 == ids.1 {
            // Ids of a reservation without a response are never used.
            match self.command_again(&ControllerCommand::ReserveProducerIds { count: PRODUCER_BLOCK }).await? {
                CommandOutcome::ProducerIds { first, count } => *ids = (first, first + count),
                other => return Err(unexpected(other)),
            }
        }
        let id = ids.0;
        ids.0 += 1;
        Ok(id)
    }

    /// Transfers leadership of the controller group to another voter.
    ///
    /// # Errors
    /// When this node does not lead, or the other node does not become the leader in time.
    pub async fn hand_over(&self, to: u64) -> Result<(), ControllerError> {
        self.group.transfer(to).await.map_err(ControllerError::from)
    }

    /// Saves a checkpoint once the log has rolled since the last one.
    pub async fn maintain(&self) {
        if let Err(error) = self.group.checkpoint_if_rolled().await {
            tracing::warn!(%error, "cannot save controller checkpoint");
        }
    }

    /// Saves a checkpoint, stops the group and closes its log.
    pub async fn close(&self) {
        self.stop.cancel();
        let task = self.task.lock().take();
        if let Some(task) = task
            && let Err(error) = task.await
        {
            tracing::error!(%error, "controller maintenance panicked");
        }
        let failure = self.failure();
        let others = self.voters().iter().any(|node| *node != self.cluster.node());
        self.group.close(failure.is_some()).await;
        // Opening a log does not read sealed segments: damage that a read has found must be cut out here, for the next start to repair.
        if let Some(ControllerError::Failed(error)) = failure
            && let Some(index) = error.damaged_index().filter(|_| others)
            && let Err(error) = repair::cut(&self.cluster, Some(index)).await
        {
            tracing::error!(%error, "cannot cut the damage out of the controller log");
        }
    }
}

impl Reports for Controller {
    fn voters(&self, id: LogId, voters: Vec<u64>, index: u64) -> BoxFuture<'_, Result<(), String>> {
        async move {
            let command = ControllerCommand::Settle { topic: id.topic, partition: id.partition, voters, index };
            match self.command_again(&command).await.map_err(|e| e.to_string())? {
                CommandOutcome::Refused(refusal) => Err(refusal.to_string()),
                _ => Ok(()),
            }
        }
        .boxed()
    }

    fn current(&self) -> BoxFuture<'_, Result<(), String>> {
        async move { self.sync().await.map_err(|e| e.to_string()) }.boxed()
    }

    fn topic_files_deleted(&self, topic: Uuid) -> BoxFuture<'_, Result<(), String>> {
        async move {
            let command = ControllerCommand::ForgetTopic { id: topic, node: self.cluster.node() };
            self.command_again(&command).await.map(drop).map_err(|e| e.to_string())
        }
        .boxed()
    }
}

fn decode(answer: &Bytes) -> Result<CommandOutcome, ControllerError> {
    serde_json::from_slice(answer)
        .map_err(|e| ControllerError::Internal(format!("controller: cannot decode the outcome: {e}")))
}

pub(crate) fn unexpected(outcome: CommandOutcome) -> ControllerError {
    match outcome {
        CommandOutcome::Refused(refusal) => ControllerError::Refused(refusal),
        _ => ControllerError::Internal("controller: unexpected outcome".into()),
    }
}
