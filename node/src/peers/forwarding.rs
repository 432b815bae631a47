//! Requests of clients on their way to another node, on a connection of their own: they must not stand in the way of raft's.
//!
//! Invariants:
//! - Appends under way to one peer are bounded in bytes; one more waits.
//! - Reads under way to one peer are bounded in number, and each in bytes; one more is refused.
//! - Both together stay below the streams that an HTTP/2 connection of the peer takes at a time (200): no request waits
//!   unseen.

use std::error::Error;
use std::time::Duration;

use chronicle_proto::internal as proto;
use chronicle_proto::internal::forward_request::Ask;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;
use tonic::{Code, Request, Status};

use super::Client;

/// Largest answer that a forwarded read asks for, in bytes (soft, as every limit of a read).
pub(crate) const READ_BYTES_MAX: usize = 256 << 10;
/// Forwarded reads under way to one peer: 24 MiB of answers, about.
const READS_MAX: usize = 96;
/// Smallest place that a forwarded append takes in the bound in bytes.
const APPEND_BYTES_MIN: usize = 256 << 10;
/// Forwarded appends under way to one peer, however large the bound in bytes.
const APPENDS_MAX: usize = 96;

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ForwardError {
    /// The other node has done nothing.
    #[error("not forwarded: {0}")]
    NotSent(String),
    /// This node has as many requests under way to the other one as it may.
    #[error("{READS_MAX} reads are under way to the node that leads")]
    Busy,
    /// The other node may have done what it was asked for, or may still do it.
    #[error("no answer of the node that leads: {0}")]
    NoAnswer(String),
}

/// The way of forwarded requests to one peer.
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

    /// Sends a request with `addressed` metadata, when there is room, and waits for the answer.
    pub(super) async fn forward(
        &self,
        request: &proto::ForwardRequest,
        addressed: impl FnOnce(proto::ForwardRequest) -> Request<proto::ForwardRequest>,
        patience: Duration,
    ) -> Result<proto::ForwardResponse, ForwardError> {
        let until = Instant::now() + patience;
        let _room = tokio::time::timeout_at(until, self.room(request)).await.map_err(|_| ForwardError::Busy)??;
        let mut client = self.client.clone();
        // Dropping the call resets its stream, which drops the work on the other side.
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
            _ => self.reads.try_acquire().map_err(|_| ForwardError::Busy),
        }
    }
}

/// What a status means: the peer's own refusals come before it does anything.
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
