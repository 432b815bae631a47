//! Both versions of the format: what clients can and cannot make of them, and directories of the release before.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::common::*;
use chronicle_log::{
    FORMAT_VERSION, LogConfig, LogError, Store, StoreConfig,
    debug::SegmentFile,
    disk::{Disk, MemoryDisk},
};

fn format_file(disk: &MemoryDisk) -> String {
    String::from_utf8(disk.contents(&Path::new(DIR).join("FORMAT")).unwrap()).unwrap()
}

/// The segments of a log, with their versions.
fn segments(disk: &MemoryDisk, n: u32) -> Vec<(PathBuf, u32)> {
    let mut paths: Vec<PathBuf> =
        disk.list(&log_dir(n)).unwrap().iter().map(|entry| log_dir(n).join(&entry.name)).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "log"));
    paths.sort();
    let version = |path: &Path| SegmentFile::open(disk, path).unwrap().header().unwrap().version;
    paths.into_iter().map(|path| (path.clone(), version(&path))).collect()
}

fn roomy() -> StoreConfig {
    StoreConfig { segment_bytes: 1 << 20, ..config() }
}

/// A payload that an attacker makes who knows everything but the secret: a forged frame for each seed that can be guessed.
fn attack(base_index: u64, next_index: u64, next_offset: u64) -> Vec<u8> {
    let mut log = [0; 20];
    log[..16].copy_from_slice(id(1).topic.as_bytes());
    log[16..].copy_from_slice(&1_u32.to_le_bytes());
    let mut payload = Vec::new();
    for base in [base_index, next_index] {
        for start in [&log[..], &[0; 8], &[]] {
            let seed = crc32c::crc32c_append(crc32c::crc32c(start), &base.to_le_bytes());
            payload.extend_from_slice(&forged(seed, [0; 2], next_index + 1, next_offset + 1));
        }
    }
    payload
}

/// Log 1 of a directory gets the attacker's payload as its last entry. Then the write of that entry is torn, so that the
/// `lost` first bytes of what was written did not reach the disk. Returns the disk, and the end of the log before.
fn attacked_and_torn(disk: &MemoryDisk, lost: impl Fn(u64) -> std::ops::Range<usize>) -> (MemoryDisk, u64) {
    let store = Store::open(Arc::new(disk.clone()), Path::new(DIR), roomy()).unwrap();
    let log = store.open_log(id(1), LogConfig::default()).unwrap();
    let before = log.position();
    let newest = log.segments().last().map_or(0, |segment| segment.base_index);
    let end = log.segments().last().map_or(0, |segment| segment.bytes);
    let payload = attack(newest, before.next_index, before.next_offset);
    append_durably(&log, vec![data(before.next_index, 1, 0, payload)]).unwrap();
    let killed = disk.fork();
    let path = log_dir(1).join(format!("{newest:020}.log"));
    let mut bytes = killed.contents(&path).unwrap();
    bytes[lost(end)].fill(0);
    killed.overwrite(&path, &bytes).unwrap();
    (killed, before.next_index)
}

#[test]
fn a_client_cannot_turn_a_torn_write_into_damage() {
    let (memory, disk) = memory();
    let store = open(&disk);
    fill(&store.open_log(id(1), LogConfig::default()).unwrap(), 0, 5);
    store.close().unwrap();
    let frame = |end: u64| end as usize..end as usize + 72;
    let (torn, end) = attacked_and_torn(&memory, frame);
    let store = Store::open(Arc::new(torn), Path::new(DIR), roomy()).unwrap();
    let log = store.open_log(id(1), LogConfig::default()).unwrap();
    assert_eq!((end, log.position().next_index), (5, 5));
    assert_samples(&log, 0, 5);
}

#[test]
fn a_header_that_did_not_reach_the_disk_gives_no_seed_that_a_client_can_guess() {
    let (memory, disk) = memory();
    open(&disk).close().unwrap();
    let (torn, end) = attacked_and_torn(&memory, |_| 0..96 + 72);
    let store = Store::open(Arc::new(torn), Path::new(DIR), roomy()).unwrap();
    let log = store.open_log(id(1), LogConfig::default()).unwrap();
    assert_eq!((end, log.position().next_index), (0, 0));
}

#[test]
fn in_a_segment_of_version_1_a_client_could() {
    // Why version 2 exists; and that the attack of the tests above is one.
    let disk = version_1("closed");
    let frame = |end: u64| end as usize..end as usize + 72;
    let (torn, _) = attacked_and_torn(&disk, frame);
    let store = Store::open(Arc::new(torn), Path::new(DIR), roomy()).unwrap();
    let error = store.open_log(id(1), LogConfig::default()).unwrap_err();
    assert!(matches!(error, LogError::Damaged { index: Some(5), .. }), "{error}");
}

#[test]
fn every_segment_has_a_secret_of_its_own() {
    let (memory, disk) = memory();
    let store = open(&disk);
    let log = store.open_log(id(0), LogConfig::default()).unwrap();
    fill(&log, 0, 40);
    let other = store.open_log(id(1), LogConfig::default()).unwrap();
    fill(&other, 0, 1);
    let mut secrets: Vec<Vec<u8>> = Vec::new();
    for (path, version) in [segments(&memory, 0), segments(&memory, 1)].concat() {
        assert_eq!(version, 2);
        let bytes = memory.contents(&path).unwrap();
        assert_eq!(bytes[72..80], bytes[80..88]);
        assert_ne!(bytes[72..80], [0; 8]);
        secrets.push(bytes[72..80].to_vec());
    }
    let count = secrets.len();
    secrets.sort();
    secrets.dedup();
    assert!(count > 2 && secrets.len() == count, "{secrets:?}");
    store.close().unwrap();
}

/// What log 0 of the directories of version 1 holds.
const STORED_BY_VERSION_1: std::ops::Range<u64> = 8..33;

#[test]
fn a_directory_of_version_1_opens_grows_rolls_to_version_2_and_reads_whole() {
    for kind in ["closed", "crashed"] {
        let disk = version_1(kind);
        assert!(format_file(&disk).starts_with("chronicle-data 1\n"));
        let old = segments(&disk, 0);
        assert!(old.len() > 4 && old.iter().all(|(_, version)| *version == 1), "{kind}: {old:?}");
        let node = Store::open(Arc::new(disk.clone()), Path::new(DIR), config()).unwrap();
        assert_eq!(format_file(&disk), format!("chronicle-data {FORMAT_VERSION}\nnode {}\n", node.node_id()), "{kind}");
        assert_eq!(node.node_id().as_u128(), 0x0190_a1b2_0000_7000_8000_0000_0000_0001);
        assert_eq!(node.journal_get(id(1), 1).as_deref(), Some(&b"vote"[..]), "{kind}");
        let log = node.open_log(id(0), LogConfig { segment_bytes: 1024, ..LogConfig::default() }).unwrap();
        let stored = STORED_BY_VERSION_1;
        assert_samples(&log, stored.start, stored.end);
        assert_eq!(log.load_checkpoint().unwrap().as_deref(), Some(&b"state as of entry 30"[..]), "{kind}");
        // The active segment is continued as it is and sealed as version 1, every new one is of version 2.
        fill(&log, stored.end, 60);
        log.roll().unwrap();
        wait_sealed(&log);
        let mixed = segments(&disk, 0);
        assert_eq!(mixed[..old.len()], old[..], "{kind}");
        assert!(mixed[old.len()..].iter().all(|(_, version)| *version == 2) && mixed.len() > old.len() + 3, "{kind}");
        for (path, _) in &mixed {
            let segment = SegmentFile::open(&disk, path).unwrap();
            assert_eq!(segment.verify(&disk).unwrap(), Vec::<String>::new(), "{kind}: {path:?}");
        }
        for segment in log.segments() {
            log.scrub(segment.base_index, &mut |_| {}).unwrap();
        }
        assert_samples(&log, stored.start, 60);
        // A cut in the middle of a version 1 segment continues it.
        log.truncate_after(old_middle(&disk, &old)).unwrap();
        let at = log.position().next_index;
        fill(&log, at, 45);
        assert_samples(&log, stored.start, 45);
        drop(log);
        node.close().unwrap();
        for crash in [false, true] {
            let disk = disk.fork();
            if crash {
                disk.crash(7);
            }
            let node = Store::open(Arc::new(disk), Path::new(DIR), config()).unwrap();
            let log = node.open_log(id(0), LogConfig::default()).unwrap();
            assert_samples(&log, stored.start, 45);
        }
    }
}

/// An index inside of the segment before the last of version 1.
fn old_middle(disk: &MemoryDisk, old: &[(PathBuf, u32)]) -> u64 {
    let header = SegmentFile::open(disk, &old[old.len() - 2].0).unwrap().header().unwrap();
    header.base_index + 1
}

#[test]
fn power_lost_while_a_directory_is_raised_leaves_one_format_or_the_other() {
    let mut raised = 0;
    for change in 1..100 {
        let disk = version_1("closed");
        disk.crash_at(change, change);
        let opened = Store::open(Arc::new(disk.mount()), Path::new(DIR), config());
        drop(opened);
        disk.crash(change);
        let format = format_file(&disk);
        let now = ["chronicle-data 1\n", "chronicle-data 2\n"].into_iter().position(|start| format.starts_with(start));
        raised += now.unwrap_or_else(|| panic!("change {change}: {format:?}"));
        let store = Store::open(Arc::new(disk), Path::new(DIR), config()).unwrap();
        let log = store.open_log(id(0), LogConfig::default()).unwrap();
        assert_samples(&log, STORED_BY_VERSION_1.start, STORED_BY_VERSION_1.end);
    }
    assert!((1..99).contains(&raised), "{raised}");
}

#[test]
fn a_directory_of_a_newer_format_is_refused_as_a_whole() {
    let (memory, disk) = memory();
    open(&disk).close().unwrap();
    let format = Path::new(DIR).join("FORMAT");
    let newer = format_file(&memory).replace("chronicle-data 2", "chronicle-data 3");
    memory.overwrite(&format, newer.as_bytes()).unwrap();
    let error = Store::open(disk, Path::new(DIR), config()).unwrap_err();
    assert!(matches!(error, LogError::NewerFormat { found: 3, supported: FORMAT_VERSION, .. }), "{error}");
    assert_eq!(format_file(&memory), newer);
}
