//! Metrics of the operator. Label values are bounded: kinds of resources and classes of errors.

use std::sync::Arc;
use std::sync::atomic::AtomicI64;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabel {
    kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FailureLabels {
    kind: &'static str,
    reason: &'static str,
}

/// Metrics of the process. Cheap to clone.
#[derive(Clone)]
pub struct Metrics(Arc<MetricsInner>);

struct MetricsInner {
    registry: Registry,
    reconciliations: Family<KindLabel, Counter>,
    failures: Family<FailureLabels, Counter>,
    seconds: Family<KindLabel, Histogram>,
    leader: Gauge<i64, AtomicI64>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Creates the metrics, all zero.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("chronicle_operator");
        let (reconciliations, failures) = (Family::default(), Family::default());
        let seconds: Family<KindLabel, Histogram> =
            Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.005, 2.0, 14)));
        let leader = Gauge::default();
        registry.register("reconciliations", "Reconciles of resources", reconciliations.clone());
        registry.register("reconciliation_failures", "Reconciles that failed, by reason", failures.clone());
        registry.register_with_unit("reconciliation", "Duration of a reconcile", Unit::Seconds, seconds.clone());
        registry.register("leader", "1 while this process is the leader, 0 while it is on standby", leader.clone());
        Self(Arc::new(MetricsInner { registry, reconciliations, failures, seconds, leader }))
    }

    /// Counts a reconcile. `failure` is the reason if it failed.
    pub fn reconciled(&self, kind: &'static str, took: Duration, failure: Option<&'static str>) {
        let label = KindLabel { kind };
        self.0.reconciliations.get_or_create(&label).inc();
        self.0.seconds.get_or_create(&label).observe(took.as_secs_f64());
        if let Some(reason) = failure {
            self.0.failures.get_or_create(&FailureLabels { kind, reason }).inc();
        }
    }

    /// Sets whether this process is the leader.
    pub fn set_leader(&self, leads: bool) {
        self.0.leader.set(i64::from(leads));
    }

    /// Returns the metrics in the OpenMetrics text format.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        // Writing to a String does not fail.
        let _ = encode(&mut text, &self.0.registry);
        text
    }
}
