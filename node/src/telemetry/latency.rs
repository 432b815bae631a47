//! Histograms of durations, with trace ids as exemplars.

use std::fmt;
use std::time::{Duration, SystemTime};

use prometheus_client::encoding::{EncodeLabelSet, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::exemplar::HistogramWithExemplars;
use prometheus_client::metrics::{MetricType, TypedMetric};

/// Upper bounds of the buckets, in seconds: fine in the range of flushes to disk, coarse in the range of long polls.
const SECONDS: [f64; 17] =
    [0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 15.0, 60.0];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TraceLabels {
    trace_id: String,
}

/// Makes the histograms of a family.
pub(super) type LatencyMaker = fn() -> Latency;

/// One histogram. Clones count together.
#[derive(Debug, Clone)]
pub(super) struct Latency(HistogramWithExemplars<TraceLabels>);

impl Latency {
    pub(super) fn new() -> Self {
        Self(HistogramWithExemplars::new(SECONDS.into_iter()))
    }

    /// Counts a duration. The id of its trace, if any, becomes the exemplar of the bucket.
    pub(super) fn observe(&self, took: Duration, trace_id: Option<String>) {
        let trace = trace_id.map(|trace_id| TraceLabels { trace_id });
        #[expect(clippy::disallowed_methods, reason = "the time of an exemplar")]
        let at = trace.is_some().then(SystemTime::now);
        self.0.observe(took.as_secs_f64(), trace, at);
    }
}

impl TypedMetric for Latency {
    const TYPE: MetricType = MetricType::Histogram;
}

impl EncodeMetric for Latency {
    fn encode(&self, encoder: MetricEncoder<'_>) -> Result<(), fmt::Error> {
        self.0.encode(encoder)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}
