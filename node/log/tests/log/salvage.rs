//! What is left of a damaged journal: every record around the damage, in a new journal with which the store opens.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::common::*;
use chronicle_log::{
    LogConfig, LogError, SalvagedJournal, Store,
    disk::{Disk, MemoryDisk},
};

const KEYS: u8 = 30;

/// A directory with a log and thirty values, closed cleanly.
fn closed() -> MemoryDisk {
    let disk = MemoryDisk::new();
    disk.create_dir(Path::new(DIR)).unwrap();
    disk.sync_dir(Path::new("/")).unwrap();
    let store = Store::open(Arc::new(disk.clone()), Path::new(DIR), config()).unwrap();
    let log = store.open_log(id(0), LogConfig::default()).unwrap();
    fill(&log, 0, 10);
    for key in 0..KEYS {
        let (sent, wait) = done();
        store.journal_put(id(0), key, vec![key; 20].into(), Some(sent)).unwrap();
        wait.recv().unwrap().unwrap();
    }
    store.close().unwrap();
    disk.fork()
}

fn journal(disk: &MemoryDisk) -> PathBuf {
    let meta = Path::new(DIR).join("meta");
    let names = disk.list(&meta).unwrap().into_iter().map(|entry| entry.name);
    meta.join(names.filter(|name| name.starts_with("journal-")).max().unwrap())
}

fn open_store(disk: &MemoryDisk) -> Result<Arc<Store>, LogError> {
    Store::open(Arc::new(disk.clone()), Path::new(DIR), config())
}

fn salvage(disk: &MemoryDisk) -> SalvagedJournal {
    SalvagedJournal::read(Arc::new(disk.clone()), Path::new(DIR)).unwrap()
}

#[test]
fn one_bad_byte_anywhere_costs_the_records_that_it_touches_and_no_other() {
    let sound = closed();
    let bytes = sound.contents(&journal(&sound)).unwrap();
    for at in (0..bytes.len()).step_by(7) {
        let disk = sound.fork();
        let mut bad = bytes.clone();
        bad[at] ^= 0x10;
        disk.overwrite(&journal(&disk), &bad).unwrap();
        let opened = open_store(&disk);
        let salvaged = salvage_after(opened, &disk, at);
        let Some(salvaged) = salvaged else { continue };
        let lost = (0..KEYS).filter(|key| salvaged.get(id(0), *key).is_none()).count();
        assert!(lost <= 1, "byte {at}: {lost} keys are lost");
        assert_eq!(salvaged.logs().unwrap(), [id(0)]);
        let quarantine = salvaged.write().unwrap().unwrap();
        let name = journal(&sound).file_name().unwrap().to_owned();
        assert_eq!(disk.contents(&quarantine.join(name)).unwrap(), bad, "byte {at}: the damaged file is kept");
        let store = open_store(&disk).unwrap_or_else(|error| panic!("byte {at}: {error}"));
        let kept = (0..KEYS).filter(|key| store.journal_get(id(0), *key).as_deref() == Some(&[*key; 20][..])).count();
        assert_eq!(kept, usize::from(KEYS) - lost, "byte {at}");
        assert_samples(&store.open_log(id(0), LogConfig::default()).unwrap(), 0, 10);
        store.close().unwrap();
        assert!(salvage(&disk).damage().is_none(), "byte {at}: the new journal is sound");
    }
}

/// What is left, when the store does not open: the two agree about what is damage. Padding is not checked by either.
fn salvage_after(opened: Result<Arc<Store>, LogError>, disk: &MemoryDisk, at: usize) -> Option<SalvagedJournal> {
    match opened {
        Ok(store) => {
            store.close().unwrap();
            assert!(salvage(disk).damage().is_none(), "byte {at}: the store opens");
            None
        }
        Err(LogError::Damaged { .. }) => {
            let salvaged = salvage(disk);
            assert!(salvaged.damage().is_some() && !salvaged.gaps().is_empty(), "byte {at}: the store does not open");
            Some(salvaged)
        }
        Err(error) => panic!("byte {at}: {error}"),
    }
}

#[test]
fn a_missing_journal_is_replaced_by_an_empty_one() {
    let disk = closed();
    disk.remove_file(&journal(&disk)).unwrap();
    assert!(open_store(&disk).is_err());
    let mut salvaged = salvage(&disk);
    assert!(salvaged.damage().is_some());
    assert_eq!(salvaged.records(), 0);
    salvaged.put(id(0), 3, vec![7].into());
    assert_eq!(salvaged.write().unwrap(), None);
    let store = open_store(&disk).unwrap();
    assert_eq!(store.journal_get(id(0), 3).as_deref(), Some(&[7][..]));
}

#[test]
fn a_directory_in_use_and_one_that_is_none_are_refused() {
    let (_memory, disk) = memory();
    assert!(SalvagedJournal::read(disk.clone(), Path::new("/nothing")).is_err());
    assert!(disk.list(Path::new("/nothing")).is_err(), "nothing was made");
    let _store = open(&disk);
    assert!(matches!(SalvagedJournal::read(disk, Path::new(DIR)), Err(LogError::Locked { .. })));
}
