//! What a power failure can leave of a data folder: rebuilt from the recorded calls of a real process ([`crate::faults`]).
//!
//! The rules are those of POSIX, not of one file system, and the same that the engine's disk in memory follows: bytes and length of a file
//! are durable after a flush of the file, names after a flush of their folder. Of everything else any part may have reached the disk, in any
//! order: each block of [`BLOCK`] bytes by itself, each name by itself. A rename within a folder is one change.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use rand::Rng;
use rand::rngs::StdRng;

/// Bytes that a disk writes as a whole.
pub const BLOCK: usize = 512;

/// `struct record` of `supervise.c`, without what follows it.
const HEADER: usize = 48;

/// A recorded call.
#[derive(Debug, Clone)]
pub struct DiskCall {
    /// When it began, in nanoseconds of the monotonic clock.
    pub nanos: u64,
    /// The inode of the open file; 0: it names a path.
    inode: u64,
    path: PathBuf,
    change: FileChange,
}

#[derive(Debug, Clone)]
enum FileChange {
    Write { position: usize, bytes: Vec<u8> },
    Flush,
    FlushAll,
    SetLength(usize),
    Create { truncates: bool },
    Rename(PathBuf),
    Remove,
    MakeFolder,
}

/// Reads what a supervisor has recorded. A call that was cut off at the end of the record is left out.
///
/// # Errors
/// A call of an unknown kind.
pub fn calls(record: &[u8]) -> Result<Vec<DiskCall>> {
    let mut calls = Vec::new();
    let mut rest = record;
    while let Some((header, after)) = rest.split_at_checked(HEADER) {
        let number = |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().expect("8 bytes"));
        let half = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("4 bytes"));
        let length = |at: usize| usize::from(u16::from_le_bytes(header[at..at + 2].try_into().expect("2 bytes")));
        let (position, bytes, flags) = (usize::try_from(number(16))?, usize::try_from(number(24))?, half(36));
        let (path, second) = (length(40), length(42));
        let Some((text, after)) = after.split_at_checked(path + second) else { break };
        let Some((data, after)) = after.split_at_checked(bytes) else { break };
        rest = after;
        let name = |text: &[u8]| -> Result<PathBuf> { Ok(PathBuf::from(std::str::from_utf8(text)?)) };
        let (path, second) = (name(&text[..path])?, name(&text[path..])?);
        let change = match half(32) {
            1 => FileChange::Write { position, bytes: data.to_vec() },
            2 => FileChange::Flush,
            3 => FileChange::SetLength(position),
            4 => FileChange::Create { truncates: flags & TRUNCATE != 0 },
            5 => FileChange::Rename(second),
            6 | 8 => FileChange::Remove,
            7 => FileChange::MakeFolder,
            9 => FileChange::FlushAll,
            other => bail!("a call of kind {other}"),
        };
        calls.push(DiskCall { nanos: number(0), inode: number(8), path, change });
    }
    Ok(calls)
}

/// `O_TRUNC` of Linux.
const TRUNCATE: u32 = 0o1000;

type NodeId = usize;

#[derive(Debug, Default, Clone)]
struct DiskFileState {
    /// As a reader sees it while the power is on.
    seen: Vec<u8>,
    durable: Vec<u8>,
    /// Not flushed, in order.
    pending: Vec<Unflushed>,
}

#[derive(Debug, Clone)]
enum Unflushed {
    Bytes(usize, Vec<u8>),
    Length(usize),
}

#[derive(Debug, Default, Clone)]
struct FolderState {
    seen: BTreeMap<String, NodeId>,
    durable: BTreeMap<String, NodeId>,
    pending: Vec<NameChange>,
}

#[derive(Debug, Clone)]
enum NameChange {
    Set(String, NodeId),
    Remove(String, NodeId),
    /// Within one folder.
    Move {
        from: String,
        to: String,
        node: NodeId,
    },
}

#[derive(Debug, Clone)]
enum DiskNode {
    File(DiskFileState),
    Folder(FolderState),
}

/// A disk, as the calls so far have left it.
#[derive(Debug, Clone)]
pub struct RecordedDisk {
    root: PathBuf,
    nodes: Vec<DiskNode>,
    /// The last node of each inode number that was seen with an open file.
    inodes: HashMap<u64, NodeId>,
}

impl RecordedDisk {
    /// An empty disk. `root` is the data folder, as the kernel names it; it exists, durably.
    pub fn new(root: PathBuf) -> Self {
        Self { root, nodes: vec![DiskNode::Folder(FolderState::default())], inodes: HashMap::new() }
    }

    /// A disk with what is in the folder `root` now, durably; it need not exist.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn of(root: PathBuf) -> Result<Self> {
        let mut disk = Self::new(root.clone());
        if root.exists() {
            disk.read(&root)?;
            disk.nodes.iter_mut().for_each(flush);
        }
        Ok(disk)
    }

    fn read(&mut self, folder: &Path) -> Result<()> {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            if path.is_dir() {
                self.add(&path, DiskNode::Folder(FolderState::default()))?;
                self.read(&path)?;
            } else {
                let seen = fs::read(&path)?;
                let pending = vec![Unflushed::Bytes(0, seen.clone())];
                self.add(&path, DiskNode::File(DiskFileState { seen, durable: Vec::new(), pending }))?;
            }
        }
        Ok(())
    }

    /// Carries out a call.
    ///
    /// # Errors
    /// It does not fit what was recorded before: a fault of the recording.
    pub fn carry_out(&mut self, call: &DiskCall) -> Result<()> {
        let context = || format!("{:?} of {}", std::mem::discriminant(&call.change), call.path.display());
        self.change(call).with_context(context)
    }

    fn change(&mut self, call: &DiskCall) -> Result<()> {
        match &call.change {
            FileChange::Write { position, bytes } => {
                let file = self.open_file(call)?;
                let end = position + bytes.len();
                if file.seen.len() < end {
                    file.seen.resize(end, 0);
                }
                file.seen[*position..end].copy_from_slice(bytes);
                file.pending.push(Unflushed::Bytes(*position, bytes.clone()));
            }
            FileChange::SetLength(length) => {
                let file = self.open_file(call)?;
                file.seen.resize(*length, 0);
                file.pending.push(Unflushed::Length(*length));
            }
            FileChange::Flush => {
                let node = self.open_node(call)?;
                flush(&mut self.nodes[node]);
            }
            FileChange::FlushAll => self.nodes.iter_mut().for_each(flush),
            FileChange::Create { truncates } => match self.find(&call.path) {
                Some(node) => {
                    if let (DiskNode::File(file), true) = (&mut self.nodes[node], truncates) {
                        file.seen.clear();
                        file.pending.push(Unflushed::Length(0));
                    }
                }
                None => self.add(&call.path, DiskNode::File(DiskFileState::default()))?,
            },
            FileChange::MakeFolder => {
                if call.path != self.root && self.find(&call.path).is_none() {
                    self.add(&call.path, DiskNode::Folder(FolderState::default()))?;
                }
            }
            FileChange::Remove => {
                // Of what is not there it fails.
                if let Some(node) = self.find(&call.path) {
                    let (folder, name) = self.folder_of(&call.path)?;
                    folder.seen.remove(&name);
                    folder.pending.push(NameChange::Remove(name, node));
                    self.inodes.retain(|_, known| *known != node);
                }
            }
            FileChange::Rename(to) => {
                let Some(node) = self.find(&call.path) else { return Ok(()) };
                let (_, target) = self.folder_of(to)?;
                let (folder, name) = self.folder_of(&call.path)?;
                folder.seen.remove(&name);
                if call.path.parent() == to.parent() {
                    folder.seen.insert(target.clone(), node);
                    folder.pending.push(NameChange::Move { from: name, to: target, node });
                } else {
                    folder.pending.push(NameChange::Remove(name, node));
                    let (folder, _) = self.folder_of(to)?;
                    folder.seen.insert(target.clone(), node);
                    folder.pending.push(NameChange::Set(target, node));
                }
            }
        }
        Ok(())
    }

    fn find(&self, path: &Path) -> Option<NodeId> {
        let mut node = 0;
        for name in path.strip_prefix(&self.root).ok()? {
            let DiskNode::Folder(folder) = &self.nodes[node] else { return None };
            node = *folder.seen.get(name.to_str()?)?;
        }
        Some(node)
    }

    fn folder_of(&mut self, path: &Path) -> Result<(&mut FolderState, String)> {
        let name = path.file_name().and_then(OsStr::to_str).context("no name")?.to_owned();
        let folder = path.parent().and_then(|parent| self.find(parent)).context("no such folder")?;
        match &mut self.nodes[folder] {
            DiskNode::Folder(folder) => Ok((folder, name)),
            DiskNode::File(_) => bail!("a file in place of a folder"),
        }
    }

    fn add(&mut self, path: &Path, node: DiskNode) -> Result<()> {
        let id = self.nodes.len();
        let (folder, name) = self.folder_of(path)?;
        folder.seen.insert(name.clone(), id);
        folder.pending.push(NameChange::Set(name, id));
        self.nodes.push(node);
        Ok(())
    }

    fn open_node(&mut self, call: &DiskCall) -> Result<NodeId> {
        // The path first: the number of a file that is gone is used again. A file that another thread renames in this moment is
        // known by its number.
        let node = self.find(&call.path).or_else(|| self.inodes.get(&call.inode).copied());
        let node = node.context("an open file that was never made")?;
        self.inodes.insert(call.inode, node);
        Ok(node)
    }

    fn open_file(&mut self, call: &DiskCall) -> Result<&mut DiskFileState> {
        let node = self.open_node(call)?;
        match &mut self.nodes[node] {
            DiskNode::File(file) => Ok(file),
            DiskNode::Folder(_) => bail!("a folder that is written to"),
        }
    }

    /// Writes the folder as a power failure at this moment may leave it: what was flushed, and each other change with probability
    /// `kept`. `target` does not exist yet.
    ///
    /// # Errors
    /// Files cannot be written.
    pub fn after_power_failure(&self, target: &Path, kept: f64, random: &mut StdRng) -> Result<()> {
        ensure!(!target.exists(), "{} exists", target.display());
        self.write_folder(0, target, kept, random, &mut BTreeSet::new())
    }

    fn write_folder(
        &self,
        node: NodeId,
        target: &Path,
        kept: f64,
        random: &mut StdRng,
        above: &mut BTreeSet<NodeId>,
    ) -> Result<()> {
        let DiskNode::Folder(folder) = &self.nodes[node] else { bail!("no folder") };
        fs::create_dir(target)?;
        // A folder whose rename was kept in one place and not in the other stands in both, but not within itself.
        if !above.insert(node) {
            return Ok(());
        }
        for (name, node) in folder.survivors(kept, random) {
            match &self.nodes[node] {
                DiskNode::File(file) => fs::write(target.join(name), file.survivors(kept, random))?,
                DiskNode::Folder(_) => self.write_folder(node, &target.join(name), kept, random, above)?,
            }
        }
        above.remove(&node);
        Ok(())
    }
}

fn flush(node: &mut DiskNode) {
    match node {
        DiskNode::File(file) => {
            if !file.pending.is_empty() {
                file.durable.clone_from(&file.seen);
                file.pending.clear();
            }
        }
        DiskNode::Folder(folder) => {
            if !folder.pending.is_empty() {
                folder.durable.clone_from(&folder.seen);
                folder.pending.clear();
            }
        }
    }
}

impl DiskFileState {
    fn survivors(&self, kept: f64, random: &mut StdRng) -> Vec<u8> {
        let mut bytes = self.durable.clone();
        for change in &self.pending {
            match change {
                Unflushed::Length(length) if random.random_bool(kept) => bytes.resize(*length, 0),
                Unflushed::Length(_) => {}
                Unflushed::Bytes(position, written) => {
                    let mut at = 0;
                    while at < written.len() {
                        let start = position + at;
                        // Up to the next block of the disk.
                        let len = (BLOCK - start % BLOCK).min(written.len() - at);
                        if random.random_bool(kept) {
                            if bytes.len() < start + len {
                                bytes.resize(start + len, 0);
                            }
                            bytes[start..start + len].copy_from_slice(&written[at..at + len]);
                        }
                        at += len;
                    }
                }
            }
        }
        // The new length may have reached the disk without the bytes.
        if bytes.len() < self.seen.len() && random.random_bool(kept / 2.0) {
            bytes.resize(self.seen.len(), 0);
        }
        bytes
    }
}

impl FolderState {
    fn survivors(&self, kept: f64, random: &mut StdRng) -> BTreeMap<String, NodeId> {
        let mut names = self.durable.clone();
        for change in &self.pending {
            if !random.random_bool(kept) {
                continue;
            }
            match change {
                NameChange::Set(name, node) => {
                    names.insert(name.clone(), *node);
                }
                NameChange::Remove(name, node) => {
                    if names.get(name) == Some(node) {
                        names.remove(name);
                    }
                }
                NameChange::Move { from, to, node } => {
                    if names.get(from) == Some(node) {
                        names.remove(from);
                    }
                    names.insert(to.clone(), *node);
                }
            }
        }
        names
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    fn call(path: &str, change: FileChange) -> DiskCall {
        DiskCall { nanos: 0, inode: 0, path: path.into(), change }
    }

    fn opened(inode: u64, path: &str, change: FileChange) -> DiskCall {
        DiskCall { inode, ..call(path, change) }
    }

    #[test]
    fn what_was_flushed_stays_and_any_part_of_the_rest() {
        let write = |position, byte| FileChange::Write { position, bytes: vec![byte; 2 * BLOCK] };
        let mut disk = RecordedDisk::new("/data".into());
        for call in [
            call("/data/logs", FileChange::MakeFolder),
            opened(1, "/data", FileChange::Flush),
            call("/data/logs/a.tmp", FileChange::Create { truncates: true }),
            opened(2, "/data/logs/a.tmp", write(0, 1)),
            opened(2, "/data/logs/a.tmp", FileChange::Flush),
            call("/data/logs/a.tmp", FileChange::Rename("/data/logs/a".into())),
            opened(3, "/data/logs", FileChange::Flush),
            opened(2, "/data/logs/a", write(2 * BLOCK, 2)),
            call("/data/logs/b", FileChange::Create { truncates: false }),
        ] {
            disk.carry_out(&call).unwrap();
        }
        let mut seen = BTreeSet::new();
        for seed in 0..300 {
            let dir = tempfile::tempdir().unwrap();
            let target = dir.path().join("data");
            disk.after_power_failure(&target, 0.5, &mut StdRng::seed_from_u64(seed)).unwrap();
            let bytes = fs::read(target.join("logs/a")).unwrap();
            assert_eq!(bytes[..2 * BLOCK], [1; 2 * BLOCK], "seed {seed}");
            assert!(!target.join("logs/a.tmp").exists());
            let blocks: Vec<u8> = bytes[2 * BLOCK..].chunks(BLOCK).map(|block| block[0]).collect();
            seen.insert((blocks, target.join("logs/b").exists()));
        }
        // Nothing, the first block, the second behind a hole, both; the length alone and with the first; each with and without b.
        assert_eq!(seen.len(), 12, "{seen:?}");
    }

    #[test]
    fn a_record_that_ends_within_a_call_is_read_up_to_it() {
        let mut record = vec![0; HEADER];
        record[24] = 3;
        record[32] = 1;
        record[40] = 5;
        record.extend_from_slice(b"/data123");
        assert_eq!(calls(&record).unwrap().len(), 1);
        assert_eq!(calls(&record[..record.len() - 1]).unwrap().len(), 0);
        record[32] = 77;
        assert!(calls(&record).is_err());
    }
}
