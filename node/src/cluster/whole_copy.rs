//! Whether a replica that does not lead holds every entry that may have been acknowledged, so that damaged replicas can fill their logs
//! from it. Needed when so many replicas are damaged that no leader can be elected.
//!
//! # The rule
//!
//! The log of a healthy voter *h* is whole when, for a majority of the voters with *h* among them, it is known at a time after *T* that
//! none of them has held an entry beyond *h*'s last one, compared as raft compares logs in elections: by term, then by index. A healthy
//! voter states its last entry. A damaged one states an upper bound: the term of its vote, and the index up to which its marks, its
//! intact frames and the bytes behind them can have reached (`fill_mark.rs`).
//!
//! # Why
//!
//! Let *e* be an entry that was committed before *T*, in term *t* at index *i*. A majority has stored it, so some voter *q* of the
//! majority above has. The last entry that *q* has held is not before *e*, since raft never removes a committed entry, and not beyond
//! the last entry of *h*: so *h*'s last entry is not before *e* either. If it is of term *t*, it came from the same leader, and by log
//! matching *h* holds everything before it, *e* included. If it is of a later term, its leader held *e* (leader completeness), and so
//! does every log that contains an entry of that leader. This is the argument for raft's elections, with what the damaged voters have
//! held in the place of their logs.
//!
//! Entries that are committed after *T* do not concern the replica that fills its log: it acknowledges nothing, so they are not counted
//! as stored on it. It votes again when its log has all that *h*'s had. If *h* has entries that are never committed, the replica gets these too,
//! as it might have got them from the leader that made them.
//!
//! The voters are those of *h*'s last membership, and it must not be a joint one: a later membership is itself an entry that a majority
//! of these voters must have stored.
//!
//! # Assumptions
//!
//! A log does not lose its end without a trace (docs/disk-format.md, "Recovery"), and a node does not lose its votes: a replica that has
//! (its journal was damaged) states no bound.
//!
//! Without a majority of such statements nothing is known, and a person has to name the source (`decree.rs`).

use std::collections::BTreeSet;

use bytes::Bytes;
use chronicle_log::LogId;
use chronicle_proto::internal as proto;
use chronicle_proto::internal::group_request::Ask;
use futures::future::join_all;

use super::fill_mark::{FillReason, fill_mark, held_at_most, store_fill_pending};
use super::{Cluster, is_declared};
use crate::host::flushed::journal;
use crate::raft::{KEY_VOTE, RaftGroupStatus, stored_term, vote_for};

/// State of a replica whose group runs, in the responses to [`Cluster::ask`].
pub(crate) const ACTIVE: &str = "active";
/// State of a replica whose log is being filled.
pub(crate) const FILLING: &str = "filling";

/// The last entry that a voter has held at most, as (term, index after it).
type AtMost = (u64, u64);

/// What the response of a replica says about the last entry that it has held.
fn at_most(answer: &proto::GroupResponse) -> Result<AtMost, String> {
    match (&answer.last, answer.state.as_str()) {
        // The end of its log is in doubt: it may have held more.
        (Some(last), ACTIVE) => Ok((last.term, last.index + 1).max((answer.held_term, answer.held_end))),
        (None, ACTIVE) if answer.next_index == 0 => Ok((0, 0)),
        (_, FILLING) if answer.held_end > 0 => Ok((answer.held_term, answer.held_end)),
        (_, FILLING) if answer.damaged => Err("is damaged, and does not know up to where it had entries".into()),
        (_, state) => Err(format!("is {state}")),
    }
}

/// Checks the rule. `last`: of the healthy voter; `others`: what every other voter states, or why it does not.
fn is_whole(last: AtMost, voters: usize, others: &[(u64, Result<AtMost, String>)]) -> Result<(), String> {
    let within = others.iter().filter(|(_, held)| held.as_ref().is_ok_and(|held| *held <= last)).count();
    if within + 1 > voters / 2 {
        return Ok(());
    }
    let (term, next) = last;
    let mut why = format!(
        "the log up to term {term}, raft index {next} (exclusive) is not known to be whole: {} of {voters} voters have held no more, \
         must be a majority",
        within + 1
    );
    for (node, held) in others {
        match held {
            Ok(held) if *held <= last => {}
            Ok((term, end)) => {
                why += &format!("; node {node} may have had entries up to term {term}, raft index {end}")
            }
            Err(error) => why += &format!("; node {node} {error}"),
        }
    }
    Err(why)
}

/// Checks that the log of this node's replica, which does not lead, is whole. `status` and `last`: of its group.
///
/// # Errors
/// Why that is not known.
pub(crate) async fn check_whole(
    cluster: &Cluster,
    id: LogId,
    status: &RaftGroupStatus,
    last: Option<proto::LogPosition>,
    from: u64,
) -> Result<(), String> {
    let me = cluster.node();
    if status.joint || !status.voters.contains(&me) || !status.voters.contains(&from) {
        return Err("the voters of the group are changing, or are others".into());
    }
    if status.doubt.is_some() {
        return Err("the end of this log is in doubt itself".into());
    }
    let last = last.map_or((0, 0), |last| (last.term, last.index + 1));
    let others = status.voters.iter().copied().filter(|node| *node != me);
    let asked = others.map(|node| async move {
        let answer = cluster.ask(id, node, Ask::Status(true)).await;
        (node, answer.and_then(|answer| at_most(&answer)))
    });
    is_whole(last, status.voters.len(), &join_all(asked).await)
}

/// The replica to fill a damaged log from when no leader can be found: the one that a person has named, or else the healthy one with the
/// longest log, which checks itself that its log is whole.
pub(crate) async fn source_without_leader(cluster: &Cluster, id: LogId, nodes: &BTreeSet<u64>) -> Option<u64> {
    let asked = nodes.iter().copied().filter(|node| *node != cluster.node() && cluster.alive(*node));
    let asked = asked.map(|node| async move { (node, cluster.ask(id, node, Ask::Status(true)).await) });
    let answers = join_all(asked).await;
    let active = answers.iter().filter_map(|(node, answer)| Some((*node, answer.as_ref().ok()?)));
    let active = active.filter(|(_, answer)| answer.state == ACTIVE && (answer.held_end == 0 || answer.declared));
    let longest = active.max_by_key(|(_, answer)| (answer.declared, at_most(answer).unwrap_or_default()));
    longest.map(|(node, _)| node)
}

/// Completes a response about this node's replica of a group with what the journal has about it.
pub(crate) fn with_marks(cluster: &Cluster, id: LogId, mut answer: proto::GroupResponse) -> proto::GroupResponse {
    answer.damaged = fill_mark(&cluster.store, id).is_some_and(|mark| mark.reason == FillReason::Damaged);
    if let Some(held) = held_at_most(&cluster.store, id) {
        (answer.held_term, answer.held_end) = (held.term, held.end);
    }
    answer.declared = is_declared(&cluster.store, id);
    answer.term = answer.term.max(stored_term(&cluster.store, id));
    answer.votes_lost = fill_mark(&cluster.store, id).is_some_and(|mark| mark.votes_lost);
    answer
}

/// Ends the filling of a log, which is closed: the replica may vote again.
///
/// A replica whose votes are lost first takes up a vote in the highest term that any other voter knows, in which it votes for no candidate
/// then. A candidate for whom it may have voted is a voter that knows its own term, or has been restarted and is no candidate any more.
///
/// # Errors
/// When another voter does not answer; errors of the journal.
pub(crate) async fn complete_fill(cluster: &Cluster, id: LogId, source: u64) -> Result<(), String> {
    let store = &cluster.store;
    if fill_mark(store, id).is_some_and(|mark| mark.votes_lost) {
        let of_source = cluster.ask(id, source, Ask::Status(true)).await?;
        let others: BTreeSet<u64> = of_source.voters.iter().copied().filter(|node| *node != cluster.node()).collect();
        let answers = join_all(others.iter().map(|node| cluster.ask(id, *node, Ask::Status(true)))).await;
        let mut vote = (stored_term(store, id).max(of_source.term), of_source.leader);
        for answer in answers {
            let answer = answer
                .map_err(|why| format!("the votes of this node are lost, and another voter does not answer: {why}"))?;
            if !answer.votes_lost && answer.term > vote.0 {
                vote = (answer.term, 0);
            }
        }
        // In the leader's term it has voted for the leader, in another one for nobody: for itself, who is no candidate.
        let node = if vote.0 == of_source.term && vote.1 != 0 { vote.1 } else { cluster.node() };
        let value: Bytes = vote_for(vote.0, node);
        journal(store, id, KEY_VOTE, value).await.map_err(|error| error.to_string())?;
        tracing::warn!(log = %id, term = vote.0, "votes before this term are lost: this node votes from the next term on");
    }
    store_fill_pending(store, id, None).await.map_err(|error| error.to_string())
}

/// The response about a replica of the controller group that is being repaired, so that its group does not run; `None`: it is not.
pub(crate) fn damaged_response(cluster: &Cluster, id: LogId) -> Option<proto::GroupResponse> {
    let filling = proto::GroupResponse { state: FILLING.into(), ..Default::default() };
    Some(with_marks(cluster, id, filling)).filter(|answer| answer.damaged)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filling(held_term: u64, held_end: u64) -> proto::GroupResponse {
        proto::GroupResponse { state: FILLING.into(), damaged: true, held_term, held_end, ..Default::default() }
    }

    fn active(term: u64, index: u64) -> proto::GroupResponse {
        let last = Some(proto::LogPosition { term, leader: 1, index });
        proto::GroupResponse { state: ACTIVE.into(), last, next_index: index + 1, ..Default::default() }
    }

    fn whole(last: AtMost, others: &[proto::GroupResponse]) -> bool {
        let others: Vec<_> = others.iter().enumerate().map(|(at, answer)| (at as u64 + 2, at_most(answer))).collect();
        is_whole(last, others.len() + 1, &others).is_ok()
    }

    #[test]
    fn a_log_is_whole_when_a_majority_has_held_no_more() {
        // One damaged voter of two that has held no more is enough: an entry that only the other two had would be within its bound.
        assert!(whole((3, 100), &[filling(3, 100), filling(3, 101)]));
        assert!(whole((3, 100), &[filling(3, 100), filling(0, 0)]), "the third need not be known");
        assert!(whole((3, 100), &[active(3, 99), filling(0, 0)]), "nor damaged");
        assert!(whole((4, 10), &[filling(3, 5000), filling(3, 5000)]), "a later term outweighs any length");
    }

    #[test]
    fn a_log_is_not_whole_when_two_others_may_have_acknowledged_more() {
        assert!(!whole((3, 100), &[filling(3, 101), filling(3, 101)]));
        assert!(!whole((3, 100), &[filling(4, 5), active(3, 100)]), "a later term");
        assert!(!whole((3, 100), &[filling(0, 0), filling(0, 0)]), "both know nothing");
        assert!(!whole((3, 100), &[filling(3, 90), filling(3, 101), filling(3, 101), filling(0, 0)]), "two of five");
        assert!(whole((3, 100), &[filling(3, 90), filling(3, 100), filling(3, 101), filling(0, 0)]), "three of five");
    }

    #[test]
    fn a_voter_whose_end_is_in_doubt_may_have_held_more_than_it_has() {
        let in_doubt = proto::GroupResponse { held_term: 3, held_end: 103, ..active(3, 99) };
        assert!(whole((3, 103), &[in_doubt.clone(), filling(3, 104)]));
        assert!(!whole((3, 102), &[in_doubt, filling(3, 104)]));
    }

    #[test]
    fn what_a_replica_does_not_say_is_not_assumed() {
        let failed = proto::GroupResponse { state: "failed: no permission".into(), ..Default::default() };
        assert!(at_most(&failed).is_err());
        let earlier = proto::GroupResponse { state: ACTIVE.into(), next_index: 7, ..Default::default() };
        assert!(at_most(&earlier).is_err(), "a version that does not say its last entry");
        let behind = proto::GroupResponse { state: FILLING.into(), ..Default::default() };
        assert!(at_most(&behind).is_err(), "new, and has no vote");
        assert_eq!(at_most(&active(2, 9)), Ok((2, 10)));
    }
}
