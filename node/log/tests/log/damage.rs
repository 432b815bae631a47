//! Crashes and damaged bytes: nothing acknowledged is ever missing without an error that says so.

use std::{path::Path, sync::Arc, time::Duration};

use crate::{common::*, marks::Driven};
use bytes::Bytes;
use chronicle_log::{
    Entry, Log, LogConfig, LogError, Store, StoreConfig,
    disk::{Disk, MemoryDisk},
};

/// A tiny generator, so that a crash test is its seed and nothing else.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

fn small(barrier: chronicle_log::Barrier) -> StoreConfig {
    StoreConfig { segment_bytes: 1500, tail_cache_bytes: 1000, barrier, ..config() }
}

/// What must be there after a crash.
#[derive(Default)]
struct Promise {
    /// First index that may exist.
    start: u64,
    /// Every entry below was acknowledged.
    durable: u64,
    /// Nothing at or above was ever appended.
    appended: u64,
    /// Entries, by index from 0: the newest ones given to `append`.
    entries: Vec<Entry>,
}

fn check(log: &Log, promise: &mut Promise, seed: u64) {
    let position = log.position();
    assert!(
        position.first_index <= promise.start,
        "seed {seed}: starts at {}, not {}",
        position.first_index,
        promise.start
    );
    assert!(
        position.next_index >= promise.durable,
        "seed {seed}: ends at {}, acknowledged up to {}",
        position.next_index,
        promise.durable
    );
    assert!(position.next_index <= promise.appended, "seed {seed}");
    let found = read_all(log).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    let first = position.first_index as usize;
    assert_eq!(found.len() as u64, position.next_index - position.first_index, "seed {seed}");
    assert_eq!(found[..], promise.entries[first..first + found.len()], "seed {seed}");
    // What survived counts from now on.
    promise.start = position.first_index;
    promise.durable = position.next_index;
    promise.appended = position.next_index;
    promise.entries.truncate(position.next_index as usize);
}

/// Appends, truncates, deletes and rolls at random, loses power, reopens; several times over.
fn crash_run(seed: u64) {
    let mut random = Random(seed);
    let disk = MemoryDisk::new();
    disk.create_dir(Path::new(DIR)).unwrap();
    disk.sync_dir(Path::new("/")).unwrap();
    disk.set_dedicated(random.below(2) == 0);
    let barrier = [chronicle_log::Barrier::Auto, chronicle_log::Barrier::Syncfs][random.below(2) as usize];
    let mut promises = [Promise::default(), Promise::default(), Promise::default()];
    let mut votes = [None::<u64>; 3];
    for crash in 0..4 {
        // A mount, so that threads which have not noticed the crash yet do nothing to the disk after it.
        let store = Store::open(Arc::new(disk.mount()), Path::new(DIR), small(barrier))
            .unwrap_or_else(|error| panic!("seed {seed}, crash {crash}: {error}"));
        let logs: Vec<_> = (0..3)
            .map(|n| {
                store
                    .open_log(id(n), LogConfig::default())
                    .unwrap_or_else(|error| panic!("seed {seed}, crash {crash}, log {n}: {error}"))
            })
            .collect();
        for (n, (log, promise)) in logs.iter().zip(&mut promises).enumerate() {
            check(log, promise, seed);
            if let Some(vote) = votes[n] {
                let found = store.journal_get(id(n as u32), 1).map(|value| value[0]);
                assert!(found >= Some(vote as u8), "seed {seed}: vote {found:?} < {vote}");
            }
        }
        let mut waits: Vec<(usize, u64, Wait)> = Vec::new();
        for _ in 0..random.below(30) {
            let n = random.below(3) as usize;
            let (log, promise) = (&logs[n], &mut promises[n]);
            match random.below(12) {
                0 => {
                    let keep = promise.start + random.below(promise.appended - promise.start + 1);
                    if keep + 1 < promise.appended {
                        // While it runs, either end may be found.
                        promise.durable = promise.durable.min(keep + 1);
                        log.truncate_after(keep).unwrap();
                        promise.entries.truncate(keep as usize + 1);
                        promise.appended = keep + 1;
                        promise.durable = keep + 1;
                        // An answer for an index says nothing about another entry that took its place.
                        waits.retain(|(log, next, _)| *log != n || *next <= keep + 1);
                    }
                }
                1 => {
                    log.delete_before(random.below(promise.appended + 1)).unwrap();
                    promise.start = log.position().first_index;
                }
                2 => log.roll().unwrap(),
                3 => {
                    log.flush().unwrap();
                    promise.durable = promise.appended;
                }
                4 => {
                    let vote = votes[n].unwrap_or(0) + 1;
                    let (done, wait) = done();
                    store.journal_put(id(n as u32), 1, Bytes::copy_from_slice(&[vote as u8]), Some(done)).unwrap();
                    wait.recv().unwrap().unwrap();
                    votes[n] = Some(vote);
                }
                _ => {
                    let count = 1 + random.below(4);
                    let entries: Vec<Entry> = (promise.appended..promise.appended + count)
                        .map(|index| data(index, 1, crash, vec![random.below(256) as u8; random.below(700) as usize]))
                        .collect();
                    promise.entries.truncate(promise.appended as usize);
                    promise.entries.extend(entries.iter().cloned());
                    promise.appended += count;
                    waits.push((n, promise.appended, append(log, entries).unwrap().1));
                }
            }
        }
        // The crash comes at a random moment relative to the answers.
        for _ in 0..random.below(3) {
            std::thread::yield_now();
        }
        let close = random.below(5) == 0;
        if close {
            store.close().unwrap();
        }
        for (n, next, wait) in waits {
            if close || matches!(wait.try_recv(), Ok(Ok(()))) {
                promises[n].durable = promises[n].durable.max(next);
            }
        }
        disk.crash(random.below(u64::MAX));
        drop((logs, store));
    }
}

#[test]
fn nothing_acknowledged_is_missing_after_power_cuts() {
    for seed in 0..400 {
        crash_run(seed);
    }
}

/// A log over several segments, of which some are sealed, closed cleanly: everything in it is acknowledged and marked.
fn closed_log(entries: u64) -> MemoryDisk {
    let (memory, disk) = memory();
    let config = StoreConfig { segment_bytes: 1024, ..config() };
    let store = Store::open(disk, Path::new(DIR), config).unwrap();
    let log = store.open_log(id(0), LogConfig::default()).unwrap();
    fill(&log, 0, entries);
    wait_sealed(&log);
    store.close().unwrap();
    memory
}

fn files(disk: &MemoryDisk, dir: &Path) -> Vec<std::path::PathBuf> {
    let mut files: Vec<_> = disk.list(dir).unwrap().into_iter().map(|entry| dir.join(entry.name)).collect();
    files.sort();
    files
}

/// Opens and reads everything: all intact, or an error that says damaged.
fn intact_or_damaged(disk: &MemoryDisk, entries: u64, what: &dyn std::fmt::Display) -> bool {
    let store = match Store::open(Arc::new(disk.clone()), Path::new(DIR), config()) {
        Ok(store) => store,
        Err(LogError::Damaged { .. } | LogError::NewerFormat { .. }) => return false,
        Err(error) => panic!("{what}: {error}"),
    };
    let read = || {
        let log = store.open_log(id(0), LogConfig::default())?;
        let found = read_all(&log)?;
        for offset in 0..log.position().next_offset {
            log.read_at_offset(offset, u64::MAX, 1)?;
        }
        Ok(found)
    };
    match read() {
        Ok(found) => {
            assert_eq!(found, (0..entries).map(sample).collect::<Vec<_>>(), "{what}");
            true
        }
        Err(LogError::Damaged { .. } | LogError::NewerFormat { .. }) => false,
        Err(error) => panic!("{what}: {error}"),
    }
}

#[test]
fn every_flipped_byte_of_a_closed_log_is_harmless_or_reported() {
    const ENTRIES: u64 = 14;
    let disk = closed_log(ENTRIES);
    let mut reported = 0;
    for path in files(&disk, &log_dir(0)) {
        let bytes = disk.contents(&path).unwrap();
        for at in 0..bytes.len() {
            let copy = disk.fork();
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << (at % 8);
            copy.overwrite(&path, &flipped).unwrap();
            let what = format!("byte {at} of {path:?}");
            reported += u32::from(!intact_or_damaged(&copy, ENTRIES, &what));
        }
    }
    assert!(reported > 1000, "{reported}");
}

#[test]
fn every_flipped_byte_of_the_journal_is_harmless_or_reported() {
    const ENTRIES: u64 = 5;
    let disk = closed_log(ENTRIES);
    for path in files(&disk, &Path::new(DIR).join("meta")) {
        let bytes = disk.contents(&path).unwrap();
        for at in 0..bytes.len() {
            let copy = disk.fork();
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << (at % 8);
            copy.overwrite(&path, &flipped).unwrap();
            intact_or_damaged(&copy, ENTRIES, &format!("byte {at} of {path:?}"));
        }
    }
}

/// A store with a vote, closed cleanly: the disk, its journal and the journal's bytes.
fn closed_journal() -> (MemoryDisk, std::path::PathBuf, Vec<u8>) {
    let (memory, disk) = memory();
    let store = open(&disk);
    for vote in 0..10 {
        put_vote(&store, vote).unwrap();
    }
    store.close().unwrap();
    let path = Path::new(DIR).join("meta/journal-00000000000000000001");
    let bytes = memory.contents(&path).unwrap();
    (memory, path, bytes)
}

fn put_vote(store: &Store, vote: u8) -> Result<(), LogError> {
    let (done, wait) = done();
    store.journal_put(id(0), 1, Bytes::copy_from_slice(&[vote]), Some(done))?;
    wait.recv().unwrap()
}

#[test]
fn a_lost_end_of_a_journal_that_was_closed_is_damage() {
    let (disk, path, bytes) = closed_journal();
    for lost in 1..=bytes.len() - 56 {
        for zeros in [true, false] {
            let copy = disk.fork();
            let mut changed = bytes[..bytes.len() - lost].to_vec();
            if zeros {
                changed.resize(bytes.len(), 0);
            }
            if changed == bytes {
                continue;
            }
            copy.overwrite(&path, &changed).unwrap();
            let error = Store::open(Arc::new(copy), Path::new(DIR), config())
                .expect_err(&format!("{lost} bytes lost, zeros: {zeros}"));
            assert!(matches!(error, LogError::Damaged { .. }), "{error}");
        }
    }
    // Nor is an older journal taken for the one that was closed.
    disk.rename(&path, &path.with_file_name("journal-00000000000000000000")).unwrap();
    let error = Store::open(Arc::new(disk), Path::new(DIR), config()).unwrap_err();
    assert!(error.to_string().contains("the journal is missing"), "{error}");
}

#[test]
fn a_journal_that_was_closed_before_a_crash_keeps_what_it_had_then_and_loses_only_a_torn_end() {
    let (disk, path, closed) = closed_journal();
    let store = Store::open(Arc::new(disk.clone()), Path::new(DIR), config()).unwrap();
    put_vote(&store, 100).unwrap();
    let killed = disk.fork();
    store.close().unwrap();
    let bytes = killed.contents(&path).unwrap();
    assert!(bytes.len() > closed.len());
    for kept in closed.len()..bytes.len() {
        let copy = killed.fork();
        let mut torn = bytes[..kept].to_vec();
        torn.resize(bytes.len(), 0);
        copy.overwrite(&path, &torn).unwrap();
        let store = Store::open(Arc::new(copy), Path::new(DIR), config()).unwrap();
        let vote = store.journal_get(id(0), 1).unwrap()[0];
        assert!(vote == 9 || vote == 100, "{vote}");
    }
    killed.overwrite(&path, &bytes[..closed.len() - 8]).unwrap();
    let error = Store::open(Arc::new(killed), Path::new(DIR), config()).unwrap_err();
    assert!(matches!(error, LogError::Damaged { .. }), "{error}");
}

#[test]
fn a_journal_without_a_note_of_its_end_opens_and_a_stale_or_bad_note_is_no_damage() {
    let (disk, path, bytes) = closed_journal();
    let note = path.with_file_name("closed");
    let written = disk.contents(&note).unwrap();
    // Closed by a release that does not write the note; then by one that does, and written on by the other.
    let unmarked = disk.fork();
    unmarked.remove_file(&note).unwrap();
    unmarked.overwrite(&path, &bytes[..bytes.len() - 40]).unwrap();
    let store = Store::open(Arc::new(unmarked.clone()), Path::new(DIR), config()).unwrap();
    for vote in 10..20 {
        put_vote(&store, vote).unwrap();
    }
    let killed = unmarked.fork();
    drop(store);
    killed.open(&note, chronicle_log::disk::OpenMode::CreateNew).unwrap();
    for content in [&written[..], &written[..20], &[], &[0; 48]] {
        let copy = killed.fork();
        copy.overwrite(&note, content).unwrap();
        let store = Store::open(Arc::new(copy), Path::new(DIR), config()).unwrap();
        assert_eq!(store.journal_get(id(0), 1).unwrap()[..], [19]);
    }
}

#[test]
fn every_cut_of_a_closed_log_is_harmless_or_reported() {
    const ENTRIES: u64 = 14;
    let disk = closed_log(ENTRIES);
    for path in files(&disk, &log_dir(0)) {
        let bytes = disk.contents(&path).unwrap();
        for at in 0..bytes.len() {
            let copy = disk.fork();
            copy.overwrite(&path, &bytes[..at]).unwrap();
            intact_or_damaged(&copy, ENTRIES, &format!("cut at {at} of {path:?}"));
        }
        let copy = disk.fork();
        copy.remove_file(&path).unwrap();
        let intact = intact_or_damaged(&copy, ENTRIES, &format!("{path:?} removed"));
        assert_eq!(intact, path.extension().unwrap() == "idx", "{path:?}");
    }
}

/// Up to where (exclusive) a killed log is vouched for.
struct Vouched {
    /// By marks in later frames.
    by_frames: u64,
    /// By the marks in the journal.
    by_journal: u64,
}

/// A busy log that lost its process, not closed.
fn killed_log(segment_bytes: u64) -> (MemoryDisk, Vouched) {
    let driven = Driven::new(segment_bytes);
    let log = driven.store.open_log(id(0), LogConfig::default()).unwrap();
    driven.fill(&log, 0, 12, 300);
    // Each append was flushed on its own: the last frame vouches for every entry before it. Those that were appended more than
    // a second before the end are vouched for by the journal too.
    (driven.memory.fork(), Vouched { by_frames: 11, by_journal: 8 })
}

fn segments_of(disk: &MemoryDisk) -> Vec<std::path::PathBuf> {
    files(disk, &log_dir(0)).into_iter().filter(|path| path.extension().unwrap() == "log").collect()
}

#[test]
fn after_a_kill_every_cut_and_flip_keeps_what_is_vouched_for_or_is_reported() {
    // Several segments; and one, of which a cut takes everything that vouches for it but the journal.
    for segment_bytes in [1500, 1 << 20] {
        cut_and_flip(killed_log(segment_bytes));
    }
}

fn cut_and_flip((disk, vouched): (MemoryDisk, Vouched)) {
    let newest = segments_of(&disk).pop().unwrap();
    let all: Vec<Entry> = (0..12).map(sample).collect();
    let mut cut_off = 0;
    for path in &segments_of(&disk) {
        let bytes = disk.contents(path).unwrap();
        for at in 0..bytes.len() * 2 {
            let copy = disk.fork();
            let flip = at % 2 == 0;
            let at = at / 2;
            let mut changed = bytes.clone();
            if flip {
                changed[at] ^= 1 << (at % 8);
            } else {
                changed.truncate(at);
            }
            copy.overwrite(path, &changed).unwrap();
            let what = format!("{} at {at} of {path:?}", if flip { "flip" } else { "cut" });
            let store = Store::open(Arc::new(copy), Path::new(DIR), config()).unwrap();
            let opened = store.open_log(id(0), LogConfig::default());
            let log = match opened {
                Ok(log) => log,
                Err(LogError::Damaged { .. } | LogError::NewerFormat { .. }) => continue,
                Err(error) => panic!("{what}: {error}"),
            };
            match read_all(&log) {
                Ok(found) => {
                    assert_eq!(found[..], all[..found.len()], "{what}");
                    // A cut may take the vouching frames along with the rest. What the journal vouches for stays or is damage.
                    let kept = if flip || *path != newest { vouched.by_frames } else { vouched.by_journal };
                    assert!(found.len() as u64 >= kept, "{what}: {} entries", found.len());
                    cut_off += u32::from(found.len() < all.len());
                }
                Err(LogError::Damaged { .. }) => {}
                Err(error) => panic!("{what}: {error}"),
            }
        }
    }
    assert!(cut_off > 0, "the last entry, which nothing vouches for, was cut at least once");
}

#[test]
fn damage_names_file_position_and_entry() {
    let (disk, _) = killed_log(1 << 20);
    let path = log_dir(0).join("00000000000000000000.log");
    let mut bytes = disk.contents(&path).unwrap();
    // The payload of entry 1, whose frame follows the blank entry 0.
    bytes[SEGMENT_HEADER + 72 + 72] ^= 1;
    disk.overwrite(&path, &bytes).unwrap();
    let store = Store::open(Arc::new(disk), Path::new(DIR), config()).unwrap();
    let error = store.open_log(id(0), LogConfig::default()).unwrap_err();
    match &error {
        LogError::Damaged { path: found, position: 168, index: Some(1), .. } => assert_eq!(*found, path),
        other => panic!("{other}"),
    }
    assert_eq!(store.metrics().damage_found.get(), 1);
}

#[test]
fn the_last_entry_of_a_log_is_vouched_for_by_the_journal() {
    let (memory, disk) = memory();
    let config = StoreConfig { mark_interval: Duration::from_millis(1), ..config() };
    let store = Store::open(disk, Path::new(DIR), config).unwrap();
    let log = store.open_log(id(0), LogConfig::default()).unwrap();
    fill(&log, 0, 3);
    let path = log_dir(0).join("00000000000000000000.log");
    assert_eq!(sample(2).payload.len() % 8, 2, "the last 6 bytes of the file are padding");
    let error = loop {
        // Not even the last entry may go once the mark is written.
        let copy = memory.fork();
        let bytes = copy.contents(&path).unwrap();
        copy.overwrite(&path, &bytes[..bytes.len() - 7]).unwrap();
        let store = Store::open(Arc::new(copy), Path::new(DIR), crate::common::config()).unwrap();
        match store.open_log(id(0), LogConfig::default()) {
            Ok(log) => assert_samples(&log, 0, 2),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, LogError::Damaged { index: Some(2), .. }), "{error}");
}

#[test]
fn a_missing_segment_is_damage() {
    let disk = closed_log(30);
    let segments: Vec<_> = files(&disk, &log_dir(0)).into_iter().filter(|p| p.extension().unwrap() == "log").collect();
    for path in &segments {
        let copy = disk.fork();
        copy.remove_file(path).unwrap();
        let store = Store::open(Arc::new(copy), Path::new(DIR), config()).unwrap();
        let error = store.open_log(id(0), LogConfig::default()).unwrap_err();
        assert!(matches!(error, LogError::Damaged { .. }), "{path:?}: {error}");
    }
}

#[test]
fn a_newest_segment_that_is_empty_or_torn_after_a_roll_is_dropped() {
    let (memory, disk) = memory();
    let store = open(&disk);
    let log = store.open_log(id(0), LogConfig::default()).unwrap();
    fill(&log, 0, 5);
    let copy = memory.fork();
    store.close().unwrap();
    for torn in [0, 1, 79] {
        let copy = copy.fork();
        let path = log_dir(0).join("00000000000000000005.log");
        copy.open(&path, chronicle_log::disk::OpenMode::CreateNew).unwrap();
        copy.overwrite(&path, &vec![0x5a; torn]).unwrap();
        let disk: Arc<dyn Disk> = Arc::new(copy);
        let store = open(&disk);
        let log = store.open_log(id(0), LogConfig::default()).unwrap();
        assert_samples(&log, 0, 5);
        fill(&log, 5, 60);
        assert_samples(&log, 0, 60);
    }
}

#[test]
fn a_segment_of_another_log_is_not_taken() {
    let disk = closed_log(30);
    let from = log_dir(0).join("00000000000000000000.log");
    let bytes = disk.contents(&from).unwrap();
    let store = Store::open(Arc::new(disk.clone()), Path::new(DIR), config()).unwrap();
    disk.create_dir(&log_dir(1)).unwrap();
    let to = log_dir(1).join("00000000000000000000.log");
    disk.open(&to, chronicle_log::disk::OpenMode::CreateNew).unwrap();
    disk.overwrite(&to, &bytes).unwrap();
    let error = store.open_log(id(1), LogConfig::default()).unwrap_err();
    assert!(error.to_string().contains("of log"), "{error}");
}

#[test]
fn damage_found_by_the_sealer_stops_the_log() {
    let (memory, disk) = memory();
    let store = open(&disk);
    let log = store.open_log(id(0), LogConfig::default()).unwrap();
    fill(&log, 0, 10);
    let path = log_dir(0).join("00000000000000000000.log");
    let mut bytes = memory.contents(&path).unwrap();
    bytes[200] ^= 1;
    memory.overwrite(&path, &bytes).unwrap();
    log.roll().unwrap();
    while log.failure().is_none() {
        std::thread::yield_now();
    }
    assert!(matches!(log.failure(), Some(LogError::Damaged { .. })));
    assert!(store.metrics().damage_found.get() > 0);
    assert!(matches!(append(&log, vec![sample(10)]), Err(LogError::Failed(_))));
}

#[test]
fn damage_found_by_a_reader_is_never_served() {
    let disk = closed_log(30);
    let path = log_dir(0).join("00000000000000000000.log");
    let mut bytes = disk.contents(&path).unwrap();
    bytes[SEGMENT_HEADER + 72 + 72 + 5] ^= 1;
    disk.overwrite(&path, &bytes).unwrap();
    let store = Store::open(Arc::new(disk), Path::new(DIR), config()).unwrap();
    let log = store.open_log(id(0), LogConfig::default()).unwrap();
    assert_eq!(log.read(0, 1, 1).unwrap()[0].entry, sample(0));
    let error = log.read(0, 10, usize::MAX).unwrap_err();
    assert!(matches!(error, LogError::Damaged { position: 168, index: Some(1), .. }), "{error}");
    assert_eq!(log.read(2, 3, 1).unwrap()[0].entry, sample(2));
    assert!(store.metrics().damage_found.get() > 0);
}

#[test]
fn a_reset_that_a_crash_interrupted_is_completed() {
    for seed in 0..100 {
        let disk = MemoryDisk::new();
        disk.create_dir(Path::new(DIR)).unwrap();
        disk.sync_dir(Path::new("/")).unwrap();
        let shared: Arc<dyn Disk> = Arc::new(disk.clone());
        let store = open(&(Arc::new(disk.mount()) as Arc<dyn Disk>));
        let log = store.open_log(id(0), LogConfig::default()).unwrap();
        fill(&log, 0, 80);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..seed * 3 {
                    std::thread::yield_now();
                }
                disk.crash(seed);
            });
            // Fails when the power goes first.
            let _ = log.reset(500, 400);
        });
        drop((log, store));
        let store = open(&shared);
        let log = store.open_log(id(0), LogConfig::default()).unwrap();
        match log.position().next_index {
            80 => assert_samples(&log, 0, 80),
            500 => assert_eq!((log.position().next_offset, log.position().segments), (400, 0)),
            other => panic!("seed {seed}: ends at {other}"),
        }
    }
}
