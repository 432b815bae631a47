//! Quotas: rate limits of one principal on this node.
//!
//! A token bucket per principal and resource fills at the quota's rate, up to the amount of one second. A request takes
//! from it and may overdraw it once. A request that arrives while the bucket is overdrawn waits until it is not, as
//! Kafka throttles, and is rejected when the wait would be longer than [`DELAY_MAX`]. So a request larger than the
//! amount of one second is possible, the rate holds on average, and waiting requests are bounded: for each principal,
//! by the bytes of one delay.
//!
//! Invariants:
//! - A rejected request takes nothing.
//! - A principal without a quota uses no memory. Full buckets carry no information and are removed when others are
//!   added.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

/// Longest delay of a request; beyond it the request is rejected.
pub(crate) const DELAY_MAX: Duration = Duration::from_secs(1);
/// Number of buckets from which full ones are removed.
const SWEEP_AT: usize = 1024;

/// The rate limits of one principal on each node, per second. 0: unlimited.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quota {
    /// Bytes of records appended.
    #[serde(default)]
    pub bytes_in: u64,
    /// Bytes of records read.
    #[serde(default)]
    pub bytes_out: u64,
    /// Requests of any kind; each request of a stream counts.
    #[serde(default)]
    pub requests: u64,
}

impl Quota {
    /// Whether no rate is limited.
    pub fn is_unlimited(&self) -> bool {
        *self == Self::default()
    }

    fn rate(&self, resource: Metered) -> u64 {
        match resource {
            Metered::BytesIn => self.bytes_in,
            Metered::BytesOut => self.bytes_out,
            Metered::Requests => self.requests,
        }
    }
}

/// A resource that a quota limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Metered {
    /// Bytes appended.
    BytesIn,
    /// Bytes read.
    BytesOut,
    /// Requests.
    Requests,
}

impl Metered {
    /// Every kind.
    pub const ALL: [Metered; 3] = [Metered::BytesIn, Metered::BytesOut, Metered::Requests];

    /// The label value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::BytesIn => "bytes_in",
            Self::BytesOut => "bytes_out",
            Self::Requests => "requests",
        }
    }
}

/// A rejection: over quota, and the wait would be too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OverQuota {
    /// The resource that is over quota.
    pub resource: Metered,
    /// The quota's rate, per second.
    pub rate: u64,
    /// Time after which the same request would be delayed and not rejected.
    pub retry_after: Duration,
}

/// Token bucket of one resource. Negative: overdrawn.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    left: f64,
    at: Instant,
}

impl Bucket {
    /// Adds the tokens since the last call.
    fn fill(&mut self, rate: u64, now: Instant) {
        let since = now.saturating_duration_since(self.at).as_secs_f64();
        self.left = (self.left + since * rate as f64).min(rate as f64);
        self.at = now;
    }

    /// Returns the time until it is not overdrawn.
    fn wait(&self, rate: u64) -> Duration {
        match self.left < 0.0 {
            true => Duration::from_secs_f64(-self.left / rate as f64),
            false => Duration::ZERO,
        }
    }
}

type Buckets = [Bucket; Metered::ALL.len()];

#[derive(Default)]
struct BucketTable {
    buckets: HashMap<String, (Quota, Buckets)>,
    sweep_at: usize,
}

/// The buckets of every principal that has a quota and sent requests lately.
#[derive(Default)]
pub(crate) struct Quotas {
    inner: Mutex<BucketTable>,
}

impl Quotas {
    /// Takes the amounts of one request from the buckets, and returns how long the request must wait first.
    ///
    /// # Errors
    /// When the wait would be longer than [`DELAY_MAX`]; nothing is taken then.
    pub(crate) fn take(
        &self,
        principal: &str,
        quota: Quota,
        amounts: &[(Metered, u64)],
        now: Instant,
    ) -> Result<Duration, OverQuota> {
        if quota.is_unlimited() {
            return Ok(Duration::ZERO);
        }
        let mut inner = self.inner.lock();
        let buckets = inner.of(principal, quota, now);
        let mut longest = Duration::ZERO;
        for &(resource, _) in amounts {
            let rate = quota.rate(resource);
            if rate == 0 {
                continue;
            }
            let bucket = &mut buckets[resource as usize];
            bucket.fill(rate, now);
            let wait = bucket.wait(rate);
            if wait > DELAY_MAX {
                return Err(OverQuota { resource, rate, retry_after: wait - DELAY_MAX });
            }
            longest = longest.max(wait);
        }
        for &(resource, amount) in amounts {
            if quota.rate(resource) > 0 {
                buckets[resource as usize].left -= amount as f64;
            }
        }
        Ok(longest)
    }

    /// Takes an amount that was used already, however overdrawn the bucket is.
    pub(crate) fn charge(&self, principal: &str, quota: Quota, resource: Metered, amount: u64, now: Instant) {
        let rate = quota.rate(resource);
        if rate == 0 {
            return;
        }
        let mut inner = self.inner.lock();
        let bucket = &mut inner.of(principal, quota, now)[resource as usize];
        bucket.fill(rate, now);
        bucket.left -= amount as f64;
    }
}

impl BucketTable {
    fn of(&mut self, principal: &str, quota: Quota, now: Instant) -> &mut Buckets {
        if !self.buckets.contains_key(principal) {
            if self.buckets.len() >= self.sweep_at.max(SWEEP_AT) {
                self.sweep(now);
            }
            self.buckets.insert(principal.to_owned(), (quota, full(quota, now)));
        }
        let (set, buckets) = self.buckets.get_mut(principal).expect("inserted above");
        if *set != quota {
            // A changed quota starts with full buckets: a debt at the old rate has no meaning at the new one.
            (*set, *buckets) = (quota, full(quota, now));
        }
        buckets
    }

    /// Removes the principals whose buckets are full.
    fn sweep(&mut self, now: Instant) {
        self.buckets.retain(|_, (quota, buckets)| {
            Metered::ALL.iter().any(|resource| {
                let rate = quota.rate(*resource);
                let bucket = &mut buckets[*resource as usize];
                rate > 0 && {
                    bucket.fill(rate, now);
                    bucket.left < rate as f64
                }
            })
        });
        self.sweep_at = 2 * self.buckets.len();
    }
}

fn full(quota: Quota, now: Instant) -> Buckets {
    Metered::ALL.map(|resource| Bucket { left: quota.rate(resource) as f64, at: now })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn bytes(rate: u64) -> Quota {
        Quota { bytes_in: rate, ..Quota::default() }
    }

    #[test]
    fn a_principal_over_the_rate_waits_or_is_refused_without_a_charge() {
        let (quotas, now) = (Quotas::default(), Instant::now());
        let take = |amount, now| quotas.take("ann", bytes(100), &[(Metered::BytesIn, amount)], now);
        assert_eq!(take(150, now), Ok(Duration::ZERO), "a full bucket may be overdrawn");
        assert_eq!(take(50, now), Ok(SECOND / 2));
        assert_eq!(take(100, now), Ok(SECOND));
        let refused = OverQuota { resource: Metered::BytesIn, rate: 100, retry_after: SECOND };
        assert_eq!(take(1, now), Err(refused));
        assert_eq!(take(1, now), Err(refused), "a rejected request takes nothing");
        assert_eq!(take(1, now + SECOND), Ok(SECOND));
        assert_eq!(take(1, now + 100 * SECOND), Ok(Duration::ZERO));
    }

    #[test]
    fn the_rate_holds_over_time() {
        let quotas = Quotas::default();
        let begin = Instant::now();
        let (mut now, mut taken) = (begin, 0);
        while now < begin + 100 * SECOND {
            match quotas.take("ann", bytes(1000), &[(Metered::BytesIn, 700)], now) {
                Ok(wait) => {
                    taken += 700;
                    now += wait;
                }
                Err(over) => now += over.retry_after,
            }
        }
        assert!((100_000..=102_700).contains(&taken), "{taken}");
    }

    #[test]
    fn principals_and_resources_do_not_share() {
        let (quotas, now) = (Quotas::default(), Instant::now());
        let quota = Quota { bytes_in: 10, bytes_out: 0, requests: 5 };
        for _ in 0..6 {
            let _ = quotas.take("ann", quota, &[(Metered::Requests, 1), (Metered::BytesOut, 1 << 30)], now);
        }
        assert!(quotas.take("ann", quota, &[(Metered::Requests, 1)], now).unwrap() > Duration::ZERO);
        assert_eq!(quotas.take("ann", quota, &[(Metered::BytesIn, 1)], now), Ok(Duration::ZERO));
        assert_eq!(quotas.take("bob", quota, &[(Metered::Requests, 1)], now), Ok(Duration::ZERO));
    }

    #[test]
    fn a_changed_quota_counts_at_once() {
        let (quotas, now) = (Quotas::default(), Instant::now());
        let take = |rate, amount| quotas.take("ann", bytes(rate), &[(Metered::BytesIn, amount)], now);
        assert_eq!(take(1, 1000), Ok(Duration::ZERO));
        assert!(take(1, 1).is_err());
        assert_eq!(take(1000, 1), Ok(Duration::ZERO));
        assert_eq!(take(0, 1 << 40), Ok(Duration::ZERO));
    }

    #[test]
    fn idle_principals_are_evicted() {
        let (quotas, now) = (Quotas::default(), Instant::now());
        let take = |name: String, now| quotas.take(&name, bytes(10), &[(Metered::BytesIn, 5)], now).unwrap();
        for number in 0..SWEEP_AT {
            take(format!("early-{number}"), now);
        }
        assert_eq!(quotas.inner.lock().buckets.len(), SWEEP_AT);
        take("late".into(), now + SECOND);
        assert_eq!(quotas.inner.lock().buckets.len(), 1);
    }
}
