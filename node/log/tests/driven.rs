//! A store without threads: the same seed gives the same disk, byte by byte.

#[path = "log/common/mod.rs"]
mod common;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use chronicle_log::{
    Clock, Entry, Log, LogConfig, LogError, Store, StoreConfig, Threads,
    disk::{Disk, MemoryDisk},
};
use common::*;
use uuid::Uuid;

struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

fn driven(clock: &Arc<ManualClock>) -> StoreConfig {
    StoreConfig {
        segment_bytes: 1500,
        tail_cache_bytes: 1000,
        mark_interval: Duration::from_millis(50),
        idle_mark_delay: Duration::from_millis(50),
        journal_rewrite_bytes: 4096,
        threads: Threads::Driven { on_work: None },
        new_node_id: Some(Uuid::from_u128(7)),
        clock: clock.clone(),
        entropy: Arc::new(Counted::default()),
        ..config()
    }
}

fn dump(disk: &MemoryDisk, dir: &Path, into: &mut BTreeMap<PathBuf, Vec<u8>>) {
    for entry in disk.list(dir).unwrap() {
        let path = dir.join(entry.name);
        if entry.is_dir {
            dump(disk, &path, into)
        } else {
            drop(into.insert(path.clone(), disk.contents(&path).unwrap()))
        }
    }
}

/// Log, end of an append, whether it went well.
type Answer = (u32, u64, bool);

type Logs = [Option<Arc<Log>>; 2];

struct Run {
    random: Random,
    clock: Arc<ManualClock>,
    /// In the order they came.
    answers: Arc<Mutex<Vec<Answer>>>,
    /// How many of them were taken in.
    heard: usize,
    /// By log: what was appended, and up to where it is acknowledged.
    entries: [Vec<Entry>; 2],
    durable: [u64; 2],
    /// A cut was begun and did not return.
    cutting: [bool; 2],
}

impl Run {
    /// Takes in the answers that came since the last time.
    fn acknowledge(&mut self) {
        let answers = self.answers.lock().unwrap();
        for &(n, next, ok) in &answers[self.heard..] {
            let n = n as usize;
            if ok {
                self.durable[n] = self.durable[n].max(next.min(self.entries[n].len() as u64));
            }
        }
        self.heard = answers.len();
    }

    fn append(&mut self, log: &Log, n: u32) -> Result<(), LogError> {
        let from = self.entries[n as usize].len() as u64;
        let mut new = Vec::new();
        for index in from..from + 1 + self.random.below(4) {
            let payload = vec![self.random.below(256) as u8; self.random.below(500) as usize];
            new.push(data(index, 1, index as i64, payload));
        }
        let (answers, next) = (self.answers.clone(), from + new.len() as u64);
        let done = Box::new(move |result: Result<(), LogError>| {
            answers.lock().unwrap().push((n, next, result.is_ok()));
        });
        log.append(new.clone(), done)?;
        self.entries[n as usize].extend(new);
        Ok(())
    }

    /// Opens the logs; whatever survived of what is not acknowledged counts from now on.
    fn open(&mut self, store: &Arc<Store>, what: &str) -> Result<Logs, LogError> {
        let mut logs = [None, None];
        for (n, slot) in logs.iter_mut().enumerate() {
            let log = match store.open_log(id(n as u32), LogConfig::default()) {
                // Only a cut that did not get to its end leaves this.
                Err(LogError::Damaged { .. }) if self.cutting[n] => {
                    store.cut_damaged(id(n as u32))?;
                    store.open_log(id(n as u32), LogConfig::default())?
                }
                other => other?,
            };
            self.cutting[n] = false;
            let (position, durable) = (log.position(), self.durable[n]);
            assert!(position.next_index >= durable, "{what}: {position:?}, {durable} were acknowledged");
            self.entries[n].truncate(position.next_index as usize);
            assert_eq!(read_all(&log)?[..], self.entries[n][position.first_index as usize..], "{what}");
            self.durable[n] = position.next_index;
            *slot = Some(log);
        }
        Ok(logs)
    }

    /// Does something. After an error nothing is known but what was known before.
    fn step(&mut self, store: &Arc<Store>, logs: &mut Logs) -> Result<(), LogError> {
        let n = self.random.below(2) as usize;
        if logs[n].is_none() {
            logs[n] = Some(store.open_log(id(n as u32), LogConfig::default())?);
        }
        let Some(log) = logs[n].clone() else { return Ok(()) };
        match self.random.below(25) {
            0 => log.roll()?,
            1 => {
                log.flush()?;
                self.durable[n] = self.entries[n].len() as u64;
            }
            2 => drop(log.delete_before(self.random.below(self.entries[n].len() as u64 + 1))?),
            3 => log.save_checkpoint(&[n as u8; 100])?,
            4 => {
                let next = log.position().first_index + 1 + self.random.below(20);
                if next < self.entries[n].len() as u64 {
                    let truncated = log.truncate_after(next - 1);
                    // What was answered on the way may be gone again.
                    self.acknowledge();
                    self.durable[n] = self.durable[n].min(next);
                    truncated?;
                    self.entries[n].truncate(next as usize);
                    self.durable[n] = next;
                }
            }
            5 => {
                log.close()?;
                logs[n] = None;
                self.durable[n] = self.entries[n].len() as u64;
            }
            6 => logs[n] = None,
            7 => store.journal_put(id(n as u32), 3, Bytes::from(vec![n as u8; 700]), None)?,
            8..12 => {
                store.drive();
            }
            12 => while store.drive() {},
            13 => self.clock.advance(self.random.below(100)),
            14 => {
                log.close()?;
                drop((log, logs[n].take()));
                self.acknowledge();
                let index = self.random.below(self.entries[n].len() as u64 + 1);
                self.durable[n] = self.durable[n].min(index);
                self.cutting[n] = true;
                let cut = store.cut_from(id(n as u32), index)?;
                self.entries[n].truncate(cut.next_index as usize);
                self.durable[n] = cut.next_index;
                self.cutting[n] = false;
            }
            _ => self.append(&log, n as u32)?,
        }
        Ok(())
    }

    /// One process, until it is closed or the power goes.
    fn live(&mut self, disk: &MemoryDisk, what: &str) -> Result<(), LogError> {
        let store = Store::open(Arc::new(disk.clone()), Path::new(DIR), driven(&self.clock))?;
        let mut logs = self.open(&store, what)?;
        for _ in 0..self.random.below(60) {
            let done = self.step(&store, &mut logs);
            self.acknowledge();
            done?;
        }
        if self.random.below(3) == 0 {
            store.close()?;
            self.durable = [self.entries[0].len() as u64, self.entries[1].len() as u64];
        }
        Ok(())
    }
}

/// Everything that a run leaves: the disk and the order of answers.
fn run(seed: u64) -> (BTreeMap<PathBuf, Vec<u8>>, Vec<Answer>) {
    let disk = MemoryDisk::new();
    disk.create_dir(Path::new(DIR)).unwrap();
    disk.sync_dir(Path::new("/")).unwrap();
    let mut run = Run {
        random: Random(seed),
        clock: Arc::default(),
        answers: Arc::default(),
        heard: 0,
        entries: Default::default(),
        durable: [0; 2],
        cutting: [false; 2],
    };
    for life in 0..6 {
        let what = format!("seed {seed}, life {life}");
        let mount = disk.mount();
        // Half the time the power goes in the middle of something.
        if run.random.below(2) == 0 {
            disk.crash_at(1 + run.random.below(300), run.random.below(u64::MAX));
        }
        if let Err(error) = run.live(&mount, &what) {
            assert!(mount.list(Path::new("/")).is_err(), "{what}: {error}");
        }
        disk.crash(run.random.below(u64::MAX));
    }
    let mut files = BTreeMap::new();
    dump(&disk, Path::new(DIR), &mut files);
    let answers = run.answers.lock().unwrap().clone();
    (files, answers)
}

#[test]
fn the_same_seed_leaves_the_same_bytes_and_nothing_acknowledged_is_missing() {
    let mut previous = None;
    for seed in 0..60 {
        let once = run(seed);
        assert_eq!(once, run(seed), "seed {seed}");
        assert!(once.0.len() > 3 && once.1.iter().any(|(_, _, ok)| *ok), "seed {seed}");
        assert_ne!(previous.as_ref(), Some(&once), "seed {seed}");
        previous = Some(once);
    }
}

#[test]
fn calls_that_wait_drive_and_no_thread_is_started() {
    let clock = Arc::default();
    let disk = MemoryDisk::new();
    let store = Store::open(Arc::new(disk.mount()), Path::new(DIR), driven(&clock)).unwrap();
    let log = store.open_log(id(0), memory_mode(Duration::from_secs(1))).unwrap();
    append(&log, (0..50).map(sample).collect()).unwrap();
    log.flush().unwrap();
    append(&log, (50..60).map(sample).collect()).unwrap();
    log.truncate_after(54).unwrap();
    assert_samples(&log, 0, 55);
    log.roll().unwrap();
    log.save_checkpoint(b"x").unwrap();
    log.delete_before(10).unwrap();
    log.reset(7, 7).unwrap();
    append(&log, vec![sample(7)]).unwrap();
    log.close().unwrap();
    assert_eq!(store.cut_from(id(0), 7).unwrap().next_index, 7);
    drop(store.open_log(id(0), LogConfig::default()).unwrap());
    store.delete_log(id(0)).unwrap();
    store.close().unwrap();
    for task in std::fs::read_dir("/proc/self/task").unwrap() {
        let name = std::fs::read_to_string(task.unwrap().path().join("comm")).unwrap_or_default();
        assert!(!name.starts_with("log-"), "{name}");
    }
}

#[test]
fn the_hook_and_the_clock_define_when_to_drive() {
    let clock: Arc<ManualClock> = Arc::default();
    let disk = MemoryDisk::new();
    let calls = Arc::new(AtomicU64::new(0));
    let hook = calls.clone();
    let on_work = move || _ = hook.fetch_add(1, Relaxed);
    let config = StoreConfig { threads: Threads::Driven { on_work: Some(Arc::new(on_work)) }, ..driven(&clock) };
    let store = Store::open(Arc::new(disk.mount()), Path::new(DIR), config).unwrap();
    let log = store.open_log(id(0), LogConfig::default()).unwrap();
    while store.drive() {}
    calls.store(0, Relaxed);

    let (_, wait) = append(&log, vec![sample(0)]).unwrap();
    assert_eq!(calls.load(Relaxed), 1);
    assert_eq!(store.next_due(), Some(clock.monotonic()));
    assert!(wait.try_recv().is_err());
    assert!(store.drive());
    assert!(matches!(wait.try_recv(), Ok(Ok(()))));
    assert!(!store.drive());

    // Nothing is left but to note how far it goes.
    assert_eq!(store.next_due(), Some(Duration::from_millis(50)));
    clock.advance(49);
    assert!(!store.drive());
    clock.advance(1);
    assert!(store.drive());
    for _ in 0..5 {
        while store.drive() {}
        clock.advance(1000);
    }
    assert_eq!((store.next_due(), store.drive()), (None, false));

    calls.store(0, Relaxed);
    log.roll().unwrap();
    assert_eq!(calls.load(Relaxed), 1, "a segment waits to be sealed");
    assert!(store.drive());
    assert!(log.segments()[0].content_hash.is_some());
}

#[test]
fn a_store_whose_disk_lost_power_leaves_the_disk_alone() {
    let clock = Arc::default();
    let disk = MemoryDisk::new();
    let store = Store::open(Arc::new(disk.mount()), Path::new(DIR), driven(&clock)).unwrap();
    let log = store.open_log(id(0), LogConfig::default()).unwrap();
    append(&log, (0..50).map(sample).collect()).unwrap();
    disk.crash(1);
    let (mut before, mut after) = (BTreeMap::new(), BTreeMap::new());
    dump(&disk, Path::new("/"), &mut before);
    assert!(log.flush().is_err());
    drop((log, store));
    dump(&disk, Path::new("/"), &mut after);
    assert_eq!(before, after);
}
