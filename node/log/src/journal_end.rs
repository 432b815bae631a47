//! The note of how much of the journal was on disk when its store was closed: `meta/closed`.
//!
//! The last records of a journal have no later record that vouches for them. After a crash a bad end is a torn write; after a
//! clean close it is damage, and this note, in a file of its own, distinguishes the two.
//!
//! Invariants:
//! - What the note says stays true: a journal never loses bytes that were durable. It therefore needs no removal when the
//!   store is opened, and a release that does not know the file may write to the journal in between.
//! - The file is optional: a store that crashed, or that such a release closed, has none, or an older one.
//!
//! Neighbours: `journal.rs` writes and reads it. Names no record.

use std::{io, io::IoSlice, path::Path};

use uuid::Uuid;

use crate::{
    LogError,
    bytes_le::{get_u32, get_u64, put_u32, put_u64},
    disk::{Disk, OpenMode, write_all_at},
};

const MAGIC: &[u8; 8] = b"CHRNLEND";
const VERSION: u32 = 1;
const LEN: usize = 48;

/// How much of a journal is on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct JournalEnd {
    /// Sequence number of the journal file.
    pub(crate) sequence: u64,
    /// Every byte of it before this is on disk.
    pub(crate) durable: u64,
}

impl JournalEnd {
    /// Name of the file, in the directory of the journal.
    pub(crate) const NAME: &str = "closed";

    /// The note in `dir`; `None` if there is none of this node. One that cannot be read counts as none: the journal may be whole.
    pub(crate) fn read(disk: &dyn Disk, dir: &Path, node: Uuid) -> Result<Option<Self>, LogError> {
        let path = dir.join(Self::NAME);
        let read = disk.open(&path, OpenMode::Read).and_then(|file| file.read_at(0, LEN));
        let bytes = match read {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(LogError::io(path, "read how the journal was closed", error)),
        };
        let end = Self::decode(&bytes, node);
        if end.is_none() {
            tracing::warn!(
                ?path,
                "cannot use the note of the last clean close: a missing end of the journal goes unnoticed"
            );
        }
        Ok(end)
    }

    /// Replaces the note, durably.
    pub(crate) fn write(self, disk: &dyn Disk, dir: &Path, node: Uuid) -> Result<(), LogError> {
        let (path, aside) = (dir.join(Self::NAME), dir.join(format!("{}.tmp", Self::NAME)));
        let io = |error| LogError::io(path.clone(), "note that the journal is closed", error);
        let file = disk.open(&aside, OpenMode::Truncate).map_err(io)?;
        write_all_at(&*file, 0, &mut [IoSlice::new(&self.encode(node))]).map_err(io)?;
        file.sync_data().map_err(io)?;
        disk.rename(&aside, &path).map_err(io)?;
        disk.sync_dir(dir).map_err(io)
    }

    fn encode(self, node: Uuid) -> [u8; LEN] {
        let mut bytes = [0; LEN];
        bytes[..8].copy_from_slice(MAGIC);
        put_u32(&mut bytes, 8, VERSION);
        bytes[16..32].copy_from_slice(node.as_bytes());
        put_u64(&mut bytes, 32, self.sequence);
        put_u64(&mut bytes, 40, self.durable);
        let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes[..12]), &bytes[16..]);
        put_u32(&mut bytes, 12, crc);
        bytes
    }

    fn decode(bytes: &[u8], node: Uuid) -> Option<Self> {
        let intact = bytes.len() == LEN
            && &bytes[..8] == MAGIC
            && get_u32(bytes, 12) == crc32c::crc32c_append(crc32c::crc32c(&bytes[..12]), &bytes[16..]);
        let ours = intact && get_u32(bytes, 8) == VERSION && bytes[16..32] == *node.as_bytes();
        ours.then(|| Self { sequence: get_u64(bytes, 32), durable: get_u64(bytes, 40) })
    }
}
