//! Brings the log of a raft group up to date that is new, far behind or damaged: it copies entries from another replica, outside of
//! raft, while its own group does not run.
//!
//! It copies whole log entries, checks them against the sender's content hashes and writes them through the engine like any
//! other, so that an interrupted copy resumes where the log ends, and nothing has to be installed (docs/adr/0007).
//!
//! Invariants:
//! - A replica that is filling does not vote: its group is not running.
//! - The mark that it must fill (`fill_mark.rs`) is in the journal before any entry of its log is dropped, and is removed after the last
//!   entry is on disk. A copy that repairs takes the whole log of its source, including entries that are not committed yet: the leader
//!   may count this replica towards their majority. The source is a confirmed leader; without one, in a group of two voters the other
//!   voter, a voter whose log is known to be whole (`whole_copy.rs`), or the one that a person has named (`decree.rs`).
//!
//! Neighbours: `send.rs` is the sender. The partition and the controller choose the source and run the copy.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use chronicle_log::{ContentHash, Entry, Log, LogError, StoredEntry, mutant};
use chronicle_proto::internal as proto;
use chronicle_proto::internal::pull_response::Part;
use tokio::sync::oneshot;

use super::Cluster;
use super::fill_mark::FillReason;
use crate::host::flushed::journal;
use crate::peers::wire_id;
use crate::raft::{KEY_PURGED, checkpoint_index, encode_position, entry_in};

/// Bytes that may be appended and not yet flushed.
const UNFLUSHED_BYTES: usize = 32 << 20;
/// Timeout for the next message of a sender.
const PIECE_TIMEOUT: Duration = Duration::from_secs(30);

/// Progress of one filling.
#[derive(Debug, Default)]
pub struct FillProgress {
    /// Remaining bytes, an estimate.
    pub left: AtomicU64,
    /// Raft index after the entries that the log had when the filling began.
    pub kept: AtomicU64,
    /// Received bytes.
    pub done: AtomicU64,
    /// What the last attempt failed for; empty: none has failed.
    pub waits_for: parking_lot::Mutex<String>,
}

/// Fills an open log whose group is not running from the replica on `source`. May be called again after an error: it resumes where
/// the log ends.
///
/// # Errors
/// Why the copy is not complete.
pub(crate) async fn fill(
    cluster: &Cluster,
    log: &Arc<Log>,
    source: u64,
    reason: FillReason,
    progress: &FillProgress,
) -> Result<(), String> {
    let id = log.id();
    remove_damaged_checkpoint(log).await?;
    let position = log.position();
    let from = position.last.map(|last| last.index + 1).unwrap_or(position.next_index);
    let mut client = cluster.peers.client(source).map_err(|e| e.to_string())?;
    let group = Some(wire_id(id));
    let whole = reason == FillReason::Damaged;
    let previous =
        position.last.map(|last| proto::LogPosition { term: last.term, leader: last.leader, index: last.index });
    let request = cluster.peers.request(source, proto::PullRequest { group, from, whole, previous });
    let mut parts = match client.pull(request).await {
        Ok(answer) => {
            cluster.peers.recognise(source, answer.metadata()).map_err(|e| e.to_string())?;
            answer.into_inner()
        }
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
    progress.waits_for.lock().clear();
    tracing::info!(partition = %id, from, to = start.end, bytes = start.bytes, source, ?reason, "filling log");
    if start.first > from {
        begin_at(cluster, log, &start).await?;
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
    let _ = mutant!("filled-before-flush") || writer.flush().await.map(|()| true)?;
    if expected < start.end || checked != expected {
        return Err(format!("the sender stopped at {expected} of {}", start.end));
    }
    if checkpoint_index(&start.checkpoint).is_some_and(|index| index >= expected) {
        return Err("the sender's checkpoint is ahead of what it sent".into());
    }
    let target = log.clone();
    let covered = blocking(move || {
        if !start.checkpoint.is_empty() {
            target.save_checkpoint(&start.checkpoint)?;
        }
        Ok(target.load_checkpoint()?.and_then(|bytes| checkpoint_index(&bytes)))
    });
    let (covered, first) = (covered.await?, log.position().first_index);
    if covered.map_or(0, |index| index + 1) < first {
        return Err(format!(
            "the checkpoint of node {source} does not reach raft index {first}, the first of this log"
        ));
    }
    progress.left.store(0, Ordering::Relaxed);
    tracing::info!(partition = %id, to = expected, "log filled");
    Ok(())
}

/// Moves a checkpoint that cannot be read to quarantine; the sender's one takes its place.
async fn remove_damaged_checkpoint(log: &Arc<Log>) -> Result<(), String> {
    let log = log.clone();
    blocking(move || match log.load_checkpoint() {
        Err(error @ LogError::Damaged { .. }) => {
            let quarantine = log.quarantine_checkpoint()?;
            tracing::warn!(partition = %log.id(), %error, ?quarantine, "checkpoint is damaged, waiting for that of another replica");
            Ok(())
        }
        other => other.map(drop),
    })
    .await
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
async fn begin_at(cluster: &Cluster, log: &Arc<Log>, start: &proto::PullStart) -> Result<(), String> {
    let before = start.before.ok_or("the sender did not send the position before its first entry")?;
    journal(&cluster.store, log.id(), KEY_PURGED, encode_position(before.term, before.leader, before.index))
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
