//! Random faults from a seed, one soon after the other, while clients write and read. Checked are the promises of an
//! acknowledgement:
//!
//! - every acknowledged record is stored once, in order, on every replica ([`History::check`]);
//! - from the acknowledgement on, no node denies the record: a read of its offset on any node returns it or says that the node
//!   cannot answer, but never "not found", another value or an empty page, and the end of the log is never before it.
//!
//! `CHRONICLE_NEMESIS_SEED` replays the order of the faults (their timing differs); `CHRONICLE_TEST_FACTOR` multiplies the minute.
//!
//! [`History::check`]: chronicle_tests::history::History::check

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use base64::Engine;
use base64::prelude::BASE64_STANDARD as BASE64;
use chronicle_tests::cluster::Cluster;
use chronicle_tests::history::Load;
use chronicle_tests::netns::{self, End};
use chronicle_tests::node::PATIENCE;
use chronicle_tests::{length, tls};
use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};
use serde_json::Value;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Topic of the idempotent writers.
const TOPIC: &str = "nemesis";
/// Topic of single records, appended and read over HTTP through any node.
const SINGLES: &str = "singles";
const NODES: usize = 3;
/// Longest wait for one answer: a paused node gives none.
const ANSWER: Duration = Duration::from_secs(10);
/// Pause between two rounds of calls.
const CALL_EVERY: Duration = Duration::from_millis(20);

#[derive(Debug, Clone, Copy)]
enum Fault {
    /// `kill -9` of one node.
    Kill,
    /// `kill -9` of all nodes at once.
    KillAll,
    /// A clean stop.
    Stop,
    /// The process does not run for longer than any lease or timeout.
    Pause,
    /// The process does not run for about as long as a lease.
    Stutter,
    /// A node is cut off from the others; clients reach it.
    CutFromPeers,
    /// Nothing that a node sends reaches one other node.
    CutOneWay,
}

const FAULTS: [Fault; 7] =
    [Fault::Kill, Fault::KillAll, Fault::Stop, Fault::Pause, Fault::Stutter, Fault::CutFromPeers, Fault::CutOneWay];

/// What clients of [`SINGLES`] know: the value of each acknowledged offset.
#[derive(Debug, Default)]
struct Acknowledged {
    records: parking_lot::RwLock<Vec<(i64, String)>>,
    /// Reads and ends that were answered.
    answered: AtomicU64,
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

/// A node as HTTP clients see it: the client, and the path of the partition.
#[derive(Debug, Clone)]
struct HttpNode {
    http: reqwest::Client,
    path: String,
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
    let path = node.path;
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
        }
        Some((404, why)) => bail!("{path}: offset {offset} was acknowledged, and is denied: {why}"),
        Some(_) | None => {}
    }
    Ok(())
}

/// Begins calls to all nodes every few milliseconds until `stop`, whether or not those before were answered: a paused node
/// answers everything that it was asked meanwhile once it runs again, and must not answer from the past then.
async fn call(nodes: Vec<HttpNode>, acknowledged: Arc<Acknowledged>, stop: watch::Receiver<bool>) -> Result<()> {
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

/// Sends a request. `None`: no answer.
async fn answer(request: reqwest::RequestBuilder) -> Option<(u16, Value)> {
    let response = request.send().await.ok()?;
    let status = response.status().as_u16();
    Some((status, response.json().await.ok()?))
}

/// One fault, from its beginning to its end.
async fn strike(cluster: &mut Cluster, fault: Fault, random: &mut StdRng) -> Result<()> {
    let node = random.random_range(0..NODES);
    let [one, two] = [(node + 1) % NODES, (node + 2) % NODES];
    let mut pause = async |millis: std::ops::Range<u64>| {
        tokio::time::sleep(Duration::from_millis(random.random_range(millis))).await;
    };
    match fault {
        Fault::Kill => {
            cluster.kill(node);
            pause(0..2_000).await;
            cluster.restart(node)
        }
        Fault::KillAll => {
            cluster.kill_all();
            cluster.start_all()
        }
        Fault::Stop => {
            cluster.terminate(node)?;
            pause(0..1_000).await;
            cluster.restart(node)
        }
        Fault::Pause | Fault::Stutter => {
            cluster.node(node).pause()?;
            pause(if matches!(fault, Fault::Pause) { 1_000..5_000 } else { 50..400 }).await;
            cluster.node(node).resume()
        }
        Fault::CutFromPeers => {
            let others = [End::Node(one), End::Node(two)];
            cluster.network().cut(&[End::Node(node)], &others)?;
            pause(100..5_000).await;
            cluster.network().heal(&[End::Node(node)], &others)
        }
        Fault::CutOneWay => {
            cluster.network().cut_one_way(End::Node(node), End::Node(one))?;
            pause(100..5_000).await;
            cluster.network().heal_one_way(End::Node(node), End::Node(one))
        }
    }
}

fn seed() -> Result<u64> {
    match std::env::var("CHRONICLE_NEMESIS_SEED") {
        Ok(seed) => seed.parse().with_context(|| format!("CHRONICLE_NEMESIS_SEED: {seed:?}: must be a number")),
        Err(_) => Ok(rand::rng().next_u64()),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_acknowledged_is_lost_doubled_or_denied_whatever_fails() -> Result<()> {
    if !netns::wanted("nothing_acknowledged_is_lost_doubled_or_denied_whatever_fails") {
        return Ok(());
    }
    let seed = seed()?;
    println!("CHRONICLE_NEMESIS_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut cluster = Cluster::of(NODES).network()?.start().await?;
    cluster.create_topic(TOPIC, 1, 3, None).await?;
    cluster.create_topic(SINGLES, 1, 3, None).await?;
    // Few enough to compare with every disk afterwards.
    let load = Load { writers: 2, pace: Duration::from_millis(20), ..Load::new(TOPIC) };
    let writing = load.start(&cluster.servers())?;
    let (stop, stopped) = watch::channel(false);
    let addresses: Vec<SocketAddr> = (0..NODES).map(|number| cluster.node(number).address()).collect();
    let nodes = addresses.iter().map(|address| {
        let path = format!("{}/v1/topics/{SINGLES}/partitions/0", tls::url(*address));
        Ok(HttpNode { http: tls::http(*address)?, path })
    });
    let acknowledged = Arc::new(Acknowledged::default());
    let calling = tokio::spawn(call(nodes.collect::<Result<_>>()?, acknowledged.clone(), stopped));
    writing.progress(100, PATIENCE).await?;

    let until = Instant::now() + length(Duration::from_secs(60));
    let mut faults = Vec::new();
    while Instant::now() < until {
        let fault = FAULTS[random.random_range(0..FAULTS.len())];
        faults.push(fault);
        let struck = strike(&mut cluster, fault, &mut random).await;
        struck.with_context(|| format!("seed {seed}: {faults:?}"))?;
        if calling.is_finished() {
            calling.await?.with_context(|| format!("seed {seed}: {faults:?}"))?;
            bail!("seed {seed}: the clients have ended before they were told to");
        }
        // Often before the cluster has recovered from the last one.
        tokio::time::sleep(Duration::from_millis(random.random_range(0..3_000))).await;
    }

    cluster.settled().await?;
    writing.progress(100, PATIENCE).await?;
    stop.send_replace(true);
    calling.await?.with_context(|| format!("seed {seed}: {faults:?}"))?;
    let history = writing.stop().await?;
    let (singles, answered) = (acknowledged.records.read().clone(), acknowledged.answered.load(Ordering::Relaxed));
    println!(
        "{} faults, {} and {} acknowledged, {answered} reads answered, longest silence {:?}",
        faults.len(),
        history.acknowledged(),
        singles.len(),
        history.longest_silence()
    );
    ensure!(singles.len() > 100 && answered > 100, "the clients of single records got almost no answers");
    ensure!(history.errors().is_empty(), "seed {seed}: the client did not hide {:?}", history.errors());
    let stored = chronicle_tests::api::read_all_http(addresses[0], SINGLES, 1 << 20).await?;
    for (offset, value) in &singles {
        let found = stored.get(usize::try_from(*offset)?).and_then(|record| record.value.clone());
        ensure!(found.as_deref() == Some(value.as_bytes()), "seed {seed}: offset {offset}: {value:?} became {found:?}");
    }
    cluster.check_disks(TOPIC, &history).await.with_context(|| format!("seed {seed}: {faults:?}"))?;
    cluster.finish()
}
