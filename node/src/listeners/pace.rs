//! How slowly a client may send: against those that keep a request open a byte at a time.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Sleep;

use crate::model::{ApiError, Reason};

/// What must come of a message within the limit, unless it ends.
const PROGRESS_BYTES: usize = 64 << 10;

/// The pace of one body: while something has begun and is not whole, the limit runs from the first wait on.
#[derive(Debug)]
pub(crate) struct Pace {
    limit: Duration,
    timer: Option<Pin<Box<Sleep>>>,
    /// Bytes since the timer runs.
    bytes: usize,
}

impl Pace {
    pub(crate) fn new(limit: Duration) -> Self {
        Self { limit, timer: None, bytes: 0 }
    }

    /// These many bytes came. `whole`: nothing that has begun is open.
    pub(crate) fn came(&mut self, bytes: usize, whole: bool) {
        self.bytes += bytes;
        if whole || self.bytes >= PROGRESS_BYTES {
            (self.timer, self.bytes) = (None, 0);
        }
    }

    /// Nothing came, and something is open. Ready: it has been too slow.
    pub(crate) fn poll_late(&mut self, cx: &mut Context<'_>) -> Poll<ApiError> {
        let (limit, bytes) = (self.limit, &mut self.bytes);
        let timer = self.timer.get_or_insert_with(|| {
            *bytes = 0;
            Box::pin(tokio::time::sleep(limit))
        });
        timer.as_mut().poll(cx).map(|()| {
            let (ms, bytes) = (limit.as_millis(), self.bytes);
            let message = format!(
                "body: {bytes} bytes came in {ms} ms: at least {PROGRESS_BYTES}, or its end (limits.body-timeout-ms)"
            );
            ApiError::new(Reason::MalformedBody, message)
        })
    }
}
