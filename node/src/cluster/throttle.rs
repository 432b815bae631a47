//! Limits the rate at which a node fills replicas on other nodes.

use std::time::Duration;

use tokio::time::Instant;

/// Limits the combined rate of all fills that a node serves.
#[derive(Debug, Default)]
pub struct Throttle {
    /// When the next byte may be sent.
    free_at: tokio::sync::Mutex<Option<Instant>>,
}

impl Throttle {
    /// Waits until this many bytes may be sent, at this rate; 0: no limit.
    pub(crate) async fn pass(&self, bytes: usize, bytes_per_second: u64) {
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
