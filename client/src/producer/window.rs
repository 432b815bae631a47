//! The window: the requests in flight, and what happens to each when a response is an error or does not come.
//!
//! Requests form a queue in sequence order. The first `sent` of them were sent on the current stream, in order, and are
//! answered in order. A request that succeeded leaves the queue. After the first failure nothing more is sent until the
//! stream has answered everything in flight (or broke); then [`Window::settle`] decides about the rest.
//!
//! What makes repetition safe for an idempotent producer:
//! - A request keeps its epoch and sequence for ever once an attempt without an answer may have stored it
//!   (`outcome_unknown`). A repetition then finds out whether it is stored. A refusal of it proves nothing about the earlier
//!   attempt, so it fails the producer; the one exception is [`Epoch::proves_not_stored`].
//! - While such a request is in the queue, nothing behind the last of them is sent. A node remembers a limited number of
//!   requests per producer, and a repeated request must still be among them.
//! - A request that fails for good leaves out its sequences. If no other request was formed behind it, the next one takes them.
//!   Otherwise the epoch is over: as soon as no outcome is unknown and nothing is in flight, the next epoch begins, and
//!   everything left was certainly not accepted and is sent again from sequence 0 (KIP-360). No sequence at or below an
//!   acknowledged one is used again.
//! - The same happens when a node has evicted the producer's state: it refuses the next sequence as out of order.
//! - Nodes that were built before unknown producers had to begin at 0 may accept a request behind one that they refused. The
//!   one that was refused is overtaken: it fails, because it would be stored out of order.
//!
//! Pure state without I/O. Names neither the task nor the connection.

use std::collections::VecDeque;

use chronicle_proto::v1;
use tokio::time::Instant;

use super::epoch::{Epoch, advance};
use super::request::{Item, NextRequest, Request, STORED_BATCH_OVERHEAD};
use crate::error::{ClientError, ErrorKind};
use crate::trace;

/// Limits of one request and of the requests in flight.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) records: usize,
    pub(super) bytes: usize,
    pub(super) in_flight: usize,
}

/// Every item that is accepted and not answered.
#[derive(Debug)]
pub(super) struct Window {
    idempotent: bool,
    limits: Limits,
    /// Items that are in no request yet.
    queue: VecDeque<Item>,
    requests: VecDeque<Request>,
    /// How many of the requests, from the first, were sent on the current stream.
    sent: usize,
    /// How many of those, from the first, were answered (with an error, or they would not be in the queue).
    answered: usize,
    /// How many requests, from the first, include every one whose outcome is unknown.
    unresolved: usize,
    epoch: Epoch,
    next_number: u64,
    /// The first error returned to a caller since the last [`Self::take_failure`].
    first_failure: Option<ClientError>,
}

/// The producer has failed: the outcome of an append can no longer be determined, or a node refused the producer.
#[derive(Debug)]
pub(super) struct ProducerFailed(pub(super) ClientError);

impl Window {
    pub(super) fn new(idempotent: bool, limits: Limits) -> Self {
        // Without sequences, waiting for each answer is the only way to keep the order.
        let in_flight = if idempotent { limits.in_flight.max(1) } else { 1 };
        Self {
            idempotent,
            limits: Limits { in_flight, ..limits },
            queue: VecDeque::new(),
            requests: VecDeque::new(),
            sent: 0,
            answered: 0,
            unresolved: 0,
            epoch: Epoch::default(),
            next_number: 0,
            first_failure: None,
        }
    }

    pub(super) fn push(&mut self, mut item: Item) {
        item.number = self.next_number;
        self.next_number += 1;
        self.queue.push_back(item);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.requests.is_empty() && self.queue.is_empty()
    }

    /// Whether a producer id must be allocated before anything more is sent.
    pub(super) fn needs_identity(&self) -> bool {
        self.idempotent && self.epoch.needs_identity()
    }

    /// Sets the producer id and epoch of the requests that follow.
    pub(super) fn identify(&mut self, identity: v1::InitProducerResponse) {
        self.epoch.identify(identity);
    }

    /// Number of the next item.
    pub(super) fn end(&self) -> u64 {
        self.next_number
    }

    /// Number of the first item that is not answered.
    pub(super) fn oldest(&self) -> u64 {
        let front = self.requests.front().and_then(|request| request.items.first()).or(self.queue.front());
        front.map_or(self.next_number, |item| item.number)
    }

    /// The first error returned to a caller since the last call.
    pub(super) fn take_failure(&mut self) -> Option<ClientError> {
        self.first_failure.take()
    }

    pub(super) fn in_flight(&self) -> usize {
        self.sent - self.answered
    }

    /// Whether a request failed: nothing may be sent before [`Self::settle`].
    pub(super) fn is_draining(&self) -> bool {
        self.answered > 0
    }

    /// Whether the queue fills a request.
    pub(super) fn has_full_request(&self) -> bool {
        let (mut records, mut bytes) = (0, STORED_BATCH_OVERHEAD);
        self.queue.iter().any(|item| {
            records += item.records.len();
            bytes += item.stored_bytes();
            item.expectation.is_some() || records >= self.limits.records || bytes >= self.limits.bytes
        })
    }

    /// Whether a request is formed and not sent yet.
    pub(super) fn has_formed_request(&self) -> bool {
        self.sent < self.requests.len()
    }

    pub(super) fn has_queued(&self) -> bool {
        !self.queue.is_empty()
    }

    /// When the oldest item expires.
    pub(super) fn expires(&self) -> Option<Instant> {
        let front = self.requests.front().and_then(|request| request.items.first()).or(self.queue.front());
        front.map(|item| item.expires)
    }

    /// The next request to send; `None` when there is none or it may not be sent now.
    pub(super) fn next(&mut self) -> Option<NextRequest> {
        if self.is_draining() || self.sent >= self.limits.in_flight {
            return None;
        }
        if self.unresolved == 0 && self.epoch.is_over() {
            if self.sent > 0 {
                return None;
            }
            self.begin_epoch();
        }
        if self.needs_identity() || (self.unresolved > 0 && self.sent >= self.unresolved) {
            return None;
        }
        if !self.has_formed_request() {
            self.form()?;
        }
        let request = self.requests.get(self.sent)?;
        self.sent += 1;
        let mut records = Vec::with_capacity(usize::try_from(request.count).unwrap_or(0));
        for item in &request.items {
            records.extend(item.records.iter().cloned());
        }
        let expectation = request.items.first().and_then(|item| item.expectation.clone());
        let trace = trace::of_request(request.items.iter().filter_map(|item| item.span.as_deref()));
        Some(NextRequest { records, expectation, producer: self.epoch.of_request(request.sequence), trace })
    }

    /// The last request from [`Self::next`] was not handed to the stream.
    pub(super) fn not_sent(&mut self) {
        self.sent -= 1;
    }

    /// Gives everything in the queue the sequences of a new epoch. None of it was accepted.
    fn begin_epoch(&mut self) {
        self.epoch.begin();
        for request in &mut self.requests {
            request.sequence = self.epoch.take(request.count);
        }
    }

    fn form(&mut self) -> Option<()> {
        let mut items = vec![self.queue.pop_front()?];
        let (mut records, mut bytes) = (items[0].records.len(), STORED_BATCH_OVERHEAD + items[0].stored_bytes());
        if items[0].expectation.is_none() {
            while let Some(next) = self.queue.front() {
                records += next.records.len();
                bytes += next.stored_bytes();
                if next.expectation.is_some() || records > self.limits.records || bytes > self.limits.bytes {
                    break;
                }
                items.extend(self.queue.pop_front());
            }
        }
        let mut request = Request::of(items, 0);
        request.sequence = self.epoch.take(request.count);
        self.requests.push_back(request);
        Some(())
    }

    /// The oldest unanswered request succeeded; its records begin at `base_offset`. False: nothing was in flight.
    pub(super) fn succeed(&mut self, base_offset: i64) -> bool {
        if self.in_flight() == 0 {
            return false;
        }
        let Some(request) = self.requests.remove(self.answered) else { return false };
        self.sent -= 1;
        if self.answered < self.unresolved {
            self.unresolved -= 1;
        }
        self.epoch.acknowledge(request.sequence, request.count);
        self.requests.iter_mut().take(self.answered).for_each(|before| before.overtaken = true);
        let mut offset = base_offset;
        for item in request.items {
            let count = i64::from(item.count());
            item.answer(Ok(offset));
            offset += count;
        }
        true
    }

    /// The oldest unanswered request failed. False: nothing was in flight.
    pub(super) fn fail(&mut self, error: ClientError) -> bool {
        if self.in_flight() == 0 {
            return false;
        }
        self.requests[self.answered].failure = Some(error);
        self.answered += 1;
        true
    }

    /// Decides about the requests that are left when everything in flight is answered, or when the stream broke; in the latter
    /// case requests without an answer may have been stored. Afterwards nothing is in flight. Returns the last retryable
    /// failure: there must be a pause before the next attempt.
    pub(super) fn settle(&mut self) -> Result<Option<ClientError>, ProducerFailed> {
        let mut left = self.take_requests();
        // OUT_OF_ORDER_SEQUENCE follows from an earlier failure only if there is one.
        let mut after_failure = false;
        let mut wait = None;
        // Sequence of the first request that failed.
        let mut left_out = None;
        while let Some(mut request) = left.pop_front() {
            let failure = request.failure.take();
            match self.verdict(&mut request, failure.as_ref(), after_failure) {
                Verdict::Keep => {
                    after_failure |= failure.is_some();
                    wait = failure.filter(ClientError::is_retryable).or(wait);
                    self.requests.push_back(request);
                }
                Verdict::Split => {
                    after_failure = true;
                    let mut sequence = request.sequence;
                    for item in request.items {
                        let request = Request::of(vec![item], sequence);
                        sequence = advance(sequence, request.count);
                        self.requests.push_back(request);
                    }
                }
                Verdict::Fail(error) => {
                    after_failure = true;
                    if request.overtaken {
                        self.epoch.end();
                    }
                    left_out.get_or_insert((request.sequence, self.requests.len()));
                    self.report(&error);
                    request.fail(&error);
                }
                Verdict::FailProducer(error) => {
                    self.requests.push_back(request);
                    self.requests.append(&mut left);
                    return Err(ProducerFailed(error));
                }
            }
        }
        self.leave_out(left_out);
        Ok(wait)
    }

    /// The requests, with what is known of each. Afterwards nothing is in flight.
    fn take_requests(&mut self) -> VecDeque<Request> {
        for request in self.requests.iter_mut().take(self.sent) {
            request.outcome_unknown |= !request.failure.as_ref().is_some_and(ClientError::not_accepted);
        }
        (self.sent, self.answered) = (0, 0);
        std::mem::take(&mut self.requests)
    }

    /// Requests were taken out. `first`: sequence of the first of them, and how many requests are left before it.
    fn leave_out(&mut self, first: Option<(i32, usize)>) {
        self.unresolved = self.requests.iter().rposition(|request| request.outcome_unknown).map_or(0, |last| last + 1);
        let Some((sequence, before)) = first else { return };
        if self.requests.len() > before {
            self.epoch.end();
        } else if !self.epoch.is_over() {
            self.epoch.give_back(sequence);
        }
    }

    fn verdict(&mut self, request: &mut Request, failure: Option<&ClientError>, after_failure: bool) -> Verdict {
        let Some(error) = failure else {
            // Not answered, or not sent at all.
            return match request.outcome_unknown && !self.idempotent {
                true => Verdict::Fail(stream_broke().into_unknown()),
                false => Verdict::Keep,
            };
        };
        let is_rejected = |request: &Request| match request.items.len() > 1 {
            true => Verdict::Split,
            false => Verdict::Fail(error.clone()),
        };
        if !self.idempotent {
            return match () {
                () if request.outcome_unknown => Verdict::Fail(error.clone().into_unknown()),
                () if error.is_retryable() => Verdict::Keep,
                () => is_rejected(request),
            };
        }
        let is_out_of_order = error.reason == "OUT_OF_ORDER_SEQUENCE";
        match () {
            () if request.overtaken && !request.outcome_unknown => Verdict::Fail(error.clone()),
            () if error.is_retryable() => Verdict::Keep,
            () if is_out_of_order && self.goes_on_after(request, error, after_failure) => Verdict::Keep,
            () if is_out_of_order || error.reason == "PRODUCER_FENCED" || request.outcome_unknown => {
                Verdict::FailProducer(error.clone())
            }
            () => is_rejected(request),
        }
    }

    /// Whether a request that was refused as out of order was certainly never accepted, and can be sent again: after the requests
    /// before it, or in a new epoch.
    fn goes_on_after(&mut self, request: &mut Request, error: &ClientError, after_failure: bool) -> bool {
        if request.outcome_unknown {
            let expected = error.number("expected");
            request.outcome_unknown =
                !expected.is_some_and(|expected| self.epoch.proves_not_stored(request.sequence, expected));
            return !request.outcome_unknown;
        }
        if after_failure || self.epoch.is_over() {
            return true;
        }
        if self.epoch.is_first(request.sequence) {
            return false;
        }
        // The node has evicted the producer.
        self.epoch.end();
        true
    }

    /// Fails the items that have expired. Nothing may be in flight. `last`: the error of the last attempt.
    pub(super) fn expire(&mut self, now: Instant, last: Option<&ClientError>) -> Result<(), ProducerFailed> {
        debug_assert_eq!(self.sent, 0, "expire is for requests that are not in flight");
        if self.expires().is_none_or(|expires| expires > now) {
            return Ok(());
        }
        let error = match last {
            Some(last) => ClientError { message: format!("delivery timeout: {}", last.message), ..last.clone() },
            None => ClientError::new(ErrorKind::Retryable, "DEADLINE_EXCEEDED", "delivery timeout"),
        };
        let is_expired = |request: &Request| request.items.iter().any(|item| item.expires <= now);
        if self.requests.iter().any(|request| request.outcome_unknown && is_expired(request)) {
            return Err(ProducerFailed(error));
        }
        // The requests that fail here are certainly not stored, even if the outcome of the last attempt is unknown.
        let error = if error.not_accepted() { error } else { ClientError { kind: ErrorKind::Retryable, ..error } };
        self.report(&error);
        let mut left_out = None;
        for request in std::mem::take(&mut self.requests) {
            if request.outcome_unknown {
                self.requests.push_back(request);
                continue;
            }
            let (expired, kept): (Vec<Item>, Vec<Item>) =
                request.items.into_iter().partition(|item| item.expires <= now);
            if !expired.is_empty() {
                left_out.get_or_insert((request.sequence, self.requests.len()));
            }
            expired.into_iter().for_each(|item| item.answer(Err(error.clone())));
            if !kept.is_empty() {
                self.requests.push_back(Request::of(kept, request.sequence));
            }
        }
        while let Some(item) = self.queue.pop_front_if(|item| item.expires <= now) {
            item.answer(Err(error.clone()));
        }
        self.leave_out(left_out);
        Ok(())
    }

    /// Fails every item: as `OUTCOME_UNKNOWN` if it may have been stored, otherwise as not accepted. Returns the error of the
    /// producer: unknown if the outcome of an item is.
    pub(super) fn abandon(&mut self, error: &ClientError) -> ClientError {
        let requests = self.take_requests();
        let unknown = error.clone().into_unknown();
        let is_unknown = requests.iter().any(|request| request.outcome_unknown);
        let refused = error.clone().into_not_accepted();
        if is_unknown {
            // That matters more to a caller that flushes than what failed before.
            self.first_failure = Some(unknown.clone());
        }
        self.report(&refused);
        for request in requests {
            let answer = if request.outcome_unknown { &unknown } else { &refused };
            request.fail(answer);
        }
        for item in std::mem::take(&mut self.queue) {
            item.answer(Err(refused.clone()));
        }
        self.unresolved = 0;
        if is_unknown { unknown } else { error.clone() }
    }

    fn report(&mut self, error: &ClientError) {
        self.first_failure.get_or_insert_with(|| error.clone());
    }
}

/// What happens to a request that is left.
enum Verdict {
    /// It is sent again.
    Keep,
    /// Each of its items is sent again as a request of its own, to find the one that the node rejects.
    Split,
    /// Its items fail with this error.
    Fail(ClientError),
    /// The producer fails with this error.
    FailProducer(ClientError),
}

fn stream_broke() -> ClientError {
    ClientError::new(
        ErrorKind::Transport { sent: true },
        "CONNECTION_LOST",
        "the stream broke before the node answered",
    )
}
