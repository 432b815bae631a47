//! `chronicle produce`: append lines or files.
//!
//! One task reads the input and sends records to the producer, whose bounded buffer applies back-pressure. A second
//! task receives the acknowledgements in order, prints them and counts.

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use chronicle_client::{ClientError, Compression, Delivery, Partition, Producer, ProducerConfig, Record, v1};
use clap::{ArgGroup, Args, ValueEnum};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::Global;
use super::input::{Input, RecordSource};
use super::output::{Format, Table, human_bytes, print, thousands};
use super::{parse, signal};

/// Acknowledgements queued for the printer. The producer's buffer bounds the bytes of their records.
const ACKNOWLEDGEMENTS: usize = 65_536;

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("input").args(["file", "lines"]))]
pub(super) struct ProduceArgs {
    /// Topic to append to.
    #[arg(long, short = 't', value_name = "TOPIC", default_value = "default")]
    topic: String,
    /// Partition (0-based).
    #[arg(long, short = 'p', value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(i32).range(0..))]
    partition: i32,
    /// Append each of these files as one record. Default without --file and --lines: each line of standard input.
    #[arg(long, short = 'f', value_name = "FILE", num_args = 1..)]
    file: Vec<PathBuf>,
    /// Append each line of this file as one record.
    #[arg(long, value_name = "FILE")]
    lines: Option<PathBuf>,
    /// With --file: use the path, as given, as the record's key.
    #[arg(long, requires = "file")]
    keyed: bool,
    /// Separator between key and value of each line; escapes such as \t are allowed.
    #[arg(long, value_name = "TEXT", value_parser = parse::separator, conflicts_with = "file")]
    key_separator: Option<parse::Bytes>,
    /// Header of every record; may be repeated.
    #[arg(long = "header", short = 'H', value_name = "NAME=VALUE", value_parser = parse::header)]
    headers: Vec<(String, String)>,
    /// Compression of the stored records.
    #[arg(long, value_enum, default_value = "none")]
    compression: CompressionArg,
    /// Append only if the first record gets this offset and the others follow without gaps.
    #[arg(long, value_name = "OFFSET", value_parser = clap::value_parser!(i64).range(0..))]
    expect_next: Option<i64>,
    /// Most records of one request.
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    batch: u32,
    /// Most bytes of one request.
    #[arg(long, value_name = "BYTES", default_value = "1MiB", value_parser = parse::size)]
    batch_bytes: usize,
    /// Longest wait for more records before a request that is not full is sent.
    #[arg(long, value_name = "TIME", default_value = "0ms", value_parser = parse::duration)]
    linger: Duration,
    /// Do not retry an append whose outcome is unknown; it fails instead.
    #[arg(long)]
    no_idempotence: bool,
    /// Print the offset of every record as it is acknowledged (with --output json: one JSON object a line).
    #[arg(long)]
    each: bool,
    /// No progress and no summary on standard error.
    #[arg(long, short = 'q')]
    quiet: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum CompressionArg {
    None,
    Gzip,
    Snappy,
    Lz4,
    Zstd,
}

impl From<CompressionArg> for Compression {
    fn from(compression: CompressionArg) -> Self {
        match compression {
            CompressionArg::None => Self::None,
            CompressionArg::Gzip => Self::Gzip,
            CompressionArg::Snappy => Self::Snappy,
            CompressionArg::Lz4 => Self::Lz4,
            CompressionArg::Zstd => Self::Zstd,
        }
    }
}

/// Totals of the acknowledged records.
#[derive(Debug, Default, Serialize)]
struct Summary {
    topic: String,
    partition: i32,
    /// Acknowledged records.
    records: u64,
    /// Bytes of their keys, values and headers.
    bytes: u64,
    first_offset: Option<i64>,
    last_offset: Option<i64>,
    duration_ms: u64,
    /// A signal ended reading before the end of the input.
    interrupted: bool,
}

/// One acknowledgement, as printed with `--each --output json`.
#[derive(Debug, Serialize)]
struct EachOutput<'a> {
    offset: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<u64>,
}

struct PendingRecord {
    source: RecordSource,
    payload_bytes: u64,
    input_bytes: u64,
    delivery: Delivery,
}

pub(super) async fn run(global: &Global, args: ProduceArgs) -> anyhow::Result<()> {
    let input = match args.file.is_empty() {
        true => Input::lines(args.lines.as_deref(), args.key_separator.clone().map(|bytes| bytes.0)).await?,
        false => Input::files(args.file.clone(), args.keyed),
    };
    let progress = progress_bar(&args, &input).await;
    let config = ProducerConfig {
        idempotent: !args.no_idempotence,
        compression: args.compression.into(),
        batch_records_max: args.batch as usize,
        batch_bytes_max: args.batch_bytes,
        linger: args.linger,
        delivery_timeout: global.timeout,
        ..ProducerConfig::default()
    };
    let producer = global.client()?.producer(Partition::new(&args.topic, args.partition), config);
    let started = Instant::now();

    let (acknowledgements, receiver) = mpsc::channel(ACKNOWLEDGEMENTS);
    let each = args.each.then_some(global.output);
    let printer = tokio::spawn(acknowledge(receiver, each, progress.clone()));
    let read = append_all(&producer, &args, input, acknowledgements).await;
    // The printer handles every delivery first, so its error takes precedence over the error of closing.
    let (mut summary, acknowledged) = printer.await.context("printing acknowledgements")?;
    let closed = producer.close().await;
    progress.finish_and_clear();

    summary.topic = args.topic.clone();
    summary.partition = args.partition;
    summary.duration_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    summary.interrupted = matches!(read, Ok(InputEnd::Interrupted));
    if !args.quiet {
        eprintln!("{}", summary_line(&summary));
    }
    if global.output != Format::Table && !args.each {
        print(global.output, &summary, Table::default)?;
    }
    acknowledged?;
    read?;
    Ok(closed?)
}

#[derive(Debug, PartialEq, Eq)]
enum InputEnd {
    All,
    Interrupted,
    /// The printer has failed and returns the error itself.
    PrinterFailed,
}

/// Sends every record of the input to the producer. Dropping `acknowledgements` at the end lets the printer finish.
async fn append_all(
    producer: &Producer,
    args: &ProduceArgs,
    mut input: Input,
    acknowledgements: mpsc::Sender<PendingRecord>,
) -> anyhow::Result<InputEnd> {
    let headers: Vec<(String, Option<Bytes>)> =
        args.headers.iter().map(|(name, value)| (name.clone(), Some(Bytes::from(value.clone())))).collect();
    let mut expected = args.expect_next;
    let mut stop = std::pin::pin!(signal::stop_requested());
    loop {
        // Both other branches end the reading, so losing a half-read line does not matter.
        let sourced = tokio::select! {
            stopped = &mut stop => { stopped?; return Ok(InputEnd::Interrupted) }
            () = acknowledgements.closed() => return Ok(InputEnd::PrinterFailed),
            sourced = input.next() => match sourced? {
                Some(sourced) => sourced,
                None => return Ok(InputEnd::All),
            },
        };
        let record = Record { headers: headers.clone(), ..sourced.record };
        let payload_bytes = record.payload_bytes() as u64;
        let sending = async {
            match &mut expected {
                None => producer.send(record).await,
                Some(offset) => {
                    let expectation = v1::expectation::Expect::NextOffset(*offset);
                    *offset += 1;
                    producer.send_expecting(vec![record], expectation).await
                }
            }
        };
        let delivery = tokio::select! {
            stopped = &mut stop => { stopped?; return Ok(InputEnd::Interrupted) }
            delivery = sending => match delivery {
                Ok(delivery) => delivery,
                Err(error) if acknowledgements.is_closed() => {
                    tracing::debug!(%error, "producer failed");
                    return Ok(InputEnd::PrinterFailed);
                }
                Err(error) => return Err(anyhow::Error::new(error).context(sourced.source.to_string())),
            },
        };
        let sent = PendingRecord { source: sourced.source, payload_bytes, input_bytes: sourced.input_bytes, delivery };
        if acknowledgements.send(sent).await.is_err() {
            return Ok(InputEnd::PrinterFailed);
        }
    }
}

/// Receives acknowledgements in order until the first error. Returns the totals of those before it.
async fn acknowledge(
    mut sent: mpsc::Receiver<PendingRecord>,
    each: Option<Format>,
    progress: ProgressBar,
) -> (Summary, anyhow::Result<()>) {
    let mut summary = Summary::default();
    while let Some(PendingRecord { source, payload_bytes, input_bytes, delivery }) = sent.recv().await {
        let offset = match delivery.await {
            Ok(offset) => offset,
            Err(error) => return (summary, Err(failed(&source, error))),
        };
        summary.records += 1;
        summary.bytes += payload_bytes;
        summary.first_offset.get_or_insert(offset);
        summary.last_offset = Some(offset);
        progress.inc(input_bytes);
        if let Some(format) = each
            && let Err(error) = print_each(format, offset, &source)
        {
            return (summary, Err(error.into()));
        }
    }
    (summary, Ok(()))
}

fn failed(source: &RecordSource, error: ClientError) -> anyhow::Error {
    anyhow::Error::new(error).context(source.to_string())
}

fn print_each(format: Format, offset: i64, source: &RecordSource) -> io::Result<()> {
    // Standard output is line buffered: its reader sees each acknowledgement at once.
    let mut out = io::stdout().lock();
    if format == Format::Table {
        return writeln!(out, "{offset}\t{source}");
    }
    let file = match source {
        RecordSource::File(path) => Some(path.to_string_lossy()),
        RecordSource::Line(_) => None,
    };
    let line = match source {
        RecordSource::File(_) => None,
        RecordSource::Line(line) => Some(*line),
    };
    let text = serde_json::to_string(&EachOutput { offset, file: file.as_deref(), line })?;
    writeln!(out, "{text}")
}

async fn progress_bar(args: &ProduceArgs, input: &Input) -> ProgressBar {
    if args.quiet || args.each || !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let size = match &args.lines {
        Some(path) => tokio::fs::metadata(path).await.ok().map(|metadata| metadata.len()).filter(|len| *len > 0),
        None => input.size().await,
    };
    let (bar, template) = match size {
        Some(size) => (ProgressBar::new(size), "{bar:40} {bytes}/{total_bytes} ({bytes_per_sec}, {eta} left)"),
        None => (ProgressBar::new_spinner(), "{spinner} {bytes} ({bytes_per_sec})"),
    };
    bar.set_draw_target(ProgressDrawTarget::stderr());
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

fn summary_line(summary: &Summary) -> String {
    let seconds = (summary.duration_ms as f64 / 1000.0).max(0.001);
    let offsets = match (summary.first_offset, summary.last_offset) {
        (Some(first), Some(last)) => format!(", offsets {first} to {last}"),
        _ => String::new(),
    };
    format!(
        "{}{} records acknowledged ({}) in {seconds:.2} s, {}/s, {}/{}{offsets}",
        if summary.interrupted { "interrupted: " } else { "" },
        thousands(summary.records),
        human_bytes(summary.bytes as f64),
        human_bytes(summary.bytes as f64 / seconds),
        summary.topic,
        summary.partition,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_names_amount_place_and_offsets() {
        let summary = Summary {
            topic: "orders".into(),
            partition: 2,
            records: 1200,
            bytes: 3 << 20,
            first_offset: Some(7),
            last_offset: Some(1206),
            duration_ms: 1500,
            interrupted: false,
        };
        let wanted = "1,200 records acknowledged (3.0 MiB) in 1.50 s, 2.0 MiB/s, orders/2, offsets 7 to 1206";
        assert_eq!(summary_line(&summary), wanted);
        let line = summary_line(&Summary { interrupted: true, ..Summary::default() });
        assert!(line.starts_with("interrupted: 0 records acknowledged (0 B)"), "{line}");
    }
}
