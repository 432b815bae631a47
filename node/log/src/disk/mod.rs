//! The interface to the disk: the only way in which the engine touches files.
//!
//! Everything the engine does to files goes through [`Disk`], so that the same engine runs on the real file system
//! ([`RealDisk`]), on one that can lose power ([`MemoryDisk`]) and on one that fails on demand ([`FaultyDisk`]).
//!
//! The rules that an implementation must keep (checked by the shared conformance suite):
//! - bytes written are visible to every reader at once, and durable only after [`DiskFile::sync_data`] or [`Volume::sync`];
//! - a name created, renamed or removed is durable only after [`Disk::sync_dir`] of its directory or [`Volume::sync`];
//! - a rename within one directory replaces its target atomically;
//! - a rename into another directory is durable once both directories are; before that a crash may leave the name in
//!   either or, when only the new directory was synced, in both.
//!
//! Imports nothing of the crate.

mod faulty;
mod memory;
mod real;

use std::{
    fmt,
    io::{self, IoSlice},
    path::Path,
    sync::Arc,
};

pub use faulty::{DiskOperation, Fault, FaultId, FaultRule, FaultyDisk, Trigger};
pub use memory::MemoryDisk;
pub use real::RealDisk;

/// How to open a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenMode {
    /// An existing file, for reading.
    Read,
    /// An existing file, for reading and writing.
    Write,
    /// A file that must not exist yet, for reading and writing.
    CreateNew,
    /// A file that is made empty if it exists, for reading and writing.
    Truncate,
}

/// One name in a directory.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct DirEntry {
    /// File name without the directory. Names that are not UTF-8 are left out of listings: the engine makes none.
    pub name: String,
    /// Whether it is a directory.
    pub is_dir: bool,
}

/// A file system.
pub trait Disk: fmt::Debug + Send + Sync + 'static {
    /// Opens or creates a file.
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>>;
    /// Creates a directory and its parents; fine if it exists.
    fn create_dir(&self, path: &Path) -> io::Result<()>;
    /// Names in a directory, in no particular order.
    fn list(&self, path: &Path) -> io::Result<Vec<DirEntry>>;
    /// Renames a file, or a directory within its directory, replacing a file at `to`.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    fn remove_file(&self, path: &Path) -> io::Result<()>;
    /// Removes a directory and everything in it.
    fn remove_dir(&self, path: &Path) -> io::Result<()>;
    /// Makes the names in a directory durable.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
    /// Takes an exclusive lock on a file, creating it. Held until the returned value is dropped.
    /// `ErrorKind::WouldBlock` when another process holds it.
    fn lock(&self, path: &Path) -> io::Result<Box<dyn DirLock>>;
    /// The volume that a directory lies on.
    fn volume(&self, dir: &Path) -> io::Result<Arc<dyn Volume>>;
}

/// An open file. Reads and writes name their position; there is no cursor.
pub trait DiskFile: fmt::Debug + Send + Sync + 'static {
    /// Reads `len` bytes from `position`; fewer only when the file ends before.
    fn read_at(&self, position: u64, len: usize) -> io::Result<Vec<u8>>;
    /// Writes the slices (at most [`MAX_SLICES`]) one after the other from `position` on. Returns the number of bytes written, which may be short.
    fn write_at(&self, position: u64, slices: &[IoSlice<'_>]) -> io::Result<usize>;
    /// Makes the file's bytes and length durable. After an error the state of unsynced bytes is unknown.
    fn sync_data(&self) -> io::Result<()>;
    /// Cuts or extends (with zeros) the file.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Whether the file has no bytes.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
    /// Asks for the file's clean pages to leave the page cache, so that the next read sees the disk. Only a hint, and slow
    /// for other readers of the file at that moment.
    fn forget_cached(&self) -> io::Result<()> {
        Ok(())
    }
    /// The whole file as memory. Only for files that are never changed after they got their name.
    fn map(&self) -> io::Result<Box<dyn FileMap>>;
}

/// A read-only view of a whole file.
pub trait FileMap: Send + Sync + 'static {
    /// The bytes.
    fn bytes(&self) -> &[u8];
}

/// A held directory lock; dropping it releases the lock.
pub trait DirLock: fmt::Debug + Send + Sync + 'static {}

/// A mounted volume, held open from the start so that write-back errors since then are reported.
pub trait Volume: fmt::Debug + Send + Sync + 'static {
    /// Makes everything written to the volume durable. Where [`Volume::reports_write_errors`] holds, it reports errors of any
    /// write-back since the last call.
    fn sync(&self) -> io::Result<()>;
    /// Whether [`Volume::sync`] returns an error whenever something could not be written. Elsewhere files are made durable with
    /// [`DiskFile::sync_data`].
    fn reports_write_errors(&self) -> bool;
    /// Bytes that an unprivileged process may still write.
    fn free_bytes(&self) -> io::Result<u64>;
    /// Size of the volume in bytes.
    fn size_bytes(&self) -> io::Result<u64>;
    /// Whether the directory is the root of the volume, so that the volume holds no other data.
    fn is_dedicated(&self) -> bool;
}

/// Most slices that one [`DiskFile::write_at`] takes: Linux's `IOV_MAX`.
pub const MAX_SLICES: usize = 1024;

/// Writes all slices from `position` on, whatever their number and however short the writes.
pub fn write_all_at(file: &dyn DiskFile, mut position: u64, mut slices: &mut [IoSlice<'_>]) -> io::Result<()> {
    IoSlice::advance_slices(&mut slices, 0);
    while !slices.is_empty() {
        let batch = slices.len().min(MAX_SLICES);
        match file.write_at(position, &slices[..batch]) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => {
                position += written as u64;
                IoSlice::advance_slices(&mut slices, written);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
