//! One log: the handle that callers hold, and the state behind it.
//!
//! Invariants of [`State`]:
//! - `durable_next <= written_next <= next_index`: on disk, in the page cache, accepted (all exclusive ends).
//! - Every entry from `written_next` on is in `tail`; `tail` is contiguous and ends at `next_index`.
//! - `segments` is contiguous and covers exactly `first_index..written_next`.
//! - Whoever holds the [`Writer`] (a round of the scheduler, or a change such as a truncation) alone writes the log's
//!   files; everybody else finds `None`. Only the sealer writes without it: footers of segments that no writer touches any
//!   more, under `seal_lock`.
//!
//! Lock order: writer token, `seal_lock`, `state`, then the store's small locks (journal, scheduler queue, open files).
//! No callback runs under a lock.

mod change;
mod checkpoint;
mod read;
mod recover;
mod repair;
mod verify;
mod write;

use std::{
    collections::VecDeque,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::{
    Done, Durability, Entry, EntryKind, LogConfig, LogError, LogId, StoredEntry,
    disk::DiskFile,
    frame::{Expect, FRAME_HEADER, MAX_PAYLOAD},
    index::SparseIndex,
    segment::Contents,
    shared::Shared,
};

pub(crate) use recover::CleanMark;
pub use repair::Cut;
pub(crate) use repair::prune_quarantines;
pub(crate) use write::{Piece, Writer};

/// Memory that one cached entry takes beside its payload, roughly.
const ENTRY_OVERHEAD: u64 = 128;

/// What [`Log::append`] promises at once: where the entries will be, if they become durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Appended {
    /// Base offset of the first entry.
    pub first_base_offset: u64,
    /// Offset that the next record will take (exclusive end).
    pub next_offset: u64,
}

/// The newest entry of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LastEntry {
    /// Raft index.
    pub index: u64,
    /// Raft term.
    pub term: u64,
    /// Raft id of the leader that made it.
    pub leader: u64,
}

/// Where a log begins and ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogPosition {
    /// First index stored; the next index if the log is empty.
    pub first_index: u64,
    /// The newest entry, `None` if the log is empty.
    pub last: Option<LastEntry>,
    /// Index that the next append must start with.
    pub next_index: u64,
    /// First offset stored.
    pub start_offset: u64,
    /// Offset that the next record takes (exclusive end).
    pub next_offset: u64,
    /// Newest index on disk (inclusive), `None` if no stored entry is.
    pub durable_index: Option<u64>,
    /// Bytes of segment files.
    pub bytes: u64,
    /// Segment files.
    pub segments: usize,
}

/// One segment file of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentInfo {
    /// First index.
    pub base_index: u64,
    /// First index after the segment.
    pub next_index: u64,
    /// Offset of its first record.
    pub base_offset: u64,
    /// First offset after the segment.
    pub next_offset: u64,
    /// Bytes of the file, with header and footer.
    pub bytes: u64,
    /// Smallest timestamp of its data entries (each entry's greatest), `None` if it has none.
    pub min_timestamp: Option<i64>,
    /// Greatest timestamp, `None` if it has no data entries.
    pub max_timestamp: Option<i64>,
    /// Its [`crate::ContentHash`], equal on every replica that cut its segments at the same places; `None` until it is sealed.
    pub content_hash: Option<[u8; 32]>,
}

/// What [`Log::delete_before`] removed, and where the log starts now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeletedSegments {
    /// Segments removed.
    pub segments: usize,
    /// Bytes of their files.
    pub bytes: u64,
    /// First index still stored.
    pub first_index: u64,
    /// First offset still stored.
    pub start_offset: u64,
}

/// One log, open. Dropping the last handle without [`Log::close`] closes the log in the background, once what was appended is
/// flushed; nobody hears of a failure then.
#[derive(Debug)]
pub struct Log {
    pub(crate) inner: Arc<LogInner>,
}

#[derive(Debug)]
pub(crate) struct LogInner {
    pub(crate) id: LogId,
    pub(crate) dir: PathBuf,
    pub(crate) config: LogConfig,
    pub(crate) shared: Arc<Shared>,
    pub(crate) state: Mutex<State>,
    /// Signalled when the writer is given back, a change ends, a seal ends, or the log fails.
    pub(crate) changed: Condvar,
    /// Held while a footer is written, and by changes that move segment ends.
    pub(crate) seal_lock: Mutex<()>,
    /// The log's directory is known to have survived in its parent.
    pub(crate) dir_durable: AtomicBool,
}

pub(crate) struct State {
    pub(crate) segments: VecDeque<Segment>,
    /// The last segment may still be written to.
    pub(crate) last_is_active: bool,
    pub(crate) tail: VecDeque<StoredEntry>,
    pub(crate) tail_bytes: u64,
    pub(crate) next_index: u64,
    pub(crate) next_offset: u64,
    pub(crate) last: Option<LastEntry>,
    pub(crate) written_next: u64,
    pub(crate) durable_next: u64,
    /// `durable_next` as the journal knows it.
    pub(crate) marked: u64,
    pub(crate) pending: VecDeque<Pending>,
    pub(crate) writer: Option<Box<Writer>>,
    /// Stands in the scheduler's queue.
    pub(crate) queued: bool,
    /// A change holds, or waits for, the writer: appends wait.
    pub(crate) changing: bool,
    /// The next round is to flush, whatever the durability mode says.
    pub(crate) sync_now: bool,
    /// The scheduler has a timer for the idle mark, or for the flush of a memory log.
    pub(crate) mark_armed: bool,
    pub(crate) flush_armed: bool,
    /// Counts truncations and resets, so that readers and the sealer notice one.
    pub(crate) generation: u64,
    /// Segments waiting for the sealer.
    pub(crate) sealing: usize,
    pub(crate) failure: Option<LogError>,
    pub(crate) closed: bool,
}

/// An append that was not answered yet.
pub(crate) struct Pending {
    /// Index after its last entry.
    pub(crate) next_index: u64,
    pub(crate) bytes: u64,
    pub(crate) done: Done,
}

pub(crate) struct Segment {
    pub(crate) contents: Contents,
    pub(crate) phase: Phase,
}

pub(crate) enum Phase {
    /// Not sealed: the file stays open and the index is in memory.
    Open { file: Arc<dyn DiskFile>, index: SparseIndex, seal_queued: bool },
    /// Has a footer; file and index come from the store's bounded set of open files.
    Sealed { hash: [u8; 32] },
}

impl Segment {
    pub(crate) fn file_len(&self) -> u64 {
        match self.phase {
            Phase::Open { .. } => self.contents.data_len,
            Phase::Sealed { .. } => self.contents.data_len + crate::segment::FOOTER as u64,
        }
    }
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State")
            .field("next_index", &self.next_index)
            .field("written_next", &self.written_next)
            .field("durable_next", &self.durable_next)
            .field("segments", &self.segments.len())
            .finish_non_exhaustive()
    }
}

impl State {
    /// An empty log at a place.
    pub(crate) fn empty_at(expect: Expect) -> Self {
        Self {
            segments: VecDeque::new(),
            last_is_active: false,
            tail: VecDeque::new(),
            tail_bytes: 0,
            next_index: expect.index,
            next_offset: expect.offset,
            last: None,
            written_next: expect.index,
            durable_next: expect.index,
            marked: 0,
            pending: VecDeque::new(),
            writer: None,
            queued: false,
            changing: false,
            sync_now: false,
            mark_armed: false,
            flush_armed: false,
            generation: 0,
            sealing: 0,
            failure: None,
            closed: false,
        }
    }

    pub(crate) fn first_index(&self) -> u64 {
        self.segments.front().map_or(self.written_next, |segment| segment.contents.base_index)
    }

    pub(crate) fn start_offset(&self) -> u64 {
        // Without segments nothing is written yet, so that everything stored is in the tail.
        match (self.segments.front(), self.tail.front()) {
            (Some(segment), _) => segment.contents.base_offset,
            (None, Some(stored)) => stored.base_offset,
            (None, None) => self.next_offset,
        }
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.segments.iter().map(Segment::file_len).sum()
    }

    /// Index of the first entry in memory.
    pub(crate) fn tail_first(&self) -> u64 {
        self.next_index - self.tail.len() as u64
    }

    fn check_usable(&self) -> Result<(), LogError> {
        match &self.failure {
            Some(failure) => Err(failure.sticky()),
            None if self.closed => Err(LogError::Closed),
            None => Ok(()),
        }
    }

    /// Nothing in the background touches, or is about to touch, the log's files.
    pub(crate) fn is_idle(&self) -> bool {
        let busy = self.changing || self.queued || self.sealing > 0 || !self.pending.is_empty();
        !busy && self.writer.is_some()
    }

    /// Takes the appends out that are answered once everything below `next` is safe.
    pub(crate) fn take_answered(&mut self, next: u64) -> Vec<Pending> {
        let count = self.pending.partition_point(|pending| pending.next_index <= next);
        self.pending.drain(..count).collect()
    }

    /// Forgets cached entries below `limit`. Returns the bytes freed.
    pub(crate) fn forget_below(&mut self, limit: u64) -> u64 {
        let count = usize::try_from(limit.saturating_sub(self.tail_first())).unwrap_or(usize::MAX).min(self.tail.len());
        let freed = self.tail.drain(..count).map(|stored| cached_bytes(&stored)).sum();
        self.tail_bytes -= freed;
        if self.tail.is_empty() {
            self.tail.shrink_to(0);
        }
        freed
    }
}

/// Bytes that an entry counts in the tail cache.
pub(crate) fn cached_bytes(stored: &StoredEntry) -> u64 {
    stored.entry.payload.len() as u64 + ENTRY_OVERHEAD
}

impl LogInner {
    /// Answers appends; never called under a lock.
    pub(crate) fn answer(&self, answered: Vec<Pending>, result: &Result<(), LogError>) {
        for pending in answered {
            self.shared.metrics.pending_bytes.sub(pending.bytes);
            crate::answer(pending.done, result.clone());
        }
    }

    /// Stops the log for good: every append that waits, and every later one, gets the error.
    pub(crate) fn fail(&self, error: LogError) {
        let answered = {
            let mut state = self.state.lock();
            if state.failure.is_none() {
                tracing::error!(log = %self.id, %error, durable_next = state.durable_next, "log stopped");
                self.shared.metrics.failed_logs.add(1);
                self.shared.failed.lock().insert(self.id, state.durable_next);
                state.failure = Some(error.clone());
            }
            state.pending.drain(..).collect()
        };
        self.answer(answered, &Err(error));
        self.changed.notify_all();
    }

    /// Puts the log into the scheduler's queue unless it is there.
    pub(crate) fn enqueue(self: &Arc<Self>, state: &mut State) {
        if !state.queued && state.writer.is_some() {
            state.queued = true;
            self.shared.queue.push(self.clone());
        }
    }

    /// Hands every finished, unsealed segment to the sealer.
    pub(crate) fn request_seals(self: &Arc<Self>, state: &mut State) {
        let active = usize::from(state.last_is_active);
        let finished = state.segments.len() - active;
        let mut requests = Vec::new();
        for segment in state.segments.range_mut(..finished).rev() {
            match &mut segment.phase {
                Phase::Open { seal_queued, .. } if !*seal_queued => *seal_queued = true,
                _ => break,
            }
            requests.push(segment.contents.base_index);
        }
        state.sealing += requests.len();
        for base_index in requests.into_iter().rev() {
            self.shared.sealer.push(self.clone(), base_index);
        }
    }

    pub(crate) fn segment_bytes(&self) -> u64 {
        match self.config.segment_bytes {
            0 => self.shared.config.segment_bytes,
            bytes => bytes,
        }
    }

    /// Waits until something about the log changed, or, in a driven store, works meanwhile. May return for no reason.
    pub(crate) fn wait(&self, state: &mut MutexGuard<'_, State>) {
        if !self.shared.is_driven() {
            self.changed.wait(state);
        } else if !MutexGuard::unlocked(state, || self.shared.drive()) {
            // Somebody else drives just now.
            self.changed.wait_for(state, crate::driver::OTHERS);
        }
    }

    /// Waits until no entry waits for the disk and takes the writer; appends wait until [`Self::end_change`].
    pub(crate) fn begin_change(self: &Arc<Self>) -> Result<Box<Writer>, LogError> {
        let mut state = self.state.lock();
        while state.changing {
            self.wait(&mut state);
        }
        state.check_usable()?;
        state.changing = true;
        loop {
            if let Err(error) = state.check_usable() {
                state.changing = false;
                self.changed.notify_all();
                return Err(error);
            }
            if state.durable_next == state.next_index
                && state.pending.is_empty()
                && let Some(writer) = state.writer.take()
            {
                return Ok(writer);
            }
            state.sync_now = true;
            self.enqueue(&mut state);
            self.wait(&mut state);
        }
    }

    /// Gives the writer back after a change.
    pub(crate) fn end_change(self: &Arc<Self>, mut state: MutexGuard<'_, State>, writer: Box<Writer>) {
        state.writer = Some(writer);
        state.changing = false;
        state.sync_now = false;
        drop(state);
        self.changed.notify_all();
    }

    /// Lets go of what a closed log holds.
    pub(crate) fn release(&self, state: &mut State) {
        self.shared.metrics.cache_bytes.sub(state.tail_bytes);
        state.tail.clear();
        state.tail_bytes = 0;
    }
}

impl Log {
    /// The log's name.
    pub fn id(&self) -> LogId {
        self.inner.id
    }

    /// The log's directory.
    pub fn dir(&self) -> &Path {
        &self.inner.dir
    }

    /// Adds entries at the end. They can be read as soon as this returns; `done` is called exactly once when they are durable
    /// or have failed, in the order of appends, on a thread of the store: it must be quick and must not wait for this log.
    /// When this returns an error nothing was added and `done` is dropped without a call.
    ///
    /// The first entry's index must be [`LogPosition::next_index`] and the others must follow. May wait for a truncation,
    /// reset or close that is under way.
    ///
    /// # Errors
    /// [`LogError::NotContiguous`], [`LogError::InvalidEntry`], [`LogError::Overloaded`] (retry later),
    /// [`LogError::Failed`] (until reopened), [`LogError::Closed`].
    pub fn append(&self, entries: Vec<Entry>, done: Done) -> Result<Appended, LogError> {
        let inner = &self.inner;
        let metrics = &inner.shared.metrics;
        let payload: u64 = entries.iter().map(|entry| entry.payload.len() as u64).sum();
        let pending = payload + (entries.len() * FRAME_HEADER) as u64;

        let mut state = inner.state.lock();
        while state.changing {
            inner.wait(&mut state);
        }
        state.check_usable()?;
        check_entries(&entries, state.next_index, state.next_offset)?;
        let limit = inner.shared.config.max_pending_bytes;
        if let Err(waiting) = metrics.pending_bytes.add_within(pending, limit) {
            metrics.overloaded.add(1);
            return Err(LogError::Overloaded { pending: waiting, limit });
        }

        let first_base_offset = state.next_offset;
        let count = entries.len() as u64;
        state.tail.reserve(entries.len());
        let mut cached = 0;
        for entry in entries {
            let stored = StoredEntry { base_offset: state.next_offset, entry };
            state.next_offset = stored.next_offset();
            let Entry { index, term, leader, .. } = stored.entry;
            state.last = Some(LastEntry { index, term, leader });
            cached += cached_bytes(&stored);
            state.tail.push_back(stored);
        }
        state.next_index += count;
        state.tail_bytes += cached;
        metrics.cache_bytes.add(cached);
        let next_index = state.next_index;
        state.pending.push_back(Pending { next_index, bytes: pending, done });
        let next_offset = state.next_offset;
        inner.enqueue(&mut state);
        drop(state);
        metrics.appended_bytes.add(payload);
        metrics.appended_entries.add(count);
        Ok(Appended { first_base_offset, next_offset })
    }

    /// Where the log begins and ends.
    pub fn position(&self) -> LogPosition {
        let state = self.inner.state.lock();
        let first_index = state.first_index();
        LogPosition {
            first_index,
            last: state.last,
            next_index: state.next_index,
            start_offset: state.start_offset(),
            next_offset: state.next_offset,
            durable_index: (state.durable_next > first_index).then(|| state.durable_next - 1),
            bytes: state.bytes(),
            segments: state.segments.len(),
        }
    }

    /// Every segment file, oldest first.
    pub fn segments(&self) -> Vec<SegmentInfo> {
        let info = |segment: &Segment| {
            let contents = &segment.contents;
            let has_data = contents.max_timestamp >= contents.min_timestamp;
            SegmentInfo {
                base_index: contents.base_index,
                next_index: contents.next_index,
                base_offset: contents.base_offset,
                next_offset: contents.next_offset,
                bytes: segment.file_len(),
                min_timestamp: has_data.then_some(contents.min_timestamp),
                max_timestamp: has_data.then_some(contents.max_timestamp),
                content_hash: match segment.phase {
                    Phase::Sealed { hash } => Some(hash),
                    Phase::Open { .. } => None,
                },
            }
        };
        self.inner.state.lock().segments.iter().map(info).collect()
    }

    /// The failure that stopped this log, if one did. It accepts nothing more until it is opened again.
    pub fn failure(&self) -> Option<LogError> {
        self.inner.state.lock().failure.clone()
    }

    /// Waits until everything appended so far is on disk, whatever the durability mode.
    ///
    /// # Errors
    /// The failure that stopped the log.
    pub fn flush(&self) -> Result<(), LogError> {
        let inner = &self.inner;
        let mut state = inner.state.lock();
        let target = state.next_index;
        let generation = state.generation;
        while state.durable_next < target && state.generation == generation {
            state.check_usable()?;
            state.sync_now = true;
            inner.enqueue(&mut state);
            inner.wait(&mut state);
        }
        Ok(())
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        let inner = &self.inner;
        let mut state = inner.state.lock();
        if state.closed {
            return;
        }
        // Never waits: the last handle may be dropped by a `done` on the scheduler's own thread. What is pending still gets
        // flushed, then the scheduler lets the log rest; opening the log again waits for that.
        state.closed = true;
        inner.rest_if_done(state);
    }
}

impl LogInner {
    /// Waits until a log that was dropped without `close` has no work left in the background.
    pub(crate) fn wait_abandoned(&self) {
        let mut state = self.state.lock();
        while !state.is_idle() {
            self.wait(&mut state);
        }
        self.rest(&mut state);
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.state.lock().closed
    }

    pub(crate) fn is_fsync(&self) -> bool {
        self.config.durability == Durability::Fsync
    }

    /// Makes sure that the log's directory survives a crash.
    pub(crate) fn make_dir_durable(&self) -> Result<(), LogError> {
        if !self.dir_durable.load(Ordering::Acquire) {
            let parent = self.shared.logs_dir();
            let sync = self.shared.disk.sync_dir(&parent);
            sync.map_err(|error| LogError::io(&parent, "flush the directory", error))?;
            self.dir_durable.store(true, Ordering::Release);
        }
        Ok(())
    }
}

fn check_entries(entries: &[Entry], next_index: u64, next_offset: u64) -> Result<(), LogError> {
    let mut expected = next_index;
    let mut offset = next_offset;
    for entry in entries {
        let index = entry.index;
        let invalid = |field, value, rule| Err(LogError::InvalidEntry { index, field, value, rule });
        if index != expected {
            return Err(LogError::NotContiguous { expected, found: index });
        }
        if entry.payload.len() > MAX_PAYLOAD {
            return invalid("payload length", entry.payload.len() as u64, "at most 268435456 bytes fit into one entry");
        }
        match (entry.kind, entry.record_count) {
            (EntryKind::Data, 0) => return invalid("record_count", 0, "a data entry has at least one record"),
            (EntryKind::Data, _) | (_, 0) => {}
            (_, count) => return invalid("record_count", u64::from(count), "a control entry has no records"),
        }
        let Some(next) = offset.checked_add(entry.offsets()).filter(|next| *next < u64::MAX) else {
            return invalid("base offset", offset, "offsets end below 2^64 - 1");
        };
        offset = next;
        let Some(next) = expected.checked_add(1).filter(|next| *next < u64::MAX) else {
            return invalid("index", index, "indexes end below 2^64 - 2");
        };
        expected = next;
    }
    Ok(())
}
