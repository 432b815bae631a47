//! The log against a model that is a plain list of entries.

use std::{path::Path, sync::Arc};

use crate::common::*;
use chronicle_log::{
    Entry, EntryKind, Log, LogConfig, LogError, Store, StoreConfig,
    disk::{Disk, MemoryDisk},
};
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Step {
    Append(Vec<(u32, i64, usize)>),
    Truncate(prop::sample::Index),
    DeleteBefore(prop::sample::Index),
    Reset(u64, u64),
    Roll,
    Reopen { close: bool },
}

fn step() -> impl Strategy<Value = Step> {
    let entry = (0..4_u32, -50..50_i64, 0..400_usize);
    prop_oneof![
        8 => prop::collection::vec(entry, 1..12).prop_map(Step::Append),
        2 => any::<prop::sample::Index>().prop_map(Step::Truncate),
        1 => any::<prop::sample::Index>().prop_map(Step::DeleteBefore),
        1 => (0..500_u64, 0..500_u64).prop_map(|(index, offset)| Step::Reset(index, offset)),
        1 => Just(Step::Roll),
        2 => any::<bool>().prop_map(|close| Step::Reopen { close }),
    ]
}

struct Model {
    first_index: u64,
    /// Base offset and entry.
    entries: Vec<(u64, Entry)>,
    next_offset: u64,
}

impl Model {
    fn next_index(&self) -> u64 {
        self.first_index + self.entries.len() as u64
    }

    fn start_offset(&self) -> u64 {
        self.entries.first().map_or(self.next_offset, |(base, _)| *base)
    }

    fn data(&self) -> impl Iterator<Item = &(u64, Entry)> {
        self.entries.iter().filter(|(_, entry)| entry.kind == EntryKind::Data)
    }
}

fn check(log: &Log, model: &Model) {
    let position = log.position();
    assert_eq!((position.first_index, position.next_index), (model.first_index, model.next_index()));
    assert_eq!((position.start_offset, position.next_offset), (model.start_offset(), model.next_offset));
    let last = position.last.map(|last| (last.index, last.term, last.leader));
    assert_eq!(last, model.entries.last().map(|(_, entry)| (entry.index, entry.term, entry.leader)));

    for from in (model.first_index..model.next_index()).step_by(5) {
        let to = from + 1 + from % 9;
        let found = log.read(from, to, usize::MAX).unwrap();
        let start = (from - model.first_index) as usize;
        let end = ((to - model.first_index) as usize).min(model.entries.len());
        let found: Vec<_> = found.into_iter().map(|stored| (stored.base_offset, stored.entry)).collect();
        assert_eq!(found[..], model.entries[start..end]);
    }
    let error = |offset| log.read_at_offset(offset, u64::MAX, 1).map(drop);
    if let Some(below) = model.start_offset().checked_sub(1) {
        assert!(matches!(error(below), Err(LogError::OffsetOutOfRange { .. })));
    }
    for offset in (model.start_offset()..model.next_offset + 3).step_by(3) {
        let max_index = model.next_index().saturating_sub(offset % 4);
        let found = log.read_at_offset(offset, max_index, 700).unwrap();
        let mut expected =
            model.data().filter(|(base, entry)| base + entry.offsets() > offset && entry.index <= max_index);
        match expected.next() {
            None => assert!(found.is_empty()),
            Some((base, entry)) => {
                assert_eq!((found[0].base_offset, &found[0].entry), (*base, entry));
                for (found, (_, entry)) in found[1..].iter().zip(expected) {
                    assert_eq!(&found.entry, entry);
                }
            }
        }
    }
    for time in (-60..60).step_by(13) {
        let max_index = model.next_index().saturating_sub(2);
        let found = log.entry_for_time(time, max_index).unwrap();
        let expected = model.data().find(|(_, entry)| entry.max_timestamp >= time && entry.index <= max_index);
        assert_eq!(found.map(|stored| stored.entry), expected.map(|(_, entry)| entry.clone()), "time {time}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(160))]

    #[test]
    fn the_log_does_what_a_list_does(
        steps in prop::collection::vec(step(), 1..30),
        cache in prop_oneof![Just(0_u64), Just(2000), Just(1 << 20)],
    ) {
        let disk: Arc<dyn Disk> = Arc::new(MemoryDisk::new());
        let config = StoreConfig { segment_bytes: 1500, tail_cache_bytes: cache, ..config() };
        let mut store = Store::open(disk.clone(), Path::new(DIR), config.clone()).unwrap();
        let mut log = store.open_log(id(0), LogConfig::default()).unwrap();
        let mut model = Model { first_index: 0, entries: Vec::new(), next_offset: 0 };
        for step in steps {
            match step {
                Step::Append(entries) => {
                    let mut given = Vec::new();
                    for (records, timestamp, len) in entries {
                        let index = model.next_index();
                        let entry = match records {
                            0 => blank(index),
                            _ => data(index, records, timestamp, vec![index as u8; len]),
                        };
                        model.entries.push((model.next_offset, entry.clone()));
                        model.next_offset += entry.offsets();
                        given.push(entry);
                    }
                    let appended = append(&log, given).unwrap().0;
                    prop_assert_eq!(appended.next_offset, model.next_offset);
                }
                Step::Truncate(at) if !model.entries.is_empty() => {
                    let keep = at.index(model.entries.len()) + 1;
                    if let Some((base, _)) = model.entries.get(keep) {
                        model.next_offset = *base;
                    }
                    model.entries.truncate(keep);
                    log.truncate_after(model.first_index + keep as u64 - 1).unwrap();
                }
                Step::DeleteBefore(at) if !model.entries.is_empty() => {
                    let limit = model.first_index + at.index(model.entries.len()) as u64;
                    let first = log.delete_before(limit).unwrap().first_index;
                    prop_assert!(first <= limit.max(model.first_index));
                    model.entries.drain(..(first - model.first_index) as usize);
                    model.first_index = first;
                }
                Step::Reset(index, offset) => {
                    log.reset(index, offset).unwrap();
                    model = Model { first_index: index, entries: Vec::new(), next_offset: offset };
                }
                Step::Roll => log.roll().unwrap(),
                Step::Reopen { close } => {
                    if close {
                        store.close().unwrap();
                    }
                    drop(log);
                    if close {
                        drop(store);
                        store = Store::open(disk.clone(), Path::new(DIR), config.clone()).unwrap();
                    }
                    log = store.open_log(id(0), LogConfig::default()).unwrap();
                }
                Step::Truncate(_) | Step::DeleteBefore(_) => {}
            }
            check(&log, &model);
        }
    }
}
