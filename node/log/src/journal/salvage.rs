//! Reading what is left of a damaged journal, and writing a new one from it. Offline: the data directory is locked, and no store is open.
//!
//! Every record that parses is kept, before the damage and after it (records start at multiples of 8). What the lost records said is
//! unknown, so that the new journal keeps only those keys of the engine that stay harmless when they are out of date:
//! - the clean mark is dropped, so that the log is scanned;
//! - the mark of a deletion is dropped: the log may have been made again since. The owner deletes it again;
//! - a reset that is under way is taken as finished: its completion may be lost, and repeating it would empty the log;
//! - durable marks and starts stay. One that is too high, or too low, shows as damage of the log.
//!
//! Keys of the caller are the caller's to judge ([`SalvagedJournal::get`], [`SalvagedJournal::put`]).
//!
//! Promise: nothing on disk is changed before [`SalvagedJournal::write`]. That copies the damaged file into a quarantine folder first,
//! then gives the new journal its name, then removes the damaged one: a crash leaves one of the two as the newest.

use std::{
    io::{self, IoSlice},
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use parking_lot::Mutex;
use uuid::Uuid;

use super::{
    CreateError, FILE_HEADER, JournalFile, JournalRecord, JournalState, MAGIC, Space, VERSION, engine_key, file_name,
    file_seed,
};
use crate::{
    LogError, LogId,
    bytes_le::{get_u32, get_u64},
    data_dir::DataDir,
    disk::{Disk, OpenMode, write_all_at},
    journal_end::JournalEnd,
    marks::StartMark,
};

/// Bytes that are copied at once.
const COPY_BYTES: usize = 1 << 20;

/// What is left of a journal.
pub struct SalvagedJournal {
    data: DataDir,
    /// The newest journal file; `None`: there is none.
    file: Option<(u64, PathBuf)>,
    next_sequence: u64,
    state: JournalState,
    damage: Option<LogError>,
    records: u64,
    gaps: Vec<(u64, u64)>,
}

impl std::fmt::Debug for SalvagedJournal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SalvagedJournal").field("file", &self.file).field("gaps", &self.gaps).finish_non_exhaustive()
    }
}

impl SalvagedJournal {
    /// Locks the data directory and reads its journal.
    ///
    /// # Errors
    /// [`LogError::Locked`] while a process uses the directory; [`LogError::NewerFormat`]; [`LogError::Io`] and the like, also when
    /// there is no data directory.
    pub fn read(disk: Arc<dyn Disk>, dir: &Path) -> Result<Self, LogError> {
        let format = dir.join("FORMAT");
        disk.open(&format, OpenMode::Read).map_err(|error| LogError::io(format, "open the data directory", error))?;
        let data = DataDir::open(disk.clone(), dir, None)?;
        let meta = data.meta();
        let list = disk.list(&meta).map_err(|error| LogError::io(&meta, "list the directory", error))?;
        let sequence = |name: &str| name.strip_prefix("journal-")?.parse().ok().filter(|n| file_name(*n) == name);
        let newest: Option<u64> = list.iter().filter_map(|entry| sequence(&entry.name)).max();
        let closed = JournalEnd::read(&*disk, &meta, data.node_id())?;
        let named = closed.map_or(0, |end| end.sequence);
        let mut salvaged = Self {
            file: newest.map(|sequence| (sequence, meta.join(file_name(sequence)))),
            next_sequence: newest.unwrap_or(0).max(named) + 1,
            state: JournalState::default(),
            damage: None,
            records: 0,
            gaps: Vec::new(),
            data,
        };
        if newest.is_none_or(|newest| newest < named) {
            let path = if named == 0 { meta } else { meta.join(file_name(named)) };
            salvaged.damage = Some(LogError::damaged(path, 0, None, "the journal is missing"));
        }
        let durable = closed.filter(|end| Some(end.sequence) == newest).map_or(0, |end| end.durable);
        if let Some((sequence, path)) = salvaged.file.clone() {
            salvaged.read_file(&path, sequence, durable)?;
        }
        Ok(salvaged)
    }

    fn read_file(&mut self, path: &Path, sequence: u64, durable: u64) -> Result<(), LogError> {
        let read = self.data.disk().open(path, OpenMode::Read).and_then(|file| file.read_at(0, file.len()? as usize));
        let bytes = Bytes::from(read.map_err(|error| LogError::io(path, "read the journal", error))?);
        let intact =
            bytes.len() >= FILE_HEADER && &bytes[..8] == MAGIC && get_u32(&bytes, 52) == crc32c::crc32c(&bytes[..52]);
        let mut marked = durable;
        match intact {
            true if get_u32(&bytes, 8) > VERSION => {
                let found = get_u32(&bytes, 8);
                return Err(LogError::NewerFormat { path: path.to_owned(), found, supported: VERSION });
            }
            true => marked = marked.max(get_u64(&bytes, 40)),
            false => self.gaps.push((0, FILE_HEADER as u64)),
        }
        // The name and `FORMAT` say with what the records' checksums begin: the header is not needed for them.
        let seed = file_seed(self.data.node_id(), sequence);
        let mut at = FILE_HEADER;
        let mut gap: Option<usize> = None;
        let mut end = at;
        while at < bytes.len() {
            match JournalRecord::decode(&bytes.slice(at..), seed) {
                Ok((record, mark)) => {
                    self.gaps.extend(gap.take().map(|from| (from as u64, at as u64)));
                    self.state.apply(&record);
                    self.records += 1;
                    marked = marked.max(mark);
                    at += record.len() as usize;
                    end = at;
                }
                Err(_) => {
                    gap.get_or_insert(at);
                    at += 8;
                }
            }
        }
        // Behind the last record: damage as far as it was durable, a torn write beyond.
        if marked > end as u64 {
            self.gaps.push((end as u64, marked));
        }
        if let (None, Some((from, _))) = (&self.damage, self.gaps.first().copied().filter(|(from, _)| *from < marked)) {
            let reason =
                format!("{} ranges cannot be read, but everything up to byte {marked} was durable", self.gaps.len());
            self.damage = Some(LogError::damaged(path, from, None, reason));
        }
        Ok(())
    }

    /// The damage; `None`: the journal is sound, and a store opens with it.
    pub fn damage(&self) -> Option<&LogError> {
        self.damage.as_ref()
    }

    /// Number of records that can be read.
    pub fn records(&self) -> u64 {
        self.records
    }

    /// The ranges of bytes (start, exclusive end) that cannot be read.
    pub fn gaps(&self) -> &[(u64, u64)] {
        &self.gaps
    }

    /// The identity of the data directory.
    pub fn node_id(&self) -> Uuid {
        self.data.node_id()
    }

    /// The logs that have files in the data directory.
    ///
    /// # Errors
    /// [`LogError::Io`].
    pub fn logs(&self) -> Result<Vec<LogId>, LogError> {
        let mut logs = self.data.log_ids()?;
        logs.sort_unstable();
        Ok(logs)
    }

    /// The value that is left of a key of the caller.
    pub fn get(&self, id: LogId, key: u8) -> Option<Bytes> {
        self.state.map.get(&(id, Space::User, key)).map(|value| Bytes::copy_from_slice(value))
    }

    /// Puts a key of the caller.
    pub fn put(&mut self, id: LogId, key: u8, value: Bytes) {
        self.state.apply(&JournalRecord::Put((id, Space::User, key), value));
    }

    /// First index of a log by its start mark.
    pub fn start_index(&self, id: LogId) -> u64 {
        let value = self.state.map.get(&(id, Space::Engine, engine_key::START));
        value.and_then(|bytes| StartMark::decode(bytes)).map_or(0, |start| start.first_index)
    }

    /// Drops the start mark of a log. If the log does not begin at index 0 it then opens as damaged, and is set aside as a whole.
    pub fn forget_start(&mut self, id: LogId) {
        self.state.apply(&JournalRecord::Remove((id, Space::Engine, engine_key::START)));
    }

    /// Writes the new journal, and keeps the damaged file in a quarantine folder beside it, which is returned; `None`: there was no
    /// file. Unlocks the directory.
    ///
    /// # Errors
    /// [`LogError::NoSpace`], [`LogError::Io`] and the like. The damaged journal, or the new one, is in place.
    pub fn write(mut self) -> Result<Option<PathBuf>, LogError> {
        self.drop_stale_keys();
        let (disk, meta) = (self.data.disk().clone(), self.data.meta());
        let quarantine = match &self.file {
            Some((sequence, path)) => Some(copy_aside(&*disk, &meta, path, &file_name(*sequence))?),
            None => None,
        };
        let state = Mutex::new(self.state);
        JournalFile::create(disk.clone(), &meta, self.data.node_id(), self.next_sequence, &state, u64::MAX)
            .map_err(CreateError::into_inner)?;
        if let Some((_, path)) = &self.file {
            disk.remove_file(path).map_err(|error| LogError::io(path, "remove the damaged journal", error))?;
        }
        self.data.unlock();
        Ok(quarantine)
    }

    fn drop_stale_keys(&mut self) {
        let keys: Vec<_> = self.state.map.keys().copied().filter(|key| key.1 == Space::Engine).collect();
        for key in keys {
            match key.2 {
                engine_key::CLEAN | engine_key::DELETING => self.state.apply(&JournalRecord::Remove(key)),
                engine_key::START => {
                    let start = self.state.map.get(&key).and_then(|bytes| StartMark::decode(bytes));
                    if let Some(start) = start.filter(|start| start.resetting) {
                        let value = StartMark { resetting: false, ..start }.encode();
                        self.state.apply(&JournalRecord::Put(key, value));
                    }
                }
                _ => {}
            }
        }
    }
}

/// Copies a file into a new folder `quarantine-<n>`, durably. Returns the folder.
fn copy_aside(disk: &dyn Disk, meta: &Path, path: &Path, name: &str) -> Result<PathBuf, LogError> {
    let list = disk.list(meta).map_err(|error| LogError::io(meta, "list the directory", error))?;
    let number = |name: &str| name.strip_prefix("quarantine-")?.parse::<u64>().ok();
    let newest = list.iter().filter_map(|entry| number(&entry.name)).max().unwrap_or(0);
    let folder = meta.join(format!("quarantine-{}", newest + 1));
    let copy = || -> io::Result<()> {
        disk.create_dir(&folder)?;
        let (from, to) = (disk.open(path, OpenMode::Read)?, disk.open(&folder.join(name), OpenMode::Truncate)?);
        let mut position = 0;
        loop {
            let bytes = from.read_at(position, COPY_BYTES)?;
            if bytes.is_empty() {
                break;
            }
            write_all_at(&*to, position, &mut [IoSlice::new(&bytes)])?;
            position += bytes.len() as u64;
        }
        to.sync_data()?;
        disk.sync_dir(&folder)?;
        disk.sync_dir(meta)
    };
    copy().map_err(|error| LogError::io(&folder, "copy the damaged journal aside", error))?;
    Ok(folder)
}
