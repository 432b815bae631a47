//! A file system that fails on demand, around any other.
//!
//! Rules say which operation on which paths fails, when and how. The first rule that matches and is due decides.
//!
//! Knows only `disk/mod.rs` of the crate.
//!
//! ```
//! # use std::sync::Arc;
//! # use chronicle_log::disk::{Fault, FaultRule, FaultyDisk, MemoryDisk, DiskOperation, Trigger};
//! let disk = FaultyDisk::new(Arc::new(MemoryDisk::new()));
//! let full = disk.add(FaultRule::new(DiskOperation::Write, Fault::NO_SPACE).path("/logs/").when(Trigger::Always));
//! // ... every write below logs/ now fails with ENOSPC ...
//! disk.remove(full);
//! ```

use std::{
    io::{self, IoSlice},
    path::{Path, PathBuf},
    sync::Arc,
};

use parking_lot::{Condvar, Mutex};

use super::{DirEntry, DirLock, Disk, DiskFile, FileMap, OpenMode, Volume};

/// What an operation does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskOperation {
    /// Opening an existing file.
    Open,
    /// Creating a file or directory, or taking a lock.
    Create,
    /// Reading bytes.
    Read,
    /// Writing bytes.
    Write,
    /// Making a file or, with the path of the data directory, the volume durable.
    Sync,
    /// Making a directory durable.
    SyncDir,
    /// Changing a file's length.
    SetLen,
    /// Renaming.
    Rename,
    /// Removing a file or directory.
    Remove,
    /// Anything that changes the disk (all of the above but `Open` and `Read`).
    Change,
}

/// How a matching operation fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// With this error number; nothing is done.
    Errno(i32),
    /// A write writes at most this many bytes and succeeds. For other operations: no fault.
    ShortWrite(usize),
    /// A write writes this many bytes (at most), then the *next* call sees the error number: this is how a disk fills up.
    /// For other operations: the error at once.
    Partial(usize, i32),
    /// It waits until the rule is removed, and is done then: a disk that hangs. Blocks the calling thread.
    Hang,
}

impl Fault {
    /// The volume is full.
    pub const NO_SPACE: Self = Self::Errno(rustix::io::Errno::NOSPC.raw_os_error());
    /// The device failed.
    pub const IO_ERROR: Self = Self::Errno(rustix::io::Errno::IO.raw_os_error());
    /// The volume is mounted read-only.
    pub const READ_ONLY: Self = Self::Errno(rustix::io::Errno::ROFS.raw_os_error());
}

/// When a matching operation fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trigger {
    /// Every time, until the rule is removed.
    Always,
    /// The n-th matching operation only, counted from 1.
    Nth(u64),
    /// The n-th matching operation and every later one.
    From(u64),
}

/// One rule of a [`FaultyDisk`].
#[derive(Debug, Clone)]
pub struct FaultRule {
    operation: DiskOperation,
    path_contains: Option<String>,
    trigger: Trigger,
    fault: Fault,
    seen: u64,
}

impl FaultRule {
    /// A rule for every path that fires every time.
    pub fn new(operation: DiskOperation, fault: Fault) -> Self {
        Self { operation, path_contains: None, trigger: Trigger::Always, fault, seen: 0 }
    }

    /// Limits the rule to paths whose text contains `part`.
    pub fn path(mut self, part: impl Into<String>) -> Self {
        self.path_contains = Some(part.into());
        self
    }

    /// Sets when the rule fires.
    pub fn when(mut self, trigger: Trigger) -> Self {
        self.trigger = trigger;
        self
    }

    fn matches(&self, operation: DiskOperation, path: &Path) -> bool {
        let changes = !matches!(operation, DiskOperation::Open | DiskOperation::Read);
        (self.operation == operation || (self.operation == DiskOperation::Change && changes))
            && self.path_contains.as_ref().is_none_or(|part| path.to_string_lossy().contains(part.as_str()))
    }
}

/// Names a rule, to remove it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FaultId(u64);

/// A disk whose operations fail by its rules; clones share the rules.
#[derive(Debug, Clone)]
pub struct FaultyDisk {
    inner: Arc<dyn Disk>,
    rules: Arc<Mutex<Rules>>,
    removed: Arc<Condvar>,
}

#[derive(Debug, Default)]
struct Rules {
    next_id: u64,
    rules: Vec<(u64, FaultRule)>,
    fired: u64,
}

impl FaultyDisk {
    /// A disk that passes everything on until a rule is added.
    pub fn new(inner: Arc<dyn Disk>) -> Self {
        Self { inner, rules: Arc::default(), removed: Arc::default() }
    }

    /// Adds a rule; its count of matching operations starts now.
    pub fn add(&self, rule: FaultRule) -> FaultId {
        let mut rules = self.rules.lock();
        let id = rules.next_id;
        rules.next_id += 1;
        rules.rules.push((id, rule));
        FaultId(id)
    }

    /// Removes a rule.
    pub fn remove(&self, id: FaultId) {
        self.rules.lock().rules.retain(|(found, _)| *found != id.0);
        self.removed.notify_all();
    }

    /// Removes every rule.
    pub fn heal(&self) {
        self.rules.lock().rules.clear();
        self.removed.notify_all();
    }

    /// How many operations were made to fail so far.
    pub fn fired(&self) -> u64 {
        self.rules.lock().fired
    }

    /// The fault of an operation. Waits while the disk hangs.
    fn fault(&self, operation: DiskOperation, path: &Path) -> Option<Fault> {
        let mut rules = self.rules.lock();
        let mut due = None;
        let mut hangs = None;
        for (id, rule) in &mut rules.rules {
            if rule.matches(operation, path) {
                rule.seen += 1;
                let fires = match rule.trigger {
                    Trigger::Always => true,
                    Trigger::Nth(n) => rule.seen == n,
                    Trigger::From(n) => rule.seen >= n,
                };
                if fires && due.is_none() {
                    hangs = (rule.fault == Fault::Hang).then_some(*id);
                    if let Fault::Partial(_, errno) = rule.fault {
                        due = Some(rule.fault);
                        rule.fault = Fault::Errno(errno);
                        rule.trigger = Trigger::Always;
                    } else {
                        due = Some(rule.fault);
                    }
                }
            }
        }
        rules.fired += u64::from(due.is_some());
        if let Some(id) = hangs {
            self.removed.wait_while(&mut rules, |rules| rules.rules.iter().any(|(found, _)| *found == id));
            return None;
        }
        due
    }

    fn check(&self, operation: DiskOperation, path: &Path) -> io::Result<()> {
        match self.fault(operation, path) {
            Some(Fault::Errno(errno) | Fault::Partial(_, errno)) => Err(io::Error::from_raw_os_error(errno)),
            Some(Fault::ShortWrite(_) | Fault::Hang) | None => Ok(()),
        }
    }
}

#[derive(Debug)]
struct FaultyFile {
    disk: FaultyDisk,
    path: PathBuf,
    inner: Arc<dyn DiskFile>,
}

impl Disk for FaultyDisk {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        let creates = matches!(mode, OpenMode::CreateNew | OpenMode::Truncate);
        self.check(if creates { DiskOperation::Create } else { DiskOperation::Open }, path)?;
        let inner = self.inner.open(path, mode)?;
        Ok(Arc::new(FaultyFile { disk: self.clone(), path: path.to_owned(), inner }))
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        // Making a directory that exists changes nothing and works on a read-only volume.
        if self.inner.list(path).is_err() {
            self.check(DiskOperation::Create, path)?;
        }
        self.inner.create_dir(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<DirEntry>> {
        self.check(DiskOperation::Read, path)?;
        self.inner.list(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.check(DiskOperation::Rename, to)?;
        self.inner.rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.check(DiskOperation::Remove, path)?;
        self.inner.remove_file(path)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.check(DiskOperation::Remove, path)?;
        self.inner.remove_dir(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.check(DiskOperation::SyncDir, path)?;
        self.inner.sync_dir(path)
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn DirLock>> {
        self.check(DiskOperation::Create, path)?;
        self.inner.lock(path)
    }

    fn volume(&self, dir: &Path) -> io::Result<Arc<dyn Volume>> {
        let inner = self.inner.volume(dir)?;
        Ok(Arc::new(FaultyVolume { disk: self.clone(), path: dir.to_owned(), inner }))
    }
}

impl DiskFile for FaultyFile {
    fn read_at(&self, position: u64, len: usize) -> io::Result<Vec<u8>> {
        self.disk.check(DiskOperation::Read, &self.path)?;
        self.inner.read_at(position, len)
    }

    fn write_at(&self, position: u64, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match self.disk.fault(DiskOperation::Write, &self.path) {
            Some(Fault::Hang) | None => self.inner.write_at(position, slices),
            Some(Fault::Errno(errno) | Fault::Partial(0, errno)) => Err(io::Error::from_raw_os_error(errno)),
            Some(Fault::ShortWrite(most) | Fault::Partial(most, _)) => {
                let mut bytes: Vec<u8> = slices.iter().flat_map(|slice| slice.iter().copied()).collect();
                bytes.truncate(most.max(1));
                self.inner.write_at(position, &[IoSlice::new(&bytes)])
            }
        }
    }

    fn sync_data(&self) -> io::Result<()> {
        self.disk.check(DiskOperation::Sync, &self.path)?;
        self.inner.sync_data()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.disk.check(DiskOperation::SetLen, &self.path)?;
        self.inner.set_len(len)
    }

    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn forget_cached(&self) -> io::Result<()> {
        self.inner.forget_cached()
    }

    fn map(&self) -> io::Result<Box<dyn FileMap>> {
        self.disk.check(DiskOperation::Read, &self.path)?;
        self.inner.map()
    }
}

#[derive(Debug)]
struct FaultyVolume {
    disk: FaultyDisk,
    path: PathBuf,
    inner: Arc<dyn Volume>,
}

impl Volume for FaultyVolume {
    fn sync(&self) -> io::Result<()> {
        self.disk.check(DiskOperation::Sync, &self.path)?;
        self.inner.sync()
    }

    fn reports_write_errors(&self) -> bool {
        self.inner.reports_write_errors()
    }

    fn free_bytes(&self) -> io::Result<u64> {
        self.inner.free_bytes()
    }

    fn size_bytes(&self) -> io::Result<u64> {
        self.inner.size_bytes()
    }

    fn is_dedicated(&self) -> bool {
        self.inner.is_dedicated()
    }
}
