//! Retries of one call within its deadline.
//!
//! Promise:
//! - A request that was certainly not accepted may always be repeated. One whose outcome is unknown is repeated only when it is
//!   idempotent ([`Repeat::Always`]).
//! - Once an attempt's outcome was unknown, a later refusal does not prove that the request was not carried out. The final error
//!   is then `OUTCOME_UNKNOWN`.
//!
//! Stands on `attempts.rs`. It does not know which calls there are.

use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use tonic::transport::Channel;

use crate::attempts::Attempts;
use crate::config::RetryConfig;
use crate::error::{ClientError, ErrorKind};
use crate::resolver::{Resolver, Route, Target};

/// Which failed attempts may be repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Repeat {
    /// All: the request is a read, or idempotent.
    Always,
    /// Only those that were certainly not accepted: the request is a change that is not idempotent.
    NotAccepted,
}

/// How a call is made.
pub(crate) struct Plan {
    pub(crate) target: Target,
    pub(crate) repeat: Repeat,
    /// The request changes something, so an attempt without an answer leaves its outcome unknown.
    pub(crate) mutates: bool,
    /// For the call with all its attempts.
    pub(crate) deadline: Duration,
    /// How long an attempt waits before the call turns to another node, if there is one; doubled each time. `None`: never.
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
    let mut outcome_unknown = false;
    loop {
        let Ok(route) = timeout_at(until, attempts.route()).await else {
            let why = "no node answered the metadata request";
            let error = ClientError::new(ErrorKind::Transport { sent: false }, "DEADLINE_EXCEEDED", why);
            return Err(finish(attempts.give_up(None, error).after_deadline(deadline), outcome_unknown));
        };
        let patient_until = patience.filter(|_| resolver.has_choice()).map(|patience| Instant::now() + patience);
        // A branch that wins drops the attempt. Its outcome is then unknown, unless the request never left this process.
        let answer = tokio::select! {
            biased;
            answer = call(route.channel()) => answer.map_err(ClientError::from),
            () = resolver.until_superseded(&target, &route, resolver.suspect_after()) => {
                Err(silent(&route, "the node does not answer, and no longer leads or hosts the partition"))
            }
            () = sleep_until_some(patient_until) => {
                patience = patience.map(|patience| patience * 2);
                Err(silent(&route, "the node does not answer"))
            }
            () = sleep_until(until) => {
                let mut error = silent(&route, "no answer from the node");
                error.reason = "DEADLINE_EXCEEDED".into();
                outcome_unknown |= mutates && !error.not_accepted();
                let error = attempts.give_up(Some(&route), error.at(&route.address));
                return Err(finish(error.after_deadline(deadline), outcome_unknown));
            }
        };
        let error = match answer {
            Ok(answer) => {
                attempts.succeeded(&route);
                return Ok(answer);
            }
            Err(error) => attempts.judge(&route, error),
        };
        outcome_unknown |= mutates && !error.not_accepted();
        let repeatable = error.is_retryable() && (error.not_accepted() || repeat == Repeat::Always);
        if !repeatable {
            return Err(finish(error, outcome_unknown));
        }
        let pause = timeout_at(until, attempts.failed(&route, &error)).await;
        match pause {
            Ok(pause) if Instant::now() + pause < until => {
                tracing::debug!(%error, pause_ms = pause.as_millis(), "retrying");
                sleep(pause).await;
            }
            _ => return Err(finish(attempts.give_up(Some(&route), error).after_deadline(deadline), outcome_unknown)),
        }
    }
}

/// The error of an attempt that was abandoned without an answer.
fn silent(route: &Route, why: &str) -> ClientError {
    ClientError::new(ErrorKind::Transport { sent: !route.used.is_unsent() }, "CONNECTION_LOST", why)
}

/// Sleeps until this time; for ever when there is none.
async fn sleep_until_some(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

fn finish(error: ClientError, outcome_unknown: bool) -> ClientError {
    if outcome_unknown && error.kind != ErrorKind::Fatal { error.into_unknown() } else { error }
}
