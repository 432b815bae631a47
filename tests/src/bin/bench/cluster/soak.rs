//! Runs minutes of full load on three nodes: no leader may change, and no write may be refused.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use chronicle_client::{Client, ClientConfig, Partition, ProducerConfig, Record};
use chronicle_tests::cluster::Cluster;
use tokio::runtime::Runtime;

use super::super::Bench;
use super::super::load::{Place, Way, producers, streaming};
use super::super::report::{Report, Rule};
use super::setup;

/// A partition for each kind of load, led by whichever node leads it.
const TOPICS: [&str; 3] = ["streams", "calls", "batches"];

pub(crate) fn run(bench: &Bench, report: &mut Report) -> Result<()> {
    let dir = bench.fresh("soak")?;
    let span = Duration::from_secs(bench.size(600, 30));
    let runtime = Runtime::new()?;
    runtime.block_on(async {
        let cluster = setup(&dir).start().await?;
        // Limits the disk space that ten minutes use.
        let settings = chronicle_proto::v1::TopicSettings {
            segment_bytes: Some(64 << 20),
            retention_bytes: Some(512 << 20),
            ..Default::default()
        };
        let mut places = Vec::new();
        for topic in TOPICS {
            cluster.create_topic(topic, 1, 3, Some(settings)).await?;
            let leader = cluster.leader(topic, 0).await?;
            places.push(Place { address: cluster.node(leader).address(), topic });
        }
        // A partition that was never used has no leader and no term yet.
        let servers = Client::connect(ClientConfig::new(cluster.servers()))?;
        for topic in TOPICS {
            let producer = servers.producer(Partition::new(topic, 0), ProducerConfig::default());
            producer.send(Record::value("first")).await?.await?;
            producer.close().await?;
        }
        // The balancer may still spread the leaders of the new topics.
        tokio::time::sleep(Duration::from_secs(10)).await;
        for place in &mut places {
            place.address = cluster.node(cluster.leader(place.topic, 0).await?).address();
        }
        let before = terms(&cluster).await?;
        let busy = Busy::start()?;
        let start = Instant::now();
        let (mut records, mut refused) = (0.0, 0.0);
        while start.elapsed() < span {
            let slice = Duration::from_secs(10).min(span);
            // Every load ends with an error at the first write that is not acknowledged.
            let (streams, calls, batches) = tokio::join!(
                producers(places[0], slice, Way::Stream),
                producers(places[1], slice, Way::Calls),
                streaming(places[2], slice),
            );
            for done in [streams, calls, batches.map(|(bytes, seconds)| bytes / 1024.0 / seconds)] {
                match done {
                    Ok(rate) => records += rate * slice.as_secs_f64(),
                    Err(error) => {
                        report.note(format!("soak: a write was not acknowledged: {error:#}"));
                        refused += 1.0;
                    }
                }
            }
        }
        let seconds = start.elapsed().as_secs_f64();
        busy.stop();
        let after = terms(&cluster).await?;
        let elections: i64 = before.iter().zip(&after).map(|(before, after)| after - before).sum();
        report.figure("cluster: full load with every core busy, time", "s", vec![seconds]);
        report.figure("cluster: full load, records acknowledged", "records/s", vec![records / seconds]);
        report.target("cluster: full load, elections", elections as f64, Rule::AtMost, 0.0, "elections");
        report.target("cluster: full load, writes refused", refused, Rule::AtMost, 0.0, "loads ended");
        cluster.finish()?;
        anyhow::Ok(())
    })?;
    std::fs::remove_dir_all(dir)?;
    Ok(())
}

/// Terms of the topics' partitions: they grow with every election, won or not.
async fn terms(cluster: &Cluster) -> Result<Vec<i64>> {
    let mut terms = Vec::new();
    for topic in TOPICS {
        let mut highest = 0;
        for number in cluster.running() {
            let partitions = cluster.describe(number, topic).await?.partitions;
            highest = partitions.iter().map(|partition| partition.term).max().unwrap_or(0).max(highest);
        }
        terms.push(highest);
    }
    Ok(terms)
}

/// A thread per core that only computes.
struct Busy {
    stop: Arc<AtomicBool>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Busy {
    fn start() -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let threads = (0..std::thread::available_parallelism()?.get())
            .map(|_| {
                let stop = stop.clone();
                std::thread::spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        std::hint::spin_loop();
                    }
                })
            })
            .collect();
        Ok(Self { stop, threads })
    }

    fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            let _ = thread.join();
        }
    }
}
