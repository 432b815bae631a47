//! Waiting for the engine's flushes.

use bytes::Bytes;
use chronicle_log::{Done, LogError, LogId, Store};
use tokio::sync::oneshot;

/// Starts a write at once. The returned future waits until it is on disk; the write takes effect even when the future
/// is dropped.
pub(crate) fn flushed(
    start: impl FnOnce(Done) -> Result<(), LogError>,
) -> impl Future<Output = Result<(), LogError>> + Send {
    let (tx, rx) = oneshot::channel();
    let started = start(Box::new(move |result| {
        let _ = tx.send(result);
    }));
    async move {
        started?;
        rx.await.unwrap_or(Err(LogError::Closed))
    }
}

/// Waits until every value in the journal that was put for this log is on disk.
pub(crate) fn settled(store: &Store, id: LogId) -> impl Future<Output = Result<(), LogError>> + Send {
    flushed(move |done| store.journal_settle(id, done))
}

/// Writes a value to the journal, as [`flushed`].
pub(crate) fn journal(
    store: &Store,
    id: LogId,
    key: u8,
    value: Bytes,
) -> impl Future<Output = Result<(), LogError>> + Send {
    flushed(move |done| store.journal_put(id, key, value, Some(done)))
}
