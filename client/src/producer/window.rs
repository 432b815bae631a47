//! The window: the requests in flight, and what happens to each when a response is an error or does not come.
//!
//! Requests form a queue in sequence order. The first `sent` of them were sent on the current stream, in order, and are
//! answered in order. A request that succeeded leaves the queue. After the first failure nothing more is sent until the
//! stream has answered everything in flight (or broke); then [`Window::settle`] decides about the rest.
//!
//! What makes repetition and renumbering safe for an idempotent producer:
//! - The node accepts a sequence only directly after the one before. So after a request that was certainly not accepted
//!   (and whose outcome was never unknown before), the node accepted nothing later in that stream either.
//! - `outcome_unknown` marks a request that may have been stored by an attempt without an answer. It keeps its sequence for
//!   ever. A refusal of it proves nothing about the earlier attempt, so it fails the producer.
//! - While such a request is in the queue, only such requests are sent. A node remembers a limited number of requests per
//!   producer, and a repeated request must still be among them.
//! - When a request is failed, the sequences of those behind it are lowered to close the gap. Only requests whose outcome is
//!   known may be renumbered. Requests that succeeded keep their sequences, and a gap that they leave is not closed.
//!
//! Pure state without I/O. Names neither the task nor the connection.

use std::collections::VecDeque;

use chronicle_proto::v1;
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::time::Instant;

use crate::error::{ClientError, ErrorKind};
use crate::trace::{self, SendSpan};

/// Most bytes that a stored record takes besides key, value and headers: attributes and six varints.
const STORED_RECORD_OVERHEAD: usize = 36;
/// The same for one header.
const STORED_HEADER_OVERHEAD: usize = 10;
/// Header of a stored batch, in bytes.
const STORED_BATCH_OVERHEAD: usize = 61;

/// The records of one call, stored as a whole or not at all.
#[derive(Debug)]
pub(super) struct Item {
    pub(super) records: Vec<v1::Record>,
    pub(super) payload_bytes: usize,
    pub(super) expectation: Option<v1::Expectation>,
    /// When the delivery timeout ends.
    pub(super) expires: Instant,
    pub(super) reply: oneshot::Sender<Result<i64, ClientError>>,
    /// Its span; `None` when no span was active in the caller.
    pub(super) span: Option<Box<SendSpan>>,
    /// Its share of the buffer, released when it is answered.
    pub(super) _permit: Option<OwnedSemaphorePermit>,
    /// Position among all items of this producer.
    pub(super) number: u64,
}

impl Item {
    /// Most bytes that it takes in a stored batch.
    fn stored_bytes(&self) -> usize {
        let headers: usize = self.records.iter().map(|record| record.headers.len()).sum();
        self.payload_bytes + self.records.len() * STORED_RECORD_OVERHEAD + headers * STORED_HEADER_OVERHEAD
    }

    fn count(&self) -> i32 {
        i32::try_from(self.records.len()).unwrap_or(i32::MAX)
    }

    fn answer(self, result: Result<i64, ClientError>) {
        if let Some(span) = &self.span {
            span.answered(result.as_ref().err());
        }
        // The caller may have dropped its delivery.
        let _ = self.reply.send(result);
    }
}

/// Items that are sent as one request.
#[derive(Debug)]
struct Request {
    items: Vec<Item>,
    count: i32,
    sequence: i32,
    /// An attempt without an answer may have stored it.
    outcome_unknown: bool,
    failure: Option<ClientError>,
}

impl Request {
    fn of(items: Vec<Item>, sequence: i32) -> Self {
        let count = items.iter().map(Item::count).sum();
        Self { items, count, sequence, outcome_unknown: false, failure: None }
    }

    /// Lowers the sequence by the number of sequences that failed requests before it have freed.
    fn renumber(&mut self, freed: i32) -> Result<(), ProducerFailed> {
        if freed > 0 && self.outcome_unknown {
            let message =
                format!("the request with sequence {} may be stored, so it cannot be renumbered", self.sequence);
            return Err(ProducerFailed(ClientError::new(ErrorKind::OutcomeUnknown, "OUTCOME_UNKNOWN", message)));
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

/// A request to send.
#[derive(Debug)]
pub(super) struct NextRequest {
    pub(super) records: Vec<v1::Record>,
    pub(super) expectation: Option<v1::Expectation>,
    /// Sequence of the first record.
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
    next_sequence: i32,
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
        // Requests with an unknown outcome come first.
        let repairing = self.requests.front().is_some_and(|request| request.outcome_unknown);
        if !self.has_formed_request() {
            if repairing {
                return None;
            }
            self.form()?;
        }
        let request = self.requests.get(self.sent)?;
        if repairing && !request.outcome_unknown {
            return None;
        }
        self.sent += 1;
        let mut records = Vec::with_capacity(usize::try_from(request.count).unwrap_or(0));
        for item in &request.items {
            records.extend(item.records.iter().cloned());
        }
        let expectation = request.items.first().and_then(|item| item.expectation.clone());
        let trace = trace::of_request(request.items.iter().filter_map(|item| item.span.as_deref()));
        Some(NextRequest { records, expectation, sequence: request.sequence, trace })
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

    /// Decides about the requests that are left when everything in flight is answered, or when the stream broke; in the latter
    /// case requests without an answer may have been stored. Afterwards nothing is in flight. Returns the last retryable
    /// failure: there must be a pause before the next attempt.
    pub(super) fn settle(&mut self) -> Result<Option<ClientError>, ProducerFailed> {
        let sent = std::mem::take(&mut self.sent);
        self.answered = 0;
        let mut left = std::mem::take(&mut self.requests);
        let mut gap = false;
        for request in left.iter_mut().take(sent) {
            let certain = request.failure.as_ref().is_some_and(ClientError::not_accepted);
            if !certain && !gap {
                request.outcome_unknown = true;
            }
            gap |= self.idempotent && certain && !request.outcome_unknown;
        }
        // OUT_OF_ORDER_SEQUENCE follows from an earlier failure only if there is one.
        let mut after_failure = false;
        let mut wait = None;
        // Number of sequences of failed requests.
        let mut freed = 0;
        while let Some(mut request) = left.pop_front() {
            let failure = request.failure.take();
            if let Err(failed) = request.renumber(freed) {
                self.requests.push_back(request);
                self.requests.append(&mut left);
                return Err(failed);
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
                Verdict::FailProducer(error) => {
                    self.requests.push_back(request);
                    self.requests.append(&mut left);
                    return Err(ProducerFailed(error));
                }
            }
        }
        self.next_sequence = retreat(self.next_sequence, freed);
        Ok(wait)
    }

    fn verdict(&self, request: &Request, failure: Option<&ClientError>, after_failure: bool) -> Verdict {
        let Some(error) = failure else {
            // Not answered, or not sent at all.
            return match request.outcome_unknown && !self.idempotent {
                true => Verdict::Fail(stream_broke().into_unknown()),
                false => Verdict::Keep,
            };
        };
        let order = matches!(error.reason.as_str(), "OUT_OF_ORDER_SEQUENCE" | "PRODUCER_FENCED");
        if self.idempotent {
            match () {
                () if error.is_retryable() => Verdict::Keep,
                () if error.reason == "OUT_OF_ORDER_SEQUENCE" && after_failure => Verdict::Keep,
                () if order || request.outcome_unknown => Verdict::FailProducer(error.clone()),
                () if request.items.len() > 1 => Verdict::Split,
                () => Verdict::Fail(error.clone()),
            }
        } else {
            match () {
                () if request.outcome_unknown => Verdict::Fail(error.clone().into_unknown()),
                () if error.is_retryable() => Verdict::Keep,
                () if request.items.len() > 1 => Verdict::Split,
                () => Verdict::Fail(error.clone()),
            }
        }
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
        let mut freed = 0;
        let mut left = std::mem::take(&mut self.requests);
        while let Some(mut request) = left.pop_front() {
            if let Err(failed) = request.renumber(freed) {
                self.requests.push_back(request);
                self.requests.append(&mut left);
                return Err(failed);
            }
            let (expired, kept): (Vec<Item>, Vec<Item>) =
                request.items.into_iter().partition(|item| !request.outcome_unknown && item.expires <= now);
            freed = advance(freed, expired.iter().map(Item::count).sum());
            expired.into_iter().for_each(|item| item.answer(Err(error.clone())));
            if !kept.is_empty() {
                self.requests.push_back(Request {
                    outcome_unknown: request.outcome_unknown,
                    ..Request::of(kept, request.sequence)
                });
            }
        }
        while let Some(item) = self.queue.pop_front_if(|item| item.expires <= now) {
            item.answer(Err(error.clone()));
        }
        self.next_sequence = retreat(self.next_sequence, freed);
        Ok(())
    }

    /// Fails every item: as `OUTCOME_UNKNOWN` if it may have been stored, otherwise as not accepted.
    pub(super) fn abandon(&mut self, error: &ClientError) {
        self.report(error);
        let unknown = error.clone().into_unknown();
        let refused = ClientError {
            kind: ErrorKind::Rejected,
            message: format!("not accepted, because the producer has failed: {}", error.message),
            ..error.clone()
        };
        for (place, request) in std::mem::take(&mut self.requests).into_iter().enumerate() {
            let in_flight = place < self.sent && request.failure.is_none();
            let may_be_stored = request.outcome_unknown || in_flight;
            request.fail(if may_be_stored { &unknown } else { &refused });
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

/// Sequences wrap around after 2147483647.
fn advance(sequence: i32, count: i32) -> i32 {
    sequence.wrapping_add(count) & i32::MAX
}

fn retreat(sequence: i32, count: i32) -> i32 {
    sequence.wrapping_sub(count) & i32::MAX
}

fn stream_broke() -> ClientError {
    ClientError::new(
        ErrorKind::Transport { sent: true },
        "CONNECTION_LOST",
        "the stream broke before the node answered",
    )
}
