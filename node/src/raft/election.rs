//! Elections, leadership transfers, and detection of a failed leader.
//!
//! Invariants:
//! - A follower grants a vote against a leader only when it considers the leader failed ([`RaftGroup::leader_gone`]), and no
//!   vote within the lease of a leader that it has acknowledged (`lease.rs`).
//! - A replica whose log may have lost its end votes for no shorter log, and is no candidate (`doubt.rs`).
//! - A replica becomes a candidate only after a majority has granted a pre-vote (Raft dissertation, section 9.6), and
//!   not while another candidate has just got this node's vote: its own election would invalidate that one before it
//!   completes.

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

use super::group::{RaftGroup, RaftGroupError};
use super::state_machine::Machine;
use super::wire;

/// Longest wait for the next leader to have every entry.
const TRANSFER_PATIENCE: Duration = Duration::from_millis(500);
/// Longest wait for the responses to a pre-vote.
const PRE_VOTE_TIMEOUT: Duration = Duration::from_millis(500);
/// Longest wait for votes before this replica may start another election: longer than a message and a flush take both
/// ways, short compared with a fail-over.
const VOTE_PATIENCE: Duration = Duration::from_millis(200);

impl<M: Machine> RaftGroup<M> {
    /// Marks the leader as failed.
    pub fn lose_leader(&self) {
        self.heard.leader_lost.store(true, Ordering::Relaxed);
    }

    /// Whether no message from a leader arrived for the election timeout, or the leader is marked as failed.
    pub fn leader_gone(&self) -> bool {
        self.heard.leader_lost.load(Ordering::Relaxed) || self.silent_for() > self.election_timeout
    }

    /// Whether, since the last call, another replica requested a pre-vote and was rejected because its log is shorter
    /// than this one.
    pub fn take_leader_wanted(&self) -> bool {
        self.heard.leader_wanted.swap(false, Ordering::Relaxed)
    }

    /// Returns the time since the last message from a leader.
    pub fn silent_for(&self) -> Duration {
        // Saturates: another thread may have recorded a later message since the clock was read.
        Duration::from_millis(self.heard.now_ms().saturating_sub(self.heard.leader_ms.load(Ordering::Relaxed)))
    }

    /// Whether a message from a leader has arrived since the group started.
    pub fn heard_leader(&self) -> bool {
        self.heard.leader_ms.load(Ordering::Relaxed) > 0
    }

    /// Whether another node is a candidate with this node's vote, or was just requested to take over: this node must
    /// not start an election then.
    pub fn election_under_way(&self) -> bool {
        self.heard.election_under_way()
    }

    /// Whether this replica must not become a candidate yet, because it has just acknowledged a message of a leader.
    pub fn promised(&self) -> bool {
        self.promise.binds_itself(self.node, self.alone())
    }

    /// Whether this replica is the only voter.
    fn alone(&self) -> bool {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        metrics.membership_config.membership().voter_ids().eq([self.node])
    }

    pub(super) async fn vote(&self, from: u64, request: proto::VoteRequest) -> Result<proto::VoteResponse, String> {
        let pre_vote = request.pre_vote;
        let mut request = wire::ask_vote_in(request)?;
        // Until the vote is decided, no acknowledgement leaves.
        let mut promised = self.promise.lock().await;
        let (vote, last, leads) = self
            .raft
            .with_raft_state(|state| {
                let leads = state.server_state == ServerState::Leader && state.vote_ref().committed;
                (*state.vote_ref(), state.log_ids.last().copied(), leads)
            })
            .await
            .map_err(|e| e.to_string())?;
        let own = proto::VoteResponse {
            vote: Some(wire::vote_out(&vote)),
            last: last.as_ref().map(wire::position_out),
            granted: false,
            leads,
        };
        let ballot = (request.vote.leader_id.term, request.vote.leader_id.node_id);
        let authorised = request.leadership_transfer && ballot.0 > vote.leader_id.term;
        if (!authorised && promised.binds(from)) || self.doubt.bars(request.last_log_id.as_ref()) {
            return Ok(own);
        }
        let leader = vote.leader_id.node_id;
        let gone = if !vote.committed || leader == from {
            true
        } else if leader == self.node {
            // This node leads, or led when it stopped.
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
            return Ok(proto::VoteResponse { granted, ..own });
        }
        // The lease of a failed leader does not restrict votes.
        request.leadership_transfer = authorised || gone;
        let response = self.raft.vote(request).await.map_err(|e| e.to_string())?;
        if response.vote_granted {
            promised.grant(ballot);
            self.heard.candidate();
        }
        Ok(wire::voted_out(&response))
    }

    /// Whether enough voters are alive for an election to succeed. Without this check, thousands of groups would send
    /// useless requests.
    fn majority_alive(&self) -> bool {
        self.has_majority(|id| self.transport.alive(id))
    }

    /// Whether this node and the nodes for which `able` is true are a majority of the voters; during a change of membership, of the
    /// old and of the new ones.
    pub fn has_majority(&self, able: impl Fn(u64) -> bool) -> bool {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        metrics.membership_config.membership().get_joint_config().iter().all(|config| {
            let able = config.iter().filter(|id| **id == self.node || able(**id));
            able.count() > config.len() / 2
        })
    }

    /// Requests a pre-vote from the voters, and starts an election if a majority grants it. Returns whether it started
    /// one, once a leader is known or 200 ms have passed; [`RaftGroup::roles`] shows the result.
    ///
    /// One at a time: a second election would invalidate the votes in flight for the first. A concurrent call returns
    /// `false` at once, as does one within the lease of a leader that this replica has acknowledged, and one of a replica
    /// whose log is in doubt, once the other replicas have been asked.
    ///
    /// # Errors
    /// When the group has stopped.
    pub async fn campaign(&self) -> Result<bool, RaftGroupError> {
        let Ok(_one) = self.campaigning.try_lock() else { return Ok(false) };
        if !self.settle_doubt().await? {
            return Ok(false);
        }
        if self.promised() || !self.majority_alive() {
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
                    Err(error) => tracing::debug!(group = %self.id, %error, "pre-vote failed"),
                }
                if enough(&granted) {
                    break;
                }
            }
        }
        if !enough(&granted) {
            return Ok(false);
        }
        let mut promised = self.promise.lock().await;
        let now = self.raft.with_raft_state(|state| *state.vote_ref()).await.map_err(|e| self.fatal(e))?;
        if now != vote || self.election_under_way() || promised.binds_itself(self.node, self.alone()) {
            // Another replica was faster, or the leader is back.
            return Ok(false);
        }
        self.metrics.election();
        // Its own vote is a vote too. Recorded first, since openraft takes it some time after the call.
        promised.grant((vote.leader_id.term + 1, self.node));
        self.raft.trigger().elect(false).await.map_err(|e| self.fatal(e))?;
        drop(promised);
        let term = vote.leader_id.term;
        let decided = self.raft.wait(Some(VOTE_PATIENCE));
        // A timeout is an expected outcome.
        let _ = decided.metrics(|m| m.current_term > term && m.current_leader.is_some(), "election").await;
        Ok(true)
    }

    /// Handles a leader's request to transfer leadership, to this node or to another.
    pub(super) async fn take_over(&self, request: proto::TransferRequest) -> Message {
        let from = match wire::vote_in(request.from) {
            Ok(vote) => vote,
            Err(why) => return Message::Refused(why),
        };
        if request.to != self.node {
            self.heard.candidate();
        } else if self.doubt().is_some() {
            let error = "the end of its log is in doubt".into();
            return Message::TransferDone(proto::TransferResponse { error });
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

    /// Transfers leadership to another voter and waits until that voter leads. The caller must not propose during the
    /// transfer.
    ///
    /// # Errors
    /// When the voter does not lead within the election timeout. Another node may lead then, or an election follows.
    pub async fn transfer(&self, to: u64) -> Result<(), RaftGroupError> {
        // openraft gives up leadership whether or not the transfer succeeds, so the target must be able to take over
        // first.
        let until = Instant::now() + TRANSFER_PATIENCE;
        let term = loop {
            let status = self.status();
            let complete = status.matched.get(&to).copied().flatten() >= status.last;
            let able = status.voters.contains(&to) && self.transport.alive(to);
            if able && complete {
                break status.term;
            }
            if !able || Instant::now() >= until {
                let reason = format!("transfer to node {to}: must be a voter, alive and caught up");
                return Err(RaftGroupError::Raft { group: self.id, reason });
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        self.heard.resigned.store(term, Ordering::Relaxed);
        self.heard.candidate();
        self.raft.trigger().transfer_leader(to).await.map_err(|e| self.fatal(e))?;
        let failed = |reason: String| RaftGroupError::Raft {
            group: self.id,
            reason: format!("transfer to node {to}: {reason}"),
        };
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
