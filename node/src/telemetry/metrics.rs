//! Every metric of the node, under one registry and one prefix, `chronicle_`.
//!
//! Invariants:
//! - Label sets are bounded by enums (listener, operation, outcome): no topic, client or address becomes a label here.
//! - The common case (an operation that succeeds) touches only handles resolved at start, no label lookup.
//!
//! Modules that keep their own atomics (broker, engine) hook in through [`Metrics::register_collector`]: their function
//! is asked at scrape time and costs nothing in between.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::RwLock;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use crate::broker::Reason;

/// Upper bounds of the latency buckets, in seconds: fine where a flush to disk falls, coarse where long polls do.
const LATENCY_SECONDS: [f64; 17] =
    [0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 15.0, 60.0];

/// The protocol that a request came by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listener {
    /// gRPC.
    Grpc,
    /// HTTP/JSON.
    Http,
}

impl Listener {
    const ALL: [Listener; 2] = [Listener::Grpc, Listener::Http];

    fn as_str(self) -> &'static str {
        match self {
            Listener::Grpc => "grpc",
            Listener::Http => "http",
        }
    }
}

macro_rules! operations {
    ($($(#[$doc:meta])* $name:ident = $text:literal;)*) => {
        /// What a request asks for.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Operation { $($(#[$doc])* $name,)* }

        impl Operation {
            /// Every operation.
            pub const ALL: &[Operation] = &[$(Operation::$name,)*];

            /// The label value.
            pub fn as_str(self) -> &'static str {
                match self { $(Operation::$name => $text,)* }
            }
        }
    };
}

operations! {
    /// An append, waited for.
    Produce = "produce";
    /// One append of a stream.
    ProduceStream = "produce_stream";
    /// A read.
    Consume = "consume";
    /// One answer of a stream that follows the log.
    ConsumeStream = "consume_stream";
    /// Offsets, also by time.
    Offsets = "offsets";
    /// A producer id.
    InitProducer = "init_producer";
    /// A new topic.
    CreateTopic = "create_topic";
    /// All topics.
    ListTopics = "list_topics";
    /// One topic.
    DescribeTopic = "describe_topic";
    /// Settings or partitions of a topic.
    AlterTopic = "alter_topic";
    /// The end of a topic.
    DeleteTopic = "delete_topic";
    /// The nodes.
    Servers = "servers";
    /// A member of a consumer group joins or says that it is there.
    GroupHeartbeat = "group_heartbeat";
    /// A member leaves.
    GroupLeave = "group_leave";
    /// Offsets of a group are remembered.
    GroupCommit = "group_commit";
    /// Remembered offsets.
    GroupOffsets = "group_offsets";
    /// Groups are listed, described, reset or deleted.
    GroupAdmin = "group_admin";
    /// Rules and quotas.
    Access = "access";
    /// Anything else: documents, unknown paths.
    Other = "other";
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    listener: &'static str,
    operation: &'static str,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OperationLabels {
    listener: &'static str,
    operation: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CauseLabels {
    cause: &'static str,
}

/// The handles of one operation of one listener, resolved at start.
struct Resolved {
    ok: Counter,
    latency: Histogram,
}

struct Inner {
    registry: RwLock<Registry>,
    requests: Family<RequestLabels, Counter>,
    resolved: Vec<Resolved>,
    received_bytes: Counter,
    sent_bytes: Counter,
    records_appended: Counter,
    records_read: Counter,
    connections_open: Gauge,
    connections_accepted: Counter,
    connections_refused: Family<CauseLabels, Counter>,
    slow_readers: Counter,
}

/// The node's metrics. Cheap to clone; all clones report into one registry.
#[derive(Clone)]
pub struct Metrics(Arc<Inner>);

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// A registry with the metrics of listeners and process, all at zero.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("chronicle");
        let requests = Family::<RequestLabels, Counter>::default();
        let latency = Family::<OperationLabels, Histogram, fn() -> Histogram>::new_with_constructor(|| {
            Histogram::new(LATENCY_SECONDS)
        });
        let mut resolved = Vec::new();
        for listener in Listener::ALL {
            for operation in Operation::ALL {
                let (listener, operation) = (listener.as_str(), operation.as_str());
                resolved.push(Resolved {
                    ok: requests.get_or_create_owned(&RequestLabels { listener, operation, outcome: "OK" }),
                    latency: latency.get_or_create_owned(&OperationLabels { listener, operation }),
                });
            }
        }
        let inner = Inner {
            requests: requests.clone(),
            resolved,
            received_bytes: Counter::default(),
            sent_bytes: Counter::default(),
            records_appended: Counter::default(),
            records_read: Counter::default(),
            connections_open: Gauge::default(),
            connections_accepted: Counter::default(),
            connections_refused: Family::default(),
            slow_readers: Counter::default(),
            registry: RwLock::new(Registry::default()),
        };
        registry.register("requests", "Requests by outcome: OK or a reason of docs/errors.md", requests);
        registry.register_with_unit(
            "request_duration",
            "Time from a whole request to its answer, long polls included",
            Unit::Seconds,
            latency,
        );
        registry.register_with_unit(
            "received",
            "Bytes of request bodies on the data port",
            Unit::Bytes,
            inner.received_bytes.clone(),
        );
        registry.register_with_unit(
            "sent",
            "Bytes of response bodies on the data port",
            Unit::Bytes,
            inner.sent_bytes.clone(),
        );
        registry.register("records_appended", "Records acknowledged to producers", inner.records_appended.clone());
        registry.register("records_read", "Records given to readers", inner.records_read.clone());
        registry.register("connections_open", "Open connections on the data port", inner.connections_open.clone());
        registry.register(
            "connections_accepted",
            "Connections accepted on the data port",
            inner.connections_accepted.clone(),
        );
        registry.register(
            "connections_refused",
            "Connections closed before their first request, by cause",
            inner.connections_refused.clone(),
        );
        registry.register(
            "slow_readers",
            "Answers given up because the client did not take them",
            inner.slow_readers.clone(),
        );
        registry.register(
            "build",
            "The software that runs",
            Info::new(vec![("version".to_owned(), env!("CARGO_PKG_VERSION").to_owned())]),
        );
        let started = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs_f64();
        registry.register_with_unit(
            "process_start_time",
            "When the process started, seconds since the Unix epoch",
            Unit::Seconds,
            ConstGauge::new(started),
        );
        *inner.registry.write() = registry;
        let metrics = Self(Arc::new(inner));
        metrics.register_collector(|samples| {
            if let Some(bytes) = resident_bytes() {
                samples.gauge("process_resident_bytes", "Memory of the process that is in RAM, in bytes", bytes as f64);
            }
        });
        metrics
    }

    /// Adds a function that is asked for values at every scrape. It must be quick and must not block.
    pub fn register_collector(&self, collect: impl Fn(&mut Samples) + Send + Sync + 'static) {
        self.0.registry.write().register_collector(Box::new(FnCollector(Box::new(collect))));
    }

    /// All metrics in the OpenMetrics text format.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        // Writing into a String does not fail.
        let _ = prometheus_client::encoding::text::encode(&mut text, &self.0.registry.read());
        text
    }

    /// Counts one request and its latency; `reason` is `None` for a success.
    pub fn request(&self, listener: Listener, operation: Operation, reason: Option<Reason>, took: Duration) {
        let resolved = &self.0.resolved[listener as usize * Operation::ALL.len() + operation as usize];
        match reason {
            None => _ = resolved.ok.inc(),
            Some(reason) => {
                let (listener, operation) = (listener.as_str(), operation.as_str());
                let labels = RequestLabels { listener, operation, outcome: reason.as_str() };
                self.0.requests.get_or_create(&labels).inc();
            }
        }
        resolved.latency.observe(took.as_secs_f64());
    }

    /// Counts bytes of request bodies.
    pub fn received(&self, bytes: usize) {
        self.0.received_bytes.inc_by(bytes as u64);
    }

    /// Counts bytes of response bodies.
    pub fn sent(&self, bytes: usize) {
        self.0.sent_bytes.inc_by(bytes as u64);
    }

    /// Counts acknowledged records.
    pub fn appended(&self, records: usize) {
        self.0.records_appended.inc_by(records as u64);
    }

    /// Counts records given to readers.
    pub fn read(&self, records: usize) {
        self.0.records_read.inc_by(records as u64);
    }

    /// A connection was accepted.
    pub fn connection_opened(&self) {
        self.0.connections_accepted.inc();
        self.0.connections_open.inc();
    }

    /// An accepted connection ended.
    pub fn connection_closed(&self) {
        self.0.connections_open.dec();
    }

    /// A connection was refused; `cause` is one of a few fixed words.
    pub fn connection_refused(&self, cause: &'static str) {
        self.0.connections_refused.get_or_create(&CauseLabels { cause }).inc();
    }

    /// An answer was given up because the client did not take it.
    pub fn slow_reader(&self) {
        self.0.slow_readers.inc();
    }
}

type Labels<'a> = &'a [(&'static str, String)];

/// Where a collector puts its values. Names get the prefix `chronicle_`; counters the suffix `_total`.
pub struct Samples {
    families: Vec<SampleFamily>,
}

/// All values of one name.
struct SampleFamily {
    name: &'static str,
    help: &'static str,
    values: Vec<(Vec<(&'static str, String)>, Value)>,
}

#[derive(Clone)]
enum Value {
    Gauge(f64),
    Counter(u64),
    Histogram {
        /// Upper bound (inclusive) and count of each bucket, not cumulative; the last bound is the greatest number.
        buckets: Vec<(f64, u64)>,
        sum: f64,
    },
}

impl Samples {
    /// A value that goes up and down. `name` carries its unit.
    pub fn gauge(&mut self, name: &'static str, help: &'static str, value: f64) {
        self.push(name, help, &[], Value::Gauge(value));
    }

    /// A value that only grows. `name` carries its unit.
    pub fn counter(&mut self, name: &'static str, help: &'static str, value: u64) {
        self.push(name, help, &[], Value::Counter(value));
    }

    /// One labelled value of a gauge. Keep the number of label values small.
    pub fn gauge_of(&mut self, name: &'static str, help: &'static str, labels: Labels<'_>, value: f64) {
        self.push(name, help, labels, Value::Gauge(value));
    }

    /// One labelled value of a counter. Keep the number of label values small.
    pub fn counter_of(&mut self, name: &'static str, help: &'static str, labels: Labels<'_>, value: u64) {
        self.push(name, help, labels, Value::Counter(value));
    }

    /// A histogram that somebody else counted: upper bounds (inclusive) of the buckets, their counts and one more for what
    /// lies above, and the sum of all values. `name` carries the unit.
    pub fn histogram(&mut self, name: &'static str, help: &'static str, bounds: &[f64], counts: &[u64], sum: f64) {
        let bounds = bounds.iter().copied().chain([f64::INFINITY]);
        let buckets = bounds.zip(counts.iter().copied()).collect();
        self.push(name, help, &[], Value::Histogram { buckets, sum });
    }

    fn push(&mut self, name: &'static str, help: &'static str, labels: Labels<'_>, value: Value) {
        let sample = (labels.to_vec(), value);
        match self.families.iter_mut().find(|family| family.name == name) {
            Some(family) => family.values.push(sample),
            None => self.families.push(SampleFamily { name, help, values: vec![sample] }),
        }
    }
}

type Collect = Box<dyn Fn(&mut Samples) + Send + Sync>;

struct FnCollector(Collect);

impl fmt::Debug for FnCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FnCollector")
    }
}

impl Collector for FnCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let mut samples = Samples { families: Vec::new() };
        (self.0)(&mut samples);
        for SampleFamily { name, help, values } in &samples.families {
            let kind = match values.first() {
                Some((_, Value::Counter(_))) => MetricType::Counter,
                Some((_, Value::Histogram { .. })) => MetricType::Histogram,
                _ => MetricType::Gauge,
            };
            let mut metric = encoder.encode_descriptor(name, &format!("{help}."), None, kind)?;
            match values.as_slice() {
                [(labels, value)] if labels.is_empty() => encode_value(value, metric)?,
                values => {
                    for (labels, value) in values {
                        encode_value(value, metric.encode_family(labels)?)?;
                    }
                }
            }
        }
        Ok(())
    }
}

fn encode_value(value: &Value, mut encoder: MetricEncoder<'_>) -> Result<(), fmt::Error> {
    match value {
        Value::Gauge(value) => ConstGauge::new(*value).encode(encoder),
        Value::Counter(value) => ConstCounter::new(*value).encode(encoder),
        Value::Histogram { buckets, sum } => {
            let count = buckets.iter().map(|(_, count)| count).sum();
            encoder.encode_histogram::<[(&str, &str); 0]>(*sum, count, buckets, None)
        }
    }
}

/// `VmRSS` of /proc/self/status; `None` where there is no such file.
fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_carries_the_prefix_and_requests_are_counted_by_outcome() {
        let metrics = Metrics::new();
        metrics.request(Listener::Http, Operation::Produce, None, Duration::from_millis(1));
        metrics.request(Listener::Grpc, Operation::Consume, Some(Reason::OffsetOutOfRange), Duration::ZERO);
        metrics.connection_refused("limit");
        let text = metrics.encode();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            assert!(line.starts_with("chronicle_"), "{line}");
        }
        for wanted in [
            "chronicle_requests_total{listener=\"http\",operation=\"produce\",outcome=\"OK\"} 1",
            "chronicle_requests_total{listener=\"grpc\",operation=\"consume\",outcome=\"OFFSET_OUT_OF_RANGE\"} 1",
            "chronicle_request_duration_seconds_count{listener=\"http\",operation=\"produce\"} 1",
            "chronicle_connections_refused_total{cause=\"limit\"} 1",
            "chronicle_process_resident_bytes ",
        ] {
            assert!(text.contains(wanted), "{wanted} not in\n{text}");
        }
    }

    #[test]
    fn collectors_are_asked_at_scrape_time_and_group_their_labels() {
        let metrics = Metrics::new();
        metrics.register_collector(|samples| {
            samples.gauge("disk_free_bytes", "Free", 5.0);
            samples.counter_of("flushes", "Flushes", &[("kind", "syncfs".into())], 3);
            samples.counter_of("flushes", "Flushes", &[("kind", "fdatasync".into())], 4);
        });
        let text = metrics.encode();
        assert!(text.contains("\nchronicle_disk_free_bytes 5.0\n"), "{text}");
        assert_eq!(text.matches("# TYPE chronicle_flushes counter").count(), 1);
        assert!(text.contains("chronicle_flushes_total{kind=\"fdatasync\"} 4\n"), "{text}");
    }
}
