//! Compares the log engine with the disk: durable appends to one log, reading it, and one small append to each of many
//! logs.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use chronicle_log::disk::RealDisk;
use chronicle_log::{Barrier, Entry, EntryKind, Log, LogConfig, LogError, LogId, Store, StoreConfig};
use uuid::Uuid;

use super::disk::{Files, Variant, append_and_sync, noise};
use super::report::{Report, Rule};
use super::{Bench, probe};

/// Bytes of one group of records that is made durable at once.
const GROUP_BYTES: usize = 1 << 20;
/// Bytes of one record.
const RECORD_BYTES: usize = 1 << 10;
/// Partitions of a node that has many.
pub(crate) const PARTITIONS: usize = 1000;

pub(crate) fn open_store(dir: &Path, config: StoreConfig) -> Result<Arc<Store>> {
    Ok(Store::open(Arc::new(RealDisk), dir, config)?)
}

pub(crate) fn log_id(partition: usize) -> LogId {
    LogId { topic: Uuid::from_u128(0xbe7c), partition: u32::try_from(partition).expect("few partitions") }
}

/// Appends entries and returns receivers that resolve when the entries are durable.
pub(crate) struct Appender {
    pub(crate) log: Arc<Log>,
    next_index: u64,
}

impl Appender {
    pub(crate) fn new(log: Arc<Log>) -> Self {
        let next_index = log.position().last.map_or(0, |last| last.index + 1);
        Self { log, next_index }
    }

    /// `payloads` as one append: one entry each, of `records` records each.
    pub(crate) fn append(&mut self, payloads: &[Bytes], records: u32) -> Result<Receiver<Result<(), LogError>>> {
        let entries = payloads
            .iter()
            .zip(self.next_index..)
            .map(|(payload, index)| Entry {
                term: 1,
                leader: 1,
                index,
                kind: EntryKind::Data,
                record_count: records,
                max_timestamp: 0,
                payload: payload.clone(),
            })
            .collect();
        let (done, outcome) = channel();
        self.log.append(entries, Box::new(move |result| drop(done.send(result))))?;
        self.next_index += payloads.len() as u64;
        Ok(outcome)
    }
}

/// `groups` appends with at most `depth` of them unanswered; returns the seconds of the whole.
fn durable(appender: &mut Appender, payloads: &[Bytes], records: u32, groups: usize, depth: usize) -> Result<f64> {
    let start = Instant::now();
    let mut pending = VecDeque::new();
    for _ in 0..groups {
        if pending.len() == depth {
            let oldest: Receiver<Result<(), LogError>> = pending.pop_front().context("depth is at least one")?;
            oldest.recv()??;
        }
        pending.push_back(appender.append(payloads, records)?);
    }
    for outcome in pending {
        outcome.recv()??;
    }
    Ok(start.elapsed().as_secs_f64())
}

pub(crate) fn append(bench: &Bench, report: &mut Report) -> Result<()> {
    let groups = 16;
    let megabytes = (groups * GROUP_BYTES) as f64 / 1e6;
    let dir = bench.fresh("append")?;
    // A very small cache, so that reads go to the files.
    let store = open_store(&dir.join("store"), StoreConfig { tail_cache_bytes: 1 << 20, ..StoreConfig::default() })?;
    let data = Bytes::from(noise(GROUP_BYTES));
    let small: Vec<Bytes> =
        (0..GROUP_BYTES / RECORD_BYTES).map(|n| data.slice(n * RECORD_BYTES..(n + 1) * RECORD_BYTES)).collect();
    let large = [data.clone()];
    let per_group = u32::try_from(small.len())?;
    let mut of_records = Appender::new(store.open_log(log_id(0), LogConfig::default())?);
    let mut of_batches = Appender::new(store.open_log(log_id(1), LogConfig::default())?);

    let mut of_singles = Appender::new(store.open_log(log_id(2), LogConfig::default())?);

    let samples = bench.size(100, 50);
    let [mut raw, mut records, mut batches, mut piped] = [const { Vec::new() }; 4];
    let [mut raw_p50, mut engine_p50] = [const { Vec::new() }; 2];
    for round in 0..bench.rounds() {
        // The first measurement after a pause gets an idle disk, so each variant goes first in turn.
        for step in 0..6 {
            match (round + step) % 6 {
                0 => {
                    let seconds = append_and_sync(&dir.join("groups.raw"), GROUP_BYTES, groups)?;
                    raw.push(megabytes / seconds.iter().sum::<f64>());
                }
                1 => records.push(megabytes / durable(&mut of_records, &small, 1, groups, 1)?),
                2 => batches.push(megabytes / durable(&mut of_batches, &large, per_group, groups, 1)?),
                3 => piped.push(megabytes / durable(&mut of_batches, &large, per_group, groups, 4)?),
                4 => raw_p50.push(median(append_and_sync(&dir.join("single.raw"), RECORD_BYTES, samples)?) * 1e6),
                _ => {
                    let mut seconds = Vec::with_capacity(samples);
                    for _ in 0..samples {
                        seconds.push(durable(&mut of_singles, &small[..1], 1, 1, 1)?);
                    }
                    engine_p50.push(median(seconds) * 1e6);
                }
            }
        }
    }
    let mut read = Vec::new();
    for (name, appender) in [("of 1 KiB entries", &of_records), ("of 1 MiB entries", &of_batches)] {
        let mut rates = Vec::new();
        for _ in 0..5 {
            rates.push(read_all(&appender.log)?);
        }
        let rate = report.figure(format!("engine: sequential read {name}, page cache"), "GB/s per core", rates);
        read.push(rate);
    }
    let raw = report.figure("disk: write + fdatasync, 1 MiB", "MB/s", raw);
    let records = report.figure("engine: durable append, groups of 1,024 entries of 1 KiB", "MB/s", records);
    let batches = report.figure("engine: durable append, one entry of 1 MiB", "MB/s", batches);
    report.figure("engine: the same, 4 in flight", "MB/s", piped);
    let raw_p50 = report.figure("disk: write + fdatasync, 1 KiB, p50", "us", raw_p50);
    let engine_p50 = report.figure("engine: durable append of 1 KiB, p50", "us", engine_p50);
    report.target("engine append of 1 KiB entries in 1 MiB groups / raw", records / raw, Rule::AtLeast, 0.8, "x");
    report.target("engine append of 1 MiB entries / raw", batches / raw, Rule::AtLeast, 0.8, "x");
    report.target("engine sequential read, 1 KiB entries", read[0], Rule::AtLeast, 2.0, "GB/s per core");
    report.target("engine sequential read, 1 MiB entries", read[1], Rule::AtLeast, 2.0, "GB/s per core");
    report.target("engine p50 of one durable append - raw p50", engine_p50 - raw_p50, Rule::AtMost, 250.0, "us");
    store.close()?;
    std::fs::remove_dir_all(dir)?;
    Ok(())
}

pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Reads a log from end to end; returns payload gigabytes per second of this thread's CPU time.
fn read_all(log: &Log) -> Result<f64> {
    let position = log.position();
    let end = position.last.context("the log is empty")?.index + 1;
    let mut next = position.first_index;
    let mut bytes = 0;
    let start = probe::thread_cpu_seconds()?;
    while next < end {
        let entries = log.read(next, end, 1 << 20)?;
        ensure!(!entries.is_empty(), "nothing at index {next} of {end}");
        next += entries.len() as u64;
        bytes += entries.iter().map(|stored| stored.entry.payload.len()).sum::<usize>();
    }
    Ok(bytes as f64 / 1e9 / (probe::thread_cpu_seconds()? - start))
}

pub(crate) fn partitions(bench: &Bench, report: &mut Report) -> Result<()> {
    let dir = bench.fresh("partitions")?;
    let rounds = bench.size(32, 8);
    std::fs::create_dir(dir.join("raw"))?;
    let mut files = Files::create(&dir.join("raw"), PARTITIONS, RECORD_BYTES)?;
    let payload = [Bytes::from(noise(RECORD_BYTES))];
    let configs = [
        (
            "fdatasync on 16 threads",
            StoreConfig { barrier: Barrier::Fdatasync, flush_threads: 16, ..StoreConfig::default() },
        ),
        (
            "fdatasync on 32 threads",
            StoreConfig { barrier: Barrier::Fdatasync, flush_threads: 32, ..StoreConfig::default() },
        ),
        ("syncfs", StoreConfig { barrier: Barrier::Syncfs, ..StoreConfig::default() }),
    ];
    let mut stores = Vec::new();
    for (number, (name, config)) in configs.into_iter().enumerate() {
        let store = open_store(&dir.join(number.to_string()), config)?;
        let mut logs = Vec::with_capacity(PARTITIONS);
        for partition in 0..PARTITIONS {
            logs.push(Appender::new(store.open_log(log_id(partition), LogConfig::default())?));
        }
        // Creating the segments is not part of the measurement.
        engine_round(&mut logs, &payload)?;
        stores.push((name, store, logs, Vec::new()));
    }
    let variants = [Variant::Pool(8), Variant::Pool(16), Variant::Pool(32), Variant::Syncfs, Variant::SharedJournal];
    let mut raw = vec![Vec::new(); variants.len()];
    for round in 0..rounds {
        let contestants = variants.len() + stores.len();
        for step in 0..contestants {
            let turn = (round + step) % contestants;
            if let Some(variant) = variants.get(turn) {
                raw[turn].push(files.round(*variant)? * 1e3);
                // Flushes what the shared journal left in the page cache, so that no other variant has to.
                files.settle()?;
            } else {
                let (_, _, logs, seconds) = &mut stores[turn - variants.len()];
                seconds.push(engine_round(logs, &payload)? * 1e3);
            }
        }
    }
    let mut best = f64::INFINITY;
    let mut best_single_write = f64::INFINITY;
    for (variant, seconds) in variants.iter().zip(raw) {
        let median = report.figure(format!("disk: 1 KiB to each of 1,000 files, {variant}"), "ms", seconds);
        best = best.min(median);
        if *variant != Variant::SharedJournal {
            best_single_write = best_single_write.min(median);
        }
    }
    for (name, store, logs, seconds) in stores {
        let median = report.figure(format!("engine: 1 KiB to each of 1,000 logs, {name}"), "ms", seconds);
        let what = format!("engine round over 1,000 partitions, {name} / best raw");
        report.target(format!("{what} (any)"), median / best, Rule::AtMost, 2.0, "x");
        report.target(format!("{what} (written once)"), median / best_single_write, Rule::AtMost, 2.0, "x");
        drop(logs);
        store.close()?;
    }
    std::fs::remove_dir_all(dir)?;
    Ok(())
}

/// One append to every log, all durable; returns the seconds it took.
fn engine_round(logs: &mut [Appender], payload: &[Bytes]) -> Result<f64> {
    let start = Instant::now();
    let pending: Vec<_> = logs.iter_mut().map(|log| log.append(payload, 1)).collect::<Result<_>>()?;
    for outcome in pending {
        outcome.recv()??;
    }
    Ok(start.elapsed().as_secs_f64())
}
