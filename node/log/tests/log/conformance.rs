//! What every [`Disk`] must do, run against each of them.

use std::{io, io::IoSlice, path::Path, sync::Arc};

use chronicle_log::disk::{Disk, FaultyDisk, MemoryDisk, OpenMode, RealDisk, write_all_at};

fn suite(disk: &dyn Disk, root: &Path) {
    let kind = |result: io::Result<()>| result.unwrap_err().kind();
    let dir = root.join("a/b");
    disk.create_dir(&dir).unwrap();
    disk.create_dir(&dir).unwrap();
    let path = dir.join("file");

    assert_eq!(kind(disk.open(&path, OpenMode::Read).map(drop)), io::ErrorKind::NotFound);
    assert_eq!(kind(disk.open(&path, OpenMode::Write).map(drop)), io::ErrorKind::NotFound);
    let file = disk.open(&path, OpenMode::CreateNew).unwrap();
    assert_eq!(kind(disk.open(&path, OpenMode::CreateNew).map(drop)), io::ErrorKind::AlreadyExists);
    assert!(file.is_empty().unwrap());

    // Positioned, vectored writes; reads that end at the end of the file; holes that read as zeros.
    write_all_at(&*file, 2, &mut [IoSlice::new(b"cd"), IoSlice::new(b""), IoSlice::new(b"ef")]).unwrap();
    write_all_at(&*file, 0, &mut []).unwrap();
    assert_eq!(file.read_at(0, 100).unwrap(), b"\0\0cdef");
    assert_eq!(file.read_at(3, 2).unwrap(), b"de");
    assert_eq!(file.read_at(6, 5).unwrap(), b"");
    assert_eq!(file.read_at(100, 5).unwrap(), b"");
    let many: Vec<u8> = (0..5000_u32).map(|n| n as u8).collect();
    let mut slices: Vec<IoSlice<'_>> = many.iter().map(std::slice::from_ref).map(IoSlice::new).collect();
    write_all_at(&*file, 6, &mut slices).unwrap();
    assert_eq!(file.read_at(6, 5000).unwrap(), many);
    file.sync_data().unwrap();

    file.set_len(4).unwrap();
    file.set_len(8).unwrap();
    assert_eq!(file.read_at(0, 100).unwrap(), b"\0\0cd\0\0\0\0");
    assert_eq!(file.len().unwrap(), 8);

    // Two handles see the same file; a handle for reading does not write.
    let other = disk.open(&path, OpenMode::Read).unwrap();
    write_all_at(&*file, 0, &mut [IoSlice::new(b"ab")]).unwrap();
    assert_eq!(other.read_at(0, 4).unwrap(), b"abcd");
    assert!(other.write_at(0, &[IoSlice::new(b"x")]).is_err());
    assert_eq!(other.map().unwrap().bytes(), b"abcd\0\0\0\0");

    // A rename replaces its target; an open handle stays on the old file.
    let aside = dir.join("file.tmp");
    let fresh = disk.open(&aside, OpenMode::Truncate).unwrap();
    write_all_at(&*fresh, 0, &mut [IoSlice::new(b"new")]).unwrap();
    disk.rename(&aside, &path).unwrap();
    disk.sync_dir(&dir).unwrap();
    assert_eq!(other.read_at(0, 2).unwrap(), b"ab");
    assert_eq!(disk.open(&path, OpenMode::Read).unwrap().read_at(0, 9).unwrap(), b"new");
    assert_eq!(disk.open(&path, OpenMode::Truncate).unwrap().len().unwrap(), 0);

    disk.create_dir(&dir.join("sub/deeper")).unwrap();
    let mut names = disk.list(&dir).unwrap();
    names.sort();
    let names: Vec<_> = names.into_iter().map(|entry| (entry.name, entry.is_dir)).collect();
    assert_eq!(names, [("file".to_owned(), false), ("sub".to_owned(), true)]);
    disk.rename(&dir.join("sub"), &dir.join("gone")).unwrap();
    disk.remove_dir(&dir.join("gone")).unwrap();
    assert_eq!(kind(disk.remove_dir(&dir.join("gone"))), io::ErrorKind::NotFound);
    disk.remove_file(&path).unwrap();
    assert_eq!(kind(disk.remove_file(&path)), io::ErrorKind::NotFound);
    assert_eq!(disk.list(&dir).unwrap(), []);

    // A file may move to another directory, over one that is there.
    disk.create_dir(&dir.join("other")).unwrap();
    for (name, text) in [("moved", "from"), ("other/moved", "to")] {
        let file = disk.open(&dir.join(name), OpenMode::CreateNew).unwrap();
        write_all_at(&*file, 0, &mut [IoSlice::new(text.as_bytes())]).unwrap();
    }
    disk.rename(&dir.join("moved"), &dir.join("other/moved")).unwrap();
    assert_eq!(kind(disk.open(&dir.join("moved"), OpenMode::Read).map(drop)), io::ErrorKind::NotFound);
    assert_eq!(disk.open(&dir.join("other/moved"), OpenMode::Read).unwrap().read_at(0, 9).unwrap(), b"from");
    disk.remove_dir(&dir.join("other")).unwrap();

    let lock = disk.lock(&root.join("LOCK")).unwrap();
    assert_eq!(kind(disk.lock(&root.join("LOCK")).map(drop)), io::ErrorKind::WouldBlock);
    drop(lock);
    drop(disk.lock(&root.join("LOCK")).unwrap());

    let volume = disk.volume(root).unwrap();
    volume.sync().unwrap();
    assert!(volume.free_bytes().unwrap() > 0);
}

#[test]
fn the_real_disk_conforms() {
    let dir = tempfile::tempdir().unwrap();
    suite(&RealDisk, dir.path());
}

#[test]
fn the_memory_disk_conforms() {
    let disk = MemoryDisk::new();
    disk.create_dir(Path::new("/root")).unwrap();
    suite(&disk, Path::new("/root"));
}

#[test]
fn a_faulty_disk_without_rules_conforms() {
    let dir = tempfile::tempdir().unwrap();
    suite(&FaultyDisk::new(Arc::new(RealDisk)), dir.path());
}

#[test]
fn a_crash_loses_only_what_was_not_synced() {
    for seed in 0..200 {
        let disk = MemoryDisk::new();
        let (dir, path) = (Path::new("/d"), Path::new("/d/file"));
        disk.create_dir(dir).unwrap();
        disk.sync_dir(Path::new("/")).unwrap();
        let file = disk.open(path, OpenMode::CreateNew).unwrap();
        disk.sync_dir(dir).unwrap();
        write_all_at(&*file, 0, &mut [IoSlice::new(&[1; 3000])]).unwrap();
        file.sync_data().unwrap();
        write_all_at(&*file, 1500, &mut [IoSlice::new(&[2; 3000])]).unwrap();
        disk.open(Path::new("/d/unsynced"), OpenMode::CreateNew).unwrap();
        disk.crash(seed);
        assert!(file.read_at(0, 1).is_err(), "handles from before the crash are dead");
        let bytes = disk.contents(path).unwrap();
        assert_eq!(bytes[..1500], [1; 1500]);
        assert!(bytes[1500..3000].iter().all(|byte| [1, 2].contains(byte)));
        assert!(bytes.get(3000..).unwrap_or(&[]).iter().all(|byte| [0, 2].contains(byte)));
    }
}

#[test]
fn a_file_on_its_way_to_another_directory_survives_a_crash_in_one_of_them() {
    let mut places = std::collections::BTreeSet::new();
    for seed in 0..200 {
        let disk = MemoryDisk::new();
        let (dir, sub) = (Path::new("/d"), Path::new("/d/sub"));
        disk.create_dir(sub).unwrap();
        disk.open(Path::new("/d/file"), OpenMode::CreateNew).unwrap();
        disk.volume(dir).unwrap().sync().unwrap();
        disk.rename(Path::new("/d/file"), Path::new("/d/sub/file")).unwrap();
        if seed % 2 == 0 {
            disk.sync_dir(sub).unwrap();
        }
        disk.crash(seed);
        let is_there = |path: &str| disk.open(Path::new(path), OpenMode::Read).is_ok();
        let (old, new) = (is_there("/d/file"), is_there("/d/sub/file"));
        assert!(old || new, "seed {seed}");
        assert!(new || seed % 2 == 1, "seed {seed}: the new directory was synced");
        places.insert((old, new));
    }
    assert_eq!(places.len(), 3, "{places:?}");
}

#[test]
fn what_a_failed_flush_leaves_in_memory_is_gone_with_the_power_even_after_a_later_flush() {
    let disk = MemoryDisk::new();
    let path = Path::new("/file");
    let file = disk.open(path, OpenMode::CreateNew).unwrap();
    write_all_at(&*file, 0, &mut [IoSlice::new(b"one")]).unwrap();
    disk.sync_dir(Path::new("/")).unwrap();
    file.sync_data().unwrap();
    write_all_at(&*file, 3, &mut [IoSlice::new(b"two")]).unwrap();
    disk.fail_syncs(1);
    assert!(file.sync_data().is_err());
    write_all_at(&*file, 6, &mut [IoSlice::new(b"three")]).unwrap();
    file.sync_data().unwrap();
    assert_eq!(disk.contents(path).unwrap(), b"onetwothree");
    disk.crash(0);
    assert_eq!(disk.contents(path).unwrap(), b"one\0\0\0three");
}

#[test]
fn a_disk_loses_a_file_by_itself_and_takes_the_contents_of_another() {
    let disk = MemoryDisk::new();
    let (dir, path) = (Path::new("/d"), Path::new("/d/file"));
    disk.create_dir(dir).unwrap();
    disk.open(path, OpenMode::CreateNew).unwrap();
    disk.volume(dir).unwrap().sync().unwrap();
    let copy = disk.fork();
    let mounted = disk.mount();
    assert_eq!(disk.files(), [path]);
    disk.lose(path).unwrap();
    disk.crash(0);
    assert!(disk.files().is_empty());
    disk.replace_with(&copy);
    assert_eq!(disk.files(), [path]);
    assert!(mounted.list(dir).is_err(), "what was mounted before is dead");
}
