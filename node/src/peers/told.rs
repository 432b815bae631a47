//! Refusals between nodes in the log: each once, and again only after a while, however often a node tries.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// Until a refusal that goes on is told again.
const AGAIN_AFTER: Duration = Duration::from_secs(60);
/// Different refusals that are remembered; while there are so many, others are not told.
const TOLD_MAX: usize = 64;

/// What was told lately.
#[derive(Debug, Default)]
pub(super) struct Told(Mutex<HashMap<String, Instant>>);

impl Told {
    /// Whether this should be told now.
    pub(super) fn is_news(&self, text: &str) -> bool {
        let now = Instant::now();
        let mut told = self.0.lock();
        told.retain(|_, at| now - *at < AGAIN_AFTER);
        if told.len() >= TOLD_MAX || told.contains_key(text) {
            return false;
        }
        told.insert(text.to_owned(), now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_refusal_is_told_once_and_again_after_a_while() {
        let told = Told::default();
        assert!(told.is_news("a"));
        assert!(told.is_news("b"));
        assert!(!told.is_news("a"));
        tokio::time::advance(AGAIN_AFTER).await;
        assert!(told.is_news("a"));
        for number in 0..10 * TOLD_MAX {
            told.is_news(&number.to_string());
        }
        assert!(told.0.lock().len() <= TOLD_MAX);
    }
}
