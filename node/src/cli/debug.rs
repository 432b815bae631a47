//! `chronicle debug segment`: prints and verifies segment files. Reads only, and works on damaged files and while a node
//! runs (the newest segment may then end in the middle of a frame).

use std::path::PathBuf;

use chronicle_log::EntryKind;
use chronicle_log::debug::{FrameInfo, SegmentFile, Stretch};
use chronicle_log::disk::RealDisk;
use chronicle_records::{Limits, Record};
use clap::{Args, Subcommand};
use serde::Serialize;

use super::Global;
use super::output::{self, Table};

#[derive(Debug, Subcommand)]
pub(super) enum DebugCommand {
    /// Print and verify segment files. Fails when a file has a problem.
    Segment(SegmentArgs),
}

#[derive(Debug, Args)]
pub(super) struct SegmentArgs {
    /// Segment files (`<data>/logs/<log>/<base index>.log`).
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// List the frames: one raft entry each.
    #[arg(long)]
    frames: bool,
    /// List the frames and their records.
    #[arg(long)]
    records: bool,
}

/// What one file holds.
#[derive(Debug, Serialize)]
struct Segment {
    file: String,
    log: String,
    bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    created_ms: Option<i64>,
    sealed: bool,
    entries: u64,
    records: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    first_index: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_index: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    first_offset: Option<u64>,
    next_offset: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    blake3: Option<String>,
    /// Empty: the file is intact.
    problems: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    frames: Vec<Frame>,
}

#[derive(Debug, Serialize)]
struct Frame {
    position: u64,
    bytes: u64,
    index: u64,
    term: u64,
    leader: u64,
    kind: &'static str,
    base_offset: u64,
    record_count: u32,
    max_timestamp: i64,
    durable_mark: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    records: Vec<RecordLine>,
}

#[derive(Debug, Serialize)]
struct RecordLine {
    offset: i64,
    timestamp: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    /// Bytes of the value; absent: null.
    #[serde(skip_serializing_if = "Option::is_none")]
    value_bytes: Option<usize>,
    headers: usize,
}

pub(super) fn run(global: &Global, command: DebugCommand) -> anyhow::Result<()> {
    let DebugCommand::Segment(args) = command;
    let segments: Vec<Segment> = args.files.iter().map(|file| inspect(file, &args)).collect::<anyhow::Result<_>>()?;
    let damaged = segments.iter().filter(|segment| !segment.problems.is_empty()).count();
    output::print(global.output, &segments, || table(&segments))?;
    anyhow::ensure!(damaged == 0, "{damaged} of {} segment files have problems", segments.len());
    Ok(())
}

fn inspect(path: &PathBuf, args: &SegmentArgs) -> anyhow::Result<Segment> {
    let disk = RealDisk;
    let file = SegmentFile::open(&disk, path)?;
    let footer = file.footer();
    let mut segment = Segment {
        file: path.display().to_string(),
        log: file.id().to_string(),
        bytes: file.len(),
        created_ms: file.header().ok().map(|header| header.created_ms),
        sealed: footer.is_some(),
        entries: 0,
        records: 0,
        first_index: None,
        last_index: None,
        first_offset: None,
        next_offset: file.header().map_or(0, |header| header.base_offset),
        blake3: footer.map(|footer| footer.hash.iter().map(|byte| format!("{byte:02x}")).collect()),
        problems: file.verify(&disk)?,
        frames: Vec::new(),
    };
    for stretch in file.stretches() {
        // Damaged stretches are among the problems already.
        let Stretch::Frame { position, frame } = stretch? else { continue };
        segment.entries += 1;
        segment.records += u64::from(frame.record_count);
        segment.first_index.get_or_insert(frame.index);
        segment.first_offset.get_or_insert(frame.base_offset);
        segment.last_index = Some(frame.index);
        segment.next_offset = frame.base_offset + u64::from(frame.record_count);
        let records = match records(&frame) {
            Ok(records) => records,
            Err(problem) => {
                segment.problems.push(format!("entry {} at byte {position}: {problem}", frame.index));
                Vec::new()
            }
        };
        if args.frames || args.records {
            segment.frames.push(Frame {
                position,
                bytes: frame.len,
                index: frame.index,
                term: frame.term,
                leader: frame.leader,
                kind: kind(frame.kind),
                base_offset: frame.base_offset,
                record_count: frame.record_count,
                max_timestamp: frame.max_timestamp,
                durable_mark: frame.durable_mark,
                records: if args.records { records } else { Vec::new() },
            });
        }
    }
    Ok(segment)
}

fn kind(kind: EntryKind) -> &'static str {
    match kind {
        EntryKind::Data => "data",
        EntryKind::Blank => "blank",
        EntryKind::Membership => "membership",
        EntryKind::Config => "config",
    }
}

/// The records of a frame, and whether they are what the frame says. The controller's entries are no record batches.
fn records(frame: &FrameInfo) -> Result<Vec<RecordLine>, String> {
    if frame.kind != EntryKind::Data || frame.payload.first() == Some(&b'{') {
        return Ok(Vec::new());
    }
    let mut lines = Vec::new();
    for batch in chronicle_records::split(&frame.payload) {
        let (_, bytes) = batch.map_err(|e| e.to_string())?;
        chronicle_records::check_shallow(&bytes).map_err(|e| e.to_string())?;
        for record in chronicle_records::records(&bytes, &Limits::default()).map_err(|e| e.to_string())? {
            lines.push(line(record.map_err(|e| e.to_string())?));
        }
    }
    if lines.len() as u64 != u64::from(frame.record_count) {
        return Err(format!("{} records in its batches, the frame says {}", lines.len(), frame.record_count));
    }
    match lines.first() {
        Some(first) if first.offset != frame.base_offset as i64 => {
            Err(format!("its batches start at offset {}, the frame says {}", first.offset, frame.base_offset))
        }
        _ => Ok(lines),
    }
}

fn line(record: Record) -> RecordLine {
    RecordLine {
        offset: record.offset,
        timestamp: record.timestamp,
        key: record.key.map(|key| String::from_utf8_lossy(&key).into_owned()),
        value_bytes: record.value.map(|value| value.len()),
        headers: record.headers.len(),
    }
}

fn table(segments: &[Segment]) -> Table {
    let headings: &[&'static str] =
        &["FILE", "AT", "WHAT", "INDEX", "TERM", "OFFSET", "RECORDS", "BYTES", "TIMESTAMP", "NOTE"];
    let mut table = Table::new(headings);
    for segment in segments {
        let number = |value: Option<u64>| value.map(|value| value.to_string()).unwrap_or_default();
        table.row(vec![
            segment.file.clone(),
            String::new(),
            if segment.sealed { "sealed" } else { "unsealed" }.into(),
            number(segment.first_index),
            String::new(),
            number(segment.first_offset),
            segment.records.to_string(),
            segment.bytes.to_string(),
            String::new(),
            match segment.problems.len() {
                0 => format!("intact, {} entries", segment.entries),
                problems => format!("{problems} problems, {} entries", segment.entries),
            },
        ]);
        for frame in &segment.frames {
            table.row(vec![
                String::new(),
                frame.position.to_string(),
                frame.kind.into(),
                frame.index.to_string(),
                frame.term.to_string(),
                frame.base_offset.to_string(),
                frame.record_count.to_string(),
                frame.bytes.to_string(),
                frame.max_timestamp.to_string(),
                format!("durable below {}", frame.durable_mark),
            ]);
            for record in &frame.records {
                table.row(vec![
                    String::new(),
                    String::new(),
                    "record".into(),
                    String::new(),
                    String::new(),
                    record.offset.to_string(),
                    String::new(),
                    record.value_bytes.map_or_else(|| "null".into(), |bytes| bytes.to_string()),
                    record.timestamp.to_string(),
                    record.key.as_ref().map(|key| format!("key {key:?}")).unwrap_or_default(),
                ]);
            }
        }
        for problem in &segment.problems {
            table.row(vec![
                String::new(),
                String::new(),
                "problem".into(),
                String::new(),
                String::new(),
                String::new(),
                String::new(),
                String::new(),
                String::new(),
                problem.clone(),
            ]);
        }
    }
    table
}
