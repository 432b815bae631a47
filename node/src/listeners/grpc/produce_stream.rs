//! `ProduceStream`: pipelined appends of one client, the throughput path.
//!
//! Invariants:
//! - Requests are submitted in the order received, and their responses have the same order, those of rejected requests
//!   included.
//! - At most `limits.stream-window-max` requests and about [`STREAM_BYTES_MAX`] bytes wait for their response. At this
//!   limit the stream reads no further request, and HTTP/2's flow control stops the client.
//! - Only a client that reads responses drives the stream: when it does not read, the node reads none of its requests.
//!
//! No task is spawned: the HTTP/2 stream polls this stream. Only the oldest append is polled. The others complete
//! without being polled, and their results are read in order.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use chronicle_proto::v1 as proto;
use chronicle_proto::v1::produce_stream_response::Result as Answer;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use opentelemetry::trace::SpanContext;
use prost::Message;
use tokio::time::Instant;
use tokio_util::sync::ReusableBoxFuture;
use tonic::{Status, Streaming};

use super::{convert, malformed, status};
use crate::broker::PendingProduce;
use crate::listeners::context::{Context, stopping};
use crate::model::{ApiError, Produced};
use crate::security::Caller;
use crate::security::budget::Ticket;
use crate::telemetry::{ApiOperation, Listener, traces};

/// Limit of the bytes of one stream's requests that wait for their response. One request may exceed it.
const STREAM_BYTES_MAX: usize = 8 << 20;

/// The data of a request that is stored until its response.
struct RequestInfo {
    bytes: usize,
    began: Instant,
    /// `None`: the request is not sampled.
    trace: Option<Box<traces::Request>>,
}

/// A request in the order of responses.
struct WaitingRequest {
    outcome: Result<PendingProduce, ApiError>,
    info: RequestInfo,
}

struct Pipeline {
    context: Context,
    caller: Caller,
    ticket: Arc<Ticket>,
    requests: Streaming<proto::ProduceRequest>,
    /// Oldest first, without the request in `oldest`.
    waiting: VecDeque<WaitingRequest>,
    /// The response to the oldest request, while `oldest_waits` is `Some`.
    oldest: ReusableBoxFuture<'static, Result<Produced, ApiError>>,
    oldest_waits: Option<RequestInfo>,
    /// The span of the call, for requests without a trace context.
    parent: Option<SpanContext>,
    /// Bytes of all waiting requests.
    bytes: usize,
    /// Set when no more requests are read: `Ok` when the client has ended its requests, otherwise the reason.
    ended: Option<Result<(), Status>>,
}

/// Returns the responses to the `requests` of a caller. `ticket` holds the bytes of the requests' messages in the
/// budget. Each response releases the bytes of its request.
pub(super) fn answers(
    context: Context,
    caller: Caller,
    ticket: Arc<Ticket>,
    requests: Streaming<proto::ProduceRequest>,
    parent: Option<SpanContext>,
) -> BoxStream<'static, Result<proto::ProduceStreamResponse, Status>> {
    let pipeline = Pipeline {
        context,
        caller,
        ticket,
        requests,
        waiting: VecDeque::new(),
        oldest: ReusableBoxFuture::new(std::future::pending()),
        oldest_waits: None,
        parent,
        bytes: 0,
        ended: None,
    };
    stream::unfold(pipeline, |mut pipeline| async move {
        let answer = pipeline.next().await?;
        Some((answer, pipeline))
    })
    .boxed()
}

impl Pipeline {
    async fn next(&mut self) -> Option<Result<proto::ProduceStreamResponse, Status>> {
        loop {
            if self.oldest_waits.is_none()
                && let Some(WaitingRequest { outcome, info }) = self.waiting.pop_front()
            {
                match outcome {
                    Err(error) => return Some(Ok(self.answer(Err(error), info))),
                    Ok(pending) => {
                        self.oldest.set(pending.wait());
                        self.oldest_waits = Some(info);
                    }
                }
            }
            let reads = self.ended.is_none() && self.has_room();
            match self.oldest_waits {
                None if self.ended.is_some() => return self.end(),
                None => self.read().await,
                Some(_) => {
                    // Both branches are safe to drop: an incomplete request stays in `requests`, a pending response
                    // stays in `oldest`.
                    tokio::select! {
                        biased;
                        result = self.oldest.get_pin() => {
                            let info = self.oldest_waits.take()?;
                            return Some(Ok(self.answer(result, info)));
                        }
                        request = receive(&mut self.requests, &self.context), if reads => self.accept(request).await,
                    }
                }
            }
        }
    }

    fn has_room(&self) -> bool {
        let window = self.context.config().limits.stream_window_max.max(1);
        let waits = self.waiting.len() + usize::from(self.oldest_waits.is_some());
        // A stream without waiting requests always reads the next one, even when the node is overloaded.
        waits == 0 || (waits < window && self.bytes < STREAM_BYTES_MAX && self.caller.share.has_room())
    }

    async fn read(&mut self) {
        let request = receive(&mut self.requests, &self.context).await;
        self.accept(request).await;
    }

    async fn accept(&mut self, request: Result<Option<proto::ProduceRequest>, Status>) {
        let request = match request {
            Ok(Some(request)) => request,
            Ok(None) => {
                self.ended = Some(Ok(()));
                return;
            }
            Err(status) => {
                self.ended = Some(Err(status));
                return;
            }
        };
        let began = Instant::now();
        let bytes = request.encoded_len() + 5;
        let trace = traces::Request::begin_streamed(request.trace.as_ref(), self.parent.as_ref());
        let outcome = match convert::produce(request) {
            Ok(request) => {
                let broker = self.context.broker.for_caller(&self.caller);
                match &trace {
                    None => broker.submit(request).await,
                    // Boxed, because it is rare and would otherwise add a second copy of the future above.
                    Some(trace) => Box::pin(trace.instrument(broker.submit(request))).await,
                }
            }
            Err(error) => Err(error),
        };
        self.bytes += bytes;
        self.waiting.push_back(WaitingRequest { outcome, info: RequestInfo { bytes, began, trace } });
    }

    fn answer(&mut self, result: Result<Produced, ApiError>, info: RequestInfo) -> proto::ProduceStreamResponse {
        let RequestInfo { bytes, began, trace } = info;
        self.bytes -= bytes;
        self.ticket.release(bytes);
        let error = result.as_ref().err();
        match &trace {
            None => self.count(error, began.elapsed()),
            Some(trace) => {
                // In the span of the request, so that the metric can reference the trace.
                trace.in_scope(|| self.count(error, began.elapsed()));
                error.into_iter().for_each(|error| trace.failed(error));
            }
        }
        let result = match result {
            Ok(produced) => {
                self.context.metrics.appended(Listener::Grpc, produced.record_count.max(0) as usize);
                Answer::Ok(convert::produced(produced))
            }
            Err(error) => Answer::Error(status::stream_error(&error)),
        };
        proto::ProduceStreamResponse { result: Some(result) }
    }

    fn count(&self, error: Option<&ApiError>, took: Duration) {
        let reason = error.map(|error| error.reason);
        self.context.metrics.request(Listener::Grpc, ApiOperation::ProduceStream, reason, took);
    }

    /// Returns the last item of the stream: `None` after the end of the requests, or the status that ends the stream.
    fn end(&mut self) -> Option<Result<proto::ProduceStreamResponse, Status>> {
        let ended = self.ended.replace(Ok(()))?;
        ended.err().map(Err)
    }
}

/// Returns the next request; `None` at the end of the requests. Cancellation safe.
///
/// # Errors
/// UNAVAILABLE when the node stops, and the errors of the stream.
async fn receive(
    requests: &mut Streaming<proto::ProduceRequest>,
    context: &Context,
) -> Result<Option<proto::ProduceRequest>, Status> {
    tokio::select! {
        biased;
        () = context.stopping.cancelled() => Err(status::status(&stopping())),
        request = requests.message() => request.map_err(|status| match malformed(&status) {
            Some(error) => status::status(&error),
            None => status,
        }),
    }
}
