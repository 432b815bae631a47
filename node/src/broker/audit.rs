//! The audit trail: lines of target `chronicle::audit` for every refusal and every administrative change.
//!
//! Invariant: whoever is refused in a flood cannot fill a disk: of one principal at most [`LINES_MAX`] refusals are written in
//! [`WINDOW`], then their number. Every refusal is counted, written or not.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::model::ApiError;
use crate::security::Caller;
use crate::security::acl::{Action, ResourceKind};

/// Refusals of one principal that are written in one window.
const LINES_MAX: u64 = 10;
/// How long a window is.
const WINDOW: Duration = Duration::from_secs(10);
/// Principals that have a window of their own at a time; the others share one.
const PRINCIPALS_MAX: usize = 1024;
/// The name that the shared window goes by: no principal has control characters.
const OTHERS: &str = "\0others";
/// Longest name of a resource in a line, in characters: it comes from the client, and was not checked yet.
const NAME_CHARS: usize = 249;

#[derive(Debug, Clone, Copy)]
struct Window {
    began: Instant,
    refusals: u64,
}

impl Window {
    fn suppressed(&self) -> u64 {
        self.refusals.saturating_sub(LINES_MAX)
    }

    fn is_over(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.began) >= WINDOW
    }
}

/// The audit trail of a node.
#[derive(Default)]
pub(super) struct Audit {
    windows: Mutex<HashMap<String, Window>>,
}

impl Audit {
    /// Notes that somebody was refused.
    pub(super) fn denied(&self, caller: &Caller, action: Action, kind: ResourceKind, name: &str, now: Instant) {
        if self.is_written(caller.name(), now) {
            tracing::warn!(
                target: "chronicle::audit",
                event = "denied",
                principal = caller.name(),
                address = %caller.address,
                operation = action.as_str(),
                resource = kind.as_str(),
                name = ?shortened(name),
            );
        }
    }

    /// Whether a refusal of this principal still gets a line of its own.
    fn is_written(&self, principal: &str, now: Instant) -> bool {
        let mut windows = self.windows.lock();
        let known = windows.contains_key(principal);
        let key = if known || windows.len() < PRINCIPALS_MAX { principal } else { OTHERS };
        if !windows.contains_key(key) {
            windows.insert(key.to_owned(), Window { began: now, refusals: 0 });
        }
        let window = windows.get_mut(key).expect("it was put there above");
        if window.is_over(now) {
            report(key, window);
            *window = Window { began: now, refusals: 0 };
        }
        window.refusals += 1;
        window.refusals <= LINES_MAX
    }

    /// Writes how many refusals were left out in windows that are over, and forgets these. To be called now and then.
    pub(super) fn flush(&self, now: Instant) {
        self.windows.lock().retain(|principal, window| {
            let over = window.is_over(now);
            if over {
                report(principal, window);
            }
            !over
        });
    }

    /// Notes a change that somebody asked for, and how it ended. `details`: what it was to become.
    pub(super) fn changed<T>(
        &self,
        caller: &Caller,
        change: &'static str,
        name: &str,
        details: &str,
        outcome: &Result<T, ApiError>,
    ) {
        let outcome = outcome.as_ref().err().map_or("OK", |error| error.reason.as_str());
        tracing::info!(
            target: "chronicle::audit",
            event = change,
            principal = caller.name(),
            address = %caller.address,
            name = ?shortened(name),
            details,
            outcome,
        );
    }
}

fn report(principal: &str, window: &Window) {
    let suppressed = window.suppressed();
    if suppressed > 0 {
        let principal = if principal == OTHERS { "(others)" } else { principal };
        tracing::warn!(target: "chronicle::audit", event = "denied", principal, suppressed);
    }
}

fn shortened(name: &str) -> String {
    name.chars().take(NAME_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_one_principal_is_cut_and_others_are_not() {
        let (audit, now) = (Audit::default(), Instant::now());
        let written = |principal: &str, now| (0..100).filter(|_| audit.is_written(principal, now)).count();
        assert_eq!(written("ann", now), LINES_MAX as usize);
        assert_eq!(written("bob", now), LINES_MAX as usize);
        assert_eq!(written("ann", now + WINDOW), LINES_MAX as usize);
    }

    #[test]
    fn windows_are_forgotten_when_they_are_over_and_bounded_before() {
        let (audit, now) = (Audit::default(), Instant::now());
        for number in 0..2 * PRINCIPALS_MAX {
            audit.is_written(&format!("p-{number}"), now);
        }
        assert_eq!(audit.windows.lock().len(), PRINCIPALS_MAX + 1);
        assert_eq!(audit.windows.lock()[OTHERS].suppressed(), PRINCIPALS_MAX as u64 - LINES_MAX);
        audit.flush(now);
        assert_eq!(audit.windows.lock().len(), PRINCIPALS_MAX + 1);
        audit.flush(now + WINDOW);
        assert!(audit.windows.lock().is_empty());
    }
}
