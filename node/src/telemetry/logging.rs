//! The node's own log lines: standard error, one line an event.

use tracing_subscriber::filter::{FilterExt, filter_fn};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};
use tracing_subscriber::{EnvFilter, Layer};

use super::traces::{SPANS, Traces};
use crate::config::{LogConfig, LogFormat};

/// Why log lines cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    /// The filter does not parse.
    #[error("log.filter: {filter:?}: {source}")]
    Filter {
        /// The filter as configured.
        filter: String,
        /// What is wrong with it.
        source: tracing_subscriber::filter::ParseError,
    },
    /// The process has a subscriber already.
    #[error("log: {0}")]
    AlreadySet(#[from] TryInitError),
}

/// Sends log lines of this process to standard error, as `config` says, and the spans of its requests to `traces`.
///
/// # Errors
/// When the filter does not parse, or when the process has a subscriber already.
pub fn init(config: &LogConfig, traces: Option<&Traces>) -> Result<(), LoggingError> {
    let filter = EnvFilter::builder()
        .parse(&config.filter)
        .map_err(|source| LoggingError::Filter { filter: config.filter.clone(), source })?;
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let lines = match config.format {
        LogFormat::Text => lines.boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    // The spans of traces are not for people; what they need of them has a span of its own.
    let lines = lines.with_filter(filter.and(filter_fn(|metadata| metadata.target() != SPANS)));
    tracing_subscriber::registry().with(lines).with(traces.map(Traces::layer)).try_init()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_that_does_not_parse_is_named() {
        let config = LogConfig { filter: "chronicle=loud".into(), format: LogFormat::Text };
        let error = init(&config, None).unwrap_err().to_string();
        assert!(error.starts_with("log.filter: \"chronicle=loud\""), "{error}");
    }
}
