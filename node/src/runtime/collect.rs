//! Metrics of the broker and of the log engine, read from their counters at each scrape.

use std::sync::atomic::Ordering;

use chronicle_log::{FLUSH_BUCKETS_US, StoreMetrics};

use super::Node;
use crate::broker::{Broker, TopicTraffic};
use crate::security::{Action, Tls};
use crate::telemetry::{Metrics, Samples};

/// Adds the broker's and its data directory's metrics to every scrape.
pub fn collect_node(metrics: &Metrics, node: &Node) {
    metrics.register_raft(node.broker().raft_metrics());
    let (broker, tls) = (node.broker().clone(), node.tls());
    metrics.register_collector(move |samples| {
        cluster(samples, &broker);
        partitions(samples, &broker);
        topics(samples, &broker);
        disk(samples, &broker);
        security(samples, &broker, tls.as_deref());
        configuration(samples, &broker);
        engine(samples, broker.store().metrics());
    });
}

/// The cluster and its controller group, as this node sees them.
fn cluster(samples: &mut Samples, broker: &Broker) {
    let view = broker.controller_view();
    let bit = |is: bool| f64::from(u8::from(is));
    let gauges = [
        ("controller_has_leader", "1 when this node knows a live leader of the controller group", bit(view.has_leader)),
        ("controller_leads", "1 when this node leads the controller group", bit(view.leads)),
        ("controller_failed", "1 when the controller group has failed on this node", bit(view.failed)),
        ("controller_term", "Raft term of the controller group", view.term as f64),
        ("nodes", "Members of the cluster", view.nodes as f64),
        ("nodes_alive", "Members from which this node receives heartbeats, itself included", view.nodes_alive as f64),
    ];
    for (name, help, value) in gauges {
        samples.gauge(name, help, value);
    }
    if let Some(ahead_ms) = broker.cluster().clock_ahead_ms() {
        let help = "Wall clock of the node minus the agreed time, the median of the clocks of the live nodes";
        samples.gauge("clock_offset_seconds", help, ahead_ms as f64 / 1000.0);
    }
}

fn partitions(samples: &mut Samples, broker: &Broker) {
    let totals = broker.partition_totals();
    let gauges = [
        ("topics", "Topics of the cluster", totals.topics),
        ("partitions", "Partitions of all topics", totals.partitions),
        ("partitions_active", "Partitions that are open on this node", totals.open()),
        ("partitions_failed", "Partitions that failed and will be retried", totals.failed),
        (
            "partitions_under_replicated",
            "Partitions of the cluster with a replica on a node that is not alive, or that is not in service there",
            totals.under_replicated,
        ),
        ("partitions_offline", "Partitions of the cluster without a majority of replicas in service", totals.offline),
        ("partitions_moving", "Partitions of the cluster that are not at their target placement", totals.moving),
        ("partitions_filling", "Replicas on this node that are copying entries from another replica", totals.filling),
        ("partitions_damaged", "Replicas on this node that lost data and are being repaired", totals.damaged),
        (
            "partitions_in_doubt",
            "Open replicas on this node whose log was cut at its end, and that wait to learn whether entries are missing",
            totals.in_doubt,
        ),
        (
            "raft_quorum_silent",
            "Open partitions that this node leads without responses from a majority of replicas",
            totals.quorum_silent,
        ),
        ("log_segments", "Segment files of open partitions", totals.segments as usize),
    ];
    for (name, help, value) in gauges {
        samples.gauge(name, help, value as f64);
    }
    let roles = [("leader", totals.leading), ("follower", totals.following), ("leaderless", totals.leaderless)];
    for (role, count) in roles {
        let help =
            "Open partitions on this node by this node's role; leaderless: an election is in progress or cannot be won";
        samples.gauge_of("raft_groups", help, &[("role", role.to_owned())], count as f64);
    }
    samples.gauge("raft_term_max", "Highest raft term of an open partition", totals.term_max as f64);
    samples.gauge("log_bytes", "Bytes of segment files of open partitions", totals.log_bytes as f64);
    let help = "Sum of the raft entries that followers of partitions led by this node lack";
    samples.gauge("replica_lag_entries", help, totals.replica_lag_entries as f64);
    let help = "Largest number of raft entries that one follower of a partition led by this node lacks";
    samples.gauge("replica_lag_entries_max", help, totals.replica_lag_entries_max as f64);
    let help = "Longest time that a follower of a partition led by this node has been behind";
    samples.gauge("replica_lag_seconds", help, totals.replica_lag_max.as_secs_f64());
}

fn topics(samples: &mut Samples, broker: &Broker) {
    type Field = fn(&TopicTraffic) -> u64;
    let counters: [(&'static str, &'static str, Field); 4] = [
        ("topic_appended_records", "Records acknowledged, by topic", |t| t.appended_records.load(Ordering::Relaxed)),
        ("topic_appended_bytes", "Bytes of batches acknowledged, by topic", |t| {
            t.appended_bytes.load(Ordering::Relaxed)
        }),
        ("topic_read_records", "Records read by clients, by topic", |t| t.read_records.load(Ordering::Relaxed)),
        ("topic_read_bytes", "Bytes of batches read by clients, by topic", |t| t.read_bytes.load(Ordering::Relaxed)),
    ];
    for (topic, traffic) in broker.topic_traffic() {
        for (name, help, value) in counters {
            samples.counter_of(name, help, &[("topic", topic.clone())], value(&traffic));
        }
    }
}

fn disk(samples: &mut Samples, broker: &Broker) {
    if let Ok(free) = broker.store().free_bytes() {
        samples.gauge("disk_free_bytes", "Free bytes of the data volume", free as f64);
    }
    if let Ok(size) = broker.store().volume_bytes() {
        samples.gauge("disk_size_bytes", "Size of the data volume in bytes", size as f64);
    }
    let help = "Limit of log_pending_bytes (storage.pending-bytes-max)";
    samples.gauge("log_pending_bytes_limit", help, broker.config().storage.pending_bytes_max as f64);
    let help = "Free bytes below which appends are rejected (storage.reserve-bytes)";
    samples.gauge("disk_reserve_bytes", help, broker.reserve_bytes() as f64);
    let full = f64::from(u8::from(broker.disk_is_full()));
    let stalled = f64::from(u8::from(broker.disk_stalled_for().is_some()));
    samples.gauge("disk_stalled", "1 while a write or flush has not returned for storage.stall-ms", stalled);
    samples.gauge("disk_full", "1 while appends are rejected because free space is below the reserve", full);
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
        ("log_flush_rounds", "Rounds of the flush scheduler that wrote data", &metrics.flush_rounds),
        ("log_flushes", "Calls of fdatasync or syncfs for segments", &metrics.flushes),
        ("log_journal_flushes", "Flushes of the journal", &metrics.journal_flushes),
        ("log_cache_hits", "Entries read from memory", &metrics.cache_hits),
        ("log_cache_misses", "Entries read from disk", &metrics.cache_misses),
        ("log_sealed_segments", "Segments sealed", &metrics.sealed_segments),
        ("log_recoveries", "Logs that were scanned when opened", &metrics.recoveries),
        ("log_truncated_tail_bytes", "Bytes of torn tail that recovery cut", &metrics.truncated_tail_bytes),
        ("log_damage_found", "Detections of damaged bytes", &metrics.damage_found),
        ("log_quarantines", "Damaged parts that were cut out of a log and moved to quarantine", &metrics.quarantines),
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

/// Adds certificates, authorization denials and throttled requests.
fn security(samples: &mut Samples, broker: &Broker, tls: Option<&Tls>) {
    if let Some(tls) = tls {
        tls.collect(samples);
    }
    let authorizer = broker.authorizer();
    for (action, count) in authorizer.denied().filter(|(action, _)| *action != Action::All) {
        let labels = [("operation", action.as_str().to_owned())];
        samples.counter_of(
            "authorization_denied",
            "Requests denied because the principal lacks the permission",
            &labels,
            count,
        );
    }
    for (resource, delayed, refused) in authorizer.throttled() {
        for (outcome, count) in [("delayed", delayed), ("refused", refused)] {
            let labels = [("quota", resource.as_str().to_owned()), ("outcome", outcome.to_owned())];
            samples.counter_of("quota_throttled", "Requests that exceeded a quota of their principal", &labels, count);
        }
    }
}

/// Adds the state of the configuration file.
fn configuration(samples: &mut Samples, broker: &Broker) {
    let report = broker.live().report();
    let waiting = "Fields of the configuration file whose new value takes effect after a restart";
    samples.gauge("config_restart_fields", waiting, report.restart_fields.len() as f64);
    let refused = "1 while the configuration file is rejected and the previous settings stay in effect";
    samples.gauge("config_refused", refused, f64::from(u8::from(!report.error.is_empty())));
    samples.counter("config_reloads", "Changed configuration files that were applied", report.taken);
    samples.counter("config_reload_failures", "Changed configuration files that were rejected", report.refused);
}
