//! What is cut off the end of a log when it is opened is noted before it is cut, and kept until it is settled.

use std::{path::Path, sync::Arc};

use crate::common::*;
use chronicle_log::{
    Log, LogConfig, LogError, LostTail, Store,
    disk::{Disk, MemoryDisk, OpenMode},
};

/// Bytes of a frame before its payload.
const FRAME_HEADER: usize = 72;

/// A log of `entries` that was killed: each was acknowledged on its own. With the positions of their frames in its only segment.
fn killed(entries: u64) -> (MemoryDisk, Vec<usize>) {
    let (memory, disk) = memory();
    let store =
        Store::open(disk, Path::new(DIR), chronicle_log::StoreConfig { segment_bytes: 1 << 20, ..config() }).unwrap();
    let log = store.open_log(id(0), LogConfig::default()).unwrap();
    let mut frames = Vec::new();
    for index in 0..entries {
        frames.push(memory.contents(&segment(0)).map_or(80, |bytes| bytes.len()));
        append_durably(&log, vec![data(index, 1, 0, vec![7; 20])]).unwrap();
    }
    (memory.fork(), frames)
}

fn segment(base_index: u64) -> std::path::PathBuf {
    log_dir(0).join(format!("{base_index:020}.log"))
}

fn flip(disk: &MemoryDisk, at: usize) {
    let mut bytes = disk.contents(&segment(0)).unwrap();
    bytes[at] ^= 1;
    disk.overwrite(&segment(0), &bytes).unwrap();
}

fn reopened(disk: &MemoryDisk) -> (Arc<Store>, Result<Arc<Log>, LogError>) {
    let store = Store::open(Arc::new(disk.clone()), Path::new(DIR), config()).unwrap();
    let log = store.open_log(id(0), LogConfig::default());
    (store, log)
}

/// Opens the log; returns where it ends and what it has lost, and closes it.
fn look(disk: &MemoryDisk) -> (u64, Option<LostTail>) {
    let (store, log) = reopened(disk);
    let log = log.unwrap();
    let found = (log.position().next_index, log.lost_tail());
    log.close().unwrap();
    store.close().unwrap();
    found
}

#[test]
fn a_damaged_last_entry_is_known_by_its_header_and_stays_known_until_it_is_settled() {
    let (disk, frames) = killed(12);
    flip(&disk, frames[11] + FRAME_HEADER);
    let lost = LostTail { from: 11, to: 11, last: Some((2, 1)), bytes: 96 };
    for opening in 0..3 {
        assert_eq!(look(&disk), (11, Some(lost)), "opening {opening}");
    }
    let (store, log) = reopened(&disk);
    let log = log.unwrap();
    log.forget_lost_tail().unwrap();
    assert_eq!(log.lost_tail(), None);
    let killed = disk.fork();
    log.close().unwrap();
    store.close().unwrap();
    for disk in [disk, killed] {
        assert_eq!(look(&disk), (11, None));
    }
}

#[test]
fn without_a_header_there_is_a_bound_of_what_was_there() {
    let (disk, frames) = killed(12);
    let end = disk.contents(&segment(0)).unwrap().len();
    // In the last entry: its header; its header and its payload; its payload alone.
    let changes = [
        (vec![frames[11]], 12, None),
        (vec![frames[11] + 68, frames[11] + FRAME_HEADER], 12, None),
        (vec![frames[11] + FRAME_HEADER + 19], 11, Some((2, 1))),
    ];
    for (flips, to, last) in changes {
        let copy = disk.fork();
        for at in &flips {
            flip(&copy, *at);
        }
        let bytes = (end - frames[11]) as u64;
        assert_eq!(look(&copy), (11, Some(LostTail { from: 11, to, last, bytes })), "{flips:?}");
    }
    // A torn write: only some bytes of the next entry arrived.
    for torn in [1, 71, 73, 1000] {
        let copy = disk.fork();
        let mut bytes = copy.contents(&segment(0)).unwrap();
        bytes.resize(end + torn, 0);
        copy.overwrite(&segment(0), &bytes).unwrap();
        let to = 12 + (torn as u64).div_ceil(72) - 1;
        assert_eq!(look(&copy), (12, Some(LostTail { from: 12, to, last: None, bytes: torn as u64 })), "{torn}");
    }
}

#[test]
fn every_flipped_byte_of_the_last_entry_is_damage_or_noted() {
    let (disk, frames) = killed(6);
    let end = disk.contents(&segment(0)).unwrap().len();
    for at in frames[5]..end {
        let copy = disk.fork();
        flip(&copy, at);
        let (next, lost) = look(&copy);
        // Padding is not checked.
        if next == 5 {
            let lost = lost.expect("what was cut is noted");
            assert!(lost.from == 5 && lost.to >= 5, "byte {at}: {lost:?}");
        } else {
            assert_eq!((next, lost), (6, None), "byte {at}");
            assert!(at >= frames[5] + FRAME_HEADER + 20, "byte {at}");
        }
    }
}

#[test]
fn a_crash_at_any_step_of_the_cut_leaves_it_noted() {
    let (damaged, frames) = killed(12);
    flip(&damaged, frames[11] + FRAME_HEADER);
    let mut cut = 0;
    for step in 1..60 {
        for seed in 0..4 {
            let disk = damaged.fork();
            let mount = disk.mount();
            disk.crash_at(step, seed);
            // The power may go in either call, or later.
            if let Ok(store) = Store::open(Arc::new(mount), Path::new(DIR), config()) {
                drop(store.open_log(id(0), LogConfig::default()));
            }
            disk.crash(seed);
            cut += u32::from(disk.contents(&segment(0)).unwrap().len() < frames[11] + 96);
            let (next, lost) = look(&disk);
            assert_eq!(next, 11, "step {step}");
            let lost = lost.unwrap_or_else(|| panic!("step {step}, seed {seed}: nothing is known of the lost entry"));
            assert_eq!((lost.from, lost.to), (11, 11), "step {step}");
        }
    }
    assert!(cut > 0, "a crash came after the cut");
}

#[test]
fn a_log_that_is_cut_twice_knows_of_both_cuts() {
    let (disk, frames) = killed(12);
    flip(&disk, frames[11] + FRAME_HEADER);
    let (_store, log) = reopened(&disk);
    let log = log.unwrap();
    let entry = |index| chronicle_log::Entry { term: 9, leader: 3, ..data(index, 1, 0, vec![8; 50]) };
    append_durably(&log, vec![entry(11)]).unwrap();
    append_durably(&log, vec![entry(12)]).unwrap();
    let killed = disk.fork();
    let end = killed.contents(&segment(0)).unwrap().len();
    flip(&killed, end - 20);
    let lost = LostTail { from: 11, to: 12, last: Some((9, 3)), bytes: 128 };
    assert_eq!(look(&killed), (12, Some(lost)));
}

#[test]
fn what_cannot_have_been_an_entry_is_no_lost_tail() {
    // Nothing after the last entry.
    let (disk, _) = killed(3);
    assert_eq!(look(&disk), (3, None));
    // A footer that a crash tore, and a segment of which nothing but its name or its header arrived.
    let (memory, shared) = memory();
    let store = Store::open(shared, Path::new(DIR), config()).unwrap();
    let log = store.open_log(id(0), LogConfig::default()).unwrap();
    fill(&log, 0, 10);
    log.roll().unwrap();
    fill(&log, 10, 11);
    wait_sealed(&log);
    let sealed = memory.contents(&segment(0)).unwrap();
    // As a killed process leaves it: closing the log would note its end.
    let footer = memory.fork();
    drop((log, store));
    footer.remove_file(&segment(10)).unwrap();
    for kept in [143, 100, 8] {
        let disk = footer.fork();
        disk.overwrite(&segment(0), &sealed[..sealed.len() - 144 + kept]).unwrap();
        assert_eq!(look(&disk), (10, None), "{kept} bytes of a footer");
    }
    for kept in [0, 40, 80] {
        let disk = killed(3).0;
        let file = disk.open(&segment(3), OpenMode::CreateNew).unwrap();
        file.set_len(kept).unwrap();
        assert_eq!(look(&disk), (3, None), "{kept} bytes of a segment");
    }
}
