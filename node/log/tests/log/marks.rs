//! Durable marks in the journal: what they vouch for when the files of a log do not, and what they cost.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use crate::common::*;
use chronicle_log::{
    Log, LogConfig, LogError, Store, StoreConfig, Threads,
    disk::{Disk, DiskOperation, Fault, FaultRule, FaultyDisk, MemoryDisk},
};

/// Longest time after which an acknowledged entry is below a mark.
const WINDOW_MS: u64 = 1000;

/// A store that works when it is driven, by a clock that only the test moves.
pub(crate) struct Driven {
    pub(crate) memory: MemoryDisk,
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) store: Arc<Store>,
}

impl Driven {
    pub(crate) fn new(segment_bytes: u64) -> Self {
        let (memory, disk) = memory();
        let clock = Arc::new(ManualClock::default());
        // Not at a round second.
        clock.advance(333);
        let config = StoreConfig {
            segment_bytes,
            mark_interval: Duration::from_millis(WINDOW_MS),
            idle_mark_delay: Duration::from_millis(500),
            threads: Threads::Driven { on_work: None },
            clock: clock.clone(),
            ..config()
        };
        let store = Store::open(disk, Path::new(DIR), config).unwrap();
        Self { memory, clock, store }
    }

    /// Moves the clock, and does whatever becomes due.
    pub(crate) fn pass(&self, ms: u64) {
        self.clock.advance(ms);
        while self.store.drive() {}
    }

    /// Appends the samples `from..to` durably, one in each `ms`.
    pub(crate) fn fill(&self, log: &Log, from: u64, to: u64, ms: u64) {
        for index in from..to {
            let (_, wait) = append(log, vec![sample(index)]).unwrap();
            self.pass(ms);
            wait.try_recv().unwrap().unwrap();
        }
    }
}

fn newest_segment(disk: &MemoryDisk) -> PathBuf {
    let mut names: Vec<String> = disk.list(&log_dir(0)).unwrap().into_iter().map(|entry| entry.name).collect();
    names.retain(|name| name.ends_with(".log"));
    log_dir(0).join(names.into_iter().max().unwrap())
}

#[test]
fn a_busy_log_that_lost_its_end_is_damage_and_not_a_shorter_log() {
    const APPENDS: u64 = 191;
    let driven = Driven::new(1 << 20);
    let log = driven.store.open_log(id(0), LogConfig::default()).unwrap();
    driven.fill(&log, 0, APPENDS, 30);
    let vouched = APPENDS - WINDOW_MS.div_ceil(30);
    // The process is killed, and half of the file is gone.
    let killed = driven.memory.fork();
    let path = newest_segment(&killed);
    let bytes = killed.contents(&path).unwrap();
    let open = |kept: usize| {
        let copy = killed.fork();
        copy.overwrite(&path, &bytes[..kept]).unwrap();
        let store = Store::open(Arc::new(copy), Path::new(DIR), config()).unwrap();
        store.open_log(id(0), LogConfig::default()).map(|log| log.position().next_index)
    };
    let error = open(bytes.len() / 2).unwrap_err();
    let LogError::Damaged { index: Some(index), .. } = error else { panic!("{error}") };
    assert!(index < vouched, "{index}");
    let mut shorter = 0;
    for kept in (0..bytes.len()).step_by(7) {
        match open(kept) {
            Ok(next) => {
                assert!(next >= vouched, "{kept} bytes kept: ends at {next}, {vouched} entries are vouched for");
                shorter += 1;
            }
            Err(LogError::Damaged { .. }) => {}
            Err(error) => panic!("{kept} bytes kept: {error}"),
        }
    }
    assert!(shorter > 0, "what no mark covers yet may be a torn write");
}

#[test]
fn marks_of_busy_logs_share_one_flush_a_second() {
    const LOGS: u32 = 200;
    const SECONDS: u64 = 20;
    let driven = Driven::new(1 << 20);
    let logs: Vec<_> = (0..LOGS).map(|n| driven.store.open_log(id(n), LogConfig::default()).unwrap()).collect();
    let journal = Path::new(DIR).join("meta/journal-00000000000000000001");
    let journal_bytes = || driven.memory.contents(&journal).unwrap().len() as u64;
    let (flushes, bytes) = (driven.store.metrics().journal_flushes.get(), journal_bytes());
    for round in 0..SECONDS * 10 {
        for (n, log) in logs.iter().enumerate() {
            // Each has its own phase.
            if (round as usize + n).is_multiple_of(3) {
                let next = log.position().next_index;
                drop(append(log, vec![blank(next)]).unwrap());
            }
            if n % 20 == 0 {
                driven.pass(10);
            }
        }
    }
    let flushes = driven.store.metrics().journal_flushes.get() - flushes;
    let bytes = journal_bytes() - bytes;
    assert!(flushes >= SECONDS - 2, "marks are written: {flushes} flushes");
    assert!(flushes <= SECONDS + 1, "{flushes} flushes in {SECONDS} s");
    // A record of a mark has 48 bytes.
    let most = 48 * u64::from(LOGS) * (SECONDS + 1);
    assert!(bytes <= most, "{bytes} bytes in {SECONDS} s: must be at most {most}");
}

#[test]
fn a_log_that_ends_before_its_start_mark_is_damage() {
    let memory = MemoryDisk::new();
    let disk = FaultyDisk::new(Arc::new(memory.clone()));
    let store =
        Store::open(Arc::new(disk.clone()), Path::new(DIR), StoreConfig { segment_bytes: 1024, ..config() }).unwrap();
    let log = store.open_log(id(0), LogConfig::default()).unwrap();
    fill(&log, 0, 60);
    wait_sealed(&log);
    // The start is in the journal, and the files before it are still there.
    disk.add(FaultRule::new(DiskOperation::Remove, Fault::IO_ERROR).path(".log"));
    let keep = log.segments()[3].base_index;
    log.delete_before(keep).unwrap_err();
    let killed = memory.fork();
    for segment in log.segments() {
        killed.remove_file(&log_dir(0).join(format!("{:020}.log", segment.base_index))).unwrap();
    }
    // Of what was before the start, half of one segment is left.
    let path = newest_segment(&killed);
    let bytes = killed.contents(&path).unwrap();
    killed.overwrite(&path, &bytes[..bytes.len() / 2]).unwrap();
    let store = Store::open(Arc::new(killed), Path::new(DIR), config()).unwrap();
    let error = store.open_log(id(0), LogConfig::default()).unwrap_err();
    assert!(matches!(error, LogError::Damaged { .. }), "{error}");
    let cut = store.cut_damaged(id(0)).unwrap();
    assert_eq!((cut.next_index, cut.was), (keep, keep));
    assert_eq!(store.open_log(id(0), LogConfig::default()).unwrap().position().next_index, keep);
}

#[test]
fn a_log_that_does_not_reach_what_its_owner_knows_names_what_is_missing_and_is_cut_without_loss() {
    let (_, disk) = memory();
    let store = open(&disk);
    let log = store.open_log(id(0), LogConfig::default()).unwrap();
    fill(&log, 0, 20);
    log.check_reaches(19, "checkpoint").unwrap();
    let error = log.check_reaches(29, "checkpoint").unwrap_err();
    assert!(matches!(error, LogError::Damaged { index: Some(20), .. }), "{error}");
    assert!(error.to_string().contains("its checkpoint covers entry 29: entries 20 to 29 are missing"), "{error}");
    assert_eq!(store.metrics().damage_found.get(), 1);
    log.close().unwrap();
    drop(log);
    let cut = store.cut_from(id(0), 20).unwrap();
    assert_eq!((cut.next_index, cut.quarantine), (20, None));
    let log = store.open_log(id(0), LogConfig::default()).unwrap();
    assert_samples(&log, 0, 20);
}
