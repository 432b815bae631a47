//! What broker and engine count, by the names that operators see.

use chronicle_log::{FLUSH_BUCKETS_US, StoreMetrics};

use super::metrics::{Metrics, Samples};
use crate::broker::{Broker, Readiness};

/// Adds the values of a node's broker and data directory to its metrics. They are read at every scrape.
pub fn register_node(metrics: &Metrics, broker: &Broker) {
    let broker = broker.clone();
    metrics.register_collector(move |samples| {
        let ready = broker.readiness() == Readiness::Ready;
        samples.gauge("ready", "1 while the node can serve", f64::from(u8::from(ready)));
        let counts = broker.partition_counts();
        samples.gauge("topics", "Topics of the cluster", counts.topics as f64);
        samples.gauge("partitions", "Partitions of all topics", counts.partitions as f64);
        samples.gauge("partitions_active", "Partitions that are open on this node", counts.active as f64);
        samples.gauge("partitions_failed", "Partitions that failed and wait to be tried again", counts.failed as f64);
        if let Ok(free) = broker.store().free_bytes() {
            samples.gauge("storage_free_bytes", "Free bytes of the data volume", free as f64);
        }
        store(broker.store().metrics(), samples);
    });
}

fn store(store: &StoreMetrics, samples: &mut Samples) {
    for (name, help, counter) in [
        ("storage_appended_bytes", "Payload bytes accepted by the engine", &store.appended_bytes),
        ("storage_appended_entries", "Entries accepted by the engine", &store.appended_entries),
        ("storage_overloaded", "Appends refused because too many bytes wait for the disk", &store.overloaded),
        ("storage_flush_rounds", "Rounds of the flush scheduler that wrote something", &store.flush_rounds),
        ("storage_flushes", "Calls of fdatasync or syncfs for segments", &store.flushes),
        ("storage_journal_flushes", "Flushes of the journal", &store.journal_flushes),
        ("storage_cache_hits", "Entries read from memory", &store.cache_hits),
        ("storage_cache_misses", "Entries read from disk", &store.cache_misses),
        ("storage_sealed_segments", "Segments sealed", &store.sealed_segments),
        ("storage_recoveries", "Logs that had to be scanned when opened", &store.recoveries),
        ("storage_truncated_tail_bytes", "Bytes of torn, unacknowledged tails cut off", &store.truncated_tail_bytes),
        ("storage_damage_found", "Times that damaged bytes were found", &store.damage_found),
        ("storage_failed_logs", "Logs stopped by a failed write or flush", &store.failed_logs),
    ] {
        samples.counter(name, help, counter.get());
    }
    samples.gauge("storage_pending_bytes", "Bytes accepted and not flushed yet", store.pending_bytes.get() as f64);
    samples.gauge("storage_cache_bytes", "Bytes of entries held in memory", store.cache_bytes.get() as f64);
    let bounds = FLUSH_BUCKETS_US.iter().map(|us| *us as f64 / 1e6).chain([f64::INFINITY]);
    let buckets: Vec<_> = bounds.zip(store.flush_us.iter().map(|count| count.get())).collect();
    let sum = store.flush_us_sum.get() as f64 / 1e6;
    samples.histogram("storage_flush_duration_seconds", "Time that one flush of a round takes", sum, buckets);
}
