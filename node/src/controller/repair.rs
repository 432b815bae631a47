//! Repairs a damaged log of the controller group on this node: cuts the damage out and copies the log from the leader, before the group
//! starts. As for a partition, the mark that the log must be filled is in the journal before anything is cut.
//!
//! The committed metadata is not known here: the peers are those that the node remembers from when it last ran.
//!
//! Neighbours: `cluster/fill.rs` copies; the controller opens its log through [`open_log`].

use std::sync::Arc;
use std::time::Duration;

use chronicle_log::{Log, LogConfig, LogError};
use chronicle_proto::internal::group_request::Ask;

use crate::cluster::{
    CONTROLLER_LOG, Cluster, FillProgress, FillReason, complete_fill, cut_damage, fill, fill_pending,
    source_without_leader,
};
use crate::host::{blocking, jitter};

/// Wait before an interrupted repair is retried.
const RETRY: Duration = Duration::from_millis(500);
/// A failure that repeats is logged once in so many attempts.
const LOG_EVERY: u32 = 20;

/// Opens the controller's log. With other nodes in the cluster, repairs it first if it is damaged: waits for a leader as long as
/// necessary.
///
/// # Errors
/// When the log cannot be opened, or is damaged and this node is the only one.
pub(super) async fn open_log(cluster: &Arc<Cluster>) -> Result<Arc<Log>, LogError> {
    let mut attempts = 0u32;
    loop {
        let log = match open(cluster).await {
            Err(error @ LogError::Damaged { .. }) if !cluster.peers.known_ids().is_empty() => {
                tracing::error!(%error, "controller log is damaged, repairing from another node");
                cut(cluster, None).await?;
                continue;
            }
            opened => opened?,
        };
        if fill_pending(&cluster.store, CONTROLLER_LOG).is_none() {
            return Ok(log);
        }
        let filled = fill_from_leader(cluster, log).await;
        *cluster.controller_repair.lock() = filled.as_ref().err().cloned().unwrap_or_default();
        if let Err(error) = filled {
            if attempts.is_multiple_of(LOG_EVERY) {
                tracing::warn!(error, "cannot repair the controller log yet, retrying: see docs/operations/damage.md");
            }
            attempts += 1;
            tokio::time::sleep(jitter(RETRY)).await;
        }
    }
}

/// Takes damage that a read has found at raft index `from` out of the closed log, so that the next start fills it.
pub(super) async fn cut(cluster: &Cluster, from: Option<u64>) -> Result<(), LogError> {
    let cut = cut_damage(&cluster.store, CONTROLLER_LOG, from).await?;
    tracing::warn!(
        kept_to = cut.next_index, had_to = cut.was, quarantine = ?cut.quarantine,
        "damaged segments of the controller log moved to quarantine"
    );
    Ok(())
}

/// Copies what the log lacks, closes it, and removes the mark that it must be filled.
async fn fill_from_leader(cluster: &Cluster, log: Arc<Log>) -> Result<(), String> {
    let filled = async {
        let source = source(cluster).await?;
        fill(cluster, &log, source, FillReason::Damaged, &FillProgress::default()).await.map(|()| source)
    }
    .await;
    let closed = blocking(move || log.close()).await.map_err(|e| e.to_string())?;
    let source = filled?;
    closed.map_err(|e| e.to_string())?;
    complete_fill(cluster, CONTROLLER_LOG, source).await
}

/// The leader or, without one, the replica that may be whole: it checks that itself.
async fn source(cluster: &Cluster) -> Result<u64, String> {
    let found = leader(cluster).await;
    if found.is_err() {
        let others = cluster.peers.known_ids().into_iter().collect();
        let source = source_without_leader(cluster, CONTROLLER_LOG, &others).await;
        return source.map_or(found, Ok);
    }
    found
}

/// Raft id of the leader of the group, as its replicas on other nodes know it. The leader confirms that when it is asked for its log.
async fn leader(cluster: &Cluster) -> Result<u64, String> {
    let me = cluster.node();
    let mut why = "no other node is alive".to_owned();
    for node in cluster.peers.known_ids() {
        if !cluster.alive(node) {
            continue;
        }
        match cluster.ask(CONTROLLER_LOG, node, Ask::Status(true)).await {
            // A replica that has restarted names the leader of before.
            Ok(answer) if answer.leader != 0 && answer.leader != me && leads(cluster, answer.leader).await => {
                return Ok(answer.leader);
            }
            Ok(_) => why = format!("node {node} knows no leader of the controller group"),
            Err(error) => why = error,
        }
    }
    Err(why)
}

/// Whether a node says of itself that it leads.
async fn leads(cluster: &Cluster, node: u64) -> bool {
    let answer = cluster.ask(CONTROLLER_LOG, node, Ask::Status(true)).await;
    answer.is_ok_and(|answer| answer.leader == node)
}

async fn open(cluster: &Cluster) -> Result<Arc<Log>, LogError> {
    let store = cluster.store.clone();
    let opened = blocking(move || store.open_log(CONTROLLER_LOG, LogConfig::default())).await;
    // The runtime is shutting down.
    opened.unwrap_or(Err(LogError::Closed))
}
