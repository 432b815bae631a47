//! Settles the doubt of a replica about the end of its log: asks the other replicas for their last entries. What settles it, and
//! why, is in `doubt.rs`.
//!
//! Neighbours: `cluster/watcher.rs` drives it at each tick of a group, and `election.rs` before this replica stands for election.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use chronicle_proto::internal as proto;
use chronicle_proto::internal::raft_frame::Message;
use futures::future::join_all;
use tokio::time::Instant;

use super::doubt::{Evidence, TailDoubt};
use super::group::{RaftGroup, RaftGroupError};
use super::state_machine::Machine;
use super::type_config::{RaftLogId, RaftVote};
use super::wire;

/// Longest wait for the answer of another replica.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(500);
/// Interval of the warnings while a replica stays in doubt.
const SAY_EVERY: Duration = Duration::from_secs(60);

/// What a replica knows of its group.
struct Standing {
    vote: RaftVote,
    last: Option<RaftLogId>,
    /// The other replicas whose answers settle the doubt together.
    others: BTreeSet<u64>,
    /// There is no other replica.
    alone: bool,
}

impl<M: Machine> RaftGroup<M> {
    /// What this replica may have lost from the end of its log; `None`: it is not in doubt.
    pub fn doubt(&self) -> Option<TailDoubt> {
        self.doubt.now()
    }

    /// Settles the doubt about the end of this replica's log, if that is possible now; asks the other replicas that are alive.
    /// Returns whether there is none any more. A call while another one runs returns `false` at once.
    ///
    /// # Errors
    /// When the group has stopped, or its log or the journal has failed.
    pub async fn settle_doubt(&self) -> Result<bool, RaftGroupError> {
        if self.doubt().is_none() {
            return Ok(true);
        }
        let Ok(mut evidence) = self.doubt.evidence.try_lock() else { return Ok(false) };
        // Two rounds of answers, and a look at the floor that results.
        for _ in 0..3 {
            let Some(doubt) = self.doubt() else { return Ok(true) };
            let standing = self.standing().await?;
            if let Some(by) = self.settled_by(&doubt, &standing, &mut evidence).await? {
                self.doubt.settle().await?;
                match standing.alone {
                    true => tracing::warn!(
                        group = %self.id, from = doubt.from, to = doubt.to(),
                        "the end of the log was cut when it was opened, and no other replica has a copy: \
                         records that were acknowledged just before the crash may be missing"
                    ),
                    false => tracing::info!(group = %self.id, by, "the end of the log is not in doubt any more"),
                }
                return Ok(true);
            }
            let follows = evidence.leader.is_some_and(|(vote, _)| self.transport.alive(vote.leader_id.node_id));
            if (follows && !self.leader_gone()) || !self.ask_round(&standing, &mut evidence).await? {
                break;
            }
        }
        let now = Instant::now();
        if let Some(doubt) = self.doubt()
            && now >= evidence.say_at
        {
            evidence.say_at = now + SAY_EVERY;
            let others = self.standing().await?.others;
            tracing::warn!(
                group = %self.id, from = doubt.from, to = doubt.to(), ?others,
                "the end of the log is in doubt: this replica elects no leader with a shorter log, and waits for one \
                 that leads, or for all of these nodes"
            );
        }
        Ok(false)
    }

    async fn standing(&self) -> Result<Standing, RaftGroupError> {
        let me = self.node;
        let read = self.raft.with_raft_state(move |state| {
            let membership = state.membership_state.effective().membership().clone();
            let mut others: BTreeSet<u64> = membership.voter_ids().filter(|id| *id != me).collect();
            // A single voter may have lost the entry that made a learner a voter.
            if membership.voter_ids().eq([me]) {
                others.extend(membership.learner_ids());
            }
            let alone = others.is_empty() && membership.voter_ids().eq([me]);
            Standing { vote: *state.vote_ref(), last: state.log_ids.last().copied(), others, alone }
        });
        read.await.map_err(|e| self.fatal(e))
    }

    /// What settles the doubt, if something does.
    async fn settled_by(
        &self,
        doubt: &TailDoubt,
        standing: &Standing,
        evidence: &mut Evidence,
    ) -> Result<Option<&'static str>, RaftGroupError> {
        if standing.alone {
            return Ok(Some("the only replica"));
        }
        if standing.last >= Some(doubt.floor()) {
            return Ok(Some("its length"));
        }
        evidence.leader.take_if(|(vote, _)| *vote != standing.vote);
        match evidence.leader {
            Some((_, last)) if self.doubt.holds(last).await? => Ok(Some("the leader")),
            _ => Ok(None),
        }
    }

    /// Asks the others that are alive for their last entries. Returns whether something may have changed by that.
    async fn ask_round(&self, standing: &Standing, evidence: &mut Evidence) -> Result<bool, RaftGroupError> {
        let answers = self.ask_for_last(standing).await;
        for (id, answer) in &answers {
            let leads = answer.leads && wire::vote_in(answer.vote).is_ok_and(|vote| vote == standing.vote);
            if leads
                && standing.vote.leader_id.node_id == *id
                && let Some(last) = answer.last
            {
                evidence.leader = Some((standing.vote, wire::position_in(last)));
            }
        }
        let all = !standing.others.is_empty() && standing.others.iter().all(|id| answers.contains_key(id));
        if !all {
            evidence.round = None;
            return Ok(evidence.leader.is_some());
        }
        let greatest = answers.values().map(|answer| answer.last.map(wire::position_in)).max().flatten();
        if let Some(before) = evidence.round.replace(greatest) {
            self.lower_floor(before.max(greatest)).await?;
        }
        Ok(true)
    }

    async fn ask_for_last(&self, standing: &Standing) -> BTreeMap<u64, proto::VoteResponse> {
        let leader = standing.vote.leader_id.node_id;
        let mut asked = standing.others.clone();
        if standing.vote.committed && leader != self.node {
            asked.insert(leader);
        }
        // A pre-vote in the present term: never granted where it matters, it writes nothing, and every release answers it with its
        // last entry.
        let ask = proto::VoteRequest {
            vote: Some(proto::Vote { term: standing.vote.leader_id.term, node: self.node, committed: false }),
            last: standing.last.as_ref().map(wire::position_out),
            leadership_transfer: false,
            pre_vote: true,
        };
        let alive = asked.into_iter().filter(|id| self.transport.alive(*id));
        let answers = join_all(alive.map(|id| async move {
            match self.transport.ask(id, self.id, Message::Vote(ask), ANSWER_TIMEOUT).await {
                Ok(Message::VoteDone(done)) => Some((id, done)),
                _ => None,
            }
        }));
        answers.await.into_iter().flatten().collect()
    }

    /// All other voters have answered, the longest of them with `greatest`: nothing after that was committed with this replica.
    async fn lower_floor(&self, greatest: Option<RaftLogId>) -> Result<(), RaftGroupError> {
        let Some(doubt) = self.doubt() else { return Ok(()) };
        let floor = greatest.map_or((0, 0, 0), |id| (id.leader_id.term, id.leader_id.node_id, id.index));
        if floor < doubt.floor {
            self.doubt.put(Some(TailDoubt { floor, ..doubt })).await?;
        }
        Ok(())
    }
}
