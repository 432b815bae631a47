//! Sends the log of a replica on this node to a replica on another node that fills its log ([`crate::cluster::fill`] is the receiver).

use std::collections::BTreeSet;
use std::sync::Arc;

use chronicle_proto::internal as proto;
use tonic::Status;

use super::environment::Environment;
use super::open::Partition;
use super::replica::Replica;
use crate::cluster::{check_whole, is_declared, send_log};
use crate::model::PartitionError;
use crate::peers::PullStream;
use crate::raft::RaftGroupStatus;

/// Returns whether the replica of `me` is known to hold every entry that may have been acknowledged, without a quorum read: the
/// only other voter is `from`.
///
/// With two voters a majority is both, so every committed entry is in both logs, and a candidate needs the vote of the
/// other voter. That holds from the entry that made the two the voters: it was proposed only after the joint configuration
/// before it, which already needs both, was committed. It does not hold while the voters change: the next configuration may not
/// contain `me`. Nor does it hold for a log that may have lost its end.
fn whole_alone(status: &RaftGroupStatus, me: u64, from: u64) -> bool {
    me != from && !status.joint && status.doubt.is_none() && status.voters == BTreeSet::from([me, from])
}

/// Serves a replica that fills its log. This node must be the leader, which is confirmed with a majority. For a repair it may also be
/// the only other voter or, without a leader, a voter whose log is known to be whole or that a person has declared to be the source.
///
/// # Errors
/// When this node is none of these, or does not have the requested entries any more.
pub(crate) async fn pull(
    env: Arc<Environment>,
    replica: &Arc<Replica>,
    from_node: u64,
    request: proto::PullRequest,
) -> Result<PullStream, Status> {
    let unavailable = |e: String| Status::unavailable(e);
    let partition = replica.get().await.map_err(|e| unavailable(e.to_string()))?;
    if !(request.whole && whole_alone(&partition.group().status(), env.cluster.node(), from_node)) {
        match lead(replica).await {
            Ok(()) => {}
            // Another node leads.
            Err(error @ PartitionError::NotLeader { .. }) => return Err(unavailable(error.to_string())),
            Err(error) if !request.whole => return Err(unavailable(error.to_string())),
            Err(error) => may_send_without_leader(&env, &partition, from_node)
                .await
                .map_err(|why| unavailable(format!("{error}; {why}")))?,
        }
    }
    let (cluster, log) = (env.cluster.clone(), partition.log().clone());
    let held = Box::new(partition.clone());
    send_log(cluster, partition.group(), log, request, held).await
}

/// Makes this node the leader, and confirms it: the replica must receive at least everything that is committed now.
async fn lead(replica: &Arc<Replica>) -> Result<(), PartitionError> {
    replica.lead().await?.read_index().await
}

async fn may_send_without_leader(env: &Environment, partition: &Partition, from: u64) -> Result<(), String> {
    let (group, id) = (partition.group(), partition.id());
    if is_declared(&env.cluster.store, id) {
        tracing::warn!(partition = %id, to = from, "sending the log that a person has declared to be the source");
        return Ok(());
    }
    let last = group.last_position().await;
    check_whole(&env.cluster, id, &group.status(), last, from).await?;
    tracing::warn!(partition = %id, to = from, "no leader is possible: sending this log, which holds all that may have been acknowledged");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_voters(voters: &[u64]) -> RaftGroupStatus {
        RaftGroupStatus { voters: voters.iter().copied().collect(), ..Default::default() }
    }

    #[test]
    fn only_the_other_of_exactly_two_voters_at_target_is_complete_by_itself() {
        assert!(whole_alone(&of_voters(&[1, 2]), 1, 2));
        assert!(whole_alone(&of_voters(&[1, 2]), 2, 1));
        assert!(!whole_alone(&of_voters(&[1, 2]), 1, 3), "the caller does not vote");
        assert!(!whole_alone(&of_voters(&[2, 3]), 1, 2), "this node does not vote");
        assert!(!whole_alone(&of_voters(&[1, 2, 3]), 1, 2), "the third may have acknowledged entries");
        assert!(!whole_alone(&of_voters(&[1]), 1, 1), "a node does not repair itself");
        let changing = RaftGroupStatus { joint: true, ..of_voters(&[1, 2]) };
        assert!(!whole_alone(&changing, 1, 2), "the next voters may not include this node");
    }
}
