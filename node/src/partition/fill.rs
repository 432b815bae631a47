//! Brings a replica that is new, far behind or damaged up to date: it copies entries from the leader, outside of raft, while
//! its own group does not run.
//!
//! It copies whole log entries, checks them against the sender's content hashes and writes them through the engine like any
//! other, so that an interrupted copy resumes where the log ends, and nothing has to be installed (docs/adr/0007).
//!
//! Invariants:
//! - A replica that is filling does not vote: its group is not running.
//! - The mark that it must fill is in the journal before any entry of its log is dropped, and is removed after the last entry is
//!   on disk. A copy that repairs takes the whole log of its source, including entries that are not committed yet: the leader may
//!   count this replica towards their majority. The source is a confirmed leader or, in a group of two voters, the other voter
//!   (`whole_alone` in `pull.rs`).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use chronicle_log::{ContentHash, Entry, Log, LogError, LogId, Store, StoredEntry};
use chronicle_proto::internal as proto;
use chronicle_proto::internal::group_request::Ask;
use chronicle_proto::internal::pull_response::Part;
use tokio::sync::oneshot;

use super::environment::Environment;
use crate::host::flushed::journal;
use crate::peers::wire_id;
use crate::raft::{KEY_FILL, KEY_PURGED, checkpoint_index, encode_position, entry_in};

/// State of a replica whose group runs, in the responses to [`crate::cluster::Cluster::ask`].
pub(crate) const ACTIVE: &str = "active";
/// Bytes that may be appended and not yet flushed.
const UNFLUSHED_BYTES: usize = 32 << 20;
/// Timeout for the next message of a sender.
const PIECE_TIMEOUT: Duration = Duration::from_secs(30);

/// Why a replica fills its log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FillReason {
    /// It is new, or the leader has deleted what it needs next.
    Behind,
    /// It has lost entries that it may have acknowledged.
    Damaged,
}

/// Returns why a replica must fill its log before its group may run; `None`: it need not.
pub(super) fn pending(store: &Store, id: LogId) -> Option<FillReason> {
    match store.journal_get(id, KEY_FILL)?.first()? {
        1 => Some(FillReason::Behind),
        2 => Some(FillReason::Damaged),
        _ => None,
    }
}

/// Stores durably that a replica must fill its log, or (`None`) that its log is filled.
pub(super) async fn store_pending(store: &Arc<Store>, id: LogId, reason: Option<FillReason>) -> Result<(), LogError> {
    let value: &'static [u8] = match reason {
        None => &[0],
        Some(FillReason::Behind) => &[1],
        Some(FillReason::Damaged) => &[2],
    };
    journal(store, id, KEY_FILL, Bytes::from_static(value)).await
}

/// Asks the replica on another node to close together with the leader; returns whether it does.
pub(super) async fn ask_close(env: &Environment, id: LogId, node: u64, position: proto::LogPosition) -> bool {
    env.cluster.ask(id, node, Ask::Sleep(position)).await.is_ok_and(|answer| answer.accepted)
}

/// Finds the leader of the group; opens the partition there if it is dormant.
async fn find_leader(env: &Environment, id: LogId) -> Result<u64, String> {
    let placement = env.cluster.placement(id).ok_or("the partition was deleted")?;
    let me = env.cluster.node();
    let mut nodes: Vec<u64> = env.cluster.designated(id).into_iter().collect();
    nodes.extend(placement.voters.iter().chain(&placement.replicas));
    let mut asked = BTreeSet::new();
    let mut why = "no other replica is alive".to_owned();
    for node in nodes {
        if node == me || !env.cluster.alive(node) || !asked.insert(node) {
            continue;
        }
        match env.cluster.ask(id, node, Ask::Lead(true)).await {
            Ok(answer) if answer.leader == node => return Ok(node),
            Ok(answer) if answer.leader != 0 && answer.leader != me && asked.insert(answer.leader) => {
                return Ok(answer.leader);
            }
            Ok(answer) => why = format!("node {node} does not lead ({})", answer.state),
            Err(error) => why = error,
        }
    }
    Err(why)
}

/// Finds the node to fill the log from.
async fn find_source(env: &Environment, id: LogId, reason: FillReason) -> Result<u64, String> {
    if reason == FillReason::Damaged
        && let Some(other) = other_of_two(env, id).await
    {
        return Ok(other);
    }
    find_leader(env, id).await
}

/// The other voter of a group of two, when its replica is undamaged: the group cannot have a leader while this replica is out of
/// service. The other voter checks the voters again when it receives the request for its log.
async fn other_of_two(env: &Environment, id: LogId) -> Option<u64> {
    let placement = env.cluster.placement(id)?;
    let me = env.cluster.node();
    let other = match placement.voters.as_slice() {
        [a, b] if *a == me => *b,
        [a, b] if *b == me => *a,
        _ => return None,
    };
    let answer = env.cluster.ask(id, other, Ask::Status(true)).await.ok()?;
    let voters: BTreeSet<u64> = answer.voters.into_iter().collect();
    (answer.state == ACTIVE && voters == BTreeSet::from([me, other])).then_some(other)
}

/// Progress of one filling.
#[derive(Debug, Default)]
pub struct FillProgress {
    /// Remaining bytes, an estimate.
    pub left: AtomicU64,
    /// Received bytes.
    pub done: AtomicU64,
}

/// Fills an open log whose group is not running. May be called again after an error: it resumes where the log ends.
pub(super) async fn fill(
    env: &Environment,
    log: &Arc<Log>,
    reason: FillReason,
    progress: &FillProgress,
) -> Result<(), String> {
    let id = log.id();
    let source = find_source(env, id, reason).await?;
    let position = log.position();
    let from = position.last.map(|last| last.index + 1).unwrap_or(position.next_index);
    let mut client = env.cluster.peers.client(source).map_err(|e| e.to_string())?;
    let group = Some(wire_id(id));
    let whole = reason == FillReason::Damaged;
    let previous =
        position.last.map(|last| proto::LogPosition { term: last.term, leader: last.leader, index: last.index });
    let request = env.cluster.peers.request(source, proto::PullRequest { group, from, whole, previous });
    let mut parts = match client.pull(request).await {
        Ok(answer) => answer.into_inner(),
        Err(status) => {
            if status.code() == tonic::Code::Aborted {
                truncate_uncommitted(log).await?;
            }
            return Err(format!("node {source}: {}", status.message()));
        }
    };
    let next = async |parts: &mut tonic::Streaming<proto::PullResponse>| {
        let message = tokio::time::timeout(PIECE_TIMEOUT, parts.message());
        let message =
            message.await.map_err(|_| format!("node {source}: no data within {} s", PIECE_TIMEOUT.as_secs()))?;
        message.map(|message| message.and_then(|message| message.part)).map_err(|status| status.message().to_owned())
    };
    let Some(Part::Start(start)) = next(&mut parts).await? else {
        return Err("the sender sent no start message".into());
    };
    progress.left.store(start.bytes, Ordering::Relaxed);
    tracing::info!(partition = %id, from, to = start.end, bytes = start.bytes, source, ?reason, "filling log");
    if start.first > from {
        begin_at(env, log, &start).await?;
    }
    let mut writer = FillWriter::new(log.clone());
    let mut expected = start.first.max(from);
    let mut hash = ContentHash::new();
    let mut checked = expected;
    while let Some(part) = next(&mut parts).await? {
        match part {
            Part::Start(_) => return Err("the sender sent a second start message".into()),
            Part::Entries(entries) => {
                let mut piece = Vec::with_capacity(entries.entries.len());
                for entry in entries.entries {
                    if entry.index != expected {
                        return Err(format!("index {}: must be {expected}", entry.index));
                    }
                    expected += 1;
                    piece.push(entry_in(entry)?);
                }
                let bytes: usize = piece.iter().map(|entry| entry.payload.len() + 72).sum();
                for stored in writer.append(piece, bytes).await? {
                    hash.update(&stored);
                }
                progress.done.fetch_add(bytes as u64, Ordering::Relaxed);
                let left = progress.left.load(Ordering::Relaxed).saturating_sub(bytes as u64);
                progress.left.store(left, Ordering::Relaxed);
            }
            Part::Hash(theirs) => {
                let ours = std::mem::replace(&mut hash, ContentHash::new()).finalize();
                if ours[..] != theirs[..] {
                    // The entries since the last hash must be dropped.
                    let (log, keep) = (log.clone(), checked);
                    writer.flush().await?;
                    blocking(move || match keep {
                        0 => log.reset(0, 0),
                        index => log.truncate_after(index - 1),
                    })
                    .await?;
                    return Err(format!("entries {checked} to {expected}: hash mismatch"));
                }
                checked = expected;
            }
        }
    }
    writer.flush().await?;
    if expected < start.end || checked != expected {
        return Err(format!("the sender stopped at {expected} of {}", start.end));
    }
    if !start.checkpoint.is_empty() {
        if checkpoint_index(&start.checkpoint).is_some_and(|index| index >= expected) {
            return Err("the sender's checkpoint is ahead of what it sent".into());
        }
        let (log, checkpoint) = (log.clone(), start.checkpoint);
        blocking(move || log.save_checkpoint(&checkpoint)).await?;
    }
    progress.left.store(0, Ordering::Relaxed);
    tracing::info!(partition = %id, to = expected, "log filled");
    Ok(())
}

/// Truncates the entries that are not known to be committed: those after the checkpoint.
async fn truncate_uncommitted(log: &Arc<Log>) -> Result<(), String> {
    let log = log.clone();
    blocking(move || {
        let covered = log.load_checkpoint()?.and_then(|bytes| checkpoint_index(&bytes));
        let position = log.position();
        match covered {
            Some(index) if index >= position.first_index => log.truncate_after(index),
            _ => log.reset(position.first_index, position.start_offset),
        }
    })
    .await
}

/// The sender's log begins after the end of this log: resets this log to begin there too.
async fn begin_at(env: &Environment, log: &Arc<Log>, start: &proto::PullStart) -> Result<(), String> {
    let before = start.before.ok_or("the sender did not send the position before its first entry")?;
    journal(&env.cluster.store, log.id(), KEY_PURGED, encode_position(before.term, before.leader, before.index))
        .await
        .map_err(|e| e.to_string())?;
    let (log, first, offset) = (log.clone(), start.first, start.first_offset);
    blocking(move || log.reset(first, offset)).await
}

async fn blocking<T: Send + 'static>(call: impl FnOnce() -> Result<T, LogError> + Send + 'static) -> Result<T, String> {
    crate::host::blocking(call).await.map_err(|e| e.to_string())?.map_err(|e| e.to_string())
}

/// Appends with a limit on the bytes that are not flushed.
struct FillWriter {
    log: Arc<Log>,
    under_way: std::collections::VecDeque<(usize, oneshot::Receiver<Result<(), LogError>>)>,
    bytes: usize,
    next_offset: u64,
}

impl FillWriter {
    fn new(log: Arc<Log>) -> Self {
        let next_offset = log.position().next_offset;
        Self { log, under_way: Default::default(), bytes: 0, next_offset }
    }

    /// Appends, and returns the entries with their base offsets.
    async fn append(&mut self, entries: Vec<Entry>, bytes: usize) -> Result<Vec<StoredEntry>, String> {
        let placed: Vec<StoredEntry> = entries
            .iter()
            .map(|entry| {
                let base_offset = self.next_offset;
                self.next_offset += entry.offsets();
                StoredEntry { entry: entry.clone(), base_offset }
            })
            .collect();
        while self.bytes + bytes > UNFLUSHED_BYTES && !self.under_way.is_empty() {
            self.wait().await?;
        }
        let (tx, rx) = oneshot::channel();
        let done = Box::new(move |result| {
            let _ = tx.send(result);
        });
        self.log.append(entries, done).map_err(|e| e.to_string())?;
        self.bytes += bytes;
        self.under_way.push_back((bytes, rx));
        Ok(placed)
    }

    async fn wait(&mut self) -> Result<(), String> {
        let Some((bytes, done)) = self.under_way.pop_front() else { return Ok(()) };
        self.bytes -= bytes;
        done.await.map_err(|_| "the log was closed".to_owned())?.map_err(|e| e.to_string())
    }

    async fn flush(&mut self) -> Result<(), String> {
        while !self.under_way.is_empty() {
            self.wait().await?;
        }
        Ok(())
    }
}
