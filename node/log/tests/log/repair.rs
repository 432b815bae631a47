//! Damage is cut out, kept aside for a person to look at, and refilled.

use std::{path::Path, sync::Arc};

use crate::common::*;
use chronicle_log::{
    Cut, Entry, LogConfig, LogError, Store, StoreConfig,
    debug::{SegmentFile, Stretch},
    disk::{Disk, DiskOperation, Fault, FaultRule, FaultyDisk, MemoryDisk, Trigger},
};

const ENTRIES: u64 = 40;

fn small() -> StoreConfig {
    StoreConfig { segment_bytes: 1500, ..config() }
}

fn open_store(disk: &MemoryDisk) -> Arc<Store> {
    Store::open(Arc::new(disk.clone()), Path::new(DIR), small()).unwrap()
}

/// A log of several sealed segments and an open one; closed cleanly, or killed.
fn stored_log(close: bool) -> MemoryDisk {
    let disk = MemoryDisk::new();
    disk.create_dir(Path::new(DIR)).unwrap();
    disk.sync_dir(Path::new("/")).unwrap();
    let store = open_store(&disk);
    let log = store.open_log(id(0), LogConfig::default()).unwrap();
    fill(&log, 0, ENTRIES);
    wait_sealed(&log);
    let killed = disk.fork();
    store.close().unwrap();
    if close { disk.fork() } else { killed }
}

fn names(disk: &MemoryDisk, dir: &Path) -> Vec<String> {
    disk.list(dir).unwrap().into_iter().map(|entry| entry.name).collect()
}

fn segments(disk: &MemoryDisk) -> Vec<String> {
    names(disk, &log_dir(0)).into_iter().filter(|name| name.ends_with(".log")).collect()
}

fn base(name: &str) -> u64 {
    name.trim_end_matches(".log").parse().unwrap()
}

fn flip(disk: &MemoryDisk, name: &str, at: usize) {
    let path = log_dir(0).join(name);
    let mut bytes = disk.contents(&path).unwrap();
    bytes[at] ^= 1;
    disk.overwrite(&path, &bytes).unwrap();
}

/// After a cut: what is left is intact, the rest can be appended again, and all survives another open.
fn refill(store: &Arc<Store>, next_index: u64) {
    let log = store.open_log(id(0), LogConfig::default()).unwrap();
    assert_eq!(log.position().next_index, next_index);
    assert_samples(&log, 0, next_index);
    fill(&log, next_index, ENTRIES + 5);
    assert_samples(&log, 0, ENTRIES + 5);
    log.close().unwrap();
    assert_samples(&store.open_log(id(0), LogConfig::default()).unwrap(), 0, ENTRIES + 5);
}

/// Cuts as the owner of a log would: by what opening or reading it says.
fn cut(store: &Arc<Store>) -> Option<Cut> {
    match store.open_log(id(0), LogConfig::default()) {
        Err(LogError::Damaged { .. }) => Some(store.cut_damaged(id(0)).unwrap()),
        Err(error) => panic!("{error}"),
        Ok(log) => match read_all(&log) {
            Ok(_) => None,
            Err(LogError::Damaged { index: Some(index), .. }) => {
                log.close().unwrap();
                drop(log);
                Some(store.cut_from(id(0), index).unwrap())
            }
            Err(error) => panic!("{error}"),
        },
    }
}

#[test]
fn every_flipped_byte_can_be_cut_out_and_everything_before_it_stays() {
    let mut cuts = 0;
    for close in [true, false] {
        let disk = stored_log(close);
        for name in segments(&disk) {
            let len = disk.contents(&log_dir(0).join(&name)).unwrap().len();
            for at in (0..len).step_by(11) {
                let disk = disk.fork();
                let damaged = disk.contents(&log_dir(0).join(&name)).unwrap();
                flip(&disk, &name, at);
                let store = open_store(&disk);
                let Some(cut) = cut(&store) else { continue };
                cuts += 1;
                assert!(cut.next_index >= base(&name) && cut.next_index < ENTRIES, "byte {at} of {name}: {cut:?}");
                assert!(cut.was >= ENTRIES - 1 && cut.was <= ENTRIES, "byte {at} of {name}: {cut:?}");
                let quarantine = cut.quarantine.unwrap();
                assert_eq!(quarantine, log_dir(0).join("quarantine-1"));
                let mut evidence = damaged;
                evidence[at] ^= 1;
                assert_eq!(disk.contents(&quarantine.join(&name)).unwrap(), evidence);
                assert!(segments(&disk).iter().all(|left| base(left) <= base(&name)), "byte {at} of {name}");
                assert_eq!(store.summary(id(0)).unwrap(), None);
                assert_eq!(store.metrics().quarantines.get(), 1);
                refill(&store, cut.next_index);
                assert_eq!(store.list_logs().unwrap(), [id(0)]);
                store.close().unwrap();
            }
        }
    }
    assert!(cuts > 400, "{cuts}");
}

#[test]
fn a_missing_segment_is_cut_at_and_what_comes_after_it_is_kept_aside() {
    let disk = stored_log(true);
    let all = segments(&disk);
    for (at, name) in all.iter().enumerate() {
        let disk = disk.fork();
        disk.remove_file(&log_dir(0).join(name)).unwrap();
        let store = open_store(&disk);
        let error = store.open_log(id(0), LogConfig::default()).unwrap_err();
        assert!(matches!(error, LogError::Damaged { index: Some(index), .. } if index == base(name)), "{error}");
        let cut = store.cut_damaged(id(0)).unwrap();
        assert_eq!((cut.next_index, cut.was), (base(name), ENTRIES));
        match cut.quarantine {
            Some(folder) => assert_eq!(names(&disk, &folder), all[at + 1..]),
            // Nothing came after it.
            None => assert_eq!(at + 1, all.len()),
        }
        refill(&store, base(name));
    }
}

#[test]
fn a_crash_at_any_step_of_a_cut_leaves_a_log_that_is_damaged_or_cut() {
    for (close, seen_at_open) in [(true, true), (true, false), (false, true), (false, false)] {
        let disk = stored_log(close);
        let name = segments(&disk)[1].clone();
        // In a frame of the segment: seen by opening once the footer is broken too.
        flip(&disk, &name, SEGMENT_HEADER + 72 + 20);
        let len = disk.contents(&log_dir(0).join(&name)).unwrap().len();
        if seen_at_open {
            flip(&disk, &name, len - 1);
        }
        let mut step = 1;
        loop {
            let finished = crash_in_cut(&disk, step, seen_at_open);
            if finished {
                assert!(step > 12, "{step}");
                break;
            }
            step += 1;
        }
    }
}

/// Lets the `step`-th change of a cut fail, loses power, and looks. Returns whether the cut had fewer steps.
fn crash_in_cut(disk: &MemoryDisk, step: u64, seen_at_open: bool) -> bool {
    let mut finished = false;
    for seed in 0..8 {
        let memory = disk.fork();
        let index = base(&segments(&memory)[1]);
        let faulty = FaultyDisk::new(Arc::new(memory.clone()));
        let store = Store::open(Arc::new(faulty.clone()), Path::new(DIR), small()).unwrap();
        faulty.add(FaultRule::new(DiskOperation::Change, Fault::IO_ERROR).when(Trigger::From(step)));
        let result = if seen_at_open { store.cut_damaged(id(0)) } else { store.cut_from(id(0), index) };
        finished = result.is_ok();
        memory.crash(seed);
        drop(store);

        let store = open_store(&memory);
        let what = format!("step {step}, seed {seed}, seen at open: {seen_at_open}");
        let cut = match store.open_log(id(0), LogConfig::default()) {
            Err(LogError::Damaged { .. }) => {
                let cut = store.cut_damaged(id(0)).unwrap_or_else(|error| panic!("{what}: {error}"));
                assert_eq!(cut.was, ENTRIES, "{what}");
                cut.next_index
            }
            Err(error) => panic!("{what}: {error}"),
            Ok(log) => {
                let next_index = log.position().next_index;
                let untouched = !seen_at_open && next_index == ENTRIES;
                assert!(untouched || finished || next_index < base(&segments(disk)[2]), "{what}: ends at {next_index}");
                log.close().unwrap();
                drop(log);
                if untouched { store.cut_from(id(0), index).unwrap().next_index } else { next_index }
            }
        };
        assert!((index..base(&segments(disk)[2])).contains(&cut), "{what}: cut at {cut}");
        // Nothing that was taken out is lost.
        let folders: Vec<String> =
            names(&memory, &log_dir(0)).into_iter().filter(|name| name.starts_with("quarantine")).collect();
        assert_eq!(folders, ["quarantine-1"], "{what}");
        let evidence = names(&memory, &log_dir(0).join("quarantine-1"));
        assert_eq!(evidence, segments(disk)[1..], "{what}");
        refill(&store, cut);
    }
    finished
}

#[test]
fn a_cut_says_how_far_the_log_may_have_gone_behind_its_last_intact_frame() {
    let disk = MemoryDisk::new();
    disk.create_dir(Path::new(DIR)).unwrap();
    disk.sync_dir(Path::new("/")).unwrap();
    let store = Store::open(Arc::new(disk.clone()), Path::new(DIR), StoreConfig { segment_bytes: 1 << 20, ..config() });
    let store = store.unwrap();
    let log = store.open_log(id(0), LogConfig::default()).unwrap();
    fill(&log, 0, 30);
    fill(&log, 30, ENTRIES);
    let killed = disk.fork();
    drop(log);
    store.close().unwrap();
    let name = segments(&killed).pop().unwrap();
    let segment = SegmentFile::open(&killed, &log_dir(0).join(&name)).unwrap();
    let frames: Vec<(u64, u64)> = segment
        .stretches()
        .filter_map(|stretch| match stretch.unwrap() {
            Stretch::Frame { position, frame } => Some((position, frame.len)),
            Stretch::Damage { .. } => None,
        })
        .collect();
    assert_eq!(frames.len() as u64, ENTRIES);
    // The damage is in the middle, and the last frame is wrong too: no intact frame shows that it was there.
    let held = |what: &str, last: fn(&mut [u8])| {
        let disk = killed.fork();
        let mut bytes = disk.contents(&log_dir(0).join(&name)).unwrap();
        bytes[frames[20].0 as usize + 20] ^= 1;
        let (position, len) = frames[ENTRIES as usize - 1];
        last(&mut bytes[position as usize..(position + len) as usize]);
        disk.overwrite(&log_dir(0).join(&name), &bytes).unwrap();
        let cut = open_store(&disk).cut_damaged(id(0)).unwrap();
        assert_eq!((cut.next_index, cut.was), (20, ENTRIES - 1), "{what}");
        cut.held
    };
    assert_eq!(held("a payload", |frame| frame[80] ^= 1), ENTRIES, "its header tells");
    assert!(held("all of it", |frame| frame.fill(0xff)) >= ENTRIES);
    assert_eq!(held("never written", |frame| frame.fill(0)), ENTRIES - 1);
}

#[test]
fn a_cut_where_everything_reads_well_is_exactly_where_it_was_asked_for() {
    let disk = stored_log(true);
    for index in [0, 1, 7, 20, ENTRIES - 1] {
        let disk = disk.fork();
        let store = open_store(&disk);
        let cut = store.cut_from(id(0), index).unwrap();
        assert_eq!((cut.next_index, cut.was), (index, ENTRIES));
        refill(&store, index);
    }
    let store = open_store(&disk);
    let nothing = Cut { next_index: ENTRIES, was: ENTRIES, held: ENTRIES, quarantine: None };
    assert_eq!(store.cut_from(id(0), ENTRIES + 3).unwrap(), nothing);
    assert_eq!(store.cut_damaged(id(0)).unwrap(), nothing);
    assert_samples(&store.open_log(id(0), LogConfig::default()).unwrap(), 0, ENTRIES);
}

#[test]
fn a_log_that_starts_late_is_cut_back_to_its_start_at_most() {
    let disk = stored_log(true);
    let store = open_store(&disk);
    let log = store.open_log(id(0), LogConfig::default()).unwrap();
    let first = log.delete_before(20).unwrap();
    assert!(first.first_index > 0);
    log.close().unwrap();
    drop(log);
    let cut = store.cut_from(id(0), 3).unwrap();
    assert_eq!((cut.next_index, cut.was), (first.first_index, ENTRIES));
    let log = store.open_log(id(0), LogConfig::default()).unwrap();
    let position = log.position();
    assert_eq!((position.next_index, position.next_offset), (first.first_index, first.start_offset));
    fill(&log, first.first_index, ENTRIES);
    assert_samples(&log, first.first_index, ENTRIES);
}

#[test]
fn damage_that_stopped_an_open_log_can_be_cut_out_after_closing_it() {
    let disk = MemoryDisk::new();
    let store = Store::open(Arc::new(disk.clone()), Path::new(DIR), config()).unwrap();
    let log = store.open_log(id(0), LogConfig::default()).unwrap();
    fill(&log, 0, 10);
    flip(&disk, "00000000000000000000.log", SEGMENT_HEADER + 72 + 72 + 3);
    log.roll().unwrap();
    while log.failure().is_none() {
        std::thread::yield_now();
    }
    assert!(matches!(log.close(), Err(LogError::Failed(_))));
    assert!(matches!(log.failure(), Some(LogError::Damaged { index: Some(1), .. })));
    drop(log);
    let cut = store.cut_from(id(0), 1).unwrap();
    assert_eq!((cut.next_index, cut.was), (1, 10));
    refill(&store, 1);
}

#[test]
fn a_missing_segment_before_a_bad_header_is_not_taken_for_a_torn_tail() {
    let disk = MemoryDisk::new();
    let store = open_store(&disk);
    let log = store.open_log(id(0), LogConfig::default()).unwrap();
    fill(&log, 0, ENTRIES);
    log.roll().unwrap();
    store.close().unwrap();
    // One more entry after a clean close: the journal vouches for exactly what is in the sealed segments.
    let store = open_store(&disk);
    let log = store.open_log(id(0), LogConfig::default()).unwrap();
    fill(&log, ENTRIES, ENTRIES + 1);
    let disk = disk.fork();
    let names = segments(&disk);
    let [.., lost, newest] = &names[..] else { panic!("{names:?}") };
    disk.remove_file(&log_dir(0).join(lost)).unwrap();
    flip(&disk, newest, 20);
    let store = open_store(&disk);
    let error = store.open_log(id(0), LogConfig::default()).unwrap_err();
    assert!(matches!(error, LogError::Damaged { index: Some(index), .. } if index == base(lost)), "{error}");
    let cut = store.cut_damaged(id(0)).unwrap();
    assert_eq!((cut.next_index, cut.was), (base(lost), ENTRIES + 1));
    refill(&store, base(lost));
}

#[test]
fn however_much_is_damaged_cutting_comes_to_an_end_with_what_is_good() {
    let intact = [stored_log(true), stored_log(false)];
    for seed in 0..150_u64 {
        let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut below = |n: usize| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            (random % n as u64) as usize
        };
        let disk = intact[below(2)].fork();
        for _ in 0..=below(4) {
            let names = segments(&disk);
            let name = names[below(names.len())].clone();
            let path = log_dir(0).join(&name);
            let bytes = disk.contents(&path).unwrap();
            match below(4) {
                0 if names.len() > 1 => disk.remove_file(&path).unwrap(),
                1 => disk.overwrite(&path, &bytes[..below(bytes.len())]).unwrap(),
                2 => {
                    let start = below(bytes.len());
                    let end = (start + 512).min(bytes.len());
                    disk.overwrite(&path, &[&bytes[..start], &vec![0; end - start], &bytes[end..]].concat()).unwrap();
                }
                _ if bytes.is_empty() => {}
                _ => flip(&disk, &name, below(bytes.len())),
            }
        }
        let store = open_store(&disk);
        let mut end = ENTRIES;
        for round in 0.. {
            assert!(round < 8, "seed {seed}");
            let Some(cut) = cut(&store) else { break };
            assert!(cut.next_index <= end && cut.was >= cut.next_index, "seed {seed}: {cut:?}");
            end = cut.next_index;
        }
        let log = store.open_log(id(0), LogConfig::default()).unwrap();
        let next_index = log.position().next_index;
        log.close().unwrap();
        drop(log);
        refill(&store, next_index);
    }
}

#[test]
fn an_open_log_is_not_cut() {
    let disk = stored_log(true);
    let store = open_store(&disk);
    let log = store.open_log(id(0), LogConfig::default()).unwrap();
    assert!(matches!(store.cut_from(id(0), 3), Err(LogError::AlreadyOpen(_))));
    assert!(matches!(store.cut_damaged(id(0)), Err(LogError::AlreadyOpen(_))));
    assert_samples(&log, 0, ENTRIES);
}

#[test]
fn the_two_newest_quarantine_folders_are_kept_and_go_with_the_log() {
    let disk = stored_log(true);
    let store = open_store(&disk);
    for index in (20..30).rev() {
        store.cut_from(id(0), index).unwrap();
    }
    let folders: Vec<String> =
        names(&disk, &log_dir(0)).into_iter().filter(|name| name.starts_with("quarantine")).collect();
    assert_eq!(folders, ["quarantine-10", "quarantine-9"]);
    let log = store.open_log(id(0), LogConfig::default()).unwrap();
    store.delete_quarantines(id(0)).unwrap();
    assert!(names(&disk, &log_dir(0)).iter().all(|name| !name.starts_with("quarantine")));
    assert_samples(&log, 0, 20);
    log.close().unwrap();
    drop(log);
    store.cut_from(id(0), 19).unwrap();
    store.delete_log(id(0)).unwrap();
    assert_eq!(names(&disk, &Path::new(DIR).join("logs")), [] as [&str; 0]);
}

#[test]
fn entries_of_a_newer_release_are_never_cut() {
    let disk = stored_log(true);
    let newest = segments(&disk).pop().unwrap();
    // An intact frame of an unknown kind after the last one: its checksums are made by hand.
    let path = log_dir(0).join(&newest);
    let mut bytes = disk.contents(&path).unwrap();
    let (seed, tag) = seed_and_tag(&bytes);
    let mut frame = [0_u8; 72];
    frame[0..4].copy_from_slice(&64_u32.to_le_bytes());
    frame[8] = 1;
    frame[9] = 77;
    frame[10..12].copy_from_slice(&tag);
    let header = crc32c::crc32c_append(crc32c::crc32c_append(seed, &frame[..4]), &frame[8..68]);
    frame[68..72].copy_from_slice(&header.to_le_bytes());
    bytes.extend_from_slice(&frame);
    disk.overwrite(&path, &bytes).unwrap();
    let store = open_store(&disk);
    assert!(matches!(store.open_log(id(0), LogConfig::default()), Err(LogError::Damaged { .. })));
    assert!(matches!(store.cut_damaged(id(0)), Err(LogError::Damaged { .. })));
    assert_eq!(disk.contents(&path).unwrap(), bytes);
}

#[test]
fn a_segment_of_another_log_is_moved_aside() {
    let disk = stored_log(true);
    let names = segments(&disk);
    let store = open_store(&disk);
    let other = store.open_log(id(1), LogConfig::default()).unwrap();
    append_durably(&other, vec![sample(0), sample(1)]).unwrap();
    let foreign = disk.contents(&log_dir(1).join("00000000000000000000.log")).unwrap();
    disk.overwrite(&log_dir(0).join(&names[2]), &foreign).unwrap();
    assert!(matches!(store.open_log(id(0), LogConfig::default()), Err(LogError::Damaged { .. })));
    let cut = store.cut_damaged(id(0)).unwrap();
    assert_eq!((cut.next_index, cut.was), (base(&names[2]), ENTRIES));
    assert_eq!(disk.contents(&cut.quarantine.unwrap().join(&names[2])).unwrap(), foreign);
    refill(&store, base(&names[2]));
    let _: Vec<Entry> = read_all(&other).unwrap();
}
