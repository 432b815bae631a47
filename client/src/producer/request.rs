//! Items that a caller accepted together, and the requests that carry them.
//!
//! Plain data. Used by `window.rs`, which decides what happens to each.

use chronicle_proto::v1;
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::time::Instant;

use crate::error::ClientError;
use crate::trace::SendSpan;

/// Most bytes that a stored record takes besides key, value and headers: attributes and six varints.
const STORED_RECORD_OVERHEAD: usize = 36;
/// The same for one header.
const STORED_HEADER_OVERHEAD: usize = 10;
/// Header of a stored batch, in bytes.
pub(super) const STORED_BATCH_OVERHEAD: usize = 61;

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
    pub(super) fn stored_bytes(&self) -> usize {
        let headers: usize = self.records.iter().map(|record| record.headers.len()).sum();
        self.payload_bytes + self.records.len() * STORED_RECORD_OVERHEAD + headers * STORED_HEADER_OVERHEAD
    }

    pub(super) fn count(&self) -> i32 {
        i32::try_from(self.records.len()).unwrap_or(i32::MAX)
    }

    pub(super) fn answer(self, result: Result<i64, ClientError>) {
        if let Some(span) = &self.span {
            span.answered(result.as_ref().err());
        }
        // The caller may have dropped its delivery.
        let _ = self.reply.send(result);
    }
}

/// Items that are sent as one request.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) items: Vec<Item>,
    pub(super) count: i32,
    /// Sequence of the first record.
    pub(super) sequence: i32,
    /// An attempt without an answer may have stored it, under this epoch and sequence.
    pub(super) outcome_unknown: bool,
    /// A request behind it was acknowledged while this one was not.
    pub(super) overtaken: bool,
    /// The answer to the last attempt.
    pub(super) failure: Option<ClientError>,
}

impl Request {
    pub(super) fn of(items: Vec<Item>, sequence: i32) -> Self {
        let count = items.iter().map(Item::count).sum();
        Self { items, count, sequence, outcome_unknown: false, overtaken: false, failure: None }
    }

    pub(super) fn fail(self, error: &ClientError) {
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
    /// `None`: the producer is not idempotent.
    pub(super) producer: Option<v1::ProducerIdentity>,
    pub(super) trace: Option<v1::TraceContext>,
}
