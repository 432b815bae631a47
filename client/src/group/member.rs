//! The member's task: heartbeats, commits, and giving partitions back. One thing at a time, so that a commit always carries the
//! generation that the coordinator last said.

use std::sync::Arc;
use std::time::Duration;

use chronicle_proto::v1;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout};

use super::GroupConfig;
use super::held::Held;
use crate::client::Client;
use crate::error::{ClientError, ErrorKind};

/// Wait before a heartbeat that failed is tried again.
const RETRY: Duration = Duration::from_millis(500);
/// First heartbeat of a member whose session has ended.
const REJOIN: Duration = Duration::from_millis(50);

/// What the consumer asks of the task.
pub(super) enum Command {
    /// Remember what is finished.
    Commit(oneshot::Sender<Result<(), ClientError>>),
    /// Remember what is finished, if commits are automatic, and leave.
    Close(oneshot::Sender<Result<(), ClientError>>),
}

/// A member of a group.
pub(super) struct Member {
    pub(super) client: Client,
    pub(super) config: GroupConfig,
    pub(super) held: Arc<Held>,
    /// Closed when the consumer is dropped.
    pub(super) commands: mpsc::Receiver<Command>,
    /// Empty: not joined.
    pub(super) id: String,
    pub(super) generation: i32,
    /// When the coordinator has surely ended the session: the last answer and the session's length.
    pub(super) session_ends: Instant,
}

impl Member {
    pub(super) async fn run(mut self) {
        let mut beat_at = Instant::now();
        let commit_every = self.config.auto_commit.unwrap_or(Duration::MAX);
        let mut commit_at = Instant::now().checked_add(commit_every);
        loop {
            let released_at = self.held.next_deadline().map_or(beat_at, |deadline| deadline.min(beat_at));
            // Dropping a branch loses nothing: a command stays in its channel, a permit in its notification.
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
                () = self.held.released.notified() => beat_at = Instant::now(),
                () = sleep_until(released_at) => beat_at = Instant::now() + self.beat().await,
                () = sleep_until(commit_at.unwrap_or(beat_at)), if commit_at.is_some() => {
                    if let Err(error) = self.commit().await {
                        tracing::warn!(group = self.config.group, %error, "offsets are not committed");
                    }
                    commit_at = Instant::now().checked_add(commit_every);
                }
            }
        }
    }

    /// Gives back what it can, says what it holds, and takes what it should hold; answers when to come back.
    async fn beat(&mut self) -> Duration {
        let returned = self.held.returnable(Instant::now());
        if !returned.is_empty() {
            if self.config.auto_commit.is_some()
                && let Err(error) = self.commit().await
            {
                tracing::warn!(group = self.config.group, %error, "the next owner reads some records again");
            }
            self.held.give_back(&returned);
        }
        let request = v1::GroupHeartbeatRequest {
            group: self.config.group.clone(),
            member_id: self.id.clone(),
            generation: self.generation,
            client_name: self.config.client_name.clone(),
            topics: self.config.topics.clone(),
            session_timeout_ms: u32::try_from(self.config.session_timeout.as_millis()).unwrap_or(u32::MAX),
            owned: self.held.owned(),
        };
        let patience = self.config.session_timeout / 2;
        let began = Instant::now();
        let answer = timeout(patience, self.client.group_heartbeat(&request)).await;
        let answer = answer.unwrap_or_else(|_| {
            Err(ClientError::new(ErrorKind::Transport { sent: true }, "DEADLINE_EXCEEDED", "no answer to a heartbeat"))
        });
        match answer {
            Ok(answer) => {
                self.session_ends = began + self.config.session_timeout;
                self.id = answer.member_id;
                self.generation = answer.generation;
                let new = self.held.reconcile(&answer.assigned, Instant::now() + self.config.revoke_timeout);
                let interval = Duration::from_millis(answer.heartbeat_interval_ms.into());
                let taken = match new.is_empty() {
                    true => Ok(()),
                    false => self.take(new).await,
                };
                if let Err(error) = taken {
                    tracing::debug!(group = self.config.group, %error, "new partitions wait for their offsets");
                    return RETRY.min(interval);
                }
                // What nobody reads from goes back at once.
                if self.held.returnable(Instant::now()).is_empty() { interval } else { Duration::ZERO }
            }
            Err(error) if error.reason == "UNKNOWN_MEMBER" => {
                tracing::warn!(group = self.config.group, %error, "joins again");
                self.lose_membership();
                REJOIN
            }
            Err(error) => {
                tracing::debug!(group = self.config.group, %error, "heartbeat failed");
                let is_over = Instant::now() >= self.session_ends;
                if is_over {
                    self.held.lose_all();
                }
                if is_over || !error.is_retryable() {
                    self.held.fail(error);
                }
                RETRY
            }
        }
    }

    fn lose_membership(&mut self) {
        self.held.lose_all();
        self.id.clear();
        self.generation = 0;
    }

    /// Begins to hold partitions where the group is.
    async fn take(&mut self, new: Vec<v1::TopicPartitions>) -> Result<(), ClientError> {
        let request = v1::FetchOffsetsRequest { group: self.config.group.clone(), partitions: new.clone() };
        let patience = self.config.session_timeout / 2;
        let offsets = timeout(patience, self.client.fetch_group_offsets(request)).await.unwrap_or_else(|_| {
            Err(ClientError::new(ErrorKind::Transport { sent: true }, "DEADLINE_EXCEEDED", "no answer with offsets"))
        })?;
        for one in new {
            for partition in one.partitions {
                let committed =
                    offsets.iter().find(|offset| offset.topic == one.topic && offset.partition == partition);
                let committed = committed.map(|offset| offset.offset);
                self.held.assign(one.topic.clone(), partition, committed, self.config.start.position());
            }
        }
        Ok(())
    }

    async fn commit(&mut self) -> Result<(), ClientError> {
        let offsets = self.held.uncommitted();
        if offsets.is_empty() {
            return Ok(());
        }
        let request = v1::CommitOffsetsRequest {
            group: self.config.group.clone(),
            member_id: self.id.clone(),
            generation: self.generation,
            offsets,
        };
        let patience = self.config.session_timeout / 2;
        let answer = timeout(patience, self.client.commit_group_offsets(request.clone())).await;
        match answer {
            Ok(Ok(())) => {
                self.held.committed(&request.offsets);
                Ok(())
            }
            Ok(Err(error)) => {
                if error.reason == "UNKNOWN_MEMBER" {
                    self.lose_membership();
                }
                Err(error)
            }
            Err(_) => {
                Err(ClientError::new(ErrorKind::OutcomeUnknown, "OUTCOME_UNKNOWN", "no answer to a commit in time"))
            }
        }
    }

    async fn leave(&mut self) {
        self.held.lose_all();
        if self.id.is_empty() {
            return;
        }
        let left =
            timeout(self.config.session_timeout / 2, self.client.leave_group(&self.config.group, &self.id)).await;
        if let Ok(Err(error)) = left
            && error.reason != "UNKNOWN_MEMBER"
        {
            tracing::debug!(group = self.config.group, %error, "left by silence");
        }
    }
}
