//! Measures memory and CPU of 1,000 partitions that no client uses, before and after the node closes them as dormant.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use chronicle_proto::v1;
use chronicle_proto::v1::admin_client::AdminClient;
use chronicle_tests::api;
use chronicle_tests::node::{Node, PATIENCE, Setup};
use tokio::runtime::Runtime;

use super::engine::PARTITIONS;
use super::report::{Report, Rule};
use super::{Bench, probe};

pub(crate) fn run(bench: &Bench, report: &mut Report) -> Result<()> {
    let dir = bench.fresh("idle")?;
    let span = Duration::from_secs(bench.size(15, 5));
    let runtime = Runtime::new()?;
    // Long enough to measure the partitions while they are open.
    let idle = span + Duration::from_secs(15);
    let idle_ms = u64::try_from(idle.as_millis())?;
    let node = Setup::new().data_dir(dir.join("data")).set("partitions.idle-ms", idle_ms).start()?;
    let empty = probe::resident_bytes(node.pid())?;
    runtime.block_on(async {
        api::create_topic(node.address(), "many", i32::try_from(PARTITIONS)?, None).await?;
        write_to_each(&node).await
    })?;
    let written = Instant::now();
    let awake_cpu = cpu_percent(&node, span)?;
    let awake = (probe::resident_bytes(node.pid())? - empty) / PARTITIONS as f64 / 1024.0;
    ensure!(written.elapsed() < idle, "the partitions became dormant while they were measured open");
    runtime.block_on(until_asleep(&node, idle))?;
    let asleep_cpu = cpu_percent(&node, span)?;
    let asleep = (probe::resident_bytes(node.pid())? - empty) / PARTITIONS as f64 / 1024.0;

    report.figure("node: resident memory without partitions", "MiB", vec![empty / f64::from(1 << 20)]);
    let awake =
        report.figure("node: 1,000 partitions written once and then left alone, memory each", "KiB", vec![awake]);
    let awake_cpu = report.figure("node: their CPU", "% of a core", vec![awake_cpu]);
    let asleep = report.figure("node: the same asleep, memory each", "KiB", vec![asleep]);
    let asleep_cpu = report.figure("node: their CPU asleep", "% of a core", vec![asleep_cpu]);
    report.target("node: idle partition, memory", awake, Rule::AtMost, 64.0, "KiB");
    report.target("node: idle partition asleep, memory", asleep, Rule::AtMost, 64.0, "KiB");
    report.target("node: 1,000 idle partitions, CPU", awake_cpu, Rule::AtMost, 3.0, "% of a core");
    report.target("node: 1,000 idle partitions asleep, CPU", asleep_cpu, Rule::AtMost, 3.0, "% of a core");
    drop(node);
    std::fs::remove_dir_all(dir)?;
    Ok(())
}

async fn write_to_each(node: &Node) -> Result<()> {
    let mut client = api::log(node.address()).await?;
    for partition in 0..i32::try_from(PARTITIONS)? {
        let record = v1::Record { value: Some(vec![b'x'; 1024].into()), ..Default::default() };
        let partition = Some(v1::Partition { topic: "many".into(), partition });
        client.produce(v1::ProduceRequest { partition, records: vec![record], ..Default::default() }).await?;
    }
    Ok(())
}

/// CPU that the node uses over a span without requests.
fn cpu_percent(node: &Node, span: Duration) -> Result<f64> {
    let (before, start) = (probe::cpu_seconds(node.pid())?, Instant::now());
    std::thread::sleep(span);
    Ok((probe::cpu_seconds(node.pid())? - before) / start.elapsed().as_secs_f64() * 100.0)
}

async fn until_asleep(node: &Node, idle: Duration) -> Result<()> {
    let mut admin = AdminClient::new(api::connect(node.address()).await?).max_decoding_message_size(64 << 20);
    let deadline = Instant::now() + idle + PATIENCE;
    loop {
        let answer = admin.describe_topic(v1::DescribeTopicRequest { name: "many".into() }).await?.into_inner();
        let awake = answer.partitions.iter().filter(|partition| partition.state != "dormant").count();
        if awake == 0 {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "{awake} partitions are still awake");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}
