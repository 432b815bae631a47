//! The member's task: heartbeats, commits, and giving partitions back.
//!
//! Invariant: it does one thing at a time, so that a commit always carries the generation of the coordinator's last answer.
//!
//! Stands on `coordinator.rs` and `owned.rs`. It reads no records and does not name the consumer; commands reach it through a
//! channel.

use std::sync::Arc;
use std::time::Duration;

use chronicle_proto::v1;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout};

use super::coordinator::Coordinator;
use super::owned::OwnedPartitions;
use crate::config::GroupConfig;
use crate::error::{ClientError, ErrorKind};

/// Pause after a heartbeat that failed.
const RETRY: Duration = Duration::from_millis(500);
/// Pause before a member whose session has ended joins again.
const REJOIN: Duration = Duration::from_millis(50);

/// Commands of the consumer.
pub(super) enum Command {
    /// Commit the offsets of finished records.
    Commit(oneshot::Sender<Result<(), ClientError>>),
    /// Commit the offsets of finished records if commits are automatic, then leave the group.
    Close(oneshot::Sender<Result<(), ClientError>>),
}

/// A member of a group.
pub(super) struct Member {
    coordinator: Coordinator,
    config: GroupConfig,
    owned: Arc<OwnedPartitions>,
    /// Closed when the consumer is dropped.
    commands: mpsc::Receiver<Command>,
    /// Empty: not joined.
    id: String,
    generation: i32,
    /// When the coordinator has certainly ended the session: the session timeout after the last heartbeat that succeeded.
    session_ends: Instant,
}

impl Member {
    pub(super) fn new(
        coordinator: Coordinator,
        config: GroupConfig,
        owned: Arc<OwnedPartitions>,
        commands: mpsc::Receiver<Command>,
    ) -> Self {
        let session_ends = Instant::now() + config.session_timeout;
        Self { coordinator, config, owned, commands, id: String::new(), generation: 0, session_ends }
    }

    /// Runs until the consumer is closed or dropped.
    pub(super) async fn run(mut self) {
        let mut beat_at = Instant::now();
        let commit_every = self.config.auto_commit.unwrap_or(Duration::MAX);
        let mut commit_at = Instant::now().checked_add(commit_every);
        loop {
            let released_at = self.owned.next_deadline().map_or(beat_at, |deadline| deadline.min(beat_at));
            // All branches are cancellation-safe: a command stays in its channel, a permit in its notification.
            tokio::select! {
                biased;
                command = self.commands.recv() => match command {
                    Some(Command::Commit(reply)) => {
                        let _ = reply.send(self.commit().await);
                    }
                    Some(Command::Close(reply)) => {
                        let committed = match self.config.auto_commit {
                            Some(_) => self.commit().await,
                            None => Ok(()),
                        };
                        self.leave().await;
                        let _ = reply.send(committed);
                        return;
                    }
                    None => return self.leave().await,
                },
                () = self.owned.released.notified() => beat_at = Instant::now(),
                () = sleep_until(released_at) => beat_at = Instant::now() + self.beat().await,
                () = sleep_until(commit_at.unwrap_or(beat_at)), if commit_at.is_some() => {
                    if let Err(error) = self.commit().await {
                        tracing::warn!(group = self.config.group, %error, "cannot commit offsets");
                    }
                    commit_at = Instant::now().checked_add(commit_every);
                }
            }
        }
    }

    /// Gives back revoked partitions, sends a heartbeat, and takes new partitions. Returns the time until the next heartbeat.
    async fn beat(&mut self) -> Duration {
        let returned = self.owned.returnable(Instant::now());
        if !returned.is_empty() {
            // Without the commit, the next owner reads some records again.
            if self.config.auto_commit.is_some()
                && let Err(error) = self.commit().await
            {
                tracing::warn!(group = self.config.group, %error, "cannot commit before giving partitions back");
            }
            self.owned.give_back(&returned);
        }
        let request = v1::GroupHeartbeatRequest {
            group: self.config.group.clone(),
            member_id: self.id.clone(),
            generation: self.generation,
            client_name: self.config.client_name.clone(),
            topics: self.config.topics.clone(),
            session_timeout_ms: u32::try_from(self.config.session_timeout.as_millis()).unwrap_or(u32::MAX),
            owned: self.owned.as_topics(),
        };
        let limit = self.config.session_timeout / 2;
        let began = Instant::now();
        let answer = timeout(limit, self.coordinator.heartbeat(&request)).await;
        let answer = answer.unwrap_or_else(|_| {
            Err(ClientError::new(
                ErrorKind::Transport { sent: true },
                "DEADLINE_EXCEEDED",
                "no answer to the heartbeat",
            ))
        });
        match answer {
            Ok(answer) => {
                self.session_ends = began + self.config.session_timeout;
                self.id = answer.member_id;
                self.generation = answer.generation;
                let new = self.owned.reconcile(&answer.assigned, Instant::now() + self.config.revoke_timeout);
                let interval = Duration::from_millis(answer.heartbeat_interval_ms.into());
                let taken = match new.is_empty() {
                    true => Ok(()),
                    false => self.take(new).await,
                };
                if let Err(error) = taken {
                    tracing::debug!(group = self.config.group, %error, "cannot fetch committed offsets of new partitions");
                    return RETRY.min(interval);
                }
                // Revoked partitions without an unfinished record are given back at once.
                if self.owned.returnable(Instant::now()).is_empty() { interval } else { Duration::ZERO }
            }
            Err(error) if error.reason == "UNKNOWN_MEMBER" => {
                tracing::warn!(group = self.config.group, %error, "membership lost; joining again");
                self.lose_membership();
                REJOIN
            }
            Err(error) => {
                tracing::debug!(group = self.config.group, %error, "heartbeat failed");
                let session_ended = Instant::now() >= self.session_ends;
                if session_ended {
                    self.owned.lose_all();
                }
                if session_ended || !error.is_retryable() {
                    self.owned.fail(error);
                }
                RETRY
            }
        }
    }

    fn lose_membership(&mut self) {
        self.owned.lose_all();
        self.id.clear();
        self.generation = 0;
    }

    /// Starts to own new partitions, at the group's committed offsets.
    async fn take(&mut self, new: Vec<v1::TopicPartitions>) -> Result<(), ClientError> {
        let request = v1::FetchOffsetsRequest { group: self.config.group.clone(), partitions: new.clone() };
        let limit = self.config.session_timeout / 2;
        let offsets = timeout(limit, self.coordinator.fetch_offsets(&request)).await.unwrap_or_else(|_| {
            Err(ClientError::new(
                ErrorKind::Transport { sent: true },
                "DEADLINE_EXCEEDED",
                "no answer to the offset fetch",
            ))
        })?;
        for one in new {
            for partition in one.partitions {
                let committed =
                    offsets.iter().find(|offset| offset.topic == one.topic && offset.partition == partition);
                let committed = committed.map(|offset| offset.offset);
                self.owned.assign(one.topic.clone(), partition, committed, self.config.start.position());
            }
        }
        Ok(())
    }

    async fn commit(&mut self) -> Result<(), ClientError> {
        let offsets = self.owned.uncommitted();
        if offsets.is_empty() {
            return Ok(());
        }
        let request = v1::CommitOffsetsRequest {
            group: self.config.group.clone(),
            member_id: self.id.clone(),
            generation: self.generation,
            offsets,
        };
        let limit = self.config.session_timeout / 2;
        let answer = timeout(limit, self.coordinator.commit_offsets(&request)).await;
        match answer {
            Ok(Ok(())) => {
                self.owned.note_committed(&request.offsets);
                Ok(())
            }
            Ok(Err(error)) => {
                if error.reason == "UNKNOWN_MEMBER" {
                    self.lose_membership();
                }
                Err(error)
            }
            Err(_) => {
                Err(ClientError::new(ErrorKind::OutcomeUnknown, "OUTCOME_UNKNOWN", "no answer to the commit in time"))
            }
        }
    }

    async fn leave(&mut self) {
        self.owned.lose_all();
        if self.id.is_empty() {
            return;
        }
        let left = timeout(self.config.session_timeout / 2, self.coordinator.leave(&self.config.group, &self.id)).await;
        if let Ok(Err(error)) = left
            && error.reason != "UNKNOWN_MEMBER"
        {
            tracing::debug!(group = self.config.group, %error, "cannot leave group");
        }
    }
}
