//! Ctrl-C, SIGTERM and SIGHUP.

use std::io;
use std::sync::Arc;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;

/// Resolves when the process receives SIGINT or SIGTERM. The signals are caught from the first poll on.
pub(super) async fn stop_requested() -> io::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    // Cancellation-safe: only the signal itself is consumed.
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}

/// Notifies `hangups` of every SIGHUP, for as long as the process runs.
///
/// # Errors
/// The signal cannot be caught.
pub(super) fn on_hangup(hangups: Arc<Notify>) -> io::Result<()> {
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            hangups.notify_one();
        }
    });
    Ok(())
}
