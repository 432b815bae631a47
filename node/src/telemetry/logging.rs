//! The node's own log: one line per event on standard error; the newest lines are also kept in memory.
//!
//! [`LogControl`] changes the filter while the process runs, until the next change or for a limited time, after which
//! [`LogControl::expire`] restores the configured filter. An event inside a sampled request contains its `trace_id` and
//! `span_id`.
//!
//! The code that makes an event keeps payloads, record keys and secrets out of it: nothing here filters contents.

use std::fmt;
use std::io::{self, Write};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use opentelemetry::trace::SpanContext;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;
use tracing::{Event, Subscriber};
use tracing_subscriber::filter::{FilterExt, LevelFilter, filter_fn};
use tracing_subscriber::fmt::format::{Format, Full, Json, JsonFields, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter};
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};
use tracing_subscriber::{EnvFilter, Registry, reload};

use super::ring::Ring;
use super::traces::{self, SPANS, Traces};
use crate::config::{LogFormat, LoggingConfig};

/// Why the log cannot be set up or its filter not changed.
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
    /// The subscriber is gone.
    #[error("log: {0}")]
    Reload(#[from] reload::Error),
}

/// The current log filter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilterInForce {
    /// The filter.
    pub filter: String,
    /// The configured filter.
    pub configured: String,
    /// Time until the configured filter applies again; `None`: until the next change or the end of the process.
    pub remaining: Option<Duration>,
}

/// Controls the log of this process. Cheap to clone.
#[derive(Clone)]
pub struct LogControl {
    inner: Arc<LoggingState>,
}

struct LoggingState {
    handle: reload::Handle<EnvFilter, Registry>,
    now: Mutex<FilterState>,
    /// `now` has changed.
    changed: Notify,
    ring: Arc<Ring>,
}

struct FilterState {
    configured: String,
    filter: String,
    until: Option<Instant>,
}

/// Set once, by [`init`]: a process has one subscriber.
static CONTROL: OnceLock<LogControl> = OnceLock::new();

/// Returns the control of this process's log; `None` before [`init`], and where another subscriber is set (a test).
pub fn control() -> Option<LogControl> {
    CONTROL.get().cloned()
}

/// Sets up the log of this process on standard error with the settings of `config`, and sends the spans of its requests
/// to `traces`.
///
/// # Errors
/// When the filter does not parse, or when the process has a subscriber already.
pub fn init(config: &LoggingConfig, traces: Option<&Traces>) -> Result<(), LoggingError> {
    let (control, subscriber) = build(config, traces, io::stderr)?;
    subscriber.try_init()?;
    // Cannot be set already: a second `init` has failed above.
    let _ = CONTROL.set(control);
    Ok(())
}

/// Returns the subscriber of `config` over a writer, and its control.
fn build<W>(
    config: &LoggingConfig,
    traces: Option<&Traces>,
    writer: W,
) -> Result<(LogControl, impl Subscriber + for<'a> LookupSpan<'a> + Send + Sync + use<W>), LoggingError>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let (filter, handle) = reload::Layer::new(parse(&config.filter)?);
    let ring = Arc::new(Ring::new(config.memory_bytes));
    let tee = Tee { writer, ring: ring.clone() };
    let lines = tracing_subscriber::fmt::layer().with_writer(tee);
    let lines: Box<dyn Layer<Registry> + Send + Sync> = match config.format {
        LogFormat::Text => {
            let format: Format<Full> = Format::default();
            Box::new(lines.with_ansi(false).event_format(WithTraceId(format)))
        }
        LogFormat::Json => {
            let format: Format<Json> = Format::default().json().flatten_event(true);
            Box::new(lines.fmt_fields(JsonFields::new()).event_format(WithTraceId(format)))
        }
    };
    let control = LogControl {
        inner: Arc::new(LoggingState {
            handle,
            now: Mutex::new(FilterState {
                configured: config.filter.clone(),
                filter: config.filter.clone(),
                until: None,
            }),
            changed: Notify::new(),
            ring,
        }),
    };
    // The filter applies to log lines only; `traces` decides separately what is traced. Spans of traces are not logged.
    let shown = filter_fn(|metadata| metadata.target() != SPANS).with_max_level_hint(LevelFilter::TRACE);
    let lines = lines.with_filter(filter.and(shown));
    Ok((control, tracing_subscriber::registry().with(lines).with(traces.map(Traces::layer))))
}

fn parse(filter: &str) -> Result<EnvFilter, LoggingError> {
    EnvFilter::builder().parse(filter).map_err(|source| LoggingError::Filter { filter: filter.to_owned(), source })
}

impl LogControl {
    /// Returns the current filter.
    pub fn in_force(&self) -> FilterInForce {
        let now = self.inner.now.lock();
        FilterInForce {
            filter: now.filter.clone(),
            configured: now.configured.clone(),
            remaining: now.until.map(|until| until.saturating_duration_since(Instant::now())),
        }
    }

    /// Changes the filter for the duration `lasts` (see [`LogControl::expire`]) or, with `None`, until the next change.
    /// An empty filter is the configured one.
    ///
    /// # Errors
    /// When the filter does not parse; then nothing changes.
    pub fn set(&self, filter: &str, lasts: Option<Duration>) -> Result<FilterInForce, LoggingError> {
        let mut now = self.inner.now.lock();
        let filter = if filter.is_empty() { now.configured.clone() } else { filter.to_owned() };
        self.inner.handle.reload(parse(&filter)?)?;
        now.filter.clone_from(&filter);
        now.until = lasts.map(|lasts| Instant::now() + lasts);
        drop(now);
        self.inner.changed.notify_one();
        tracing::warn!(filter, for_seconds = lasts.map(|lasts| lasts.as_secs()), "log filter changed");
        Ok(self.in_force())
    }

    /// Changes the configured filter. It takes effect at once, or, while [`LogControl::set`] has set another filter,
    /// once that expires.
    ///
    /// # Errors
    /// As [`LogControl::set`].
    pub fn configure(&self, filter: &str) -> Result<(), LoggingError> {
        parse(filter)?;
        let mut now = self.inner.now.lock();
        let follows = now.filter == now.configured;
        if now.configured == filter {
            return Ok(());
        }
        now.configured = filter.to_owned();
        drop(now);
        if follows { self.set("", None).map(drop) } else { Ok(()) }
    }

    /// Returns the newest log lines, oldest first: at most `bytes_max` bytes, and no more than `log.memory-bytes`.
    pub fn recent(&self, bytes_max: usize) -> String {
        self.inner.ring.recent(bytes_max)
    }

    /// Restores the configured filter whenever another one expires. Never returns; safe to cancel.
    pub async fn expire(&self) {
        loop {
            let until = self.inner.now.lock().until;
            tokio::select! {
                () = self.inner.changed.notified() => continue,
                () = tokio::time::sleep_until(until.unwrap_or_else(Instant::now)), if until.is_some() => {}
            }
            // The filter may have changed since `until` was read.
            let over = self.inner.now.lock().until.is_some_and(|until| until <= Instant::now());
            if over && let Err(error) = self.set("", None) {
                tracing::error!(%error, "cannot restore the configured log filter");
                self.inner.now.lock().until = None;
            }
        }
    }
}

/// Writes every line to the writer and to the ring.
struct Tee<W> {
    writer: W,
    ring: Arc<Ring>,
}

/// Writes one event: the formatter writes a whole line at a time.
struct TeeLine<'a, W> {
    writer: W,
    ring: &'a Ring,
}

impl<'a, W: MakeWriter<'a>> MakeWriter<'a> for Tee<W> {
    type Writer = TeeLine<'a, W::Writer>;

    fn make_writer(&'a self) -> Self::Writer {
        TeeLine { writer: self.writer.make_writer(), ring: &self.ring }
    }
}

impl<W: Write> Write for TeeLine<'_, W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.write_all(line)?;
        Ok(line.len())
    }

    fn write_all(&mut self, line: &[u8]) -> io::Result<()> {
        self.ring.push(line);
        self.writer.write_all(line)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

/// Adds `trace_id` and `span_id` to events inside a sampled request.
struct WithTraceId<F>(F);

/// Adds the ids to a formatted line.
trait AddTraceId {
    fn add(line: &str, span: &SpanContext) -> String;
}

impl AddTraceId for Format<Full> {
    fn add(line: &str, span: &SpanContext) -> String {
        format!("{} trace_id={} span_id={}\n", line.trim_end_matches('\n'), span.trace_id(), span.span_id())
    }
}

impl AddTraceId for Format<Json> {
    fn add(line: &str, span: &SpanContext) -> String {
        match line.strip_prefix('{') {
            Some(rest) => {
                format!("{{\"trace_id\":\"{}\",\"span_id\":\"{}\",{rest}", span.trace_id(), span.span_id())
            }
            None => line.to_owned(),
        }
    }
}

impl<S, N, F> FormatEvent<S, N> for WithTraceId<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N> + AddTraceId,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let Some(span) = traces::current() else { return self.0.format_event(context, writer, event) };
        let mut line = String::new();
        self.0.format_event(context, Writer::new(&mut line), event)?;
        writer.write_str(&F::add(&line, &span))
    }
}

#[cfg(test)]
mod tests {
    use chronicle_client::trace::w3c;

    use super::*;
    use crate::config::TracesConfig;
    use crate::telemetry::traces::Request;

    fn config(filter: &str, format: LogFormat) -> LoggingConfig {
        LoggingConfig { filter: filter.into(), format, ..LoggingConfig::default() }
    }

    #[test]
    fn a_filter_that_does_not_parse_is_named() {
        let error = init(&config("chronicle=loud", LogFormat::Text), None).unwrap_err().to_string();
        assert!(error.starts_with("log.filter: \"chronicle=loud\""), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_logged_can_be_changed_for_a_while() {
        let (control, subscriber) = build(&config("warn", LogFormat::Text), None, io::sink).unwrap();
        let _guard = tracing::subscriber::set_default(subscriber);
        tracing::info!("first");
        let changed = control.set("info", Some(Duration::from_secs(60))).unwrap();
        assert_eq!((changed.filter.as_str(), changed.configured.as_str()), ("info", "warn"));
        assert_eq!(changed.remaining, Some(Duration::from_secs(60)));
        tracing::info!("second");
        assert!(control.set("loud=loud", None).is_err());
        assert_eq!(control.in_force().filter, "info", "a filter that does not parse changes nothing");
        // Time goes on by itself when there is nothing else to do.
        let _ = tokio::time::timeout(Duration::from_secs(61), control.expire()).await;
        assert_eq!(
            control.in_force(),
            FilterInForce { filter: "warn".into(), configured: "warn".into(), remaining: None }
        );
        tracing::info!("third");
        tracing::warn!("fourth");
        let lines = control.recent(usize::MAX);
        assert!(lines.contains("second") && lines.contains("fourth"), "{lines}");
        assert!(!lines.contains("first") && !lines.contains("third"), "{lines}");
    }

    #[tokio::test]
    async fn events_of_a_sampled_request_carry_its_trace_in_both_forms_and_others_none() {
        const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
        let exported = TracesConfig { endpoint: "http://127.0.0.1:1".into(), ..TracesConfig::default() };
        let traces = Traces::start(&exported, "node").unwrap().unwrap();
        for format in [LogFormat::Text, LogFormat::Json] {
            let (control, subscriber) = build(&config("info", format), Some(&traces), io::sink).unwrap();
            let request = |flags: &str| {
                let parent = w3c::parse(&format!("00-{TRACE}-00f067aa0ba902b7-{flags}"), "");
                Request::begin(parent, || Some("Log/Produce".into()))
            };
            tracing::subscriber::with_default(subscriber, || {
                tracing::info!("outside");
                request("01").in_scope(|| {
                    assert_eq!(traces::current_trace_id().as_deref(), Some(TRACE));
                    tracing::info!(field = 7, "sampled");
                });
                request("00").in_scope(|| tracing::info!("quiet"));
            });
            let lines = control.recent(usize::MAX);
            let [outside, sampled, quiet] = lines.lines().collect::<Vec<_>>()[..] else { panic!("{lines}") };
            assert!(!outside.contains("_id") && !quiet.contains("_id") && !lines.contains("otel"), "{lines}");
            assert!(sampled.contains(TRACE) && sampled.contains("span_id"), "{lines}");
            if format == LogFormat::Json {
                let line: serde_json::Value = serde_json::from_str(sampled).unwrap();
                let text = |name: &str| line[name].as_str();
                assert_eq!((line["field"].as_i64(), text("message")), (Some(7), Some("sampled")));
                assert_eq!(text("trace_id"), Some(TRACE));
            }
        }
    }
}
