//! Measures many partitions on three nodes: what they use while no client uses them, and how long they take to elect
//! leaders, to serve, and to recover after every node was killed.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use chronicle_client::Client;
use chronicle_proto::v1;
use chronicle_tests::cluster::Cluster;
use futures::StreamExt;
use futures::stream;
use tokio::runtime::Runtime;

use super::super::report::{Report, Rule};
use super::super::{Bench, probe};
use super::{NODES, TOPIC, client, setup, until};

/// Partitions that no client uses.
const IDLE: i32 = 1000;
/// A topic, and its partitions, that clients use before the measurement.
const WARM: &str = "warm";
const FEW: i32 = 8;
/// Concurrent appends to different partitions.
const AT_ONCE: usize = 64;

pub(crate) fn run(bench: &Bench<'_>, report: &mut Report) -> Result<()> {
    let runtime = Runtime::new()?;
    runtime.block_on(idle(bench, report))?;
    runtime.block_on(many(bench, report))
}

async fn idle(bench: &Bench<'_>, report: &mut Report) -> Result<()> {
    let dir = bench.fresh("idle-cluster")?;
    let span = Duration::from_secs(bench.size(40, 20));
    let cluster = setup(&dir).set("partitions.idle-ms", 5000).start().await?;
    let client = client(&cluster)?;
    // Memory that a node uses once, for its code and its connections, is not part of the memory of a partition.
    cluster.create_topic(WARM, FEW, 3, None).await?;
    for _ in 0..IDLE / FEW {
        write_to_each(&client, WARM, FEW).await?;
    }
    asleep(&cluster, WARM).await?;
    cpu_percent(&cluster, span).await?;
    let before = resident(&cluster)?;
    cluster.create_topic(TOPIC, IDLE, 3, None).await?;
    write_to_each(&client, TOPIC, IDLE).await?;
    let slept = asleep(&cluster, TOPIC).await?;
    let cpu = cpu_percent(&cluster, span).await?;
    // The allocator returns free memory over about ten seconds.
    let after = resident(&cluster)?;
    let memory = before.iter().zip(&after).map(|(before, after)| (after - before) / f64::from(IDLE) / 1024.0).collect();
    report.figure(
        "cluster: resident memory of a node before",
        "MiB",
        before.iter().map(|b| b / f64::from(1 << 20)).collect(),
    );
    report.figure("cluster: 1,000 partitions on 3 nodes, last write to all asleep", "s", vec![slept]);
    let memory = report.figure("cluster: 1,000 partitions asleep, memory per replica", "KiB", memory);
    let cpu = report.figure("cluster: 1,000 partitions asleep, CPU of a node", "% of a core", cpu);
    report.target("cluster: idle partition, memory per replica", memory, Rule::AtMost, 16.0, "KiB");
    report.target("cluster: 1,000 idle partitions, CPU of a node", cpu, Rule::AtMost, 1.0, "% of a core");
    cluster.finish()?;
    std::fs::remove_dir_all(dir)?;
    Ok(())
}

async fn many(bench: &Bench<'_>, report: &mut Report) -> Result<()> {
    let dir = bench.fresh("many-cluster")?;
    let partitions: i32 = bench.size(5000, 1000);
    let mut cluster = setup(&dir).start().await?;
    let client = client(&cluster)?;
    let start = Instant::now();
    cluster.create_topic(TOPIC, partitions, 3, None).await?;
    write_to_each(&client, TOPIC, partitions).await?;
    let first = start.elapsed().as_secs_f64();
    let start = Instant::now();
    write_to_each(&client, TOPIC, partitions).await?;
    let second = start.elapsed().as_secs_f64();
    let memory: Vec<f64> = resident(&cluster)?.iter().map(|bytes| bytes / f64::from(1 << 20)).collect();
    cluster.kill_all();
    let start = Instant::now();
    cluster.start_all()?;
    let ready = start.elapsed().as_secs_f64();
    write_to_each(&client, TOPIC, partitions).await?;
    let restarted = start.elapsed().as_secs_f64();
    let what = format!("cluster: {partitions} partitions on 3 nodes,");
    report.figure(format!("{what} created to a write in each"), "s", vec![first]);
    report.figure(format!("{what} one more write in each"), "s", vec![second]);
    report.figure(format!("{what} memory of a node with all awake"), "MiB", memory);
    report.figure(format!("{what} kill -9 of all, started to all ready"), "s", vec![ready]);
    report.figure(format!("{what} kill -9 of all, started to a write in each"), "s", vec![restarted]);
    cluster.finish()?;
    std::fs::remove_dir_all(dir)?;
    Ok(())
}

/// One record to every partition, many partitions at once.
async fn write_to_each(client: &Client, topic: &str, partitions: i32) -> Result<()> {
    let mut writes = stream::iter(0..partitions)
        .map(|partition| async move {
            let record = v1::Record { value: Some(vec![b'x'; 1024].into()), ..Default::default() };
            let partition = v1::Partition { topic: topic.into(), partition };
            let request =
                v1::ProduceRequest { partition: Some(partition.clone()), records: vec![record], ..Default::default() };
            client.produce(request).await.with_context(|| format!("partition {}", partition.partition))
        })
        .buffer_unordered(AT_ONCE);
    while let Some(written) = writes.next().await {
        written?;
    }
    Ok(())
}

/// Waits until every replica of a topic is dormant; returns the seconds that took.
async fn asleep(cluster: &Cluster, topic: &str) -> Result<f64> {
    until(Instant::now(), "all replicas asleep", async || {
        for number in cluster.running() {
            let partitions = cluster.describe(number, topic).await?.partitions;
            if partitions.iter().any(|partition| partition.state != "dormant") {
                return Ok(false);
            }
        }
        Ok(true)
    })
    .await
}

/// Resident bytes of each node.
fn resident(cluster: &Cluster) -> Result<Vec<f64>> {
    (0..NODES).map(|node| probe::resident_bytes(cluster.node(node).pid())).collect()
}

/// CPU that each node uses over a span without requests.
async fn cpu_percent(cluster: &Cluster, span: Duration) -> Result<Vec<f64>> {
    let mut before = BTreeMap::new();
    for node in 0..NODES {
        before.insert(node, probe::cpu_seconds(cluster.node(node).pid())?);
    }
    let start = Instant::now();
    tokio::time::sleep(span).await;
    let seconds = start.elapsed().as_secs_f64();
    ensure!(seconds > 0.0, "no time passed");
    before
        .into_iter()
        .map(|(node, before)| Ok((probe::cpu_seconds(cluster.node(node).pid())? - before) / seconds * 100.0))
        .collect()
}
