//! `ProduceStream`: pipelined appends of one client, the throughput path.
//!
//! Invariants:
//! - Requests are submitted in the order received and answered in that order; a refused one is answered in its place.
//! - At most `limits.stream-window-max` requests and about [`STREAM_BYTES_MAX`] bytes wait for their answer; then nothing
//!   more is read, and HTTP/2's flow control stops the client.
//! - The stream is driven by the client taking answers: one that takes none is not read from either.
//!
//! No task is spawned: the stream is polled by its HTTP/2 stream. Only the oldest append is polled; the others complete
//! by themselves and are found complete when their turn comes.

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
use crate::telemetry::{Listener, Operation, traces};

/// Bytes of one stream's requests that wait for their answer; one request may pass it.
const STREAM_BYTES_MAX: usize = 8 << 20;

/// What is kept of a request until it is answered.
struct Place {
    bytes: usize,
    began: Instant,
    /// `None`: it is not sampled.
    trace: Option<Box<traces::Request>>,
}

/// A request in its place in the order of answers.
struct Waiting {
    outcome: Result<PendingProduce, ApiError>,
    place: Place,
}

struct Pipeline {
    context: Context,
    caller: Caller,
    ticket: Arc<Ticket>,
    requests: Streaming<proto::ProduceRequest>,
    /// Oldest first, the one in `oldest` left out.
    waiting: VecDeque<Waiting>,
    /// The answer to the oldest request, while `oldest_waits`.
    oldest: ReusableBoxFuture<'static, Result<Produced, ApiError>>,
    oldest_waits: Option<Place>,
    /// The span that the call belongs to, for requests that name none.
    parent: Option<SpanContext>,
    /// Bytes of all requests that wait.
    bytes: usize,
    /// Why no more requests are read, once it is so; `Ok` when the client is done.
    ended: Option<Result<(), Status>>,
}

/// The answers to the `requests` of a caller. `ticket` holds the bytes of the requests' messages; they are given back answer by answer.
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
                && let Some(Waiting { outcome, place }) = self.waiting.pop_front()
            {
                match outcome {
                    Err(error) => return Some(Ok(self.answer(Err(error), place))),
                    Ok(pending) => {
                        self.oldest.set(pending.wait());
                        self.oldest_waits = Some(place);
                    }
                }
            }
            let reads = self.ended.is_none() && self.has_room();
            match self.oldest_waits {
                None if self.ended.is_some() => return self.end(),
                None => self.read().await,
                Some(_) => {
                    // Both branches can be dropped: a request not complete stays in `requests`, an answer not there yet
                    // stays in `oldest`.
                    tokio::select! {
                        biased;
                        result = self.oldest.get_pin() => {
                            let place = self.oldest_waits.take()?;
                            return Some(Ok(self.answer(result, place)));
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
        // With nothing waiting a stream always goes on, however busy the node.
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
                    // Boxed: rare, and it would be a second copy of the future above.
                    Some(trace) => Box::pin(trace.instrument(broker.submit(request))).await,
                }
            }
            Err(error) => Err(error),
        };
        self.bytes += bytes;
        self.waiting.push_back(Waiting { outcome, place: Place { bytes, began, trace } });
    }

    fn answer(&mut self, result: Result<Produced, ApiError>, place: Place) -> proto::ProduceStreamResponse {
        let Place { bytes, began, trace } = place;
        self.bytes -= bytes;
        self.ticket.release(bytes);
        let error = result.as_ref().err();
        match &trace {
            None => self.count(error, began.elapsed()),
            Some(trace) => {
                // So that the figure can name the trace.
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
        self.context.metrics.request(Listener::Grpc, Operation::ProduceStream, reason, took);
    }

    /// The end of the stream: nothing, or the status that it ends with.
    fn end(&mut self) -> Option<Result<proto::ProduceStreamResponse, Status>> {
        let ended = self.ended.replace(Ok(()))?;
        ended.err().map(Err)
    }
}

/// The next request. Ends with UNAVAILABLE when the node stops. Cancellation safe.
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
