//! The audit trail: log lines with target `chronicle::audit` for denied requests and administrative changes.
//!
//! Invariant: a flood of denied requests cannot fill a disk. For each principal at most [`LINES_MAX`] denials are logged per
//! [`WINDOW`], then only the number of suppressed ones. The caller counts every denial in a metric, logged or not.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::model::ApiError;
use crate::security::Caller;
use crate::security::acl::{Action, ResourceKind};

/// Maximum number of logged denials of one principal in one window.
const LINES_MAX: u64 = 10;
/// Length of a window.
const WINDOW: Duration = Duration::from_secs(10);
/// Maximum number of principals with a window of their own; the others share one.
const PRINCIPALS_MAX: usize = 1024;
/// Key of the shared window: no principal has control characters.
const OTHERS: &str = "\0others";
/// Maximum length of a resource name in a line, in characters: the name comes from the client and is not validated yet.
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
    /// Logs that a caller was denied an action.
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

    /// Counts a denial of this principal in its window; returns whether it is logged.
    fn is_written(&self, principal: &str, now: Instant) -> bool {
        let mut windows = self.windows.lock();
        let known = windows.contains_key(principal);
        let key = if known || windows.len() < PRINCIPALS_MAX { principal } else { OTHERS };
        if !windows.contains_key(key) {
            windows.insert(key.to_owned(), Window { began: now, refusals: 0 });
        }
        let window = windows.get_mut(key).expect("inserted above");
        if window.is_over(now) {
            report(key, window);
            *window = Window { began: now, refusals: 0 };
        }
        window.refusals += 1;
        window.refusals <= LINES_MAX
    }

    /// Logs how many denials were suppressed in windows that are over, and removes these windows. To be called periodically.
    pub(super) fn flush(&self, now: Instant) {
        self.windows.lock().retain(|principal, window| {
            let over = window.is_over(now);
            if over {
                report(principal, window);
            }
            !over
        });
    }

    /// Logs an administrative change and its outcome. `details`: the requested values.
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
    fn windows_are_deleted_when_they_are_over_and_bounded_before() {
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
