//! Wraps the body of a request: counts its bytes, charges them to the byte budgets, and enforces the lowest rate
//! ([`Pace`]). For gRPC, checks each message against the size limit before the message is buffered.
//!
//! A gRPC body is a sequence of messages. Before each come one byte of flags and four bytes of length, big endian
//! (<https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>, "Length-Prefixed-Message").

use std::error::Error;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use hyper::body::{Body, Frame, SizeHint};

use super::grpc::status;
use super::pace::Pace;
use crate::model::{ApiError, Reason};
use crate::security::budget::Ticket;
use crate::telemetry::{Listener, Metrics};

/// The error that ends the reading of a body. Its source is a [`tonic::Status`], because tonic searches the sources of
/// an error for one.
#[derive(Debug)]
pub(crate) struct BodyError {
    pub(crate) error: ApiError,
    status: tonic::Status,
}

impl BodyError {
    fn new(error: ApiError) -> Self {
        let status = status::status(&error);
        Self { error, status }
    }

    /// Returns the [`ApiError`] of the first `BodyError` in a chain of errors.
    pub(crate) fn find<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a ApiError> {
        let mut next = Some(error);
        while let Some(error) = next {
            if let Some(refused) = error.downcast_ref::<BodyError>() {
                return Some(&refused.error);
            }
            next = error.source();
        }
        None
    }
}

impl fmt::Display for BodyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl Error for BodyError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.status)
    }
}

/// Follows the message boundaries of a gRPC body.
#[derive(Debug, Default)]
pub(crate) struct Messages {
    prefix: [u8; 5],
    prefix_filled: usize,
    /// Bytes of the current message that have not arrived yet.
    left: usize,
}

impl Messages {
    /// Returns whether no message is incomplete.
    pub(crate) fn is_between(&self) -> bool {
        self.left == 0 && self.prefix_filled == 0
    }

    /// Processes the next bytes of the body.
    ///
    /// # Errors
    /// RECORD_TOO_LARGE at the prefix of a message longer than `limit` bytes, and how many of `bytes` come before this
    /// prefix.
    pub(crate) fn advance(&mut self, mut bytes: &[u8], limit: usize) -> Result<(), (usize, ApiError)> {
        let all = bytes.len();
        while !bytes.is_empty() {
            let skipped = self.left.min(bytes.len());
            self.left -= skipped;
            bytes.advance(skipped);
            let n = (self.prefix.len() - self.prefix_filled).min(bytes.len());
            self.prefix[self.prefix_filled..self.prefix_filled + n].copy_from_slice(&bytes[..n]);
            self.prefix_filled += n;
            bytes.advance(n);
            if self.prefix_filled == self.prefix.len() {
                let [_, length @ ..] = self.prefix;
                self.prefix_filled = 0;
                self.left = u32::from_be_bytes(length) as usize;
                if self.left > limit {
                    let before = (all - bytes.len()).saturating_sub(self.prefix.len());
                    return Err((before, too_large("message", self.left, limit)));
                }
            }
        }
        Ok(())
    }
}

/// Returns the error for a message or body over `limits.request-bytes-max`.
pub(crate) fn too_large(what: &str, bytes: usize, limit: usize) -> ApiError {
    ApiError::new(Reason::RecordTooLarge, format!("{what}: {bytes} bytes: at most {limit} (limits.request-bytes-max)"))
        .with("bytes", bytes)
        .with("limit", limit)
}

/// A metered request body. `messages` is `Some` for gRPC.
pub(crate) struct Intake<B> {
    pub(crate) body: B,
    pub(crate) ticket: Arc<Ticket>,
    pub(crate) metrics: Metrics,
    pub(crate) messages: Option<Messages>,
    pub(crate) message_bytes_max: usize,
    pub(crate) pace: Pace,
    /// The error that ends the body, returned after the complete messages before it.
    pub(crate) refused: Option<ApiError>,
}

impl<B> Body for Intake<B>
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
        if let Some(error) = this.refused.take() {
            return Poll::Ready(Some(Err(Box::new(BodyError::new(error)))));
        }
        let frame = match Pin::new(&mut this.body).poll_frame(cx) {
            // A gRPC stream may pause between two messages without limit. The rate applies to all of an HTTP body.
            Poll::Pending if this.messages.as_ref().is_some_and(Messages::is_between) => return Poll::Pending,
            Poll::Pending => {
                let late = std::task::ready!(this.pace.poll_late(cx));
                return Poll::Ready(Some(Err(Box::new(BodyError::new(late)))));
            }
            Poll::Ready(None) => return Poll::Ready(None),
            Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(error.into()))),
            Poll::Ready(Some(Ok(frame))) => frame,
        };
        let mut data = match frame.into_data() {
            Ok(data) => data,
            Err(frame) => return Poll::Ready(Some(Ok(frame))),
        };
        let listener = if this.messages.is_some() { Listener::Grpc } else { Listener::Http };
        this.metrics.received(listener, data.len());
        if let Some(messages) = &mut this.messages
            && let Err((before, error)) = messages.advance(&data, this.message_bytes_max)
        {
            data.truncate(before);
            this.refused = Some(error);
        }
        this.pace.came(data.len(), this.messages.as_ref().is_some_and(Messages::is_between));
        if let Err(error) = this.ticket.take(data.len()) {
            return Poll::Ready(Some(Err(Box::new(BodyError::new(error)))));
        }
        Poll::Ready(Some(Ok(Frame::data(data))))
    }

    fn is_end_stream(&self) -> bool {
        self.refused.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn framed(lengths: &[usize]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for length in lengths {
            bytes.push(0);
            bytes.extend_from_slice(&(*length as u32).to_be_bytes());
            bytes.resize(bytes.len() + length, 7);
        }
        bytes
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn boundaries_are_found_wherever_the_body_is_cut(
            lengths in proptest::collection::vec(0usize..50, 0..8), step in 1usize..20,
        ) {
            let mut messages = Messages::default();
            let mut bytes = framed(&lengths);
            for chunk in bytes.chunks(step) {
                messages.advance(chunk, 49).unwrap();
            }
            prop_assert_eq!((messages.left, messages.prefix_filled), (0, 0));
            bytes.extend_from_slice(&framed(&[50]));
            let mut messages = Messages::default();
            let whole = Messages::default().advance(&bytes, 49).unwrap_err();
            prop_assert_eq!(whole.0, bytes.len() - 55);
            let refused = bytes.chunks(step).find_map(|chunk| messages.advance(chunk, 49).err());
            prop_assert_eq!(refused.unwrap().1.reason, Reason::RecordTooLarge);
        }

        #[test]
        fn arbitrary_bodies_never_panic(body in proptest::collection::vec(any::<u8>(), 0..200), step in 1usize..20) {
            let mut messages = Messages::default();
            for chunk in body.chunks(step) {
                if messages.advance(chunk, 1 << 20).is_err() {
                    break;
                }
            }
        }
    }
}
