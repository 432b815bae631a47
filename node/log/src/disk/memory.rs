//! A file system in memory that can lose power.
//!
//! [`MemoryDisk::crash`] forgets, keeps or tears everything that was not synced, at random from a seed: each 512-byte
//! sector of each write survives or not on its own, in any order, as on a real disk behind a page cache; each change of
//! a directory survives or not on its own.
//!
//! Invariant: the same history and the same seed give the same outcome. Knows only `disk/mod.rs` of the crate.

use std::{
    collections::{BTreeMap, HashMap},
    ffi::OsString,
    fmt,
    io::{self, IoSlice},
    path::{Component, Path, PathBuf},
    sync::Arc,
};

use parking_lot::{Mutex, MutexGuard};

use super::{DirEntry, DirLock, Disk, DiskFile, FileMap, OpenMode, Volume};

const SECTOR: u64 = 512;

/// A file system in memory; clones share it.
#[derive(Debug, Clone)]
pub struct MemoryDisk {
    state: Arc<Mutex<FileSystem>>,
    /// The handle fails once the file system has another epoch.
    mounted: Option<u64>,
}

struct FileSystem {
    nodes: HashMap<u64, Inode>,
    next_node: u64,
    next_rename: u64,
    /// Increased by each crash: handles from before it are dead.
    epoch: u64,
    /// The power goes at the n-th change, with a seed.
    fuse: Option<(u64, u64)>,
    /// So many flushes of files and volumes from now on fail.
    failing_syncs: u64,
    locks: HashMap<PathBuf, u64>,
    free_bytes: u64,
    dedicated: bool,
    reports_write_errors: bool,
}

/// Size of every volume in memory.
const VOLUME_BYTES: u64 = 1 << 40;

#[derive(Debug)]
enum Inode {
    File(FileNode),
    Dir(DirNode),
}

#[derive(Debug, Default)]
struct FileNode {
    bytes: Vec<u8>,
    durable: Vec<u8>,
    unsynced: Vec<FileChange>,
    /// A flush failed: `bytes` may hold what the disk will not get.
    lost: bool,
}

#[derive(Debug)]
enum FileChange {
    Write { position: u64, bytes: Vec<u8> },
    SetLen(u64),
}

#[derive(Debug, Default)]
struct DirNode {
    names: BTreeMap<OsString, u64>,
    durable: BTreeMap<OsString, u64>,
    unsynced: Vec<NameChange>,
}

/// One atomic change of a directory: names that go, then names that come.
#[derive(Debug)]
struct NameChange {
    gone: Option<OsString>,
    come: Option<(OsString, u64)>,
    /// Names the rename between two directories that this is one half of: a crash keeps or loses both.
    half_of: Option<u64>,
}

/// SplitMix64 (Steele, Lea, Flood 2014): tiny, seedable, good enough to choose what a crash loses.
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.next().is_multiple_of(n)
    }
}

const ROOT: u64 = 0;

impl Default for MemoryDisk {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryDisk {
    /// An empty file system.
    pub fn new() -> Self {
        let nodes = HashMap::from([(ROOT, Inode::Dir(DirNode::default()))]);
        let state = FileSystem {
            nodes,
            next_node: 1,
            next_rename: 0,
            epoch: 0,
            fuse: None,
            failing_syncs: 0,
            locks: HashMap::new(),
            free_bytes: VOLUME_BYTES,
            dedicated: true,
            reports_write_errors: true,
        };
        Self { state: Arc::new(Mutex::new(state)), mounted: None }
    }

    /// Loses power: everything unsynced is lost, kept or torn as `seed` decides, locks are released, and every open handle
    /// fails from now on. The same history and seed give the same outcome.
    pub fn crash(&self, seed: u64) {
        self.state.lock().crash(seed);
    }

    /// Loses power, as [`MemoryDisk::crash`], in place of the `change`-th change from now on (counted from 1; flushes count):
    /// in the middle of whatever its process is doing then. A crash before that cancels it.
    pub fn crash_at(&self, change: u64, seed: u64) {
        self.state.lock().fuse = Some((change, seed));
    }

    /// The same file system as one machine sees it until the next [`MemoryDisk::crash`]: from then on everything done through
    /// what this returns fails, as if its process had gone with the power.
    pub fn mount(&self) -> Self {
        let epoch = self.state.lock().epoch;
        Self { state: self.state.clone(), mounted: Some(epoch) }
    }

    /// For an operation that changes something.
    fn changing(&self) -> io::Result<MutexGuard<'_, FileSystem>> {
        let mut state = self.alive()?;
        state.burn()?;
        Ok(state)
    }

    fn alive(&self) -> io::Result<MutexGuard<'_, FileSystem>> {
        let state = self.state.lock();
        match self.mounted {
            Some(epoch) if epoch != state.epoch => Err(io::Error::other("the disk lost power since it was mounted")),
            _ => Ok(state),
        }
    }

    /// Sets what [`Volume::free_bytes`] reports.
    pub fn set_free_bytes(&self, bytes: u64) {
        self.state.lock().free_bytes = bytes;
    }

    /// Sets what [`Volume::reports_write_errors`] reports of volumes opened from now on. Initially true.
    pub fn set_reports_write_errors(&self, reports: bool) {
        self.state.lock().reports_write_errors = reports;
    }

    /// Sets what [`Volume::is_dedicated`] reports of volumes opened from now on. Initially true.
    pub fn set_dedicated(&self, dedicated: bool) {
        self.state.lock().dedicated = dedicated;
    }

    /// All bytes of a file as a reader sees them.
    pub fn contents(&self, path: &Path) -> io::Result<Vec<u8>> {
        let mut state = self.state.lock();
        let id = state.resolve(path)?;
        Ok(state.file(id)?.bytes.clone())
    }

    /// Replaces a file's bytes, durably, as if the disk had changed by itself.
    pub fn overwrite(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.state.lock();
        let id = state.resolve(path)?;
        let file = state.file(id)?;
        *file = FileNode { bytes: bytes.to_vec(), durable: bytes.to_vec(), unsynced: Vec::new(), lost: false };
        Ok(())
    }

    /// Lets the next `count` flushes of a file or of the volume fail, as the page cache of Linux does: what they should have
    /// written can still be read, counts as clean from then on, and is gone with the power.
    pub fn fail_syncs(&self, count: u64) {
        self.state.lock().failing_syncs = count;
    }

    /// Every file by its path, in the order of the paths, as a reader sees them.
    pub fn files(&self) -> Vec<PathBuf> {
        let state = self.state.lock();
        let mut files = Vec::new();
        let mut dirs = vec![(PathBuf::from("/"), ROOT)];
        while let Some((path, id)) = dirs.pop() {
            let Some(Inode::Dir(dir)) = state.nodes.get(&id) else { continue };
            for (name, id) in &dir.names {
                let path = path.join(name);
                match state.nodes.get(id) {
                    Some(Inode::Dir(_)) => dirs.push((path, *id)),
                    Some(Inode::File(_)) => files.push(path),
                    None => {}
                }
            }
        }
        files.sort_unstable();
        files
    }

    /// Removes a name, durably, as if the disk had lost it by itself.
    pub fn lose(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        state.resolve(path)?;
        let (dir, name) = state.parent(path)?;
        dir.change(NameChange { gone: Some(name), come: None, half_of: None });
        dir.sync();
        Ok(())
    }

    /// Puts the contents of another file system in the place of this one's, durably: a disk that was replaced, or set back to
    /// a copy. Every handle fails from now on.
    pub fn replace_with(&self, other: &Self) {
        let copy = other.fork();
        let mut copy = copy.state.lock();
        let mut state = self.state.lock();
        state.epoch += 1;
        state.fuse = None;
        state.failing_syncs = 0;
        state.locks.clear();
        state.nodes = std::mem::take(&mut copy.nodes);
        state.next_node = copy.next_node;
        state.next_rename = copy.next_rename;
    }

    /// An independent copy of the whole file system, with no handle and no lock on it.
    pub fn fork(&self) -> Self {
        let state = self.state.lock();
        let copy = |node: &Inode| match node {
            Inode::File(file) => Inode::File(FileNode {
                bytes: file.bytes.clone(),
                durable: file.bytes.clone(),
                unsynced: Vec::new(),
                lost: false,
            }),
            Inode::Dir(dir) => {
                Inode::Dir(DirNode { names: dir.names.clone(), durable: dir.names.clone(), unsynced: Vec::new() })
            }
        };
        let nodes = state.nodes.iter().map(|(id, node)| (*id, copy(node))).collect();
        let forked = FileSystem {
            nodes,
            next_node: state.next_node,
            next_rename: state.next_rename,
            epoch: 0,
            fuse: None,
            failing_syncs: 0,
            locks: HashMap::new(),
            free_bytes: state.free_bytes,
            dedicated: state.dedicated,
            reports_write_errors: state.reports_write_errors,
        };
        Self { state: Arc::new(Mutex::new(forked)), mounted: None }
    }
}

impl FileNode {
    fn crash(&mut self, fate: u64, random: &mut SplitMix) {
        self.lost = false;
        let mut bytes = std::mem::take(&mut self.durable);
        for change in self.unsynced.drain(..) {
            let keep = match fate {
                0 => false,
                1 => true,
                _ => random.one_in(2),
            };
            match change {
                FileChange::SetLen(len) if keep => bytes.resize(len as usize, 0),
                FileChange::SetLen(_) => {}
                FileChange::Write { position, bytes: written } => {
                    let torn = fate >= 2 && random.one_in(2);
                    if !keep && !torn {
                        continue;
                    }
                    let end = position + written.len() as u64;
                    if bytes.len() < end as usize {
                        bytes.resize(end as usize, 0);
                    }
                    let mut at = position;
                    while at < end {
                        let stop = ((at / SECTOR + 1) * SECTOR).min(end);
                        if !torn || random.one_in(2) {
                            bytes[at as usize..stop as usize]
                                .copy_from_slice(&written[(at - position) as usize..(stop - position) as usize]);
                        }
                        at = stop;
                    }
                }
            }
        }
        self.durable.clone_from(&bytes);
        self.bytes = bytes;
    }

    fn sync(&mut self) {
        let changes = std::mem::take(&mut self.unsynced);
        if !self.lost && changes.len() > 16 {
            return self.durable.clone_from(&self.bytes);
        }
        for change in changes {
            match change {
                FileChange::SetLen(len) => self.durable.resize(len as usize, 0),
                FileChange::Write { position, bytes } => {
                    let (start, end) = (position as usize, position as usize + bytes.len());
                    if self.durable.len() < end {
                        self.durable.resize(end, 0);
                    }
                    self.durable[start..end].copy_from_slice(&bytes);
                }
            }
        }
    }

    /// A flush fails: what waits for it stays readable and never reaches the disk.
    fn fail_sync(&mut self) {
        self.lost |= !self.unsynced.is_empty();
        self.unsynced.clear();
    }
}

impl DirNode {
    fn apply(names: &mut BTreeMap<OsString, u64>, change: &NameChange) {
        if let Some(gone) = &change.gone {
            names.remove(gone);
        }
        if let Some((name, id)) = &change.come {
            names.insert(name.clone(), *id);
        }
    }

    fn change(&mut self, change: NameChange) {
        Self::apply(&mut self.names, &change);
        self.unsynced.push(change);
    }

    fn crash(&mut self, fate: u64, seed: u64, random: &mut SplitMix) {
        for change in self.unsynced.drain(..) {
            let keep = match (fate, change.half_of) {
                (0, _) => false,
                (1, _) => true,
                (_, Some(rename)) => SplitMix(seed ^ rename.rotate_left(32)).one_in(2),
                (_, None) => random.one_in(2),
            };
            if keep {
                Self::apply(&mut self.durable, &change);
            }
        }
        self.names.clone_from(&self.durable);
    }

    fn sync(&mut self) {
        self.durable.clone_from(&self.names);
        self.unsynced.clear();
    }
}

fn not_found() -> io::Error {
    io::ErrorKind::NotFound.into()
}

impl fmt::Debug for FileSystem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileSystem")
            .field("nodes", &self.nodes.len())
            .field("epoch", &self.epoch)
            .finish_non_exhaustive()
    }
}

impl FileSystem {
    fn crash(&mut self, seed: u64) {
        self.epoch += 1;
        self.fuse = None;
        self.failing_syncs = 0;
        self.locks.clear();
        let mut random = SplitMix(seed);
        // How much survives differs between crashes: often nothing, often everything, else a mixture.
        let fate = random.next() % 4;
        let mut ids: Vec<u64> = self.nodes.keys().copied().collect();
        ids.sort_unstable();
        for id in ids {
            match self.nodes.get_mut(&id) {
                Some(Inode::File(file)) => file.crash(fate, &mut random),
                Some(Inode::Dir(dir)) => dir.crash(fate, seed, &mut random),
                None => {}
            }
        }
    }

    /// Counts a change, which does not happen if it is the one at which the power goes.
    fn burn(&mut self) -> io::Result<()> {
        match &mut self.fuse {
            Some((left, seed)) if *left <= 1 => {
                let seed = *seed;
                self.crash(seed);
                Err(io::Error::other("the disk lost power"))
            }
            Some((left, _)) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Counts a flush, which is to fail when this returns true.
    fn sync_fails(&mut self) -> bool {
        let fails = self.failing_syncs > 0;
        self.failing_syncs -= u64::from(fails);
        fails
    }

    fn resolve(&self, path: &Path) -> io::Result<u64> {
        let mut at = ROOT;
        for part in path.components() {
            if let Component::Normal(name) = part {
                let Some(Inode::Dir(dir)) = self.nodes.get(&at) else {
                    return Err(io::ErrorKind::NotADirectory.into());
                };
                at = *dir.names.get(name).ok_or_else(not_found)?;
            }
        }
        Ok(at)
    }

    fn file(&mut self, id: u64) -> io::Result<&mut FileNode> {
        match self.nodes.get_mut(&id) {
            Some(Inode::File(file)) => Ok(file),
            Some(Inode::Dir(_)) => Err(io::ErrorKind::IsADirectory.into()),
            None => Err(not_found()),
        }
    }

    fn dir(&mut self, id: u64) -> io::Result<&mut DirNode> {
        match self.nodes.get_mut(&id) {
            Some(Inode::Dir(dir)) => Ok(dir),
            Some(Inode::File(_)) => Err(io::ErrorKind::NotADirectory.into()),
            None => Err(not_found()),
        }
    }

    fn parent(&mut self, path: &Path) -> io::Result<(&mut DirNode, OsString)> {
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
        let id = self.resolve(path.parent().unwrap_or(Path::new("/")))?;
        Ok((self.dir(id)?, name))
    }

    fn add(&mut self, path: &Path, node: Inode) -> io::Result<u64> {
        let id = self.next_node;
        let (dir, name) = self.parent(path)?;
        dir.change(NameChange { gone: None, come: Some((name, id)), half_of: None });
        self.next_node += 1;
        self.nodes.insert(id, node);
        Ok(id)
    }
}

#[derive(Debug)]
struct MemoryFile {
    state: Arc<Mutex<FileSystem>>,
    node: u64,
    epoch: u64,
    writable: bool,
}

impl MemoryFile {
    fn alive(&self) -> io::Result<MutexGuard<'_, FileSystem>> {
        let state = self.state.lock();
        if state.epoch != self.epoch {
            return Err(io::Error::other("the disk lost power since this file was opened"));
        }
        Ok(state)
    }

    fn with<T>(&self, run: impl FnOnce(&mut FileNode) -> io::Result<T>) -> io::Result<T> {
        run(self.alive()?.file(self.node)?)
    }

    fn write<T>(&self, run: impl FnOnce(&mut FileNode) -> io::Result<T>) -> io::Result<T> {
        if !self.writable {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        self.change(run)
    }

    fn change<T>(&self, run: impl FnOnce(&mut FileNode) -> io::Result<T>) -> io::Result<T> {
        let mut state = self.alive()?;
        state.burn()?;
        run(state.file(self.node)?)
    }
}

impl Disk for MemoryDisk {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = match mode {
            OpenMode::Read | OpenMode::Write => self.alive()?,
            OpenMode::CreateNew | OpenMode::Truncate => self.changing()?,
        };
        let found = match state.resolve(path) {
            Ok(id) => Some(id),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        let node = match (mode, found) {
            (OpenMode::Read | OpenMode::Write, Some(id)) => id,
            (OpenMode::Read | OpenMode::Write, None) => return Err(not_found()),
            (OpenMode::CreateNew, Some(_)) => return Err(io::ErrorKind::AlreadyExists.into()),
            (OpenMode::Truncate, Some(id)) => {
                let file = state.file(id)?;
                file.bytes.clear();
                file.unsynced.push(FileChange::SetLen(0));
                id
            }
            (OpenMode::CreateNew | OpenMode::Truncate, None) => state.add(path, Inode::File(FileNode::default()))?,
        };
        state.file(node)?;
        let epoch = state.epoch;
        Ok(Arc::new(MemoryFile { state: self.state.clone(), node, epoch, writable: mode != OpenMode::Read }))
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        let mut state = self.changing()?;
        let mut so_far = PathBuf::new();
        for part in path.components() {
            so_far.push(part);
            if !matches!(part, Component::Normal(_)) {
                continue;
            }
            match state.resolve(&so_far) {
                Ok(id) => drop(state.dir(id)?),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    state.add(&so_far, Inode::Dir(DirNode::default()))?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn list(&self, path: &Path) -> io::Result<Vec<DirEntry>> {
        let mut state = self.alive()?;
        let id = state.resolve(path)?;
        let names = state.dir(id)?.names.clone();
        let entry = |(name, id): (OsString, u64)| {
            let is_dir = matches!(state.nodes.get(&id), Some(Inode::Dir(_)));
            name.into_string().ok().map(|name| DirEntry { name, is_dir })
        };
        Ok(names.into_iter().filter_map(entry).collect())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.changing()?;
        let id = state.resolve(from)?;
        if from.parent() == to.parent() {
            let target = to.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
            let (dir, name) = state.parent(from)?;
            dir.change(NameChange { gone: Some(name), come: Some((target, id)), half_of: None });
            return Ok(());
        }
        if matches!(state.nodes.get(&id), Some(Inode::Dir(_))) {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "directories stay in their directory"));
        }
        let half_of = Some(state.next_rename);
        state.next_rename += 1;
        let (dir, target) = state.parent(to)?;
        dir.change(NameChange { gone: None, come: Some((target, id)), half_of });
        let (dir, name) = state.parent(from)?;
        dir.change(NameChange { gone: Some(name), come: None, half_of });
        Ok(())
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        let mut state = self.changing()?;
        let id = state.resolve(path)?;
        state.file(id)?;
        let (dir, name) = state.parent(path)?;
        dir.change(NameChange { gone: Some(name), come: None, half_of: None });
        Ok(())
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        let mut state = self.changing()?;
        let id = state.resolve(path)?;
        state.dir(id)?;
        let (dir, name) = state.parent(path)?;
        dir.change(NameChange { gone: Some(name), come: None, half_of: None });
        Ok(())
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let mut state = self.changing()?;
        let id = state.resolve(path)?;
        state.dir(id)?.sync();
        Ok(())
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn DirLock>> {
        let mut state = self.changing()?;
        if state.resolve(path).is_err() {
            state.add(path, Inode::File(FileNode::default()))?;
        }
        let epoch = state.epoch;
        if state.locks.contains_key(path) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        state.locks.insert(path.to_owned(), epoch);
        Ok(Box::new(MemoryLock { state: self.state.clone(), path: path.to_owned(), epoch }))
    }

    fn volume(&self, dir: &Path) -> io::Result<Arc<dyn Volume>> {
        let mut state = self.alive()?;
        let id = state.resolve(dir)?;
        state.dir(id)?;
        Ok(Arc::new(MemoryVolume {
            state: self.state.clone(),
            epoch: state.epoch,
            dedicated: state.dedicated,
            reports_write_errors: state.reports_write_errors,
        }))
    }
}

impl DiskFile for MemoryFile {
    fn read_at(&self, position: u64, len: usize) -> io::Result<Vec<u8>> {
        self.with(|file| {
            let start = usize::try_from(position).unwrap_or(usize::MAX).min(file.bytes.len());
            let end = start.saturating_add(len).min(file.bytes.len());
            Ok(file.bytes[start..end].to_vec())
        })
    }

    fn write_at(&self, position: u64, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.write(|file| {
            let bytes: Vec<u8> = slices.iter().flat_map(|slice| slice.iter().copied()).collect();
            let (start, end) = (position as usize, position as usize + bytes.len());
            if file.bytes.len() < end {
                file.bytes.resize(end, 0);
            }
            file.bytes[start..end].copy_from_slice(&bytes);
            let written = bytes.len();
            file.unsynced.push(FileChange::Write { position, bytes });
            Ok(written)
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.alive()?;
        state.burn()?;
        let fails = state.sync_fails();
        let file = state.file(self.node)?;
        match fails {
            false => file.sync(),
            true => file.fail_sync(),
        }
        if fails { Err(rustix::io::Errno::IO.into()) } else { Ok(()) }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.write(|file| {
            file.bytes.resize(len as usize, 0);
            file.unsynced.push(FileChange::SetLen(len));
            Ok(())
        })
    }

    fn len(&self) -> io::Result<u64> {
        self.with(|file| Ok(file.bytes.len() as u64))
    }

    fn map(&self) -> io::Result<Box<dyn FileMap>> {
        self.with(|file| Ok(Box::new(MemoryMap(file.bytes.clone())) as Box<dyn FileMap>))
    }
}

struct MemoryMap(Vec<u8>);

impl FileMap for MemoryMap {
    fn bytes(&self) -> &[u8] {
        &self.0
    }
}

#[derive(Debug)]
struct MemoryLock {
    state: Arc<Mutex<FileSystem>>,
    path: PathBuf,
    epoch: u64,
}

impl DirLock for MemoryLock {}

impl Drop for MemoryLock {
    fn drop(&mut self) {
        let mut state = self.state.lock();
        // A crash releases the locks from before it; another owner may hold this one now.
        if state.epoch == self.epoch {
            state.locks.remove(&self.path);
        }
    }
}

#[derive(Debug)]
struct MemoryVolume {
    state: Arc<Mutex<FileSystem>>,
    epoch: u64,
    dedicated: bool,
    reports_write_errors: bool,
}

impl Volume for MemoryVolume {
    fn sync(&self) -> io::Result<()> {
        let mut state = self.state.lock();
        if state.epoch != self.epoch {
            return Err(io::Error::other("the disk lost power since this volume was opened"));
        }
        state.burn()?;
        let fails = state.sync_fails();
        for node in state.nodes.values_mut() {
            match node {
                Inode::File(file) if fails => file.fail_sync(),
                Inode::File(file) => file.sync(),
                Inode::Dir(_) if fails => {}
                Inode::Dir(dir) => dir.sync(),
            }
        }
        if fails { Err(rustix::io::Errno::IO.into()) } else { Ok(()) }
    }

    fn free_bytes(&self) -> io::Result<u64> {
        Ok(self.state.lock().free_bytes)
    }

    fn size_bytes(&self) -> io::Result<u64> {
        Ok(VOLUME_BYTES)
    }

    fn reports_write_errors(&self) -> bool {
        self.reports_write_errors
    }

    fn is_dedicated(&self) -> bool {
        self.dedicated
    }
}
