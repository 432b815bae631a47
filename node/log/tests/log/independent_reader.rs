//! The engine and a second reader, written in Python from `docs/disk-format.md` alone (`tests/reader`), must find the same in every
//! directory: whole, torn or damaged.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use crate::common::*;
use chronicle_log::{
    Entry, Log, LogConfig, LogError, Store, StoreConfig, Threads,
    debug::SegmentFile,
    disk::{Disk, MemoryDisk},
};

/// A tiny generator, so that a directory is its seed and nothing else.
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
        mark_interval: std::time::Duration::from_secs(1),
        idle_mark_delay: std::time::Duration::from_millis(500),
        threads: Threads::Driven { on_work: None },
        clock: clock.clone(),
        entropy: Arc::new(Counted::default()),
        ..config()
    }
}

fn files(disk: &MemoryDisk, dir: &Path, into: &mut Vec<PathBuf>) {
    for entry in disk.list(dir).unwrap() {
        let path = dir.join(entry.name);
        if entry.is_dir { files(disk, &path, into) } else { into.push(path) }
    }
}

fn write_out(disk: &MemoryDisk, from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in disk.list(from).unwrap() {
        let (from, to) = (from.join(&entry.name), to.join(&entry.name));
        if entry.is_dir {
            write_out(disk, &from, &to)
        } else {
            std::fs::write(to, disk.contents(&from).unwrap()).unwrap()
        }
    }
}

/// What the engine finds in a directory, in the words of the reader.
fn engine_finds(disk: &MemoryDisk) -> Vec<String> {
    let clock = Arc::new(ManualClock::default());
    let as_found = disk.fork();
    let store = match Store::open(Arc::new(disk.fork()), Path::new(DIR), driven(&clock)) {
        Ok(store) => store,
        Err(LogError::Damaged { .. }) => return vec!["damaged".to_owned()],
        Err(LogError::NewerFormat { .. }) => return vec!["newer".to_owned()],
        Err(error) => panic!("{error}"),
    };
    let mut lines = vec![format!("node {}", store.node_id())];
    let mut logs = store.list_logs().unwrap();
    logs.sort_by_key(ToString::to_string);
    for id in logs {
        lines.push(format!("log {id}"));
        match store.open_log(id, LogConfig::default()) {
            Ok(log) => describe(&log, &as_found, &mut lines),
            Err(LogError::Damaged { path, position, index, .. }) => {
                let (file, index) = (path.file_name().unwrap().to_string_lossy().into_owned(), index.unwrap());
                lines.push(format!("  damage: {file}, byte {position}, entry {index}"));
            }
            Err(LogError::NewerFormat { .. }) => lines.push("  newer".to_owned()),
            Err(error) => panic!("{error}"),
        }
    }
    lines
}

fn describe(log: &Log, as_found: &MemoryDisk, lines: &mut Vec<String>) {
    let (at, segments) = (log.position(), log.segments());
    let (first, next) = (at.first_index, at.next_index);
    lines.push(format!("  indexes {first}..{next}, offsets {}..{}", at.start_offset, at.next_offset));
    for segment in segments {
        let path =
            Path::new(DIR).join("logs").join(log.id().to_string()).join(format!("{:020}.log", segment.base_index));
        let file = SegmentFile::open(as_found, &path).unwrap();
        let hash = file.footer().map(|footer| footer.hash.iter().map(|byte| format!("{byte:02x}")).collect::<String>());
        let sealed = hash.unwrap_or_else(|| "not sealed".to_owned());
        lines.push(format!("  segment {}, version {}: {sealed}", segment.base_index, file.header().unwrap().version));
    }
    let digest = match log.digest(first, next) {
        Ok(hash) => hash.iter().map(|byte| format!("{byte:02x}")).collect(),
        Err(LogError::Damaged { .. }) => "damaged".to_owned(),
        Err(error) => panic!("{error}"),
    };
    lines.push(format!("  all entries: {digest}"));
    let checkpoint = match log.load_checkpoint() {
        Ok(Some(_)) => "sound",
        Ok(None) => "absent",
        Err(LogError::Damaged { .. }) => "damaged",
        Err(error) => panic!("{error}"),
    };
    lines.push(format!("  checkpoint {checkpoint}"));
}

/// What a reader finds in directories: for each, its lines without reasons, and its problems.
fn reader_finds(directories: &[PathBuf]) -> Vec<(Vec<String>, Vec<String>)> {
    let reader = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/reader/reader.py");
    let output = Command::new("python3").arg("-B").arg(reader).args(directories).output().expect("python3 is there");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let mut found: Vec<(Vec<String>, Vec<String>)> = Vec::new();
    for line in String::from_utf8(output.stdout).unwrap().lines() {
        if line.starts_with("directory ") {
            found.push(Default::default());
            continue;
        }
        let (lines, problems) = found.last_mut().unwrap();
        let reasons = ["damaged", "newer", "  newer"].into_iter().find(|word| line.starts_with(&format!("{word}: ")));
        match line.split_once(", node ") {
            _ if line.starts_with("journal ") => {}
            _ if line.starts_with("  problem: ") => problems.push(line.to_owned()),
            Some((_, node)) => lines.push(format!("node {node}")),
            None => lines.push(reasons.unwrap_or(line).to_owned()),
        }
    }
    assert_eq!(found.len(), directories.len());
    found
}

/// Compares both on each of these; `sound`: nothing is wrong in any.
fn compare(disks: &[(String, MemoryDisk)], sound: bool) {
    let dir = tempfile::tempdir().unwrap();
    let paths: Vec<PathBuf> = (0..disks.len()).map(|at| dir.path().join(at.to_string())).collect();
    for ((_, disk), path) in disks.iter().zip(&paths) {
        write_out(disk, Path::new(DIR), path);
    }
    for ((what, disk), (lines, problems)) in disks.iter().zip(reader_finds(&paths)) {
        assert_eq!(lines, engine_finds(disk), "{what}: left the reader, right the engine; problems: {problems:?}");
        if sound {
            assert_eq!(problems, Vec::<String>::new(), "{what}");
            assert!(!lines.iter().any(|line| line.contains("damage")), "{what}: {lines:?}");
        }
    }
}

/// A directory with two logs: many segments, a checkpoint, deleted and truncated parts; the store is still open.
fn stored() -> (MemoryDisk, Arc<Store>, [Arc<Log>; 2]) {
    let (memory, disk) = memory();
    let store = open(&disk);
    let logs =
        [0, 1].map(|n| store.open_log(id(n), LogConfig { segment_bytes: 1500, ..LogConfig::default() }).unwrap());
    fill(&logs[0], 0, 60);
    // In one round, so that no mark in a header covers what the footers do.
    append_durably(&logs[1], (0..60).map(sample).collect()).unwrap();
    logs.iter().for_each(|log| wait_sealed(log));
    logs[0].delete_before(20).unwrap();
    logs[0].truncate_after(50).unwrap();
    fill(&logs[0], 51, 56);
    logs[0].save_checkpoint(b"some state").unwrap();
    wait_sealed(&logs[0]);
    (memory, store, logs)
}

#[test]
fn whole_directories_of_both_versions_are_read_alike() {
    let mut disks = Vec::new();
    for kind in ["closed", "crashed"] {
        let disk = version_1(kind);
        disks.push((format!("version 1, {kind}"), disk.fork()));
        let store = Store::open(Arc::new(disk.clone()), Path::new(DIR), config()).unwrap();
        let log = store.open_log(id(0), LogConfig { segment_bytes: 1024, ..LogConfig::default() }).unwrap();
        fill(&log, 33, 60);
        wait_sealed(&log);
        disks.push((format!("{kind}, raised, open"), disk.fork()));
        drop(log);
        store.close().unwrap();
        disks.push((format!("{kind}, raised, closed"), disk));
    }
    let (disk, store, logs) = stored();
    disks.push(("killed".into(), disk.fork()));
    logs[1].reset(100, 1000).unwrap();
    disks.push(("reset".into(), disk.fork()));
    fill(&logs[1], 100, 110);
    drop(logs);
    store.close().unwrap();
    disks.push(("closed".into(), disk.fork()));
    let store = open(&(Arc::new(disk.clone()) as Arc<dyn Disk>));
    store.delete_log(id(1)).unwrap();
    disks.push(("with a deleted log".into(), disk.fork()));
    store.close().unwrap();
    disks.push(("an empty directory".into(), {
        let (memory, disk) = memory();
        open(&disk).close().unwrap();
        memory
    }));
    compare(&disks, true);
}

#[test]
fn segments_under_the_id_of_another_log_are_read_alike() {
    let (source, store, logs) = stored();
    let start = logs[0].segments()[0];
    drop(logs);
    store.close().unwrap();
    for origin in [Some(0), Some(3), None] {
        let (memory, disk) = memory();
        let store = open(&disk);
        disk.create_dir(&log_dir(7)).unwrap();
        for entry in source.list(&log_dir(0)).unwrap().iter().filter(|entry| entry.name.ends_with(".log")) {
            let path = log_dir(7).join(&entry.name);
            disk.open(&path, chronicle_log::disk::OpenMode::CreateNew).unwrap();
            memory.overwrite(&path, &source.contents(&log_dir(0).join(&entry.name)).unwrap()).unwrap();
        }
        if let Some(origin) = origin {
            store.set_origin(id(7), id(origin), start.base_index, start.base_offset).unwrap();
        }
        compare(&[(format!("origin {origin:?}"), memory.fork())], false);
    }
}

/// Appends, truncates, deletes, resets and closes at random until the power goes in the middle of something.
fn crashed(seed: u64) -> MemoryDisk {
    let mut random = Random(seed);
    let disk = MemoryDisk::new();
    disk.create_dir(Path::new(DIR)).unwrap();
    disk.sync_dir(Path::new("/")).unwrap();
    let clock = Arc::new(ManualClock::default());
    for _ in 0..1 + random.below(3) {
        let mount = disk.mount();
        disk.crash_at(30 + random.below(500), random.below(u64::MAX));
        let _: Result<(), LogError> = live(&mount, &clock, &mut random);
        disk.crash(random.below(u64::MAX));
    }
    disk
}

fn live(disk: &MemoryDisk, clock: &Arc<ManualClock>, random: &mut Random) -> Result<(), LogError> {
    let store = Store::open(Arc::new(disk.clone()), Path::new(DIR), driven(clock))?;
    let mut logs = [0, 1].map(|n| store.open_log(id(n), LogConfig::default()).ok());
    for _ in 0..200 {
        let n = random.below(2) as usize;
        let Some(log) = logs[n].clone() else {
            logs[n] = Some(store.open_log(id(n as u32), LogConfig::default())?);
            continue;
        };
        let at = log.position();
        let inside = at.first_index + random.below(at.next_index - at.first_index + 1);
        match random.below(24) {
            0 => log.truncate_after(inside)?,
            1 => drop(log.delete_before(inside)?),
            2 => log.roll()?,
            3 => log.reset(at.next_index + random.below(10), at.next_offset + random.below(10))?,
            4 => log.save_checkpoint(&vec![7; random.below(100) as usize])?,
            5 => {
                logs[n] = None;
                log.close()?;
            }
            6 if n == 1 => {
                logs[n] = None;
                log.close()?;
                drop(log);
                store.delete_log(id(1))?;
            }
            7..=11 => {
                clock.advance(random.below(1500));
                while store.drive() {}
            }
            _ => {
                let next = at.next_index;
                let entries: Vec<Entry> = (next..next + 1 + random.below(3)).map(sample).collect();
                append(&log, entries)?;
            }
        }
    }
    if random.below(3) == 0 {
        store.close()?;
    }
    Ok(())
}

#[test]
fn what_a_power_cut_leaves_is_read_alike() {
    let disks: Vec<_> = (0..40).map(|seed| (format!("seed {seed}"), crashed(seed))).collect();
    compare(&disks, false);
}

#[test]
fn damage_is_found_alike() {
    let (killed, store, logs) = stored();
    let open_disk = killed.fork();
    drop(logs);
    store.close().unwrap();
    let mut disks = Vec::new();
    for (what, disk) in [("closed", killed), ("killed", open_disk), ("version 1", version_1("crashed"))] {
        let mut paths = Vec::new();
        files(&disk, Path::new(DIR), &mut paths);
        paths.sort();
        let mut random = Random(11);
        for path in &paths {
            let bytes = disk.contents(path).unwrap();
            if bytes.is_empty() {
                continue;
            }
            let name = path.strip_prefix(DIR).unwrap().display();
            let mut put = |how: String, bytes: &[u8]| {
                let changed = disk.fork();
                changed.overwrite(path, bytes).unwrap();
                disks.push((format!("{what}: {name}, {how}"), changed));
            };
            for _ in 0..2 {
                let at = random.below(bytes.len() as u64) as usize;
                let mut flipped = bytes.clone();
                flipped[at] ^= 1 << random.below(8);
                put(format!("byte {at} flipped"), &flipped);
                put(format!("cut at byte {at}"), &bytes[..at]);
                let mut zeroed = bytes.clone();
                let end = (at + 512).min(bytes.len());
                zeroed[at..end].fill(0);
                put(format!("bytes {at}..{end} zeroed"), &zeroed);
            }
            if name.to_string().ends_with(".log") {
                for at in [3, 72, 80] {
                    let mut flipped = bytes.clone();
                    flipped[at] ^= 1;
                    put(format!("byte {at} flipped"), &flipped);
                }
                // As behind a torn write: with the right seed, and the tag of another segment or its own.
                let (seed, tag) = seed_and_tag(&bytes);
                for (tag, torn) in [([tag[0] ^ 1, tag[1]], 40), (tag, 40)] {
                    let behind = [&bytes[..bytes.len() - torn], &vec![0; torn], &forged(seed, tag, 90, 500)].concat();
                    put(format!("torn, and a frame with tag {tag:?} behind"), &behind);
                }
            }
            let removed = disk.fork();
            removed.remove_file(path).unwrap();
            disks.push((format!("{what}: {name} removed"), removed));
        }
    }
    compare(&disks, false);
}
