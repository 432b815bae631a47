//! What is repeated, and when.
//!
//! A request that was certainly not accepted may always be repeated. One whose outcome is open may be repeated only when
//! doing it twice is the same as doing it once ([`Repeat::Always`]). Once an attempt's outcome was open, a later refusal
//! no longer proves that the request was not carried out: the final error says so.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use tonic::transport::Channel;

use crate::attempts::Attempts;
use crate::config::RetryConfig;
use crate::error::{ClientError, ErrorKind};
use crate::resolver::{Resolver, Route, Target};

/// Pauses stay at this until they have added up to [`FAIL_OVER`]: a new leader is usually there by then.
const FAIL_OVER_PAUSE: Duration = Duration::from_millis(100);
const FAIL_OVER: Duration = Duration::from_secs(1);

/// Which attempts may be followed by another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Repeat {
    /// Reads, and requests that are the same done once or twice.
    Always,
    /// Changes that are not: only after "not accepted".
    NotAccepted,
}

/// Growing pauses with jitter: each lies between half and all of a ceiling that doubles from `pause_min` to 100 ms, stays
/// there for a second, and doubles to `pause_max`.
#[derive(Debug)]
pub(crate) struct Backoff {
    config: RetryConfig,
    random: StdRng,
    ceiling: Duration,
    /// Sum of the ceilings at [`FAIL_OVER_PAUSE`].
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
        if ceiling >= FAIL_OVER_PAUSE && self.waited < FAIL_OVER {
            ceiling = ceiling.min(FAIL_OVER_PAUSE.max(self.config.pause_min));
            self.waited += ceiling;
        }
        self.ceiling = ceiling.saturating_mul(2);
        ceiling.mul_f64(self.random.random_range(0.5..=1.0))
    }

    /// Starts over with short pauses, after something succeeded.
    pub(crate) fn reset(&mut self) {
        (self.ceiling, self.waited) = (self.config.pause_min, Duration::ZERO);
    }
}

/// How a call is made: where to, how long, and what may be repeated.
pub(crate) struct Plan {
    pub(crate) target: Target,
    pub(crate) repeat: Repeat,
    /// An attempt that ends without an answer leaves the outcome open.
    pub(crate) mutates: bool,
    /// For everything.
    pub(crate) deadline: Duration,
    /// A node that lets a read wait this long, doubled with each time, is left for another, if there is one; `None`: never.
    pub(crate) patience: Option<Duration>,
}

/// Attempts `call` until it succeeds, fails for good or the deadline has passed.
pub(crate) async fn with_retries<T, F>(
    resolver: &Resolver,
    retry: RetryConfig,
    plan: Plan,
    mut call: impl FnMut(Channel) -> F,
) -> Result<T, ClientError>
where
    F: Future<Output = Result<T, tonic::Status>>,
{
    let Plan { target, repeat, mutates, deadline, mut patience } = plan;
    let until = Instant::now() + deadline;
    let mut attempts = Attempts::new(resolver.clone(), target.clone(), retry);
    let mut open = false;
    loop {
        let Ok(route) = timeout_at(until, attempts.route()).await else {
            let why = "no node said where the partition is";
            let error = ClientError::new(ErrorKind::Transport { sent: false }, "DEADLINE_EXCEEDED", why);
            return Err(finish(attempts.give_up(None, error).after_deadline(deadline), open));
        };
        let patient_until = patience.filter(|_| resolver.has_choice()).map(|patience| Instant::now() + patience);
        // What is dropped here is an attempt; its outcome is then open, unless it never left this process.
        let answer = tokio::select! {
            biased;
            answer = call(route.channel()) => answer.map_err(ClientError::from),
            () = resolver.superseded(&target, &route, resolver.suspect_after()) => Err(silent(&route, "does not answer and is not the one to ask any more")),
            () = at(patient_until) => {
                patience = patience.map(|patience| patience * 2);
                Err(silent(&route, "does not answer"))
            }
            () = sleep_until(until) => {
                let mut error = silent(&route, "no answer");
                error.reason = "DEADLINE_EXCEEDED".into();
                open |= mutates && !error.not_accepted();
                let error = attempts.give_up(Some(&route), error.at(&route.address));
                return Err(finish(error.after_deadline(deadline), open));
            }
        };
        let error = match answer {
            Ok(answer) => {
                attempts.succeeded(&route);
                return Ok(answer);
            }
            Err(error) => attempts.judge(&route, error),
        };
        open |= mutates && !error.not_accepted();
        let repeatable = error.is_retryable() && (error.not_accepted() || repeat == Repeat::Always);
        if !repeatable {
            return Err(finish(error, open));
        }
        let pause = timeout_at(until, attempts.failed(&route, &error)).await;
        match pause {
            Ok(pause) if Instant::now() + pause < until => {
                tracing::debug!(%error, pause_ms = pause.as_millis(), "retrying");
                sleep(pause).await;
            }
            _ => return Err(finish(attempts.give_up(Some(&route), error).after_deadline(deadline), open)),
        }
    }
}

/// The error of an attempt that was given up unanswered.
fn silent(route: &Route, why: &str) -> ClientError {
    ClientError::new(ErrorKind::Transport { sent: !route.node.is_unsent() }, "CONNECTION_LOST", why)
}

async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
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
