//! A client that commits offsets of a group, and others that read them from every node: what was committed is never denied or undone.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Result, ensure};
use chronicle_proto::v1;
use chronicle_proto::v1::groups_client::GroupsClient;
use chronicle_tests::api;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tonic::Status;

use super::{ANSWER, CALL_EVERY};

/// The newest commit that was acknowledged.
#[derive(Debug, Default, Clone)]
struct Committed {
    group: String,
    offset: i64,
}

/// What the clients know. There is one committer, so that the offsets of a group only grow.
#[derive(Debug, Default)]
pub(super) struct Commits {
    newest: parking_lot::Mutex<Committed>,
    pub(super) acknowledged: AtomicU64,
    /// Reads that were answered with offsets.
    pub(super) answered: AtomicU64,
}

/// Calls a coordinator. `None`: no answer.
async fn ask<T>(
    address: SocketAddr,
    call: impl AsyncFnOnce(GroupsClient<tonic::transport::Channel>) -> Result<T, Status>,
) -> Option<Result<T, Status>> {
    let ask = async {
        let channel = api::connect(address).await.ok()?;
        Some(call(GroupsClient::new(channel)).await)
    };
    tokio::time::timeout(ANSWER, ask).await.ok()?
}

/// Commits ever higher offsets until `stop`. After an answer that leaves the outcome open it goes on with a new group: such a commit
/// may still be carried out, after those behind it.
async fn commit(
    nodes: Vec<SocketAddr>,
    topic: &'static str,
    commits: Arc<Commits>,
    stop: watch::Receiver<bool>,
) -> Result<()> {
    let (mut group, mut coordinator, mut offset) = (0, 0, 0);
    while !*stop.borrow() {
        offset += 1;
        let name = format!("group-{group}");
        let stored = v1::GroupOffset { topic: topic.into(), partition: 0, offset, metadata: String::new() };
        let request = v1::CommitOffsetsRequest { group: name.clone(), offsets: vec![stored], ..Default::default() };
        match ask(nodes[coordinator], async |mut groups| groups.commit_offsets(request).await).await {
            Some(Ok(_)) => {
                *commits.newest.lock() = Committed { group: name, offset };
                commits.acknowledged.fetch_add(1, Ordering::Relaxed);
            }
            Some(Err(status)) if api::reason(&status) == "NOT_LEADER" => coordinator = (coordinator + 1) % nodes.len(),
            Some(Err(_)) | None => {
                coordinator = (coordinator + 1) % nodes.len();
                group += 1;
            }
        }
        tokio::time::sleep(CALL_EVERY).await;
    }
    Ok(())
}

/// Reads the newest commit through one node.
async fn fetch(node: SocketAddr, commits: Arc<Commits>) -> Result<()> {
    let Committed { group, offset } = commits.newest.lock().clone();
    if group.is_empty() {
        return Ok(());
    }
    let request = v1::FetchOffsetsRequest { group: group.clone(), partitions: Vec::new() };
    match ask(node, async |mut groups| groups.fetch_offsets(request).await).await {
        Some(Ok(answer)) => {
            let found = answer.into_inner().offsets;
            let enough = found.iter().any(|found| found.offset >= offset);
            ensure!(enough, "{node}: {offset} was committed for {group}, and {found:?} is there");
            commits.answered.fetch_add(1, Ordering::Relaxed);
        }
        Some(Err(status)) => {
            ensure!(
                api::reason(&status) != "UNKNOWN_GROUP",
                "{node}: {offset} was committed for {group}, and is denied: {status:?}"
            );
        }
        None => {}
    }
    Ok(())
}

/// Commits and reads until `stop`.
pub(super) async fn commit_and_fetch(
    nodes: Vec<SocketAddr>,
    topic: &'static str,
    commits: Arc<Commits>,
    stop: watch::Receiver<bool>,
) -> Result<()> {
    let committing = tokio::spawn(commit(nodes.clone(), topic, commits.clone(), stop.clone()));
    let mut reads = JoinSet::new();
    while !*stop.borrow() {
        for node in &nodes {
            reads.spawn(fetch(*node, commits.clone()));
        }
        // Each call makes a connection.
        tokio::time::sleep(5 * CALL_EVERY).await;
        while let Some(ended) = reads.try_join_next() {
            ended??;
        }
    }
    while let Some(ended) = reads.join_next().await {
        ended??;
    }
    committing.await?
}
