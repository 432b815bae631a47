//! Limits log lines about rejections between nodes: each is logged once, and again only after a pause, however often a
//! node retries.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// Pause before the same rejection is logged again.
const AGAIN_AFTER: Duration = Duration::from_secs(60);
/// Most different rejections that are stored; while that many are stored, new ones are not logged.
const REMEMBERED_MAX: usize = 64;

/// The rejections that were logged lately.
#[derive(Debug, Default)]
pub(super) struct Repeats(Mutex<HashMap<String, Instant>>);

impl Repeats {
    /// Whether this text should be logged now; records it as logged then.
    pub(super) fn is_news(&self, text: &str) -> bool {
        let now = Instant::now();
        let mut logged = self.0.lock();
        logged.retain(|_, at| now - *at < AGAIN_AFTER);
        if logged.len() >= REMEMBERED_MAX || logged.contains_key(text) {
            return false;
        }
        logged.insert(text.to_owned(), now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_rejection_is_logged_once_and_again_after_a_pause() {
        let logged = Repeats::default();
        assert!(logged.is_news("a"));
        assert!(logged.is_news("b"));
        assert!(!logged.is_news("a"));
        tokio::time::advance(AGAIN_AFTER).await;
        assert!(logged.is_news("a"));
        for number in 0..10 * REMEMBERED_MAX {
            logged.is_news(&number.to_string());
        }
        assert!(logged.0.lock().len() <= REMEMBERED_MAX);
    }
}
