//! The operating system's file system, through rustix.
//!
//! Promise: keeps the rules in `disk/mod.rs`, which is all of the crate that it knows. One of the two files with `unsafe` code: it
//! maps index files.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, IoSlice},
    os::unix::fs::MetadataExt,
    path::Path,
    sync::Arc,
};

use rustix::{
    buffer::spare_capacity,
    fs::{Advice, FlockOperation, fadvise, fdatasync, flock, fstatvfs, syncfs},
    io::{Errno, pread, pwritev},
};

use super::{DirEntry, DirLock, Disk, DiskFile, FileMap, OpenMode, Volume};

/// The real file system.
#[derive(Debug, Default, Clone, Copy)]
pub struct RealDisk;

#[derive(Debug)]
struct RealFile(File);

#[derive(Debug)]
struct RealLock(#[expect(dead_code, reason = "holds the lock until dropped")] File);

#[derive(Debug)]
struct RealVolume {
    dir: File,
    dedicated: bool,
}

struct RealMap(memmap2::Mmap);

impl Disk for RealDisk {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        let mut options = OpenOptions::new();
        options.read(true);
        match mode {
            OpenMode::Read => &mut options,
            OpenMode::Write => options.write(true),
            OpenMode::CreateNew => options.write(true).create_new(true),
            OpenMode::Truncate => options.write(true).create(true).truncate(true),
        };
        Ok(Arc::new(RealFile(options.open(path)?)))
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        fs::create_dir_all(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<DirEntry>> {
        let mut entries = Vec::new();
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            if let Ok(name) = entry.file_name().into_string() {
                entries.push(DirEntry { name, is_dir: entry.file_type()?.is_dir() });
            }
        }
        Ok(entries)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir_all(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn DirLock>> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Box::new(RealLock(file))),
            Err(Errno::WOULDBLOCK) => Err(io::ErrorKind::WouldBlock.into()),
            Err(error) => Err(error.into()),
        }
    }

    fn volume(&self, dir: &Path) -> io::Result<Arc<dyn Volume>> {
        let file = File::open(dir)?;
        let parent = dir.canonicalize()?.parent().map(fs::metadata).transpose()?;
        let dedicated =
            parent.is_some_and(|parent| parent.dev() != file.metadata().map_or(parent.dev(), |own| own.dev()));
        Ok(Arc::new(RealVolume { dir: file, dedicated }))
    }
}

impl DiskFile for RealFile {
    fn read_at(&self, position: u64, len: usize) -> io::Result<Vec<u8>> {
        let mut buffer = Vec::with_capacity(len);
        while buffer.len() < len {
            let at = position + buffer.len() as u64;
            match pread(&self.0, spare_capacity(&mut buffer), at) {
                Ok(0) => break,
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        // The allocator may have given more room than asked for.
        buffer.truncate(len);
        Ok(buffer)
    }

    fn write_at(&self, position: u64, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        Ok(pwritev(&self.0, slices, position)?)
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(fdatasync(&self.0)?)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn forget_cached(&self) -> io::Result<()> {
        Ok(fadvise(&self.0, 0, None, Advice::DontNeed)?)
    }

    fn map(&self) -> io::Result<Box<dyn FileMap>> {
        // SAFETY: the engine maps only index files, which it writes under a temporary name and never changes or
        // shortens after the rename that gives them their name (a replacement is a new file). Another process that
        // shortens such a file could make a read fault; the data directory is locked and owned by this process.
        let map = unsafe { memmap2::Mmap::map(&self.0)? };
        Ok(Box::new(RealMap(map)))
    }
}

impl FileMap for RealMap {
    fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl DirLock for RealLock {}

impl Volume for RealVolume {
    fn sync(&self) -> io::Result<()> {
        Ok(syncfs(&self.dir)?)
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let stat = fstatvfs(&self.dir)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    fn size_bytes(&self) -> io::Result<u64> {
        let stat = fstatvfs(&self.dir)?;
        Ok(stat.f_blocks.saturating_mul(stat.f_frsize))
    }

    fn is_dedicated(&self) -> bool {
        self.dedicated
    }
}
