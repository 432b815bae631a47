//! Changes the members of a partition's group to the target placement; runs on the leader.
//!
//! Only towards a placement that is confirmed to be current. One change at a time: a new replica becomes a learner once its log is
//! filled; when it has caught up, the voters are changed by joint consensus. After a change of leader, the next step is derived from
//! the log.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use chronicle_proto::internal::group_request::Ask;

use super::open::Partition;
use super::segment_ends::may_propose_control;
use crate::cluster::member;
use crate::raft::RaftGroupError;

/// Entries that a learner may lack and still become a voter: it receives them while the change commits.
const NEARLY: u64 = 64;
/// How long one round waits for a learner to catch up before the target placement is read again.
const ROUND: Duration = Duration::from_secs(2);

/// One round. The next round retries what could not be done yet.
pub(super) async fn reconcile(partition: &Arc<Partition>) {
    if let Err(error) = round(partition).await {
        tracing::debug!(partition = %partition.id(), error, "members are not at the target placement yet");
    }
}

pub(super) async fn round(partition: &Arc<Partition>) -> Result<(), String> {
    let env = &partition.env;
    let group = partition.group();
    let text = |e: RaftGroupError| e.to_string();
    let target = || -> Option<BTreeSet<u64>> {
        env.cluster.placement(partition.id()).map(|placement| placement.replicas.into_iter().collect())
    };
    let Some(mut wanted) = target() else { return Ok(()) };
    let status = group.status();
    if status.joint || status.voters != wanted || !status.learners.is_subset(&wanted) {
        env.confirm_metadata().await?;
        let Some(confirmed) = target() else { return Ok(()) };
        wanted = confirmed;
    }
    if !status.membership_committed {
        return Err("the last change is not committed yet".into());
    }
    for id in wanted.iter().filter(|id| !status.voters.contains(id) && !status.learners.contains(id)) {
        // To a replica that is filling, raft would only send the entries that it copies anyway.
        let answer = env.cluster.ask(partition.id(), *id, Ask::Status(true)).await?;
        if answer.state != crate::cluster::ACTIVE {
            return Err(format!("node {id} is {}", answer.state));
        }
        // An earlier release would refuse the log as soon as it has a control entry.
        if may_propose_control(env, group, &partition.shared) && !env.cluster.knows_control_entries(*id) {
            return Err(format!("node {id} is not alive, or runs an earlier release, which cannot read the log"));
        }
        group.add_learner(*id, member(env.cluster.state().nodes.get(id))).await.map_err(text)?;
        tracing::info!(partition = %partition.id(), node = id, "learner added");
    }
    let until = tokio::time::Instant::now() + ROUND;
    loop {
        let status = group.status();
        if !status.is_leader {
            return Err("leadership has moved".into());
        }
        let last = status.last.unwrap_or(0);
        let lags = |id: &u64| {
            *id != env.cluster.node() && status.matched.get(id).copied().flatten().is_none_or(|at| at + NEARLY < last)
        };
        // A current voter may be dead: a majority of the new voters must have caught up.
        let missing = wanted.iter().find(|id| !status.voters.contains(id) && lags(id));
        let few = wanted.iter().filter(|id| !lags(id)).count() <= wanted.len() / 2;
        let behind = missing.or_else(|| wanted.iter().find(|id| few && lags(id)));
        match behind {
            None => break,
            Some(id) if tokio::time::Instant::now() >= until => return Err(format!("node {id} lags behind")),
            Some(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
    let status = group.status();
    if status.voters != wanted || status.joint {
        group.change_voters(wanted.clone()).await.map_err(text)?;
        tracing::info!(partition = %partition.id(), voters = ?wanted, "voters changed");
    }
    let left: BTreeSet<u64> = group.status().learners.difference(&wanted).copied().collect();
    if !left.is_empty() {
        group.remove_learners(left).await.map_err(text)?;
    }
    let status = group.status();
    if !status.membership_committed || status.voters != wanted {
        return Err("the change is not committed yet".into());
    }
    env.report_voters(partition.id(), wanted.into_iter().collect(), status.membership_index).await
}
