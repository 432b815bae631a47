//! Refusals between nodes in the log: each once, and again only after a while, however often a node tries.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// A refusal that goes on is logged again after this long.
const AGAIN_AFTER: Duration = Duration::from_secs(60);
/// Different refusals that are remembered; while there are so many, others are not logged.
const REMEMBERED_MAX: usize = 64;

/// The refusals that were logged lately.
#[derive(Debug, Default)]
pub(super) struct Repeats(Mutex<HashMap<String, Instant>>);

impl Repeats {
    /// Whether this should be logged now.
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
    async fn a_refusal_is_told_once_and_again_after_a_while() {
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
