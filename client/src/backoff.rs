//! Exponential backoff with jitter.
//!
//! Promise: each pause lies between half and all of a ceiling. The ceiling doubles from `pause_min` to 100 ms, stays there
//! for a second because a new leader is usually elected by then, and then doubles to `pause_max`.
//!
//! Names only `config.rs`; it knows nothing about nodes or requests, and it does not sleep.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::config::RetryConfig;

/// The ceiling stays at this value until the pauses have added up to [`FAILOVER`].
const FAILOVER_PAUSE: Duration = Duration::from_millis(100);
/// How long a failover usually takes.
const FAILOVER: Duration = Duration::from_secs(1);

/// The pauses of one sequence of attempts.
#[derive(Debug)]
pub(crate) struct Backoff {
    config: RetryConfig,
    random: StdRng,
    ceiling: Duration,
    /// Sum of the ceilings at [`FAILOVER_PAUSE`].
    waited: Duration,
}

impl Backoff {
    pub(crate) fn new(config: RetryConfig) -> Self {
        #[expect(clippy::disallowed_methods, reason = "without a seed from the caller")]
        let random = match config.seed {
            Some(seed) => StdRng::seed_from_u64(seed),
            None => StdRng::from_os_rng(),
        };
        Self { config, random, ceiling: config.pause_min, waited: Duration::ZERO }
    }

    /// The next pause.
    pub(crate) fn pause(&mut self) -> Duration {
        let mut ceiling = self.ceiling.min(self.config.pause_max);
        if ceiling >= FAILOVER_PAUSE && self.waited < FAILOVER {
            ceiling = ceiling.min(FAILOVER_PAUSE.max(self.config.pause_min));
            self.waited += ceiling;
        }
        self.ceiling = ceiling.saturating_mul(2);
        ceiling.mul_f64(self.random.random_range(0.5..=1.0))
    }

    /// Starts over with short pauses. Called after a success.
    pub(crate) fn reset(&mut self) {
        (self.ceiling, self.waited) = (self.config.pause_min, Duration::ZERO);
    }
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
    fn pauses_stay_short_while_a_fail_over_lasts() {
        let mut backoff = Backoff::new(RetryConfig { seed: Some(3), ..RetryConfig::default() });
        let pauses: Vec<Duration> = (0..40).map(|_| backoff.pause()).collect();
        let mut waited = Duration::ZERO;
        for pause in &pauses {
            assert!(waited > Duration::from_millis(500) || *pause <= Duration::from_millis(100), "{pauses:?}");
            waited += *pause;
        }
        assert!(pauses[39] >= Duration::from_secs(1), "{pauses:?}");
    }

    #[test]
    fn the_same_seed_gives_the_same_pauses() {
        let config = RetryConfig { seed: Some(7), ..RetryConfig::default() };
        let pauses = |mut backoff: Backoff| (0..5).map(|_| backoff.pause()).collect::<Vec<_>>();
        assert_eq!(pauses(Backoff::new(config)), pauses(Backoff::new(config)));
    }
}
