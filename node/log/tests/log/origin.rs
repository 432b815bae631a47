//! Segment files of one log as part of another: clones, and segments from elsewhere.

use std::{path::Path, sync::Arc};

use crate::common::*;
use chronicle_log::{
    LogConfig, LogError, LogId, Store,
    debug::SegmentFile,
    disk::{Disk, MemoryDisk, OpenMode},
};

/// Copies the segments of log `from` that start at or after `first`, into log `to` of another directory; with their indexes or
/// without.
fn copy(source: &MemoryDisk, from: u32, target: &MemoryDisk, to: u32, first: u64, indexes: bool) {
    target.create_dir(&log_dir(to)).unwrap();
    for entry in source.list(&log_dir(from)).unwrap() {
        let (base, extension) = entry.name.split_once('.').unwrap_or((&entry.name, ""));
        if base.parse::<u64>().is_ok_and(|base| base >= first) && (extension == "log" || indexes) {
            let path = log_dir(to).join(&entry.name);
            target.open(&path, OpenMode::CreateNew).unwrap();
            target.overwrite(&path, &source.contents(&log_dir(from).join(&entry.name)).unwrap()).unwrap();
        }
    }
    target.sync_dir(&log_dir(to)).unwrap();
    target.sync_dir(&Path::new(DIR).join("logs")).unwrap();
}

/// A directory in which log 0 has samples 0 to 39.
fn source() -> MemoryDisk {
    let (memory, disk) = memory();
    let store = open(&disk);
    let log = store.open_log(id(0), LogConfig::default()).unwrap();
    fill(&log, 0, 40);
    wait_sealed(&log);
    store.close().unwrap();
    memory
}

fn named(disk: &MemoryDisk, n: u32) -> Vec<LogId> {
    let mut paths: Vec<_> =
        disk.list(&log_dir(n)).unwrap().into_iter().map(|entry| log_dir(n).join(entry.name)).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "log"));
    paths.sort();
    paths.iter().map(|path| SegmentFile::open(disk, path).unwrap().id()).collect()
}

#[test]
fn segments_of_another_log_are_read_appended_to_rolled_closed_and_recovered() {
    let source = source();
    for (first, indexes) in [(0, true), (0, false), (1, true), (1, false)] {
        let (memory, disk) = memory();
        let store = open(&disk);
        // From the second segment on, or all of them.
        let start = {
            let store = Store::open(Arc::new(source.fork()), Path::new(DIR), config()).unwrap();
            let log = store.open_log(id(0), LogConfig::default()).unwrap();
            log.segments()[first]
        };
        copy(&source, 0, &memory, 5, start.base_index, indexes);
        store.set_origin(id(5), id(0), start.base_index, start.base_offset).unwrap();
        let log = store.open_log(id(5), LogConfig::default()).unwrap();
        assert_eq!(log.position().start_offset, start.base_offset);
        assert_samples(&log, start.base_index, 40);
        assert!(matches!(store.set_origin(id(5), id(1), 0, 0), Err(LogError::AlreadyOpen(_))));
        fill(&log, 40, 80);
        log.roll().unwrap();
        fill(&log, 80, 85);
        wait_sealed(&log);
        for segment in log.segments() {
            log.scrub(segment.base_index, &mut |_| {}).unwrap();
        }
        // A cut in a segment of the other log continues it.
        log.truncate_after(start.next_index).unwrap();
        let end = start.next_index + 1;
        fill(&log, end, 70);
        let names = named(&memory, 5);
        assert!(names.starts_with(&[id(0)]) && names.ends_with(&[id(5)]), "{names:?}");
        // Killed, with a torn last frame.
        let killed = memory.fork();
        drop(log);
        store.close().unwrap();
        drop(store);
        for (disk, torn) in [(memory, false), (killed, true)] {
            if torn {
                let newest = disk.list(&log_dir(5)).unwrap().into_iter().map(|entry| entry.name);
                let newest = log_dir(5).join(newest.filter(|name| name.ends_with(".log")).max().unwrap());
                let bytes = disk.contents(&newest).unwrap();
                disk.overwrite(&newest, &bytes[..bytes.len() - 9]).unwrap();
            }
            let store = Store::open(Arc::new(disk), Path::new(DIR), config()).unwrap();
            let log = store.open_log(id(5), LogConfig::default()).unwrap();
            assert_samples(&log, start.base_index, if torn { 69 } else { 70 });
        }
    }
}

#[test]
fn segments_that_name_a_third_log_are_damage() {
    let source = source();
    for origin in [None, Some(id(1))] {
        let (memory, disk) = memory();
        let store = open(&disk);
        copy(&source, 0, &memory, 5, 0, true);
        if let Some(origin) = origin {
            store.set_origin(id(5), origin, 0, 0).unwrap();
        }
        let error = store.open_log(id(5), LogConfig::default()).unwrap_err();
        assert!(matches!(error, LogError::Damaged { position: 16, .. }), "{error}");
    }
}

#[test]
fn the_origin_is_forgotten_with_the_log() {
    let source = source();
    let (memory, disk) = memory();
    let store = open(&disk);
    store.set_origin(id(5), id(0), 0, 0).unwrap();
    store.delete_log(id(5)).unwrap();
    copy(&source, 0, &memory, 5, 0, true);
    assert!(matches!(store.open_log(id(5), LogConfig::default()), Err(LogError::Damaged { .. })));
}

#[test]
fn segments_of_version_1_are_taken_over_as_well() {
    let (memory, disk) = memory();
    let store = open(&disk);
    copy(&version_1("closed"), 0, &memory, 5, 0, false);
    store.set_origin(id(5), id(0), 8, 21).unwrap();
    let log = store.open_log(id(5), LogConfig::default()).unwrap();
    assert_samples(&log, 8, 33);
    fill(&log, 33, 50);
    assert_samples(&log, 8, 50);
}
