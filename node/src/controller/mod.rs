//! The controller group: topics and producer ids, agreed through raft.
//!
//! Commands are JSON in data entries of the group's log; they carry everything that is decided outside (ids, times), so
//! that applying them is deterministic. `state` decides; this module proposes and hands out what was applied.

mod balancer;
#[cfg(test)]
mod fixtures;
mod nodes;
mod operations;
mod placement;
mod refusal;
mod state;
mod types;
mod voters;

use std::sync::Arc;

use bytes::Bytes;
use chronicle_log::{LogConfig, LogId};
use parking_lot::RwLock;
use uuid::Uuid;

pub use balancer::{BalancerConfig, Observed, plan};
pub use nodes::NODES_MAX;
pub use operations::{remaining, waiting_for};
pub use placement::{designated_leader, leader_candidates};
pub use refusal::Refusal;
pub use state::{Command, ControllerState, DeletedTopic, Outcome};
pub use types::{NodeInfo, NodeState, Operation, OperationKind, OperationState, Placement};
pub use voters::controller_voters;

use crate::broker::{BrokerError, Reason, Topic};
use crate::partition::{Environment, group_error, log_error};
use crate::raft::{Committed, Group, LeaderTerm, Machine, Proposal, ProposeError};

/// The controller group's log.
pub const CONTROLLER_LOG: LogId = LogId { topic: Uuid::nil(), partition: 0 };

/// Producer ids that one command reserves; what is left at a restart is never used.
const PRODUCER_BLOCK: i64 = 1000;

type Shared = Arc<RwLock<Arc<ControllerState>>>;

struct ControllerMachine {
    shared: Shared,
}

impl Machine for ControllerMachine {
    fn apply(&mut self, entry: &Committed<'_>) -> Result<Bytes, String> {
        let Some(data) = entry.data else { return Ok(Bytes::new()) };
        let command: Command = serde_json::from_slice(&data.payload).map_err(|e| format!("controller command: {e}"))?;
        let mut state = ControllerState::clone(&self.shared.read());
        let outcome = state.apply(command);
        *self.shared.write() = Arc::new(state);
        Ok(serde_json::to_vec(&outcome).expect("an outcome has only plain values").into())
    }

    fn applied(&mut self, _index: u64) {}

    fn save(&self) -> Vec<u8> {
        serde_json::to_vec(&**self.shared.read()).expect("the controller's state has string keys and plain values")
    }

    fn restore(&mut self, bytes: &[u8], _applied_index: Option<u64>) -> Result<(), String> {
        let state: ControllerState = serde_json::from_slice(bytes).map_err(|e| format!("controller state: {e}"))?;
        *self.shared.write() = Arc::new(state);
        Ok(())
    }
}

/// The controller group on this node, which leads it.
pub struct Controller {
    group: Group<ControllerMachine>,
    leader: LeaderTerm,
    shared: Shared,
    /// Producer ids reserved and not handed out yet: next and end (exclusive).
    producer_ids: tokio::sync::Mutex<(i64, i64)>,
}

impl Controller {
    /// Opens the controller's log and starts its group.
    ///
    /// # Errors
    /// When the log cannot be opened (damage included) or the group does not start.
    pub async fn start(env: Arc<Environment>) -> Result<Self, BrokerError> {
        let handle = env.consensus.clone();
        handle
            .spawn(Self::start_here(env))
            .await
            .map_err(|e| BrokerError::new(Reason::Internal, format!("controller: {e}")))?
    }

    async fn start_here(env: Arc<Environment>) -> Result<Self, BrokerError> {
        let store = env.store.clone();
        let log = tokio::task::spawn_blocking(move || store.open_log(CONTROLLER_LOG, LogConfig::default()))
            .await
            .map_err(|e| BrokerError::new(Reason::Internal, format!("controller: {e}")))?
            .map_err(|e| log_error(&e))?;
        let shared = env.agreed.clone();
        let machine = ControllerMachine { shared: shared.clone() };
        let group = Group::start(env.store.clone(), log, CONTROLLER_LOG, env.node, env.member.clone(), machine)
            .await
            .map_err(|e| group_error(&e))?;
        let leader = match group.lead().await {
            Ok(leader) => leader,
            Err(error) => {
                group.shutdown().await;
                return Err(group_error(&error));
            }
        };
        let controller = Self { group, leader, shared, producer_ids: tokio::sync::Mutex::new((0, 0)) };
        if controller.state().cluster_id.is_nil() {
            controller.propose(&Command::InitCluster { cluster_id: Uuid::now_v7(), nodes: Vec::new() }).await?;
        }
        Ok(controller)
    }

    /// What is agreed now.
    pub fn state(&self) -> Arc<ControllerState> {
        self.shared.read().clone()
    }

    /// Why the controller group cannot go on, if it cannot.
    pub fn failure(&self) -> Option<BrokerError> {
        self.group.failure().map(|e| group_error(&e))
    }

    async fn propose(&self, command: &Command) -> Result<Outcome, BrokerError> {
        let payload = serde_json::to_vec(command).expect("a command has only plain values");
        let proposal = Proposal { record_count: 1, max_timestamp: 0, payload: payload.into() };
        let (tx, rx) = tokio::sync::oneshot::channel();
        let done = move |result| {
            let _ = tx.send(result);
        };
        self.group.propose(self.leader, proposal, done).await.map_err(|e| group_error(&e))?;
        let stopped = || {
            let cause =
                self.failure().unwrap_or_else(|| BrokerError::new(Reason::Unavailable, "the controller group stopped"));
            BrokerError::unknown(&cause)
        };
        let answer = match rx.await {
            Ok(Ok(bytes)) => bytes,
            Ok(Err(ProposeError::NotAccepted(why))) => return Err(BrokerError::new(Reason::Unavailable, why)),
            Ok(Err(ProposeError::Unknown(_))) | Err(_) => return Err(stopped()),
        };
        serde_json::from_slice(&answer)
            .map_err(|e| BrokerError::new(Reason::Internal, format!("controller answer: {e}")))
    }

    async fn decide(&self, command: &Command) -> Result<Option<Topic>, BrokerError> {
        match self.propose(command).await? {
            Outcome::Done(topic) => Ok(topic),
            Outcome::Refused(refusal) => Err(refused(refusal)),
            _ => Err(BrokerError::new(Reason::Internal, "controller: unexpected answer")),
        }
    }

    /// Creates a topic.
    ///
    /// # Errors
    /// [`Reason::TopicExists`]; failures of the group.
    pub async fn create_topic(&self, topic: Topic, topics_max: usize) -> Result<Topic, BrokerError> {
        let created = self.decide(&Command::CreateTopic { topic, topics_max, default_replication: 1 }).await?;
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

    /// Takes a topic away; its data is then deleted and [`Controller::forget`] called.
    ///
    /// # Errors
    /// [`Reason::UnknownTopic`]; failures of the group.
    pub async fn delete_topic(&self, name: &str) -> Result<Topic, BrokerError> {
        let deleted = self.decide(&Command::DeleteTopic { name: name.into() }).await?;
        deleted.ok_or_else(|| BrokerError::new(Reason::Internal, "controller: no topic in the answer"))
    }

    /// Notes that the files of a deleted topic are gone.
    ///
    /// # Errors
    /// Failures of the group.
    pub async fn forget(&self, id: Uuid) -> Result<(), BrokerError> {
        self.decide(&Command::ForgetTopic { id, node: 0 }).await.map(|_| ())
    }

    /// A producer id that nobody has had.
    ///
    /// # Errors
    /// Failures of the group.
    pub async fn producer_id(&self) -> Result<i64, BrokerError> {
        let mut ids = self.producer_ids.lock().await;
        if ids.0 == ids.1 {
            match self.propose(&Command::ReserveProducerIds { count: PRODUCER_BLOCK }).await? {
                Outcome::ProducerIds { first, count } => *ids = (first, first + count),
                Outcome::Refused(refusal) => return Err(refused(refusal)),
                _ => return Err(BrokerError::new(Reason::Internal, "controller: unexpected answer")),
            }
        }
        let id = ids.0;
        ids.0 += 1;
        Ok(id)
    }

    /// Saves a checkpoint once the log has rolled since the last one.
    pub async fn maintain(&self) {
        if let Err(error) = self.group.checkpoint_if_rolled().await {
            tracing::warn!(%error, "controller checkpoint failed");
        }
    }

    /// Saves a checkpoint, stops the group and closes its log.
    pub async fn close(&self) {
        self.group.close(self.failure().is_some()).await;
    }
}

fn refused(refusal: Refusal) -> BrokerError {
    match refusal {
        Refusal::TopicExists(name) => BrokerError::new(Reason::TopicExists, format!("topic {name}: exists already")),
        Refusal::UnknownTopic(name) => unknown_topic(&name),
        Refusal::TooManyTopics(max) => {
            BrokerError::new(Reason::Overloaded, format!("limits.topics-max: the cluster has {max} topics already"))
        }
        Refusal::PartitionsShrink { asked, current } => BrokerError::invalid(
            "partitions",
            asked,
            &format!("the number of partitions only grows, the topic has {current}"),
        ),
        other => BrokerError::new(Reason::InvalidRequest, other.to_string()),
    }
}

/// The answer for a name that no topic has.
pub(crate) fn unknown_topic(name: &str) -> BrokerError {
    BrokerError::new(Reason::UnknownTopic, format!("topic {name:?}: no such topic"))
}
