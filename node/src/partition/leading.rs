//! Leadership of a partition on this node: runs a sequencer while this node leads, none while it follows.
//!
//! Invariants:
//! - A sequencer starts only when everything in the log is committed and applied, so that its speculative tail begins at the
//!   true end. After an election the new term's blank entry ensures that; a second sequencer in one term appends another
//!   blank entry first.
//! - A sequencer has stopped proposing before another one starts.

use std::sync::Arc;
use std::time::Duration;

use chronicle_log::{Log, mutant};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::confirming::Confirming;
use super::environment::Environment;
use super::segment_ends::SegmentEnds;
use super::sequencer::{Append, Sequencer, SequencerFailure};
use super::state_machine::{AppliedState, PartitionMachine};
use crate::model::PartitionError;
use crate::raft::{LeaderTerm, RaftGroup, Role};

/// First and longest pause before a leader that could not become ready is retried.
const RETRY_MIN: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(1);

/// This node's role in a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PartitionRole {
    /// It leads and accepts appends.
    Leading(LeaderTerm),
    /// It has won an election and does not accept appends yet, or not any more.
    Settling,
    /// It follows.
    Following {
        /// Raft id of the leader; `None`: not known.
        leader: Option<u64>,
    },
}

/// A running sequencer.
pub(super) struct RunningSequencer {
    pub(super) queue: mpsc::UnboundedSender<Append>,
    pub(super) queue_bytes: Arc<Semaphore>,
    pub(super) queue_bytes_max: usize,
    pub(super) failure: SequencerFailure,
    task: tokio::sync::Mutex<Option<JoinHandle<()>>>,
}

impl RunningSequencer {
    /// Rejects new appends, finishes accepted ones unless a failure is set, and waits for the sequencer.
    pub(super) async fn stop(&self) {
        self.queue_bytes.close();
        self.failure.stop();
        // Kept until the task has ended: when a caller stops waiting, the next caller can still wait for it.
        let mut task = self.task.lock().await;
        if let Some(running) = task.as_mut()
            && let Err(error) = running.await
        {
            tracing::error!(%error, "sequencer panicked");
        }
        *task = None;
    }
}

/// The role and the sequencer, as the rest of the partition reads them.
pub(super) struct Leadership {
    pub(super) role: watch::Sender<PartitionRole>,
    pub(super) now: parking_lot::RwLock<Option<Arc<RunningSequencer>>>,
    /// Held while leadership is transferred to another replica: no sequencer starts until then.
    pub(super) handing_over: tokio::sync::Mutex<()>,
}

impl Leadership {
    pub(super) fn new() -> Arc<Self> {
        let role = watch::Sender::new(PartitionRole::Following { leader: None });
        Arc::new(Self { role, now: parking_lot::RwLock::new(None), handing_over: tokio::sync::Mutex::new(()) })
    }
}

/// The leadership task and what it needs.
pub(super) struct LeadershipTask {
    pub(super) env: Arc<Environment>,
    pub(super) log: Arc<Log>,
    pub(super) group: Arc<RaftGroup<PartitionMachine>>,
    pub(super) shared: Arc<AppliedState>,
    pub(super) leadership: Arc<Leadership>,
    /// Cancelled when the partition closes.
    pub(super) stop: CancellationToken,
}

impl LeadershipTask {
    /// Follows the group's role until the partition closes or the group stops.
    pub(super) async fn run(self) {
        let mut roles = self.group.roles();
        // The term of the last sequencer.
        let mut used: Option<LeaderTerm> = None;
        let mut pause = RETRY_MIN;
        loop {
            let role = roles.now();
            match role {
                Role::Follower { leader, .. } => {
                    self.leadership.role.send_replace(PartitionRole::Following { leader });
                    tokio::select! {
                        () = self.stop.cancelled() => return,
                        other = roles.other(role) => if other.is_none() { return },
                    }
                }
                Role::Leader(term) => {
                    self.leadership.role.send_replace(PartitionRole::Settling);
                    let settled = tokio::select! {
                        () = self.stop.cancelled() => return,
                        // A wait for a majority must not outlive the leadership.
                        other = roles.other(role) => match other {
                            Some(_) => continue,
                            None => return,
                        },
                        settled = self.settle(term, used == Some(term)) => settled,
                    };
                    if let Err(error) = settled {
                        if self.group.failure().is_some() {
                            return;
                        }
                        tracing::debug!(group = %self.log.id(), %error, "leader is not ready, retrying");
                        tokio::select! {
                            () = self.stop.cancelled() => return,
                            _ = roles.other(role) => {}
                            () = tokio::time::sleep(pause) => pause = (2 * pause).min(RETRY_MAX),
                        }
                        continue;
                    }
                    pause = RETRY_MIN;
                    used = Some(term);
                    self.env.cluster.metrics.won();
                    let leading = self.start(term);
                    *self.leadership.now.write() = Some(leading.clone());
                    self.leadership.role.send_replace(PartitionRole::Leading(term));
                    tracing::debug!(group = %self.log.id(), term = term.term, "leading");
                    let graceful = tokio::select! {
                        () = self.stop.cancelled() => true,
                        other = roles.other(role) => {
                            let leader = match other {
                                Some(Role::Follower { leader, .. }) => leader,
                                Some(Role::Leader(_)) | None => None,
                            };
                            leading.failure.set(leading.failure.moved(leader, "leadership has moved"));
                            false
                        }
                        () = leading.failure.stopped() => false,
                    };
                    *self.leadership.now.write() = None;
                    self.env.cluster.metrics.lost();
                    leading.stop().await;
                    if graceful || self.log.failure().is_some() {
                        return;
                    }
                }
            }
        }
    }

    async fn settle(&self, term: LeaderTerm, again: bool) -> Result<(), PartitionError> {
        let _one = self.leadership.handing_over.lock().await;
        if mutant!("sequencer-starts-early") {
            return Ok(());
        }
        if again {
            self.group.blank().await.map_err(PartitionError::from)?;
        }
        self.group.settle(term).await.map_err(PartitionError::from)
    }

    fn start(&self, term: LeaderTerm) -> Arc<RunningSequencer> {
        let (queue, receiver) = mpsc::unbounded_channel();
        let failure = SequencerFailure::new(self.env.clone(), self.log.clone());
        let config = &self.env.config().partitions;
        let sequencer = Sequencer {
            group: self.group.clone(),
            leader: term,
            log: self.log.clone(),
            shared: self.shared.clone(),
            queue: receiver,
            slots: Arc::new(Semaphore::new(config.entries_in_flight_max)),
            budget: self.env.budget.clone(),
            entry_bytes_max: config.entry_bytes_max,
            versioned_keys_max: config.versioned_keys_max,
            confirming: Confirming::start(self.group.clone(), term, failure.failed()),
            ends: SegmentEnds::new(self.env.clone(), self.group.clone(), self.shared.clone(), &self.log, term),
            failure: failure.clone(),
            metrics: self.env.cluster.metrics.clone(),
        };
        Arc::new(RunningSequencer {
            queue,
            queue_bytes: Arc::new(Semaphore::new(config.queue_bytes_max)),
            queue_bytes_max: config.queue_bytes_max,
            failure,
            task: tokio::sync::Mutex::new(Some(tokio::spawn(sequencer.run()))),
        })
    }
}

impl Drop for LeadershipTask {
    fn drop(&mut self) {
        *self.leadership.now.write() = None;
        self.leadership.role.send_replace(PartitionRole::Following { leader: None });
    }
}
