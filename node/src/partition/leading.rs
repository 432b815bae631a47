//! The life of a partition's leadership on this node: a sequencer while it leads, none while it follows.
//!
//! Invariants:
//! - A sequencer starts only when everything in the log is committed and applied, so that its speculative tail begins at the
//!   true end. Winning an election gives that (the new term's blank entry); a second sequencer in one term asks for it with
//!   a blank of its own.
//! - A sequencer that has stopped proposes nothing more before another one starts.

use std::sync::Arc;
use std::time::Duration;

use chronicle_log::Log;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::environment::Environment;
use super::machine::{AppliedState, PartitionMachine};
use super::sequencer::{Append, Failure, Sequencer};
use crate::model::PartitionError;
use crate::raft::{Group, LeaderTerm, Role};

/// First and longest pause before leadership that could not be settled is tried again.
const RETRY_MIN: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(1);

/// What this node is to a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PartitionRole {
    /// It leads and accepts appends.
    Leading(LeaderTerm),
    /// It has won an election and does not accept appends yet, or not any more.
    Settling,
    /// Another node leads, or nobody that is known.
    Following {
        /// Raft id of the leader.
        leader: Option<u64>,
    },
}

/// A sequencer at work.
pub(super) struct Leading {
    pub(super) queue: mpsc::UnboundedSender<Append>,
    pub(super) queue_bytes: Arc<Semaphore>,
    pub(super) queue_bytes_max: usize,
    pub(super) failure: Failure,
    task: tokio::sync::Mutex<Option<JoinHandle<()>>>,
}

impl Leading {
    /// Refuses new appends, finishes accepted ones unless the failure says why not, and waits for the sequencer.
    pub(super) async fn stop(&self) {
        self.queue_bytes.close();
        self.failure.stop();
        // Kept until it has ended: whoever gives up waiting leaves it to the next.
        let mut task = self.task.lock().await;
        if let Some(running) = task.as_mut()
            && let Err(error) = running.await
        {
            tracing::error!(%error, "sequencer panicked");
        }
        *task = None;
    }
}

/// Where the rest of the partition finds the sequencer.
pub(super) struct Leadership {
    pub(super) role: watch::Sender<PartitionRole>,
    pub(super) now: parking_lot::RwLock<Option<Arc<Leading>>>,
    /// Held while leadership is handed to another replica: no sequencer starts meanwhile.
    pub(super) handing_over: tokio::sync::Mutex<()>,
}

impl Leadership {
    pub(super) fn new() -> Arc<Self> {
        let role = watch::Sender::new(PartitionRole::Following { leader: None });
        Arc::new(Self { role, now: parking_lot::RwLock::new(None), handing_over: tokio::sync::Mutex::new(()) })
    }
}

/// What a leadership works with.
pub(super) struct LeadershipTask {
    pub(super) env: Arc<Environment>,
    pub(super) log: Arc<Log>,
    pub(super) group: Arc<Group<PartitionMachine>>,
    pub(super) shared: Arc<AppliedState>,
    pub(super) leadership: Arc<Leadership>,
    /// The partition closes.
    pub(super) stop: CancellationToken,
}

impl LeadershipTask {
    /// Follows the group's role until the partition closes or the group stops.
    pub(super) async fn run(self) {
        let mut roles = self.group.roles();
        // The term in which a sequencer ran already.
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
                        // What waits for a majority must not outlive the leadership.
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
                        tracing::debug!(group = %self.log.id(), %error, "leadership is not settled");
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
                    tracing::debug!(group = %self.log.id(), term = term.term, "leads");
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
        if again {
            self.group.blank().await.map_err(PartitionError::from)?;
        }
        self.group.settle(term).await.map_err(PartitionError::from)
    }

    fn start(&self, term: LeaderTerm) -> Arc<Leading> {
        let (queue, receiver) = mpsc::unbounded_channel();
        let failure = Failure::new(self.env.clone(), self.log.clone());
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
            failure: failure.clone(),
            metrics: self.env.cluster.metrics.clone(),
        };
        Arc::new(Leading {
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
