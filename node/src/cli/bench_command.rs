//! `chronicle bench`: measures appends and reads through the public API.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use chronicle_client::{Client, ConsumerConfig, Delivery, Partition, ProducerConfig, Record, v1};
use clap::{Args, Subcommand, ValueEnum};
use futures::StreamExt;
use futures::stream::FuturesOrdered;
use serde::Serialize;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::Global;
use super::histogram::Histogram;
use super::output::{Table, print, thousands};
use super::produce_command::CompressionArg;
use super::{parse, signal};

#[derive(Debug, Subcommand)]
pub(super) enum BenchCommand {
    /// Append generated records.
    Produce(BenchProduceArgs),
    /// Read a topic from its start.
    Consume(BenchConsumeArgs),
}

#[derive(Debug, Args)]
pub(super) struct BenchProduceArgs {
    /// Topic to append to; created when missing.
    #[arg(long, short = 't', value_name = "TOPIC", default_value = "bench")]
    topic: String,
    /// Partitions of a created topic; producers are spread over them.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(i32).range(1..=10_000))]
    partitions: i32,
    /// Concurrent producers, each with its own connection.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    producers: u32,
    /// Bytes of each record's value.
    #[arg(long, value_name = "BYTES", default_value = "1KiB", value_parser = parse::size)]
    record_size: usize,
    /// Records in total. Default without --duration: as many as fit in 10 s.
    #[arg(long, value_name = "N", conflicts_with = "duration")]
    count: Option<u64>,
    /// Duration, such as 30s.
    #[arg(long, value_name = "TIME", value_parser = parse::duration)]
    duration: Option<Duration>,
    /// unary: one request at a time per producer; stream: pipelined on a ProduceStream, idempotent.
    #[arg(long, value_enum, default_value = "stream", hide_possible_values = true)]
    mode: Mode,
    /// Records per request.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    batch: u32,
    /// With --mode stream: unacknowledged requests per producer.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=256))]
    in_flight: u32,
    /// Compression of the stored records.
    #[arg(long, value_enum, default_value = "none")]
    compression: CompressionArg,
}

#[derive(Debug, Args)]
pub(super) struct BenchConsumeArgs {
    /// Topic to read.
    #[arg(long, short = 't', value_name = "TOPIC", default_value = "bench")]
    topic: String,
    /// Partition to read (0-based).
    #[arg(long, short = 'p', value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(i32).range(0..))]
    partition: i32,
    /// Most records to read. Default: up to the end that the log has at the start.
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// Most bytes of one response; 0: the node's default.
    #[arg(long, value_name = "BYTES", default_value_t = 0)]
    max_bytes: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
enum Mode {
    Unary,
    Stream,
}

#[derive(Debug, Serialize)]
struct Report {
    records: u64,
    /// Bytes of values.
    bytes: u64,
    seconds: f64,
    records_per_second: f64,
    megabytes_per_second: f64,
    /// Time from sending a request to its acknowledgement, in microseconds; absent for reads.
    #[serde(skip_serializing_if = "Option::is_none")]
    latency_us: Option<LatencyOutput>,
    errors: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    first_error: Option<String>,
}

#[derive(Debug, Serialize)]
struct LatencyOutput {
    p50: u64,
    p99: u64,
    p999: u64,
    max: u64,
}

impl Report {
    fn new(records: u64, bytes: u64, elapsed: Duration) -> Self {
        let seconds = elapsed.as_secs_f64().max(1e-9);
        Self {
            records,
            bytes,
            seconds,
            records_per_second: records as f64 / seconds,
            megabytes_per_second: bytes as f64 / 1e6 / seconds,
            latency_us: None,
            errors: 0,
            first_error: None,
        }
    }

    fn table(&self) -> Table {
        let mut pairs = vec![
            ("Records", thousands(self.records)),
            ("Time", format!("{:.3} s", self.seconds)),
            ("Records/s", thousands(self.records_per_second as u64)),
            ("MB/s", format!("{:.2}", self.megabytes_per_second)),
        ];
        if let Some(latency) = &self.latency_us {
            pairs.extend([
                ("Latency p50", micros(latency.p50)),
                ("Latency p99", micros(latency.p99)),
                ("Latency p99.9", micros(latency.p999)),
                ("Latency max", micros(latency.max)),
            ]);
        }
        if let Some(error) = &self.first_error {
            pairs.extend([("Failed requests", thousands(self.errors)), ("First error", error.clone())]);
        }
        Table::pairs(pairs)
    }
}

fn micros(us: u64) -> String {
    if us < 10_000 { format!("{us} us") } else { format!("{:.1} ms", us as f64 / 1000.0) }
}

/// Records still to append and the deadline; shared by all producers.
struct RemainingWork {
    left: AtomicU64,
    until: Option<Instant>,
}

impl RemainingWork {
    /// Takes up to `records` records; `None` when all are taken or the deadline has passed.
    fn take(&self, records: u64) -> Option<u64> {
        if self.until.is_some_and(|until| Instant::now() >= until) {
            return None;
        }
        let before = self
            .left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| Some(left.saturating_sub(records)))
            .unwrap_or(0);
        Some(before.min(records)).filter(|taken| *taken > 0)
    }

    fn stop(&self) {
        self.left.store(0, Ordering::Relaxed);
    }
}

/// Totals of one producer.
struct ProducerTotals {
    records: u64,
    errors: u64,
    first_error: Option<String>,
    latency_us: Histogram,
}

impl ProducerTotals {
    fn new() -> Self {
        Self { records: 0, errors: 0, first_error: None, latency_us: Histogram::new() }
    }

    fn acknowledged(&mut self, records: u64, started: Instant) {
        self.records += records;
        self.latency_us.record(u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX));
    }

    fn failed(&mut self, error: &dyn std::fmt::Display) {
        self.errors += 1;
        self.first_error.get_or_insert_with(|| error.to_string());
    }

    fn add(&mut self, other: ProducerTotals) {
        self.records += other.records;
        self.errors += other.errors;
        self.first_error = self.first_error.take().or(other.first_error);
        self.latency_us.add(&other.latency_us);
    }
}

pub(super) async fn run(global: &Global, command: BenchCommand) -> anyhow::Result<()> {
    let report = match command {
        BenchCommand::Produce(args) => produce(global, args).await?,
        BenchCommand::Consume(args) => consume(global, args).await?,
    };
    print(global.output, &report, || report.table())?;
    match report.first_error {
        Some(error) => anyhow::bail!("{} requests failed, the first with: {error}", report.errors),
        None => Ok(()),
    }
}

async fn produce(global: &Global, args: BenchProduceArgs) -> anyhow::Result<Report> {
    let request = v1::CreateTopicRequest {
        name: args.topic.clone(),
        partitions: args.partitions,
        if_not_exists: true,
        ..Default::default()
    };
    let topic = global.client()?.create_topic(request).await?.topic.unwrap_or_default();
    let partitions = u32::try_from(topic.partitions).unwrap_or(1).max(1);
    let value = noise(args.record_size);
    let duration = args.duration.or(if args.count.is_none() { Some(Duration::from_secs(10)) } else { None });

    // Connected before the clock starts.
    let mut clients = Vec::new();
    for _ in 0..args.producers {
        let client = global.client()?;
        client.get_servers().await?;
        clients.push(client);
    }
    let started = Instant::now();
    let work = Arc::new(RemainingWork {
        left: AtomicU64::new(args.count.unwrap_or(u64::MAX)),
        until: duration.map(|duration| started + duration),
    });
    let args = Arc::new(args);
    let mut producers = JoinSet::new();
    for (client, number) in clients.into_iter().zip(0..) {
        let partition = Partition::new(&args.topic, i32::try_from(number % partitions).unwrap_or(0));
        let (args, work, value) = (args.clone(), work.clone(), value.clone());
        producers.spawn(async move {
            match args.mode {
                Mode::Unary => unary(&client, &partition, &args, &work, &value).await,
                Mode::Stream => stream(&client, partition, &args, &work, &value).await,
            }
        });
    }
    let mut total = ProducerTotals::new();
    let mut stop = std::pin::pin!(signal::stop_requested());
    loop {
        // Joining is cancellation-safe. After a signal the producers finish what they sent.
        tokio::select! {
            stopped = &mut stop, if work.left.load(Ordering::Relaxed) > 0 => { stopped?; work.stop(); }
            joined = producers.join_next() => match joined {
                Some(outcome) => total.add(outcome.context("a producer failed")?),
                None => break,
            },
        }
    }
    let mut report = Report::new(total.records, total.records * args.record_size as u64, started.elapsed());
    report.latency_us = Some(LatencyOutput {
        p50: total.latency_us.quantile(0.5),
        p99: total.latency_us.quantile(0.99),
        p999: total.latency_us.quantile(0.999),
        max: total.latency_us.max(),
    });
    report.errors = total.errors;
    report.first_error = total.first_error;
    Ok(report)
}

async fn unary(
    client: &Client,
    partition: &Partition,
    args: &BenchProduceArgs,
    work: &RemainingWork,
    value: &Bytes,
) -> ProducerTotals {
    let mut outcome = ProducerTotals::new();
    while let Some(records) = work.take(args.batch.into()) {
        let record = v1::Record::from(Record::value(value.clone()));
        let request = v1::ProduceRequest {
            partition: Some(partition.into()),
            records: vec![record; usize::try_from(records).unwrap_or(0)],
            compression: v1::Compression::from(chronicle_client::Compression::from(args.compression)).into(),
            ..Default::default()
        };
        let started = Instant::now();
        match client.produce(request).await {
            Ok(_) => outcome.acknowledged(records, started),
            Err(error) => {
                outcome.failed(&error);
                work.stop();
            }
        }
    }
    outcome
}

async fn stream(
    client: &Client,
    partition: Partition,
    args: &BenchProduceArgs,
    work: &RemainingWork,
    value: &Bytes,
) -> ProducerTotals {
    let mut outcome = ProducerTotals::new();
    let batch_records_max = args.batch as usize;
    // Every call to send_batch fills one request, so requests have the requested size.
    let config = ProducerConfig {
        compression: args.compression.into(),
        batch_records_max,
        batch_bytes_max: usize::MAX,
        in_flight_max: args.in_flight as usize,
        item_bytes_max: usize::MAX,
        buffer_bytes_max: u32::MAX as usize,
        ..ProducerConfig::default()
    };
    let producer = client.producer(partition, config);
    let mut waiting = FuturesOrdered::new();
    let timed = |delivery: Delivery, records: u64, started: Instant| async move { (delivery.await, records, started) };
    loop {
        while waiting.len() < args.in_flight as usize
            && let Some(records) = work.take(args.batch.into())
        {
            let batch = vec![Record::value(value.clone()); usize::try_from(records).unwrap_or(0)];
            let started = Instant::now();
            match producer.send_batch(batch).await {
                Ok(delivery) => waiting.push_back(timed(delivery, records, started)),
                Err(error) => {
                    outcome.failed(&error);
                    work.stop();
                }
            }
        }
        let Some((answer, records, started)) = waiting.next().await else { break };
        match answer {
            Ok(_) => outcome.acknowledged(records, started),
            Err(error) => {
                outcome.failed(&error);
                work.stop();
            }
        }
    }
    if let Err(error) = producer.close().await {
        outcome.first_error.get_or_insert_with(|| error.to_string());
    }
    outcome
}

async fn consume(global: &Global, args: BenchConsumeArgs) -> anyhow::Result<Report> {
    let client = global.client()?;
    let partition = Partition::new(&args.topic, args.partition);
    let offsets = client.list_offsets(&partition, None).await?;
    let mut config = ConsumerConfig::from_offset(offsets.earliest);
    config.max_bytes = args.max_bytes;
    if args.count.is_none() {
        config = config.until(offsets.next);
    }
    let wanted = args.count.unwrap_or(u64::MAX);
    let mut consumer = client.consumer(partition, config);
    let (mut records, mut bytes) = (0, 0);
    let mut stop = std::pin::pin!(signal::stop_requested());
    let started = Instant::now();
    while records < wanted {
        // Reading is cancellation-safe, and the signal ends it in any case.
        let batch = tokio::select! {
            stopped = &mut stop => { stopped?; break }
            batch = consumer.next_batch() => batch?,
        };
        if batch.is_empty() {
            break;
        }
        records += batch.len() as u64;
        bytes += batch.iter().map(|record| record.value.as_ref().map_or(0, Bytes::len) as u64).sum::<u64>();
    }
    Ok(Report::new(records, bytes, started.elapsed()))
}

/// Bytes that do not compress (xorshift64), the same in every run.
fn noise(len: usize) -> Bytes {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_shared_out_exactly_once() {
        let work = RemainingWork { left: AtomicU64::new(25), until: None };
        let taken: Vec<u64> = std::iter::from_fn(|| work.take(10)).collect();
        assert_eq!(taken, [10, 10, 5]);
        let stopped = RemainingWork { left: AtomicU64::new(5), until: None };
        stopped.stop();
        assert_eq!(stopped.take(1), None);
    }

    #[test]
    fn reports_give_rates() {
        let report = Report::new(2_000, 2_048_000, Duration::from_secs(2));
        assert_eq!((report.records_per_second, report.megabytes_per_second), (1_000.0, 1.024));
        let json = serde_json::to_value(&report).unwrap();
        assert!(json.get("latency_us").is_none() && json.get("first_error").is_none());
        assert_eq!(noise(13).len(), 13);
    }
}
