//! Metrics of the broker and of the log engine, read from their counters at each scrape.

use chronicle_log::{FLUSH_BUCKETS_US, StoreMetrics};

use super::{Metrics, Samples};
use crate::broker::Broker;
use crate::security::Action;

/// Adds the broker's and its data directory's metrics to every scrape.
pub fn collect_node(metrics: &Metrics, broker: &Broker) {
    let broker = broker.clone();
    metrics.register_collector(move |samples| {
        let counts = broker.partition_counts();
        samples.gauge("topics", "Topics of the cluster", counts.topics as f64);
        samples.gauge("partitions", "Partitions of all topics", counts.partitions as f64);
        samples.gauge("partitions_active", "Partitions that are open on this node", counts.active as f64);
        samples.gauge("partitions_failed", "Partitions that failed and wait to be tried again", counts.failed as f64);
        if let Ok(free) = broker.store().free_bytes() {
            samples.gauge("disk_free_bytes", "Free bytes of the data volume", free as f64);
        }
        if let Some(tls) = broker.tls() {
            tls.collect(samples);
        }
        let authorizer = broker.authorizer();
        for (action, count) in authorizer.denied().filter(|(action, _)| *action != Action::All) {
            let labels = [("operation", action.as_str().to_owned())];
            samples.counter_of("authorization_denied", "Requests that the principal had no right to", &labels, count);
        }
        for (resource, delayed, refused) in authorizer.throttled() {
            for (outcome, count) in [("delayed", delayed), ("refused", refused)] {
                let labels = [("quota", resource.as_str().to_owned()), ("outcome", outcome.to_owned())];
                samples.counter_of("quota_throttled", "Requests over a quota of their principal", &labels, count);
            }
        }
        engine(samples, broker.store().metrics());
    });
}

fn engine(samples: &mut Samples, metrics: &StoreMetrics) {
    let gauges = [
        ("log_pending_bytes", "Bytes appended and not flushed yet", &metrics.pending_bytes),
        ("log_cache_bytes", "Bytes of recent entries held in memory", &metrics.cache_bytes),
    ];
    for (name, help, counter) in gauges {
        samples.gauge(name, help, counter.get() as f64);
    }
    let counters = [
        ("log_appended_bytes", "Payload bytes appended", &metrics.appended_bytes),
        ("log_appended_entries", "Raft entries appended", &metrics.appended_entries),
        ("log_flush_rounds", "Rounds of the flush scheduler that wrote something", &metrics.flush_rounds),
        ("log_flushes", "Calls of fdatasync or syncfs for segments", &metrics.flushes),
        ("log_journal_flushes", "Flushes of the journal", &metrics.journal_flushes),
        ("log_cache_hits", "Entries read from memory", &metrics.cache_hits),
        ("log_cache_misses", "Entries read from disk", &metrics.cache_misses),
        ("log_sealed_segments", "Segments sealed", &metrics.sealed_segments),
        ("log_recoveries", "Logs that were scanned when opened", &metrics.recoveries),
        ("log_truncated_tail_bytes", "Bytes of torn tail that recovery cut", &metrics.truncated_tail_bytes),
        ("log_damage_found", "Times that damaged bytes were found", &metrics.damage_found),
        ("log_failed", "Logs stopped by a failed write or flush", &metrics.failed_logs),
    ];
    for (name, help, counter) in counters {
        samples.counter(name, help, counter.get());
    }
    let bounds: Vec<f64> = FLUSH_BUCKETS_US.iter().map(|us| *us as f64 / 1e6).collect();
    let counts: Vec<u64> = metrics.flush_us.iter().map(|bucket| bucket.get()).collect();
    let sum = metrics.flush_us_sum.get() as f64 / 1e6;
    samples.histogram("log_flush_seconds", "Duration of flush barriers", &bounds, &counts, sum);
}
