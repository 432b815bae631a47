//! Damage of every kind of file of a data directory: flipped, zeroed, cut, missing, and replaced by an older copy or by another log's.
//!
//! The outcome is right, repaired or refused, file by file: `docs/disk-format.md` says what stays unknowable, and [`least`] computes it for
//! each case from the bytes that are left. `damage.rs` looks at single cases more closely.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{common::*, marks::Driven};
use bytes::Bytes;
use chronicle_log::{
    Entry, LogConfig, LogError, LogId, Store, StoreConfig, Threads,
    debug::{SegmentFile, Stretch},
    disk::{Disk, MemoryDisk, OpenMode},
};

/// Bytes that a disk loses together.
const BLOCK: usize = 512;
/// Flips and cuts of the middle of a file go by steps; head and tail, where headers and footers are, byte by byte.
const EXACT: usize = 200;
const STEP: usize = 5;

/// What a directory holds, whatever happens to it.
struct Contents {
    disk: MemoryDisk,
    /// The directory some time before.
    older: MemoryDisk,
    logs: BTreeMap<u32, Vec<Entry>>,
    /// First index of each log.
    starts: BTreeMap<u32, u64>,
    /// Checkpoints by log: as they are, and as they were.
    checkpoints: BTreeMap<u32, [&'static [u8]; 2]>,
    /// The newest vote of each log.
    vote: u8,
    clean: bool,
}

/// Log 0 has sealed segments, one that is written to, and a checkpoint; log 1 one short segment; log 2 lost its beginning to retention.
/// Everything was written more than once, so that there is an older copy of each file.
fn contents(clean: bool) -> Contents {
    let driven = Driven::new(1024);
    let store = &driven.store;
    let logs: Vec<_> = (0..3).map(|n| store.open_log(id(n), LogConfig::default()).unwrap()).collect();
    let vote = |vote: u8| {
        for n in 0..3 {
            let (done, wait) = done();
            store.journal_put(id(n), 1, Bytes::copy_from_slice(&[vote]), Some(done)).unwrap();
            driven.pass(1);
            wait.recv().unwrap().unwrap();
        }
    };
    let first: &[u8] = b"an older checkpoint";
    let second: &[u8] = b"a checkpoint that is newer";
    vote(1);
    for (log, end) in logs.iter().zip([9, 2, 10]) {
        driven.fill(log, 0, end, 10);
        log.save_checkpoint(first).unwrap();
    }
    // Marks, and with them the end of the journal, are written when a log is idle.
    driven.pass(5000);
    let older = if clean {
        // So that there is an older note of a clean close as well.
        let copy = driven.memory.fork();
        let reopened = Store::open(Arc::new(copy.clone()), Path::new(DIR), driven_config()).unwrap();
        reopened.close().unwrap();
        copy
    } else {
        driven.memory.fork()
    };
    vote(2);
    for (log, (from, end)) in logs.iter().zip([(9, 16), (2, 4), (10, 19)]) {
        driven.fill(log, from, end, 10);
        log.save_checkpoint(second).unwrap();
    }
    logs[2].delete_before(10).unwrap();
    driven.pass(5000);
    let starts = logs.iter().zip(0..).map(|(log, n)| (n, log.position().first_index)).collect();
    if clean {
        store.close().unwrap();
    } else {
        // A few more, which no mark in the journal covers.
        driven.fill(&logs[0], 16, 18, 10);
        driven.fill(&logs[1], 4, 6, 10);
    }
    let ends = if clean { [16, 4, 19] } else { [18, 6, 19] };
    Contents {
        disk: driven.memory.fork(),
        older,
        logs: ends.into_iter().zip(0..).map(|(end, n)| (n, (0..end).map(sample).collect())).collect(),
        starts,
        checkpoints: (0..3).map(|n| (n, [second, first])).collect(),
        vote: 2,
        clean,
    }
}

fn driven_config() -> StoreConfig {
    StoreConfig { segment_bytes: 1024, threads: Threads::Driven { on_work: None }, ..config() }
}

/// Every file below a directory.
fn files(disk: &MemoryDisk, dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in disk.list(dir).unwrap() {
        let path = dir.join(&entry.name);
        if entry.is_dir { found.extend(files(disk, &path)) } else { found.push(path) }
    }
    found.sort();
    found
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FileHarm {
    Flip(usize),
    ZeroBlock(usize),
    Cut(usize),
    Remove,
    Older,
}

/// Everything that is done to a file of this length.
fn harms(len: usize, older: bool) -> Vec<FileHarm> {
    let exact = |at: &usize| *at < EXACT || len - at < EXACT || at.is_multiple_of(STEP);
    let mut all: Vec<FileHarm> = (0..len).filter(exact).map(FileHarm::Flip).collect();
    all.extend((0..len).filter(exact).map(FileHarm::Cut));
    all.extend((0..len).step_by(BLOCK).map(FileHarm::ZeroBlock));
    all.push(FileHarm::Remove);
    all.extend(older.then_some(FileHarm::Older));
    all
}

/// Harms a file. False: that changed nothing.
fn harm(disk: &MemoryDisk, older: &MemoryDisk, path: &Path, harm: FileHarm) -> bool {
    let before = disk.contents(path).unwrap();
    let mut bytes = before.clone();
    match harm {
        FileHarm::Flip(at) => bytes[at] ^= 1 << (at % 8),
        FileHarm::ZeroBlock(at) => {
            let end = bytes.len().min(at + BLOCK);
            bytes[at..end].fill(0);
        }
        FileHarm::Cut(at) => bytes.truncate(at),
        FileHarm::Older => bytes = older.contents(path).unwrap(),
        FileHarm::Remove => {
            disk.remove_file(path).unwrap();
            return true;
        }
    }
    disk.overwrite(path, &bytes).unwrap();
    bytes != before
}

/// The log that a path belongs to.
fn log_of(path: &Path) -> Option<u32> {
    (0..3).find(|n| path.starts_with(log_dir(*n)))
}

/// The end that an open of the log may leave at the least, by what is left on the disk: rule 4 of `docs/disk-format.md`. `journal`: what
/// the journal knows.
fn least(disk: &MemoryDisk, n: u32, journal: u64) -> u64 {
    let mut least = journal;
    for path in files(disk, &log_dir(n)) {
        if path.extension().is_none_or(|extension| extension != "log") {
            continue;
        }
        let Ok(segment) = SegmentFile::open(disk, &path) else { continue };
        // Of a damaged header nothing counts, not even a footer.
        if let Ok(header) = segment.header() {
            least = least.max(header.durable_mark);
            least = least.max(segment.footer().map_or(0, |footer| footer.next_index));
        }
        for stretch in segment.stretches() {
            if let Stretch::Frame { frame, .. } = stretch.unwrap() {
                least = least.max(frame.durable_mark);
            }
        }
    }
    least
}

/// What the journal's marks cover in [`contents`], by log: all that was written before the logs were idle.
const JOURNAL_MARKS: [u64; 3] = [16, 4, 19];

fn refused(error: &LogError) -> bool {
    matches!(error, LogError::Damaged { .. } | LogError::NewerFormat { .. })
}

/// Counts of outcomes, so that a test shows that it tested something.
#[derive(Debug, Default, PartialEq, Eq)]
struct Outcomes {
    right: u32,
    shorter: u32,
    refused: u32,
}

/// Opens a harmed directory and compares all that is in it. `path` was harmed.
fn examine(contents: &Contents, disk: &MemoryDisk, path: &Path, harm: FileHarm, outcomes: &mut Outcomes) {
    let what = format!("{harm:?} of {}, clean: {}", path.display(), contents.clean);
    let least: Vec<u64> = (0..3).map(|n| least(disk, n, JOURNAL_MARKS[n as usize])).collect();
    let store = match Store::open(Arc::new(disk.clone()), Path::new(DIR), driven_config()) {
        Ok(store) => store,
        Err(error) => {
            assert!(refused(&error), "{what}: {error}");
            assert!(log_of(path).is_none(), "{what}: a file of one log keeps all from opening: {error}");
            outcomes.refused += 1;
            return;
        }
    };
    let found = store.list_logs().unwrap();
    let (mut all_right, mut shorter) = (true, false);
    for (n, entries) in &contents.logs {
        let own = log_of(path) == Some(*n);
        assert!(found.contains(&id(*n)), "{what}: log {n} is not known");
        let vote = store.journal_get(id(*n), 1);
        assert_eq!(vote.as_deref(), Some(&[contents.vote][..]), "{what}: the vote of log {n}");
        let read = || -> Result<(Vec<Entry>, Option<Bytes>, LogId), LogError> {
            let log = store.open_log(id(*n), LogConfig::default())?;
            let all = read_all(&log)?;
            let offsets = log.position().start_offset..log.position().next_offset;
            for offset in offsets.step_by(7).filter(|_| own) {
                let stored = log.read_at_offset(offset, u64::MAX, 1)?;
                assert!(stored[0].base_offset <= offset && offset < stored[0].next_offset(), "{what}: offset {offset}");
            }
            let first = log.position().first_index;
            assert_eq!(first, contents.starts[n], "{what}: log {n} starts elsewhere");
            // It goes on where it ends.
            let next = log.position().next_index;
            let (_, wait) = append(&log, vec![sample(next)])?;
            while store.drive() {}
            wait.recv().unwrap()?;
            assert_eq!(log.read(next, next + 1, 1)?[0].entry, sample(next), "{what}");
            Ok((all, log.load_checkpoint()?, log.id()))
        };
        let (all, checkpoint, _) = match read() {
            Ok(read) => read,
            Err(error) => {
                assert!(refused(&error), "{what}: log {n}: {error}");
                assert!(own || log_of(path).is_none(), "{what}: another log is refused: {error}");
                all_right = false;
                continue;
            }
        };
        let start = contents.starts[n] as usize;
        let end = start + all.len();
        assert!(end <= entries.len() && all == entries[start..end], "{what}: log {n} has something else");
        if end < entries.len() {
            assert!(own && !contents.clean, "{what}: log {n} is shorter");
            assert!(
                end as u64 >= least[*n as usize],
                "{what}: log {n} ends at {end}, less than {}",
                least[*n as usize]
            );
            shorter = true;
        }
        let [newest, older] = contents.checkpoints[n];
        let is_checkpoint = own && path.ends_with("checkpoint");
        match checkpoint.as_deref() {
            Some(bytes) if bytes == newest => {}
            // The owner of the log compares it with its own marks.
            Some(bytes) if bytes == older => assert!(is_checkpoint && harm == FileHarm::Older, "{what}"),
            None => assert!(is_checkpoint && harm == FileHarm::Remove, "{what}: the checkpoint of log {n} is gone"),
            Some(_) => panic!("{what}: the checkpoint of log {n} is another"),
        }
    }
    match (all_right, shorter) {
        (false, _) => outcomes.refused += 1,
        (true, true) => outcomes.shorter += 1,
        (true, false) => outcomes.right += 1,
    }
}

fn harm_all(contents: &Contents, wanted: impl Fn(&Path) -> bool) -> BTreeMap<PathBuf, Outcomes> {
    let mut all = BTreeMap::new();
    for path in files(&contents.disk, Path::new(DIR)).into_iter().filter(|path| wanted(path)) {
        let outcomes: &mut Outcomes = all.entry(path.clone()).or_default();
        let len = contents.disk.contents(&path).unwrap().len();
        for one in harms(len, contents.older.contents(&path).is_ok()) {
            let copy = contents.disk.fork();
            if harm(&copy, &contents.older, &path, one) {
                examine(contents, &copy, &path, one, outcomes);
            }
        }
    }
    all
}

/// The kind of a file: the end of its name.
fn kind(path: &Path) -> &str {
    let name = path.file_name().unwrap().to_str().unwrap();
    name.rsplit(['.', '-']).next().unwrap_or(name)
}

#[test]
fn a_directory_that_was_closed_is_right_or_refused_whatever_file_is_harmed() {
    let contents = contents(true);
    let outcomes = harm_all(&contents, |_| true);
    for (path, outcomes) in &outcomes {
        assert_eq!(outcomes.shorter, 0, "{path:?}");
        match path.file_name().unwrap().to_str().unwrap() {
            // Derived, or an addition to what is known otherwise.
            "LOCK" | "closed" => assert_eq!(outcomes.refused, 0, "{path:?}: {outcomes:?}"),
            _ if kind(path) == "idx" => assert_eq!(outcomes.refused, 0, "{path:?}: {outcomes:?}"),
            _ => assert!(outcomes.refused > 0, "{path:?}: {outcomes:?}"),
        }
    }
    let kinds: std::collections::BTreeSet<&str> = outcomes.keys().map(|path| kind(path)).collect();
    for wanted in ["log", "idx", "checkpoint", "closed", "FORMAT", "00000000000000000001"] {
        assert!(kinds.contains(wanted), "{kinds:?}");
    }
}

#[test]
fn a_log_whose_process_was_killed_is_right_shorter_by_what_nothing_vouches_for_or_refused() {
    let contents = contents(false);
    let outcomes = harm_all(&contents, |path| log_of(path).is_some());
    let shorter: u32 = outcomes.values().map(|outcomes| outcomes.shorter).sum();
    let refused: u32 = outcomes.values().map(|outcomes| outcomes.refused).sum();
    assert!(shorter > 0 && refused > 1000, "{outcomes:?}");
}

#[test]
fn a_journal_or_a_format_that_is_missing_is_refused_after_a_kill_too() {
    let contents = contents(false);
    for name in ["FORMAT", "meta/journal-00000000000000000001"] {
        let copy = contents.disk.fork();
        let path = Path::new(DIR).join(name);
        copy.remove_file(&path).unwrap();
        let mut outcomes = Outcomes::default();
        examine(&contents, &copy, &path, FileHarm::Remove, &mut outcomes);
        assert_eq!(outcomes, Outcomes { refused: 1, ..Outcomes::default() }, "{name}");
    }
}

#[test]
fn a_log_without_its_folder_or_with_that_of_another_log_is_damaged() {
    for clean in [true, false] {
        let contents = contents(clean);
        for n in 0..3 {
            let gone = contents.disk.fork();
            gone.remove_dir(&log_dir(n)).unwrap();
            let store = Store::open(Arc::new(gone), Path::new(DIR), driven_config()).unwrap();
            let error = store.open_log(id(n), LogConfig::default()).expect_err("its entries are gone");
            assert!(refused(&error), "log {n}, clean: {clean}: {error}");
            let other = (n + 1) % 3;
            store.open_log(id(other), LogConfig::default()).unwrap();

            let swapped = contents.disk.fork();
            let aside = Path::new(DIR).join("logs/aside");
            for (from, to) in [(log_dir(n), aside.clone()), (log_dir(other), log_dir(n)), (aside, log_dir(other))] {
                swapped.rename(&from, &to).unwrap();
            }
            let store = Store::open(Arc::new(swapped), Path::new(DIR), driven_config()).unwrap();
            for n in [n, other] {
                let error = store.open_log(id(n), LogConfig::default()).expect_err("it is another log's");
                assert!(refused(&error), "log {n}, clean: {clean}: {error}");
            }
        }
    }
}

#[test]
fn a_file_in_the_place_of_another_of_its_kind_is_refused() {
    let contents = contents(true);
    let all = files(&contents.disk, Path::new(DIR));
    let mut tried = 0;
    for to in all.iter().filter(|path| ["log", "checkpoint"].contains(&kind(path))) {
        for from in all.iter().filter(|from| *from != to && kind(from) == kind(to)) {
            let copy = contents.disk.fork();
            copy.overwrite(to, &contents.disk.contents(from).unwrap()).unwrap();
            let mut outcomes = Outcomes::default();
            examine(&contents, &copy, to, FileHarm::Older, &mut outcomes);
            assert_eq!(outcomes.refused, 1, "{from:?} in the place of {to:?}");
            tried += 1;
        }
    }
    assert!(tried > 20, "{tried}");
    // A second file that looks like a segment of the log, with content of the first.
    let copy = contents.disk.fork();
    let from = log_dir(0).join("00000000000000000000.log");
    let to = log_dir(0).join("00000000000000000099.log");
    copy.open(&to, OpenMode::CreateNew).unwrap();
    copy.overwrite(&to, &contents.disk.contents(&from).unwrap()).unwrap();
    let store = Store::open(Arc::new(copy), Path::new(DIR), driven_config()).unwrap();
    assert!(refused(&store.open_log(id(0), LogConfig::default()).unwrap_err()));
}
