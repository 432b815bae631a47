//! Forwards requests of clients to another node, on a dedicated connection, so that they do not delay raft messages.
//!
//! Invariants:
//! - Appends in flight to one peer are bounded in bytes; further ones wait.
//! - Reads in flight to one peer are bounded in number, and each in bytes; further ones wait. Long polls are rejected
//!   instead, so that they do not occupy the connection for long.
//! - Both together stay below the peer's limit of concurrent HTTP/2 streams on a connection (200): no request waits
//!   inside HTTP/2.

use std::error::Error;
use std::time::Duration;

use chronicle_proto::internal as proto;
use chronicle_proto::internal::forward_request::Ask;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;
use tonic::{Code, Request, Status};

use super::channel::Client;

/// Largest response that a forwarded read requests, in bytes (soft, as every limit of a read).
pub(crate) const READ_BYTES_MAX: usize = 256 << 10;
/// Most forwarded reads in flight to one peer: about 24 MiB of responses.
const READS_MAX: usize = 96;
/// Of these, the number reserved for reads that are not long polls.
const READS_KEPT: usize = 32;
/// Least bytes that a forwarded append takes of the bound in bytes.
const APPEND_BYTES_MIN: usize = 256 << 10;
/// Most forwarded appends in flight to one peer, however large the bound in bytes.
const APPENDS_MAX: usize = 96;

/// Why there is no response.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ForwardError {
    /// The other node has not processed the request.
    #[error("not forwarded: {0}")]
    NotSent(String),
    /// This node has reached its limit of requests in flight to the other node.
    #[error("too many requests are in flight to the leader")]
    Busy,
    /// Outcome unknown: the other node may have processed the request, or may still do so.
    #[error("no response from the leader: {0}")]
    NoAnswer(String),
}

/// Forwards requests to one peer.
pub(super) struct Forwarding {
    address: String,
    client: Client,
    append_bytes: Semaphore,
    append_bytes_max: usize,
    append_bytes_min: usize,
    reads: Semaphore,
}

impl Forwarding {
    pub(super) fn new(address: String, client: Client, append_bytes_max: usize) -> Self {
        Self {
            address,
            client,
            append_bytes: Semaphore::new(append_bytes_max),
            append_bytes_max,
            append_bytes_min: APPEND_BYTES_MIN.max(append_bytes_max / APPENDS_MAX).min(append_bytes_max),
            reads: Semaphore::new(READS_MAX),
        }
    }

    pub(super) fn address(&self) -> String {
        self.address.clone()
    }

    /// Sends a request with `addressed` metadata, once there is room, and waits for the response.
    pub(super) async fn forward(
        &self,
        request: &proto::ForwardRequest,
        addressed: impl FnOnce(proto::ForwardRequest) -> Request<proto::ForwardRequest>,
        patience: Duration,
    ) -> Result<proto::ForwardResponse, ForwardError> {
        let until = Instant::now() + patience;
        let _room = tokio::time::timeout_at(until, self.room(request)).await.map_err(|_| ForwardError::Busy)??;
        let mut client = self.client.clone();
        // Dropping the call resets its stream, which cancels the request on the other node.
        match tokio::time::timeout_at(until, client.forward(addressed(request.clone()))).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => Err(no_answer(&status)),
            Err(_) => Err(ForwardError::NoAnswer(format!("none within {} ms", patience.as_millis()))),
        }
    }

    async fn room(&self, request: &proto::ForwardRequest) -> Result<SemaphorePermit<'_>, ForwardError> {
        let closed = |_| ForwardError::NotSent("the node is stopping".into());
        match &request.ask {
            Some(Ask::Append(append)) => {
                let bytes = append.batch.len().clamp(self.append_bytes_min, self.append_bytes_max);
                self.append_bytes.acquire_many(bytes as u32).await.map_err(closed)
            }
            Some(Ask::Read(read)) if read.max_wait_ms > 0 => {
                let free = self.reads.available_permits();
                if free <= READS_KEPT { Err(ForwardError::Busy) } else { self.reads.acquire().await.map_err(closed) }
            }
            _ => self.reads.acquire().await.map_err(closed),
        }
    }
}

/// Classifies a status: the peer's own rejections come before it processes the request.
fn no_answer(status: &Status) -> ForwardError {
    let connect_failed = || causes(status).any(|cause| cause.is::<tonic::ConnectError>());
    match status.code() {
        Code::Unimplemented | Code::FailedPrecondition | Code::PermissionDenied | Code::InvalidArgument => {
            ForwardError::NotSent(status.message().to_owned())
        }
        _ if connect_failed() => ForwardError::NotSent(status.message().to_owned()),
        _ => ForwardError::NoAnswer(status.message().to_owned()),
    }
}

fn causes(status: &Status) -> impl Iterator<Item = &(dyn Error + 'static)> {
    std::iter::successors(status.source(), |error: &&(dyn Error + 'static)| (*error).source())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use chronicle_client::{BoxedIo, Connector};
    use futures::FutureExt;
    use futures::future::join_all;

    use super::super::Purpose;
    use super::super::channel::{channel, client};
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(5);

    fn forwarding(connector: Connector, append_bytes_max: usize) -> Forwarding {
        let channel = channel("127.0.0.1:1", Purpose::Forwarding, connector).unwrap();
        Forwarding::new("127.0.0.1:1".into(), client(channel), append_bytes_max)
    }

    /// A peer that accepts every request and never responds.
    fn silent() -> Connector {
        Arc::new(|_| {
            let (io, other) = tokio::io::duplex(1 << 20);
            // Held for ever.
            std::mem::forget(other);
            std::future::ready(Ok(Box::new(io) as BoxedIo)).boxed()
        })
    }

    fn read(max_wait_ms: u64) -> proto::ForwardRequest {
        let ask = Ask::Read(proto::ForwardedRead { max_wait_ms, ..Default::default() });
        proto::ForwardRequest { ask: Some(ask), ..Default::default() }
    }

    fn append(bytes: usize) -> proto::ForwardRequest {
        let ask = Ask::Append(proto::ForwardedAppend { batch: vec![0; bytes].into(), expectation: None });
        proto::ForwardRequest { ask: Some(ask), ..Default::default() }
    }

    #[tokio::test]
    async fn what_could_not_be_sent_is_distinguished_from_what_has_no_answer() {
        let refuses: Connector =
            Arc::new(|_| std::future::ready(Err(std::io::ErrorKind::ConnectionRefused.into())).boxed());
        let gone = forwarding(refuses, 1 << 20);
        let error = gone.forward(&append(1), Request::new, PATIENCE).await.unwrap_err();
        assert!(matches!(error, ForwardError::NotSent(_)), "{error:?}");
        let silent = forwarding(silent(), 1 << 20);
        let error = silent.forward(&append(1), Request::new, Duration::from_millis(20)).await.unwrap_err();
        assert!(matches!(error, ForwardError::NoAnswer(_)), "{error:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn reads_that_wait_for_records_leave_room_for_those_that_do_not() {
        let peer = forwarding(silent(), 1 << 20);
        let (long, short) = (read(60_000), read(0));
        let polls = join_all((0..READS_MAX).map(|_| peer.forward(&long, Request::new, PATIENCE)));
        let answers = polls.await;
        let refused = answers.iter().filter(|answer| **answer == Err(ForwardError::Busy)).count();
        assert_eq!(refused, READS_KEPT);
        let (others, one_more) = tokio::join!(
            join_all((0..READS_MAX).map(|_| peer.forward(&long, Request::new, PATIENCE))),
            peer.forward(&short, Request::new, PATIENCE)
        );
        assert_eq!(others.len(), READS_MAX);
        assert!(matches!(one_more, Err(ForwardError::NoAnswer(_))), "it was sent: {one_more:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn appends_under_way_are_bounded_in_bytes_and_one_more_waits() {
        let peer = forwarding(silent(), 1 << 20);
        let (large, small) = (append(1 << 20), append(1));
        let (first, waited) = tokio::join!(
            peer.forward(&large, Request::new, PATIENCE),
            peer.forward(&small, Request::new, PATIENCE / 2)
        );
        assert!(matches!(first, Err(ForwardError::NoAnswer(_))), "{first:?}");
        assert_eq!(waited, Err(ForwardError::Busy), "nothing of it was sent");
        let too_large = peer.forward(&append(2 << 20), Request::new, PATIENCE).await;
        assert!(matches!(too_large, Err(ForwardError::NoAnswer(_))), "it goes alone: {too_large:?}");
    }
}
