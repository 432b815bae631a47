//! Measures how long writes wait when their leader is killed, and when leadership is transferred.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use chronicle_proto::v1;
use chronicle_tests::cluster::Cluster;
use tokio::runtime::Runtime;

use super::super::Bench;
use super::super::report::{Report, Rule};
use super::pacer::Pacer;
use super::{NODES, TOPIC, client, with_topic};

/// Acknowledgements that a leader had sent when it died have arrived after this time.
const ON_ITS_WAY: Duration = Duration::from_millis(20);

pub(crate) fn run(bench: &Bench, report: &mut Report) -> Result<()> {
    let dir = bench.fresh("failover")?;
    let runtime = Runtime::new()?;
    let (killed, moved) = runtime.block_on(async {
        let mut cluster = with_topic(&dir).await?;
        let client = client(&cluster)?;
        let mut pacer = Pacer::start(&client, TOPIC);
        let mut killed = Vec::new();
        for _ in 0..bench.size(30, 5) {
            killed.push(kill(&mut cluster, &mut pacer).await?.as_secs_f64() * 1e3);
        }
        let mut moved = Vec::new();
        for _ in 0..bench.size(30, 5) {
            moved.push(transfer(&cluster, &client, &mut pacer).await?.as_secs_f64() * 1e3);
        }
        pacer.stop().await?;
        cluster.finish()?;
        anyhow::Ok((killed, moved))
    })?;
    let worst = killed.iter().copied().fold(0.0, f64::max);
    let killed = report.figure("cluster: kill -9 of the leader to the next acknowledged write", "ms", killed);
    let moved = report.figure("cluster: longest wait of a write while leadership is handed over", "ms", moved);
    report.target("cluster: fail-over, median", killed, Rule::AtMost, 700.0, "ms");
    report.target("cluster: fail-over, worst", worst, Rule::AtMost, 2000.0, "ms");
    report.target("cluster: planned transfer, median of the longest wait", moved, Rule::AtMost, 100.0, "ms");
    std::fs::remove_dir_all(dir)?;
    Ok(())
}

/// Kills the leader, measures, and restores the cluster.
async fn kill(cluster: &mut Cluster, pacer: &mut Pacer) -> Result<Duration> {
    let leader = preferred_leads(cluster).await?;
    pacer.acknowledged_after(Instant::now()).await?;
    let start = Instant::now();
    cluster.kill(leader);
    let next = pacer.acknowledged_after(start + ON_ITS_WAY).await?;
    cluster.restart(leader)?;
    cluster.settled().await?;
    // Writes continue, so the ends are never equal; what counts is that the node follows again.
    cluster
        .eventually("the restarted node follows", async |cluster| {
            let end = cluster.describe(cluster.leader(TOPIC, 0).await?, TOPIC).await?.partitions[0].next;
            let here = cluster.describe(leader, TOPIC).await?;
            ensure!(here.partitions[0].next + 500 >= end, "it is behind");
            Ok(())
        })
        .await?;
    Ok(next - start)
}

/// Waits until the balancer has transferred leadership to the preferred leader: no transfer must happen at the moment
/// of the kill.
async fn preferred_leads(cluster: &Cluster) -> Result<usize> {
    cluster
        .eventually("the preferred leader leads", async |cluster| {
            let preferred = *cluster.replicas(TOPIC, 0).await?.first().context("a partition without replicas")?;
            ensure!(cluster.leader_as_known_to(preferred, TOPIC, 0).await? == preferred, "another node leads");
            Ok(preferred)
        })
        .await
}

/// Transfers leadership to the next replica while the writer continues.
async fn transfer(cluster: &Cluster, client: &chronicle_client::Client, pacer: &mut Pacer) -> Result<Duration> {
    let leader = cluster.leader(TOPIC, 0).await?;
    let to = (leader + 1) % NODES;
    pacer.acknowledged_after(Instant::now()).await?;
    let start = Instant::now();
    let request = v1::TransferLeadershipRequest { topic: TOPIC.into(), partition: 0, to: format!("node-{to}") };
    client.transfer_leadership(request).await?;
    cluster
        .eventually("the next replica leads", async |cluster| {
            ensure!(cluster.leader_as_known_to(to, TOPIC, 0).await? == to, "it does not lead yet");
            Ok(())
        })
        .await?;
    let end = pacer.acknowledged_after(Instant::now()).await?;
    Ok(pacer.longest_wait(start, end))
}
