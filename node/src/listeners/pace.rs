//! The lowest rate at which a client may send a body: against clients that keep a request open by sending single bytes.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Sleep;

use crate::model::{ApiError, Reason};

/// Bytes of a message that must arrive within the time limit, unless the message ends before.
const PROGRESS_BYTES: usize = 64 << 10;

/// The rate of one body. The time limit applies while a message is incomplete, from the first wait for its bytes.
#[derive(Debug)]
pub(crate) struct Pace {
    limit: Duration,
    timer: Option<Pin<Box<Sleep>>>,
    /// Bytes that arrived since the timer started.
    bytes: usize,
}

impl Pace {
    pub(crate) fn new(limit: Duration) -> Self {
        Self { limit, timer: None, bytes: 0 }
    }

    /// Records that `bytes` bytes arrived. `whole`: no message is incomplete.
    pub(crate) fn came(&mut self, bytes: usize, whole: bool) {
        self.bytes += bytes;
        if whole || self.bytes >= PROGRESS_BYTES {
            (self.timer, self.bytes) = (None, 0);
        }
    }

    /// Call when no bytes are ready while a message is incomplete. Ready with an error when the client was too slow.
    pub(crate) fn poll_late(&mut self, cx: &mut Context<'_>) -> Poll<ApiError> {
        let (limit, bytes) = (self.limit, &mut self.bytes);
        let timer = self.timer.get_or_insert_with(|| {
            *bytes = 0;
            Box::pin(tokio::time::sleep(limit))
        });
        timer.as_mut().poll(cx).map(|()| {
            let (ms, bytes) = (limit.as_millis(), self.bytes);
            let message = format!(
                "body: {bytes} bytes in {ms} ms: at least {PROGRESS_BYTES}, or the end (limits.body-timeout-ms)"
            );
            ApiError::new(Reason::MalformedBody, message)
        })
    }
}
