//! Measures the time from starting all three nodes to the first acknowledged write: with empty disks, and with a
//! gigabyte after a kill.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bytes::Bytes;
use chronicle_tests::api;
use chronicle_tests::cluster::Cluster;
use tokio::runtime::Runtime;

use super::super::Bench;
use super::super::disk::noise;
use super::super::load::{RECORD_BYTES, streaming};
use super::super::report::{Report, Rule};
use super::{NODES, TOPIC, place, setup, with_topic};

pub(crate) fn run(bench: &Bench, report: &mut Report) -> Result<()> {
    let runtime = Runtime::new()?;
    runtime.block_on(async {
        let mut cold = Vec::new();
        for _ in 0..bench.size(10, 3) {
            let dir = bench.fresh("cold")?;
            let mut cluster = setup(&dir).prepare()?;
            let start = Instant::now();
            for node in 0..NODES {
                cluster.node_mut(node).launch()?;
            }
            first_write(&cluster, "default").await?;
            cold.push(start.elapsed().as_secs_f64() * 1e3);
            cluster.wait_ready(&[0, 1, 2])?;
            cluster.finish()?;
        }
        let cold = report.figure("cluster: three empty nodes started to the first acknowledged write", "ms", cold);
        report.target("cluster: cold start to the first write", cold, Rule::AtMost, 500.0, "ms");

        let gigabytes: f64 = bench.size(1.0, 0.125);
        let dir = bench.fresh("killed")?;
        let mut cluster = with_topic(&dir).await?;
        let mut written = 0.0;
        let mut killed = Vec::new();
        for _ in 0..bench.size(5, 2) {
            while written < gigabytes * f64::from(1 << 30) {
                written += streaming(place(&cluster).await?, Duration::from_secs(1)).await?.0;
            }
            // Under load, so that the kill leaves torn writes.
            let place = place(&cluster).await?;
            let load = tokio::spawn(async move { streaming(place, Duration::from_secs(60)).await });
            tokio::time::sleep(Duration::from_millis(500)).await;
            cluster.kill_all();
            let _ = load.await;
            let start = Instant::now();
            for node in 0..NODES {
                cluster.node_mut(node).launch()?;
            }
            first_write(&cluster, TOPIC).await?;
            killed.push(start.elapsed().as_secs_f64() * 1e3);
            cluster.wait_ready(&[0, 1, 2])?;
        }
        let what = format!("cluster: kill -9 of all three under load with {gigabytes} GiB,");
        let worst = killed.iter().copied().fold(0.0, f64::max);
        report.figure(format!("{what} started to the first acknowledged write"), "ms", killed);
        report.target("cluster: restart after kill -9 of all, first write, worst", worst, Rule::AtMost, 2000.0, "ms");
        cluster.finish()?;
        std::fs::remove_dir_all(dir)?;
        anyhow::Ok(())
    })
}

/// Sends a record to one node after the other until one accepts it: without the pauses of a client, which would be part
/// of the measurement.
async fn first_write(cluster: &Cluster, topic: &str) -> Result<()> {
    let value = Bytes::from(noise(RECORD_BYTES));
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut last = anyhow::anyhow!("no node was called");
    while Instant::now() < deadline {
        for node in 0..NODES {
            let attempt = async {
                let mut client = api::log(cluster.node(node).address()).await?;
                api::append(&mut client, topic, value.clone()).await.map_err(anyhow::Error::from)
            };
            match tokio::time::timeout(Duration::from_millis(500), attempt).await {
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(error)) => last = error,
                Err(_) => last = anyhow::anyhow!("node-{node} did not answer within 500 ms"),
            }
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Err(last).context("no node took a record within 60 s")
}
