//! What is repeated, and when.
//!
//! A request that was certainly not accepted may always be repeated. One whose outcome is open may be repeated only when
//! doing it twice is the same as doing it once ([`Repeat::Always`]). Once an attempt's outcome was open, a later refusal
//! no longer proves that the request was not carried out: the final error says so.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::time::{Instant, sleep, timeout_at};

use crate::config::RetryConfig;
use crate::error::{ClientError, ErrorKind};

/// Which attempts may be followed by another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Repeat {
    /// Reads, and requests that are the same done once or twice.
    Always,
    /// Changes that are not: only after "not accepted".
    NotAccepted,
}

/// Growing pauses with jitter: the n-th lies between half and all of `min(pause_max, pause_min * 2^n)`.
#[derive(Debug)]
pub(crate) struct Backoff {
    config: RetryConfig,
    random: StdRng,
    ceiling: Duration,
}

impl Backoff {
    pub(crate) fn new(config: RetryConfig) -> Self {
        let random = match config.seed {
            Some(seed) => StdRng::seed_from_u64(seed),
            None => StdRng::from_os_rng(),
        };
        Self { config, random, ceiling: config.pause_min }
    }

    /// The next pause.
    pub(crate) fn pause(&mut self) -> Duration {
        let ceiling = self.ceiling.min(self.config.pause_max);
        self.ceiling = ceiling.saturating_mul(2);
        ceiling.mul_f64(self.random.random_range(0.5..=1.0))
    }

    /// Starts over with short pauses, after something succeeded.
    pub(crate) fn reset(&mut self) {
        self.ceiling = self.config.pause_min;
    }
}

/// Attempts `call` until it succeeds, fails for good or `deadline` has passed. `mutates`: an attempt that ends without
/// an answer leaves the outcome open.
pub(crate) async fn with_retries<T, F>(
    retry: RetryConfig,
    deadline: Duration,
    repeat: Repeat,
    mutates: bool,
    mut call: impl FnMut() -> F,
) -> Result<T, ClientError>
where
    F: Future<Output = Result<T, tonic::Status>>,
{
    let until = Instant::now() + deadline;
    let mut backoff = None;
    let mut open = false;
    let mut last: Option<ClientError> = None;
    loop {
        let error = match timeout_at(until, call()).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(status)) => ClientError::from(status),
            // The attempt was cut off, so it may have been carried out.
            Err(_) => {
                let why = last.take().map_or_else(|| "no answer".to_owned(), |last| format!("last error: {last}"));
                let error = ClientError::new(ErrorKind::Transport { sent: true }, "DEADLINE_EXCEEDED", why);
                return Err(finish(error.after_deadline(deadline), mutates));
            }
        };
        open |= mutates && !error.not_accepted();
        let repeatable = error.is_retryable() && (error.not_accepted() || repeat == Repeat::Always);
        if !repeatable {
            return Err(finish(error, open));
        }
        let pause = backoff.get_or_insert_with(|| Backoff::new(retry)).pause();
        if Instant::now() + pause >= until {
            return Err(finish(error.after_deadline(deadline), open));
        }
        tracing::debug!(%error, pause_ms = pause.as_millis(), "retrying");
        last = Some(error);
        sleep(pause).await;
    }
}

fn finish(error: ClientError, open: bool) -> ClientError {
    if open && error.kind != ErrorKind::Fatal { error.into_unknown() } else { error }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_the_limit_with_jitter_and_start_over() {
        let config =
            RetryConfig { pause_min: Duration::from_millis(10), pause_max: Duration::from_millis(100), seed: Some(1) };
        let mut backoff = Backoff::new(config);
        for ceiling in [10, 20, 40, 80, 100, 100] {
            let pause = backoff.pause();
            assert!(
                pause >= Duration::from_millis(ceiling) / 2 && pause <= Duration::from_millis(ceiling),
                "{pause:?}"
            );
        }
        backoff.reset();
        assert!(backoff.pause() <= Duration::from_millis(10));
    }

    #[test]
    fn the_same_seed_gives_the_same_pauses() {
        let config = RetryConfig { seed: Some(7), ..RetryConfig::default() };
        let pauses = |mut backoff: Backoff| (0..5).map(|_| backoff.pause()).collect::<Vec<_>>();
        assert_eq!(pauses(Backoff::new(config)), pauses(Backoff::new(config)));
    }
}
