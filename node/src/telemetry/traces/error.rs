//! Why traces cannot be sent.

use opentelemetry_otlp::ExporterBuildError;

/// Why traces cannot be sent.
#[derive(Debug, thiserror::Error)]
pub enum TracesError {
    /// A standard variable has a value that it must not have.
    #[error("{name}: {value}: {rule}")]
    Variable {
        /// The variable.
        name: &'static str,
        /// Its value.
        value: String,
        /// What it must be.
        rule: &'static str,
    },
    /// There is no exporter for what is configured.
    #[error("telemetry.traces.endpoint: {endpoint}: {source}")]
    Exporter {
        /// The endpoint in force.
        endpoint: String,
        /// Why.
        source: ExporterBuildError,
    },
    /// The HTTP client of the exporter speaks no TLS.
    #[error("endpoint of traces: {0}: must be http:// with the protocol http; https:// needs grpc")]
    PlainHttp(String),
    /// Traces were started before in this process.
    #[error("telemetry.traces: this process sends traces already")]
    Started,
}
