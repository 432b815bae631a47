//! The node's own log lines: standard error, one line an event; the newest are kept in memory too.
//!
//! Which events are logged can be changed while the process runs ([`LogControl`]), for good or for a while: then
//! [`LogControl::expire`] takes it back. An event inside a trace carries its `trace_id`.
//!
//! What must not be in a log line (payloads, keys of records, secrets) is kept out where the event is made: nothing here
//! filters contents.

use std::fmt;
use std::io::{self, Write};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::{Format, Full, Json, JsonFields, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter};
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};
use tracing_subscriber::{EnvFilter, Registry, reload};

use super::ring::Ring;
use super::trace_id::{TraceId, trace_id_of};
use crate::config::{LogConfig, LogFormat};

/// Why log lines cannot be set up, or not be changed.
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

/// What is logged now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilterInForce {
    /// The filter.
    pub filter: String,
    /// The filter of the configuration.
    pub configured: String,
    /// For how much longer it holds; `None`: until it is changed or the process ends.
    pub remaining: Option<Duration>,
}

/// The logging of this process. Cheap to clone.
#[derive(Clone)]
pub struct LogControl {
    inner: Arc<Inner>,
}

struct Inner {
    handle: reload::Handle<EnvFilter, Registry>,
    configured: String,
    now: Mutex<Now>,
    /// `now` has changed.
    changed: Notify,
    ring: Arc<Ring>,
}

struct Now {
    filter: String,
    until: Option<Instant>,
}

/// Set once, by [`init`]: a process has one subscriber.
static CONTROL: OnceLock<LogControl> = OnceLock::new();

/// The logging of this process; `None` before [`init`], and where something else logs (a test).
pub fn control() -> Option<LogControl> {
    CONTROL.get().cloned()
}

/// Sends log lines of this process to standard error, as `config` says.
///
/// # Errors
/// When the filter does not parse, or when the process has a subscriber already.
pub fn init(config: &LogConfig) -> Result<(), LoggingError> {
    let (control, subscriber) = build(config, io::stderr)?;
    subscriber.try_init()?;
    // Nobody else sets it: a second `init` has failed above.
    let _ = CONTROL.set(control);
    Ok(())
}

/// The subscriber of `config` over a writer, and its control.
fn build<W>(
    config: &LogConfig,
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
        inner: Arc::new(Inner {
            handle,
            configured: config.filter.clone(),
            now: Mutex::new(Now { filter: config.filter.clone(), until: None }),
            changed: Notify::new(),
            ring,
        }),
    };
    // The filter is that of the lines alone: what is traced is decided elsewhere.
    Ok((control, tracing_subscriber::registry().with(lines.with_filter(filter))))
}

fn parse(filter: &str) -> Result<EnvFilter, LoggingError> {
    EnvFilter::builder().parse(filter).map_err(|source| LoggingError::Filter { filter: filter.to_owned(), source })
}

impl LogControl {
    /// What is logged now.
    pub fn in_force(&self) -> FilterInForce {
        let now = self.inner.now.lock();
        FilterInForce {
            filter: now.filter.clone(),
            configured: self.inner.configured.clone(),
            remaining: now.until.map(|until| until.saturating_duration_since(Instant::now())),
        }
    }

    /// Changes what is logged: until `lasts` is over (see [`LogControl::expire`]), or until it is changed again. An empty
    /// filter is the configured one.
    ///
    /// # Errors
    /// When the filter does not parse; nothing has changed then.
    pub fn set(&self, filter: &str, lasts: Option<Duration>) -> Result<FilterInForce, LoggingError> {
        let filter = if filter.is_empty() { self.inner.configured.as_str() } else { filter };
        let parsed = parse(filter)?;
        let mut now = self.inner.now.lock();
        self.inner.handle.reload(parsed)?;
        *now = Now { filter: filter.to_owned(), until: lasts.map(|lasts| Instant::now() + lasts) };
        drop(now);
        self.inner.changed.notify_one();
        tracing::warn!(filter, for_seconds = lasts.map(|lasts| lasts.as_secs()), "what is logged was changed");
        Ok(self.in_force())
    }

    /// The newest log lines, oldest first: at most `bytes_max` bytes, and no more than `log.memory-bytes`.
    pub fn recent(&self, bytes_max: usize) -> String {
        self.inner.ring.recent(bytes_max)
    }

    /// Goes back to the configured filter whenever another one expires. Runs until it is dropped, which loses nothing.
    pub async fn expire(&self) {
        loop {
            let until = self.inner.now.lock().until;
            tokio::select! {
                () = self.inner.changed.notified() => continue,
                () = tokio::time::sleep_until(until.unwrap_or_else(Instant::now)), if until.is_some() => {}
            }
            // It may have been changed in between.
            let over = self.inner.now.lock().until.is_some_and(|until| until <= Instant::now());
            if over && let Err(error) = self.set("", None) {
                tracing::error!(%error, "the configured log filter cannot be restored");
                self.inner.now.lock().until = None;
            }
        }
    }
}

/// Writes every line to its place and into the ring.
struct Tee<W> {
    writer: W,
    ring: Arc<Ring>,
}

/// One event on its way: the formatter hands over a whole line at a time.
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

/// Adds `trace_id` to events inside a trace.
struct WithTraceId<F>(F);

/// How a line begins to which a trace id is added.
trait AddTraceId {
    fn add(line: &str, id: TraceId) -> String;
}

impl AddTraceId for Format<Full> {
    fn add(line: &str, id: TraceId) -> String {
        format!("{} trace_id={id}\n", line.trim_end_matches('\n'))
    }
}

impl AddTraceId for Format<Json> {
    fn add(line: &str, id: TraceId) -> String {
        match line.strip_prefix('{') {
            Some(rest) => format!("{{\"trace_id\":\"{id}\",{rest}"),
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
        let trace =
            context.lookup_current().and_then(|span| span.scope().find_map(|span| trace_id_of(&span.extensions())));
        let Some(id) = trace else { return self.0.format_event(context, writer, event) };
        let mut line = String::new();
        self.0.format_event(context, Writer::new(&mut line), event)?;
        writer.write_str(&F::add(&line, id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::trace_id::tests::Traced;

    fn config(filter: &str, format: LogFormat) -> LogConfig {
        LogConfig { filter: filter.into(), format, ..LogConfig::default() }
    }

    #[test]
    fn a_filter_that_does_not_parse_is_named() {
        let error = init(&config("chronicle=loud", LogFormat::Text)).unwrap_err().to_string();
        assert!(error.starts_with("log.filter: \"chronicle=loud\""), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_logged_can_be_changed_for_a_while() {
        let (control, subscriber) = build(&config("warn", LogFormat::Text), io::sink).unwrap();
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

    #[test]
    fn events_in_a_trace_carry_its_id_in_both_forms() {
        for (format, wanted) in [
            (LogFormat::Text, "trace_id=00000000000000000000000000000abc"),
            (LogFormat::Json, r#""trace_id":"00000000000000000000000000000abc""#),
        ] {
            let (control, subscriber) = build(&config("info", format), io::sink).unwrap();
            tracing::subscriber::with_default(subscriber.with(Traced(0xabc)), || {
                tracing::info!("outside");
                tracing::info_span!("outer").in_scope(|| tracing::info!(field = 7, "inside"));
            });
            let lines = control.recent(usize::MAX);
            let [outside, inside] = lines.lines().collect::<Vec<_>>()[..] else { panic!("{lines}") };
            assert!(!outside.contains("trace_id") && inside.contains(wanted), "{lines}");
            if format == LogFormat::Json {
                let inside: serde_json::Value = serde_json::from_str(inside).unwrap();
                assert_eq!((inside["field"].as_i64(), inside["message"].as_str()), (Some(7), Some("inside")));
            }
        }
    }
}
