//! Configuration of OpenTelemetry traces.

use serde::{Deserialize, Serialize};

/// Telemetry that the node exports.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct TelemetryConfig {
    /// OpenTelemetry traces.
    pub traces: TracesConfig,
}

/// Protocol of the exporter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TracesProtocol {
    /// OTLP over gRPC.
    #[default]
    Grpc,
    /// OTLP over HTTP, as protobuf.
    Http,
}

/// A share, from 0 to 1; `Config::validate` checks the range.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Ratio(f64);

impl Eq for Ratio {}

impl Ratio {
    /// Returns the number.
    pub fn get(self) -> f64 {
        self.0
    }
}

impl From<f64> for Ratio {
    fn from(number: f64) -> Self {
        Self(number)
    }
}

/// OpenTelemetry traces. The standard `OTEL_*` environment variables override these fields.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct TracesConfig {
    /// `http://HOST:PORT` of a collector, or, with gRPC, `https://`. Empty: no traces. Default: empty.
    pub endpoint: String,
    /// Protocol of the exporter. Default: `grpc`.
    pub protocol: TracesProtocol,
    /// Share of the requests without a parent span that are traced. A request with a parent span is traced when the
    /// parent is sampled. Default: 0.01.
    pub sampling_ratio: Ratio,
    /// Spans queued for export; further ones are dropped. A span takes about 1 KiB. Default: 4096.
    pub queue_spans_max: usize,
    /// Most spans of one message to the collector. Default: 512.
    pub batch_spans_max: usize,
    /// Interval between exports, in milliseconds. Default: 5000.
    pub interval_ms: u64,
    /// Timeout of one message to the collector, in milliseconds. Default: 10000.
    pub export_timeout_ms: u64,
    /// Longest time to export queued spans when stopping, in milliseconds. Default: 3000.
    pub shutdown_ms: u64,
}

impl Default for TracesConfig {
    fn default() -> Self {
        Self {
            endpoint: String::new(),
            protocol: TracesProtocol::Grpc,
            sampling_ratio: Ratio(0.01),
            queue_spans_max: 4096,
            batch_spans_max: 512,
            interval_ms: 5000,
            export_timeout_ms: 10_000,
            shutdown_ms: 3000,
        }
    }
}
