//! A small file beside the segments for the owner's own state, replaced atomically.
//!
//! Invariant: [`Log::load_checkpoint`] returns bytes as they were saved, or [`LogError::Damaged`]. Whether a log needs its
//! checkpoint, and what a missing one means, only the owner knows.
//!
//! Neighbours: it shares the log's directory and `seal_lock` with the other operations, and `repair.rs` names the folder for a
//! checkpoint that is of no use. Never interprets the bytes.

use std::{
    io::{self, IoSlice},
    path::PathBuf,
};

use bytes::Bytes;
use rustix::io::Errno;

use super::{Log, repair};
use crate::{
    LogError,
    bytes_le::{get_u32, get_u64, put_u32, put_u64},
    disk::{OpenMode, write_all_at},
};

const NAME: &str = "checkpoint";
const MAGIC: &[u8; 8] = b"CHRNLCKP";
const VERSION: u32 = 1;
const HEADER: usize = 24;

impl Log {
    /// Replaces the log's checkpoint. Atomic and durable when it returns: after a crash either the old or the new one is there.
    ///
    /// # Errors
    /// [`LogError::NoSpace`], [`LogError::Io`] and the like; the old checkpoint stays.
    pub fn save_checkpoint(&self, bytes: &[u8]) -> Result<(), LogError> {
        let dir = &self.log.dir;
        // One at a time: two writers would share the temporary file.
        let _seal = self.log.lock_seals();
        let disk = dir.disk();
        let path = dir.path().join(NAME);
        let aside = dir.path().join(format!("{NAME}.tmp"));
        let io = |action| {
            let path = path.clone();
            move |error| LogError::io(path, action, error)
        };
        let mut header = [0; HEADER];
        header[..8].copy_from_slice(MAGIC);
        put_u32(&mut header, 8, VERSION);
        put_u64(&mut header, 16, bytes.len() as u64);
        let crc = crc(&header, bytes, dir.id().to_bytes());
        put_u32(&mut header, 12, crc);
        let file = disk.open(&aside, OpenMode::Truncate).map_err(io("create the checkpoint"))?;
        write_all_at(&*file, 0, &mut [IoSlice::new(&header), IoSlice::new(bytes)])
            .map_err(io("write the checkpoint"))?;
        file.sync_data().map_err(io("flush the checkpoint"))?;
        disk.rename(&aside, &path).map_err(io("rename the checkpoint"))?;
        disk.sync_dir(dir.path()).map_err(io("flush the directory of the checkpoint"))?;
        dir.make_durable()
    }

    /// The newest checkpoint, `None` if there is no such file.
    ///
    /// # Errors
    /// [`LogError::Damaged`] when its bytes do not match their checksum or cannot be read, [`LogError::NewerFormat`];
    /// [`LogError::Io`] when this process is short of memory or open files.
    pub fn load_checkpoint(&self) -> Result<Option<Bytes>, LogError> {
        let dir = &self.log.dir;
        let path = dir.path().join(NAME);
        let io = |error: io::Error| match is_of_this_process(&error) {
            true => LogError::io(path.clone(), "read the checkpoint", error),
            false => LogError::damaged(&path, 0, None, format!("cannot read the checkpoint: {error}")),
        };
        let file = match dir.disk().open(&path, OpenMode::Read) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io(error)),
        };
        let len = file.len().map_err(io)?;
        let bytes = Bytes::from(file.read_at(0, len as usize).map_err(io)?);
        let damaged = |reason| Err(LogError::damaged(&path, 0, None, reason));
        if bytes.len() < HEADER || &bytes[..8] != MAGIC {
            return damaged("the checkpoint does not start with its magic number");
        }
        if get_u64(&bytes, 16) != (bytes.len() - HEADER) as u64 {
            return damaged("the checkpoint's length does not match its header");
        }
        if get_u32(&bytes, 12) != crc(&bytes[..HEADER], &bytes[HEADER..], dir.id().to_bytes()) {
            return damaged("the checkpoint's checksum does not match");
        }
        if get_u32(&bytes, 8) != VERSION {
            return Err(LogError::NewerFormat { path, found: get_u32(&bytes, 8), supported: VERSION });
        }
        Ok(Some(bytes.slice(HEADER..)))
    }

    /// Path of the checkpoint, whether or not there is one.
    pub fn checkpoint_path(&self) -> PathBuf {
        self.log.dir.path().join(NAME)
    }

    /// Moves a checkpoint that is of no use to its owner into a new folder `quarantine-<n>`, whatever its bytes are, and counts
    /// it as damage. Returns the folder; `None`: there is no checkpoint. After a crash the file is at its old or its new place.
    ///
    /// # Errors
    /// [`LogError::Io`] and the like; the checkpoint may be at either place.
    pub fn quarantine_checkpoint(&self) -> Result<Option<PathBuf>, LogError> {
        let metrics = self.log.metrics();
        metrics.damage_found.add(1);
        let _seal = self.log.lock_seals();
        let folder = repair::quarantine_file(&self.log.dir, NAME)?;
        metrics.quarantines.add(u64::from(folder.is_some()));
        Ok(folder)
    }
}

/// Whether a read failed for lack of memory or file descriptors: it says nothing about the file.
fn is_of_this_process(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::INTR))
}

/// CRC of the log's identity, the header without the CRC field, and the content.
fn crc(header: &[u8], content: &[u8], id: [u8; 20]) -> u32 {
    let crc = crc32c::crc32c_append(crc32c::crc32c(&id), &header[..12]);
    crc32c::crc32c_append(crc32c::crc32c_append(crc, &header[16..HEADER]), content)
}
