//! Brings a replica that is new, far behind or damaged up to date: it copies entries from the leader, outside of raft, while
//! its own group does not run.
//!
//! What is copied are whole log entries, checked against the sender's content hashes and written through the engine like any
//! other, so that an interrupted copy goes on where the log ends, and nothing has to be installed (docs/adr/0007).
//!
//! Invariants:
//! - A replica that is filling takes part in no vote: its group is not running.
//! - That it must fill is in the journal before anything of its log is given up, and leaves it after the last entry is on
//!   disk. A copy that repairs takes the whole log of its source, also what is not committed yet: the leader may count on this
//!   replica for it. The source is a confirmed leader or, in a group of two voters, the other one ([`whole_alone`]).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use chronicle_log::{ContentHash, Entry, Log, LogError, LogId, Store, StoredEntry};
use chronicle_proto::internal as proto;
use chronicle_proto::internal::group_request::Ask;
use chronicle_proto::internal::pull_response::Part;
use futures::StreamExt;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tonic::Status;

use super::{Environment, Partition, Replica};
use crate::host::flushed::journal;
use crate::peers::{PullStream, wire_id};
use crate::raft::{
    GroupError, GroupStatus, KEY_FILL, KEY_PURGED, checkpoint_index, encode_position, entry_in, entry_out,
};

/// State of a replica whose group runs, as [`crate::cluster::Cluster::ask`] answers it.
pub(crate) const ACTIVE: &str = "active";
/// Bytes of one message of entries.
const PIECE_BYTES: usize = 1 << 20;
/// Bytes that may be appended and not yet flushed.
const UNFLUSHED_BYTES: usize = 32 << 20;
/// Longest silence of a sender.
const PIECE_TIMEOUT: Duration = Duration::from_secs(30);

/// Why a replica fills its log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FillReason {
    /// It is new, or the leader has deleted what it needs next.
    Behind,
    /// It has lost something that it may have acknowledged.
    Damaged,
}

/// Whether a replica must fill its log before its group may run.
pub(super) fn pending(store: &Store, id: LogId) -> Option<FillReason> {
    match store.journal_get(id, KEY_FILL)?.first()? {
        1 => Some(FillReason::Behind),
        2 => Some(FillReason::Damaged),
        _ => None,
    }
}

/// Notes durably that a replica must fill its log, or that it has.
pub(super) async fn note(store: &Arc<Store>, id: LogId, reason: Option<FillReason>) -> Result<(), LogError> {
    let value: &'static [u8] = match reason {
        None => &[0],
        Some(FillReason::Behind) => &[1],
        Some(FillReason::Damaged) => &[2],
    };
    journal(store, id, KEY_FILL, Bytes::from_static(value)).await
}

/// Whether the replica on another node goes to sleep with the leader.
pub(super) async fn ask_sleep(env: &Environment, id: LogId, node: u64, position: proto::LogPosition) -> bool {
    env.cluster.ask(id, node, Ask::Sleep(position)).await.is_ok_and(|answer| answer.accepted)
}

/// The node that leads the group, woken if need be.
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

/// The node to fill the log from.
async fn find_source(env: &Environment, id: LogId, reason: FillReason) -> Result<u64, String> {
    if reason == FillReason::Damaged
        && let Some(other) = other_of_two(env, id).await
    {
        return Ok(other);
    }
    find_leader(env, id).await
}

/// The other voter of a group of two, when its replica is undamaged: nobody can lead while this one is out of service. What
/// it says of the voters it checks once more when it is asked for its log.
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

/// Whether the replica of `me` holds everything that may have been acknowledged, without asking anybody: the only other
/// voter is `from`.
///
/// With two voters a majority is both, so whatever is committed is in both logs, and whoever is elected needs the vote of the
/// other. That holds from the entry on that made the two the voters: it was proposed only after the joint configuration
/// before it, which already needs both, was committed. Not while the voters change: the configuration that comes next may do
/// without `me`.
fn whole_alone(status: &GroupStatus, me: u64, from: u64) -> bool {
    me != from && !status.joint && status.voters == BTreeSet::from([me, from])
}

/// Progress of one filling.
#[derive(Debug, Default)]
pub struct FillProgress {
    /// Bytes still to come, about.
    pub left: AtomicU64,
    /// Bytes that have come.
    pub done: AtomicU64,
}

/// Fills an open log whose group is not running. May be called again after an error: it goes on where the log ends.
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
                give_up_tail(log).await?;
            }
            return Err(format!("node {source}: {}", status.message()));
        }
    };
    let next = async |parts: &mut tonic::Streaming<proto::PullResponse>| {
        let message = tokio::time::timeout(PIECE_TIMEOUT, parts.message());
        let message = message.await.map_err(|_| format!("node {source} went silent"))?;
        message.map(|message| message.and_then(|message| message.part)).map_err(|status| status.message().to_owned())
    };
    let Some(Part::Start(start)) = next(&mut parts).await? else { return Err("the sender did not begin".into()) };
    progress.left.store(start.bytes, Ordering::Relaxed);
    tracing::info!(partition = %id, from, to = start.end, bytes = start.bytes, source, ?reason, "fills its log");
    if start.first > from {
        begin_at(env, log, &start).await?;
    }
    let mut writer = Writer::new(log.clone());
    let mut expected = start.first.max(from);
    let mut hash = ContentHash::new();
    let mut checked = expected;
    while let Some(part) = next(&mut parts).await? {
        match part {
            Part::Start(_) => return Err("the sender began twice".into()),
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
                    // Nothing of this stretch may stay.
                    let (log, keep) = (log.clone(), checked);
                    writer.flush().await?;
                    blocking(move || match keep {
                        0 => log.reset(0, 0),
                        index => log.truncate_after(index - 1),
                    })
                    .await?;
                    return Err(format!("entries {checked} to {expected} arrived damaged"));
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
    tracing::info!(partition = %id, to = expected, "log is filled");
    Ok(())
}

/// Cuts what is not known to be committed: what the checkpoint does not cover.
async fn give_up_tail(log: &Arc<Log>) -> Result<(), String> {
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

/// The sender's log begins later than ours ends: ours begins there too.
async fn begin_at(env: &Environment, log: &Arc<Log>, start: &proto::PullStart) -> Result<(), String> {
    let before = start.before.ok_or("the sender does not say what is before its first entry")?;
    journal(&env.cluster.store, log.id(), KEY_PURGED, encode_position(before.term, before.leader, before.index))
        .await
        .map_err(|e| e.to_string())?;
    let (log, first, offset) = (log.clone(), start.first, start.first_offset);
    blocking(move || log.reset(first, offset)).await
}

async fn blocking<T: Send + 'static>(call: impl FnOnce() -> Result<T, LogError> + Send + 'static) -> Result<T, String> {
    crate::host::blocking(call).await.map_err(|e| e.to_string())?.map_err(|e| e.to_string())
}

/// Appends with a bound on what is not flushed.
struct Writer {
    log: Arc<Log>,
    under_way: std::collections::VecDeque<(usize, oneshot::Receiver<Result<(), LogError>>)>,
    bytes: usize,
    next_offset: u64,
}

impl Writer {
    fn new(log: Arc<Log>) -> Self {
        let next_offset = log.position().next_offset;
        Self { log, under_way: Default::default(), bytes: 0, next_offset }
    }

    /// Appends, and answers the entries with their base offsets.
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

/// Holds all fillings of a node together to a rate.
#[derive(Debug, Default)]
pub struct Throttle {
    /// When the next byte may go.
    free_at: tokio::sync::Mutex<Option<Instant>>,
}

impl Throttle {
    /// Waits until so many bytes may go, at this rate; 0: no bound.
    async fn pass(&self, bytes: usize, bytes_per_second: u64) {
        if bytes_per_second == 0 {
            return;
        }
        let until = {
            let mut free_at = self.free_at.lock().await;
            let now = Instant::now();
            let from = free_at.unwrap_or(now).max(now);
            *free_at = Some(from + Duration::from_secs_f64(bytes as f64 / bytes_per_second as f64));
            from
        };
        tokio::time::sleep_until(until).await;
    }
}

/// Answers a replica that fills its log: this node must lead, and is asked to confirm it, or be the only other voter.
///
/// # Errors
/// When it is neither, or has lost what is asked for.
pub(crate) async fn pull(
    env: Arc<Environment>,
    replica: &Arc<Replica>,
    from_node: u64,
    request: proto::PullRequest,
) -> Result<PullStream, Status> {
    let unavailable = |e: String| Status::unavailable(e);
    let mut partition = replica.get().await.map_err(|e| unavailable(e.to_string()))?;
    if !(request.whole && whole_alone(&partition.group().status(), env.cluster.node(), from_node)) {
        partition = replica.lead().await.map_err(|e| unavailable(e.to_string()))?;
        // What is committed now is what the replica must have at least.
        partition.group().read_index().await.map_err(|e: GroupError| unavailable(e.to_string()))?;
    }
    partition.group().checkpoint().await.map_err(|e| unavailable(e.to_string()))?;
    let log = partition.log().clone();
    // First the checkpoint, then the end: what is sent must cover what the checkpoint does.
    let reader = log.clone();
    let checkpoint = crate::host::blocking(move || reader.load_checkpoint()).await;
    let checkpoint = checkpoint.map_err(|e| unavailable(e.to_string()))?.map_err(|e| unavailable(e.to_string()))?;
    let checkpoint = checkpoint.unwrap_or_default();
    let status = partition.group().status();
    let end = if request.whole { status.last } else { status.applied }.map(|index| index + 1).unwrap_or(0);
    let end = end.max(checkpoint_index(&checkpoint).map(|index| index + 1).unwrap_or(0));
    let position = log.position();
    let first = partition.group().first_index().max(position.first_index);
    let from = request.from.max(first);
    let before = if request.from >= first { None } else { partition.group().purged_position() };
    if request.from < first && before.is_none() {
        return Err(Status::unavailable("what is before the first entry is not known yet"));
    }
    if let Some(previous) = request.previous
        && request.from == first
        && partition.group().purged_position() != Some(previous)
    {
        return Err(Status::aborted("the logs differ before the first entry that is asked for"));
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
        asked.ok_or_else(|| Status::aborted("the logs differ before the first entry that is asked for"))?
    };
    let start = proto::PullStart { first: from, first_offset, end, bytes, checkpoint, before };
    let boundaries: Vec<u64> = log.segments().iter().map(|segment| segment.base_index).collect();
    let begin = futures::stream::once(async move { Ok(message(Part::Start(start))) });
    let state =
        Sending { env, log, next: from, end, boundaries, hash: ContentHash::new(), hashed: from, _held: partition };
    let rest = futures::stream::try_unfold(state, Sending::step);
    Ok(begin.chain(rest).boxed())
}

fn message(part: Part) -> proto::PullResponse {
    proto::PullResponse { part: Some(part) }
}

struct Sending {
    env: Arc<Environment>,
    log: Arc<Log>,
    next: u64,
    end: u64,
    boundaries: Vec<u64>,
    hash: ContentHash,
    hashed: u64,
    /// Keeps the partition awake.
    _held: Arc<Partition>,
}

impl Sending {
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
            return Err(Status::unavailable(format!("entry {next} is not there any more")));
        }
        let bytes: usize = entries.iter().map(|stored| stored.entry.payload.len() + 72).sum();
        self.env.filling.pass(bytes, self.env.config().cluster.fill_bytes_per_second).await;
        let mut out = Vec::with_capacity(entries.len());
        for stored in entries {
            self.hash.update(&stored);
            self.next = stored.entry.index + 1;
            out.push(entry_out(stored.entry));
        }
        Ok(Some((message(Part::Entries(proto::PullEntries { entries: out })), self)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_voters(voters: &[u64]) -> GroupStatus {
        GroupStatus { voters: voters.iter().copied().collect(), ..Default::default() }
    }

    #[test]
    fn only_the_other_of_exactly_two_settled_voters_is_whole_by_itself() {
        assert!(whole_alone(&of_voters(&[1, 2]), 1, 2));
        assert!(whole_alone(&of_voters(&[1, 2]), 2, 1));
        assert!(!whole_alone(&of_voters(&[1, 2]), 1, 3), "the caller does not vote");
        assert!(!whole_alone(&of_voters(&[2, 3]), 1, 2), "this node does not vote");
        assert!(!whole_alone(&of_voters(&[1, 2, 3]), 1, 2), "the third may hold what was acknowledged");
        assert!(!whole_alone(&of_voters(&[1]), 1, 1), "a node does not repair itself");
        let changing = GroupStatus { joint: true, ..of_voters(&[1, 2]) };
        assert!(!whole_alone(&changing, 1, 2), "the next voters may do without this node");
    }
}
