//! The node's own log lines: standard error, one line an event.

use tracing::Subscriber;
use tracing_subscriber::filter::{FilterExt, LevelFilter, filter_fn};
use tracing_subscriber::fmt::MakeWriter;
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
    subscriber(config, traces, std::io::stderr)?.try_init()?;
    Ok(())
}

fn subscriber<W>(
    config: &LogConfig,
    traces: Option<&Traces>,
    to: W,
) -> Result<impl Subscriber + Send + Sync + use<W>, LoggingError>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let filter = EnvFilter::builder()
        .parse(&config.filter)
        .map_err(|source| LoggingError::Filter { filter: config.filter.clone(), source })?;
    let lines = tracing_subscriber::fmt::layer().with_writer(to);
    let lines = match config.format {
        LogFormat::Text => lines.boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    // The spans of traces are not for people; what they need of them has a span of its own.
    let shown = filter_fn(|metadata| metadata.target() != SPANS).with_max_level_hint(LevelFilter::TRACE);
    let lines = lines.with_filter(filter.and(shown));
    Ok(tracing_subscriber::registry().with(lines).with(traces.map(Traces::layer)))
}

#[cfg(test)]
mod tests {
    use std::io::{self, Write};
    use std::sync::Arc;

    use chronicle_client::trace::w3c;
    use parking_lot::Mutex;

    use super::*;
    use crate::config::TracesConfig;
    use crate::telemetry::traces::{Request, current_trace_id};

    /// What was written.
    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn lines_of_a_sampled_request_name_their_trace_and_others_none() {
        const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
        let config = TracesConfig { endpoint: "http://127.0.0.1:1".into(), ..TracesConfig::default() };
        let traces = Traces::start(&config, "node").unwrap().unwrap();
        for format in [LogFormat::Text, LogFormat::Json] {
            let written = Written::default();
            let config = LogConfig { format, ..LogConfig::default() };
            let writer = written.clone();
            let subscriber = subscriber(&config, Some(&traces), move || writer.clone()).unwrap();
            let request = |flags: &str| {
                let parent = w3c::parse(&format!("00-{TRACE}-00f067aa0ba902b7-{flags}"), "");
                Request::begin(parent, || Some("Log/Produce".into()))
            };
            tracing::subscriber::with_default(subscriber, || {
                request("01").in_scope(|| {
                    assert_eq!(current_trace_id().as_deref(), Some(TRACE));
                    tracing::info!("sampled");
                });
                request("00").in_scope(|| {
                    assert_eq!(current_trace_id(), None);
                    tracing::info!("quiet");
                });
            });
            let text = String::from_utf8(written.0.lock().clone()).unwrap();
            let lines: Vec<&str> = text.lines().collect();
            let [sampled, quiet] = lines[..] else { panic!("{text}") };
            assert!(sampled.contains("sampled") && sampled.contains(TRACE) && sampled.contains("span_id"), "{text}");
            assert!(quiet.contains("quiet") && !quiet.contains("trace_id"), "{text}");
            assert!(!text.contains("otel"), "{text}");
        }
    }

    #[test]
    fn a_filter_that_does_not_parse_is_named() {
        let config = LogConfig { filter: "chronicle=loud".into(), format: LogFormat::Text };
        let error = init(&config, None).unwrap_err().to_string();
        assert!(error.starts_with("log.filter: \"chronicle=loud\""), "{error}");
    }
}
