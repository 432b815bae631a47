//! Entries that end their segment: segments end at the same entries in every copy of a log, whatever happened to it.

use std::{path::Path, sync::Arc};

use crate::common::*;
use bytes::Bytes;
use chronicle_log::{
    Entry, EntryKind, Log, LogConfig, Store,
    disk::{Disk, DiskOperation, Fault, FaultRule, FaultyDisk, MemoryDisk},
};

fn end(index: u64) -> Entry {
    Entry { kind: EntryKind::SegmentEnd, ..blank(index) }
}

/// The samples, with an end at every index of `ends`.
fn entries(from: u64, to: u64, ends: &[u64]) -> Vec<Entry> {
    (from..to).map(|index| if ends.contains(&index) { end(index) } else { sample(index) }).collect()
}

/// First index, next index and content hash of each segment.
type Shape = Vec<(u64, u64, Option<[u8; 32]>)>;

fn shape(log: &Log) -> Shape {
    wait_sealed(log);
    log.segments().iter().map(|segment| (segment.base_index, segment.next_index, segment.content_hash)).collect()
}

fn bounds(log: &Log) -> Vec<(u64, u64)> {
    shape(log).into_iter().map(|(base, next, _)| (base, next)).collect()
}

fn open_with(disk: &Arc<dyn Disk>, segment_bytes: u64) -> (Arc<Store>, Arc<Log>) {
    let store = Store::open(disk.clone(), Path::new(DIR), config()).unwrap();
    let log = store.open_log(id(0), LogConfig { segment_bytes, ..LogConfig::default() }).unwrap();
    (store, log)
}

const ENDS: [u64; 4] = [9, 10, 33, 59];

/// Waits until the newest segment is sealed too.
fn wait_newest_sealed(log: &Log) {
    while log.segments().iter().any(|segment| segment.content_hash.is_none()) {
        std::thread::yield_now();
    }
}

#[test]
fn segments_end_at_the_same_entries_however_they_were_written() {
    let shape_of = |groups: &[u64]| {
        let (_, disk) = memory();
        let (_store, log) = open_with(&disk, 1 << 20);
        let mut from = 0;
        for to in groups {
            append_durably(&log, entries(from, *to, &ENDS)).unwrap();
            from = *to;
        }
        // The newest segment has ended: it is sealed although no entry follows.
        wait_newest_sealed(&log);
        assert_eq!(read_all(&log).unwrap(), entries(0, 60, &ENDS));
        shape(&log)
    };
    let at_once = shape_of(&[60]);
    assert_eq!(at_once.iter().map(|(base, ..)| *base).collect::<Vec<_>>(), [0, 10, 11, 34]);
    assert_eq!(at_once, shape_of(&(1..=60).collect::<Vec<_>>()));
    assert_eq!(at_once, shape_of(&[9, 10, 11, 33, 34, 60]));
    assert_eq!(at_once, shape_of(&[5, 20, 40, 60]));
}

#[test]
fn an_end_belongs_to_the_segment_that_it_ends_also_when_that_is_too_large() {
    let (_, disk) = memory();
    let (_store, log) = open_with(&disk, 1024);
    let large = |index| data(index, 1, 0, vec![7; 5000]);
    append_durably(&log, vec![large(0), end(1), large(2), end(3), large(4), sample(5), end(6), sample(7)]).unwrap();
    assert_eq!(bounds(&log), [(0, 2), (2, 4), (4, 5), (5, 7), (7, 8)]);
}

#[test]
fn the_bytes_until_the_next_end_count_entries_that_are_not_written_yet() {
    let (_, disk) = memory();
    let (store, log) = open_with(&disk, 1 << 20);
    assert_eq!(log.open_bytes(), 0);
    // Not awaited: in memory, being written, or on disk.
    let waits: Vec<_> = (0..20).map(|index| append(&log, entries(index, index + 1, &[12])).unwrap().1).collect();
    let expected = |from: u64| (from..20).map(|index| 72 + sample(index).payload.len().next_multiple_of(8) as u64);
    assert_eq!(log.open_bytes(), expected(13).sum::<u64>());
    waits.into_iter().for_each(|wait| wait.recv().unwrap().unwrap());
    assert_eq!(log.open_bytes(), expected(13).sum::<u64>());
    append_durably(&log, vec![end(20)]).unwrap();
    assert_eq!(log.open_bytes(), 0);
    drop((log, store));
    let (_store, log) = open_with(&disk, 1 << 20);
    assert_eq!(log.open_bytes(), 0);
}

#[test]
fn an_end_that_is_truncated_ends_nothing() {
    for ended_for in [0, 1, 8] {
        let (_, disk) = memory();
        let (store, log) = open_with(&disk, 1 << 20);
        append_durably(&log, entries(0, 11 + ended_for, &[10])).unwrap();
        if ended_for > 0 {
            wait_sealed(&log);
        }
        log.truncate_after(9).unwrap();
        append_durably(&log, entries(10, 15, &[14])).unwrap();
        append_durably(&log, entries(15, 16, &[])).unwrap();
        assert_eq!(bounds(&log), [(0, 15), (15, 16)], "{ended_for} entries after the end");
        // Up to an end, and not further: it still ends its segment.
        log.truncate_after(14).unwrap();
        append_durably(&log, entries(15, 20, &[])).unwrap();
        assert_eq!(bounds(&log), [(0, 15), (15, 20)]);
        assert_eq!(read_all(&log).unwrap(), entries(0, 20, &[14]));
        drop(log);
        store.close().unwrap();
    }
}

#[test]
fn an_end_outlives_every_crash_after_it_was_acknowledged() {
    for seed in 0..40 {
        let disk = MemoryDisk::new();
        let (store, log) = open_with(&(Arc::new(disk.clone()) as Arc<dyn Disk>), 1 << 20);
        append_durably(&log, entries(0, 10, &[9])).unwrap();
        if seed % 2 == 0 {
            // The sealer has begun to write the footer, has written it, or has not.
            std::thread::yield_now();
        }
        disk.crash(seed);
        drop((log, store));
        let after: Arc<dyn Disk> = Arc::new(disk.mount());
        let (_store, log) = open_with(&after, 1 << 20);
        assert_eq!(log.position().next_index, 10);
        append_durably(&log, entries(10, 13, &[])).unwrap();
        assert_eq!(bounds(&log), [(0, 10), (10, 13)], "seed {seed}");
    }
}

#[test]
fn an_end_without_a_footer_still_ends_its_segment_after_a_clean_close() {
    let memory = MemoryDisk::new();
    let disk = FaultyDisk::new(Arc::new(memory));
    let shared: Arc<dyn Disk> = Arc::new(disk.clone());
    let (store, log) = open_with(&shared, 1 << 20);
    disk.add(FaultRule::new(DiskOperation::Create, Fault::NO_SPACE).path(".idx"));
    let before = disk.fired();
    append_durably(&log, entries(0, 10, &[9])).unwrap();
    while disk.fired() == before {
        std::thread::yield_now();
    }
    disk.heal();
    log.close().unwrap();
    assert_eq!(log.segments()[0].content_hash, None, "the seal has failed");
    drop(log);
    store.close().unwrap();
    drop(store);
    let (_store, log) = open_with(&shared, 1 << 20);
    append_durably(&log, entries(10, 13, &[])).unwrap();
    assert_eq!(bounds(&log), [(0, 10), (10, 13)]);
}

#[test]
fn the_newest_segment_expires_by_age_once_it_has_ended_and_goes_once_another_follows() {
    let (_, disk) = memory();
    let (_store, log) = open_with(&disk, 1 << 20);
    append_durably(&log, entries(0, 10, &[9])).unwrap();
    wait_newest_sealed(&log);
    assert_eq!(log.retention_index(None, Some(i64::MAX), 10), Some(10));
    assert_eq!(log.retention_index(None, Some(i64::MAX), 9), None, "not all of it may go");
    assert_eq!(log.retention_index(Some(0), None, 10), None, "never by size");
    assert_eq!((log.deletable_before(10), log.delete_before(10).unwrap().segments), (None, 0));
    append_durably(&log, entries(10, 11, &[])).unwrap();
    assert_eq!(log.deletable_before(9), None);
    assert_eq!(log.deletable_before(u64::MAX), Some(10));
    assert_eq!(log.delete_before(10).unwrap().first_index, 10);
}

#[test]
fn a_search_by_time_can_begin_behind_entries_that_do_not_count() {
    let (_, disk) = memory();
    let (_store, log) = open_with(&disk, 1 << 20);
    let at = |index, time| data(index, 1, time, Bytes::from_static(b"x"));
    append_durably(&log, vec![at(0, 50), at(1, 10), end(2), at(3, 20), at(4, 40), at(5, 30)]).unwrap();
    let found = |min, time| log.entry_for_time_from(min, time, 5).unwrap().map(|stored| stored.entry.index);
    assert_eq!((found(0, 15), found(1, 15), found(2, 15), found(4, 15)), (Some(0), Some(3), Some(3), Some(4)));
    assert_eq!((found(1, 35), found(5, 35), found(6, 5)), (Some(4), None, None));
}
