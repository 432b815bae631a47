//! Scrubbing, digests and content hashes: replicas can be checked, and compared with each other.

use std::{path::Path, sync::Arc};

use crate::common::*;
use chronicle_log::{
    ContentHash, Log, LogConfig, LogError, Store, StoreConfig,
    disk::{MemoryDisk, RealDisk},
};

fn hash(log: &Log, from: u64, to: u64) -> [u8; 32] {
    let mut hash = ContentHash::new();
    let mut at = from;
    while at < to {
        for stored in log.read(at, to, 500).unwrap() {
            hash.update(&stored);
            at += 1;
        }
    }
    hash.finalize()
}

fn store(segment_bytes: u64) -> (MemoryDisk, Arc<Store>, Arc<Log>) {
    let (memory, disk) = memory();
    let store = Store::open(disk, Path::new(DIR), StoreConfig { segment_bytes, ..config() }).unwrap();
    let log = store.open_log(id(0), LogConfig::default()).unwrap();
    (memory, store, log)
}

#[test]
fn digests_do_not_depend_on_where_segments_end() {
    let (_, _first, coarse) = store(1 << 20);
    let (_, _second, fine) = store(1024);
    for log in [&coarse, &fine] {
        fill(log, 0, 60);
    }
    for (from, to) in [(0, 60), (0, 1), (7, 8), (13, 51), (20, 20), (30, 10)] {
        let digest = coarse.digest(from, to).unwrap();
        assert_eq!(digest, fine.digest(from, to).unwrap(), "{from}..{to}");
        assert_eq!(digest, hash(&fine, from, to), "{from}..{to}");
    }
    assert_ne!(coarse.digest(0, 59).unwrap(), coarse.digest(0, 60).unwrap());
}

#[test]
fn the_digest_of_a_segment_is_its_content_hash() {
    let (_, _store, log) = store(1024);
    fill(&log, 0, 60);
    wait_sealed(&log);
    let sealed: Vec<_> = log.segments().into_iter().filter(|segment| segment.content_hash.is_some()).collect();
    assert!(sealed.len() > 5);
    for segment in sealed {
        assert_eq!(segment.content_hash.unwrap(), log.digest(segment.base_index, segment.next_index).unwrap());
    }
}

#[test]
fn a_digest_covers_what_was_just_appended_and_reports_what_is_missing() {
    let (_, _store, log) = store(1024);
    append(&log, (0..30).map(sample).collect()).unwrap();
    assert_eq!(log.digest(0, 30).unwrap(), hash(&log, 0, 30));
    assert!(matches!(log.digest(0, 31), Err(LogError::NotStored { index: 30, next: 30 })));
    wait_sealed(&log);
    let first = log.delete_before(20).unwrap().first_index;
    assert!(matches!(log.digest(0, 30), Err(LogError::Compacted { first: found }) if found == first));
    assert_eq!(log.digest(first, 30).unwrap(), hash(&log, first, 30));
}

#[test]
fn a_digest_is_made_of_what_is_in_the_files_not_of_what_is_in_memory() {
    let (memory, _store, log) = store(1 << 20);
    fill(&log, 0, 10);
    let path = log_dir(0).join("00000000000000000000.log");
    let mut bytes = memory.contents(&path).unwrap();
    bytes[SEGMENT_HEADER + 72 + 72 + 1] ^= 1;
    memory.overwrite(&path, &bytes).unwrap();
    assert_samples(&log, 0, 10);
    assert!(matches!(log.digest(0, 10), Err(LogError::Damaged { index: Some(1), position: 168, .. })));
}

#[test]
fn a_scrub_finds_every_flipped_byte_of_a_sealed_segment() {
    let (memory, store, log) = store(1024);
    fill(&log, 0, 20);
    wait_sealed(&log);
    let segment = log.segments()[1];
    let path = log_dir(0).join(format!("{:020}.log", segment.base_index));
    let bytes = memory.contents(&path).unwrap();
    assert_eq!(bytes.len() as u64, segment.bytes);
    let (mut found, mut restored, mut padding) = (0, 0, 0);
    for at in 0..bytes.len() {
        let mut flipped = bytes.clone();
        flipped[at] ^= 1 << (at % 8);
        memory.overwrite(&path, &flipped).unwrap();
        match log.scrub(segment.base_index, &mut |_| {}) {
            Err(LogError::Damaged { path: named, index: Some(index), position, .. }) => {
                assert_eq!(named, path);
                assert!((segment.base_index..segment.next_index).contains(&index), "byte {at}: entry {index}");
                assert!(position <= at as u64, "byte {at}: {position}");
                found += 1;
            }
            Err(error) => panic!("byte {at}: {error}"),
            // A footer is written again.
            Ok(()) if memory.contents(&path).unwrap() == bytes => restored += 1,
            Ok(()) => padding += 1,
        }
    }
    assert_eq!(restored, 144);
    assert!(padding < 7 * (segment.next_index - segment.base_index), "{padding}");
    assert!(found > bytes.len() / 2, "{found}");
    assert!(store.metrics().damage_found.get() >= found as u64 + 144);
    assert!(log.failure().is_none(), "a scrub stops nobody");
    memory.overwrite(&path, &bytes).unwrap();
    log.scrub(segment.base_index, &mut |_| {}).unwrap();
}

#[test]
fn a_scrub_reports_how_much_it_read_and_skips_what_is_not_sealed() {
    let dir = tempfile::tempdir().unwrap();
    let config = StoreConfig { segment_bytes: 8 << 20, ..config() };
    let store = Store::open(Arc::new(RealDisk), dir.path(), config).unwrap();
    let log = store.open_log(id(0), LogConfig::default()).unwrap();
    for index in 0..20 {
        append_durably(&log, vec![data(index, 1, 0, vec![index as u8; 500_000])]).unwrap();
    }
    wait_sealed(&log);
    let [sealed, active] = log.segments()[..] else { panic!("two segments") };
    let mut steps = Vec::new();
    log.scrub(sealed.base_index, &mut |bytes| steps.push(bytes)).unwrap();
    assert_eq!(steps.iter().sum::<u64>() + SEGMENT_HEADER as u64, sealed.bytes);
    assert!(steps.iter().all(|step| *step < 2 << 20), "{steps:?}");
    log.scrub(active.base_index, &mut |_| panic!("the active segment is not scrubbed")).unwrap();
    log.scrub(3, &mut |_| panic!("no segment starts there")).unwrap();
    assert_eq!(log.digest(0, 20).unwrap(), hash(&log, 0, 20));
}

#[test]
fn a_scrub_survives_the_deletion_of_its_segment() {
    let (_, _store, log) = store(1024);
    fill(&log, 0, 60);
    wait_sealed(&log);
    let first = log.segments()[0];
    let mut deleted = false;
    log.delete_before(0).unwrap();
    log.scrub(first.base_index, &mut |_| {
        log.delete_before(30).unwrap();
        deleted = true;
    })
    .unwrap();
    assert!(deleted);
}

#[test]
fn bytes_between_indexes_follow_what_was_written() {
    let (_, _store, log) = store(4096);
    for index in 0..200 {
        append_durably(&log, vec![data(index, 1, 0, vec![0; 200])]).unwrap();
    }
    let frame = 272;
    for (from, to) in [(0, 200), (50, 60), (10, 150), (199, 200), (150, 900)] {
        let expected = (to.min(200) - from) * frame;
        let found = log.bytes_between(from, to);
        assert!(found.abs_diff(expected) <= expected / 8 + frame, "{from}..{to}: {found}, about {expected} expected");
    }
    for (from, to) in [(200, 300), (5, 5), (9, 3)] {
        assert_eq!(log.bytes_between(from, to), 0, "{from}..{to}");
    }
}
