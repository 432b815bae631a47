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
    fs::{Advice, FlockOperation, fadvise, fdatasync, flock, fstatfs, fstatvfs, syncfs},
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
    reports_write_errors: bool,
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
        // What cannot be read counts as too old.
        let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let reports_write_errors = syncfs_reports_errors(&release, fstatfs(&file)?.f_type as u64);
        Ok(Arc::new(RealVolume { dir: file, dedicated, reports_write_errors }))
    }
}

/// First kernel whose `syncfs` reports every failed write: 5.8 began to report failed write-back of data, 5.17 failures of the
/// file system's own commit.
const SYNCFS_REPORTS: (u32, u32) = (5, 17);

/// File systems whose `syncfs` is known to report what their disk reports: ext2 to ext4, XFS, Btrfs, F2FS. Overlayfs, for
/// example, does not pass on the errors of the file system below it, and FUSE those of its server.
const FILE_SYSTEMS: [u64; 4] = [0xef53, 0x5846_5342, 0x9123_683e, 0xf2f5_2010];

/// Whether `syncfs` returns an error whenever something could not be written, by the kernel's release, such as `6.1.0-18-amd64`,
/// and the type of the file system as in `statfs(2)`.
fn syncfs_reports_errors(release: &str, file_system: u64) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|number| number.parse::<u32>().ok());
    let kernel = numbers.next().zip(numbers.next());
    kernel.is_some_and(|kernel| kernel >= SYNCFS_REPORTS) && FILE_SYSTEMS.contains(&file_system)
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

    fn reports_write_errors(&self) -> bool {
        self.reports_write_errors
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn syncfs_is_trusted_only_where_it_reports_errors() {
        const EXT4: u64 = 0xef53;
        const OVERLAYFS: u64 = 0x794c_7630;
        for (release, file_system, reports) in [
            ("6.1.0-18-amd64\n", EXT4, true),
            ("5.17.0", EXT4, true),
            ("10.0", EXT4, true),
            ("5.15.0-91-generic", EXT4, false),
            ("5.7.19", EXT4, false),
            ("4.18.0-513.el8", EXT4, false),
            ("6.1.0-18-amd64", 0x5846_5342, true),
            ("6.1.0-18-amd64", OVERLAYFS, false),
            ("6.1.0-18-amd64", 0, false),
            ("", EXT4, false),
            ("6", EXT4, false),
            ("unknown 6.1", EXT4, false),
        ] {
            assert_eq!(syncfs_reports_errors(release, file_system), reports, "{release} {file_system:x}");
        }
    }
}
