//! How leaders of a group come and go: elections, hand-over, and when a leader counts as gone.
//!
//! A follower grants a vote against a leader's lease only when it has reason to think that the leader is gone
//! ([`Group::leader_gone`]), and nobody campaigns before a majority says that it would vote for it (pre-vote, Raft
//! dissertation, section 9.6) or while somebody else has just got this node's vote: a campaign of its own would undo that
//! election before it is through.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::time::Duration;

use chronicle_proto::internal as proto;
use chronicle_proto::internal::raft_frame::Message;
use futures::stream::{FuturesUnordered, StreamExt};
use openraft::async_runtime::WatchReceiver;
use openraft::raft::TransferLeaderRequest;
use openraft::{Instant as _, ServerState};
use tokio::time::Instant;

use super::group::{Group, GroupError};
use super::machine::Machine;
use super::wire;

/// Longest wait for the next leader to have everything.
const TRANSFER_PATIENCE: Duration = Duration::from_millis(500);
/// Longest wait for the answers of a pre-vote.
const PRE_VOTE_TIMEOUT: Duration = Duration::from_millis(500);
/// How long votes are waited for before this replica may stand again: longer than a message and a flush take both ways, short
/// beside what a fail-over takes.
const VOTE_PATIENCE: Duration = Duration::from_millis(200);

impl<M: Machine> Group<M> {
    /// The node thinks that the leader is gone.
    pub fn lose_leader(&self) {
        self.heard.leader_lost.store(true, Ordering::Relaxed);
    }

    /// No leader was heard for the election timeout, or it is known to be gone.
    pub fn leader_gone(&self) -> bool {
        self.heard.leader_lost.load(Ordering::Relaxed) || self.silent_for() > self.election_timeout
    }

    /// Since this was last asked: another replica wanted to lead, and was refused because its log is shorter than this one.
    pub fn take_leader_wanted(&self) -> bool {
        self.heard.leader_wanted.swap(false, Ordering::Relaxed)
    }

    /// How long no leader was heard.
    pub fn silent_for(&self) -> Duration {
        // Heard by another thread since the clock was read: not silent at all.
        Duration::from_millis(self.heard.now_ms().saturating_sub(self.heard.leader_ms.load(Ordering::Relaxed)))
    }

    /// Whether a leader was ever heard since the group started.
    pub fn heard_leader(&self) -> bool {
        self.heard.leader_ms.load(Ordering::Relaxed) > 0
    }

    /// Another node stands for election with this node's help, or has just been asked to: it must be left alone.
    pub fn election_under_way(&self) -> bool {
        self.heard.election_under_way()
    }

    pub(super) async fn vote(&self, from: u64, request: proto::VoteRequest) -> Result<proto::VoteResponse, String> {
        let pre_vote = request.pre_vote;
        let mut request = wire::ask_vote_in(request)?;
        let (vote, last) = self
            .raft
            .with_raft_state(|state| (*state.vote_ref(), state.log_ids.last().copied()))
            .await
            .map_err(|e| e.to_string())?;
        let leader = vote.leader_id.node_id;
        let gone = if !vote.committed || leader == from {
            true
        } else if leader == self.node {
            // This node leads, or did when it stopped.
            let metrics = self.raft.metrics();
            let metrics = metrics.borrow_watched();
            let acked = metrics.last_quorum_acked.map(|at| at.elapsed());
            metrics.state != ServerState::Leader || acked.is_none_or(|acked| acked > self.election_timeout)
        } else {
            self.leader_gone() || !self.transport.alive(leader)
        };
        if pre_vote {
            let free = gone && (leader == from || !self.election_under_way());
            let granted = free && request.last_log_id >= last && request.vote.leader_id.term > vote.leader_id.term;
            if free && request.last_log_id < last {
                self.heard.leader_wanted.store(true, Ordering::Relaxed);
            }
            let vote = Some(wire::vote_out(&vote));
            return Ok(proto::VoteResponse { vote, last: last.as_ref().map(wire::position_out), granted });
        }
        // The lease of a leader that is known to be gone binds nobody.
        request.leadership_transfer |= gone;
        let response = self.raft.vote(request).await.map_err(|e| e.to_string())?;
        if response.vote_granted {
            self.heard.candidate();
        }
        Ok(wire::voted_out(&response))
    }

    /// Enough voters are alive for somebody to be elected. Without them thousands of groups would ask in vain.
    fn majority_alive(&self) -> bool {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        metrics.membership_config.membership().get_joint_config().iter().all(|config| {
            let alive = config.iter().filter(|id| **id == self.node || self.transport.alive(**id));
            alive.count() > config.len() / 2
        })
    }

    /// Asks the voters whether they would elect this node, and stands for election if a majority would. Answers whether it
    /// did, once somebody leads or the votes have had 200 ms to arrive; who leads then shows in [`Group::roles`].
    ///
    /// One at a time: a second election would make void the votes that are on their way for the first. Whoever calls
    /// meanwhile hears `false` at once.
    ///
    /// # Errors
    /// When the group has stopped.
    pub async fn campaign(&self) -> Result<bool, GroupError> {
        let Ok(_one) = self.campaigning.try_lock() else { return Ok(false) };
        if !self.majority_alive() {
            return Ok(false);
        }
        let (vote, last, configs) = self
            .raft
            .with_raft_state(|state| {
                let membership = state.membership_state.effective().membership().clone();
                (*state.vote_ref(), state.log_ids.last().copied(), membership.get_joint_config().clone())
            })
            .await
            .map_err(|e| self.fatal(e))?;
        if !configs.iter().any(|config| config.contains(&self.node)) {
            return Ok(false);
        }
        let mut granted = BTreeSet::from([self.node]);
        let enough = |granted: &BTreeSet<u64>| {
            configs.iter().all(|config| config.intersection(granted).count() > config.len() / 2)
        };
        if !enough(&granted) {
            let ask = proto::VoteRequest {
                vote: Some(proto::Vote { term: vote.leader_id.term + 1, node: self.node, committed: false }),
                last: last.as_ref().map(wire::position_out),
                leadership_transfer: false,
                pre_vote: true,
            };
            let others: BTreeSet<u64> = configs.iter().flatten().copied().filter(|id| *id != self.node).collect();
            let mut answers: FuturesUnordered<_> = others
                .into_iter()
                .map(|id| {
                    let answer = self.transport.ask(id, self.id, Message::Vote(ask), PRE_VOTE_TIMEOUT);
                    async move { (id, answer.await) }
                })
                .collect();
            while let Some((id, answer)) = answers.next().await {
                match answer {
                    Ok(Message::VoteDone(done)) if done.granted => {
                        granted.insert(id);
                    }
                    Ok(_) => {}
                    Err(error) => tracing::debug!(group = %self.id, %error, "no pre-vote"),
                }
                if enough(&granted) {
                    break;
                }
            }
        }
        if !enough(&granted) {
            return Ok(false);
        }
        let now = self.raft.with_raft_state(|state| *state.vote_ref()).await.map_err(|e| self.fatal(e))?;
        if now != vote || self.election_under_way() {
            // Somebody else was faster.
            return Ok(false);
        }
        self.metrics.election();
        self.raft.trigger().elect(false).await.map_err(|e| self.fatal(e))?;
        let term = vote.leader_id.term;
        let decided = self.raft.wait(Some(VOTE_PATIENCE));
        // No votes in time is an outcome, too.
        let _ = decided.metrics(|m| m.current_term > term && m.current_leader.is_some(), "election").await;
        Ok(true)
    }

    /// Answers a leader that hands leadership over, to this node or to another.
    pub(super) async fn take_over(&self, request: proto::TransferRequest) -> Message {
        let from = match wire::vote_in(request.from) {
            Ok(vote) => vote,
            Err(why) => return Message::Refused(why),
        };
        if request.to != self.node {
            self.heard.candidate();
        }
        let request = TransferLeaderRequest::new(from, request.to, request.last.map(wire::position_in));
        match self.raft.handle_transfer_leader(request).await {
            Ok(outcome) => {
                let error = outcome.err().map(|e| e.to_string()).unwrap_or_default();
                Message::TransferDone(proto::TransferResponse { error })
            }
            Err(error) => Message::Refused(error.to_string()),
        }
    }

    /// Hands leadership to another voter and waits until it leads. Nothing may be proposed meanwhile.
    ///
    /// # Errors
    /// When it does not lead within the election timeout; somebody else may, or an election follows.
    pub async fn transfer(&self, to: u64) -> Result<(), GroupError> {
        // openraft lets go of a leadership that it hands over whatever comes of it: the other one must be able to take it.
        let until = Instant::now() + TRANSFER_PATIENCE;
        let term = loop {
            let status = self.status();
            let complete = status.matched.get(&to).copied().flatten() >= status.last;
            let able = status.voters.contains(&to) && self.transport.alive(to);
            if able && complete {
                break status.term;
            }
            if !able || Instant::now() >= until {
                let reason = format!("transfer to node {to}: it does not vote, is not alive, or is behind");
                return Err(GroupError::Raft { group: self.id, reason });
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        self.heard.resigned.store(term, Ordering::Relaxed);
        self.heard.candidate();
        self.raft.trigger().transfer_leader(to).await.map_err(|e| self.fatal(e))?;
        let failed =
            |reason: String| GroupError::Raft { group: self.id, reason: format!("transfer to node {to}: {reason}") };
        let led = self
            .raft
            .wait(Some(self.election_timeout))
            .metrics(|metrics| metrics.current_term > term && metrics.current_leader.is_some(), "leadership transfer")
            .await
            .map_err(|e| failed(e.to_string()))?;
        match led.current_leader {
            Some(leader) if leader == to => Ok(()),
            other => Err(failed(format!("node {} leads", other.unwrap_or_default()))),
        }
    }
}
