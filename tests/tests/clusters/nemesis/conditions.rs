//! Clients that append on the condition that the log ends where they think: of all appends for one offset at most one is accepted,
//! and a refusal never speaks of a log that is shorter than what was acknowledged.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::prelude::BASE64_STANDARD as BASE64;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::{ANSWER, CALL_EVERY, HttpNode, answer};

/// What the clients know.
#[derive(Debug, Default)]
pub(super) struct Agreed {
    /// The value of each offset for which an append was accepted.
    pub(super) records: parking_lot::RwLock<BTreeMap<i64, String>>,
    /// Appends that were refused because the log ended elsewhere.
    pub(super) refused: AtomicU64,
    /// Where the log ended in the last answer.
    end: AtomicI64,
}

impl Agreed {
    /// First offset after every accepted append.
    fn least_end(&self) -> i64 {
        self.records.read().last_key_value().map_or(0, |(offset, _)| offset + 1)
    }
}

async fn append_at(node: HttpNode, agreed: Arc<Agreed>, expected: i64, value: String) -> Result<()> {
    let least = agreed.least_end();
    let body = json!({"record": {"value": BASE64.encode(&value)}, "expected_next_offset": expected});
    let request = node.http.post(format!("{}/records", node.path)).json(&body).timeout(ANSWER);
    match answer(request).await {
        Some((200 | 201, accepted)) => {
            let offset = accepted["offset"].as_i64();
            ensure!(offset == Some(expected), "an append at {expected} was accepted elsewhere: {accepted}");
            let other = agreed.records.write().insert(expected, value.clone());
            ensure!(other.is_none(), "two appends at {expected} were accepted: {other:?} and {value:?}");
            agreed.end.fetch_max(expected + 1, Ordering::Relaxed);
        }
        Some((409, conflict)) if conflict["reason"] == "VERSION_CONFLICT" => {
            let current = conflict["current"].as_i64().with_context(|| format!("no `current` in {conflict}"))?;
            ensure!(
                current >= least && current != expected,
                "{}: refused at {expected}, with the log up to {least} acknowledged: {conflict}",
                node.path
            );
            agreed.refused.fetch_add(1, Ordering::Relaxed);
            agreed.end.store(current, Ordering::Relaxed);
        }
        Some(_) | None => {}
    }
    Ok(())
}

/// Begins appends at the end through all nodes until `stop`, some of them at the same time and some at an older end.
pub(super) async fn contend(nodes: Vec<HttpNode>, agreed: Arc<Agreed>, stop: watch::Receiver<bool>) -> Result<()> {
    let mut random = StdRng::seed_from_u64(1);
    let mut calls = JoinSet::new();
    for number in 0_u64.. {
        if *stop.borrow() {
            break;
        }
        let end = agreed.end.load(Ordering::Relaxed).max(agreed.least_end());
        for node in &nodes {
            let expected = if random.random_ratio(1, 10) { (end - random.random_range(0..3)).max(0) } else { end };
            let value = format!("{number} through {}", node.path);
            calls.spawn(append_at(node.clone(), agreed.clone(), expected, value));
        }
        tokio::time::sleep(2 * CALL_EVERY).await;
        while let Some(ended) = calls.try_join_next() {
            ended??;
        }
    }
    while let Some(ended) = calls.join_next().await {
        ended??;
    }
    Ok(())
}
