//! Disks that fail: each failure has its own error, stops only what it must, and costs nothing that was acknowledged.

use std::{path::Path, sync::Arc, time::Duration};

use crate::common::*;
use bytes::Bytes;
use chronicle_log::{
    Barrier, Log, LogConfig, LogError, Store, StoreConfig,
    disk::{Disk, DiskOperation, Fault, FaultRule, FaultyDisk, MemoryDisk, Trigger},
};

fn faulty() -> (FaultyDisk, MemoryDisk, Arc<Store>) {
    let memory = MemoryDisk::new();
    let disk = FaultyDisk::new(Arc::new(memory.clone()));
    let store = Store::open(Arc::new(disk.clone()), Path::new(DIR), config()).unwrap();
    (disk, memory, store)
}

fn reopen(store: &Store, log: Arc<Log>) -> Arc<Log> {
    let id = log.id();
    assert!(matches!(log.close(), Err(LogError::Failed(_))));
    drop(log);
    store.open_log(id, LogConfig::default()).unwrap()
}

/// Makes the next append fail, checks the error, and that nothing acknowledged is lost.
fn fails(rule: FaultRule, check: impl Fn(&LogError) -> bool) {
    let (disk, _, store) = faulty();
    let log = store.open_log(id(0), LogConfig::default()).unwrap();
    let other = store.open_log(id(1), LogConfig::default()).unwrap();
    fill(&log, 0, 10);
    fill(&other, 0, 10);
    disk.add(rule);
    let error = append_durably(&log, vec![data(10, 1, 0, vec![1; 600])]).unwrap_err();
    assert!(check(error.root()), "{error:?}");
    assert!(log.failure().is_some_and(|failure| check(&failure)));
    let later = append(&log, vec![sample(11)]).map(drop).unwrap_err();
    assert!(matches!(&later, LogError::Failed(cause) if check(cause)), "{later:?}");
    assert_eq!(log.read(0, 10, usize::MAX).unwrap().len(), 10, "a failed log can still be read");
    assert_eq!(store.metrics().failed_logs.get(), 1);
    disk.heal();
    fill(&other, 10, 12);
    let log = reopen(&store, log);
    assert_samples(&log, 0, 10);
    fill(&log, 10, 60);
    assert_samples(&log, 0, 60);
    drop(log);
    store.close().unwrap();
    let store = Store::open(Arc::new(disk), Path::new(DIR), config()).unwrap();
    assert_samples(&store.open_log(id(0), LogConfig::default()).unwrap(), 0, 60);
}

fn on_log(operation: DiskOperation, fault: Fault) -> FaultRule {
    FaultRule::new(operation, fault).path(id(0).to_string())
}

#[test]
fn a_full_disk_stops_only_the_log_that_wrote_to_it_and_is_reported() {
    fails(on_log(DiskOperation::Write, Fault::NO_SPACE), |error| matches!(error, LogError::NoSpace { .. }));
    // The first part of the frame still fits.
    fails(on_log(DiskOperation::Write, Fault::Partial(100, 28)), |error| matches!(error, LogError::NoSpace { .. }));
}

#[test]
fn a_device_error_on_write_is_distinguished_from_a_full_disk() {
    fails(
        on_log(DiskOperation::Write, Fault::IO_ERROR),
        |error| matches!(error, LogError::Io { source, .. } if source.raw_os_error() == Some(5)),
    );
}

#[test]
fn a_failed_flush_is_never_retried_and_what_it_covered_is_cut_on_reopening() {
    fails(on_log(DiskOperation::Sync, Fault::IO_ERROR).when(Trigger::Nth(1)), |error| {
        matches!(error, LogError::Io { action: "flush to the disk", .. })
    });
    // Even out of space counts as a failed flush there, not as something that could be tried again.
    fails(on_log(DiskOperation::Sync, Fault::NO_SPACE).when(Trigger::Nth(1)), |error| {
        matches!(error, LogError::Io { .. })
    });
}

#[test]
fn a_failed_roll_stops_the_log() {
    let (disk, _, store) = faulty();
    let log = store.open_log(id(0), LogConfig::default()).unwrap();
    fill(&log, 0, 10);
    disk.add(on_log(DiskOperation::Create, Fault::NO_SPACE).when(Trigger::Nth(1)));
    let error = append_durably(&log, vec![data(10, 1, 0, vec![0; 4000])]).unwrap_err();
    assert!(matches!(error, LogError::NoSpace { action: "create the segment", .. }), "{error}");
    let log = reopen(&store, log);
    fill(&log, 10, 100);
    wait_sealed(&log);

    disk.add(on_log(DiskOperation::SyncDir, Fault::IO_ERROR).when(Trigger::Nth(1)));
    let mut index = 100;
    while append_durably(&log, vec![sample(index)]).is_ok() {
        index += 1;
    }
    let log = reopen(&store, log);
    assert_samples(&log, 0, index);
    fill(&log, index, index + 50);
}

#[test]
fn short_writes_are_continued() {
    let (disk, _, store) = faulty();
    disk.add(FaultRule::new(DiskOperation::Write, Fault::ShortWrite(13)));
    let log = store.open_log(id(0), LogConfig::default()).unwrap();
    fill(&log, 0, 60);
    append_durably(&log, (60..100).map(sample).collect()).unwrap();
    disk.heal();
    drop(log);
    let log = store.open_log(id(0), LogConfig::default()).unwrap();
    assert_samples(&log, 0, 100);
}

#[test]
fn a_failed_volume_flush_stops_every_log_it_covered() {
    let memory = MemoryDisk::new();
    let disk = FaultyDisk::new(Arc::new(memory));
    let config = StoreConfig { barrier: Barrier::Syncfs, ..config() };
    let store = Store::open(Arc::new(disk.clone()), Path::new(DIR), config).unwrap();
    let logs: Vec<_> = (0..8).map(|n| store.open_log(id(n), LogConfig::default()).unwrap()).collect();
    logs.iter().for_each(|log| fill(log, 0, 5));
    disk.add(FaultRule::new(DiskOperation::Sync, Fault::IO_ERROR));
    // Whether a round has one log or many, its flush fails.
    let waits: Vec<_> = logs.iter().map(|log| append(log, vec![sample(5)]).unwrap().1).collect();
    for wait in waits {
        assert!(matches!(wait.recv().unwrap(), Err(LogError::Io { .. })));
    }
    disk.heal();
    for log in logs {
        assert_samples(&reopen(&store, log), 0, 5);
    }
}

#[test]
fn files_are_flushed_one_by_one_where_a_flush_of_the_volume_hides_errors() {
    for barrier in [Barrier::Syncfs, Barrier::Auto] {
        let memory = MemoryDisk::new();
        memory.set_reports_write_errors(false);
        let disk = FaultyDisk::new(Arc::new(memory));
        let config = StoreConfig { barrier, syncfs_threshold: 3, ..config() };
        let store = Store::open(Arc::new(disk.clone()), Path::new(DIR), config).unwrap();
        let logs: Vec<_> = (0..8).map(|n| store.open_log(id(n), LogConfig::default()).unwrap()).collect();
        logs.iter().for_each(|log| fill(log, 0, 1));
        // Of one file nothing reaches the disk.
        disk.add(on_log(DiskOperation::Sync, Fault::IO_ERROR));
        for index in 1..20 {
            let waits: Vec<_> = logs[1..].iter().map(|log| append(log, vec![sample(index)]).unwrap().1).collect();
            if index == 1 {
                let error = append_durably(&logs[0], vec![sample(1)]).unwrap_err();
                assert!(matches!(error, LogError::Io { .. }), "{error}");
            }
            for wait in waits {
                wait.recv().unwrap().unwrap();
            }
        }
    }
}

#[test]
fn a_failed_flush_of_the_journal_stops_the_store() {
    let (disk, _, store) = faulty();
    let log = store.open_log(id(0), LogConfig::default()).unwrap();
    fill(&log, 0, 5);
    disk.add(FaultRule::new(DiskOperation::Sync, Fault::IO_ERROR).path("/meta/"));
    let (done, wait) = done();
    store.journal_put(id(0), 1, Bytes::from_static(b"vote"), Some(done)).unwrap();
    assert!(matches!(wait.recv().unwrap(), Err(LogError::Io { .. })));
    disk.heal();
    let refused = store.journal_put(id(0), 1, Bytes::from_static(b"vote"), None);
    assert!(matches!(refused, Err(LogError::Failed(_))));
    while log.failure().is_none() {
        std::thread::yield_now();
    }
    assert!(matches!(append(&log, vec![sample(5)]), Err(LogError::Failed(_))));
    assert!(matches!(store.open_log(id(1), LogConfig::default()), Err(LogError::Failed(_))));
    drop(log);
    let _ = store.close();
    let store = Store::open(Arc::new(disk), Path::new(DIR), config()).unwrap();
    assert_samples(&store.open_log(id(0), LogConfig::default()).unwrap(), 0, 5);
}

#[test]
fn a_full_disk_delays_journal_records_and_does_not_lose_them() {
    let (disk, memory, store) = faulty();
    let rule = disk.add(FaultRule::new(DiskOperation::Write, Fault::Partial(20, 28)).path("/meta/"));
    let put = |value: &'static [u8]| {
        let (done, wait) = done();
        store.journal_put(id(0), 1, Bytes::from_static(value), Some(done)).unwrap();
        wait.recv().unwrap()
    };
    assert!(matches!(put(b"one"), Err(LogError::NoSpace { .. })));
    disk.remove(rule);
    put(b"two").unwrap();
    memory.crash(0);
    drop(store);
    let store = Store::open(Arc::new(disk), Path::new(DIR), config()).unwrap();
    assert_eq!(store.journal_get(id(0), 1).unwrap(), "two");
}

#[test]
fn a_value_that_met_a_full_disk_is_not_settled_before_it_is_on_disk() {
    let (disk, memory, store) = faulty();
    let settle = |n| {
        let (done, wait) = done();
        store.journal_settle(id(n), done).unwrap();
        wait.recv().unwrap()
    };
    settle(0).unwrap();
    let rule = disk.add(FaultRule::new(DiskOperation::Write, Fault::NO_SPACE).path("/meta/"));
    let (done, wait) = done();
    store.journal_put(id(0), 1, Bytes::from_static(b"vote"), Some(done)).unwrap();
    assert!(matches!(wait.recv().unwrap(), Err(LogError::NoSpace { .. })));
    assert_eq!(store.journal_get(id(0), 1).unwrap(), "vote", "it is known, and not on disk");
    assert!(matches!(settle(0), Err(LogError::NoSpace { .. })));
    settle(1).unwrap();
    disk.remove(rule);
    settle(0).unwrap();
    memory.crash(0);
    drop(store);
    let store = Store::open(Arc::new(disk), Path::new(DIR), config()).unwrap();
    assert_eq!(store.journal_get(id(0), 1).unwrap(), "vote");
}

#[test]
fn a_read_only_volume_is_named_as_such() {
    let memory = MemoryDisk::new();
    let disk = FaultyDisk::new(Arc::new(memory));
    disk.add(FaultRule::new(DiskOperation::Change, Fault::READ_ONLY));
    for _ in 0..2 {
        let error = Store::open(Arc::new(disk.clone()), Path::new(DIR), config()).unwrap_err();
        assert!(matches!(error, LogError::ReadOnly { .. }), "{error}");
        // Then the same with a directory that exists.
        disk.heal();
        Store::open(Arc::new(disk.clone()), Path::new(DIR), config()).unwrap().close().unwrap();
        disk.add(FaultRule::new(DiskOperation::Change, Fault::READ_ONLY));
    }
    disk.heal();
    let store = Store::open(Arc::new(disk.clone()), Path::new(DIR), config()).unwrap();
    let log = store.open_log(id(0), LogConfig::default()).unwrap();
    disk.add(FaultRule::new(DiskOperation::Change, Fault::READ_ONLY));
    let error = append_durably(&log, vec![sample(0)]).unwrap_err();
    assert!(matches!(error, LogError::ReadOnly { .. }), "{error}");
}

#[test]
fn a_failed_truncation_or_retention_stops_the_log_and_reopens_whole() {
    for (operation, nth) in
        [(DiskOperation::Remove, 1), (DiskOperation::SetLen, 1), (DiskOperation::Sync, 1), (DiskOperation::SyncDir, 1)]
    {
        let (disk, _, store) = faulty();
        let log = store.open_log(id(0), LogConfig::default()).unwrap();
        fill(&log, 0, 100);
        wait_sealed(&log);
        disk.add(on_log(operation, Fault::IO_ERROR).when(Trigger::Nth(nth)));
        log.truncate_after(20).unwrap_err();
        disk.heal();
        let log = reopen(&store, log);
        let next = log.position().next_index;
        assert!((21..=100).contains(&next), "{operation:?}: {next}");
        assert_samples(&log, 0, next);
        fill(&log, next, next + 20);
        wait_sealed(&log);

        disk.add(on_log(DiskOperation::Remove, Fault::IO_ERROR).when(Trigger::Nth(2)));
        log.delete_before(u64::MAX).unwrap_err();
        disk.heal();
        let log = reopen(&store, log);
        assert_samples(&log, log.position().first_index, next + 20);
    }
}

#[test]
fn a_failed_seal_costs_nothing() {
    let (disk, _, store) = faulty();
    let log = store.open_log(id(0), LogConfig::default()).unwrap();
    fill(&log, 0, 10);
    disk.add(FaultRule::new(DiskOperation::Create, Fault::NO_SPACE).path(".idx"));
    let before = disk.fired();
    log.roll().unwrap();
    while disk.fired() == before {
        std::thread::yield_now();
    }
    disk.heal();
    fill(&log, 10, 15);
    assert!(log.failure().is_none());
    log.close().unwrap();
    drop(log);
    let log = store.open_log(id(0), LogConfig::default()).unwrap();
    wait_sealed(&log);
    assert_samples(&log, 0, 15);
}

#[test]
fn a_failed_flush_in_memory_mode_stops_the_log_too() {
    let (disk, _, store) = faulty();
    let log = store.open_log(id(0), memory_mode(Duration::from_millis(1))).unwrap();
    disk.add(on_log(DiskOperation::Sync, Fault::IO_ERROR));
    fill(&log, 0, 1);
    while log.failure().is_none() {
        std::thread::yield_now();
    }
    assert!(log.flush().is_err());
}

#[test]
fn the_journal_is_rewritten_when_it_is_mostly_dead() {
    let (memory, disk) = memory();
    let config = StoreConfig { journal_rewrite_bytes: 4096, ..config() };
    let store = Store::open(disk.clone(), Path::new(DIR), config.clone()).unwrap();
    for n in 0..500_u32 {
        let (done, wait) = done();
        store.journal_put(id(n % 3), (n % 2) as u8, Bytes::copy_from_slice(&n.to_le_bytes()), Some(done)).unwrap();
        wait.recv().unwrap().unwrap();
    }
    let files = disk.list(&Path::new(DIR).join("meta")).unwrap();
    assert_eq!(files.len(), 1, "{files:?}");
    let path = Path::new(DIR).join("meta").join(&files[0].name);
    assert!(memory.contents(&path).unwrap().len() < 5000);
    memory.crash(3);
    drop(store);
    let store = Store::open(disk, Path::new(DIR), config).unwrap();
    for n in 494..500_u32 {
        assert_eq!(store.journal_get(id(n % 3), (n % 2) as u8).unwrap(), n.to_le_bytes()[..]);
    }
}

#[test]
fn a_journal_whose_new_name_may_not_be_on_disk_takes_no_more_votes() {
    for seed in 0..40 {
        let memory = MemoryDisk::new();
        let disk = FaultyDisk::new(Arc::new(memory.clone()));
        let config = StoreConfig { journal_rewrite_bytes: 4096, ..config() };
        let store = Store::open(Arc::new(disk.clone()), Path::new(DIR), config.clone()).unwrap();
        // The first rewrite gets as far as the new name; later ones do not begin.
        disk.add(FaultRule::new(DiskOperation::SyncDir, Fault::IO_ERROR).path("/meta").when(Trigger::Nth(1)));
        disk.add(FaultRule::new(DiskOperation::Create, Fault::NO_SPACE).path("journal-").when(Trigger::From(2)));
        let mut acknowledged = 0;
        for vote in 1..400_u32 {
            let (done, wait) = done();
            let put = store.journal_put(id(0), 1, Bytes::copy_from_slice(&vote.to_le_bytes()), Some(done));
            match put.and_then(|()| wait.recv().unwrap()) {
                Ok(()) => acknowledged = vote,
                Err(LogError::Io { .. } | LogError::Failed(_)) => {}
                Err(error) => panic!("vote {vote}: {error}"),
            }
        }
        disk.heal();
        // Even seeds: the process is killed. Odd ones: the power goes, and either name may be there.
        drop(store);
        if seed % 2 == 1 {
            memory.crash(seed);
        }
        let store = Store::open(Arc::new(disk), Path::new(DIR), config).unwrap();
        let found = store.journal_get(id(0), 1).map_or(0, |vote| u32::from_le_bytes(vote[..].try_into().unwrap()));
        assert!(found >= acknowledged, "seed {seed}: vote {found} is there, {acknowledged} was acknowledged");
    }
}

#[test]
fn a_failed_rewrite_before_the_new_name_only_lets_the_journal_grow() {
    for rule in [
        FaultRule::new(DiskOperation::Create, Fault::NO_SPACE).path("journal-"),
        FaultRule::new(DiskOperation::Write, Fault::NO_SPACE).path("journal-00000000000000000002"),
        FaultRule::new(DiskOperation::Rename, Fault::NO_SPACE).path("journal-"),
    ] {
        let disk = FaultyDisk::new(Arc::new(MemoryDisk::new()));
        let config = StoreConfig { journal_rewrite_bytes: 4096, ..config() };
        let store = Store::open(Arc::new(disk.clone()), Path::new(DIR), config.clone()).unwrap();
        disk.add(rule);
        for vote in 0..200_u8 {
            let (done, wait) = done();
            store.journal_put(id(0), 1, Bytes::copy_from_slice(&[vote]), Some(done)).unwrap();
            wait.recv().unwrap().unwrap();
        }
        assert!(disk.fired() > 0);
        drop(store);
        disk.heal();
        let store = Store::open(Arc::new(disk), Path::new(DIR), config).unwrap();
        assert_eq!(store.journal_get(id(0), 1).unwrap()[..], [199]);
    }
}

#[test]
fn a_new_journal_name_that_a_killed_process_left_is_flushed_before_it_is_used() {
    for seed in 0..40 {
        let memory = MemoryDisk::new();
        let disk = FaultyDisk::new(Arc::new(memory.clone()));
        let config = StoreConfig { journal_rewrite_bytes: 4096, ..config() };
        let store = Store::open(Arc::new(disk.clone()), Path::new(DIR), config.clone()).unwrap();
        let put = |store: &Store, vote: u32| {
            let (done, wait) = done();
            store.journal_put(id(0), 1, Bytes::copy_from_slice(&vote.to_le_bytes()), Some(done))?;
            wait.recv().unwrap()
        };
        disk.add(FaultRule::new(DiskOperation::SyncDir, Fault::IO_ERROR).path("/meta"));
        let mut vote = 1;
        while put(&store, vote).is_ok() && disk.fired() == 0 {
            vote += 1;
        }
        drop(store);
        disk.heal();
        let store = Store::open(Arc::new(disk.clone()), Path::new(DIR), config.clone()).unwrap();
        put(&store, 10_000).unwrap();
        memory.crash(seed);
        drop(store);
        let store = Store::open(Arc::new(disk), Path::new(DIR), config).unwrap();
        assert_eq!(store.journal_get(id(0), 1).unwrap()[..], 10_000_u32.to_le_bytes(), "seed {seed}");
    }
}

#[test]
fn a_torn_journal_record_is_cut_and_earlier_ones_stay() {
    let (memory, disk) = memory();
    let store = open(&disk);
    let put = |store: &Store, value: &'static str| {
        let (done, wait) = done();
        store.journal_put(id(0), 1, Bytes::from_static(value.as_bytes()), Some(done)).unwrap();
        wait.recv().unwrap().unwrap();
    };
    put(&store, "first");
    put(&store, "second");
    let copy = memory.fork();
    store.close().unwrap();
    let path = Path::new(DIR).join("meta/journal-00000000000000000001");
    let bytes = copy.contents(&path).unwrap();
    // "second" is what nothing vouches for yet; "first" is vouched for by "second", unless that is cut away too.
    for cut in bytes.len() - 40..bytes.len() - 2 {
        let copy = copy.fork();
        copy.overwrite(&path, &bytes[..cut]).unwrap();
        let store = open(&(Arc::new(copy) as Arc<dyn Disk>));
        assert_eq!(store.journal_get(id(0), 1).unwrap(), "first", "cut at {cut}");
        put(&store, "third");
    }
    let mut flipped = bytes.clone();
    flipped[56 + 40] ^= 1;
    copy.overwrite(&path, &flipped).unwrap();
    let error = Store::open(Arc::new(copy), Path::new(DIR), config()).unwrap_err();
    assert!(matches!(error, LogError::Damaged { position: 56, .. }), "{error}");
}

#[test]
fn values_too_large_for_the_journal_are_refused() {
    let (_, _, store) = faulty();
    let error = store.journal_put(id(0), 1, vec![0; (64 << 10) + 1].into(), None).unwrap_err();
    assert_eq!(error.to_string(), "value length is 65537, but a journal value has at most 65536 bytes");
}
