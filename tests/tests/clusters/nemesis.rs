//! Random faults from a seed, one soon after the other, while clients write and read. Checked are the promises of an
//! acknowledgement:
//!
//! - every acknowledged record is stored once, in order, on every replica ([`History::check`]);
//! - from the acknowledgement on, no node denies the record: a read of its offset on any node returns it or says that the node
//!   cannot answer, but never "not found", another value or an empty page, and the end of the log is never before it; a read of its
//!   time returns it or one before it (`singles.rs`);
//! - of the appends that are conditional on an offset, one is accepted at most (`conditions.rs`);
//! - an offset that was committed for a group is never denied or undone (`commits.rs`).
//!
//! `CHRONICLE_NEMESIS_SEED` replays the order of the faults (`strikes.rs`; their timing differs); `CHRONICLE_TEST_FACTOR` multiplies the
//! minute.
//!
//! [`History::check`]: chronicle_tests::history::History::check

mod commits;
mod conditions;
mod singles;
mod strikes;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use chronicle_tests::cluster::Cluster;
use chronicle_tests::history::Load;
use chronicle_tests::netns;
use chronicle_tests::node::PATIENCE;
use chronicle_tests::{length, tls};
use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};
use serde_json::Value;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use self::commits::{Commits, commit_and_fetch};
use self::conditions::{Agreed, contend};
use self::singles::Acknowledged;
use self::strikes::{FAULTS, revive, strike};

/// Topic of the idempotent writers.
const TOPIC: &str = "nemesis";
/// Topic of single records, appended and read over HTTP through any node.
const SINGLES: &str = "singles";
/// Topic of conditional appends.
const CONDITIONS: &str = "conditions";
const NODES: usize = 3;
/// Longest wait for one answer: a paused node gives none.
const ANSWER: Duration = Duration::from_secs(10);
/// Pause between two rounds of calls.
const CALL_EVERY: Duration = Duration::from_millis(20);

/// A node as HTTP clients see it: the client, and the path of the partition.
#[derive(Debug, Clone)]
struct HttpNode {
    http: reqwest::Client,
    path: String,
}

/// Sends a request. `None`: no answer.
async fn answer(request: reqwest::RequestBuilder) -> Option<(u16, Value)> {
    let response = request.send().await.ok()?;
    let status = response.status().as_u16();
    Some((status, response.json().await.ok()?))
}

fn seed() -> Result<u64> {
    match std::env::var("CHRONICLE_NEMESIS_SEED") {
        Ok(seed) => seed.parse().with_context(|| format!("CHRONICLE_NEMESIS_SEED: {seed:?}: must be a number")),
        Err(_) => Ok(rand::rng().next_u64()),
    }
}

/// The nodes as HTTP clients of partition 0 of a topic see them.
fn http_nodes(addresses: &[SocketAddr], topic: &str) -> Result<Vec<HttpNode>> {
    let node = |address: &SocketAddr| {
        let path = format!("{}/v1/topics/{topic}/partitions/0", tls::url(*address));
        Ok(HttpNode { http: tls::http(*address)?, path })
    };
    addresses.iter().map(node).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_acknowledged_is_lost_doubled_or_denied_whatever_fails() -> Result<()> {
    if !netns::wanted("nothing_acknowledged_is_lost_doubled_or_denied_whatever_fails") {
        return Ok(());
    }
    let seed = seed()?;
    println!("CHRONICLE_NEMESIS_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut cluster = Cluster::of(NODES).network()?.faulty().start().await?;
    for topic in [TOPIC, SINGLES, CONDITIONS] {
        cluster.create_topic(topic, 1, 3, None).await?;
    }
    // Few enough to compare with every disk afterwards.
    let load = Load { writers: 2, pace: Duration::from_millis(20), ..Load::new(TOPIC) };
    let writing = load.start(&cluster.servers())?;
    let (stop, stopped) = watch::channel(false);
    let addresses: Vec<SocketAddr> = (0..NODES).map(|number| cluster.node(number).address()).collect();
    let (acknowledged, agreed, commits) =
        (Arc::new(Acknowledged::default()), Arc::new(Agreed::default()), Arc::new(Commits::default()));
    let mut clients: Vec<JoinHandle<Result<()>>> = vec![
        tokio::spawn(singles::call(http_nodes(&addresses, SINGLES)?, acknowledged.clone(), stopped.clone())),
        tokio::spawn(contend(http_nodes(&addresses, CONDITIONS)?, agreed.clone(), stopped.clone())),
        tokio::spawn(commit_and_fetch(addresses.clone(), SINGLES, commits.clone(), stopped)),
    ];
    writing.progress(100, PATIENCE).await?;

    let until = Instant::now() + length(Duration::from_secs(60));
    let mut faults = Vec::new();
    while Instant::now() < until {
        let fault = FAULTS[random.random_range(0..FAULTS.len())];
        faults.push(fault);
        let struck = strike(&mut cluster, fault, &mut random).await;
        struck.with_context(|| format!("seed {seed}: {faults:?}"))?;
        if let Some(ended) = clients.iter().position(JoinHandle::is_finished) {
            clients.swap_remove(ended).await?.with_context(|| format!("seed {seed}: {faults:?}"))?;
            bail!("seed {seed}: clients have ended before they were told to");
        }
        // Often before the cluster has recovered from the last one.
        tokio::time::sleep(Duration::from_millis(random.random_range(0..3_000))).await;
        revive(&mut cluster).with_context(|| format!("seed {seed}: {faults:?}"))?;
    }

    cluster.settled().await.with_context(|| format!("seed {seed}: {faults:?}"))?;
    writing.progress(100, PATIENCE).await.with_context(|| format!("seed {seed}: {faults:?}"))?;
    stop.send_replace(true);
    for client in clients {
        client.await?.with_context(|| format!("seed {seed}: {faults:?}"))?;
    }
    let history = writing.stop().await?;
    let (singles, conditions) = (acknowledged.records.read().clone(), agreed.records.read().clone());
    let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    let (answered, timed) = (count(&acknowledged.answered), count(&acknowledged.timed));
    let (refused, committed, fetched) =
        (count(&agreed.refused), count(&commits.acknowledged), count(&commits.answered));
    println!(
        "{} faults, {} and {} acknowledged, {answered} reads answered and {timed} by time, {} conditions held and {refused} did not, \
         {committed} commits and {fetched} read, longest silence {:?}",
        faults.len(),
        history.acknowledged(),
        singles.len(),
        conditions.len(),
        history.longest_silence()
    );
    ensure!(
        singles.len() > 100 && answered > 100 && timed > 100,
        "the clients of single records got almost no answers"
    );
    ensure!(conditions.len() > 50 && refused > 50, "the clients with conditions got almost no answers");
    ensure!(committed > 20 && fetched > 20, "the clients of groups got almost no answers");
    ensure!(history.errors().is_empty(), "seed {seed}: the client did not hide {:?}", history.errors());
    for (topic, known) in [(SINGLES, singles.into_iter().collect()), (CONDITIONS, conditions)] {
        let stored = chronicle_tests::api::read_all_http(addresses[0], topic, 1 << 20).await?;
        for (offset, value) in &known {
            let found = stored.get(usize::try_from(*offset)?).and_then(|record| record.value.clone());
            ensure!(
                found.as_deref() == Some(value.as_bytes()),
                "seed {seed}: {topic}: offset {offset}: {value:?} became {found:?}"
            );
        }
    }
    cluster.check_disks(TOPIC, &history).await.with_context(|| format!("seed {seed}: {faults:?}"))?;
    cluster.finish()
}
