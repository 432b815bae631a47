//! One raft group on this node: start it, lead it, propose to it, checkpoint it, stop it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use chronicle_log::{Log, LogError, LogId, Store};
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{ClientWriteError, Fatal, ForwardToLeader};
use openraft::{Config, Raft, ServerState, SnapshotPolicy};

use super::machine::{Machine, MachineStore};
use super::network::NoPeers;
use super::store::LogStorage;
use super::types::{Callback, LeaderTerm, Member, Proposal, RaftMembership, TypeConfig};

/// Why a group cannot be used.
#[derive(Debug, Clone, thiserror::Error)]
pub enum GroupError {
    /// The log failed: the group stops and is started again from what is on disk.
    #[error(transparent)]
    Log(#[from] LogError),
    /// openraft stopped, or refused to start.
    #[error("raft group {group}: {reason}")]
    Raft {
        /// Which.
        group: LogId,
        /// Why.
        reason: String,
    },
    /// This node did not become the leader in time.
    #[error("raft group {group}: no leadership after {waited_ms} ms")]
    NoLeader {
        /// Which.
        group: LogId,
        /// How long it was waited for, in milliseconds.
        waited_ms: u64,
    },
}

/// What became of a proposal that did not commit here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProposeError {
    /// Nothing was appended: this node does not lead in the term asked for.
    NotAccepted(String),
    /// Appended here, but it may or may not have committed.
    Unknown(String),
}

impl fmt::Display for ProposeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAccepted(why) => write!(f, "not accepted: {why}"),
            Self::Unknown(why) => write!(f, "outcome unknown: {why}"),
        }
    }
}

/// The answer of the machine, or why there is none.
pub type ProposeResult = Result<Bytes, ProposeError>;

/// A view of a group for people and metrics.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GroupStatus {
    /// Current term.
    pub term: u64,
    /// Raft id of the leader that this node knows.
    pub leader: Option<u64>,
    /// This node leads.
    pub is_leader: bool,
    /// Last applied raft index.
    pub applied: Option<u64>,
    /// Last raft index that the checkpoint covers.
    pub checkpoint: Option<u64>,
}

/// One raft group on this node. Dropping it without [`Group::shutdown`] leaves its tasks running.
pub struct Group<M: Machine> {
    raft: Raft<TypeConfig, MachineStore<M>>,
    id: LogId,
    node: u64,
    log: Arc<Log>,
}

/// How long a start may wait for leadership.
const LEAD_TIMEOUT: Duration = Duration::from_secs(30);

impl<M: Machine> Group<M> {
    /// Starts the group of `log` on the current runtime; a new log is initialised with this node as its only voter.
    /// The machine is restored from the log's checkpoint first.
    ///
    /// # Errors
    /// When the log or its checkpoint cannot be read, or openraft refuses what is stored.
    pub async fn start(
        store: Arc<Store>,
        log: Arc<Log>,
        id: LogId,
        node: u64,
        member: Member,
        machine: M,
    ) -> Result<Self, GroupError> {
        let failed = |reason: String| match log.failure() {
            Some(error) => GroupError::Log(error),
            None => GroupError::Raft { group: id, reason },
        };
        let storage = LogStorage::open(store, log.clone(), id).map_err(|e| failed(e.to_string()))?;
        if storage.is_new() {
            // The first entry is written before raft starts. openraft's own `initialize` journals a vote beside it, and a
            // crash between the two would leave a group that counts as initialised and has no voter.
            let membership = RaftMembership::new(vec![BTreeSet::from([node])], BTreeMap::from([(node, member)]))
                .map_err(|e| failed(e.to_string()))?;
            storage.append_first(membership).await.map_err(|e| failed(e.to_string()))?;
        }
        let machine = MachineStore::open(log.clone(), machine).map_err(|e| failed(e.to_string()))?;
        let config = Config {
            cluster_name: id.to_string(),
            // One voter needs no timers: it elects itself when it starts and its lease is its own. An idle group costs
            // no wake-up.
            enable_tick: false,
            enable_heartbeat: false,
            heartbeat_interval: 500,
            election_timeout_min: 2000,
            election_timeout_max: 4000,
            // A node that starts again wins its leadership anew, in a new term.
            enable_leader_restore: Some(false),
            // Checkpoints are taken when segments roll; purging follows retention.
            snapshot_policy: SnapshotPolicy::Never,
            max_in_snapshot_log_to_keep: u64::MAX,
            api_channel_size: Some(1024),
            notification_channel_size: Some(1024),
            ..Config::default()
        };
        let config = Arc::new(config.validate().map_err(|e| failed(e.to_string()))?);
        let raft = Raft::new(node, config, NoPeers, storage, machine).await.map_err(|e| failed(e.to_string()))?;
        let group = Self { raft, id, node, log };
        if let Err(error) = group.raft.trigger().elect(false).await {
            let error = group.fatal(error);
            group.shutdown().await;
            return Err(error);
        }
        Ok(group)
    }

    /// Waits until this node leads and has applied everything that was in its log when it won.
    ///
    /// # Errors
    /// When the group failed, or another node leads.
    pub async fn lead(&self) -> Result<LeaderTerm, GroupError> {
        let no_leader = || GroupError::NoLeader { group: self.id, waited_ms: LEAD_TIMEOUT.as_millis() as u64 };
        self.raft
            .wait(Some(LEAD_TIMEOUT))
            .state(ServerState::Leader, "start of a group")
            .await
            .map_err(|_| self.failure().unwrap_or_else(no_leader))?;
        let read = self.raft.ensure_linearizable(openraft::raft::ReadPolicy::ReadIndex);
        match tokio::time::timeout(LEAD_TIMEOUT, read).await {
            Err(_) => return Err(no_leader()),
            Ok(Err(openraft::errors::RaftError::Fatal(fatal))) => return Err(self.fatal(fatal)),
            Ok(Err(other)) => return Err(GroupError::Raft { group: self.id, reason: other.to_string() }),
            Ok(Ok(_)) => {}
        }
        let leader = self
            .raft
            .with_raft_state(|state| {
                let vote = state.vote_ref();
                (vote.leader_id.term, vote.leader_id.node_id, vote.committed)
            })
            .await
            .map_err(|e| self.fatal(e))?;
        if leader.1 != self.node || !leader.2 {
            return Err(GroupError::Raft { group: self.id, reason: "leadership was lost at once".into() });
        }
        Ok(LeaderTerm { term: leader.0, leader: leader.1 })
    }

    /// Proposes an entry pinned to `leader`: it is appended in that term or not at all. `done` is called exactly once
    /// or, when the group stops, dropped; it must be cheap. Returns once the proposal is queued, so that calls made one
    /// after the other are appended in that order.
    ///
    /// # Errors
    /// When the group has stopped; nothing was appended.
    pub async fn propose(
        &self,
        leader: LeaderTerm,
        proposal: Proposal,
        done: impl FnOnce(ProposeResult) + Send + 'static,
    ) -> Result<(), GroupError> {
        let callback = Callback(Box::new(move |result: openraft::raft::ClientWriteResult<TypeConfig>| {
            done(match result {
                Ok(response) => Ok(response.data),
                Err(ClientWriteError::ForwardToLeader(ForwardToLeader { leader_id, .. })) => {
                    Err(ProposeError::NotAccepted(match leader_id {
                        Some(id) => format!("node {id} leads"),
                        None => "no leader is known".into(),
                    }))
                }
                Err(ClientWriteError::LogEntryDiscarded(_)) => {
                    Err(ProposeError::Unknown("the leader changed before the entry committed".into()))
                }
                Err(other) => Err(ProposeError::NotAccepted(other.to_string())),
            })
        }));
        let leader_id = super::types::CommittedLeaderId { term: leader.term, node_id: leader.leader };
        self.raft.write(proposal).with_leader(leader_id).responder(callback).await.map_err(|e| self.fatal(e))
    }

    /// Appends an entry without data and waits until it is committed.
    ///
    /// # Errors
    /// When the group has stopped or no longer leads.
    pub async fn blank(&self) -> Result<(), GroupError> {
        match self.raft.write_blank().await {
            Ok(_) => Ok(()),
            Err(openraft::errors::RaftError::Fatal(fatal)) => Err(self.fatal(fatal)),
            Err(other) => Err(GroupError::Raft { group: self.id, reason: other.to_string() }),
        }
    }

    /// Saves the machine's state as the log's checkpoint.
    ///
    /// # Errors
    /// When the group has stopped or the checkpoint cannot be written.
    pub async fn checkpoint(&self) -> Result<(), GroupError> {
        let applied = self.status().applied;
        if applied.is_none() || self.status().checkpoint >= applied {
            return Ok(());
        }
        self.raft.trigger().snapshot().await.map_err(|e| self.fatal(e))?;
        let wait = self.raft.wait(Some(LEAD_TIMEOUT));
        wait.metrics(|m| m.snapshot.map(|id| id.index) >= applied, "checkpoint").await.map(|_| ()).map_err(|e| {
            match self.log.failure() {
                Some(error) => GroupError::Log(error),
                None => GroupError::Raft { group: self.id, reason: format!("checkpoint: {e}") },
            }
        })
    }

    /// Takes a checkpoint when the log has rolled since the last one, so that a start replays at most about a segment.
    ///
    /// # Errors
    /// As [`Group::checkpoint`].
    pub async fn checkpoint_if_rolled(&self) -> Result<(), GroupError> {
        let active_base = self.log.segments().last().map(|segment| segment.base_index).unwrap_or(0);
        let covered = self.status().checkpoint.unwrap_or(0);
        if active_base > 0 && covered + 1 < active_base {
            self.checkpoint().await?;
        }
        Ok(())
    }

    /// Moves raft's low-water mark: entries up to `index` (inclusive) may go once this returns. A checkpoint must cover
    /// them.
    ///
    /// # Errors
    /// When the group has stopped.
    pub async fn purge(&self, index: u64) -> Result<(), GroupError> {
        self.raft.trigger().purge_log(index).await.map_err(|e| self.fatal(e))?;
        let wait = self.raft.wait(Some(LEAD_TIMEOUT));
        wait.metrics(|m| m.purged.map(|id| id.index) >= Some(index), "purge")
            .await
            .map(|_| ())
            .map_err(|e| GroupError::Raft { group: self.id, reason: format!("purge up to {index}: {e}") })
    }

    /// Why the group has stopped, if it has.
    pub fn failure(&self) -> Option<GroupError> {
        if let Some(error) = self.log.failure() {
            return Some(GroupError::Log(error));
        }
        let metrics = self.raft.metrics();
        let stopped = metrics.borrow_watched().running_state.clone().err()?;
        Some(GroupError::Raft { group: self.id, reason: stopped.to_string() })
    }

    /// What the group looks like now.
    pub fn status(&self) -> GroupStatus {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        GroupStatus {
            term: metrics.current_term,
            leader: metrics.current_leader,
            is_leader: metrics.state == ServerState::Leader,
            applied: metrics.last_applied.map(|id| id.index),
            checkpoint: metrics.snapshot.map(|id| id.index),
        }
    }

    /// Stops the group's tasks and waits for them. Proposals without an answer get none.
    pub async fn shutdown(&self) {
        if let Err(error) = self.raft.shutdown().await {
            tracing::warn!(group = %self.id, %error, "raft group did not stop cleanly");
        }
    }

    /// Saves a checkpoint (unless the group failed), stops the group and closes its log, so that the next start has
    /// nothing to replay.
    pub async fn close(&self, failed: bool) {
        if !failed && let Err(error) = self.checkpoint().await {
            tracing::warn!(group = %self.id, %error, "no checkpoint at close: the next start reads more");
        }
        self.shutdown().await;
        let log = self.log.clone();
        match tokio::task::spawn_blocking(move || log.close()).await {
            Ok(Ok(())) => tracing::debug!(group = %self.id, "group is closed"),
            Ok(Err(error)) => tracing::warn!(group = %self.id, %error, "log did not close cleanly"),
            Err(error) => tracing::error!(group = %self.id, %error, "closing the log panicked"),
        }
    }

    fn fatal(&self, fatal: Fatal<TypeConfig>) -> GroupError {
        match self.log.failure() {
            Some(error) => GroupError::Log(error),
            None => GroupError::Raft { group: self.id, reason: fatal.to_string() },
        }
    }
}
