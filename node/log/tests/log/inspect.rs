//! The inspector of segment files, on intact and damaged ones.

use std::path::{Path, PathBuf};

use crate::common::*;
use chronicle_log::{
    LogConfig,
    debug::{SegmentFile, Stretch},
    disk::{Disk, MemoryDisk},
};
use proptest::prelude::*;

fn segments() -> (MemoryDisk, Vec<PathBuf>) {
    let (memory, disk) = memory();
    let store = open(&disk);
    let log = store.open_log(id(0), LogConfig::default()).unwrap();
    fill(&log, 0, 40);
    wait_sealed(&log);
    let path = |base: u64| log_dir(0).join(format!("{base:020}.log"));
    let paths = log.segments().iter().map(|segment| path(segment.base_index)).collect();
    store.close().unwrap();
    (memory, paths)
}

#[test]
fn an_intact_segment_shows_all_its_entries_and_no_problem() {
    let (disk, paths) = segments();
    let mut found = Vec::new();
    for (at, path) in paths.iter().enumerate() {
        let segment = SegmentFile::open(&disk, path).unwrap();
        assert_eq!(segment.id(), id(0));
        assert_eq!(segment.header().unwrap().base_index, found.len() as u64);
        assert_eq!(segment.footer().is_some(), at + 1 < paths.len());
        assert_eq!(segment.verify(&disk).unwrap(), Vec::<String>::new());
        for stretch in segment.stretches() {
            match stretch.unwrap() {
                Stretch::Frame { frame, .. } => {
                    assert_eq!(frame.misplaced, None);
                    found.push((frame.index, frame.payload));
                }
                damage => panic!("{damage:?}"),
            }
        }
    }
    let expected: Vec<_> = (0..40).map(|index| (index, sample(index).payload)).collect();
    assert_eq!(found, expected);
}

#[test]
fn each_problem_is_reported_with_its_position_and_the_rest_is_still_shown() {
    let (disk, paths) = segments();
    let path = &paths[0];
    let mut bytes = disk.contents(path).unwrap();
    bytes[3] ^= 1;
    bytes[168 + 72] ^= 1;
    disk.overwrite(path, &bytes).unwrap();
    disk.remove_file(&path.with_extension("idx")).unwrap();
    let segment = SegmentFile::open(&disk, path).unwrap();
    let problems = segment.verify(&disk).unwrap();
    assert!(problems[0].starts_with("header: "), "{problems:?}");
    assert!(problems.iter().any(|problem| problem.contains("at byte 168: the frame's checksum")), "{problems:?}");
    assert!(problems.last().unwrap().starts_with("index: "), "{problems:?}");
    let frames = segment.stretches().filter(|stretch| matches!(stretch, Ok(Stretch::Frame { .. }))).count();
    assert_eq!(frames as u64, segment.footer().unwrap().next_index - 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn no_bytes_make_the_inspector_panic(
        noise in prop::collection::vec(any::<u8>(), 0..600),
        at in any::<prop::sample::Index>(),
    ) {
        let (disk, paths) = segments_once();
        let disk = disk.fork();
        let mut bytes = disk.contents(&paths[0]).unwrap();
        let at = at.index(bytes.len());
        bytes.splice(at..bytes.len().min(at + noise.len()), noise);
        disk.overwrite(&paths[0], &bytes).unwrap();
        let segment = SegmentFile::open(&disk, Path::new(&paths[0])).unwrap();
        segment.verify(&disk).unwrap();
    }
}

fn segments_once() -> &'static (MemoryDisk, Vec<PathBuf>) {
    static ONCE: std::sync::OnceLock<(MemoryDisk, Vec<PathBuf>)> = std::sync::OnceLock::new();
    ONCE.get_or_init(segments)
}
