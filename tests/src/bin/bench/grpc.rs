//! A node over gRPC on loopback: one producer, many producers, and a stream of batches.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use chronicle_proto::v1;
use chronicle_proto::v1::produce_stream_response::Result as Answer;
use chronicle_tests::api;
use chronicle_tests::node::{Node, Setup};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;

use super::disk::{append_and_sync, noise};
use super::engine::median;
use super::report::{Report, Rule};
use super::{Bench, probe};

const RECORD_BYTES: usize = 1 << 10;
/// Records of one request of the stream: 512 KiB, so that two fill one group of the sequencer.
const STREAM_RECORDS: usize = 512;
/// Requests of the stream that are not answered yet.
const STREAM_WINDOW: usize = 16;
const PRODUCERS: usize = 64;

pub(crate) fn run(bench: &Bench, report: &mut Report) -> Result<()> {
    let dir = bench.fresh("grpc")?;
    let node = Setup::new().data_dir(dir.join("data")).start()?;
    let runtime = Runtime::new()?;
    let span = Duration::from_millis(bench.size(2000, 1000));
    let samples = bench.size(200, 100);
    let [mut raw_p50, mut one_p50, mut one, mut many, mut raw, mut stream, mut node_cores, mut own_cores] =
        [const { Vec::new() }; 8];
    let [mut streamed_p50, mut streamed_many] = [const { Vec::new() }; 2];
    for _ in 0..bench.size(9, 3) {
        raw_p50.push(median(append_and_sync(&dir.join("single.raw"), RECORD_BYTES, samples)?) * 1e6);
        let seconds = runtime.block_on(unbatched(&node, samples))?;
        one.push(seconds.len() as f64 / seconds.iter().sum::<f64>());
        one_p50.push(median(seconds) * 1e6);
        streamed_p50.push(median(runtime.block_on(unbatched_stream(&node, samples))?) * 1e6);
        many.push(runtime.block_on(producers(&node, span, Way::Calls))?);
        streamed_many.push(runtime.block_on(producers(&node, span, Way::Stream))?);

        let groups = 32;
        let seconds: f64 = append_and_sync(&dir.join("groups.raw"), 1 << 20, groups)?.iter().sum();
        raw.push((groups << 20) as f64 / 1e6 / seconds);
        let (node_cpu, own_cpu) = (probe::cpu_seconds(node.pid())?, probe::cpu_seconds(std::process::id())?);
        let (bytes, seconds) = runtime.block_on(streaming(&node, span))?;
        stream.push(bytes / 1e6 / seconds);
        node_cores.push((probe::cpu_seconds(node.pid())? - node_cpu) / seconds);
        own_cores.push((probe::cpu_seconds(std::process::id())? - own_cpu) / seconds);
    }
    let raw_p50 = report.figure("disk: write + fdatasync, 1 KiB, p50 (beside gRPC)", "us", raw_p50);
    let one_p50 = report.figure("node: one unbatched producer, a call per record, p50", "us", one_p50);
    let streamed_p50 = report.figure("node: one unbatched producer on a stream, p50", "us", streamed_p50);
    let one = report.figure("node: one unbatched producer, a call per record", "records/s", one);
    let many = report.figure("node: 64 producers, a call per record, a connection each", "records/s", many);
    let streamed_many =
        report.figure("node: 64 producers, a stream and a connection each, one in flight", "records/s", streamed_many);
    let raw = report.figure("disk: write + fdatasync, 1 MiB (beside gRPC)", "MB/s", raw);
    let stream = report.figure("node: one stream of 512 KiB requests of 1 KiB records", "MB/s", stream);
    let cores = report.figure("node: cores used meanwhile", "cores", node_cores);
    let own = report.figure("client: cores used meanwhile", "cores", own_cores);
    report.target(
        "node: 64 producers on streams / one unbatched producer",
        streamed_many / one,
        Rule::AtLeast,
        20.0,
        "x",
    );
    report.target("node: 64 producers with calls / one unbatched producer", many / one, Rule::AtLeast, 20.0, "x");
    report.target("node: p50 of one append on a stream - raw p50", streamed_p50 - raw_p50, Rule::AtMost, 250.0, "us");
    report.target("node: p50 of one append by a call - raw p50", one_p50 - raw_p50, Rule::AtMost, 250.0, "us");
    report.target("node: batched stream / raw durable write (or one full core)", stream / raw, Rule::AtLeast, 0.6, "x");
    let available = std::thread::available_parallelism()?.get() as f64;
    report.note(if stream / raw >= 0.6 {
        format!("Streaming: the disk binds; the node uses {cores:.2} cores and the client {own:.2}.")
    } else if cores >= 0.95 {
        format!(
            "Streaming: the node's CPU binds ({cores:.2} cores); the target's other side, one full core, is reached."
        )
    } else if cores + own >= 0.9 * available {
        format!("Streaming: the machine's CPU binds: node {cores:.2} and client {own:.2} of {available} cores.")
    } else {
        format!("Streaming: neither the disk nor a core binds (node {cores:.2}, client {own:.2}): latency does.")
    });
    drop(node);
    std::fs::remove_dir_all(dir)?;
    Ok(())
}

/// One append after the other; answers the seconds of each.
async fn unbatched(node: &Node, count: usize) -> Result<Vec<f64>> {
    let mut client = api::log(node.address()).await?;
    let value = Bytes::from(noise(RECORD_BYTES));
    let mut seconds = Vec::with_capacity(count);
    for _ in 0..count {
        let start = Instant::now();
        api::append(&mut client, "default", value.clone()).await?;
        seconds.push(start.elapsed().as_secs_f64());
    }
    Ok(seconds)
}

/// How a producer that waits for each answer sends its records.
#[derive(Clone, Copy)]
enum Way {
    /// A `Produce` call per record.
    Calls,
    /// One `ProduceStream`.
    Stream,
}

/// One record at a time on a `ProduceStream`.
struct OneByOne {
    requests: mpsc::Sender<v1::ProduceRequest>,
    answers: tonic::Streaming<v1::ProduceStreamResponse>,
    request: v1::ProduceRequest,
}

impl OneByOne {
    async fn open(node: &Node) -> Result<Self> {
        let record = v1::Record { value: Some(Bytes::from(noise(RECORD_BYTES))), ..Default::default() };
        let request =
            v1::ProduceRequest { partition: api::partition("default"), records: vec![record], ..Default::default() };
        let (requests, stream) = mpsc::channel(1);
        let answers = api::log(node.address()).await?.produce_stream(ReceiverStream::new(stream)).await?.into_inner();
        Ok(Self { requests, answers, request })
    }

    async fn append(&mut self) -> Result<()> {
        self.requests.send(self.request.clone()).await?;
        let answer = self.answers.message().await?.context("the stream ended")?;
        match answer.result.context("an answer without a result")? {
            Answer::Ok(_) => Ok(()),
            Answer::Error(error) => bail!("{}: {}", error.reason, error.message),
        }
    }
}

/// As [`unbatched`], on one stream.
async fn unbatched_stream(node: &Node, count: usize) -> Result<Vec<f64>> {
    let mut producer = OneByOne::open(node).await?;
    let mut seconds = Vec::with_capacity(count);
    for _ in 0..count {
        let start = Instant::now();
        producer.append().await?;
        seconds.push(start.elapsed().as_secs_f64());
    }
    Ok(seconds)
}

/// 64 producers, each with a connection of its own and one append at a time; answers records per second together.
async fn producers(node: &Node, span: Duration, way: Way) -> Result<f64> {
    let value = Bytes::from(noise(RECORD_BYTES));
    let count = Arc::new(AtomicU64::new(0));
    let stop = Arc::new(AtomicBool::new(false));
    let mut tasks = JoinSet::new();
    for _ in 0..PRODUCERS {
        let (count, stop) = (count.clone(), stop.clone());
        match way {
            Way::Calls => {
                let (mut client, value) = (api::log(node.address()).await?, value.clone());
                tasks.spawn(async move {
                    while !stop.load(Ordering::Relaxed) {
                        api::append(&mut client, "default", value.clone()).await?;
                        count.fetch_add(1, Ordering::Relaxed);
                    }
                    anyhow::Ok(())
                });
            }
            Way::Stream => {
                let mut producer = OneByOne::open(node).await?;
                tasks.spawn(async move {
                    while !stop.load(Ordering::Relaxed) {
                        producer.append().await?;
                        count.fetch_add(1, Ordering::Relaxed);
                    }
                    anyhow::Ok(())
                });
            }
        }
    }
    let (start, before) = (Instant::now(), count.load(Ordering::Relaxed));
    tokio::time::sleep(span).await;
    let rate = (count.load(Ordering::Relaxed) - before) as f64 / start.elapsed().as_secs_f64();
    stop.store(true, Ordering::Relaxed);
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    Ok(rate)
}

/// One stream with a bounded number of requests in flight; answers acknowledged value bytes and the seconds they took.
async fn streaming(node: &Node, span: Duration) -> Result<(f64, f64)> {
    let value = Bytes::from(noise(RECORD_BYTES));
    let record = v1::Record { value: Some(value), ..Default::default() };
    let request = v1::ProduceRequest {
        partition: api::partition("default"),
        records: vec![record; STREAM_RECORDS],
        ..Default::default()
    };
    let (requests, stream) = mpsc::channel(STREAM_WINDOW);
    let start = Instant::now();
    for _ in 0..STREAM_WINDOW {
        requests.send(request.clone()).await?;
    }
    let mut client = api::log(node.address()).await?;
    let mut answers = client.produce_stream(ReceiverStream::new(stream)).await?.into_inner();
    let mut records = 0;
    let mut requests = Some(requests);
    while let Some(answer) = answers.message().await? {
        match answer.result.context("an answer without a result")? {
            Answer::Ok(ok) => records += usize::try_from(ok.record_count)?,
            Answer::Error(error) => bail!("{}: {}", error.reason, error.message),
        }
        if start.elapsed() >= span {
            // Ends the stream once what is in flight is answered.
            requests = None;
        }
        if let Some(requests) = &requests {
            requests.send(request.clone()).await?;
        }
    }
    Ok(((records * RECORD_BYTES) as f64, start.elapsed().as_secs_f64()))
}
