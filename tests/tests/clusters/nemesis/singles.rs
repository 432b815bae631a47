//! Clients that append single records and read them through any node: whatever was acknowledged is never denied.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, bail, ensure};
use base64::Engine;
use base64::prelude::BASE64_STANDARD as BASE64;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::{ANSWER, CALL_EVERY, HttpNode, answer};

/// What the clients know: the value of each acknowledged offset.
#[derive(Debug, Default)]
pub(super) struct Acknowledged {
    pub(super) records: parking_lot::RwLock<Vec<(i64, String)>>,
    /// Reads and ends that were answered.
    pub(super) answered: AtomicU64,
    /// Reads by time that were answered.
    pub(super) timed: AtomicU64,
}

impl Acknowledged {
    /// The highest acknowledged offset.
    fn newest(&self) -> Option<i64> {
        self.records.read().iter().map(|(offset, _)| *offset).max()
    }

    /// An acknowledged record: the last one in three of four cases.
    fn any(&self, random: &mut StdRng) -> Option<(i64, String)> {
        let records = self.records.read();
        let last = records.len().checked_sub(1)?;
        let at = if random.random_ratio(3, 4) { last } else { random.random_range(0..=last) };
        records.get(at).cloned()
    }
}

/// Appends one record through a node. An append without an answer is not repeated.
async fn append(node: HttpNode, acknowledged: Arc<Acknowledged>, value: String) -> Result<()> {
    let request = node.http.post(format!("{}/records", node.path)).body(value.clone()).timeout(ANSWER);
    if let Some((200 | 201, answer)) = answer(request).await {
        let offset = answer["offset"].as_i64().or(answer["base_offset"].as_i64());
        acknowledged.records.write().push((offset.with_context(|| format!("no offset in {answer}"))?, value));
    }
    Ok(())
}

/// Asks a node for the end of the log, which is after every offset that was acknowledged before.
async fn read_end(node: HttpNode, acknowledged: Arc<Acknowledged>) -> Result<()> {
    let Some(offset) = acknowledged.newest() else { return Ok(()) };
    let path = node.path;
    match answer(node.http.get(format!("{path}/offsets")).timeout(ANSWER)).await {
        Some((200, ends)) => {
            let next = ends["next"].as_i64().with_context(|| format!("no end in {ends}"))?;
            ensure!(next > offset, "{path}: the log ends at {next} after offset {offset} was acknowledged");
            acknowledged.answered.fetch_add(1, Ordering::Relaxed);
        }
        Some((404, why)) => bail!("{path}: {why} after offset {offset} was acknowledged"),
        // The node cannot answer, or did not.
        Some(_) | None => {}
    }
    Ok(())
}

/// Reads an acknowledged record through a node.
async fn read(node: HttpNode, acknowledged: Arc<Acknowledged>, (offset, value): (i64, String)) -> Result<()> {
    let path = node.path.clone();
    let request = node.http.get(format!("{path}/records?offset={offset}&max_bytes=1")).timeout(ANSWER);
    match answer(request).await {
        Some((200, page)) => {
            let record = &page["records"][0];
            let stored = record["value"].as_str().map(|text| BASE64.decode(text)).transpose()?;
            ensure!(
                record["offset"].as_i64() == Some(offset) && stored.as_deref() == Some(value.as_bytes()),
                "{path}: offset {offset} was acknowledged with {value:?}, and is read as {page}"
            );
            acknowledged.answered.fetch_add(1, Ordering::Relaxed);
            let timestamp = record["timestamp"].as_i64().with_context(|| format!("no timestamp in {page}"))?;
            read_by_time(node, acknowledged, offset, timestamp).await
        }
        Some((404, why)) => bail!("{path}: offset {offset} was acknowledged, and is denied: {why}"),
        Some(_) | None => Ok(()),
    }
}

/// Asks for the first record that is not older than an acknowledged one: it is that one, or one before it. Clocks that jump
/// change which, and not that there is one.
async fn read_by_time(node: HttpNode, acknowledged: Arc<Acknowledged>, offset: i64, timestamp: i64) -> Result<()> {
    let path = node.path;
    let request = node.http.get(format!("{path}/records?timestamp={timestamp}&max_bytes=1")).timeout(ANSWER);
    match answer(request).await {
        Some((200, page)) => {
            let record = &page["records"][0];
            let (found, time) = (record["offset"].as_i64(), record["timestamp"].as_i64());
            ensure!(
                found.is_some_and(|found| found <= offset) && time.is_some_and(|time| time >= timestamp),
                "{path}: offset {offset} of time {timestamp} was acknowledged, and the first of that time is {page}"
            );
            acknowledged.timed.fetch_add(1, Ordering::Relaxed);
            Ok(())
        }
        Some((404, why)) => bail!("{path}: offset {offset} of time {timestamp} was acknowledged, and is denied: {why}"),
        Some(_) | None => Ok(()),
    }
}

/// Begins calls to all nodes every few milliseconds until `stop`, whether or not those before were answered: a paused node
/// answers everything that it was asked meanwhile once it runs again, and must not answer from the past then.
pub(super) async fn call(
    nodes: Vec<HttpNode>,
    acknowledged: Arc<Acknowledged>,
    stop: watch::Receiver<bool>,
) -> Result<()> {
    let mut random = StdRng::seed_from_u64(0);
    let mut calls = JoinSet::new();
    for number in 0_u64.. {
        if *stop.borrow() {
            break;
        }
        let any = nodes[random.random_range(0..nodes.len())].clone();
        calls.spawn(append(any, acknowledged.clone(), format!("value {number}")));
        for node in &nodes {
            if let Some(wanted) = acknowledged.any(&mut random) {
                calls.spawn(read(node.clone(), acknowledged.clone(), wanted));
            }
            if number % 4 == 0 {
                calls.spawn(read_end(node.clone(), acknowledged.clone()));
            }
        }
        tokio::time::sleep(CALL_EVERY).await;
        while let Some(ended) = calls.try_join_next() {
            ended??;
        }
    }
    while let Some(ended) = calls.join_next().await {
        ended??;
    }
    Ok(())
}
