//! Where a replica of a partition that is new, far behind or damaged gets its log from ([`crate::cluster::fill`] copies it).
//!
//! Invariant: the source of a repair is a confirmed leader; without one, in a group of two voters the other voter (`whole_alone` in
//! `pull.rs`), a voter whose log is known to be whole, or the one that a person has declared ([`crate::cluster::check_whole`]).

use std::collections::BTreeSet;
use std::sync::Arc;

use chronicle_log::{Log, LogId};
use chronicle_proto::internal as proto;
use chronicle_proto::internal::group_request::Ask;

use super::environment::Environment;
use crate::cluster::{ACTIVE, FillProgress, FillReason, source_without_leader};

/// Asks the replica on another node to close together with the leader; returns whether it does.
pub(super) async fn ask_close(env: &Environment, id: LogId, node: u64, position: proto::LogPosition) -> bool {
    env.cluster.ask(id, node, Ask::Sleep(position)).await.is_ok_and(|answer| answer.accepted)
}

/// Finds the leader of the group; opens the partition there if it is dormant.
pub(super) async fn find_leader(env: &Environment, id: LogId) -> Result<u64, String> {
    let placement = env.cluster.placement(id).ok_or("the partition was deleted")?;
    let me = env.cluster.node();
    let mut nodes: Vec<u64> = env.cluster.designated(id).into_iter().collect();
    nodes.extend(placement.voters.iter().chain(&placement.replicas));
    let mut asked = BTreeSet::new();
    let mut why = "no other replica is alive".to_owned();
    for node in nodes {
        if node == me || !env.cluster.alive(node) || !asked.insert(node) {
            continue;
        }
        match env.cluster.ask(id, node, Ask::Lead(true)).await {
            Ok(answer) if answer.leader == node => return Ok(node),
            // A replica that has restarted names the leader of before.
            Ok(answer)
                if answer.leader != me && env.cluster.serves(answer.leader, id) && asked.insert(answer.leader) =>
            {
                return Ok(answer.leader);
            }
            Ok(answer) => why = format!("node {node} does not lead ({})", answer.state),
            Err(error) => why = error,
        }
    }
    Err(why)
}

/// Finds the node to fill the log from.
async fn find_source(env: &Environment, id: LogId, reason: FillReason) -> Result<u64, String> {
    if reason == FillReason::Damaged
        && let Some(other) = other_of_two(env, id).await
    {
        return Ok(other);
    }
    let found = find_leader(env, id).await;
    if reason == FillReason::Damaged && found.is_err() {
        let voters = env.cluster.placement(id).map(|placement| placement.voters).unwrap_or_default();
        let source = source_without_leader(&env.cluster, id, &voters.into_iter().collect()).await;
        return source.map_or(found, Ok);
    }
    found
}

/// The other voter of a group of two, when its replica is undamaged and its end not in doubt: the group cannot have a leader while this replica is out of
/// service. The other voter checks the voters again when it receives the request for its log.
async fn other_of_two(env: &Environment, id: LogId) -> Option<u64> {
    let placement = env.cluster.placement(id)?;
    let me = env.cluster.node();
    let other = match placement.voters.as_slice() {
        [a, b] if *a == me => *b,
        [a, b] if *b == me => *a,
        _ => return None,
    };
    let answer = env.cluster.ask(id, other, Ask::Status(true)).await.ok()?;
    let voters: BTreeSet<u64> = answer.voters.into_iter().collect();
    let whole = answer.state == ACTIVE && answer.held_end == 0;
    (whole && voters == BTreeSet::from([me, other])).then_some(other)
}

/// Fills an open log whose group is not running. May be called again after an error: it resumes where the log ends. Returns the node
/// that it was filled from.
pub(super) async fn fill(
    env: &Environment,
    log: &Arc<Log>,
    reason: FillReason,
    progress: &FillProgress,
) -> Result<u64, String> {
    let source = find_source(env, log.id(), reason).await?;
    crate::cluster::fill(&env.cluster, log, source, reason, progress).await.map(|()| source)
}
