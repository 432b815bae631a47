//! Mutated files: whatever stands in a data directory, it is opened or refused, within limits of memory.
//!
//! What is right and what is damage is the subject of `damage.rs`; here it is enough that nothing panics, hangs or reserves memory
//! for what a file only claims.

use std::{
    fmt::Display,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::common::*;
use chronicle_fuzz::{CountingAllocator, Fuzz};
use chronicle_log::{
    LogConfig, LogError, Store, StoreConfig, Threads,
    debug::SegmentFile,
    disk::{Disk, MemoryDisk},
};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// What opening a store and reading its log takes by itself.
const COST: usize = 1 << 20;

/// Secret of the segment that is made first in [`directory`].
const FIRST_SECRET: [u8; 8] = 1_u64.to_be_bytes();

fn driven() -> StoreConfig {
    StoreConfig { segment_bytes: 1024, threads: Threads::Driven { on_work: None }, ..config() }
}

/// A sealed segment, one that is not, their indexes, a checkpoint and a journal with the votes of a caller.
fn directory() -> MemoryDisk {
    let (memory, disk) = memory();
    // The secret of the first segment is known: see `FIRST_SECRET`.
    let entropy = Arc::new(Counted::default());
    let store = Store::open(disk, Path::new(DIR), StoreConfig { segment_bytes: 1024, entropy, ..config() }).unwrap();
    let log = store.open_log(id(0), LogConfig::default()).unwrap();
    fill(&log, 0, 12);
    wait_sealed(&log);
    log.save_checkpoint(b"a checkpoint").unwrap();
    let (done, wait) = done();
    store.journal_put(id(0), 1, b"a vote".as_slice().into(), Some(done)).unwrap();
    wait.recv().unwrap().unwrap();
    store.close().unwrap();
    memory
}

/// Opens the directory, reads all of it and appends to it.
fn use_all(disk: &MemoryDisk) -> Result<String, LogError> {
    let store = Store::open(Arc::new(disk.clone()), Path::new(DIR), driven())?;
    let _ = store.journal_get(id(0), 1);
    let _ = store.summary(id(0))?;
    let log = store.open_log(id(0), LogConfig::default())?;
    let _ = log.load_checkpoint();
    let position = log.position();
    let _ = log.entry_for_time(1005, u64::MAX);
    let _ = log.read_at_offset(position.next_offset / 2, u64::MAX, 1);
    let found = read_all(&log)?;
    // Terms and offsets may be anything here, so it may be refused.
    let appended = append(&log, vec![blank(position.next_index)]);
    while store.drive() {}
    appended.map(|_| format!("{} entries", found.len()))
}

fn shown<T: Display, E: Display>(result: Result<T, E>) -> String {
    match result {
        Ok(value) => value.to_string(),
        Err(error) => format!("refused: {error}"),
    }
}

/// Fuzzes one file of [`directory`].
fn fuzz_file(name: &'static str, path: &Path, repair: Option<fn(&mut [u8])>) {
    let disk = directory();
    let mut fuzz = Fuzz::new(name).seed(disk.contents(path).unwrap()).allowance(64, COST).mutations(1500);
    if let Some(repair) = repair {
        fuzz = fuzz.repair(repair);
    }
    fuzz.run(|bytes| {
        let copy = disk.fork();
        copy.overwrite(path, bytes).unwrap();
        shown(use_all(&copy))
    });
}

/// The id of the log, as it enters bytes.
fn log_bytes() -> Vec<u8> {
    [&id(0).topic.as_bytes()[..], &0_u32.to_le_bytes()].concat()
}

fn segment(base: u64) -> PathBuf {
    log_dir(0).join(format!("{base:020}.log"))
}

fn bases(disk: &MemoryDisk) -> Vec<u64> {
    let names = disk.list(&log_dir(0)).unwrap().into_iter().map(|entry| entry.name);
    let mut bases: Vec<u64> = names.filter_map(|name| name.strip_suffix(".log")?.parse().ok()).collect();
    bases.sort_unstable();
    bases
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).map_or(0, |bytes| u32::from_le_bytes(bytes.try_into().unwrap()))
}

fn put(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

/// Makes the checksums and tags of a segment's header, frames and footer right, as far as lengths lead.
fn repair_segment(bytes: &mut [u8]) {
    if bytes.len() < SEGMENT_HEADER {
        return;
    }
    let crc = crc32c::crc32c(&bytes[..SEGMENT_HEADER - 4]);
    put(bytes, SEGMENT_HEADER - 4, crc);
    let (seed, tag) = seed_and_tag(bytes);
    let mut at = SEGMENT_HEADER;
    while at + 72 <= bytes.len() && &bytes[at..at + 8] != b"CHRNLFTR" {
        let length = u32_at(bytes, at) as usize;
        bytes[at + 10..at + 12].copy_from_slice(&tag);
        let own = crc32c::crc32c_append(crc32c::crc32c_append(seed, &bytes[at..at + 4]), &bytes[at + 8..at + 68]);
        put(bytes, at + 68, own);
        let Some(frame) = bytes.get(at + 8..at + 8 + length) else { return };
        let crc = crc32c::crc32c_append(seed, frame);
        put(bytes, at + 4, crc);
        at = (at + 8 + length).next_multiple_of(8);
    }
    if at + 144 == bytes.len() {
        let crc = crc32c::crc32c_append(seed, &bytes[at..at + 140]);
        put(bytes, at + 140, crc);
    }
}

/// Without a change it changes nothing: otherwise it would make every input one that is refused at once.
#[test]
fn a_repair_leaves_a_sound_segment_as_it_is() {
    let disk = directory();
    for base in bases(&disk) {
        let sound = disk.contents(&segment(base)).unwrap();
        let mut repaired = sound.clone();
        repair_segment(&mut repaired);
        assert!(repaired == sound, "segment {base}");
    }
    assert_eq!(disk.contents(&segment(0)).unwrap()[72..80], FIRST_SECRET);
}

#[test]
fn mutated_sealed_segments_are_opened_or_refused() {
    fuzz_file("segments-sealed", &segment(0), Some(repair_segment));
}

#[test]
fn mutated_newest_segments_are_opened_or_refused() {
    let newest = *bases(&directory()).last().unwrap();
    fuzz_file("segments-newest", &segment(newest), Some(repair_segment));
}

#[test]
fn mutated_segments_are_inspected() {
    let disk = directory();
    Fuzz::new("segments-inspected")
        .seed(disk.contents(&segment(0)).unwrap())
        .repair(repair_segment)
        .allowance(64, COST)
        .run(|bytes| {
            let copy = disk.fork();
            copy.overwrite(&segment(0), bytes).unwrap();
            let inspect = || -> Result<String, LogError> {
                let file = SegmentFile::open(&copy, &segment(0))?;
                let stretches = file.stretches().count();
                let problems = file.verify(&copy).map_err(|error| LogError::InvalidName(error.to_string()))?;
                Ok(format!("{stretches} {:?} {problems:?} {:?}", file.header(), file.check_index(&copy)))
            };
            shown(inspect())
        });
}

#[test]
fn mutated_indexes_are_used_or_rebuilt() {
    fn repair(bytes: &mut [u8]) {
        if bytes.len() >= 40 {
            let seed = crc32c::crc32c_append(crc32c::crc32c(&FIRST_SECRET), &0_u64.to_le_bytes());
            let crc = crc32c::crc32c_append(crc32c::crc32c_append(seed, &bytes[..36]), &bytes[40..]);
            put(bytes, 36, crc);
        }
    }
    fuzz_file("indexes", &segment(0).with_extension("idx"), Some(repair));
}

#[test]
fn mutated_checkpoints_are_read_or_refused() {
    fn repair(bytes: &mut [u8]) {
        if bytes.len() >= 24 {
            let crc = crc32c::crc32c_append(crc32c::crc32c(&log_bytes()), &bytes[..12]);
            let crc = crc32c::crc32c_append(crc, &bytes[16..]);
            put(bytes, 12, crc);
        }
    }
    fuzz_file("checkpoint-files", &log_dir(0).join("checkpoint"), Some(repair));
}

#[test]
fn mutated_journals_are_opened_or_refused() {
    fn repair(bytes: &mut [u8]) {
        if bytes.len() < 56 {
            return;
        }
        let crc = crc32c::crc32c(&bytes[..52]);
        put(bytes, 52, crc);
        let seed = crc32c::crc32c_append(crc32c::crc32c(&bytes[16..32]), &bytes[32..40]);
        let mut at = 56;
        while at + 40 <= bytes.len() {
            let length = u32_at(bytes, at) as usize;
            let Some(record) = bytes.get(at + 8..at + 8 + length) else { return };
            let crc = crc32c::crc32c_append(crc32c::crc32c_append(seed, &bytes[at..at + 4]), record);
            put(bytes, at + 4, crc);
            at = (at + 8 + length).next_multiple_of(8);
        }
    }
    let meta = Path::new(DIR).join("meta");
    fuzz_file("journals", &meta.join("journal-00000000000000000001"), Some(repair));
}

#[test]
fn mutated_notes_of_a_directory_are_read_or_refused() {
    fuzz_file("journal-ends", &Path::new(DIR).join("meta/closed"), None);
    fuzz_file("directory-formats", &Path::new(DIR).join("FORMAT"), None);
}

#[test]
fn a_footer_that_describes_another_place_is_not_taken() {
    let disk = directory();
    let mut bytes = disk.contents(&segment(0)).unwrap();
    let footer = bytes.len() - 144;
    // Its first index, beyond every index of the log: a reader that believes it looks for its entries for ever.
    bytes[footer + 32..footer + 40].copy_from_slice(&(1_u64 << 41).to_le_bytes());
    repair_segment(&mut bytes);
    disk.overwrite(&segment(0), &bytes).unwrap();
    let store = Store::open(Arc::new(disk), Path::new(DIR), driven()).unwrap();
    let log = store.open_log(id(0), LogConfig::default()).unwrap();
    assert_eq!(log.position().first_index, 0);
    assert_samples(&log, 0, 12);
    assert_eq!(log.entry_for_time(1003, u64::MAX).unwrap().unwrap().entry, sample(3));
}
