//! Appending, reading, rolling, sealing, changing and reopening, through the public interface.

use std::{path::Path, sync::Arc, time::Duration};

use crate::common::*;
use bytes::Bytes;
use chronicle_log::{
    Entry, EntryKind, Log, LogConfig, LogError, Store, StoreConfig,
    disk::{Disk, MemoryDisk, OpenMode, RealDisk},
};

#[test]
fn what_was_appended_is_read_back_before_and_after_reopening() {
    let (_, disk) = memory();
    let store = open(&disk);
    let log = store.open_log(id(0), LogConfig::default()).unwrap();
    fill(&log, 0, 200);
    assert_samples(&log, 0, 200);
    assert!(log.position().segments > 3, "{:?}", log.position());
    let position = log.position();
    store.close().unwrap();

    let store = open(&disk);
    let log = store.open_log(id(0), LogConfig::default()).unwrap();
    assert_eq!(store.metrics().recoveries.get(), 0, "a cleanly closed log is not scanned");
    let reopened = log.position();
    assert_eq!((reopened.last, reopened.next_offset), (position.last, position.next_offset));
    assert_samples(&log, 0, 200);
    fill(&log, 200, 210);
    assert_samples(&log, 0, 210);
}

#[test]
fn the_same_on_a_real_directory() {
    let dir = tempfile::tempdir().unwrap();
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let store = Store::open(disk.clone(), dir.path(), config()).unwrap();
    let log = store.open_log(id(0), LogConfig::default()).unwrap();
    fill(&log, 0, 60);
    append_durably(&log, (60..200).map(sample).collect()).unwrap();
    wait_sealed(&log);
    assert_samples(&log, 0, 200);
    let node = store.node_id();
    drop(log);
    store.close().unwrap();
    let store = Store::open(disk, dir.path(), config()).unwrap();
    assert_eq!(store.node_id(), node);
    let log = store.open_log(id(0), LogConfig::default()).unwrap();
    assert_samples(&log, 0, 200);
    assert!(store.free_bytes().unwrap() > 0);
}

#[test]
fn offsets_count_records_and_skip_control_entries() {
    let (_, disk) = memory();
    let store = open(&disk);
    let log = store.open_log(id(0), LogConfig::default()).unwrap();
    let entries = vec![blank(0), data(1, 3, 10, "a"), blank(2), data(3, 2, 20, "b"), blank(4)];
    let appended = append_durably(&log, entries).unwrap();
    assert_eq!((appended.first_base_offset, appended.next_offset), (0, 5));
    let bases: Vec<u64> = log.read(0, 10, usize::MAX).unwrap().iter().map(|stored| stored.base_offset).collect();
    assert_eq!(bases, [0, 0, 3, 3, 5]);
    for (offset, index) in [(0, 1), (2, 1), (3, 3), (4, 3)] {
        let found = log.read_at_offset(offset, u64::MAX, 1).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].entry.index, index, "offset {offset}");
    }
    assert!(log.read_at_offset(5, u64::MAX, 1).unwrap().is_empty());
    assert!(log.read_at_offset(3, 2, 1).unwrap().is_empty(), "entry 3 is not committed yet");
    let all = log.read_at_offset(0, u64::MAX, usize::MAX).unwrap();
    assert_eq!(all.iter().map(|stored| stored.entry.index).collect::<Vec<_>>(), [1, 3]);
}

#[test]
fn reads_stop_at_the_byte_limit_but_give_at_least_one_entry() {
    let (_, disk) = memory();
    let config = StoreConfig { tail_cache_bytes: 0, ..config() };
    let store = Store::open(disk, Path::new(DIR), config).unwrap();
    let log = store.open_log(id(0), LogConfig::default()).unwrap();
    append_durably(&log, (0..50).map(|index| data(index, 1, 0, vec![7; 100])).collect()).unwrap();
    while store.metrics().cache_bytes.get() > 0 {
        std::thread::yield_now();
    }
    for (limit, count) in [(0, 1), (175, 1), (176, 1), (352, 2), (17_600, 50), (usize::MAX, 50)] {
        assert_eq!(log.read(0, 50, limit).unwrap().len(), count, "limit {limit}");
    }
    assert_eq!(log.read(10, 13, usize::MAX).unwrap().len(), 3);
    assert!(log.read(50, 60, 100).unwrap().is_empty());
    assert!(store.metrics().cache_misses.get() > 0);
}

#[test]
fn entries_that_do_not_fit_are_refused_by_name_and_nothing_is_written() {
    let (_, disk) = memory();
    let store = open(&disk);
    let log = store.open_log(id(0), LogConfig::default()).unwrap();
    let refuse = |entries: Vec<Entry>| append(&log, entries).map(drop).unwrap_err().to_string();
    assert_eq!(refuse(vec![sample(1)]), "entry index 1 does not follow the log: expected 0");
    assert_eq!(refuse(vec![sample(0), sample(2)]), "entry index 2 does not follow the log: expected 1");
    assert_eq!(
        refuse(vec![data(0, 0, 0, "x")]),
        "entry 0: record_count is 0, but a data entry takes at least one offset"
    );
    let control = Entry { record_count: 1, ..blank(0) };
    assert_eq!(refuse(vec![control]), "entry 0: record_count is 1, but a control entry takes no offsets");
    assert_eq!(log.position().next_index, 0);
    fill(&log, 0, 3);
}

#[test]
fn every_kind_of_entry_round_trips() {
    let (_, disk) = memory();
    let store = open(&disk);
    let log = store.open_log(id(0), LogConfig::default()).unwrap();
    let kinds = [EntryKind::Data, EntryKind::Blank, EntryKind::Membership, EntryKind::Config];
    let entries: Vec<Entry> = kinds
        .iter()
        .enumerate()
        .map(|(index, kind)| Entry {
            kind: *kind,
            record_count: u32::from(*kind == EntryKind::Data),
            max_timestamp: i64::MIN,
            term: u64::MAX,
            leader: u64::MAX,
            ..data(index as u64, 1, 0, vec![index as u8; 1000 * index])
        })
        .collect();
    append_durably(&log, entries.clone()).unwrap();
    assert_eq!(read_all(&log).unwrap(), entries);
    drop(log);
    store.close().unwrap();
    let store = open(&disk);
    assert_eq!(read_all(&store.open_log(id(0), LogConfig::default()).unwrap()).unwrap(), entries);
}

#[test]
fn an_entry_larger_than_a_segment_gets_a_segment_of_its_own() {
    let (_, disk) = memory();
    let store = open(&disk);
    let log = store.open_log(id(0), LogConfig::default()).unwrap();
    let entries: Vec<Entry> = (0..3).map(|index| data(index, 1, 0, vec![1; 10_000])).collect();
    append_durably(&log, entries.clone()).unwrap();
    assert_eq!(log.segments().len(), 3);
    assert_eq!(read_all(&log).unwrap(), entries);
}

#[test]
fn truncation_goes_back_in_index_and_offset_and_survives_reopening() {
    // Cut inside the newest segment, inside a sealed one, at segment borders, and of unflushed entries.
    for keep in (0..150).step_by(7).chain([148]) {
        let (_, disk) = memory();
        let store = open(&disk);
        let log = store.open_log(id(0), LogConfig::default()).unwrap();
        fill(&log, 0, 150);
        if keep % 2 == 0 {
            wait_sealed(&log);
        }
        let offset = log.read(keep + 1, keep + 2, 1).unwrap().first().map(|stored| stored.base_offset);
        log.truncate_after(keep).unwrap();
        assert_eq!(log.position().last.map(|last| (last.index, last.term)), Some((keep, sample(keep).term)));
        assert_eq!(log.position().next_offset, offset.unwrap());
        assert_samples(&log, 0, keep + 1);
        fill(&log, keep + 1, keep + 40);
        assert_samples(&log, 0, keep + 40);
        drop(log);
        store.close().unwrap();
        let store = open(&disk);
        let log = store.open_log(id(0), LogConfig::default()).unwrap();
        assert_samples(&log, 0, keep + 40);
    }
}

#[test]
fn truncation_of_everything_the_log_still_has_leaves_it_empty_at_its_start() {
    let (_, disk) = memory();
    let store = open(&disk);
    let log = store.open_log(id(0), LogConfig::default()).unwrap();
    log.reset(10, 5).unwrap();
    append_durably(&log, vec![data(10, 1, 0, "x"), data(11, 1, 0, "y")]).unwrap();
    assert!(matches!(log.truncate_after(8), Err(LogError::Compacted { first: 10 })));
    log.truncate_after(9).unwrap();
    let position = log.position();
    assert_eq!((position.last, position.next_index, position.next_offset), (None, 10, 5));
    drop(log);
    store.close().unwrap();
    let store = open(&disk);
    let log = store.open_log(id(0), LogConfig::default()).unwrap();
    assert_eq!((log.position().next_index, log.position().next_offset), (10, 5));
    append_durably(&log, vec![data(10, 1, 0, "z")]).unwrap();
}

#[test]
fn reset_starts_an_empty_log_elsewhere() {
    let (_, disk) = memory();
    for (next_index, next_offset) in [(1000, 900), (50, 10), (0, 0)] {
        let store = open(&disk);
        let log = store.open_log(id(0), LogConfig::default()).unwrap();
        let start = log.position().next_index;
        fill(&log, start, start + 100);
        log.reset(next_index, next_offset).unwrap();
        let position = log.position();
        assert_eq!((position.first_index, position.start_offset), (next_index, next_offset));
        assert_eq!((position.next_index, position.next_offset, position.last), (next_index, next_offset, None));
        assert_eq!((position.bytes, position.segments, position.durable_index), (0, 0, None));
        drop(log);
        store.close().unwrap();
        let store = open(&disk);
        let log = store.open_log(id(0), LogConfig::default()).unwrap();
        assert_eq!((log.position().next_index, log.position().next_offset), (next_index, next_offset));
        fill(&log, next_index, next_index + 60);
        assert_samples(&log, next_index, next_index + 60);
        let from = next_index.saturating_sub(1);
        if from < next_index {
            assert!(matches!(log.read(from, 2000, 1), Err(LogError::Compacted { first }) if first == next_index));
        }
        store.close().unwrap();
    }
}

#[test]
fn retention_deletes_whole_sealed_segments_from_the_start() {
    let (_, disk) = memory();
    let store = open(&disk);
    let log = store.open_log(id(0), LogConfig::default()).unwrap();
    fill(&log, 0, 300);
    wait_sealed(&log);
    let before = log.segments();
    assert_eq!(log.retention_index(None, None, u64::MAX), None);
    assert_eq!(log.retention_index(Some(u64::MAX), Some(i64::MIN), u64::MAX), None);

    // By size: as little as keeps at least the limit.
    let keep = log.retention_index(Some(10_000), None, u64::MAX).unwrap();
    let kept: u64 = before.iter().filter(|segment| segment.base_index >= keep).map(|segment| segment.bytes).sum();
    let next = before.iter().find(|segment| segment.base_index >= keep).unwrap();
    assert!(kept >= 10_000 && kept - next.bytes < 10_000, "{kept}");

    // By age: segments with nothing at or after the time. Never beyond what may go, never the newest.
    let keep_by_age = log.retention_index(None, Some(1000 + 100), u64::MAX).unwrap();
    let expected = before.iter().find(|segment| segment.max_timestamp >= Some(1100)).unwrap().base_index;
    assert_eq!(keep_by_age, expected);
    assert!(log.retention_index(None, Some(i64::MAX), 150).unwrap() <= 150);
    assert_eq!(log.retention_index(None, Some(i64::MAX), u64::MAX), Some(before.last().unwrap().base_index));

    let deleted = log.delete_before(keep).unwrap();
    assert_eq!(deleted.first_index, keep);
    assert_eq!(deleted.segments, before.iter().filter(|segment| segment.next_index <= keep).count());
    assert_eq!(log.position().first_index, keep);
    assert_samples(&log, keep, 300);
    let start = log.position().start_offset;
    let error = log.read_at_offset(start - 1, u64::MAX, 1).unwrap_err();
    assert!(matches!(error, LogError::OffsetOutOfRange { earliest, .. } if earliest == start), "{error}");
    assert_eq!(log.delete_before(u64::MAX).unwrap().first_index, before.last().unwrap().base_index);
    assert_eq!(log.segments().len(), 1);
    let first = log.position().first_index;
    drop(log);
    store.close().unwrap();
    let store = open(&disk);
    let log = store.open_log(id(0), LogConfig::default()).unwrap();
    assert_samples(&log, first, 300);
}

#[test]
fn sealed_content_has_the_same_hash_on_every_replica() {
    let hashes = |groups: &[u64]| {
        let (_, disk) = memory();
        let store = open(&disk);
        let log = store.open_log(id(0), LogConfig::default()).unwrap();
        // Other groups, so other durable marks and other chains.
        let mut from = 0;
        for to in groups {
            append_durably(&log, (from..*to).map(sample).collect()).unwrap();
            from = *to;
        }
        wait_sealed(&log);
        log.segments().into_iter().map(|segment| (segment.base_index, segment.content_hash)).collect::<Vec<_>>()
    };
    let (one, many) = (hashes(&[150]), hashes(&(1..=150).collect::<Vec<_>>()));
    assert!(one.len() > 3 && one[0].1.is_some());
    assert_eq!(one, many);
}

#[test]
fn a_forced_roll_lets_the_old_segment_be_sealed_and_deleted() {
    let (_, disk) = memory();
    let store = open(&disk);
    let log = store.open_log(id(0), LogConfig::default()).unwrap();
    log.roll().unwrap();
    fill(&log, 0, 3);
    log.roll().unwrap();
    log.roll().unwrap();
    fill(&log, 3, 5);
    wait_sealed(&log);
    assert_eq!(log.segments().len(), 2);
    assert_eq!(log.delete_before(3).unwrap().segments, 1);
    assert_samples(&log, 3, 5);
}

#[test]
fn indexes_that_are_missing_stale_or_damaged_are_rebuilt() {
    let (memory, disk) = memory();
    let store = open(&disk);
    let log = store.open_log(id(0), LogConfig::default()).unwrap();
    fill(&log, 0, 200);
    wait_sealed(&log);
    drop(log);
    store.close().unwrap();
    let mut names: Vec<String> = disk.list(&log_dir(0)).unwrap().into_iter().map(|entry| entry.name).collect();
    names.retain(|name| name.ends_with(".idx"));
    names.sort();
    assert!(names.len() > 4);
    let other = memory.contents(&log_dir(0).join(&names[0])).unwrap();
    for (at, name) in names.iter().enumerate() {
        let path = log_dir(0).join(name);
        let mut bytes = memory.contents(&path).unwrap();
        match at % 5 {
            0 => disk.remove_file(&path).unwrap(),
            1 => memory.overwrite(&path, &other).unwrap(),
            2 => memory.overwrite(&path, &bytes[..bytes.len() - 1]).unwrap(),
            3 => memory.overwrite(&path, b"").unwrap(),
            _ => {
                let middle = bytes.len() / 2;
                bytes[middle] ^= 1;
                memory.overwrite(&path, &bytes).unwrap();
            }
        }
    }
    let store = open(&disk);
    let log = store.open_log(id(0), LogConfig::default()).unwrap();
    assert_samples(&log, 0, 200);
}

#[test]
fn a_reader_survives_truncation_and_retention_underneath() {
    let (_, disk) = memory();
    let store = Store::open(disk, Path::new(DIR), StoreConfig { tail_cache_bytes: 0, ..config() }).unwrap();
    let log = store.open_log(id(0), LogConfig::default()).unwrap();
    fill(&log, 0, 100);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            for round in 0..400_u64 {
                let from = log.position().first_index + round % 20;
                match log.read(from, u64::MAX, 2000) {
                    Ok(entries) => {
                        for (at, stored) in entries.iter().enumerate() {
                            assert_eq!(stored.entry, sample(from + at as u64));
                        }
                    }
                    Err(LogError::Compacted { .. }) => {}
                    Err(error) => panic!("{error}"),
                }
            }
        });
        for _ in 0..20 {
            let (first, next) = (log.position().first_index, log.position().next_index);
            let keep = first.max(next - 15);
            log.truncate_after(keep).unwrap();
            fill(&log, keep + 1, next + 25);
            log.delete_before(log.position().first_index + 30).unwrap();
        }
        reader.join().unwrap();
    });
}

#[test]
fn many_logs_are_written_at_once() {
    let (_, disk) = memory();
    let store = open(&disk);
    let logs: Vec<Arc<Log>> = (0..40).map(|n| store.open_log(id(n), LogConfig::default()).unwrap()).collect();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let logs = &logs;
            scope.spawn(move || {
                for index in 0..50 {
                    let mine = || logs.iter().skip(thread).step_by(4);
                    let waits: Vec<_> = mine().map(|log| append(log, vec![sample(index)]).unwrap().1).collect();
                    waits.into_iter().for_each(|wait| wait.recv().unwrap().unwrap());
                }
            });
        }
    });
    logs.iter().for_each(|log| assert_samples(log, 0, 50));
    assert_eq!(store.list_logs().unwrap().len(), 40);
    assert_eq!(store.metrics().pending_bytes.get(), 0);
}

#[test]
fn answers_come_in_the_order_of_appends() {
    let (_, disk) = memory();
    let store = open(&disk);
    let log = store.open_log(id(0), LogConfig::default()).unwrap();
    let (sender, receiver) = std::sync::mpsc::channel();
    for index in 0..300 {
        let sender = sender.clone();
        let entries = if index % 5 == 4 { Vec::new() } else { vec![sample(log.position().next_index)] };
        log.append(entries, Box::new(move |result| sender.send((index, result.is_ok())).unwrap())).unwrap();
    }
    let order: Vec<_> = receiver.iter().take(300).collect();
    assert_eq!(order, (0..300).map(|index| (index, true)).collect::<Vec<_>>());
}

#[test]
fn a_log_that_was_dropped_is_flushed_and_closed_in_the_background() {
    let (memory, disk) = memory();
    let store = open(&disk);
    let log = store.open_log(id(0), LogConfig::default()).unwrap();
    assert!(matches!(store.open_log(id(0), LogConfig::default()), Err(LogError::AlreadyOpen(_))));
    assert!(matches!(store.delete_log(id(0)), Err(LogError::StillOpen(_))));
    let waits: Vec<_> = (0..50).map(|index| append(&log, vec![sample(index)]).unwrap().1).collect();
    drop(log);
    let log = store.open_log(id(0), LogConfig::default()).unwrap();
    assert_samples(&log, 0, 50);
    assert!(waits.into_iter().all(|wait| wait.recv().unwrap().is_ok()));
    fill(&log, 50, 51);
    let killed: Arc<dyn Disk> = Arc::new(memory.fork());
    log.close().unwrap();
    assert!(matches!(append(&log, vec![sample(51)]), Err(LogError::Closed)));

    let store = open(&killed);
    assert_samples(&store.open_log(id(0), LogConfig::default()).unwrap(), 0, 51);
    assert_eq!(store.metrics().recoveries.get(), 1, "killed while open: scanned");
    store.close().unwrap();
    let store = open(&killed);
    drop(store.open_log(id(0), LogConfig::default()).unwrap());
    assert_samples(&store.open_log(id(0), LogConfig::default()).unwrap(), 0, 51);
    assert_eq!(store.metrics().recoveries.get(), 0);
}

#[test]
fn a_closed_log_is_summed_up_without_looking_at_its_files() {
    let (_, disk) = memory();
    let store = open(&disk);
    let log = store.open_log(id(0), LogConfig::default()).unwrap();
    fill(&log, 0, 100);
    let position = log.position();
    assert_eq!(store.summary(id(0)).unwrap(), None, "it is open");
    log.close().unwrap();
    let summary = store.summary(id(0)).unwrap().unwrap();
    assert_eq!((summary.next_index, summary.next_offset), (100, position.next_offset));
    assert_eq!((summary.segments, summary.max_timestamp), (position.segments as u64, Some(1099)));
    assert!(summary.bytes >= position.bytes);
    let log = store.open_log(id(0), LogConfig::default()).unwrap();
    fill(&log, 100, 101);
    assert_eq!(store.summary(id(0)).unwrap(), None, "it is open again");
    drop(log);
    assert_eq!(store.summary(id(9)).unwrap(), None);
}

#[test]
fn a_deleted_log_leaves_nothing_behind() {
    let (_, disk) = memory();
    let store = open(&disk);
    let log = store.open_log(id(0), LogConfig::default()).unwrap();
    fill(&log, 0, 20);
    store.journal_put(id(0), 1, Bytes::from_static(b"vote"), None).unwrap();
    log.close().unwrap();
    store.delete_log(id(0)).unwrap();
    assert_eq!(store.list_logs().unwrap(), []);
    assert_eq!(store.journal_get(id(0), 1), None);
    let log = store.open_log(id(0), LogConfig::default()).unwrap();
    assert_eq!(log.position().next_index, 0);
    store.delete_log(id(1)).unwrap();
}

#[test]
fn checkpoints_are_replaced_whole_and_checked() {
    let (memory, disk) = memory();
    let store = open(&disk);
    let log = store.open_log(id(0), LogConfig::default()).unwrap();
    assert_eq!(log.load_checkpoint().unwrap(), None);
    log.save_checkpoint(b"one").unwrap();
    log.save_checkpoint(b"the second").unwrap();
    memory.crash(0);
    drop((log, store));
    let store = open(&disk);
    let log = store.open_log(id(0), LogConfig::default()).unwrap();
    assert_eq!(log.load_checkpoint().unwrap().unwrap(), "the second");
    let path = log_dir(0).join("checkpoint");
    let bytes = memory.contents(&path).unwrap();
    for at in 0..bytes.len() {
        let mut flipped = bytes.clone();
        flipped[at] ^= 0x10;
        memory.overwrite(&path, &flipped).unwrap();
        assert!(matches!(log.load_checkpoint(), Err(LogError::Damaged { .. })), "byte {at}");
        memory.overwrite(&path, &bytes[..at]).unwrap();
        assert!(matches!(log.load_checkpoint(), Err(LogError::Damaged { .. })), "cut at {at}");
    }
}

#[test]
fn a_checkpoint_that_is_of_no_use_is_set_aside_whatever_it_is() {
    let (memory, disk) = memory();
    let store = open(&disk);
    let log = store.open_log(id(0), LogConfig::default()).unwrap();
    fill(&log, 0, 5);
    assert_eq!(log.quarantine_checkpoint().unwrap(), None, "there is none");
    let path = log.checkpoint_path();
    log.save_checkpoint(b"one").unwrap();
    memory.overwrite(&path, b"something else").unwrap();
    assert!(matches!(log.load_checkpoint(), Err(LogError::Damaged { .. })));
    let first = log.quarantine_checkpoint().unwrap().unwrap();
    assert_eq!(memory.contents(&first.join("checkpoint")).unwrap(), b"something else");
    assert_eq!(log.load_checkpoint().unwrap(), None);
    // A folder in its place; this disk does not move folders.
    memory.create_dir(&path).unwrap();
    assert!(matches!(log.load_checkpoint(), Err(LogError::Damaged { .. })));
    memory.remove_dir(&path).unwrap();
    log.save_checkpoint(b"sound, and of no use all the same").unwrap();
    let second = log.quarantine_checkpoint().unwrap().unwrap();
    assert_ne!(first, second);
    assert_eq!(store.metrics().quarantines.get(), 2);
    log.save_checkpoint(b"two").unwrap();
    memory.crash(0);
    drop((log, store));
    let store = open(&disk);
    let log = store.open_log(id(0), LogConfig::default()).unwrap();
    assert_samples(&log, 0, 5);
    assert_eq!(log.load_checkpoint().unwrap().unwrap(), "two");
    assert_eq!(memory.contents(&first.join("checkpoint")).unwrap(), b"something else");
}

#[test]
fn memory_mode_answers_at_once_and_flushes_within_its_interval() {
    let (memory, disk) = memory();
    let store = open(&disk);
    let slow = store.open_log(id(0), memory_mode(Duration::from_secs(3600))).unwrap();
    fill(&slow, 0, 100);
    assert!(slow.position().durable_index.is_none_or(|durable| durable < 99));
    slow.flush().unwrap();
    assert_eq!(slow.position().durable_index, Some(99));
    let quick = store.open_log(id(1), memory_mode(Duration::from_millis(1))).unwrap();
    fill(&quick, 0, 5);
    while quick.position().durable_index != Some(4) {
        std::thread::yield_now();
    }
    memory.crash(0);
    drop((slow, quick, store));
    let store = open(&disk);
    assert_samples(&store.open_log(id(0), LogConfig::default()).unwrap(), 0, 100);
    assert_samples(&store.open_log(id(1), LogConfig::default()).unwrap(), 0, 5);
}

#[test]
fn more_pending_than_allowed_is_refused_and_accepted_again_later() {
    let (_, disk) = memory();
    let config = StoreConfig { max_pending_bytes: 2000, ..config() };
    let store = Store::open(disk, Path::new(DIR), config).unwrap();
    let log = store.open_log(id(0), LogConfig::default()).unwrap();
    // The first `done` holds the scheduler up, so that what follows stays pending.
    let (go, held) = std::sync::mpsc::channel::<()>();
    let (first, _) = (log.append(vec![data(0, 1, 0, vec![0; 5000])], Box::new(move |_| held.recv().unwrap())), ());
    first.unwrap();
    let mut index = 1;
    let error = loop {
        match append(&log, vec![data(index, 1, 0, vec![0; 900])]) {
            Ok(_) => index += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, LogError::Overloaded { limit: 2000, .. }), "{error}");
    assert!(index <= 4);
    go.send(()).unwrap();
    log.flush().unwrap();
    append_durably(&log, vec![data(index, 1, 0, vec![0; 900])]).unwrap();
    assert_eq!(store.metrics().overloaded.get(), 1);
}

#[test]
fn the_cache_stays_within_its_budget() {
    let (_, disk) = memory();
    let config = StoreConfig { tail_cache_bytes: 10_000, ..config() };
    let store = Store::open(disk, Path::new(DIR), config).unwrap();
    let logs: Vec<_> = (0..5).map(|n| store.open_log(id(n), LogConfig::default()).unwrap()).collect();
    for log in &logs {
        fill(log, 0, 100);
        log.flush().unwrap();
    }
    while store.metrics().cache_bytes.get() > 10_000 {
        std::thread::yield_now();
    }
    logs.iter().for_each(|log| assert_samples(log, 0, 100));
    assert!(store.metrics().cache_hits.get() > 0 && store.metrics().cache_misses.get() > 0);
}

#[test]
fn a_second_open_of_a_directory_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    for (disk, path) in [
        (Arc::new(RealDisk) as Arc<dyn Disk>, dir.path()),
        (Arc::new(MemoryDisk::new()) as Arc<dyn Disk>, Path::new(DIR)),
    ] {
        let store = Store::open(disk.clone(), path, config()).unwrap();
        let error = Store::open(disk.clone(), path, config()).unwrap_err();
        assert!(matches!(error, LogError::Locked { .. }), "{error}");
        store.close().unwrap();
        Store::open(disk, path, config()).unwrap();
    }
}

#[test]
fn directories_that_cannot_be_used_are_refused_by_name() {
    let (memory, disk) = memory();
    disk.create_dir(Path::new("/")).unwrap();
    disk.open(Path::new("/file"), OpenMode::CreateNew).unwrap();
    let error = Store::open(disk.clone(), Path::new("/file"), config()).unwrap_err();
    assert!(matches!(error, LogError::NotADirectory { .. }), "{error}");

    open(&disk).close().unwrap();
    let format = Path::new(DIR).join("FORMAT");
    let text = String::from_utf8(memory.contents(&format).unwrap()).unwrap();
    memory.overwrite(&format, text.replace("chronicle-data 2", "chronicle-data 3").as_bytes()).unwrap();
    let error = Store::open(disk.clone(), Path::new(DIR), config()).unwrap_err();
    assert!(matches!(error, LogError::NewerFormat { found: 3, supported: 2, .. }), "{error}");
    memory.overwrite(&format, b"something else").unwrap();
    assert!(matches!(Store::open(disk.clone(), Path::new(DIR), config()), Err(LogError::Damaged { .. })));
    memory.overwrite(&format, text.as_bytes()).unwrap();
    let store = open(&disk);
    fill(&store.open_log(id(0), LogConfig::default()).unwrap(), 0, 1);
    store.close().unwrap();
    disk.remove_file(&format).unwrap();
    let error = Store::open(disk.clone(), Path::new(DIR), config()).unwrap_err();
    assert!(matches!(error, LogError::Damaged { .. }), "{error}");
    let zero = StoreConfig { flush_threads: 0, ..config() };
    let error = Store::open(disk, Path::new(DIR), zero).unwrap_err();
    assert_eq!(error.to_string(), "flush_threads is 0, but it must be at least 1");
}

#[test]
fn handles_that_outlive_their_store_are_refused_and_never_hang() {
    let (_, disk) = memory();
    for close in [false, true] {
        let store = open(&disk);
        let log = store.open_log(id(0), LogConfig::default()).unwrap();
        let next = log.position().next_index;
        let wait = append(&log, vec![sample(next)]).unwrap().1;
        if close {
            store.close().unwrap();
            assert!(matches!(store.journal_put(id(0), 1, Bytes::new(), None), Err(LogError::Failed(_))));
        }
        drop(store);
        wait.recv().unwrap().unwrap();
        assert!(matches!(append(&log, vec![sample(next + 1)]), Err(LogError::Closed)));
        assert!(log.truncate_after(0).is_err() && log.roll().is_err() && log.close().is_err());
    }
    assert_samples(&open(&disk).open_log(id(0), LogConfig::default()).unwrap(), 0, 2);
}

#[test]
fn a_callback_that_panics_stops_no_log() {
    let (_, disk) = memory();
    let store = open(&disk);
    let log = store.open_log(id(0), LogConfig::default()).unwrap();
    log.append(vec![sample(0)], Box::new(|_| panic!("on purpose"))).unwrap();
    fill(&log, 1, 5);
    assert_samples(&log, 0, 5);
}
