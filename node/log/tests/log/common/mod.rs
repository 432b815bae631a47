//! What every test of the engine needs: a log on a disk in memory, entries, and a way to wait for an append.
#![allow(dead_code, unreachable_pub, reason = "shared by test binaries that each use a part")]

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
        mpsc,
    },
    time::Duration,
};

use bytes::Bytes;
use chronicle_log::{
    Appended, Clock, Done, Durability, Entropy, Entry, EntryKind, Log, LogConfig, LogError, LogId, Store, StoreConfig,
    disk::{Disk, MemoryDisk, OpenMode},
};
use uuid::Uuid;

pub const DIR: &str = "/data";

pub fn id(n: u32) -> LogId {
    LogId { topic: Uuid::from_u128(0xc0de), partition: n }
}

pub fn config() -> StoreConfig {
    StoreConfig {
        segment_bytes: 4096,
        index_interval_bytes: 256,
        // Marks never come by themselves: tests say when a log is idle.
        mark_interval: Duration::from_secs(3600),
        idle_mark_delay: Duration::from_secs(3600),
        flush_threads: 2,
        ..StoreConfig::default()
    }
}

/// A clock that only tests move.
#[derive(Debug, Default)]
pub struct ManualClock(AtomicU64);

impl ManualClock {
    pub fn advance(&self, ms: u64) {
        self.0.fetch_add(ms, Relaxed);
    }
}

impl Clock for ManualClock {
    fn monotonic(&self) -> Duration {
        Duration::from_millis(self.0.load(Relaxed))
    }

    fn wall_ms(&self) -> i64 {
        self.0.load(Relaxed) as i64
    }
}

/// Not random, so that a test is its seed and nothing else.
#[derive(Debug, Default)]
pub struct Counted(AtomicU64);

impl Entropy for Counted {
    fn secret(&self) -> [u8; 8] {
        (self.0.fetch_add(1, Relaxed) + 1).to_be_bytes()
    }
}

pub fn open(disk: &Arc<dyn Disk>) -> Arc<Store> {
    Store::open(disk.clone(), Path::new(DIR), config()).unwrap()
}

pub fn memory() -> (MemoryDisk, Arc<dyn Disk>) {
    let disk = MemoryDisk::new();
    (disk.clone(), Arc::new(disk))
}

pub fn data(index: u64, records: u32, timestamp: i64, payload: impl Into<Bytes>) -> Entry {
    Entry {
        term: 1 + index / 10,
        leader: 1,
        index,
        kind: EntryKind::Data,
        record_count: records,
        max_timestamp: timestamp,
        payload: payload.into(),
    }
}

pub fn blank(index: u64) -> Entry {
    Entry { kind: EntryKind::Blank, record_count: 0, ..data(index, 0, 0, Bytes::new()) }
}

/// An entry whose every byte follows from its index.
pub fn sample(index: u64) -> Entry {
    match index % 7 {
        0 => blank(index),
        n => data(index, n as u32, 1000 + index as i64, vec![(index * 31 % 251) as u8; (index as usize * 37) % 300]),
    }
}

pub type Wait = mpsc::Receiver<Result<(), LogError>>;

pub fn done() -> (Done, Wait) {
    let (sender, receiver) = mpsc::channel();
    (Box::new(move |result| sender.send(result).unwrap_or_default()), receiver)
}

pub fn append(log: &Log, entries: Vec<Entry>) -> Result<(Appended, Wait), LogError> {
    let (done, wait) = done();
    Ok((log.append(entries, done)?, wait))
}

pub fn append_durably(log: &Log, entries: Vec<Entry>) -> Result<Appended, LogError> {
    let (appended, wait) = append(log, entries)?;
    wait.recv().expect("every append is answered")?;
    Ok(appended)
}

/// Appends the samples `from..to`, each on its own.
pub fn fill(log: &Log, from: u64, to: u64) {
    for index in from..to {
        append_durably(log, vec![sample(index)]).unwrap();
    }
}

pub fn read_all(log: &Log) -> Result<Vec<Entry>, LogError> {
    let first = log.position().first_index;
    let mut entries: Vec<Entry> = Vec::new();
    loop {
        let batch = log.read(first + entries.len() as u64, u64::MAX, 1000)?;
        if batch.is_empty() {
            return Ok(entries);
        }
        entries.extend(batch.into_iter().map(|stored| stored.entry));
    }
}

pub fn assert_samples(log: &Log, from: u64, to: u64) {
    let expected: Vec<Entry> = (from..to).map(sample).collect();
    assert_eq!(read_all(log).unwrap(), expected);
}

pub fn memory_mode(flush_interval: Duration) -> LogConfig {
    LogConfig { durability: Durability::Memory { flush_interval }, ..LogConfig::default() }
}

/// A data directory that the release before format 2 wrote; `kind` is `closed` or `crashed`. Log 0 has the samples 8 to 32 in
/// segments of up to 1024 bytes (older ones were deleted) and a checkpoint; log 1 has samples 0 to 4 and a key in the
/// journal.
pub fn version_1(kind: &str) -> MemoryDisk {
    fn copy(from: &Path, to: &Path, disk: &MemoryDisk) {
        disk.create_dir(to).unwrap();
        for entry in std::fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            let target = to.join(entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                copy(&entry.path(), &target, disk);
            } else {
                disk.open(&target, OpenMode::CreateNew).unwrap();
                disk.overwrite(&target, &std::fs::read(entry.path()).unwrap()).unwrap();
            }
        }
        disk.sync_dir(to).unwrap();
    }
    let disk = MemoryDisk::new();
    copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/version-1").join(kind), Path::new(DIR), &disk);
    disk.sync_dir(Path::new("/")).unwrap();
    disk
}

/// Bytes of a segment's header.
pub const SEGMENT_HEADER: usize = 96;

/// The start of all checksums in a segment, and the tag of its frames.
pub fn seed_and_tag(segment: &[u8]) -> (u32, [u8; 2]) {
    let seed = crc32c::crc32c_append(crc32c::crc32c(&segment[72..80]), &segment[40..48]);
    (seed, [segment[72], segment[73]])
}

/// A frame without payload and with both checksums right for a seed: entry `index` at `offset`, with a durable mark behind the
/// entry before.
pub fn forged(seed: u32, tag: [u8; 2], index: u64, offset: u64) -> [u8; 72] {
    let mut frame = [0; 72];
    frame[0..4].copy_from_slice(&64_u32.to_le_bytes());
    (frame[8], frame[9]) = (1, 2);
    frame[10..12].copy_from_slice(&tag);
    for (at, value) in [(16, 1), (24, 1), (32, index), (40, offset), (56, index)] {
        frame[at..at + 8].copy_from_slice(&u64::to_le_bytes(value));
    }
    let header = crc32c::crc32c_append(crc32c::crc32c_append(seed, &frame[..4]), &frame[8..68]);
    frame[68..72].copy_from_slice(&header.to_le_bytes());
    let crc = crc32c::crc32c_append(seed, &frame[8..]);
    frame[4..8].copy_from_slice(&crc.to_le_bytes());
    frame
}

pub fn log_dir(n: u32) -> PathBuf {
    Path::new(DIR).join("logs").join(id(n).to_string())
}

/// Waits until every finished segment is sealed.
pub fn wait_sealed(log: &Log) {
    while log.segments().iter().rev().skip(1).any(|segment| segment.content_hash.is_none()) {
        std::thread::yield_now();
    }
}
