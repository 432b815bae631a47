//! Sends the log of a raft group on this node to a replica on another node that fills its log ([`super::fill`] is the receiver).

use std::any::Any;
use std::sync::Arc;

use bytes::Bytes;
use chronicle_log::{ContentHash, Log, LogError, StoredEntry};
use chronicle_proto::internal as proto;
use chronicle_proto::internal::pull_response::Part;
use futures::StreamExt;
use tonic::Status;

use super::Cluster;
use crate::peers::PullStream;
use crate::raft::{Machine, RaftGroup, checkpoint_index, entry_out};

/// Bytes of one message of entries.
const PIECE_BYTES: usize = 1 << 20;

/// Sends what `request` asks for. The caller has confirmed that this replica has everything that the other one must receive. `held`
/// keeps the group open until the end.
///
/// # Errors
/// When this replica does not have the requested entries any more, or the logs differ before them.
pub(crate) async fn send_log<M: Machine>(
    cluster: Arc<Cluster>,
    group: &RaftGroup<M>,
    log: Arc<Log>,
    request: proto::PullRequest,
    held: Box<dyn Any + Send>,
) -> Result<PullStream, Status> {
    let unavailable = |e: String| Status::unavailable(e);
    group.checkpoint().await.map_err(|e| unavailable(e.to_string()))?;
    // First the checkpoint, then the end: the sent entries must include all that the checkpoint covers.
    let reader = log.clone();
    let checkpoint = crate::host::blocking(move || reader.load_checkpoint()).await;
    let checkpoint = checkpoint.map_err(|e| unavailable(e.to_string()))?.map_err(|e| unavailable(e.to_string()))?;
    let checkpoint = checkpoint.unwrap_or_default();
    let status = group.status();
    let end = if request.whole { status.last } else { status.applied }.map(|index| index + 1).unwrap_or(0);
    let end = end.max(checkpoint_index(&checkpoint).map(|index| index + 1).unwrap_or(0));
    let position = log.position();
    let first = group.first_index().max(position.first_index);
    let from = request.from.max(first);
    let before = if request.from >= first { None } else { group.purged_position() };
    if request.from < first && before.is_none() {
        return Err(Status::unavailable("the position before the first entry is not known yet"));
    }
    if let Some(previous) = request.previous
        && request.from == first
        && group.purged_position() != Some(previous)
    {
        return Err(Status::aborted("the logs differ before the first requested entry"));
    }
    let previous = request.previous.filter(|_| request.from > first);
    let (first_offset, bytes) = {
        let log = log.clone();
        let asked = crate::host::blocking(move || {
            if let Some(previous) = previous {
                let ours = log.read(previous.index, previous.index + 1, 1)?;
                let same =
                    |stored: &StoredEntry| (stored.entry.term, stored.entry.leader) == (previous.term, previous.leader);
                if !ours.first().is_some_and(same) {
                    return Ok(None);
                }
            }
            let first_offset = match log.read(from, from + 1, 1)?.first() {
                Some(entry) => entry.base_offset,
                None => log.position().next_offset,
            };
            Ok::<_, LogError>(Some((first_offset, log.bytes_between(from, end))))
        });
        let asked = asked.await.map_err(|e| unavailable(e.to_string()))?.map_err(|e| unavailable(e.to_string()))?;
        asked.ok_or_else(|| Status::aborted("the logs differ before the first requested entry"))?
    };
    let start = proto::PullStart { first: from, first_offset, end, bytes, checkpoint, before };
    let boundaries: Vec<u64> = log.segments().iter().map(|segment| segment.base_index).collect();
    let begin = futures::stream::once(async move { Ok(message(Part::Start(start))) });
    let state =
        LogTransfer { cluster, log, next: from, end, boundaries, hash: ContentHash::new(), hashed: from, _held: held };
    let rest = futures::stream::try_unfold(state, LogTransfer::step);
    Ok(begin.chain(rest).boxed())
}

fn message(part: Part) -> proto::PullResponse {
    proto::PullResponse { part: Some(part) }
}

/// A log while it is sent.
struct LogTransfer {
    cluster: Arc<Cluster>,
    log: Arc<Log>,
    next: u64,
    end: u64,
    boundaries: Vec<u64>,
    hash: ContentHash,
    hashed: u64,
    /// Keeps the group open.
    _held: Box<dyn Any + Send>,
}

impl LogTransfer {
    async fn step(mut self) -> Result<Option<(proto::PullResponse, Self)>, Status> {
        let boundary = self.next == self.end || self.boundaries.binary_search(&self.next).is_ok();
        if boundary && self.hashed < self.next {
            let hash = std::mem::replace(&mut self.hash, ContentHash::new()).finalize();
            self.hashed = self.next;
            return Ok(Some((message(Part::Hash(Bytes::copy_from_slice(&hash))), self)));
        }
        if self.next >= self.end {
            return Ok(None);
        }
        // Not across a segment's end, so that its hash can follow.
        let to = self.boundaries.iter().copied().find(|base| *base > self.next).unwrap_or(self.end).min(self.end);
        let (log, next) = (self.log.clone(), self.next);
        let read = crate::host::blocking(move || log.read(next, to, PIECE_BYTES)).await;
        let entries = read
            .map_err(|e| Status::internal(e.to_string()))?
            .map_err(|e| Status::unavailable(format!("reading at {next}: {e}")))?;
        if entries.is_empty() {
            return Err(Status::unavailable(format!("entry {next} was deleted")));
        }
        let bytes: usize = entries.iter().map(|stored| stored.entry.payload.len() + 72).sum();
        self.cluster.filling.pass(bytes, self.cluster.config().cluster.fill_bytes_per_second).await;
        let mut out = Vec::with_capacity(entries.len());
        for stored in entries {
            self.hash.update(&stored);
            self.next = stored.entry.index + 1;
            out.push(entry_out(stored.entry));
        }
        Ok(Some((message(Part::Entries(proto::PullEntries { entries: out })), self)))
    }
}
