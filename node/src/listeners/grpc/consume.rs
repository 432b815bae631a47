//! Reads: single responses, and streams that follow the log.
//!
//! A stream holds at most one response: the next fetch starts when the client has room for more. The wrapper of the
//! response body (`listeners/outflow.rs`) ends streams of clients that do not read, so no task runs per stream.

use std::time::Duration;

use chronicle_proto::v1 as proto;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use tonic::Status;

use super::convert::{self, Shape};
use super::observe::observe;
use crate::broker::Route;
use crate::listeners::context::Context;
use crate::listeners::decode;
use crate::model::{ApiError, Fetch, Fetched, Position};
use crate::security::Caller;
use crate::security::budget::Hold;
use crate::telemetry::{ApiOperation, Listener};

/// Returns one response, without the records at or after offset `until`.
pub(super) fn response(
    context: &Context,
    fetched: Fetched,
    shape: Shape,
    until: Option<i64>,
) -> Result<proto::ConsumeResponse, ApiError> {
    let mut response = proto::ConsumeResponse {
        next_offset: fetched.next_offset,
        high_watermark: fetched.high_watermark,
        log_start_offset: fetched.log_start_offset,
        ..Default::default()
    };
    if shape.raw_batches {
        context.metrics.read(Listener::Grpc, fetched.next_offset.saturating_sub(fetched.start_offset).max(0) as usize);
        response.batches = fetched.batches;
    } else {
        let (mut records, next_offset) = decode::records(&fetched, shape.max_records, shape.max_bytes)?;
        response.next_offset = next_offset;
        if let Some(until) = until {
            records.retain(|record| record.offset < until);
            response.next_offset = next_offset.min(until);
        }
        context.metrics.read(Listener::Grpc, records.len());
        response.records = records.into_iter().map(convert::stored).collect();
    }
    Ok(response)
}

struct Follow {
    context: Context,
    caller: Caller,
    fetch: Fetch,
    shape: Shape,
    until: Option<i64>,
    /// Holds the bytes of the previous response in the budget, until the client has room for the next one.
    hold: Option<Hold>,
    done: bool,
}

/// Returns responses from the fetch's position on, until offset `until` (exclusive), an error, or the stop of the node.
pub(super) fn follow(
    context: Context,
    caller: Caller,
    fetch: Fetch,
    shape: Shape,
    until: Option<i64>,
) -> BoxStream<'static, Result<proto::ConsumeResponse, Status>> {
    let follow = Follow { context, caller, fetch, shape, until, hold: None, done: false };
    stream::unfold(follow, |mut follow| async move {
        if follow.done {
            return None;
        }
        let context = follow.context.clone();
        match observe(&context, ApiOperation::ConsumeStream, follow.next()).await {
            Ok(Some(response)) => Some((Ok(response), follow)),
            Ok(None) => None,
            Err(status) => {
                follow.done = true;
                Some((Err(status), follow))
            }
        }
    })
    .boxed()
}

impl Follow {
    /// Returns the next response that has records; `None` at the end.
    async fn next(&mut self) -> Result<Option<proto::ConsumeResponse>, ApiError> {
        self.fetch.max_wait = Duration::from_millis(self.context.config().limits.wait_ms_max.max(1));
        loop {
            if let (Some(until), Position::Offset(offset)) = (self.until, self.fetch.from)
                && offset >= until
            {
                return Ok(None);
            }
            // This poll means that the client has room: the previous response has been passed on.
            self.hold = None;
            let (fetched, hold) = self.context.fetch(&self.caller, self.fetch.clone(), Route::Local).await?;
            if let Some(until) = self.until
                && fetched.start_offset >= until
            {
                return Ok(None);
            }
            let response = response(&self.context, fetched, self.shape, self.until)?;
            self.fetch.from = Position::Offset(response.next_offset);
            if !response.records.is_empty() || !response.batches.is_empty() {
                self.hold = Some(hold);
                return Ok(Some(response));
            }
        }
    }
}
