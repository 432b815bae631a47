//! Every metric of the node, under one registry and one prefix, `chronicle_`.
//!
//! Invariants:
//! - Label sets are bounded by enums (listener, operation, outcome): no topic, client or address becomes a label here.
//! - The common case (an operation that succeeds) touches only handles resolved at start, no label lookup.
//!
//! Modules that keep their own atomics (broker, engine) register a function with [`Metrics::register_collector`], which
//! is called only at scrape time (`samples.rs`). docs/operations/metrics.md lists every metric.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::RwLock;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use super::latency::{Latency, LatencyMaker};
use super::process;
use super::raft::RaftMetrics;
use super::samples::{FnCollector, Samples};
use super::traces::current_trace_id;
use crate::model::Reason;

/// The protocol of a request.
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
        /// The operation of a request.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum ApiOperation { $($(#[$doc])* $name,)* }

        impl ApiOperation {
            /// Every operation.
            pub const ALL: &[ApiOperation] = &[$(ApiOperation::$name,)*];

            /// The label value.
            pub fn as_str(self) -> &'static str {
                match self { $(ApiOperation::$name => $text,)* }
            }
        }
    };
}

operations! {
    /// A unary append.
    Produce = "produce";
    /// One append of a produce stream.
    ProduceStream = "produce_stream";
    /// A read.
    Consume = "consume";
    /// One response of a stream that follows the log.
    ConsumeStream = "consume_stream";
    /// A look-up of offsets, also by time.
    Offsets = "offsets";
    /// Allocation of a producer id.
    InitProducer = "init_producer";
    /// Creation of a topic.
    CreateTopic = "create_topic";
    /// List of topics.
    ListTopics = "list_topics";
    /// Description of a topic.
    DescribeTopic = "describe_topic";
    /// Change of a topic's settings or number of partitions.
    AlterTopic = "alter_topic";
    /// Deletion of a topic.
    DeleteTopic = "delete_topic";
    /// List of nodes.
    Servers = "servers";
    /// A member joins a consumer group or sends a heartbeat.
    GroupHeartbeat = "group_heartbeat";
    /// A member leaves a consumer group.
    GroupLeave = "group_leave";
    /// Offset commit of a consumer group.
    GroupCommit = "group_commit";
    /// Look-up of committed offsets.
    GroupOffsets = "group_offsets";
    /// List, description, reset or deletion of consumer groups.
    GroupAdmin = "group_admin";
    /// The log filter is read or changed, or diagnostics are collected.
    Diagnostics = "diagnostics";
    /// Access rules and quotas.
    Access = "access";
    /// Any other request: documents, unknown paths.
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
struct ListenerLabels {
    listener: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CauseLabels {
    cause: &'static str,
}

/// The handles of one operation of one listener, resolved at start.
struct OperationHandles {
    ok: Counter,
    latency: Latency,
}

/// A counter for each listener, resolved at start.
struct ByListener {
    family: Family<ListenerLabels, Counter>,
    resolved: Vec<Counter>,
}

impl ByListener {
    fn new() -> Self {
        let family = Family::<ListenerLabels, Counter>::default();
        let resolved =
            Listener::ALL.map(|one| family.get_or_create_owned(&ListenerLabels { listener: one.as_str() })).into();
        Self { family, resolved }
    }

    fn add(&self, listener: Listener, n: usize) {
        self.resolved[listener as usize].inc_by(n as u64);
    }
}

struct NodeFamilies {
    registry: RwLock<Registry>,
    requests: Family<RequestLabels, Counter>,
    resolved: Vec<OperationHandles>,
    received_bytes: ByListener,
    sent_bytes: ByListener,
    records_appended: ByListener,
    records_read: ByListener,
    connections_open: Gauge,
    connections_accepted: Counter,
    connections_refused: Family<CauseLabels, Counter>,
    slow_readers: Counter,
}

/// The node's metrics. Cheap to clone; all clones report into one registry.
#[derive(Clone)]
pub struct Metrics(Arc<NodeFamilies>);

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
    /// Returns a registry with the metrics of listeners and process, all at zero.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("chronicle");
        let requests = Family::<RequestLabels, Counter>::default();
        let latency: Family<OperationLabels, Latency, LatencyMaker> = Family::new_with_constructor(Latency::new);
        let mut resolved = Vec::new();
        for listener in Listener::ALL {
            for operation in ApiOperation::ALL {
                let (listener, operation) = (listener.as_str(), operation.as_str());
                resolved.push(OperationHandles {
                    ok: requests.get_or_create_owned(&RequestLabels { listener, operation, outcome: "OK" }),
                    latency: latency.get_or_create_owned(&OperationLabels { listener, operation }),
                });
            }
        }
        let inner = NodeFamilies {
            requests: requests.clone(),
            resolved,
            received_bytes: ByListener::new(),
            sent_bytes: ByListener::new(),
            records_appended: ByListener::new(),
            records_read: ByListener::new(),
            connections_open: Gauge::default(),
            connections_accepted: Counter::default(),
            connections_refused: Family::default(),
            slow_readers: Counter::default(),
            registry: RwLock::new(Registry::default()),
        };
        registry.register("requests", "Requests by outcome: OK or a reason of docs/errors.md", requests);
        registry.register_with_unit(
            "request_duration",
            "Time from the complete request to its response, long polls included",
            Unit::Seconds,
            latency,
        );
        registry.register_with_unit(
            "received",
            "Bytes of request bodies on the data port",
            Unit::Bytes,
            inner.received_bytes.family.clone(),
        );
        registry.register_with_unit(
            "sent",
            "Bytes of response bodies on the data port",
            Unit::Bytes,
            inner.sent_bytes.family.clone(),
        );
        registry.register(
            "records_appended",
            "Records acknowledged to producers",
            inner.records_appended.family.clone(),
        );
        registry.register("records_read", "Records returned to readers", inner.records_read.family.clone());
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
            "Responses dropped because the client did not read them",
            inner.slow_readers.clone(),
        );
        registry.register(
            "build",
            "Version of the software",
            Info::new(vec![("version", env!("CARGO_PKG_VERSION")), ("rust_version", env!("CARGO_PKG_RUST_VERSION"))]),
        );
        #[expect(clippy::disallowed_methods, reason = "exports the start of the process")]
        let started = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs_f64();
        registry.register_with_unit(
            "process_start_time",
            "Start of the process, in seconds since the Unix epoch",
            Unit::Seconds,
            ConstGauge::new(started),
        );
        *inner.registry.write() = registry;
        let metrics = Self(Arc::new(inner));
        metrics.register_collector(process::collect);
        metrics
    }

    /// Adds a function that is called for values at every scrape. It must be quick and must not block.
    pub fn register_collector(&self, collect: impl Fn(&mut Samples) + Send + Sync + 'static) {
        self.0.registry.write().register_collector(Box::new(FnCollector(Box::new(collect))));
    }

    /// Adds the metrics of the node's raft groups.
    pub(crate) fn register_raft(&self, raft: &RaftMetrics) {
        raft.register(&mut self.0.registry.write());
    }

    /// Returns all metrics in the OpenMetrics text format.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        // Writing into a String does not fail.
        let _ = prometheus_client::encoding::text::encode(&mut text, &self.0.registry.read());
        text
    }

    /// Counts one request and its latency; `reason` is `None` for a success.
    pub fn request(&self, listener: Listener, operation: ApiOperation, reason: Option<Reason>, took: Duration) {
        let resolved = &self.0.resolved[listener as usize * ApiOperation::ALL.len() + operation as usize];
        match reason {
            None => _ = resolved.ok.inc(),
            Some(reason) => {
                let (listener, operation) = (listener.as_str(), operation.as_str());
                let labels = RequestLabels { listener, operation, outcome: reason.as_str() };
                self.0.requests.get_or_create(&labels).inc();
            }
        }
        resolved.latency.observe(took, current_trace_id());
    }

    /// Counts bytes of request bodies.
    pub fn received(&self, listener: Listener, bytes: usize) {
        self.0.received_bytes.add(listener, bytes);
    }

    /// Counts bytes of response bodies.
    pub fn sent(&self, listener: Listener, bytes: usize) {
        self.0.sent_bytes.add(listener, bytes);
    }

    /// Counts acknowledged records.
    pub fn appended(&self, listener: Listener, records: usize) {
        self.0.records_appended.add(listener, records);
    }

    /// Counts records returned to readers.
    pub fn read(&self, listener: Listener, records: usize) {
        self.0.records_read.add(listener, records);
    }

    /// Counts an accepted connection, which is open from now on.
    pub fn connection_opened(&self) {
        self.0.connections_accepted.inc();
        self.0.connections_open.inc();
    }

    /// Counts the end of an accepted connection.
    pub fn connection_closed(&self) {
        self.0.connections_open.dec();
    }

    /// Counts a refused connection; `cause` is one of a few fixed words.
    pub fn connection_refused(&self, cause: &'static str) {
        self.0.connections_refused.get_or_create(&CauseLabels { cause }).inc();
    }

    /// Counts a response that was dropped because the client did not read it.
    pub fn slow_reader(&self) {
        self.0.slow_readers.inc();
    }
}

#[cfg(test)]
mod tests {
    use chronicle_client::trace::w3c;

    use super::super::Stage;
    use super::super::traces::EntryTrace;
    use super::*;

    #[test]
    fn every_metric_carries_the_prefix_and_requests_are_counted_by_outcome() {
        let metrics = Metrics::new();
        metrics.request(Listener::Http, ApiOperation::Produce, None, Duration::from_millis(1));
        metrics.request(Listener::Grpc, ApiOperation::Consume, Some(Reason::OffsetOutOfRange), Duration::ZERO);
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
    fn stages_of_a_sampled_entry_carry_its_trace_as_exemplar() {
        let (metrics, raft) = (Metrics::new(), RaftMetrics::default());
        metrics.register_raft(&raft);
        let context = w3c::parse("00-00000000000000000000000000000abc-00f067aa0ba902b7-01", "").unwrap();
        raft.stage_of(Stage::Flush, Duration::from_millis(2), &EntryTrace::received(vec![context]));
        raft.stage(Stage::Queue, Duration::from_millis(2));
        let text = metrics.encode();
        let bucket = |stage: &str| {
            let wanted = format!("chronicle_stage_duration_seconds_bucket{{le=\"0.0025\",stage=\"{stage}\"}} 1");
            let line = text.lines().find(|line| line.starts_with(&wanted));
            line.unwrap_or_else(|| panic!("{wanted} not in\n{text}")).to_owned()
        };
        assert!(bucket("flush").contains("# {trace_id=\"00000000000000000000000000000abc\"} 0.002"), "{text}");
        assert!(!bucket("queue").contains("trace_id"));
    }

    #[test]
    fn collectors_run_at_scrape_time_and_group_their_labels() {
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
