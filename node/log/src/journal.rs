//! The meta journal: small values of every log (votes, marks) in one file per store.
//!
//! Promise: a record is durable when its `done` fires, and a round's records are durable before anything that the round
//! writes to segments (the scheduler flushes the journal first), so a vote precedes later appends.
//!
//! Invariants:
//! - `durable <= end`; each record carries the `durable` of the moment it was encoded, so that recovery can tell a torn
//!   tail (cut) from damage to something acknowledged (an error).
//! - The map in memory is ahead of the file by at most what is queued.
//! - A file is never rewritten in place: the live records go to a new file, which replaces the old by rename. An error after
//!   the rename stops the journal: a crash may bring either file back, so that neither may get another record.
//!
//! Neighbours: every part of the store holds the [`Journal`]; the [`JournalFile`] belongs to the flush scheduler. Names no log
//! state and no thread; the values of the engine's own keys are in `marks.rs`, and how much of the file was durable when it was
//! closed is in `journal_end.rs`. `journal/salvage.rs` reads what is left of a damaged one.

mod salvage;

use std::{
    io::{self, IoSlice},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

pub use salvage::SalvagedJournal;

use bytes::Bytes;
use hashbrown::HashMap;
use parking_lot::Mutex;
use uuid::Uuid;

use crate::{
    Done, LogError, LogId,
    bytes_le::{align8, get_u32, get_u64, put_u32, put_u64},
    disk::{Disk, DiskFile, OpenMode, write_all_at},
    done::complete,
    journal_end::JournalEnd,
};

const MAGIC: &[u8; 8] = b"CHRNLJNL";
const VERSION: u32 = 1;
const FILE_HEADER: usize = 56;
const RECORD_HEADER: usize = 40;
const PREFIX: usize = 8;
/// Largest value, in bytes.
pub const MAX_JOURNAL_VALUE: usize = 64 << 10;
/// Most bytes that may wait for a flush.
const MAX_QUEUED: usize = 16 << 20;

/// The owner of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Space {
    /// Put by the caller of the store.
    User = 0,
    /// Put by the engine.
    Engine = 1,
}

/// Keys of the engine.
pub(crate) mod engine_key {
    /// u64: every entry below this index is on disk.
    pub(crate) const DURABLE_MARK: u8 = 0;
    /// `CleanMark`: the log was closed and not written since.
    pub(crate) const CLEAN: u8 = 1;
    /// `StartMark`: where the log starts, once that is not index 0.
    pub(crate) const START: u8 = 2;
    /// Empty: the log is being deleted.
    pub(crate) const DELETING: u8 = 3;
    /// A log id: segments that name it belong to this log as well as its own.
    pub(crate) const ORIGIN: u8 = 4;
    /// `LostTail`: what was cut off the log's end when it was opened, until its owner has settled that.
    pub(crate) const LOST_TAIL: u8 = 5;
}

pub(crate) type Key = (LogId, Space, u8);

#[derive(Debug, Clone)]
enum JournalRecord {
    Put(Key, Bytes),
    Remove(Key),
    RemoveLog(LogId),
    /// Carries only the durable mark that every record has.
    Mark,
}

impl JournalRecord {
    fn len(&self) -> u64 {
        record_len(if let Self::Put(_, value) = self { value.len() } else { 0 })
    }

    fn is_of_user(&self, id: LogId) -> bool {
        matches!(self, Self::Put((log, Space::User, _), _) | Self::Remove((log, Space::User, _)) if *log == id)
    }

    /// A mark vouches for something else. No later record need vouch for it: that would cost busy logs a flush for each.
    fn is_mark(&self) -> bool {
        matches!(self, Self::Mark | Self::Put((_, Space::Engine, engine_key::DURABLE_MARK), _))
    }

    fn encode(&self, durable: u64, seed: u32, out: &mut Vec<u8>) {
        let nil = LogId { topic: Uuid::nil(), partition: 0 };
        match self {
            Self::Put(key, value) => Self::encode_put(*key, value, durable, seed, out),
            Self::Remove(key) => Self::encode_any(2, *key, &[], durable, seed, out),
            Self::RemoveLog(id) => Self::encode_any(3, (*id, Space::User, 0), &[], durable, seed, out),
            Self::Mark => Self::encode_any(4, (nil, Space::User, 0), &[], durable, seed, out),
        }
    }

    fn encode_put(key: Key, value: &[u8], durable: u64, seed: u32, out: &mut Vec<u8>) {
        Self::encode_any(1, key, value, durable, seed, out);
    }

    fn encode_any(kind: u8, (id, space, key): Key, value: &[u8], durable: u64, seed: u32, out: &mut Vec<u8>) {
        let mut header = [0; RECORD_HEADER];
        put_u32(&mut header, 0, (RECORD_HEADER - PREFIX + value.len()) as u32);
        header[8] = kind;
        header[9] = space as u8;
        header[10] = key;
        header[12..32].copy_from_slice(&id.to_bytes());
        put_u64(&mut header, 32, durable);
        let crc = record_crc(&header, value, seed);
        put_u32(&mut header, 4, crc);
        out.extend_from_slice(&header);
        out.extend_from_slice(value);
        out.resize(out.len().next_multiple_of(8), 0);
    }

    /// Decodes the record at the start of `bytes`, with its durable mark.
    fn decode(bytes: &Bytes, seed: u32) -> Result<(Self, u64), &'static str> {
        if bytes.len() < RECORD_HEADER {
            return Err("a record header does not fit into what is left");
        }
        let length = get_u32(bytes, 0) as usize;
        if !(RECORD_HEADER - PREFIX..=RECORD_HEADER - PREFIX + MAX_JOURNAL_VALUE).contains(&length) {
            return Err("a record's length is out of range");
        }
        let end = PREFIX + length;
        if end > bytes.len() {
            return Err("a record does not fit into what is left");
        }
        let (header, value) = bytes[..end].split_at(RECORD_HEADER);
        if get_u32(header, 4) != record_crc(header, value, seed) {
            return Err("a record's checksum does not match");
        }
        let mut topic = [0; 16];
        topic.copy_from_slice(&header[12..28]);
        let id = LogId { topic: Uuid::from_bytes(topic), partition: get_u32(header, 28) };
        let space = match header[9] {
            0 => Space::User,
            1 => Space::Engine,
            _ => return Err("a record's key space is unknown"),
        };
        let key = (id, space, header[10]);
        let record = match header[8] {
            1 => Self::Put(key, bytes.slice(RECORD_HEADER..end)),
            2 => Self::Remove(key),
            3 => Self::RemoveLog(id),
            4 => Self::Mark,
            _ => return Err("a record's kind is unknown"),
        };
        Ok((record, get_u64(header, 32)))
    }
}

/// Bytes that a record takes in the file, with padding.
fn record_len(value_len: usize) -> u64 {
    align8((RECORD_HEADER + value_len) as u64)
}

fn record_crc(header: &[u8], value: &[u8], seed: u32) -> u32 {
    let crc = crc32c::crc32c_append(seed, &header[..4]);
    crc32c::crc32c_append(crc32c::crc32c_append(crc, &header[PREFIX..]), value)
}

fn file_seed(node: Uuid, sequence: u64) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(node.as_bytes()), &sequence.to_le_bytes())
}

fn file_name(sequence: u64) -> String {
    format!("journal-{sequence:020}")
}

#[derive(Default)]
struct JournalState {
    /// Boxes, not `Bytes`: a few of these stay in memory for every log, open or closed.
    map: HashMap<Key, Box<[u8]>>,
    live_bytes: u64,
    queue: Vec<JournalRecord>,
    queued_bytes: usize,
    /// Records that were in the queue are on their way to the disk.
    flushing: bool,
    dones: Vec<Done>,
    /// Flush in the next round.
    urgent: bool,
    /// Flush at this time of the store's clock at the latest.
    due: Option<Duration>,
    failed: Option<LogError>,
}

impl std::fmt::Debug for Journal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Journal").finish_non_exhaustive()
    }
}

impl JournalState {
    /// Encodes every live record, ordered by key, so that the same history gives the same bytes.
    fn encode_live(&self, seed: u32, out: &mut Vec<u8>) {
        let mut keys: Vec<_> = self.map.iter().collect();
        keys.sort_unstable_by_key(|(key, _)| **key);
        for (key, value) in keys {
            JournalRecord::encode_put(*key, value, 0, seed, out);
        }
    }

    fn apply(&mut self, record: &JournalRecord) {
        match record {
            JournalRecord::Put(key, value) => {
                self.live_bytes += record.len();
                if let Some(old) = self.map.insert(*key, Box::from(&value[..])) {
                    self.live_bytes -= record_len(old.len());
                }
            }
            JournalRecord::Remove(key) => {
                if let Some(old) = self.map.remove(key) {
                    self.live_bytes -= record_len(old.len());
                }
            }
            JournalRecord::RemoveLog(id) => {
                let live = &mut self.live_bytes;
                self.map.retain(|key, value| {
                    let keep = key.0 != *id;
                    if !keep {
                        *live -= record_len(value.len());
                    }
                    keep
                });
            }
            JournalRecord::Mark => {}
        }
    }
}

/// The side that every part of the store uses: the values, and what waits for the disk.
pub(crate) struct Journal {
    state: Mutex<JournalState>,
}

impl Journal {
    /// Puts, or removes (`None`), a key. Visible at once. With `urgent` it goes with the next round, else by `due` at the latest.
    /// Returns whether the scheduler should be woken.
    pub(crate) fn put(
        &self,
        key: Key,
        value: Option<Bytes>,
        urgent: bool,
        due: Duration,
        done: Option<Done>,
    ) -> Result<bool, LogError> {
        if let Some(value) = &value
            && value.len() > MAX_JOURNAL_VALUE
        {
            let rule = "a journal value has at most 65536 bytes";
            return Err(LogError::InvalidConfig { field: "value length", value: value.len() as u64, rule });
        }
        let record = match value {
            Some(value) => JournalRecord::Put(key, value),
            None => JournalRecord::Remove(key),
        };
        self.push(record, urgent, due, done)
    }

    /// Removes every key of a log, urgently.
    pub(crate) fn remove_log(&self, id: LogId, done: Done) -> Result<(), LogError> {
        self.push(JournalRecord::RemoveLog(id), true, Duration::ZERO, Some(done)).map(drop)
    }

    fn push(&self, record: JournalRecord, urgent: bool, due: Duration, done: Option<Done>) -> Result<bool, LogError> {
        let mut state = self.state.lock();
        if let Some(failed) = &state.failed {
            return Err(failed.sticky());
        }
        let len = record.len() as usize;
        if state.queued_bytes + len > MAX_QUEUED {
            return Err(LogError::Overloaded { pending: state.queued_bytes as u64, limit: MAX_QUEUED as u64 });
        }
        state.apply(&record);
        state.queue.push(record);
        state.queued_bytes += len;
        state.dones.extend(done);
        let wake = urgent || state.due.is_none_or(|old| due < old);
        state.urgent |= urgent;
        state.due = Some(state.due.map_or(due, |old| old.min(due)));
        Ok(wake)
    }

    /// Calls `done` once no value of the caller's for this log waits for the disk any more: at once if none does. Returns whether
    /// the scheduler should be woken.
    pub(crate) fn settle(&self, id: LogId, done: Done) -> Result<bool, LogError> {
        let mut state = self.state.lock();
        if let Some(failed) = &state.failed {
            return Err(failed.sticky());
        }
        let waits = state.flushing || state.queue.iter().any(|record| record.is_of_user(id));
        if waits {
            state.dones.push(done);
            state.urgent = true;
            return Ok(true);
        }
        drop(state);
        complete(done, Ok(()));
        Ok(false)
    }

    pub(crate) fn get(&self, key: Key) -> Option<Bytes> {
        self.state.lock().map.get(&key).map(|value| Bytes::copy_from_slice(value))
    }

    /// Logs that have a key of the engine.
    pub(crate) fn logs_with(&self, engine_key: u8) -> Vec<LogId> {
        let state = self.state.lock();
        let has = |key: &&Key| key.1 == Space::Engine && key.2 == engine_key;
        let mut logs: Vec<LogId> = state.map.keys().filter(has).map(|key| key.0).collect();
        logs.sort_unstable();
        logs
    }

    /// Whether a flush is wanted now, and if not, when.
    pub(crate) fn wanted(&self) -> (bool, Option<Duration>) {
        let state = self.state.lock();
        (state.urgent, state.due)
    }

    /// Closes the journal to further records, unless some still wait for a flush. Returns whether it is closed.
    pub(crate) fn close_if_empty(&self) -> bool {
        let mut state = self.state.lock();
        if state.failed.is_none() && !state.queue.is_empty() {
            return false;
        }
        state.failed.get_or_insert(LogError::Closed);
        true
    }

    pub(crate) fn failure(&self) -> Option<LogError> {
        self.state.lock().failed.clone()
    }

    /// Stops the journal for good. Returns what waits for a flush that will not come.
    fn fail(&self, error: &LogError) -> Vec<Done> {
        let mut state = self.state.lock();
        state.failed = Some(error.clone());
        std::mem::take(&mut state.dones)
    }
}

/// The file side, owned by the flush scheduler.
#[derive(Debug)]
pub(crate) struct JournalFile {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    node: Uuid,
    sequence: u64,
    path: PathBuf,
    file: Arc<dyn DiskFile>,
    /// End of what was written.
    end: u64,
    /// Everything before this is on disk.
    durable: u64,
    /// Records were flushed whose durability no later record carries yet.
    unconfirmed: bool,
    rewrite_bytes: u64,
}

impl JournalFile {
    /// Opens the newest journal file in `dir`; for a `fresh` data directory makes the first one. Cuts a torn tail; damage
    /// before it, or no journal where there was one, is an error.
    pub(crate) fn open(
        disk: Arc<dyn Disk>,
        dir: &Path,
        node: Uuid,
        rewrite_bytes: u64,
        fresh: bool,
    ) -> Result<(Journal, Self), LogError> {
        // A rename that a killed process did not flush may be undone yet, together with all that is written after it.
        disk.sync_dir(dir).map_err(|error| LogError::io(dir, DIRECTORY, error))?;
        let list = disk.list(dir).map_err(|error| LogError::io(dir, "list the directory", error))?;
        let mut sequences: Vec<u64> = list
            .iter()
            .filter_map(|entry| {
                entry.name.strip_prefix("journal-")?.parse().ok().filter(|n| file_name(*n) == entry.name)
            })
            .collect();
        sequences.sort_unstable();
        let newest = sequences.pop();
        let mut leftovers: Vec<String> = sequences.into_iter().map(file_name).collect();
        leftovers.extend(list.into_iter().map(|entry| entry.name).filter(|name| name.ends_with(".tmp")));

        let state = Mutex::new(JournalState::default());
        let mut journal = match newest {
            _ if fresh => {
                leftovers.extend(newest.map(file_name));
                leftovers.push(JournalEnd::NAME.to_owned());
                let sequence = newest.map_or(1, |newest| newest + 1);
                Self::create(disk.clone(), dir, node, sequence, &state, rewrite_bytes)
                    .map_err(CreateError::into_inner)?
            }
            None => return Err(LogError::damaged(dir, 0, None, "the journal is missing")),
            Some(sequence) => {
                let closed_at = JournalEnd::read(&*disk, dir, node)?;
                if let Some(lost) = closed_at.filter(|end| end.sequence > sequence) {
                    let path = dir.join(file_name(lost.sequence));
                    return Err(LogError::damaged(path, 0, None, "the journal is missing"));
                }
                let durable = closed_at.filter(|end| end.sequence == sequence).map_or(0, |end| end.durable);
                Self::load(disk.clone(), dir, node, sequence, durable, &mut state.lock(), rewrite_bytes)?
            }
        };
        for name in leftovers {
            let path = dir.join(name);
            match disk.remove_file(&path) {
                // The first journal of a directory took the name of one that an interrupted first start left.
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(LogError::io(&path, "remove a leftover file", error));
                }
                _ => {}
            }
        }
        // Whatever was read may still be only in the page cache of a process that was killed.
        journal.file.sync_data().map_err(|error| LogError::io(&journal.path, "flush the journal", error))?;
        journal.durable = journal.end;
        journal.unconfirmed = journal.end > FILE_HEADER as u64;
        Ok((Journal { state }, journal))
    }

    /// Writes a new file with the live records and gives it its name, durably.
    fn create(
        disk: Arc<dyn Disk>,
        dir: &Path,
        node: Uuid,
        sequence: u64,
        live: &Mutex<JournalState>,
        rewrite_bytes: u64,
    ) -> Result<Self, CreateError> {
        let seed = file_seed(node, sequence);
        let mut bytes = vec![0; FILE_HEADER];
        live.lock().encode_live(seed, &mut bytes);
        let end = bytes.len() as u64;
        bytes[..8].copy_from_slice(MAGIC);
        put_u32(&mut bytes, 8, VERSION);
        bytes[16..32].copy_from_slice(node.as_bytes());
        put_u64(&mut bytes, 32, sequence);
        put_u64(&mut bytes, 40, end);
        let crc = crc32c::crc32c(&bytes[..52]);
        put_u32(&mut bytes, 52, crc);

        let path = dir.join(file_name(sequence));
        let aside = dir.join(format!("{}.tmp", file_name(sequence)));
        let io = |action| {
            let path = path.clone();
            move |error| LogError::io(path, action, error)
        };
        let unnamed = |action| {
            let io = io(action);
            move |error| CreateError::Unnamed(io(error))
        };
        let file = disk.open(&aside, OpenMode::Truncate).map_err(unnamed("create the journal"))?;
        write_all_at(&*file, 0, &mut [IoSlice::new(&bytes)]).map_err(unnamed("write the journal"))?;
        file.sync_data().map_err(unnamed("flush the journal"))?;
        disk.rename(&aside, &path).map_err(|error| match io("rename the journal")(error) {
            // The directory has no room for the name. After any other error it may have been given.
            error @ LogError::NoSpace { .. } => CreateError::Unnamed(error),
            error => CreateError::Named(error),
        })?;
        let _ = crate::mutant!("journal-name-not-synced")
            || disk
                .sync_dir(dir)
                .map(|()| true)
                .map_err(|error| CreateError::Named(flush_failed(&path, DIRECTORY, error)))?;
        Ok(Self {
            disk,
            dir: dir.to_owned(),
            node,
            sequence,
            path,
            file,
            end,
            durable: end,
            unconfirmed: false,
            rewrite_bytes,
        })
    }

    /// Reads a file whose first `durable` bytes are known to have been on disk.
    fn load(
        disk: Arc<dyn Disk>,
        dir: &Path,
        node: Uuid,
        sequence: u64,
        durable: u64,
        state: &mut JournalState,
        rewrite_bytes: u64,
    ) -> Result<Self, LogError> {
        let path = dir.join(file_name(sequence));
        let io = |action| {
            let path = path.clone();
            move |error| LogError::io(path, action, error)
        };
        let file = disk.open(&path, OpenMode::Write).map_err(io("open the journal"))?;
        let len = file.len().map_err(io("read the journal"))?;
        let bytes = Bytes::from(file.read_at(0, len as usize).map_err(io("read the journal"))?);
        if bytes.len() < FILE_HEADER || &bytes[..8] != MAGIC || get_u32(&bytes, 52) != crc32c::crc32c(&bytes[..52]) {
            return Err(LogError::damaged(&path, 0, None, "the journal's header does not match its checksum"));
        }
        if get_u32(&bytes, 8) > VERSION {
            return Err(LogError::NewerFormat { path, found: get_u32(&bytes, 8), supported: VERSION });
        }
        if bytes[16..32] != *node.as_bytes() || get_u64(&bytes, 32) != sequence {
            return Err(LogError::damaged(&path, 16, None, "the journal belongs to another data directory"));
        }
        let seed = file_seed(node, sequence);
        let mut marked = get_u64(&bytes, 40).max(durable);
        let mut at = FILE_HEADER;
        let mut bad = None;
        while at < bytes.len() {
            match JournalRecord::decode(&bytes.slice(at..), seed) {
                Ok((record, mark)) => {
                    state.apply(&record);
                    marked = marked.max(mark);
                    at += record.len() as usize;
                }
                Err(reason) => {
                    bad = Some(reason);
                    break;
                }
            }
        }
        // Blocks reach the disk in any order: a record after the bad one may carry a mark that covers it.
        let mut ahead = at + 8;
        while bad.is_some() && ahead + RECORD_HEADER <= bytes.len() {
            match JournalRecord::decode(&bytes.slice(ahead..), seed) {
                Ok((record, mark)) => {
                    marked = marked.max(mark);
                    ahead += record.len() as usize;
                }
                Err(_) => ahead += 8,
            }
        }
        if marked > at as u64 {
            let reason = format!("{}, but everything up to byte {marked} was durable", bad.unwrap_or("the file ends"));
            return Err(LogError::damaged(&path, at as u64, None, reason));
        }
        let end = at as u64;
        if let Some(reason) = bad {
            tracing::info!(
                ?path,
                position = end,
                bytes = len.saturating_sub(end),
                reason,
                "cut a torn tail off the journal"
            );
            file.set_len(end).map_err(io("cut the torn tail of the journal"))?;
        }
        let dir = dir.to_owned();
        Ok(Self { disk, dir, node, sequence, path, file, end, durable: 0, unconfirmed: true, rewrite_bytes })
    }

    /// Flushes everything queued and calls each `done`, with the error if there is one. Returns whether anything was flushed.
    /// When the volume is full the records stay queued and are due again at `retry_at`.
    pub(crate) fn flush(&mut self, journal: &Journal, retry_at: Duration) -> Result<bool, LogError> {
        let (queue, queued_bytes, dones) = {
            let mut state = journal.state.lock();
            state.urgent = false;
            state.due = None;
            if let Some(failed) = &state.failed {
                return Err(failed.sticky());
            }
            let queued_bytes = std::mem::take(&mut state.queued_bytes);
            state.flushing = !state.queue.is_empty();
            (std::mem::take(&mut state.queue), queued_bytes, std::mem::take(&mut state.dones))
        };
        if queue.is_empty() {
            // Their values went with the flush before.
            dones.into_iter().for_each(|done| complete(done, Ok(())));
            return Ok(false);
        }
        let mut bytes = Vec::with_capacity(queued_bytes);
        let seed = file_seed(self.node, self.sequence);
        for record in &queue {
            record.encode(self.durable, seed, &mut bytes);
        }
        let result = self.write(&bytes);
        let mut late = Vec::new();
        match &result {
            Ok(()) => {
                self.unconfirmed = !queue.iter().all(JournalRecord::is_mark);
                journal.state.lock().flushing = false;
            }
            Err(LogError::NoSpace { .. }) => {
                // Nothing was synced and `end` did not move: the records go first into the next flush, which writes
                // over whatever part of them got there. Their callers learn now that they are not durable.
                let mut state = journal.state.lock();
                state.flushing = false;
                state.queued_bytes += queued_bytes;
                let newer = std::mem::replace(&mut state.queue, queue);
                state.queue.extend(newer);
                state.due = Some(retry_at);
            }
            Err(error) => late = journal.fail(error),
        }
        for done in dones {
            complete(done, result.clone());
        }
        if let Err(error) = &result {
            // What was queued in the meantime will never be flushed.
            late.into_iter().for_each(|done| complete(done, Err(error.sticky())));
        }
        result.map(|()| true)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), LogError> {
        let io = |action| {
            let path = self.path.clone();
            move |error: io::Error| LogError::io(path, action, error)
        };
        write_all_at(&*self.file, self.end, &mut [IoSlice::new(bytes)]).map_err(io("write to the journal"))?;
        self.file.sync_data().map_err(|error| flush_failed(&self.path, "flush the journal", error))?;
        self.end += bytes.len() as u64;
        self.durable = self.end;
        Ok(())
    }

    /// Whether records were flushed whose durability no later record carries.
    pub(crate) fn unconfirmed(&self) -> bool {
        self.unconfirmed
    }

    /// Queues a mark: a record that carries how much is durable now.
    pub(crate) fn confirm(&mut self, journal: &Journal, now: Duration) {
        self.unconfirmed = false;
        let mut state = journal.state.lock();
        state.queued_bytes += JournalRecord::Mark.len() as usize;
        state.queue.push(JournalRecord::Mark);
        state.due = Some(now);
    }

    /// Whether the file has grown so far that rewriting it should not wait for an idle moment.
    pub(crate) fn overgrown(&self) -> bool {
        self.end >= self.rewrite_bytes.saturating_mul(4)
    }

    /// Moves to a new file when the present one is large and mostly dead. Call with nothing urgent waiting.
    ///
    /// # Errors
    /// What stopped the journal. An error that leaves one file to go on with is only logged.
    pub(crate) fn rewrite_if_due(&mut self, journal: &Journal) -> Result<(), LogError> {
        let live = journal.state.lock().live_bytes;
        if self.end < self.rewrite_bytes || self.end < live.saturating_mul(4) {
            return Ok(());
        }
        // What is live includes queued records; they will be written again to the new file, which changes nothing.
        let sequence = self.sequence + 1;
        let live = &journal.state;
        let next = match Self::create(self.disk.clone(), &self.dir, self.node, sequence, live, self.rewrite_bytes) {
            Ok(next) => next,
            Err(CreateError::Unnamed(error)) => {
                tracing::warn!(%error, "cannot rewrite the journal; it keeps growing");
                return Ok(());
            }
            Err(CreateError::Named(error)) => {
                for done in journal.fail(&error) {
                    complete(done, Err(error.sticky()));
                }
                return Err(error);
            }
        };
        let old = std::mem::replace(self, next);
        if let Err(error) = self.disk.remove_file(&old.path) {
            tracing::warn!(path = ?old.path, %error, "cannot remove the old journal; the next start removes it");
        }
        Ok(())
    }

    /// Notes beside the file how much of it is durable, so that the next start notices when its end is missing. Without the note
    /// a missing end looks like a torn write. Call when the journal is closed.
    pub(crate) fn note_end(&self) -> Result<(), LogError> {
        JournalEnd { sequence: self.sequence, durable: self.durable }.write(&*self.disk, &self.dir, self.node)
    }
}

const DIRECTORY: &str = "flush the directory of the journal";

/// After a failed flush the bytes may be anywhere: never a mere lack of space, which could be tried again.
fn flush_failed(path: &Path, action: &'static str, error: io::Error) -> LogError {
    match LogError::io(path, action, error) {
        LogError::NoSpace { path, action } => {
            LogError::Io { path, action, source: Arc::new(io::ErrorKind::StorageFull.into()) }
        }
        error => error,
    }
}

/// Why there is no new journal file.
enum CreateError {
    /// It has no name: the old file is the journal.
    Unnamed(LogError),
    /// It may have its name: which file a later start finds is unknown.
    Named(LogError),
}

impl CreateError {
    fn into_inner(self) -> LogError {
        match self {
            Self::Unnamed(error) | Self::Named(error) => error,
        }
    }
}
