//! Which requests are on their way, and what becomes of each when answers are errors or do not come at all.
//!
//! Requests form a queue in sequence order; the first `sent` of them went out on the current stream, in order, and are
//! answered in order. A success leaves the queue. After the first failure nothing more is sent until the stream has
//! answered everything in flight (or broke); then [`Window::settle`] sorts the rest.
//!
//! What makes repetition and renumbering safe for an idempotent producer:
//! - The node accepts a sequence only directly after the one before. So after a request that was certainly not accepted
//!   (and never open before), nothing later in that stream was accepted either.
//! - `open` marks a request that may have been stored by an attempt without an answer. It keeps its sequence for ever. A
//!   refusal of it proves nothing about the earlier attempt, so it ends the producer.
//! - While a request is open, nothing that is not open is sent: a node remembers only so many requests of a producer, and
//!   one that is repeated must not have left its memory.
//! - When a request is given up, those behind it move up by its sequences. Only requests that are not open may move. Requests
//!   that succeeded keep their place: a gap that they leave between those that are left is not closed.

use std::collections::VecDeque;

use chronicle_proto::v1;
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::time::Instant;

use crate::error::{ClientError, ErrorKind};
use crate::trace::{self, Sending};

/// Upper bound of what a stored record weighs besides key, value and headers, in bytes: attributes and six varints.
const STORED_RECORD_OVERHEAD: usize = 36;
/// The same for one header.
const STORED_HEADER_OVERHEAD: usize = 10;
/// Header of a stored batch, in bytes.
const STORED_BATCH_OVERHEAD: usize = 61;

/// What one call handed over: it is stored as a whole, or not.
#[derive(Debug)]
pub(super) struct Item {
    pub(super) records: Vec<v1::Record>,
    pub(super) payload_bytes: usize,
    pub(super) expectation: Option<v1::Expectation>,
    /// When the caller stops waiting.
    pub(super) expires: Instant,
    pub(super) reply: oneshot::Sender<Result<i64, ClientError>>,
    /// Its span; `None` when none was active where it was handed over.
    pub(super) trace: Option<Box<Sending>>,
    /// Its share of the buffer, given back when it is answered.
    pub(super) _permit: Option<OwnedSemaphorePermit>,
    /// Position among all items of this producer.
    pub(super) number: u64,
}

impl Item {
    /// Bytes that it takes in a stored batch, at most.
    fn stored_bytes(&self) -> usize {
        let headers: usize = self.records.iter().map(|record| record.headers.len()).sum();
        self.payload_bytes + self.records.len() * STORED_RECORD_OVERHEAD + headers * STORED_HEADER_OVERHEAD
    }

    fn count(&self) -> i32 {
        i32::try_from(self.records.len()).unwrap_or(i32::MAX)
    }

    fn answer(self, result: Result<i64, ClientError>) {
        if let Some(trace) = &self.trace {
            trace.answered(result.as_ref().err());
        }
        // Nobody may be waiting for it any more.
        let _ = self.reply.send(result);
    }
}

/// Some items on their way as one request.
#[derive(Debug)]
struct Request {
    items: Vec<Item>,
    count: i32,
    sequence: i32,
    open: bool,
    failure: Option<ClientError>,
}

impl Request {
    fn of(items: Vec<Item>, sequence: i32) -> Self {
        let count = items.iter().map(Item::count).sum();
        Self { items, count, sequence, open: false, failure: None }
    }

    /// Takes the place of `freed` sequences before it.
    fn move_up(&mut self, freed: i32) -> Result<(), Stuck> {
        if freed > 0 && self.open {
            let message = format!("sequence {} may be stored and cannot change", self.sequence);
            return Err(Stuck(ClientError::new(ErrorKind::OutcomeUnknown, "OUTCOME_UNKNOWN", message)));
        }
        self.sequence = retreat(self.sequence, freed);
        Ok(())
    }

    fn fail(self, error: &ClientError) {
        for item in self.items {
            item.answer(Err(error.clone()));
        }
    }
}

/// A request to put on the stream.
#[derive(Debug)]
pub(super) struct Next {
    pub(super) records: Vec<v1::Record>,
    pub(super) expectation: Option<v1::Expectation>,
    /// Of the first record.
    pub(super) sequence: i32,
    pub(super) trace: Option<v1::TraceContext>,
}

/// Limits of one request and of the requests in flight.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) records: usize,
    pub(super) bytes: usize,
    pub(super) in_flight: usize,
}

/// Everything accepted and not answered.
#[derive(Debug)]
pub(super) struct Window {
    idempotent: bool,
    limits: Limits,
    /// Items that no request has taken yet.
    queue: VecDeque<Item>,
    requests: VecDeque<Request>,
    /// Requests that are out on the current stream: the first ones.
    sent: usize,
    /// Of those, the first ones that were answered (with an error, for they are still here).
    answered: usize,
    next_sequence: i32,
    next_number: u64,
    /// The first failure that a caller was told of since it was last asked for.
    first_failure: Option<ClientError>,
}

/// The producer cannot go on: the outcome of something can no longer be found out.
#[derive(Debug)]
pub(super) struct Stuck(pub(super) ClientError);

impl Window {
    pub(super) fn new(idempotent: bool, limits: Limits) -> Self {
        // Without sequences, order can only be kept by waiting for each answer.
        let in_flight = if idempotent { limits.in_flight.max(1) } else { 1 };
        Self {
            idempotent,
            limits: Limits { in_flight, ..limits },
            queue: VecDeque::new(),
            requests: VecDeque::new(),
            sent: 0,
            answered: 0,
            next_sequence: 0,
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

    /// Number that the next item gets.
    pub(super) fn end(&self) -> u64 {
        self.next_number
    }

    /// Number of the first item that is not answered.
    pub(super) fn oldest(&self) -> u64 {
        let front = self.requests.front().and_then(|request| request.items.first()).or(self.queue.front());
        front.map_or(self.next_number, |item| item.number)
    }

    /// The first failure that a caller was told of since the last call.
    pub(super) fn take_failure(&mut self) -> Option<ClientError> {
        self.first_failure.take()
    }

    pub(super) fn in_flight(&self) -> usize {
        self.sent - self.answered
    }

    /// A request failed; nothing may be sent before [`Self::settle`].
    pub(super) fn is_draining(&self) -> bool {
        self.answered > 0
    }

    /// Whether a full request could be formed from the queue.
    pub(super) fn has_full_request(&self) -> bool {
        let (mut records, mut bytes) = (0, STORED_BATCH_OVERHEAD);
        self.queue.iter().any(|item| {
            records += item.records.len();
            bytes += item.stored_bytes();
            item.expectation.is_some() || records >= self.limits.records || bytes >= self.limits.bytes
        })
    }

    /// Whether requests wait that were formed before.
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

    /// The next request to put on the stream; `None` when nothing may or can be sent now.
    pub(super) fn next(&mut self) -> Option<Next> {
        if self.is_draining() || self.sent >= self.limits.in_flight {
            return None;
        }
        // The open ones are the first ones.
        let repairing = self.requests.front().is_some_and(|request| request.open);
        if !self.has_formed_request() {
            if repairing {
                return None;
            }
            self.form()?;
        }
        let request = self.requests.get(self.sent)?;
        if repairing && !request.open {
            return None;
        }
        self.sent += 1;
        let mut records = Vec::with_capacity(usize::try_from(request.count).unwrap_or(0));
        for item in &request.items {
            records.extend(item.records.iter().cloned());
        }
        let expectation = request.items.first().and_then(|item| item.expectation.clone());
        let trace = trace::of_request(request.items.iter().filter_map(|item| item.trace.as_deref()));
        Some(Next { records, expectation, sequence: request.sequence, trace })
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
        let request = Request::of(items, self.next_sequence);
        self.next_sequence = advance(self.next_sequence, request.count);
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

    /// Sorts what the stream left behind. Called when everything in flight is answered, or when the stream broke: then
    /// what is unanswered may have been stored. Afterwards nothing is in flight. Answers the last failure that asks for a
    /// pause before the next attempt.
    pub(super) fn settle(&mut self) -> Result<Option<ClientError>, Stuck> {
        let sent = std::mem::take(&mut self.sent);
        self.answered = 0;
        let mut left = std::mem::take(&mut self.requests);
        let mut gap = false;
        for request in left.iter_mut().take(sent) {
            let certain = request.failure.as_ref().is_some_and(ClientError::not_accepted);
            if !certain && !gap {
                request.open = true;
            }
            gap |= self.idempotent && certain && !request.open;
        }
        // A refusal for its sequence is a consequence only when something before it was not stored.
        let mut after_failure = false;
        let mut wait = None;
        // Sequences of requests that were given up.
        let mut freed = 0;
        while let Some(mut request) = left.pop_front() {
            let failure = request.failure.take();
            if let Err(stuck) = request.move_up(freed) {
                self.requests.push_back(request);
                self.requests.append(&mut left);
                return Err(stuck);
            }
            match self.verdict(&request, failure.as_ref(), after_failure) {
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
                    freed = advance(freed, request.count);
                    self.report(&error);
                    request.fail(&error);
                }
                Verdict::Stuck(error) => {
                    self.requests.push_back(request);
                    self.requests.append(&mut left);
                    return Err(Stuck(error));
                }
            }
        }
        self.next_sequence = retreat(self.next_sequence, freed);
        Ok(wait)
    }

    fn verdict(&self, request: &Request, failure: Option<&ClientError>, after_failure: bool) -> Verdict {
        let Some(error) = failure else {
            // Unanswered, or not sent at all.
            return match request.open && !self.idempotent {
                true => Verdict::Fail(lost().into_unknown()),
                false => Verdict::Keep,
            };
        };
        let order = matches!(error.reason.as_str(), "OUT_OF_ORDER_SEQUENCE" | "PRODUCER_FENCED");
        if self.idempotent {
            match () {
                () if error.is_retryable() => Verdict::Keep,
                () if error.reason == "OUT_OF_ORDER_SEQUENCE" && after_failure => Verdict::Keep,
                () if order || request.open => Verdict::Stuck(error.clone()),
                () if request.items.len() > 1 => Verdict::Split,
                () => Verdict::Fail(error.clone()),
            }
        } else {
            match () {
                () if request.open => Verdict::Fail(error.clone().into_unknown()),
                () if error.is_retryable() => Verdict::Keep,
                () if request.items.len() > 1 => Verdict::Split,
                () => Verdict::Fail(error.clone()),
            }
        }
    }

    /// Gives up what has expired. Nothing may be in flight. `last`: why nothing came of it.
    pub(super) fn expire(&mut self, now: Instant, last: Option<&ClientError>) -> Result<(), Stuck> {
        debug_assert_eq!(self.sent, 0, "expire is for requests that are not in flight");
        if self.expires().is_none_or(|expires| expires > now) {
            return Ok(());
        }
        let error = match last {
            Some(last) => ClientError { message: format!("not delivered in time: {}", last.message), ..last.clone() },
            None => ClientError::new(ErrorKind::Retryable, "DEADLINE_EXCEEDED", "not delivered in time"),
        };
        let is_expired = |request: &Request| request.items.iter().any(|item| item.expires <= now);
        if self.requests.iter().any(|request| request.open && is_expired(request)) {
            return Err(Stuck(error));
        }
        // Not open, so certainly not stored: that nothing is known about the last attempt does not matter.
        let error = if error.not_accepted() { error } else { ClientError { kind: ErrorKind::Retryable, ..error } };
        self.report(&error);
        let mut freed = 0;
        let mut left = std::mem::take(&mut self.requests);
        while let Some(mut request) = left.pop_front() {
            if let Err(stuck) = request.move_up(freed) {
                self.requests.push_back(request);
                self.requests.append(&mut left);
                return Err(stuck);
            }
            let (expired, kept): (Vec<Item>, Vec<Item>) =
                request.items.into_iter().partition(|item| !request.open && item.expires <= now);
            freed = advance(freed, expired.iter().map(Item::count).sum());
            expired.into_iter().for_each(|item| item.answer(Err(error.clone())));
            if !kept.is_empty() {
                self.requests.push_back(Request { open: request.open, ..Request::of(kept, request.sequence) });
            }
        }
        while let Some(item) = self.queue.pop_front_if(|item| item.expires <= now) {
            item.answer(Err(error.clone()));
        }
        self.next_sequence = retreat(self.next_sequence, freed);
        Ok(())
    }

    /// Fails everything: what may have been stored as unknown, the rest as not accepted.
    pub(super) fn abandon(&mut self, error: &ClientError) {
        self.report(error);
        let unknown = error.clone().into_unknown();
        let refused = ClientError {
            kind: ErrorKind::Rejected,
            message: format!("not accepted, because the producer failed before: {}", error.message),
            ..error.clone()
        };
        for (place, request) in std::mem::take(&mut self.requests).into_iter().enumerate() {
            let in_flight = place < self.sent && request.failure.is_none();
            request_outcome(request, in_flight, &unknown, &refused);
        }
        for item in std::mem::take(&mut self.queue) {
            item.answer(Err(refused.clone()));
        }
        (self.sent, self.answered) = (0, 0);
    }

    fn report(&mut self, error: &ClientError) {
        self.first_failure.get_or_insert_with(|| error.clone());
    }
}

fn request_outcome(request: Request, in_flight: bool, unknown: &ClientError, refused: &ClientError) {
    let open = request.open || in_flight;
    request.fail(if open { unknown } else { refused });
}

enum Verdict {
    Keep,
    Split,
    Fail(ClientError),
    Stuck(ClientError),
}

/// Sequences wrap after 2147483647.
fn advance(sequence: i32, count: i32) -> i32 {
    sequence.wrapping_add(count) & i32::MAX
}

fn retreat(sequence: i32, count: i32) -> i32 {
    sequence.wrapping_sub(count) & i32::MAX
}

fn lost() -> ClientError {
    ClientError::new(ErrorKind::Transport { sent: true }, "CONNECTION_LOST", "the stream broke before the answer")
}
