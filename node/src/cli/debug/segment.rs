//! `chronicle debug segment`: prints and verifies segment files, whether the node runs or not. Writes nothing.
//!
//! A segment may contain many frames, so each is printed as it is read: one line, one JSON object a line, or one YAML
//! document.

use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use chronicle_log::EntryKind;
use chronicle_log::debug::{FrameInfo, SegmentFile, Stretch};
use chronicle_log::disk::RealDisk;
use chronicle_records::{Limits, records, split};
use clap::Args;
use serde::Serialize;
use serde_json::{Value, json};

use crate::cli::Global;
use crate::cli::output::Format;
use crate::cli::time::format_rfc3339;

#[derive(Debug, Args)]
pub(in crate::cli) struct SegmentArgs {
    /// Segment files.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Print also the records of each entry.
    #[arg(long)]
    records: bool,
    /// Print only the summary and the problems of each file.
    #[arg(long, conflicts_with = "records")]
    summary: bool,
}

pub(super) fn run(global: &Global, args: &SegmentArgs) -> anyhow::Result<()> {
    let mut out = BufWriter::with_capacity(64 << 10, io::stdout());
    let mut damaged = 0;
    for path in &args.files {
        let sound = segment(&mut out, global.output, args, path).with_context(|| path.display().to_string())?;
        damaged += usize::from(!sound);
    }
    out.flush()?;
    if damaged > 0 {
        bail!("{damaged} of {} segments have problems", args.files.len());
    }
    Ok(())
}

/// Prints one segment. Returns whether it is intact.
fn segment(out: &mut impl Write, format: Format, args: &SegmentArgs, path: &Path) -> anyhow::Result<bool> {
    let segment = SegmentFile::open(&RealDisk, path)?;
    if format == Format::Table {
        writeln!(out, "{}: log {}, {} bytes", path.display(), segment.id(), segment.len())?;
        if let Ok(header) = segment.header() {
            let created = format_rfc3339(header.created_ms);
            writeln!(
                out,
                "  version {}, first index {}, first offset {}, created {created}",
                header.version, header.base_index, header.base_offset
            )?;
        }
    }
    let (mut frames, mut count) = (0_u64, 0_u64);
    for stretch in segment.stretches() {
        let stretch = stretch?;
        if let Stretch::Frame { frame, .. } = &stretch {
            frames += 1;
            count += u64::from(frame.record_count);
        }
        if !args.summary {
            print_stretch(out, format, args.records, &stretch)?;
        }
    }
    let problems = segment.verify(&RealDisk)?;
    let sealed = segment.footer().is_some();
    if format == Format::Table {
        let state = if sealed { "sealed" } else { "not sealed" };
        writeln!(out, "  {frames} entries, {count} offsets, {state}: {}", verdict(&problems))?;
        problems.iter().try_for_each(|problem| writeln!(out, "  problem: {problem}"))?;
    } else {
        let file = path.display().to_string();
        let summary = json!({
            "summary": { "file": file, "log": segment.id().to_string(), "bytes": segment.len(), "sealed": sealed,
                         "entries": frames, "offsets": count, "problems": problems },
        });
        print_document(out, format, &summary)?;
    }
    Ok(problems.is_empty())
}

fn verdict(problems: &[String]) -> String {
    if problems.is_empty() { "intact".into() } else { format!("{} problems", problems.len()) }
}

fn print_stretch(out: &mut impl Write, format: Format, with_records: bool, stretch: &Stretch) -> anyhow::Result<()> {
    match stretch {
        Stretch::Damage { position, len, reason } if format == Format::Table => {
            writeln!(out, "  byte {position:>10}  DAMAGE: {len} bytes: {reason}")?;
        }
        Stretch::Damage { position, len, reason } => {
            let damage = json!({ "damage": { "position": position, "bytes": len, "reason": reason } });
            print_document(out, format, &damage)?;
        }
        Stretch::Frame { position, frame } => {
            let decoded = (with_records && frame.kind == EntryKind::Data).then(|| decode(frame));
            if format == Format::Table {
                print_frame_line(out, *position, frame)?;
                match decoded {
                    Some(Ok(records)) => records.iter().try_for_each(|record| print_record_line(out, record))?,
                    Some(Err(reason)) => writeln!(out, "      no record batches: {reason}")?,
                    None => {}
                }
            } else {
                print_document(out, format, &frame_document(*position, frame, decoded))?;
            }
        }
    }
    Ok(())
}

fn print_frame_line(out: &mut impl Write, position: u64, frame: &FrameInfo) -> io::Result<()> {
    let kind = kind(frame.kind);
    let FrameInfo { index, term, base_offset, record_count, .. } = frame;
    let bytes = frame.payload.len();
    write!(out, "  byte {position:>10}  index {index:>8}  term {term:>3}  {kind:<10}  {bytes:>8} bytes")?;
    if frame.kind == EntryKind::Data {
        write!(out, "  {record_count:>6} offsets from {base_offset}")?;
    }
    match &frame.misplaced {
        Some(reason) => writeln!(out, "  MISPLACED: {reason}"),
        None => writeln!(out),
    }
}

fn kind(kind: EntryKind) -> &'static str {
    match kind {
        EntryKind::Data => "data",
        EntryKind::Blank => "blank",
        EntryKind::Membership => "membership",
        EntryKind::Config => "config",
        EntryKind::SegmentEnd => "end",
    }
}

/// A record as printed.
#[derive(Debug, Serialize)]
struct StoredRecordOutput {
    offset: i64,
    timestamp: i64,
    key: Option<String>,
    value: Option<String>,
    headers: Vec<Value>,
    #[serde(skip)]
    value_bytes: usize,
}

/// Returns the records of an entry's batches.
fn decode(frame: &FrameInfo) -> Result<Vec<StoredRecordOutput>, String> {
    let base64 = |bytes: &Bytes| STANDARD.encode(bytes);
    let mut views = Vec::new();
    for batch in split(&frame.payload) {
        let (_, batch) = batch.map_err(|error| error.to_string())?;
        for record in records(&batch, &Limits::default()).map_err(|error| error.to_string())? {
            let record = record.map_err(|error| error.to_string())?;
            let header = |(name, value): &(Bytes, Option<Bytes>)| json!({ "name": String::from_utf8_lossy(name), "value": value.as_ref().map(base64) });
            views.push(StoredRecordOutput {
                offset: record.offset,
                timestamp: record.timestamp,
                key: record.key.as_ref().map(base64),
                value: record.value.as_ref().map(base64),
                headers: record.headers.iter().map(header).collect(),
                value_bytes: record.value.as_ref().map_or(0, Bytes::len),
            });
        }
    }
    Ok(views)
}

fn print_record_line(out: &mut impl Write, record: &StoredRecordOutput) -> io::Result<()> {
    let time = format_rfc3339(record.timestamp);
    let key = record.key.as_ref().map_or_else(|| "no key".to_owned(), |key| format!("key {key}"));
    writeln!(out, "      offset {:>8}  {time}  {key}, value of {} bytes", record.offset, record.value_bytes)
}

fn frame_document(position: u64, frame: &FrameInfo, decoded: Option<Result<Vec<StoredRecordOutput>, String>>) -> Value {
    let mut entry = json!({
        "position": position, "bytes": frame.len, "index": frame.index, "term": frame.term, "leader": frame.leader,
        "kind": kind(frame.kind), "base_offset": frame.base_offset, "record_count": frame.record_count,
        "max_timestamp": frame.max_timestamp, "durable_mark": frame.durable_mark, "payload_bytes": frame.payload.len(),
        "misplaced": frame.misplaced,
    });
    match decoded {
        Some(Ok(records)) => entry["records"] = json!(records),
        Some(Err(reason)) => entry["records_error"] = json!(reason),
        None => {}
    }
    json!({ "entry": entry })
}

fn print_document(out: &mut impl Write, format: Format, document: &Value) -> anyhow::Result<()> {
    if format == Format::Yaml {
        let text = serde_yaml::to_string(document)?;
        write!(out, "---\n{text}")?;
    } else {
        let text = serde_json::to_string(document)?;
        writeln!(out, "{text}")?;
    }
    Ok(())
}
