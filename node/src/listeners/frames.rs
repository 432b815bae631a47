//! Reads length-prefixed frames from a raw stream: counts their bytes, charges them to the byte budgets before it
//! buffers them, and enforces the lowest rate (`pace.rs`). The counterpart of `intake.rs` for protocols without HTTP.
//!
//! A frame is four bytes of length, big endian, and as many bytes (the framing of Kafka's protocol,
//! <https://kafka.apache.org/protocol#protocol_common>).
//!
//! Invariants:
//! - The length of a frame allocates nothing by itself. The buffer doubles as bytes arrive, from `BUFFER_BYTES`, and its
//!   whole capacity is charged first: a client makes the node hold at most twice what it sent, or `BUFFER_BYTES`.
//! - The bytes of a frame stay charged until the [`MeteredFrame`] is dropped, that is, until the request is answered.
//!
//! Never names a protocol; the protocol of a port decides what a frame means and how an error is answered.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};

use super::intake::too_large;
use super::pace::Pace;
use crate::model::ApiError;
use crate::security::Caller;
use crate::security::budget::{Budget, Ticket};
use crate::telemetry::{Listener, Metrics};

/// Bytes of a frame that are charged and buffered at first.
const BUFFER_BYTES: usize = 16 << 10;

/// Why no further frame can be read. The connection has to be closed: where the next frame starts is unknown.
#[derive(Debug, thiserror::Error)]
pub enum FrameReadError {
    /// The connection failed, or the client closed it within a frame (`UnexpectedEof`).
    #[error(transparent)]
    Io(#[from] io::Error),
    /// RECORD_TOO_LARGE for a frame over the limit, OVERLOADED when a byte budget is used up, MALFORMED_BODY when the
    /// client is too slow.
    #[error(transparent)]
    Refused(#[from] ApiError),
}

/// One frame, without its length. Its bytes count as in flight until it is dropped.
#[derive(Debug)]
pub struct MeteredFrame {
    /// The bytes after the length.
    pub bytes: Bytes,
    _ticket: Arc<Ticket>,
}

/// A frame that has not arrived completely.
#[derive(Debug)]
struct Partial {
    /// Bytes after the length, in all.
    length: usize,
    buffer: BytesMut,
    /// Holds the capacity of `buffer`.
    ticket: Arc<Ticket>,
}

/// The frames of one connection.
pub struct MeteredFrames<R> {
    io: R,
    share: Budget,
    pace: Pace,
    metrics: Metrics,
    listener: Listener,
    length: [u8; 4],
    length_filled: usize,
    partial: Option<Partial>,
}

impl<R: AsyncRead + Unpin> MeteredFrames<R> {
    /// `timeout` limits the time for each 64 KiB of a frame (`limits.body-timeout-ms`). There is no limit between frames.
    pub fn new(io: R, caller: &Caller, timeout: Duration, listener: Listener, metrics: Metrics) -> Self {
        let (share, pace) = (caller.share.clone(), Pace::new(timeout));
        Self { io, share, pace, metrics, listener, length: [0; 4], length_filled: 0, partial: None }
    }

    /// Returns the next frame, or `None` when the client closed the connection after a complete one. Cancellation safe.
    ///
    /// `bytes_max` limits the bytes of a frame after its length, inclusive. It may change between frames, for example
    /// after authentication.
    ///
    /// # Errors
    /// See [`FrameReadError`]. No further call is allowed after an error.
    pub async fn next(&mut self, bytes_max: usize) -> Result<Option<MeteredFrame>, FrameReadError> {
        std::future::poll_fn(|cx| self.poll_next(cx, bytes_max)).await
    }

    fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
        bytes_max: usize,
    ) -> Poll<Result<Option<MeteredFrame>, FrameReadError>> {
        loop {
            let read = match &mut self.partial {
                None => {
                    let mut rest = &mut self.length[self.length_filled..];
                    poll_read(&mut self.io, cx, &mut rest)
                }
                Some(partial) => {
                    if partial.buffer.len() == partial.length {
                        return Poll::Ready(Ok(self.take()));
                    }
                    partial.make_room()?;
                    let room = partial.buffer.capacity().min(partial.length) - partial.buffer.len();
                    poll_read(&mut self.io, cx, &mut (&mut partial.buffer).limit(room))
                }
            };
            let between = self.partial.is_none() && self.length_filled == 0;
            let read = match read {
                Poll::Pending if between => return Poll::Pending,
                Poll::Pending => return self.pace.poll_late(cx).map(|late| Err(late.into())),
                Poll::Ready(read) => read?,
            };
            match read {
                0 if between => return Poll::Ready(Ok(None)),
                0 => return Poll::Ready(Err(io::Error::from(io::ErrorKind::UnexpectedEof).into())),
                _ => self.metrics.received(self.listener, read),
            }
            if self.partial.is_none() {
                self.length_filled += read;
                if self.length_filled == self.length.len() {
                    self.partial =
                        Some(Partial::new(u32::from_be_bytes(self.length) as usize, bytes_max, &self.share)?);
                }
            }
            let whole = self.partial.as_ref().is_some_and(|partial| partial.buffer.len() == partial.length);
            self.pace.came(read, whole);
        }
    }

    fn take(&mut self) -> Option<MeteredFrame> {
        self.length_filled = 0;
        self.partial
            .take()
            .map(|Partial { buffer, ticket, .. }| MeteredFrame { bytes: buffer.freeze(), _ticket: ticket })
    }
}

impl Partial {
    fn new(length: usize, bytes_max: usize, share: &Budget) -> Result<Self, ApiError> {
        if length > bytes_max {
            return Err(too_large("request", length, bytes_max));
        }
        Ok(Self { length, buffer: BytesMut::new(), ticket: share.ticket() })
    }

    /// Doubles a full buffer, at most to the length of the frame, and charges the difference first.
    fn make_room(&mut self) -> Result<(), ApiError> {
        let (filled, capacity) = (self.buffer.len(), self.buffer.capacity());
        if filled < capacity {
            return Ok(());
        }
        let larger = (capacity * 2).max(BUFFER_BYTES).min(self.length);
        self.ticket.take(larger - capacity)?;
        let mut buffer = BytesMut::with_capacity(larger);
        buffer.extend_from_slice(&self.buffer);
        self.buffer = buffer;
        Ok(())
    }
}

/// Reads once into `buffer`, which has room. Returns 0 at the end of the stream.
fn poll_read<R: AsyncRead + Unpin>(
    io: &mut R,
    cx: &mut Context<'_>,
    buffer: &mut impl BufMut,
) -> Poll<io::Result<usize>> {
    // `read_buf` keeps no state of its own: dropping the pending future loses nothing.
    pin!(io.read_buf(buffer)).poll(cx)
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use futures::FutureExt;
    use proptest::prelude::*;
    use tokio::io::{AsyncWriteExt, DuplexStream, duplex};

    use super::*;
    use crate::model::Reason;

    const MAX: usize = 1 << 20;
    const TIMEOUT: Duration = Duration::from_secs(10);

    fn frames(share: &Budget) -> (MeteredFrames<DuplexStream>, DuplexStream) {
        let (io, client) = duplex(4 << 20);
        let caller = Caller { share: share.clone(), ..Caller::new(None, SocketAddr::from(([127, 0, 0, 1], 1))) };
        (MeteredFrames::new(io, &caller, TIMEOUT, Listener::Grpc, Metrics::new()), client)
    }

    fn framed(payload: &[u8]) -> Vec<u8> {
        [&(payload.len() as u32).to_be_bytes(), payload].concat()
    }

    fn refused(result: Result<Option<MeteredFrame>, FrameReadError>) -> ApiError {
        match result.unwrap_err() {
            FrameReadError::Refused(error) => error,
            FrameReadError::Io(error) => panic!("{error}"),
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn frames_come_out_whole_wherever_the_stream_is_cut(
            lengths in proptest::collection::vec(0usize..70_000, 0..5), step in 1usize..40_000,
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            let _entered = runtime.enter();
            let budget = Budget::new("limits.connection-bytes-max", MAX);
            let (mut frames, mut client) = frames(&budget);
            let payloads: Vec<Vec<u8>> =
                lengths.iter().map(|length| (0..*length).map(|i| i as u8).collect()).collect();
            let sent = payloads.iter().flat_map(|payload| framed(payload)).collect::<Vec<u8>>();
            let mut got = Vec::new();
            for part in sent.chunks(step) {
                client.write_all(part).now_or_never().unwrap().unwrap();
                // Each attempt is dropped while it waits: nothing may be lost with it.
                while let Some(frame) = frames.next(MAX).now_or_never() {
                    got.push(frame.unwrap().unwrap());
                }
            }
            prop_assert_eq!(got.iter().map(|frame| frame.bytes.to_vec()).collect::<Vec<_>>(), payloads);
            prop_assert_eq!(budget.used(), lengths.iter().sum::<usize>());
            drop((got, client));
            prop_assert!(frames.next(MAX).now_or_never().unwrap().unwrap().is_none());
            prop_assert_eq!(budget.used(), 0);
        }
    }

    #[tokio::test]
    async fn a_length_alone_charges_one_small_buffer_and_a_length_over_the_limit_nothing() {
        let budget = Budget::new("limits.connection-bytes-max", MAX);
        let (mut frames, mut client) = frames(&budget);
        client.write_all(&(MAX as u32).to_be_bytes()).await.unwrap();
        assert!(frames.next(MAX).now_or_never().is_none());
        assert_eq!(budget.used(), BUFFER_BYTES);
        client.write_all(&vec![7; 3 * BUFFER_BYTES]).await.unwrap();
        assert!(frames.next(MAX).now_or_never().is_none());
        assert_eq!(budget.used(), 4 * BUFFER_BYTES);
        drop(frames);
        for length in [MAX as u32 + 1, u32::MAX] {
            let (mut frames, mut client) = self::frames(&budget);
            client.write_all(&length.to_be_bytes()).await.unwrap();
            let error = refused(frames.next(MAX).await);
            assert_eq!(error.reason, Reason::RecordTooLarge);
            assert_eq!(error.value("bytes"), Some(length.to_string().as_str()));
            assert_eq!(budget.used(), 0);
        }
    }

    #[tokio::test]
    async fn bytes_over_a_budget_are_refused_before_they_are_buffered() {
        let budget = Budget::new("limits.connection-bytes-max", 100_000);
        let (mut frames, mut client) = frames(&budget);
        client.write_all(&framed(&[7; 60_000])).await.unwrap();
        client.write_all(&framed(&[7; 60_000])).await.unwrap();
        let first = frames.next(MAX).await.unwrap().unwrap();
        let error = refused(frames.next(MAX).await);
        assert_eq!(error.reason, Reason::Overloaded);
        assert!(error.message.starts_with("limits.connection-bytes-max: "), "{error}");
        drop(frames);
        assert_eq!(budget.used(), 60_000);
        drop(first);
        assert_eq!(budget.used(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_may_pause_between_frames_but_not_within_one() {
        let (mut frames, mut client) = frames(&Budget::unlimited());
        let pause = tokio::time::timeout(10 * TIMEOUT, frames.next(MAX)).await;
        assert!(pause.is_err(), "{pause:?}");
        client.write_all(&framed(b"request")).await.unwrap();
        assert_eq!(frames.next(MAX).await.unwrap().unwrap().bytes, "request");
        for part in [&[0, 0][..], &[0, 0, 0, 9, 1]] {
            let (mut frames, mut client) = self::frames(&Budget::unlimited());
            client.write_all(part).await.unwrap();
            let error = refused(tokio::time::timeout(2 * TIMEOUT, frames.next(MAX)).await.unwrap());
            assert_eq!(error.reason, Reason::MalformedBody);
            assert!(error.message.contains("limits.body-timeout-ms"), "{error}");
        }
    }

    #[tokio::test]
    async fn a_connection_that_ends_within_a_frame_is_an_error() {
        for part in [&[0, 0][..], &[0, 0, 0, 9, 1]] {
            let (mut frames, mut client) = frames(&Budget::unlimited());
            client.write_all(part).await.unwrap();
            drop(client);
            match frames.next(MAX).await {
                Err(FrameReadError::Io(error)) => assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof),
                other => panic!("{other:?}"),
            }
        }
    }
}
