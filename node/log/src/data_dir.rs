//! The data directory of a store: its lock, its `FORMAT` file, and the paths in it.
//!
//! ```text
//! <data>/LOCK                held by the one process that uses the directory
//! <data>/FORMAT              format version and node id, as text
//! <data>/meta/journal-<n>    the meta journal
//! <data>/logs/<log id>/      one directory per log: segments, indexes, checkpoint
//! ```
//!
//! Invariants: the lock is held from [`DataDir::open`] until [`DataDir::unlock`]. `FORMAT` is written last when a directory is
//! made, so that a directory that has it is complete. It is raised to this release's version before anything else is written, so that
//! an older release refuses the directory as a whole.
//!
//! Neighbours: `store.rs` opens and closes it. Names no log and no journal.

use std::{
    io::{self, IoSlice},
    path::{Path, PathBuf},
    sync::Arc,
};

use parking_lot::Mutex;
use uuid::Uuid;

use crate::{
    LogError, LogId,
    disk::{DirLock, Disk, OpenMode, Volume, write_all_at},
};

/// Newest format of a data directory this release reads, and the one it writes.
pub const FORMAT_VERSION: u32 = 2;

/// A data directory, locked.
#[derive(Debug)]
pub(crate) struct DataDir {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    logs: PathBuf,
    volume: Arc<dyn Volume>,
    node_id: Uuid,
    /// The version in `FORMAT` when it was opened; `None`: there was no such file.
    found_version: Option<u32>,
    lock: Mutex<Option<Box<dyn DirLock>>>,
}

impl DataDir {
    /// Locks the directory, making it if it does not exist. A fresh one gets the identity `new_node_id`, or a random one, and is
    /// not complete before [`Self::complete`].
    pub(crate) fn open(disk: Arc<dyn Disk>, dir: &Path, new_node_id: Option<Uuid>) -> Result<Self, LogError> {
        disk.create_dir(dir).map_err(|error| open_error(dir, "create the data directory", error))?;
        let lock_path = dir.join("LOCK");
        let lock = disk.lock(&lock_path).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => LogError::Locked { path: dir.to_owned() },
            _ => open_error(&lock_path, "lock the data directory", error),
        })?;
        let volume = disk.volume(dir).map_err(|error| LogError::io(dir, "open the volume", error))?;
        let (meta, logs) = (dir.join("meta"), dir.join("logs"));
        let format = read_format(&*disk, dir)?;
        for path in [&meta, &logs] {
            disk.create_dir(path).map_err(|error| open_error(path, "create the directory", error))?;
        }
        let found_version = format.map(|format| format.version);
        let fresh = found_version.is_none();
        if !fresh {
            // A killed process may have left the name of `FORMAT` in memory only.
            sync_names(&*disk, dir).map_err(|error| LogError::io(dir, "flush the directory", error))?;
        }
        if fresh && !list_dir(&*disk, &logs)?.is_empty() {
            let reason = "the directory holds logs, but its FORMAT file is missing";
            return Err(LogError::damaged(dir.join("FORMAT"), 0, None, reason));
        }
        #[expect(clippy::disallowed_methods, reason = "a new data directory without a given identity")]
        let node_id = format.map(|format| format.node_id).or(new_node_id).unwrap_or_else(Uuid::new_v4);
        Ok(Self { disk, path: dir.to_owned(), logs, volume, node_id, found_version, lock: Mutex::new(Some(lock)) })
    }

    /// Ends the making of a fresh directory, once its journal is there, or raises an older one to this release's format, once its
    /// journal was read: from then on older releases refuse it.
    pub(crate) fn complete(&self) -> Result<(), LogError> {
        if self.found_version != Some(FORMAT_VERSION) {
            if let Some(found) = self.found_version {
                tracing::info!(path = ?self.path, found, now = FORMAT_VERSION, "raising the format of the data directory");
            }
            write_format(&*self.disk, &self.path, self.node_id)?;
        }
        Ok(())
    }

    /// Lets another process use the directory.
    pub(crate) fn unlock(&self) {
        self.lock.lock().take();
    }

    pub(crate) fn disk(&self) -> &Arc<dyn Disk> {
        &self.disk
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The directory of the journal.
    pub(crate) fn meta(&self) -> PathBuf {
        self.path.join("meta")
    }

    /// The directory of the logs.
    pub(crate) fn logs(&self) -> &Path {
        &self.logs
    }

    pub(crate) fn volume(&self) -> &dyn Volume {
        &*self.volume
    }

    pub(crate) fn node_id(&self) -> Uuid {
        self.node_id
    }

    pub(crate) fn is_fresh(&self) -> bool {
        self.found_version.is_none()
    }

    /// Makes the names of the logs' directories durable.
    pub(crate) fn sync_logs(&self) -> Result<(), LogError> {
        self.disk.sync_dir(&self.logs).map_err(|error| LogError::io(&self.logs, "flush the directory", error))
    }

    /// The logs that have a directory, in no particular order.
    pub(crate) fn log_ids(&self) -> Result<Vec<LogId>, LogError> {
        let names = list_dir(&*self.disk, &self.logs)?;
        Ok(names.iter().filter_map(|name| name.parse().ok()).collect())
    }

    /// Makes the directory of a log if it does not exist.
    pub(crate) fn create_log_dir(&self, dir: &Path) -> Result<(), LogError> {
        self.disk.create_dir(dir).map_err(|error| open_error(dir, "create the log's directory", error))
    }

    /// Gives the directory of a log the name under which it is deleted, durably. Fine if there is none. Returns the new path.
    pub(crate) fn set_log_aside(&self, id: LogId) -> Result<PathBuf, LogError> {
        let dir = self.logs.join(id.to_string());
        let aside = self.logs.join(format!("{id}.deleted"));
        self.remove_dir(&aside)?;
        match self.disk.rename(&dir, &aside) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(LogError::io(&dir, "rename the log's directory", error)),
        }
        self.sync_logs()?;
        Ok(aside)
    }

    /// Removes the directories of logs whose deletion was interrupted.
    pub(crate) fn remove_logs_set_aside(&self) -> Result<(), LogError> {
        for name in list_dir(&*self.disk, &self.logs)?.into_iter().filter(|name| name.ends_with(".deleted")) {
            self.remove_dir(&self.logs.join(name))?;
        }
        Ok(())
    }

    /// Removes a directory and what is in it, or a file that stands in its place. Fine if there is neither.
    pub(crate) fn remove_dir(&self, dir: &Path) -> Result<(), LogError> {
        let removed = match self.disk.remove_dir(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => self.disk.remove_file(dir),
            other => other,
        };
        match removed {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(LogError::io(dir, "remove the directory", error))
            }
            _ => Ok(()),
        }
    }
}

fn open_error(path: &Path, action: &'static str, error: io::Error) -> LogError {
    match error.kind() {
        io::ErrorKind::PermissionDenied => LogError::ReadOnly { path: path.to_owned(), action },
        // `create_dir_all` over a file.
        io::ErrorKind::AlreadyExists => LogError::NotADirectory { path: path.to_owned() },
        _ => LogError::io(path, action, error),
    }
}

fn list_dir(disk: &dyn Disk, dir: &Path) -> Result<Vec<String>, LogError> {
    let list = disk.list(dir).map_err(|error| LogError::io(dir, "list the directory", error))?;
    Ok(list.into_iter().map(|entry| entry.name).collect())
}

/// What `FORMAT` says.
#[derive(Debug, Clone, Copy)]
struct DataFormat {
    version: u32,
    node_id: Uuid,
}

/// Reads `FORMAT`; `None` if there is no such file.
fn read_format(disk: &dyn Disk, dir: &Path) -> Result<Option<DataFormat>, LogError> {
    let path = dir.join("FORMAT");
    let io = |error| LogError::io(path.clone(), "read the format", error);
    let file = match disk.open(&path, OpenMode::Read) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io(error)),
    };
    let bytes = file.read_at(0, 4096).map_err(io)?;
    let text = String::from_utf8_lossy(&bytes);
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ').map(str::trim));
    let version: u32 = field("chronicle-data")
        .and_then(|version| version.parse().ok())
        .ok_or_else(|| LogError::damaged(&path, 0, None, "it has no line 'chronicle-data <version>'"))?;
    if version > FORMAT_VERSION {
        return Err(LogError::NewerFormat { path, found: version, supported: FORMAT_VERSION });
    }
    let node = field("node").and_then(|node| Uuid::try_parse(node).ok());
    let node_id = node.ok_or_else(|| LogError::damaged(&path, 0, None, "it has no line 'node <uuid>'"))?;
    Ok(Some(DataFormat { version, node_id }))
}

fn write_format(disk: &dyn Disk, dir: &Path, node_id: Uuid) -> Result<(), LogError> {
    let path = dir.join("FORMAT");
    let aside = dir.join("FORMAT.tmp");
    let io = |error| open_error(&path, "write the format", error);
    let text = format!("chronicle-data {FORMAT_VERSION}\nnode {node_id}\n");
    let file = disk.open(&aside, OpenMode::Truncate).map_err(io)?;
    write_all_at(&*file, 0, &mut [IoSlice::new(text.as_bytes())]).map_err(io)?;
    file.sync_data().map_err(io)?;
    disk.rename(&aside, &path).map_err(io)?;
    sync_names(disk, dir).map_err(io)
}

/// Makes the names in the data directory durable, and its own, which may be new.
fn sync_names(disk: &dyn Disk, dir: &Path) -> io::Result<()> {
    disk.sync_dir(dir)?;
    match dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        Some(parent) => disk.sync_dir(parent),
        None => Ok(()),
    }
}
