//! Bounds how fast a node fills replicas on other nodes.

use std::time::Duration;

use tokio::time::Instant;

/// Holds all fillings of a node together to a rate.
#[derive(Debug, Default)]
pub struct Throttle {
    /// When the next byte may go.
    free_at: tokio::sync::Mutex<Option<Instant>>,
}

impl Throttle {
    /// Waits until so many bytes may go, at this rate; 0: no bound.
    pub(super) async fn pass(&self, bytes: usize, bytes_per_second: u64) {
        if bytes_per_second == 0 {
            return;
        }
        let until = {
            let mut free_at = self.free_at.lock().await;
            let now = Instant::now();
            let from = free_at.unwrap_or(now).max(now);
            *free_at = Some(from + Duration::from_secs_f64(bytes as f64 / bytes_per_second as f64));
            from
        };
        tokio::time::sleep_until(until).await;
    }
}
