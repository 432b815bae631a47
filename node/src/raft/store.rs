//! openraft's log storage on a [`chronicle_log::Log`]: the raft log is the commit log.
//!
//! Invariants:
//! - Votes go to the store's journal and are durable before the call returns, hence before any later append.
//! - `purge` moves only raft's low-water mark (durable in the journal). Files are deleted by retention, never here, and
//!   only below that mark. A mark beyond the end of a log that has entries is refused: the log has lost its end, and is
//!   filled again outside of raft (`cluster/fill.rs`), which alone may reset a log to a later start.
//! - Entries are readable as soon as `append` returns; the callback fires after the flush.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use chronicle_log::{Entry, EntryKind, Log, LogError, LogId, Store, StoredEntry, mutant};
use futures::Stream;
use openraft::storage::{IOFlushed, LogState, RaftLogStorage};
use openraft::{EntryPayload, OptionalSend, RaftLogReader};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::control_entry::ControlEntry;
use super::traced::{Traced, TracedEntry};
use super::type_config::{
    MembershipRecord, Proposal, RaftEntry, RaftLogId, RaftMembership, RaftVote, TypeConfig, log_id,
};
use crate::host::flushed::{flushed, journal};
use crate::telemetry::traces::EntryTrace;
use crate::telemetry::{RaftMetrics, Stage};

/// Raft's vote.
pub(crate) const KEY_VOTE: u8 = 1;
/// Raft's purge mark: the position before the first entry that raft may read; see [`encode_position`].
pub(crate) const KEY_PURGED: u8 = 2;
/// The mark that the replica must fill its log: see `cluster/fill_mark.rs`.
pub(crate) const KEY_FILL: u8 = 3;
/// One byte, 1: a person has declared the replica to be the source of its group, see `cluster/decree.rs`.
pub(crate) const KEY_DECLARED: u8 = 9;

/// Term of the vote that the journal has of a group, which is durable before any entry of that term; 0: none.
pub(crate) fn stored_term(store: &Store, id: LogId) -> u64 {
    let vote = store.journal_get(id, KEY_VOTE).and_then(|bytes| decode_vote(&bytes).ok());
    vote.map_or(0, |vote| vote.leader_id.term)
}

/// The value of [`KEY_VOTE`] for a vote for `node` in `term`.
pub(crate) fn vote_for(term: u64, node: u64) -> Bytes {
    encode_vote(&RaftVote::new(term, node))
}

/// Raft index of a group's purge mark.
pub(crate) fn purged_index(store: &Store, id: LogId) -> Option<u64> {
    decode_purged(&store.journal_get(id, KEY_PURGED)?)
}

/// Raft index in the value of [`KEY_PURGED`].
pub(crate) fn decode_purged(bytes: &[u8]) -> Option<u64> {
    decode_log_id(bytes).ok().map(|id| id.index)
}

/// Most bytes that one read returns to openraft; a larger entry is returned alone.
const READ_BYTES: usize = 4 << 20;

/// The log of one group, as openraft's storage. Clones share one state.
#[derive(Clone)]
pub(super) struct LogStorage {
    state: Arc<StorageState>,
}

struct StorageState {
    store: Arc<Store>,
    log: Arc<Log>,
    id: LogId,
    metrics: RaftMetrics,
    marks: Mutex<Marks>,
    /// Damage found by a read. Kept here because openraft converts errors to text.
    damage: Mutex<Option<LogError>>,
    traced: Arc<Traced>,
}

/// The group's values in the journal, as last written.
struct Marks {
    vote: Option<RaftVote>,
    purged: Option<RaftLogId>,
}

impl LogStorage {
    pub(super) fn open(store: Arc<Store>, log: Arc<Log>, id: LogId, metrics: RaftMetrics) -> io::Result<Self> {
        let vote = store.journal_get(id, KEY_VOTE).map(|bytes| decode_vote(&bytes)).transpose()?;
        let purged = store.journal_get(id, KEY_PURGED).map(|bytes| decode_log_id(&bytes)).transpose()?;
        Ok(Self {
            state: Arc::new(StorageState {
                store,
                log,
                id,
                metrics,
                marks: Mutex::new(Marks { vote, purged }),
                damage: Mutex::new(None),
                traced: Arc::default(),
            }),
        })
    }

    /// Returns the stored vote.
    pub(super) fn vote(&self) -> Option<RaftVote> {
        self.state.marks.lock().vote
    }

    /// Whether nothing was ever stored for this group.
    pub(super) fn is_new(&self) -> bool {
        let position = self.state.log.position();
        position.last.is_none() && position.next_index == 0 && self.state.marks.lock().purged.is_none()
    }

    /// Checks that the log has not lost its end: that it reaches the last entry that the checkpoint covers, and the one
    /// before raft's low-water mark.
    ///
    /// # Errors
    /// [`LogError::Damaged`] with the index of the first missing entry.
    pub(super) fn check_end(&self, checkpoint: Option<u64>) -> Result<(), LogError> {
        let purged = self.state.marks.lock().purged.map(|id| id.index);
        for (index, witness) in [(checkpoint, "checkpoint"), (purged, "purge mark")] {
            if let Some(index) = index {
                self.state.log.check_reaches(index, witness)?;
            }
        }
        Ok(())
    }

    /// Writes the first entry of a new group, its membership, and waits until it is durable.
    pub(super) async fn append_first(&self, membership: RaftMembership) -> io::Result<()> {
        let entry = RaftEntry { log_id: log_id(0, 0, 0), payload: EntryPayload::Membership(membership) };
        flushed(|done| self.state.log.append(vec![to_entry(entry)], done).map(drop)).await.map_err(to_io)
    }

    /// Returns the damage that a read of raft has found, if any.
    pub(super) fn damage(&self) -> Option<LogError> {
        self.state.damage.lock().clone()
    }

    /// Returns the table of entries in flight that contain sampled requests.
    pub(super) fn traced(&self) -> Arc<Traced> {
        self.state.traced.clone()
    }

    /// Returns the sampled requests of an entry that is about to be appended: from a proposal of this node, or from the
    /// leader's message.
    fn sampled(&self, entry: &RaftEntry) -> Option<Sampled> {
        let index = entry.log_id.index;
        match &entry.payload {
            EntryPayload::Normal(Proposal { trace: Some(trace), .. }) => {
                Some(Sampled { index, trace: trace.clone(), is_own: true })
            }
            _ => self.state.traced.take(index).map(|entry| Sampled { index, trace: entry.trace, is_own: false }),
        }
    }

    /// Returns the first index that raft may read.
    pub(super) fn first_index(&self) -> u64 {
        let purged = self.state.marks.lock().purged.map(|id| id.index + 1).unwrap_or(0);
        purged.max(self.state.log.position().first_index)
    }

    async fn journal(&self, key: u8, value: Bytes) -> io::Result<()> {
        journal(&self.state.store, self.state.id, key, value).await.map_err(to_io)
    }

    fn read(&self, from: u64, to: u64, max_bytes: usize) -> io::Result<Vec<RaftEntry>> {
        let from = from.max(self.first_index());
        if from >= to {
            return Ok(Vec::new());
        }
        let stored = self.state.log.read(from, to, max_bytes).map_err(|error| {
            if matches!(error.root(), LogError::Damaged { .. }) {
                self.state.damage.lock().get_or_insert_with(|| error.clone());
            }
            to_io(error)
        })?;
        stored.into_iter().map(from_stored).collect()
    }
}

impl RaftLogReader<TypeConfig> for LogStorage {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<RaftEntry>, io::Error> {
        let (from, to) = bounds(&range);
        let mut entries = self.read(from, to, READ_BYTES)?;
        // openraft expects the whole range here; the streaming calls below are bounded.
        while let Some(last) = entries.last() {
            let next = last.log_id.index + 1;
            let more = self.read(next, to, READ_BYTES)?;
            if more.is_empty() {
                break;
            }
            entries.extend(more);
        }
        Ok(entries)
    }

    async fn entries_stream<RB>(&mut self, range: RB) -> impl Stream<Item = Result<RaftEntry, io::Error>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (from, to) = bounds(&range);
        Chunks { storage: self.clone(), next: from, to, ready: Vec::new().into_iter(), failed: false }
    }

    async fn read_vote(&mut self) -> Result<Option<RaftVote>, io::Error> {
        Ok(self.state.marks.lock().vote)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<RaftEntry>, io::Error> {
        self.read(start, end, READ_BYTES)
    }
}

/// Sampled requests in an entry that is being appended.
#[derive(Clone)]
struct Sampled {
    index: u64,
    trace: Arc<EntryTrace>,
    /// Proposed on this node, not received from the leader.
    is_own: bool,
}

/// Reads a range in pieces of bounded size.
struct Chunks {
    storage: LogStorage,
    next: u64,
    to: u64,
    ready: std::vec::IntoIter<RaftEntry>,
    failed: bool,
}

impl Stream for Chunks {
    type Item = io::Result<RaftEntry>;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        _cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        use std::task::Poll;
        loop {
            if let Some(entry) = self.ready.next() {
                self.next = entry.log_id.index + 1;
                return Poll::Ready(Some(Ok(entry)));
            }
            if self.failed || self.next >= self.to {
                return Poll::Ready(None);
            }
            match self.storage.read(self.next, self.to, READ_BYTES) {
                Ok(entries) if entries.is_empty() => return Poll::Ready(None),
                Ok(entries) => self.ready = entries.into_iter(),
                Err(error) => {
                    self.failed = true;
                    return Poll::Ready(Some(Err(error)));
                }
            }
        }
    }
}

impl RaftLogStorage<TypeConfig> for LogStorage {
    type LogReader = LogStorage;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        let position = self.state.log.position();
        let purged = self.state.marks.lock().purged;
        let last = position.last.map(|last| log_id(last.term, last.leader, last.index));
        Ok(LogState { last_purged_log_id: purged, last_log_id: last.max(purged) })
    }

    async fn get_log_reader(&mut self) -> Self::LogReader {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &RaftVote) -> Result<(), io::Error> {
        let kept = journal(&self.state.store, self.state.id, KEY_VOTE, encode_vote(vote));
        if !mutant!("vote-before-flush") {
            kept.await.map_err(to_io)?;
        }
        self.state.marks.lock().vote = Some(*vote);
        Ok(())
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = RaftEntry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        // Empty, and without an allocation, while no request is sampled, and on followers.
        let (mut sampled, mut reservations) = (Vec::new(), Vec::new());
        let look = |entry: &RaftEntry| {
            sampled.extend(self.sampled(entry));
            if let EntryPayload::Normal(Proposal { reservation: Some(reservation), .. }) = &entry.payload {
                reservations.push(reservation.clone());
            }
        };
        let entries: Vec<Entry> = entries.into_iter().inspect(look).map(to_entry).collect();
        if let Some(first) = entries.first() {
            // An empty log may begin at any index; any other log must be continued without a gap.
            let position = self.state.log.position();
            if position.last.is_none() && first.index > position.next_index {
                let (log, index) = (self.state.log.clone(), first.index);
                blocking(move || log.reset(index, position.next_offset)).await?;
            }
        }
        let (began, metrics) = (Instant::now(), self.state.metrics.clone());
        if mutant!("replica-answers-before-flush") {
            self.state.log.append(entries, Box::new(|_| ())).map_err(to_io)?;
            callback.io_completed(Ok(()));
            return Ok(());
        }
        if sampled.is_empty() {
            let done = Box::new(move |result: Result<(), LogError>| {
                metrics.stage(Stage::Flush, began.elapsed());
                drop(reservations);
                callback.io_completed(result.map_err(to_io));
            });
            self.state.log.append(entries, done).map_err(to_io)?;
            self.state.metrics.stage(Stage::Append, began.elapsed());
            return Ok(());
        }
        let appended = Arc::new(OnceLock::new());
        let (flushed, at) = (sampled.clone(), appended.clone());
        let done = Box::new(move |result: Result<(), LogError>| {
            metrics.stage_of(Stage::Flush, began.elapsed(), &flushed[0].trace);
            drop(reservations);
            callback.io_completed(result.map_err(to_io));
            #[expect(clippy::disallowed_methods, reason = "spans carry wall-clock times, which decide nothing")]
            let now = SystemTime::now();
            for Sampled { trace, .. } in flushed {
                trace.stage("flush", *at.get().unwrap_or(&now), now);
            }
        });
        self.state.log.append(entries, done).map_err(to_io)?;
        self.state.metrics.stage_of(Stage::Append, began.elapsed(), &sampled[0].trace);
        #[expect(clippy::disallowed_methods, reason = "spans carry wall-clock times, which decide nothing")]
        let now = SystemTime::now();
        let _ = appended.set(now);
        for Sampled { index, trace, is_own } in sampled {
            trace.stage("append", trace.since(), now);
            if is_own {
                self.state.traced.insert(index, TracedEntry { trace, at: now });
            }
        }
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<RaftLogId>) -> Result<(), io::Error> {
        let keep = last.or(self.state.marks.lock().purged);
        self.state.traced.cut(keep.map_or(0, |id| id.index + 1));
        if mutant!("truncation-ignored") {
            return Ok(());
        }
        let log = self.state.log.clone();
        blocking(move || match keep {
            Some(id) => log.truncate_after(id.index),
            None => log.reset(0, 0),
        })
        .await
    }

    async fn purge(&mut self, upto: RaftLogId) -> Result<(), io::Error> {
        if self.state.marks.lock().purged >= Some(upto) {
            return Ok(());
        }
        let position = self.state.log.position();
        if position.last.is_some() {
            self.state.log.check_reaches(upto.index, "purge mark").map_err(to_io)?;
        }
        self.journal(KEY_PURGED, encode_log_id(&upto)).await?;
        self.state.marks.lock().purged = Some(upto);
        if position.next_index <= upto.index {
            // An empty log begins after the mark.
            let log = self.state.log.clone();
            let next_offset = position.next_offset;
            blocking(move || log.reset(upto.index + 1, next_offset)).await?;
        }
        Ok(())
    }
}

/// Runs a rare call that waits for the disk on a thread outside the consensus runtime.
pub(super) async fn blocking<T: Send + 'static>(
    call: impl FnOnce() -> Result<T, LogError> + Send + 'static,
) -> io::Result<T> {
    crate::host::blocking(call).await.map_err(io::Error::other)?.map_err(to_io)
}

/// Wraps the error so that its type is kept.
pub(super) fn to_io(error: LogError) -> io::Error {
    io::Error::other(error)
}

fn bounds(range: &impl RangeBounds<u64>) -> (u64, u64) {
    let from = match range.start_bound() {
        Bound::Included(i) => *i,
        Bound::Excluded(i) => i.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let to = match range.end_bound() {
        Bound::Included(i) => i.saturating_add(1),
        Bound::Excluded(i) => *i,
        Bound::Unbounded => u64::MAX,
    };
    (from, to)
}

/// Converts a raft entry to the log's form.
pub(super) fn to_entry(entry: RaftEntry) -> Entry {
    let id = entry.log_id;
    let (kind, record_count, max_timestamp, payload) = match entry.payload {
        EntryPayload::Blank => (EntryKind::Blank, 0, 0, Bytes::new()),
        EntryPayload::Normal(data) => (data.kind, data.record_count, data.max_timestamp, data.payload),
        EntryPayload::Membership(m) => (EntryKind::Membership, 0, 0, MembershipRecord::encode(&m)),
    };
    Entry {
        term: id.leader_id.term,
        leader: id.leader_id.node_id,
        index: id.index,
        kind,
        record_count,
        max_timestamp,
        payload,
    }
}

fn from_stored(stored: StoredEntry) -> io::Result<RaftEntry> {
    let index = stored.entry.index;
    from_entry(stored.entry)
        .map_err(|why| io::Error::new(io::ErrorKind::InvalidData, format!("raft index {index}: {why}")))
}

/// Converts a log entry to raft's form.
///
/// # Errors
/// This version does not know the entry's kind or content.
pub(super) fn from_entry(entry: Entry) -> Result<RaftEntry, String> {
    if matches!(entry.kind, EntryKind::Config | EntryKind::SegmentEnd) {
        ControlEntry::decode(entry.kind, &entry.payload)?;
    }
    let payload = match entry.kind {
        EntryKind::Blank => EntryPayload::Blank,
        EntryKind::Data | EntryKind::Config | EntryKind::SegmentEnd => EntryPayload::Normal(Proposal {
            kind: entry.kind,
            record_count: entry.record_count,
            max_timestamp: entry.max_timestamp,
            payload: entry.payload,
            trace: None,
            reservation: None,
        }),
        EntryKind::Membership => EntryPayload::Membership(MembershipRecord::decode(&entry.payload)?),
    };
    Ok(RaftEntry { log_id: log_id(entry.term, entry.leader, entry.index), payload })
}

/// Encodes a log position for the journal: term, leader, index, each as `u64` little-endian.
pub(crate) fn encode_position(term: u64, leader: u64, index: u64) -> Bytes {
    let mut out = BytesMut::with_capacity(24);
    out.put_u64_le(term);
    out.put_u64_le(leader);
    out.put_u64_le(index);
    out.freeze()
}

fn encode_log_id(id: &RaftLogId) -> Bytes {
    encode_position(id.leader_id.term, id.leader_id.node_id, id.index)
}

fn decode_log_id(mut bytes: &[u8]) -> io::Result<RaftLogId> {
    if bytes.len() != 24 {
        return Err(journal_length("purge mark", bytes.len(), 24));
    }
    Ok(log_id(bytes.get_u64_le(), bytes.get_u64_le(), bytes.get_u64_le()))
}

fn encode_vote(vote: &RaftVote) -> Bytes {
    let mut out = BytesMut::with_capacity(17);
    out.put_u64_le(vote.leader_id.term);
    out.put_u64_le(vote.leader_id.node_id);
    out.put_u8(u8::from(vote.committed));
    out.freeze()
}

fn decode_vote(mut bytes: &[u8]) -> io::Result<RaftVote> {
    if bytes.len() != 17 {
        return Err(journal_length("vote", bytes.len(), 17));
    }
    let mut vote = RaftVote::new(bytes.get_u64_le(), bytes.get_u64_le());
    vote.committed = bytes.get_u8() != 0;
    Ok(vote)
}

fn journal_length(what: &str, found: usize, wanted: usize) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("journal: {what} of {found} bytes, must be {wanted}"))
}
