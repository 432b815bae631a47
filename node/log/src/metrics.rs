//! Counters of a store: plain atomics. Every part of the store adds to them; the node exports them. Imports nothing of the crate.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

/// Upper bounds of the flush latency buckets, inclusive, in µs; one more bucket takes the rest.
pub const FLUSH_BUCKETS_US: [u64; 16] =
    [50, 100, 200, 300, 500, 750, 1_000, 2_000, 3_000, 5_000, 10_000, 20_000, 50_000, 100_000, 500_000, 2_000_000];

/// A number that others may read at any time.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// The current value.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }

    pub(crate) fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }

    pub(crate) fn sub(&self, n: u64) {
        self.0.fetch_sub(n, Relaxed);
    }

    /// Adds `n` unless the sum would exceed `limit`; a lone `n` above the limit is let through. Returns the old value on refusal.
    pub(crate) fn add_within(&self, n: u64, limit: u64) -> Result<(), u64> {
        self.0
            .try_update(Relaxed, Relaxed, |now| {
                (now == 0 || now.saturating_add(n) <= limit).then(|| now.saturating_add(n))
            })
            .map(|_| ())
    }
}

/// What the engine counts since it was opened. Gauges are named as such.
#[derive(Debug, Default)]
pub struct StoreMetrics {
    /// Payload bytes accepted by `append`.
    pub appended_bytes: Counter,
    /// Entries accepted by `append`.
    pub appended_entries: Counter,
    /// Appends refused because too much was pending.
    pub overloaded: Counter,
    /// Rounds of the flush scheduler that wrote something.
    pub flush_rounds: Counter,
    /// Calls of `fdatasync` or `syncfs` for segment data.
    pub flushes: Counter,
    /// Flushes of the journal.
    pub journal_flushes: Counter,
    /// Duration of barriers, by bucket of [`FLUSH_BUCKETS_US`].
    pub flush_us: [Counter; FLUSH_BUCKETS_US.len() + 1],
    /// Sum of barrier durations, in µs.
    pub flush_us_sum: Counter,
    /// Gauge: bytes appended and not yet flushed.
    pub pending_bytes: Counter,
    /// Gauge: bytes of entries held in memory.
    pub cache_bytes: Counter,
    /// Entries read from memory.
    pub cache_hits: Counter,
    /// Entries read from disk.
    pub cache_misses: Counter,
    /// Segments sealed.
    pub sealed_segments: Counter,
    /// Logs that had to be scanned when opened.
    pub recoveries: Counter,
    /// Bytes of torn, unacknowledged tail cut off by recovery.
    pub truncated_tail_bytes: Counter,
    /// Times that damaged bytes were found, by any reader.
    pub damage_found: Counter,
    /// Times that damage was cut out of a log into a quarantine folder.
    pub quarantines: Counter,
    /// Logs stopped by a failed write or flush.
    pub failed_logs: Counter,
    /// When the round that is on the disk began, in µs of the store's clock, plus one; 0: none is.
    round_began_us: AtomicU64,
}

impl StoreMetrics {
    /// A round of writes and flushes begins at `now`.
    pub(crate) fn round_begins(&self, now: Duration) {
        self.round_began_us.store(micros(now).saturating_add(1), Relaxed);
    }

    /// The round has ended.
    pub(crate) fn round_ended(&self) {
        self.round_began_us.store(0, Relaxed);
    }

    /// For how long the round that is on the disk has been there; zero: none is.
    pub(crate) fn round_age(&self, now: Duration) -> Duration {
        match self.round_began_us.load(Relaxed) {
            0 => Duration::ZERO,
            began => Duration::from_micros(micros(now).saturating_sub(began - 1)),
        }
    }

    pub(crate) fn record_flush(&self, took: Duration) {
        let us = micros(took);
        let bucket = FLUSH_BUCKETS_US.partition_point(|&bound| bound < us);
        self.flush_us[bucket].add(1);
        self.flush_us_sum.add(us);
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
