//! `chronicle consume`: reads records and prints them.

use std::collections::BTreeMap;
use std::io::{self, BufWriter, Write};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use chronicle_client::{Client, ConsumerConfig, GroupConfig, GroupStart, Partition, Position, StoredRecord};
use clap::{Args, ValueEnum};
use serde::Serialize;
use serde_json::{Value, json};

use super::Global;
use super::output;
use super::{parse, signal};

#[derive(Debug, Args)]
pub(super) struct ConsumeArgs {
    /// Topic to read.
    #[arg(value_name = "TOPIC", conflicts_with = "topic")]
    name: Option<String>,
    /// Topic to read.
    #[arg(long, short = 't', value_name = "TOPIC", default_value = "default")]
    topic: String,
    /// Consumer group to read as a member of, until Ctrl-C or --max. The members share the partitions, and the group
    /// stores the offsets of printed records. --from (earliest or latest) applies to partitions without a stored
    /// offset.
    #[arg(long, short = 'g', value_name = "GROUP", conflicts_with_all = ["partition", "to"])]
    group: Option<String>,
    /// Partition (0-based).
    #[arg(long, short = 'p', value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(i32).range(0..))]
    partition: i32,
    /// Start position: earliest, latest, an offset, @MILLISECONDS or a time such as 2026-11-21T10:00:00Z.
    #[arg(long, value_name = "POSITION", default_value = "earliest", value_parser = parse::position)]
    from: Position,
    /// End offset (exclusive); waits until the records before it exist.
    #[arg(long, value_name = "OFFSET", value_parser = clap::value_parser!(i64).range(0..))]
    to: Option<i64>,
    /// Most records to print.
    #[arg(long, short = 'n', value_name = "N")]
    max: Option<u64>,
    /// Wait for new records at the end of the log. Default without --to: stop at the end that the log has at the start.
    #[arg(long, short = 'F')]
    follow: bool,
    /// Format of each record. value: the value and a line feed; key-value: key, separator, value, line feed; json: one
    /// object a line; raw: the value, then --delimiter. Default: value, or json with --output json.
    #[arg(long, value_enum, hide_possible_values = true)]
    format: Option<RecordFormat>,
    /// Separator between key and value with --format key-value; escapes such as \t are allowed.
    #[arg(long, value_name = "TEXT", default_value = "\\t", value_parser = parse::separator)]
    separator: parse::Bytes,
    /// Delimiter after each value with --format raw, such as \0.
    #[arg(long, value_name = "TEXT", default_value = "", value_parser = parse::delimiter)]
    delimiter: parse::Bytes,
    /// Encoding of keys and values in JSON: base64, or text, where bytes that are not UTF-8 become {"base64": "..."}.
    #[arg(long, value_enum, default_value = "base64", hide_possible_values = true)]
    encoding: Encoding,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum RecordFormat {
    Value,
    KeyValue,
    Json,
    Raw,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Encoding {
    Base64,
    Text,
}

pub(super) async fn run(global: &Global, args: ConsumeArgs) -> anyhow::Result<()> {
    let client = global.client()?;
    let format = args.format.unwrap_or(match global.output {
        output::Format::Table => RecordFormat::Value,
        output::Format::Json | output::Format::Yaml => RecordFormat::Json,
    });
    // A writer that reports a failure instead of panicking, and that is flushed before every wait.
    let mut out = BufWriter::with_capacity(64 << 10, io::stdout());
    let mut stop = std::pin::pin!(signal::stop_requested());
    if let Some(group) = &args.group {
        let reading = copy_group(&client, group, &args, format, &mut out, stop);
        return reading.await;
    }
    let partition = Partition::new(args.topic(), args.partition);
    tokio::select! {
        stopped = &mut stop => stopped?,
        copied = copy(&client, partition, &args, format, &mut out) => copied?,
    }
    // Only whole records were printed before Ctrl-C.
    out.flush()?;
    Ok(())
}

impl ConsumeArgs {
    fn topic(&self) -> &str {
        self.name.as_deref().unwrap_or(&self.topic)
    }
}

/// Prints the records of the partitions that the group assigns to this process. A record counts as consumed once it is
/// written and flushed.
async fn copy_group(
    client: &Client,
    group: &str,
    args: &ConsumeArgs,
    format: RecordFormat,
    out: &mut impl Write,
    mut stop: std::pin::Pin<&mut impl Future<Output = io::Result<()>>>,
) -> anyhow::Result<()> {
    let start = match args.from {
        Position::Earliest => GroupStart::Earliest,
        Position::Latest => GroupStart::Latest,
        Position::Offset(_) | Position::Timestamp(_) => {
            anyhow::bail!(
                "--from: must be earliest or latest with --group; `chronicle group reset` sets the offsets of a group"
            );
        }
    };
    let client_name = format!("chronicle consume, process {}", std::process::id());
    let config = GroupConfig { start, client_name, ..GroupConfig::new(group, [args.topic()]) };
    let mut consumer = client.group_consumer(config);
    let mut left = args.max.unwrap_or(u64::MAX);
    let mut result = Ok(());
    while left > 0 {
        // Nothing more is printed once the stop is requested; the next reader receives the record that is not taken.
        let record = tokio::select! {
            biased;
            stopped = &mut stop => { result = stopped.map_err(Into::into); break }
            record = consumer.next() => record,
        };
        let written = match record {
            Ok(record) => {
                write_record(out, &record.record, Some(&record.partition), args, format).and_then(|()| Ok(out.flush()?))
            }
            Err(error) => Err(error.into()),
        };
        if let Err(error) = written {
            // A record that could not be written does not count as consumed: the next reader receives it.
            consumer.leave().await?;
            return Err(error);
        }
        left -= 1;
    }
    consumer.close().await?;
    result
}

async fn copy(
    client: &Client,
    partition: Partition,
    args: &ConsumeArgs,
    format: RecordFormat,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    let mut config = ConsumerConfig { until_offset: args.to, ..ConsumerConfig::from(args.from) };
    if !args.follow && args.to.is_none() {
        let offsets = client.list_offsets(&partition, None).await?;
        let start = match args.from {
            // Beyond the end: the node returns an error with the reason; see below.
            Position::Offset(offset) if offset > offsets.next => None,
            Position::Offset(offset) => Some(offset),
            Position::Latest => Some(offsets.next),
            Position::Earliest => Some(offsets.earliest),
            Position::Timestamp(time) => {
                let found = client.list_offsets(&partition, Some(time)).await?.at_timestamp;
                Some(found.map_or(offsets.next, |found| found.offset))
            }
        };
        match start {
            Some(start) if start >= offsets.next => return Ok(()),
            Some(start) => config = ConsumerConfig::from_offset(start).until(offsets.next),
            None => {}
        }
    }
    let mut left = args.max.unwrap_or(u64::MAX);
    let mut consumer = client.consumer(partition, config);
    while left > 0 {
        let records = consumer.next_batch().await?;
        if records.is_empty() {
            break;
        }
        for record in records.into_iter().take(usize::try_from(left).unwrap_or(usize::MAX)) {
            write_record(out, &record, None, args, format)?;
            left -= 1;
        }
        out.flush()?;
    }
    Ok(())
}

fn write_record(
    out: &mut impl Write,
    record: &StoredRecord,
    partition: Option<&Partition>,
    args: &ConsumeArgs,
    format: RecordFormat,
) -> anyhow::Result<()> {
    let value = record.value.as_deref().unwrap_or_default();
    match format {
        RecordFormat::Value => {
            out.write_all(value)?;
            out.write_all(b"\n")?;
        }
        RecordFormat::KeyValue => {
            out.write_all(record.key.as_deref().unwrap_or_default())?;
            out.write_all(&args.separator.0)?;
            out.write_all(value)?;
            out.write_all(b"\n")?;
        }
        RecordFormat::Raw => {
            out.write_all(value)?;
            out.write_all(&args.delimiter.0)?;
        }
        RecordFormat::Json => {
            serde_json::to_writer(&mut *out, &RecordOutput::new(record, partition, args.encoding))
                .map_err(io::Error::from)?;
            out.write_all(b"\n")?;
        }
    }
    Ok(())
}

/// A record as one JSON line. Absent: no key, a null value.
#[derive(Debug, Serialize)]
struct RecordOutput {
    /// Set for a group's record, which may be from any partition.
    #[serde(skip_serializing_if = "Option::is_none")]
    partition: Option<i32>,
    offset: i64,
    timestamp: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<Value>,
    value: Option<Value>,
    /// In order; a name may repeat.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    headers: Vec<BTreeMap<&'static str, Option<Value>>>,
}

impl RecordOutput {
    fn new(record: &StoredRecord, partition: Option<&Partition>, encoding: Encoding) -> Self {
        let encode = |bytes: &[u8]| match (encoding, std::str::from_utf8(bytes)) {
            (Encoding::Base64, _) => json!(STANDARD.encode(bytes)),
            (Encoding::Text, Ok(text)) => json!(text),
            (Encoding::Text, Err(_)) => json!({ "base64": STANDARD.encode(bytes) }),
        };
        let header = |header: &chronicle_client::v1::Header| {
            BTreeMap::from([("name", Some(json!(header.key))), ("value", header.value.as_deref().map(encode))])
        };
        Self {
            partition: partition.map(|partition| partition.partition),
            offset: record.offset,
            timestamp: record.timestamp_ms,
            key: record.key.as_deref().map(encode),
            value: record.value.as_deref().map(encode),
            headers: record.headers.iter().map(header).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use chronicle_client::v1;
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: ConsumeArgs,
    }

    fn printed(arguments: &[&str], format: RecordFormat, record: &StoredRecord) -> Vec<u8> {
        let args = Line::parse_from([&["consume"], arguments].concat()).args;
        let mut out = Vec::new();
        write_record(&mut out, record, None, &args, format).unwrap();
        out
    }

    fn record() -> StoredRecord {
        StoredRecord {
            offset: 7,
            timestamp_ms: 1000,
            key: Some("k".into()),
            value: Some(vec![b'v', 0xff].into()),
            headers: vec![v1::Header { key: "h".into(), value: None }],
        }
    }

    #[test]
    fn each_format_prints_its_fields() {
        assert_eq!(printed(&[], RecordFormat::Value, &record()), b"v\xff\n");
        assert_eq!(printed(&[], RecordFormat::KeyValue, &record()), b"k\tv\xff\n");
        assert_eq!(printed(&["--separator", "=>"], RecordFormat::KeyValue, &record()), b"k=>v\xff\n");
        assert_eq!(printed(&[], RecordFormat::Raw, &record()), b"v\xff");
        assert_eq!(printed(&["--delimiter", "\\0"], RecordFormat::Raw, &record()), b"v\xff\0");
    }

    #[test]
    fn json_lines_carry_base64_or_text() {
        let line = String::from_utf8(printed(&[], RecordFormat::Json, &record())).unwrap();
        let wanted =
            r#"{"offset":7,"timestamp":1000,"key":"aw==","value":"dv8=","headers":[{"name":"h","value":null}]}"#;
        assert_eq!(line, format!("{wanted}\n"));
        let line = printed(&["--encoding", "text"], RecordFormat::Json, &record());
        let line: Value = serde_json::from_slice(&line).unwrap();
        assert_eq!((&line["key"], &line["value"]), (&json!("k"), &json!({"base64": "dv8="})));
        let tombstone = StoredRecord { offset: 8, ..StoredRecord::default() };
        let line = printed(&[], RecordFormat::Json, &tombstone);
        assert_eq!(line, b"{\"offset\":8,\"timestamp\":0,\"value\":null}\n");
    }
}
