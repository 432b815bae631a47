//! Why traces cannot be sent.

use opentelemetry_otlp::ExporterBuildError;

/// Why traces cannot be sent.
#[derive(Debug, thiserror::Error)]
pub enum TracesError {
    /// A standard variable has a value that is not allowed.
    #[error("{name}: {value}: {rule}")]
    Variable {
        /// The variable.
        name: &'static str,
        /// Its value.
        value: String,
        /// What it must be.
        rule: &'static str,
    },
    /// No exporter can be made for the endpoint.
    #[error("telemetry.traces.endpoint: {endpoint}: {source}")]
    Exporter {
        /// The effective endpoint.
        endpoint: String,
        /// Why.
        source: ExporterBuildError,
    },
    /// The HTTP exporter does not support TLS.
    #[error("endpoint of traces: {0}: must be http:// with the protocol http; https:// needs grpc")]
    PlainHttp(String),
    /// Traces were started before in this process.
    #[error("telemetry.traces: this process exports traces already")]
    Started,
}
