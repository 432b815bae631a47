//! The sequencer: one task per led partition that owns the order of its appends.
//!
//! It gathers waiting requests into one raft entry (limited in bytes; batching comes from the wait for earlier
//! entries, not from a timer), checks each against the speculative tail (everything it has proposed so far) and proposes the
//! entry pinned to its term, so that an entry that commits is valid by construction.
//!
//! Invariants:
//! - Base offsets are assigned here, in queue order, and patched into the batches in place.
//! - The response to a rejected or duplicate request is sent only after the entries that it was checked against are committed,
//!   and this node has proved that it still led when it was checked ([`super::confirming`]).
//! - When an entry fails, the speculative tail is void: the sequencer stops, and another one starts from the committed
//!   state if this node still leads then.
//! - Every request gets a response: a [`Reply`] that is dropped sends "not accepted" before its proposal and "outcome unknown"
//!   after it.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use chronicle_log::{EntryKind, Log, mutant};
use chronicle_records::{BatchHeader, FirstSequence, ProducerTable, SequenceCheck};
use futures::FutureExt;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::confirming::{ConfirmLater, Confirming};
use super::environment::Environment;
use super::keys::{KeyVersions, KeysError};
use super::repeated::is_repeat;
use super::segment_ends::SegmentEnds;
use super::state_machine::{AppliedState, PartitionMachine};
use crate::model::{Expectation, PartitionError, Produced};
use crate::raft::{LeaderTerm, Proposal, ProposeError, ProposeResult, RaftGroup, Reservation};
use crate::telemetry::traces::{EntryTrace, Queued};
use crate::telemetry::{RaftMetrics, Stage};

/// The result of an append.
pub type AppendAnswer = Result<Produced, PartitionError>;

/// A pending response to one client. When dropped, it sends the error that is certain about the append's outcome.
#[derive(Debug)]
pub struct Reply {
    sender: Option<oneshot::Sender<AppendAnswer>>,
    proposed: bool,
}

impl Reply {
    /// A reply, and the receiver of its answer.
    pub fn new() -> (Self, oneshot::Receiver<AppendAnswer>) {
        let (sender, receiver) = oneshot::channel();
        (Self { sender: Some(sender), proposed: false }, receiver)
    }

    fn send(mut self, answer: AppendAnswer) {
        if let Some(sender) = self.sender.take() {
            // A client that has disconnected needs no answer.
            let _ = sender.send(answer);
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if let Some(sender) = self.sender.take() {
            let stopped = PartitionError::Unavailable("the partition stopped before the append was checked".into());
            let _ = sender.send(Err(if self.proposed { PartitionError::unknown(stopped) } else { stopped }));
        }
    }
}

/// One append on its way into the log.
pub(super) struct Append {
    /// One checked record batch.
    pub batch: BytesMut,
    /// Its header.
    pub header: BatchHeader,
    /// Its condition.
    pub expectation: Option<Expectation>,
    /// Receives the result.
    pub reply: Reply,
    /// Its share of the queue's byte limit; released once it is proposed.
    pub permit: OwnedSemaphorePermit,
    /// When it was queued.
    pub queued: Instant,
    /// `None`: the request is not sampled.
    pub trace: Option<Box<Queued>>,
}

/// The sequencer of one term, and what it needs.
pub(super) struct Sequencer {
    pub(super) group: Arc<RaftGroup<PartitionMachine>>,
    pub(super) leader: LeaderTerm,
    pub(super) log: Arc<Log>,
    pub(super) shared: Arc<AppliedState>,
    pub(super) queue: mpsc::UnboundedReceiver<Append>,
    /// Limits the entries that are proposed and not yet committed.
    pub(super) slots: Arc<Semaphore>,
    /// KiB that all partitions together may have proposed, and not yet both committed and flushed here.
    pub(super) budget: Arc<Semaphore>,
    pub(super) entry_bytes_max: usize,
    pub(super) versioned_keys_max: usize,
    pub(super) failure: SequencerFailure,
    pub(super) confirming: Confirming,
    pub(super) ends: SegmentEnds,
    pub(super) metrics: RaftMetrics,
}

/// Why the sequencer stopped; the first cause is kept.
#[derive(Clone)]
pub(super) struct SequencerFailure {
    env: Arc<Environment>,
    log: Arc<Log>,
    cause: Arc<Mutex<Option<PartitionError>>>,
    stop: CancellationToken,
    failed: CancellationToken,
}

impl SequencerFailure {
    pub(super) fn new(env: Arc<Environment>, log: Arc<Log>) -> Self {
        Self { env, log, cause: Arc::default(), stop: CancellationToken::new(), failed: CancellationToken::new() }
    }

    /// The error when this node does not lead any more.
    pub(super) fn moved(&self, leader: Option<u64>, why: &str) -> PartitionError {
        match leader {
            Some(leader) => PartitionError::NotLeader { leader },
            None => PartitionError::Unavailable(why.into()),
        }
    }

    /// Sets the cause, if there is none, and stops the sequencer.
    pub(super) fn set(&self, error: PartitionError) {
        self.cause.lock().get_or_insert(error);
        self.stop.cancel();
        self.failed.cancel();
    }

    /// Cancelled when a failure is set.
    pub(super) fn failed(&self) -> CancellationToken {
        self.failed.clone()
    }

    /// Resolves when the sequencer stops, for any cause.
    pub(super) async fn stopped(&self) {
        self.stop.cancelled().await;
    }

    /// Stops the sequencer without a failure: accepted appends are finished, queued ones rejected.
    pub(super) fn stop(&self) {
        self.stop.cancel();
    }

    /// The cause, once there is one. If the log failed, the log's error and not raft's.
    pub(super) fn get(&self) -> Option<PartitionError> {
        if !self.stop.is_cancelled() {
            return None;
        }
        match self.log.failure() {
            Some(error) => Some(PartitionError::from(&error)),
            None => self.cause.lock().clone(),
        }
    }
}

/// State at the end of the log, including everything proposed so far.
struct SpeculativeTail {
    next_offset: u64,
    producers: ProducerTable,
    /// Built on first use. An error is kept until the log start moves, since building reads the whole log.
    keys: Option<Result<KeyVersions, (PartitionError, u64)>>,
}

/// A reply that waits for a commit.
struct WaitingReply {
    reply: Reply,
    answer: AppendAnswer,
    /// Its records are in the entry, or in an earlier one: while the entry's outcome is unknown, so is that of the append.
    in_log: bool,
    /// The answer states what the log contained before the append: it needs a proof of leadership. That the append was stored
    /// is certain once its entry has committed.
    states: bool,
    /// The append has the sequence number of a stored batch.
    repeated: Option<Repeated>,
}

/// An append whose records must be those that are stored at an offset.
struct Repeated {
    batch: Bytes,
    header: BatchHeader,
    base_offset: i64,
    log: Arc<Log>,
    shared: Arc<AppliedState>,
    /// Counts its bytes.
    permit: OwnedSemaphorePermit,
}

impl Repeated {
    /// Sends the answer if the records are the same.
    async fn send(self, reply: Reply, answer: AppendAnswer) {
        let Self { batch, header, base_offset, log, shared, permit } = self;
        let applied = shared.progress.borrow().index;
        let same = crate::host::blocking(move || is_repeat(&log, &batch, base_offset, applied)).await;
        drop(permit);
        reply.send(match same {
            Ok(true) => answer,
            Ok(false) => Err(PartitionError::SequenceReused {
                producer_id: header.producer_id,
                sequence: header.base_sequence,
                base_offset,
            }),
            Err(error) => Err(PartitionError::unknown(PartitionError::Internal(error.to_string()))),
        });
    }
}

impl WaitingReply {
    /// Sends the answer, after the proof that it needs. Everything that the append was checked against has committed.
    fn send(self, confirm: &ConfirmLater, failure: &SequencerFailure) {
        if !self.states {
            return self.reply.send(self.answer);
        }
        let failure = failure.clone();
        confirm.then(move |proof| {
            match (proof, self.repeated) {
                (Ok(()), Some(repeated)) => return Some(repeated.send(self.reply, self.answer).boxed()),
                (Ok(()), None) => self.reply.send(self.answer),
                (Err(error), repeated) => refuse(Self { repeated, ..self }, &failure.get().unwrap_or(error), true),
            }
            None
        });
    }
}

/// The replies that wait for one proposed entry.
struct InFlight {
    /// `None` once the entry has committed or failed; where it failed, the failure was set before.
    waiting: Option<Vec<WaitingReply>>,
    /// Raft has accepted the proposal: from now on it may be appended.
    sent: bool,
    /// Raft dropped the proposal without an answer before `sent` was known.
    orphaned: bool,
    /// Permit of the partition's slots, and reservation of the node's budget; dropped once the entry has committed or failed.
    /// The log has a clone of the reservation until the entry is flushed.
    held: Option<(OwnedSemaphorePermit, Reservation)>,
}

type Waiters = Arc<Mutex<InFlight>>;

/// An entry that is being assembled.
#[derive(Default)]
struct Draft {
    payload: BytesMut,
    records: u32,
    max_timestamp: i64,
    waiting: Vec<WaitingReply>,
    /// The sampled requests in it.
    sampled: Vec<Queued>,
}

impl Sequencer {
    /// Runs until the queue closes or the partition fails. Returns when all requests of proposed entries have a response.
    pub(super) async fn run(mut self) {
        let confirming = self.confirming.task();
        self.order().await;
        if let Some(confirming) = confirming
            && let Err(error) = confirming.await
        {
            tracing::error!(%error, "confirming of statements panicked");
        }
    }

    async fn order(mut self) {
        let mut tail = SpeculativeTail {
            next_offset: self.shared.progress.borrow().next_offset,
            producers: self.shared.producers.lock().clone(),
            keys: None,
        };
        let slots_max = self.slots.available_permits() as u32;
        let mut last: Option<Waiters> = None;
        // Proposed entries, oldest first; at most as many as there are slots, and a few that have completed.
        let mut proposed: VecDeque<Waiters> = VecDeque::new();
        let mut held: Option<Append> = None;
        loop {
            let first = match held.take() {
                Some(append) => append,
                None => tokio::select! {
                    biased;
                    () = self.failure.stop.cancelled() => break,
                    next = self.queue.recv() => match next {
                        Some(append) => append,
                        None => break,
                    },
                },
            };
            // While this waits, requests gather behind it.
            let slot = tokio::select! {
                biased;
                () = self.failure.stop.cancelled() => break,
                slot = self.slots.clone().acquire_owned() => slot.expect("the semaphore is never closed"),
            };
            let mut draft = Draft::default();
            self.take(first, &mut tail, &mut draft, &last).await;
            while draft.payload.len() < self.entry_bytes_max {
                let Ok(next) = self.queue.try_recv() else { break };
                if !draft.payload.is_empty() && draft.payload.len() + next.batch.len() > self.entry_bytes_max {
                    held = Some(next);
                    break;
                }
                self.take(next, &mut tail, &mut draft, &last).await;
            }
            if draft.payload.is_empty() {
                continue;
            }
            match self.propose(draft, slot).await {
                Some(waiters) => {
                    proposed.retain(|waiters| waiters.lock().waiting.is_some());
                    proposed.push_back(waiters.clone());
                    last = Some(waiters);
                }
                None => break,
            }
        }
        self.queue.close();
        let refused = held.into_iter().chain(std::iter::from_fn(|| self.queue.try_recv().ok()));
        let Some(cause) = self.failure.get() else {
            // Reject queued requests, then wait for proposed entries: all slots are free once they have completed. A
            // majority that does not respond must not block this forever.
            drop(refused.collect::<Vec<_>>());
            let patience = 2 * self.failure.env.cluster.election_timeout();
            tokio::select! {
                _ = self.slots.acquire_many(slots_max) => return,
                () = self.failure.failed.cancelled() => {}
                () = tokio::time::sleep(patience) => {
                    let why = "no response from a majority of the replicas";
                    self.failure.set(PartitionError::Unavailable(why.into()));
                }
            }
            if let Some(cause) = self.failure.get() {
                for waiters in proposed {
                    fail(&waiters, &self.failure, cause.clone(), true);
                }
            }
            return;
        };
        // The new leader knows the outcome of these entries; clients may retry there immediately.
        for waiters in proposed {
            fail(&waiters, &self.failure, cause.clone(), true);
        }
        refused.for_each(|append| append.reply.send(Err(cause.clone())));
    }

    /// Checks one append: adds it to the draft, or rejects it.
    async fn take(&self, append: Append, tail: &mut SpeculativeTail, draft: &mut Draft, last: &Option<Waiters>) {
        let Append { mut batch, header, expectation, reply, permit, queued, trace } = append;
        self.metrics.stage(Stage::Queue, queued.elapsed());
        let now_ms = self.shared.now_ms();
        let verdict = match tail.producers.check(&header, FirstSequence::Zero, now_ms) {
            SequenceCheck::Next => match expectation {
                Some(_) if mutant!("conditions-always-hold") => Ok(()),
                Some(expectation) => self.expect(&expectation, tail, draft, &header).await,
                None => Ok(()),
            },
            SequenceCheck::Duplicate { .. } if mutant!("duplicates-not-recognised") => Ok(()),
            SequenceCheck::Duplicate { base_offset } => {
                let base_offset = base_offset + i64::from(mutant!("duplicate-at-wrong-offset"));
                let answer = Ok(Produced { base_offset, record_count: header.record_count, duplicate: true });
                let repeated = Repeated {
                    batch: batch.freeze(),
                    header,
                    base_offset,
                    log: self.log.clone(),
                    shared: self.shared.clone(),
                    permit,
                };
                let waiting = WaitingReply { reply, answer, in_log: true, states: true, repeated: Some(repeated) };
                return self.answer_after(waiting, draft, last);
            }
            SequenceCheck::Stored => Err(PartitionError::unknown(PartitionError::Unavailable(format!(
                "producer {}: sequence {}: was stored before, at an offset that is no longer known",
                header.producer_id, header.base_sequence
            )))),
            SequenceCheck::Full => Err(PartitionError::Overloaded(format!(
                "producer {}: the partition has as many active producers as partitions.producers-max allows",
                header.producer_id
            ))),
            SequenceCheck::Fenced { current } => Err(PartitionError::ProducerFenced {
                producer_id: header.producer_id,
                epoch: header.producer_epoch,
                current,
            }),
            SequenceCheck::OutOfOrder { expected } => Err(PartitionError::OutOfOrderSequence {
                producer_id: header.producer_id,
                sequence: header.base_sequence,
                expected,
            }),
        };
        if let Err(error) = verdict {
            let refused = WaitingReply { reply, answer: Err(error), in_log: false, states: true, repeated: None };
            return self.answer_after(refused, draft, last);
        }
        let base_offset = tail.next_offset as i64;
        chronicle_records::patch(&mut batch, base_offset, leader_epoch(self.leader.term));
        tail.producers.appended(&header, base_offset, now_ms);
        tail.next_offset += u64::from(header.offset_count());
        if let Some(Ok(keys)) = &mut tail.keys
            && !mutant!("key-versions-stand-still")
        {
            let batches = batch.clone().freeze();
            if let Err(error) = keys.observe(&batches) {
                tracing::warn!(%error, "key versions dropped");
                tail.keys = Some(Err((keys_error(error), self.shared.log_start(&self.log))));
            }
        }
        if draft.payload.is_empty() {
            draft.payload = batch;
            draft.max_timestamp = header.max_timestamp;
        } else {
            draft.payload.extend_from_slice(&batch);
            draft.max_timestamp = draft.max_timestamp.max(header.max_timestamp);
        }
        draft.records += header.offset_count();
        let answer = Ok(Produced { base_offset, record_count: header.record_count, duplicate: false });
        if mutant!("answer-before-commit") {
            return reply.send(answer);
        }
        draft.waiting.push(WaitingReply { reply, answer, in_log: true, states: false, repeated: None });
        draft.sampled.extend(trace.map(|queued| *queued));
        drop(permit);
    }

    /// Checks an expectation against the speculative tail.
    async fn expect(
        &self,
        expectation: &Expectation,
        tail: &mut SpeculativeTail,
        draft: &Draft,
        header: &BatchHeader,
    ) -> Result<(), PartitionError> {
        match expectation {
            Expectation::NextOffset(wanted) if *wanted == tail.next_offset as i64 => Ok(()),
            Expectation::NextOffset(wanted) => {
                Err(PartitionError::OffsetConflict { expected: *wanted, current: tail.next_offset })
            }
            Expectation::KeyVersion { key, version } => {
                let log_start = self.shared.log_start(&self.log);
                if matches!(&tail.keys, Some(Err((_, at))) if *at != log_start) {
                    tail.keys = None;
                }
                if tail.keys.is_none() {
                    let built = self.build_keys(tail.next_offset, draft).await;
                    let built = match built {
                        Err(error) if !matches!(error, PartitionError::Overloaded(_)) => return Err(error),
                        built => built,
                    };
                    tail.keys = Some(built.map_err(|error| (error, log_start)));
                }
                let keys = match tail.keys.as_ref().expect("built above") {
                    Ok(keys) => keys,
                    Err((error, _)) => return Err(error.clone()),
                };
                let current = keys.version(key, log_start);
                if current == *version {
                    return Ok(());
                }
                Err(PartitionError::KeyConflict { expected: *version, current, records: header.record_count })
            }
        }
    }

    /// Builds the versions of all keys: waits until everything proposed is in the log, reads the log, and adds the draft.
    async fn build_keys(&self, next_offset: u64, draft: &Draft) -> Result<KeyVersions, PartitionError> {
        let committed = next_offset - u64::from(draft.records);
        let mut progress = self.shared.progress.subscribe();
        let reached = tokio::select! {
            biased;
            () = self.failure.stop.cancelled() => None,
            reached = progress.wait_for(|p| p.next_offset >= committed) => reached.ok().map(|p| *p),
        };
        let Some(reached) = reached else {
            return Err(PartitionError::Unavailable("the partition is stopping".into()));
        };
        let (log, max) = (self.log.clone(), self.versioned_keys_max);
        let built = crate::host::blocking(move || KeyVersions::build(&log, reached.index, max)).await;
        let mut keys = built.map_err(|e| PartitionError::Internal(e.to_string()))?.map_err(keys_error)?;
        if !draft.payload.is_empty() {
            keys.observe(&draft.payload.clone().freeze()).map_err(keys_error)?;
        }
        Ok(keys)
    }

    /// Proposes a draft. `None`: the group has stopped.
    async fn propose(&self, draft: Draft, slot: OwnedSemaphorePermit) -> Option<Waiters> {
        let kib = draft.payload.len().div_ceil(1024) as u32;
        let budget = tokio::select! {
            biased;
            () = self.failure.stop.cancelled() => return self.reject_draft(draft),
            budget = self.budget.clone().acquire_many_owned(kib) => budget.expect("the semaphore is never closed"),
        };
        let mut waiting = draft.waiting;
        for waiter in &mut waiting {
            waiter.reply.proposed = waiter.in_log;
        }
        let reservation = Reservation::new(budget);
        let waiters: Waiters = Arc::new(Mutex::new(InFlight {
            waiting: Some(waiting),
            sent: false,
            orphaned: false,
            held: Some((slot, reservation.clone())),
        }));
        // When the group has stopped, the proposal below fails in the same way.
        let _ = self.ends.before_entry(draft.payload.len()).await;
        let proposal = Proposal {
            kind: EntryKind::Data,
            record_count: draft.records,
            max_timestamp: draft.max_timestamp,
            payload: draft.payload.freeze(),
            trace: EntryTrace::proposed(draft.sampled),
            reservation: Some(reservation),
        };
        let done = Completion {
            waiters: waiters.clone(),
            failure: self.failure.clone(),
            confirm: self.confirming.later(),
            metrics: self.metrics.clone(),
            proposed: Instant::now(),
            done: false,
        };
        let sent = self.group.propose(self.leader, proposal, move |result| done.finish(result)).await;
        if let Err(error) = sent {
            let error = PartitionError::from(error);
            fail(&waiters, &self.failure, error, false);
            return None;
        }
        let orphaned = {
            let mut in_flight = waiters.lock();
            in_flight.sent = true;
            in_flight.orphaned
        };
        if orphaned {
            fail(&waiters, &self.failure, raft_stopped(), true);
            return None;
        }
        Some(waiters)
    }

    /// Rejects a draft that was not proposed because the sequencer stops.
    fn reject_draft(&self, draft: Draft) -> Option<Waiters> {
        let stopping = PartitionError::Unavailable("the partition is stopping".into());
        let cause = self.failure.get().unwrap_or(stopping);
        draft.waiting.into_iter().for_each(|waiting| refuse(waiting, &cause, false));
        None
    }

    /// Sends a response once everything proposed before it has committed.
    fn answer_after(&self, waiting: WaitingReply, draft: &mut Draft, last: &Option<Waiters>) {
        if mutant!("refusals-do-not-wait") {
            return waiting.reply.send(waiting.answer);
        }
        if !draft.payload.is_empty() {
            draft.waiting.push(waiting);
            return;
        }
        if let Some(last) = last
            && let Some(waiters) = last.lock().waiting.as_mut()
        {
            waiters.push(waiting);
            return;
        }
        match self.failure.get() {
            None => waiting.send(&self.confirming.later(), &self.failure),
            // The entries that it was checked against may be void.
            Some(cause) => refuse(waiting, &cause, true),
        }
    }
}

/// Sends the replies of one entry when it commits or fails.
struct Completion {
    waiters: Waiters,
    failure: SequencerFailure,
    confirm: ConfirmLater,
    metrics: RaftMetrics,
    proposed: Instant,
    done: bool,
}

impl Completion {
    fn finish(mut self, result: ProposeResult) {
        self.done = true;
        match result {
            Ok(_) => {
                self.metrics.stage(Stage::Commit, self.proposed.elapsed());
                let (waiting, held) = {
                    let mut in_flight = self.waiters.lock();
                    (in_flight.waiting.take().unwrap_or_default(), in_flight.held.take())
                };
                drop(held);
                waiting.into_iter().for_each(|waiting| waiting.send(&self.confirm, &self.failure));
            }
            Err(error) => {
                let accepted = matches!(error, ProposeError::Unknown(_));
                let leader = match &error {
                    ProposeError::NotAccepted(leader, _) => *leader,
                    ProposeError::Unknown(_) => None,
                };
                let cause = self.failure.moved(leader, &error.to_string());
                fail(&self.waiters, &self.failure, cause, accepted);
            }
        }
    }
}

impl Drop for Completion {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        let sent = {
            let mut in_flight = self.waiters.lock();
            in_flight.orphaned = true;
            in_flight.sent
        };
        // Before that, `propose` sends the error.
        if sent {
            fail(&self.waiters, &self.failure, raft_stopped(), true);
        }
    }
}

fn raft_stopped() -> PartitionError {
    PartitionError::Unavailable("the raft group stopped".into())
}

/// Sends an error to all replies that wait for an entry that did not commit. The failure is set first: code that finds no waiting
/// replies and no failure may treat the entry as committed.
fn fail(waiters: &Waiters, failure: &SequencerFailure, cause: PartitionError, accepted: bool) {
    failure.set(cause.clone());
    let cause = failure.get().unwrap_or(cause);
    let (waiting, held) = {
        let mut in_flight = waiters.lock();
        (in_flight.waiting.take().unwrap_or_default(), in_flight.held.take())
    };
    drop(held);
    for waiting in waiting {
        refuse(waiting, &cause, accepted);
    }
}

/// Sends the error to one client when the entry that it waits for did not commit. `accepted`: the entry may be in a log.
fn refuse(waiting: WaitingReply, cause: &PartitionError, accepted: bool) {
    let unknown = waiting.in_log && accepted;
    waiting.reply.send(Err(if unknown { PartitionError::unknown(cause.clone()) } else { cause.clone() }));
}

fn keys_error(error: KeysError) -> PartitionError {
    match error {
        KeysError::TooMany(_) => PartitionError::Overloaded(error.to_string()),
        KeysError::Log(error) => PartitionError::from(error),
        KeysError::Batch(_) => PartitionError::Damaged { index: None, why: error.to_string() },
    }
}

/// Kafka's leader epoch: the lower 31 bits of the term.
fn leader_epoch(term: u64) -> i32 {
    (term & i32::MAX as u64) as i32
}
