//! Wraps the body of a response: counts its bytes, cuts it into chunks, and detects clients that do not read, so that
//! they do not pin memory for ever.
//!
//! Invariants:
//! - hyper polls for the next chunk only when the client has room for the previous one. A chunk that no further poll
//!   follows therefore means a client that does not read. Chunks are at most [`CHUNK_BYTES`], which limits the bytes in
//!   HTTP/2's own buffers, where this file cannot see them.
//! - A stalled response is evicted first: its stream ends with OVERLOADED as soon as the client reads again. When the
//!   client does not read this end either within the same limit, the connection is closed and all its memory is freed.
//!
//! [`Stalls`] also detects a connection that has been idle (without requests) for too long.
//!
//! [`Stalls`] belongs to the connection task, which calls [`Stalls::check`] on a timer.

use std::error::Error;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use hyper::body::{Body, Frame, SizeHint};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::grpc::status;
use crate::model::{ApiError, Reason};
use crate::security::budget::Hold;
use crate::telemetry::{Listener, Metrics};

/// Largest chunk that is passed to hyper at once, in bytes.
pub(crate) const CHUNK_BYTES: usize = 64 << 10;

const MOVING: u64 = 0;
const GIVEN_UP: u64 = 1 << 63;

/// When the outstanding chunk was passed to hyper, in milliseconds since the connection began, plus one. [`MOVING`]
/// while no chunk is outstanding. With the [`GIVEN_UP`] bit: when the response was evicted.
#[derive(Debug, Default)]
struct Stall(AtomicU64);

/// The responses in progress on one connection.
#[derive(Debug)]
pub(crate) struct Stalls {
    began: Instant,
    limit: Duration,
    /// How long the connection may be idle; `None`: without limit.
    idle: Option<Duration>,
    /// Number of requests in progress.
    requests: AtomicUsize,
    /// When the last request ended, in milliseconds since the connection began.
    quiet_since: AtomicU64,
    answers: Mutex<Vec<Weak<Stall>>>,
}

/// One request in progress, until its response is sent or evicted.
#[derive(Debug)]
pub(crate) struct Busy(Arc<Stalls>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.quiet_since.store(self.0.now_ms(), Ordering::Relaxed);
        self.0.requests.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What the connection task has to do.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Continue.
    Fine,
    /// The connection was idle for too long: drain it.
    Idle,
    /// The client does not read the end of an evicted response either: close the connection.
    Close,
}

impl Stalls {
    /// `limit`: longest time that a response may stall. `idle`: longest time without a request; `None`: no limit.
    pub(crate) fn new(limit: Duration, idle: Option<Duration>) -> Arc<Self> {
        let (requests, quiet_since, answers) = Default::default();
        Arc::new(Self { began: Instant::now(), limit, idle, requests, quiet_since, answers })
    }

    /// Counts a request as in progress until the returned value is dropped.
    pub(crate) fn busy(self: &Arc<Self>) -> Busy {
        self.requests.fetch_add(1, Ordering::Relaxed);
        Busy(self.clone())
    }

    /// Returns the interval at which to call [`Stalls::check`].
    pub(crate) fn interval(&self) -> Duration {
        (self.limit.min(self.idle.unwrap_or(self.limit)) / 8).clamp(Duration::from_millis(10), Duration::from_secs(10))
    }

    fn now_ms(&self) -> u64 {
        self.began.elapsed().as_millis() as u64 + 1
    }

    fn register(&self) -> Arc<Stall> {
        let stall = Arc::new(Stall::default());
        let mut answers = self.answers.lock();
        if answers.len() == answers.capacity() {
            answers.retain(|answer| answer.strong_count() > 0);
        }
        answers.push(Arc::downgrade(&stall));
        stall
    }

    /// Evicts responses that have stalled for the limit, and returns what the connection task has to do.
    pub(crate) fn check(&self, metrics: &Metrics) -> Verdict {
        self.check_at(self.now_ms(), metrics)
    }

    fn check_at(&self, now: u64, metrics: &Metrics) -> Verdict {
        let limit = self.limit.as_millis() as u64;
        let mut verdict = Verdict::Fine;
        self.answers.lock().retain(|answer| {
            let Some(stall) = answer.upgrade() else { return false };
            let state = stall.0.load(Ordering::Relaxed);
            let since = state & !GIVEN_UP;
            if since == MOVING {
                return true;
            }
            let stalled = now.saturating_sub(since);
            if state & GIVEN_UP == 0 {
                // When the exchange fails, a concurrent poll has changed the state: the client has read after all.
                if stalled >= limit
                    && stall.0.compare_exchange(state, now | GIVEN_UP, Ordering::Relaxed, Ordering::Relaxed).is_ok()
                {
                    metrics.slow_reader();
                }
            } else if stalled >= limit {
                verdict = Verdict::Close;
            }
            true
        });
        let quiet = Duration::from_millis(now.saturating_sub(self.quiet_since.load(Ordering::Relaxed)));
        if verdict == Verdict::Fine
            && self.requests.load(Ordering::Relaxed) == 0
            && self.idle.is_some_and(|idle| quiet >= idle)
        {
            verdict = Verdict::Idle;
        }
        verdict
    }
}

/// A response body that detects a client that does not read.
pub(crate) struct Outflow<B> {
    body: Option<B>,
    rest: Bytes,
    grpc: bool,
    stall: Arc<Stall>,
    busy: Busy,
    metrics: Metrics,
    hold: Option<Arc<Hold>>,
}

impl<B> Outflow<B> {
    pub(crate) fn new(body: B, grpc: bool, busy: Busy, metrics: Metrics, hold: Option<Arc<Hold>>) -> Self {
        Self { body: Some(body), rest: Bytes::new(), grpc, stall: busy.0.register(), busy, metrics, hold }
    }

    fn chunk(&mut self, mut data: Bytes) -> Frame<Bytes> {
        self.rest = if data.len() > CHUNK_BYTES { data.split_off(CHUNK_BYTES) } else { Bytes::new() };
        let listener = if self.grpc { Listener::Grpc } else { Listener::Http };
        self.metrics.sent(listener, data.len());
        self.stall.0.store(self.busy.0.now_ms(), Ordering::Relaxed);
        Frame::data(data)
    }
}

/// Returns the error for a client that did not read for too long.
pub(crate) fn slow_reader(limit: Duration) -> ApiError {
    let ms = limit.as_millis();
    ApiError::new(
        Reason::Overloaded,
        format!("response: the client read nothing for {ms} ms (limits.slow-reader-ms): the rest is dropped"),
    )
    .with("slow_reader_ms", ms)
}

impl<B> Body for Outflow<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    type Data = Bytes;
    type Error = Box<dyn Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let this = &mut *self;
        let Some(body) = &mut this.body else { return Poll::Ready(None) };
        if this.stall.0.swap(MOVING, Ordering::Relaxed) & GIVEN_UP != 0 {
            this.body = None;
            this.rest = Bytes::new();
            this.hold = None;
            let error = slow_reader(this.busy.0.limit);
            return Poll::Ready(Some(if this.grpc {
                let mut trailers = HeaderMap::new();
                status::status(&error).add_header(&mut trailers).map_err(Box::new)?;
                Ok(Frame::trailers(trailers))
            } else {
                Err(Box::new(error))
            }));
        }
        if !this.rest.is_empty() {
            let rest = std::mem::take(&mut this.rest);
            return Poll::Ready(Some(Ok(this.chunk(rest))));
        }
        match std::task::ready!(Pin::new(body).poll_frame(cx)) {
            None => Poll::Ready(None),
            Some(Err(error)) => Poll::Ready(Some(Err(error.into()))),
            Some(Ok(frame)) => Poll::Ready(Some(Ok(match frame.into_data() {
                Ok(data) => this.chunk(data),
                Err(frame) => frame,
            }))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.body {
            None => true,
            Some(body) => self.rest.is_empty() && body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.body {
            None => SizeHint::with_exact(0),
            Some(body) => {
                let (inner, rest) = (body.size_hint(), self.rest.len() as u64);
                let mut hint = SizeHint::new();
                if let Some(upper) = inner.upper() {
                    hint.set_upper(upper.saturating_add(rest));
                }
                hint.set_lower(inner.lower().saturating_add(rest));
                hint
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt, Full};

    use super::*;

    fn outflow(bytes: usize, grpc: bool, stalls: &Arc<Stalls>, metrics: &Metrics) -> Outflow<Full<Bytes>> {
        Outflow::new(Full::new(vec![7; bytes].into()), grpc, stalls.busy(), metrics.clone(), None)
    }

    #[tokio::test]
    async fn large_answers_leave_in_chunks_and_whole() {
        let (metrics, stalls) = (Metrics::new(), Stalls::new(Duration::from_secs(10), None));
        let mut body = outflow(3 * CHUNK_BYTES + 5, false, &stalls, &metrics);
        assert_eq!(body.size_hint().exact(), Some(3 * CHUNK_BYTES as u64 + 5));
        let mut sizes = Vec::new();
        while let Some(frame) = body.frame().await {
            sizes.push(frame.unwrap().into_data().unwrap().len());
            assert_eq!(body.size_hint().exact(), Some((3 * CHUNK_BYTES + 5 - sizes.iter().sum::<usize>()) as u64));
        }
        assert_eq!(sizes, [CHUNK_BYTES, CHUNK_BYTES, CHUNK_BYTES, 5]);
    }

    #[tokio::test]
    async fn a_response_that_is_not_read_is_evicted_with_overloaded_and_then_closes_the_connection() {
        let (metrics, stalls) = (Metrics::new(), Stalls::new(Duration::from_secs(10), None));
        let mut taken = outflow(2 * CHUNK_BYTES, true, &stalls, &metrics);
        let mut stuck = outflow(2 * CHUNK_BYTES, true, &stalls, &metrics);
        taken.frame().await.unwrap().unwrap();
        stuck.frame().await.unwrap().unwrap();
        let later = stalls.now_ms() + 10_000;
        assert_eq!(stalls.check_at(later, &metrics), Verdict::Fine);
        assert!(metrics.encode().contains("chronicle_slow_readers_total 2"));
        let trailers = taken.frame().await.unwrap().unwrap().into_trailers().unwrap();
        assert_eq!(trailers["grpc-status"], "8");
        assert!(taken.frame().await.is_none());
        assert_eq!(stalls.check_at(later + 9_999, &metrics), Verdict::Fine);
        assert_eq!(stalls.check_at(later + 10_000, &metrics), Verdict::Close);
        drop(stuck);
        assert_eq!(stalls.check_at(later + 10_000, &metrics), Verdict::Fine);
    }

    #[tokio::test]
    async fn a_client_that_keeps_taking_is_left_alone_and_so_is_one_that_waits_for_records() {
        let (metrics, stalls) = (Metrics::new(), Stalls::new(Duration::from_secs(10), None));
        let mut body = outflow(4 * CHUNK_BYTES, true, &stalls, &metrics);
        for _ in 0..4 {
            body.frame().await.unwrap().unwrap();
            assert_eq!(stalls.check_at(stalls.now_ms() + 5_000, &metrics), Verdict::Fine);
        }
        let (_sender, waiting) = tokio::sync::mpsc::channel::<Result<Frame<Bytes>, std::io::Error>>(1);
        let stream = http_body_util::StreamBody::new(tokio_stream::wrappers::ReceiverStream::new(waiting));
        let mut waiting = Outflow::new(stream, true, stalls.busy(), metrics.clone(), None);
        assert!(futures::poll!(std::pin::pin!(waiting.frame())).is_pending());
        drop(body);
        assert_eq!(stalls.check_at(stalls.now_ms() + 50_000, &metrics), Verdict::Fine);
        assert!(metrics.encode().contains("chronicle_slow_readers_total 0"));
    }
    #[tokio::test]
    async fn a_connection_is_idle_only_when_no_request_is_under_way() {
        let metrics = Metrics::new();
        let stalls = Stalls::new(Duration::from_secs(10), Some(Duration::from_secs(60)));
        assert_eq!(stalls.check_at(59_000, &metrics), Verdict::Fine);
        assert_eq!(stalls.check_at(60_000, &metrics), Verdict::Idle);
        let body = outflow(1, true, &stalls, &metrics);
        assert_eq!(stalls.check_at(600_000, &metrics), Verdict::Fine);
        drop(body);
        assert_eq!(stalls.check_at(stalls.now_ms() + 59_000, &metrics), Verdict::Fine);
        assert_eq!(stalls.check_at(stalls.now_ms() + 60_000, &metrics), Verdict::Idle);
    }
}
