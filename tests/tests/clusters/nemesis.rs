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
    /// Reads and offsets that were answered.
    answered: AtomicU64,
}

/// The cluster as HTTP clients see it.
#[derive(Clone)]
struct Clients {
    nodes: Arc<Vec<(reqwest::Client, String)>>,
    acknowledged: Arc<Acknowledged>,
    stop: watch::Receiver<bool>,
}

impl Clients {
    fn new(addresses: &[SocketAddr], stop: watch::Receiver<bool>) -> Result<Self> {
        let node = |address: &SocketAddr| {
            let path = format!("{}/v1/topics/{SINGLES}/partitions/0", tls::url(*address));
            Ok((tls::http(*address)?, path))
        };
        let nodes = addresses.iter().map(node).collect::<Result<Vec<_>>>()?;
        Ok(Self { nodes: Arc::new(nodes), acknowledged: Arc::default(), stop })
    }

    fn is_over(&self) -> bool {
        *self.stop.borrow()
    }

    /// Any node. `None`: no node may be asked any more.
    fn any(&self, random: &mut StdRng) -> Option<&(reqwest::Client, String)> {
        (!self.is_over()).then(|| &self.nodes[random.random_range(0..self.nodes.len())])
    }

    /// Appends single records through any node. An append without an answer is not repeated.
    async fn append(self, writer: u64) -> Result<()> {
        let mut random = StdRng::seed_from_u64(writer);
        let mut number = 0;
        while let Some((http, path)) = self.any(&mut random) {
            number += 1;
            let value = format!("{writer}-{number}");
            let request = http.post(format!("{path}/records")).body(value.clone()).timeout(ANSWER);
            if let Some((200 | 201, answer)) = answer(request).await {
                let offset = answer["offset"].as_i64().or(answer["base_offset"].as_i64());
                let offset = offset.with_context(|| format!("no offset in {answer}"))?;
                self.acknowledged.records.write().push((offset, value));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    /// Reads acknowledged records, mostly the newest, and the end of the log through any node.
    async fn read(self, reader: u64) -> Result<()> {
        let mut random = StdRng::seed_from_u64(reader);
        while let Some((http, path)) = self.any(&mut random) {
            let wanted = {
                let records = self.acknowledged.records.read();
                let old = records.len().saturating_sub(1).min(random.random_range(0..10_000));
                records.get(if random.random_ratio(3, 4) { records.len().saturating_sub(1) } else { old }).cloned()
            };
            let Some((offset, value)) = wanted else {
                tokio::time::sleep(Duration::from_millis(5)).await;
                continue;
            };
            if random.random_ratio(1, 4) {
                let Some((status, ends)) = answer(http.get(format!("{path}/offsets")).timeout(ANSWER)).await else {
                    continue;
                };
                ensure!(status != 404, "{path}: {ends} after offset {offset} was acknowledged");
                if status == 200 {
                    let next = ends["next"].as_i64().with_context(|| format!("no end in {ends}"))?;
                    ensure!(next > offset, "{path}: the log ends at {next} after offset {offset} was acknowledged");
                    self.acknowledged.answered.fetch_add(1, Ordering::Relaxed);
                }
                continue;
            }
            let request = http.get(format!("{path}/records?offset={offset}&max_bytes=1")).timeout(ANSWER);
            match answer(request).await {
                Some((200, page)) => {
                    let stored = page["records"][0]["value"].as_str().map(|text| BASE64.decode(text)).transpose()?;
                    ensure!(
                        page["records"][0]["offset"].as_i64() == Some(offset) && stored == Some(value.clone().into()),
                        "{path}: offset {offset} was acknowledged with {value:?}, and is read as {page}"
                    );
                    self.acknowledged.answered.fetch_add(1, Ordering::Relaxed);
                }
                Some((404, why)) => bail!("{path}: offset {offset} was acknowledged, and is denied: {why}"),
                // The node cannot answer, or did not.
                Some(_) | None => {}
            }
        }
        Ok(())
    }
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
    let clients = Clients::new(&addresses, stopped)?;
    let mut tasks = JoinSet::new();
    for number in 0..3 {
        tasks.spawn(clients.clone().append(number));
        tasks.spawn(clients.clone().read(number));
    }
    writing.progress(100, PATIENCE).await?;

    let until = Instant::now() + length(Duration::from_secs(60));
    let mut faults = Vec::new();
    while Instant::now() < until {
        let fault = FAULTS[random.random_range(0..FAULTS.len())];
        faults.push(fault);
        let struck = strike(&mut cluster, fault, &mut random).await;
        struck.with_context(|| format!("seed {seed}: {faults:?}"))?;
        if let Some(ended) = tasks.try_join_next() {
            ended?.with_context(|| format!("seed {seed}: {faults:?}"))?;
            bail!("seed {seed}: a client has ended before it was told to");
        }
        // Often before the cluster has recovered from the last one.
        tokio::time::sleep(Duration::from_millis(random.random_range(0..3_000))).await;
    }

    cluster.settled().await?;
    writing.progress(100, PATIENCE).await?;
    stop.send_replace(true);
    while let Some(ended) = tasks.join_next().await {
        ended?.with_context(|| format!("seed {seed}: {faults:?}"))?;
    }
    let history = writing.stop().await?;
    let (singles, answered) =
        (clients.acknowledged.records.read().clone(), clients.acknowledged.answered.load(Ordering::Relaxed));
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
