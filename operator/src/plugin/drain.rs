//! `drain`: transfers the leadership of a node and waits for the end of the transfer, so that its pod can be deleted or evicted without
//! a gap in service.
//!
//! This is the only command that changes something. The drain ends with the next start of the node, or with `--undo`.

use std::io::Write;
use std::time::Duration;

use kube::ResourceExt;
use tokio::time::{Instant, sleep};

use super::duration::duration;
use super::error::PluginError;
use super::session::Session;
use crate::api::MemberState;
use crate::build::{ordinal_of, pod_name};
use crate::plan::gates::{cluster_is_whole, quorum_without};
use crate::plan::{ClusterView, NodeView};

/// Poll interval of the progress.
const POLL: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, clap::Args)]
pub(super) struct DrainArgs {
    /// Name of the ChronicleCluster.
    pub(super) name: String,
    /// Pod of the node to drain.
    pub(super) pod: String,
    /// Longest wait, such as 30s or 5m. The drain itself continues after that.
    #[arg(long, default_value = "2m", value_parser = duration, value_name = "TIME")]
    pub(super) timeout: Duration,
    /// Undo a drain: let the node lead again. Does not wait.
    #[arg(long)]
    pub(super) undo: bool,
}

pub(super) async fn run(session: &Session, args: &DrainArgs, out: &mut dyn Write) -> Result<(), PluginError> {
    let DrainArgs { name, pod, .. } = args;
    let cluster = session.cluster(name).await?;
    let status = cluster.status.clone().unwrap_or_default();
    let size = status.size.unwrap_or(cluster.spec.replicas);
    if ordinal_of(&cluster.name_any(), pod).is_none_or(|ordinal| ordinal >= size.max(cluster.spec.replicas)) {
        let known = (0..size).map(|ordinal| pod_name(name, ordinal)).collect();
        return Err(PluginError::NoPod { pod: pod.clone(), cluster: name.clone(), known });
    }
    if let Some(operation) = status.operation.filter(|operation| operation.target == *pod) {
        let (kind, step) = (operation.kind, operation.step);
        return Err(PluginError::Refused(format!(
            "the operator is running {kind:?} of {pod}, step {step:?}, and drains the node itself if needed; wait for it to finish \
             (kubectl chronicle status {name})"
        )));
    }
    let (target, nodes) = (session.target(&cluster).await?, session.nodes(name));
    let view = nodes.observe(&target).await?;
    let node = member(&view, pod)?;
    let node_id = node.node_id.clone();
    if args.undo {
        nodes.undrain(&target, &node_id).await?;
        return print_line(out, &format!("{pod} may lead again"));
    }
    match (node.state, node.alive) {
        (_, false) => return Err(PluginError::Refused(format!("no heartbeat from {pod}: it leads nothing"))),
        (MemberState::Decommissioning, _) => {
            return Err(PluginError::Refused(format!(
                "{pod} is being decommissioned, which also moves its leadership"
            )));
        }
        (MemberState::Draining, _) => print_line(out, &format!("{pod} is already draining or drained"))?,
        (MemberState::Active, _) => {
            if view.nodes.iter().filter(|node| node.alive && node.state == MemberState::Active).count() < 2 {
                return Err(PluginError::Refused(format!(
                    "no other node is alive and active to take over the leadership of {pod}"
                )));
            }
            nodes.drain(&target, &node_id).await?;
            print_line(out, &format!("draining {pod}: transferring its leadership"))?;
        }
    }
    let begun = Instant::now();
    let mut printed = String::new();
    loop {
        let left = match nodes.observe(&target).await {
            Ok(view) => {
                let left = what_is_left(&view, &node_id);
                let Some(left) = left else {
                    print_line(out, &format!("{pod} is drained: it leads nothing"))?;
                    return print_line(out, &may_stop_message(&view, pod, size));
                };
                left
            }
            // During an election of the controller group there may be no response.
            Err(error) => format!("no response: {error}"),
        };
        if left != printed {
            print_line(out, &format!("{pod}: {left}"))?;
            printed = left;
        }
        if begun.elapsed() >= args.timeout {
            return Err(PluginError::TimedOut(format!(
                "{pod} is not drained after {} s: {printed}. The drain continues; cancel it with --undo",
                args.timeout.as_secs()
            )));
        }
        sleep(POLL).await;
    }
}

fn member<'a>(view: &'a ClusterView, pod: &str) -> Result<&'a NodeView, PluginError> {
    let named = view.nodes.iter().filter(|node| node.name == pod);
    let node = named.max_by_key(|node| (node.alive, node.raft_id));
    node.ok_or_else(|| PluginError::Refused(format!("{pod} is not a member of the cluster: it leads nothing")))
}

/// Returns what a node still leads; `None`: nothing.
fn what_is_left(view: &ClusterView, node_id: &str) -> Option<String> {
    let node = view.nodes.iter().find(|node| node.node_id == node_id)?;
    if node.state == MemberState::Active {
        return Some("is not draining: the drain has not started, or the node was restarted or undrained".into());
    }
    let running = view.operations.iter().find(|running| running.kind == "drain" && running.node_id == node_id);
    match running {
        Some(running) if running.remaining > 0 && running.reason.is_empty() => {
            Some(format!("still leads {} partitions", running.remaining))
        }
        Some(running) if running.remaining > 0 => {
            Some(format!("still leads {} partitions: {}", running.remaining, running.reason))
        }
        Some(_) => Some("is transferring its leadership".into()),
        None if view.leader.as_deref() == Some(node_id) => Some("still leads the controller group".into()),
        None => None,
    }
}

/// Returns whether the pod may stop now, by the preconditions of the operator.
fn may_stop_message(view: &ClusterView, pod: &str, size: i32) -> String {
    match cluster_is_whole(view).or_else(|| quorum_without(view, pod, size)) {
        None => format!("{pod} can be deleted or evicted now: the other nodes keep a majority"),
        Some(why) => format!("do not delete {pod} yet: {why}"),
    }
}

fn print_line(out: &mut dyn Write, line: &str) -> Result<(), PluginError> {
    writeln!(out, "{line}").and_then(|()| out.flush()).map_err(PluginError::io("standard output"))
}
