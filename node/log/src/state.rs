//! The state of one log: what is accepted, written and durable, which appends wait, and who may write.
//!
//! Invariants of [`LogState`], whose fields only this file sets:
//! - `durable_next <= written_next <= next_index`: on disk, in the page cache, accepted (all exclusive ends).
//! - Every entry from `written_next` on is in the [`Tail`], which ends at `next_index`.
//! - The [`SegmentList`] covers exactly `first_index..written_next`.
//! - Only the thread that took the [`Writer`] out (a round of the scheduler, or a change such as a truncation) writes the log's
//!   files; any other thread finds `None`. Only the sealer writes without it: footers of segments that no writer touches any more,
//!   under the log's `seal_lock`.
//!
//! Every method is a step of memory alone: none waits, reads a file or takes a lock. Methods that drop entries from memory
//! return the bytes freed, for the store's gauge.
//!
//! Neighbours: `open_log.rs` keeps the state behind its lock. Names no disk, journal, queue or thread.

use std::collections::VecDeque;

use crate::{
    Appended, DeletedSegments, Done, Entry, EntryKind, LastEntry, LogError, LogPosition, StoredEntry,
    frame::{Expect, frame_len},
    marks::CleanMark,
    seed::SegmentVersion,
    segment::Contents,
    segments::{Phase, Segment, SegmentList},
    tail::{Tail, last_entry},
    writer::{Writer, WrittenSegment},
};

/// The state of one log.
pub(crate) struct LogState {
    segments: SegmentList,
    tail: Tail,
    last: Option<LastEntry>,
    written_next: u64,
    durable_next: u64,
    /// `durable_next` as the journal knows it.
    marked: u64,
    pending: VecDeque<PendingAppend>,
    writer: Option<Box<Writer>>,
    /// In the scheduler's queue.
    queued: bool,
    /// A change holds, or waits for, the writer: appends wait.
    changing: bool,
    /// The next round is to flush, whatever the durability mode.
    flush_requested: bool,
    /// The scheduler has a timer for the durable mark.
    mark_timer: bool,
    /// The scheduler has a timer for the flush of a log in memory mode.
    flush_timer: bool,
    /// Counts truncations, resets and deletions, so that readers notice one.
    generation: u64,
    /// Segments waiting for the sealer.
    sealing: usize,
    failure: Option<LogError>,
    closed: bool,
}

/// An append whose `done` was not called yet.
pub(crate) struct PendingAppend {
    /// Index after its last entry.
    next_index: u64,
    pub(crate) bytes: u64,
    pub(crate) done: Done,
}

/// What a round takes from a log; see [`LogState::begin_round`].
pub(crate) struct RoundInput {
    pub(crate) writer: Box<Writer>,
    /// The entries that are not written yet.
    pub(crate) entries: Vec<StoredEntry>,
    pub(crate) durable_next: u64,
    /// A flush was requested.
    pub(crate) flush_requested: bool,
}

/// What is to be done for a log once a round has given its writer back; see [`LogState::end_round`].
#[derive(Default)]
pub(crate) struct AfterRound {
    /// Entries were appended meanwhile: the log belongs into the scheduler's queue again.
    pub(crate) more: bool,
    /// Finished segments for the sealer, oldest first.
    pub(crate) seals: Vec<u64>,
    /// Arm the timer for the flush of a log in memory mode.
    pub(crate) arm_flush: bool,
    /// Arm the timer for the durable mark.
    pub(crate) arm_mark: bool,
}

/// What is due when the timer for a durable mark fires; see [`LogState::mark_timer_fired`].
pub(crate) enum MarkDue {
    /// Nothing to mark, or the log is closed or failed.
    Nothing,
    /// A change, which may be about to lower the mark, is under way: look again later.
    Later,
    /// Write this durable end to the journal.
    Write(u64),
}

impl std::fmt::Debug for LogState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LogState")
            .field("next_index", &self.next_index())
            .field("written_next", &self.written_next)
            .field("durable_next", &self.durable_next)
            .field("segments", &self.segments.len())
            .finish_non_exhaustive()
    }
}

/// Opening.
impl LogState {
    /// The state of a log that is being opened or cut: nothing is known of it and no one may write.
    pub(crate) fn unopened() -> Self {
        Self::recovered(SegmentList::new(Vec::new(), false), None, Expect { index: 0, offset: 0, prev_crc: 0 }, 0)
    }

    /// The state of a log whose segments are `segments` and all on disk. `marked`: the end that the journal has as durable.
    pub(crate) fn recovered(segments: SegmentList, writer: Option<Writer>, end: Expect, marked: u64) -> Self {
        let newest = segments.iter().map(|segment| &segment.contents).filter(|contents| !contents.is_empty()).last();
        Self {
            last: newest.map(last_of),
            segments,
            tail: Tail::empty_at(end),
            written_next: end.index,
            durable_next: end.index,
            marked,
            pending: VecDeque::new(),
            writer: writer.map(Box::new),
            queued: false,
            changing: false,
            flush_requested: false,
            mark_timer: false,
            flush_timer: false,
            generation: 0,
            sealing: 0,
            failure: None,
            closed: false,
        }
    }
}

/// The last entry of a segment that has one.
fn last_of(contents: &Contents) -> LastEntry {
    LastEntry { index: contents.next_index - 1, term: contents.last_term, leader: contents.last_leader }
}

/// Questions.
impl LogState {
    pub(crate) fn segments(&self) -> &SegmentList {
        &self.segments
    }

    pub(crate) fn tail(&self) -> &Tail {
        &self.tail
    }

    pub(crate) fn next_index(&self) -> u64 {
        self.tail.next_index()
    }

    pub(crate) fn next_offset(&self) -> u64 {
        self.tail.next_offset()
    }

    pub(crate) fn written_next(&self) -> u64 {
        self.written_next
    }

    pub(crate) fn durable_next(&self) -> u64 {
        self.durable_next
    }

    /// The durable end that the journal has.
    pub(crate) fn marked(&self) -> u64 {
        self.marked
    }

    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    pub(crate) fn failure(&self) -> Option<&LogError> {
        self.failure.as_ref()
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed
    }

    /// A change is under way, or waits for the writer: appends wait.
    pub(crate) fn is_changing(&self) -> bool {
        self.changing
    }

    /// Segments wait for the sealer.
    pub(crate) fn is_sealing(&self) -> bool {
        self.sealing > 0
    }

    pub(crate) fn first_index(&self) -> u64 {
        self.segments.first().map_or(self.written_next, |segment| segment.contents.base_index)
    }

    pub(crate) fn start_offset(&self) -> u64 {
        // Without segments nothing is written yet, so that everything stored is in the tail.
        match (self.segments.first(), self.tail.first()) {
            (Some(segment), _) => segment.contents.base_offset,
            (None, Some(stored)) => stored.base_offset,
            (None, None) => self.next_offset(),
        }
    }

    pub(crate) fn position(&self) -> LogPosition {
        let first_index = self.first_index();
        LogPosition {
            first_index,
            last: self.last,
            next_index: self.next_index(),
            start_offset: self.start_offset(),
            next_offset: self.next_offset(),
            durable_index: (self.durable_next > first_index).then(|| self.durable_next - 1),
            bytes: self.segments.file_bytes(),
            segments: self.segments.len(),
        }
    }

    /// Bytes of the frames, written or not, in the segment that the next entry continues; 0: it starts one. Unless the log reaches
    /// its segment size, which is seen when the entries are written.
    pub(crate) fn open_bytes(&self) -> u64 {
        let unwritten = self.tail.range(self.written_next..self.next_index());
        unwritten.fold(self.segments.active_bytes(), |bytes, stored| match stored.entry.kind {
            EntryKind::SegmentEnd => 0,
            _ => bytes + frame_len(stored.entry.payload.len()),
        })
    }

    /// The error of a log that failed or was closed.
    pub(crate) fn check_usable(&self) -> Result<(), LogError> {
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

    /// Everything accepted is on disk and every append was answered.
    fn is_flushed(&self) -> bool {
        self.durable_next == self.next_index() && self.pending.is_empty()
    }

    /// What the journal is to keep when the log is closed with this writer.
    pub(crate) fn clean_mark(&self, writer: &Writer) -> CleanMark {
        let Expect { index, offset, prev_crc } = writer.expect();
        let newest = match self.segments.last() {
            Some(Segment { contents, phase: Phase::Open { .. }, .. }) => *contents,
            _ => Contents::empty(index, offset, prev_crc, SegmentVersion::V2.header_len() as u64),
        };
        let mut timestamps = self.segments.iter().map(|segment| segment.contents.max_timestamp);
        CleanMark {
            first_index: self.first_index(),
            start_offset: self.start_offset(),
            bytes: self.segments.file_bytes(),
            segments: self.segments.len() as u64,
            max_timestamp: timestamps.clone().max().unwrap_or(i64::MIN),
            oldest_max_timestamp: timestamps.find(|newest| *newest != i64::MIN).unwrap_or(i64::MIN),
            newest,
        }
    }

    /// The clean mark of a log that has nothing left to do. `None` if it failed, or if not all of it is on disk.
    pub(crate) fn clean_mark_at_rest(&self) -> Option<CleanMark> {
        let writer = self.writer.as_ref()?;
        let clean = self.durable_next == self.next_index() && self.failure.is_none() && self.sealing == 0;
        clean.then(|| self.clean_mark(writer))
    }

    /// The durable end, if the journal has a lower one.
    pub(crate) fn unmarked_end(&self) -> Option<u64> {
        (self.durable_next > self.marked).then_some(self.durable_next)
    }
}

/// Appends and the rounds that write them.
impl LogState {
    /// Adds entries that [`Tail::check`] accepted. Returns where they are, and the bytes that they take in memory.
    pub(crate) fn append(&mut self, entries: Vec<Entry>, bytes: u64, done: Done) -> (Appended, u64) {
        let first_base_offset = self.next_offset();
        if let Some(last) = entries.last() {
            self.last = Some(last_entry(last));
        }
        let cached = self.tail.append(entries);
        self.pending.push_back(PendingAppend { next_index: self.next_index(), bytes, done });
        (Appended { first_base_offset, next_offset: self.next_offset() }, cached)
    }

    /// The next round is to flush, whatever the durability mode.
    pub(crate) fn request_flush(&mut self) {
        self.flush_requested = true;
    }

    /// Whether the log is to be put into the scheduler's queue now. It counts as queued then.
    pub(crate) fn enter_queue(&mut self) -> bool {
        let enters = !self.queued && self.writer.is_some();
        self.queued |= enters;
        enters
    }

    /// The scheduler took the log out of its queue. Hands the writer out with what is to be written; `None` while another
    /// holds the writer, who will queue the log again, or when the log has failed.
    pub(crate) fn begin_round(&mut self) -> Option<RoundInput> {
        self.queued = false;
        if self.failure.is_some() {
            return None;
        }
        let writer = self.writer.take()?;
        let entries = self.tail.range(self.written_next..self.next_index()).cloned().collect();
        let (durable_next, flush_requested) = (self.durable_next, self.flush_requested);
        Some(RoundInput { writer, entries, durable_next, flush_requested })
    }

    /// Takes over what a round wrote to the page cache.
    pub(crate) fn written(&mut self, written: Vec<WrittenSegment>) {
        if let Some(last) = written.last() {
            self.written_next = last.contents.next_index;
        }
        self.segments.apply(written);
    }

    /// Everything written is on disk.
    pub(crate) fn flushed(&mut self) {
        self.durable_next = self.written_next;
    }

    /// Takes the appends out whose entries are all written.
    pub(crate) fn take_written(&mut self) -> Vec<PendingAppend> {
        let count = self.pending.partition_point(|pending| pending.next_index <= self.written_next);
        self.pending.drain(..count).collect()
    }

    /// Takes the writer back after a round. `wrote`: it had entries. `flush`: it went through the barrier.
    /// `memory_mode`: appends of this log do not wait for the disk.
    pub(crate) fn end_round(&mut self, writer: Box<Writer>, wrote: bool, flush: bool, memory_mode: bool) -> AfterRound {
        let unflushed = writer.has_unsynced();
        self.writer = Some(writer);
        if self.failure.is_some() {
            return AfterRound::default();
        }
        if flush {
            self.flush_requested = false;
        }
        let arm_flush = memory_mode && unflushed && !self.flush_timer;
        self.flush_timer |= arm_flush;
        let arm_mark = self.unmarked_end().is_some() && !self.mark_timer;
        self.mark_timer |= arm_mark;
        AfterRound {
            seals: if wrote { self.queue_seals() } else { Vec::new() },
            more: self.written_next < self.next_index(),
            arm_flush,
            arm_mark,
        }
    }

    /// The timer for the flush of a log in memory mode fired.
    pub(crate) fn flush_timer_fired(&mut self) {
        self.flush_timer = false;
        self.flush_requested = true;
    }

    /// The timer for the durable mark fired.
    pub(crate) fn mark_timer_fired(&mut self) -> MarkDue {
        let usable = !self.closed && self.failure.is_none();
        let end = self.unmarked_end().filter(|_| usable);
        self.mark_timer = end.is_some() && self.changing;
        match end {
            None => MarkDue::Nothing,
            Some(_) if self.changing => MarkDue::Later,
            Some(end) => MarkDue::Write(end),
        }
    }

    /// The journal has this durable end now.
    pub(crate) fn mark_put(&mut self, end: u64) {
        self.marked = end;
    }

    /// Drops entries below `next` from memory, oldest first, as far as they can be read from a file instead. With
    /// `until_durable` only those go that are on disk.
    pub(crate) fn evict(&mut self, next: u64, until_durable: bool) -> u64 {
        let safe = if until_durable { self.durable_next } else { self.written_next };
        self.tail.evict_below(next.min(safe))
    }
}

/// Seals.
impl LogState {
    /// Base indexes of the finished segments that the sealer does not have yet, oldest first. They count as waiting for it then.
    pub(crate) fn queue_seals(&mut self) -> Vec<u64> {
        let bases = self.segments.queue_seals();
        self.sealing += bases.len();
        bases
    }

    /// The segment has its footer.
    pub(crate) fn sealed(&mut self, base_index: u64, hash: [u8; 32]) {
        // In memory mode this may come before the flush interval is over. Segments are sealed in order.
        if let Some(end) = self.segments.sealed(base_index, hash) {
            self.durable_next = self.durable_next.max(end);
        }
    }

    /// The sealer is done with one segment, whatever came of it.
    pub(crate) fn seal_ended(&mut self) {
        self.sealing -= 1;
    }
}

/// Changes: truncation, reset, deletion of old segments, roll.
impl LogState {
    /// Appends wait from now on, until [`Self::end_change`] or [`Self::cancel_change`].
    pub(crate) fn announce_change(&mut self) {
        self.changing = true;
    }

    /// Hands the writer out for a change, once no entry waits for the disk. Until then the next round is to flush.
    pub(crate) fn begin_change(&mut self) -> Option<Box<Writer>> {
        let writer = if self.is_flushed() { self.writer.take() } else { None };
        self.flush_requested |= writer.is_none();
        writer
    }

    /// Gives up a change that has not got the writer.
    pub(crate) fn cancel_change(&mut self) {
        self.changing = false;
    }

    /// Takes the writer back after a change; appends continue.
    pub(crate) fn end_change(&mut self, writer: Box<Writer>) {
        self.writer = Some(writer);
        self.changing = false;
        self.flush_requested = false;
    }

    /// Removes the entries from `next` on that no round has touched. Returns the bytes freed, and the appends that lose
    /// entries.
    pub(crate) fn remove_unwritten(&mut self, next: u64) -> (u64, Vec<PendingAppend>) {
        // While a round holds the writer its entries are on their way to the file: they are flushed first, then cut.
        let keep = if self.writer.is_some() { self.written_next.max(next) } else { self.next_index() };
        let freed = self.tail.truncate(keep);
        let kept = self.pending.partition_point(|pending| pending.next_index <= next);
        (freed, self.pending.split_off(kept).into())
    }

    /// A truncation removed only entries that had never been written.
    pub(crate) fn truncated_in_memory(&mut self) {
        self.generation += 1;
        self.restore_last();
    }

    /// A truncation left the `keep` oldest segments, the newest of them replaced by `shortened`. The log ends at `end`.
    pub(crate) fn truncated(&mut self, keep: usize, shortened: Option<Segment>, end: Expect) -> u64 {
        self.generation += 1;
        self.segments.truncate(keep, shortened);
        let freed = self.tail.end_at(end.index, end.offset);
        self.written_next = end.index;
        self.durable_next = self.durable_next.min(end.index);
        self.restore_last();
        freed
    }

    /// A reset left nothing; the next entry takes this index and this offset. The journal has the index as durable end.
    pub(crate) fn reset(&mut self, next_index: u64, next_offset: u64) -> u64 {
        self.generation += 1;
        self.segments.clear();
        let freed = self.tail.clear();
        self.tail.end_at(next_index, next_offset);
        self.written_next = next_index;
        self.durable_next = next_index;
        self.marked = next_index;
        self.last = None;
        freed
    }

    /// Sets the newest entry, after entries were removed.
    fn restore_last(&mut self) {
        self.last = match (self.tail.last(), self.segments.last()) {
            (Some(stored), _) => Some(last_entry(&stored.entry)),
            (None, Some(segment)) if !segment.contents.is_empty() => Some(last_of(&segment.contents)),
            _ => None,
        };
    }

    /// The active segment is finished: the next entry starts another.
    pub(crate) fn rolled(&mut self) {
        self.segments.finish_active();
    }

    /// What a deletion of the `count` oldest segments removes and leaves.
    pub(crate) fn deletion(&self, count: usize) -> DeletedSegments {
        let start = self.segments.iter().nth(count).map(|segment| &segment.contents);
        DeletedSegments {
            segments: count,
            bytes: self.segments.iter().take(count).map(Segment::file_len).sum(),
            first_index: start.map_or(self.first_index(), |start| start.base_index),
            start_offset: start.map_or(self.start_offset(), |start| start.base_offset),
        }
    }

    /// Forgets the `count` oldest segments, whose files are about to be removed.
    pub(crate) fn delete_oldest(&mut self, count: usize) {
        self.generation += 1;
        self.segments.delete_oldest(count);
    }
}

/// The end: failure and close.
impl LogState {
    /// Stops the log for good. Returns whether this is its first failure, and the appends that get the error.
    pub(crate) fn fail(&mut self, error: &LogError) -> (bool, Vec<PendingAppend>) {
        let first = self.failure.is_none();
        if first {
            self.failure = Some(error.clone());
        }
        (first, self.pending.drain(..).collect())
    }

    /// Every later append gets [`LogError::Closed`].
    pub(crate) fn close(&mut self) {
        self.closed = true;
    }

    /// Closes a log that was never opened, with a writer that has nothing to write: closing the store waits for a writer.
    pub(crate) fn close_unopened(&mut self) {
        self.closed = true;
        self.writer = Some(Box::new(Writer::new(None, Expect { index: 0, offset: 0, prev_crc: 0 }, false)));
    }

    /// Drops what a closed log holds in memory.
    pub(crate) fn release(&mut self) -> u64 {
        self.tail.clear()
    }
}
