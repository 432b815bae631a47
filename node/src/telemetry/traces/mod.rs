//! OpenTelemetry traces: decides which requests are traced and makes the spans of a request.
//!
//! ```text
//! request (server) ── queue      from entering the queue of the partition to its proposal ├─ append     from the
//! proposal to the entry in the log's memory ├─ flush      from the entry in memory to the flush on this replica ├─
//! replicate  one per follower, with the follower's `append` and `flush` below it ├─ commit     from the entry in
//! memory to the acknowledgement of a majority └─ apply      by the state machine
//! ```
//!
//! Invariants:
//! - Whether a request is traced is decided once, when it arrives (`sampling`), before any span exists. A request that
//!   is not traced costs a check of its headers here, and checks of an empty `Option` in the layers below: no span, no
//!   allocation, no clock.
//! - The layer that measures a stage makes the span after the stage has ended; no layer waits for tracing. The queue to
//!   the exporter is bounded in spans, and spans that do not fit are dropped (`export`).
//! - There is one tracer per process, like the log.
//!
//! Request spans are `tracing` spans with the target [`SPANS`]. `tracing-opentelemetry` turns them into OpenTelemetry
//! spans and keeps them active while the node handles the request. Log lines written during that time contain
//! `trace_id` and `span_id`.
//!
//! Neighbours: `listeners/` and `peers/` begin requests; `partition/sequencer.rs` and `raft/` record stages;
//! `chronicle_client::trace` parses and writes the W3C headers.

mod entry;
mod error;
mod export;
mod request;
mod sampling;
mod settings;

use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use opentelemetry::trace::{Span as _, SpanBuilder, SpanContext, SpanKind, Status, TraceContextExt, Tracer};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};
use parking_lot::RwLock;
use tracing::Subscriber;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{LevelFilter, filter_fn};
use tracing_subscriber::registry::LookupSpan;
use uuid::Uuid;

pub use entry::EntryTrace;
pub(crate) use entry::{PARENTS_MAX, Queued};
pub use error::TracesError;
pub(crate) use request::{Request, call_of, parent_of};

use crate::config::TracesConfig;
use export::ClusterId;
use sampling::Sampling;
use settings::Settings;

/// Target of the `tracing` spans that become OpenTelemetry spans. They do not appear in log lines.
pub const SPANS: &str = "chronicle_traces";

static STATE: OnceLock<TracerState> = OnceLock::new();

struct TracerState {
    tracer: SdkTracer,
    sampling: RwLock<Sampling>,
    cluster: ClusterId,
}

/// The traces of this process, while it runs.
#[derive(Debug)]
pub struct Traces {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
    shutdown: Duration,
}

impl Traces {
    /// Starts the export of spans, with the settings of the configuration and the standard `OTEL_*` variables of the
    /// process. Returns `None` when they name no endpoint: nothing is traced. The exporter runs on the current tokio
    /// runtime.
    ///
    /// # Errors
    /// A variable does not parse, or the endpoint is not valid.
    pub fn start(config: &TracesConfig, node: &str) -> Result<Option<Self>, TracesError> {
        let Some(settings) = Settings::resolve(config, |name| std::env::var(name).ok())? else { return Ok(None) };
        let (provider, cluster) = export::provider(&settings, node)?;
        let tracer = opentelemetry::trace::TracerProvider::tracer(&provider, "chronicle-node");
        let state = TracerState { tracer: tracer.clone(), sampling: RwLock::new(settings.sampling), cluster };
        STATE.set(state).map_err(|_| TracesError::Started)?;
        Ok(Some(Self { provider, tracer, shutdown: Duration::from_millis(config.shutdown_ms) }))
    }

    /// Applies new sampling settings, of `config` and the standard variables of the process. Does nothing without
    /// traces.
    pub(crate) fn resample(config: &TracesConfig) {
        let Some(state) = STATE.get() else { return };
        match settings::sampling(config, &|name| std::env::var(name).ok()) {
            Ok(sampling) => *state.sampling.write() = sampling,
            Err(error) => tracing::error!(%error, "cannot change trace sampling, previous settings stay in effect"),
        }
    }

    /// Returns the layer that turns spans with the target [`SPANS`] into OpenTelemetry spans.
    pub fn layer<S>(&self) -> impl Layer<S> + use<S>
    where
        S: Subscriber + for<'a> LookupSpan<'a>,
    {
        tracing_opentelemetry::layer()
            .with_tracer(self.tracer.clone())
            .with_location(false)
            .with_threads(false)
            .with_target(false)
            .with_level(false)
            .with_tracked_inactivity(false)
            // All spans with this target have this level. Without the hint, the filter would run for every disabled
            // event of the process.
            .with_filter(filter_fn(|metadata| metadata.target() == SPANS).with_max_level_hint(LevelFilter::ERROR))
    }

    /// Exports the queued spans, for at most `telemetry.traces.shutdown-ms`, and stops.
    pub async fn shutdown(self) {
        let stopped = crate::host::blocking(move || self.provider.shutdown_with_timeout(self.shutdown)).await;
        if let Ok(Err(error)) = stopped {
            tracing::warn!(%error, "the last spans were not sent");
        }
    }
}

/// Adds the cluster id to spans exported from now on.
pub(crate) fn of_cluster(cluster: Uuid) {
    if let Some(state) = STATE.get() {
        let _ = state.cluster.set(cluster);
    }
}

/// Returns the sampled span that is active here.
pub(crate) fn current() -> Option<SpanContext> {
    STATE.get()?;
    Context::map_current(|context| {
        let sampled = context.has_active_span() && context.span().span_context().is_sampled();
        sampled.then(|| context.span().span_context().clone())
    })
}

/// Returns the trace id of the sampled request whose span is active here, as 32 hexadecimal digits: for exemplars and
/// log lines.
pub fn current_trace_id() -> Option<String> {
    current().map(|context| context.trace_id().to_string())
}

/// Adds attributes to the sampled span that is active here, if there is one.
pub(crate) fn describe(attributes: impl FnOnce() -> Vec<KeyValue>) {
    if STATE.get().is_none() {
        return;
    }
    Context::map_current(|context| {
        if context.has_active_span() && context.span().is_recording() {
            context.span().set_attributes(attributes());
        }
    });
}

/// Makes the span of a stage that has ended.
fn stage(
    parent: &SpanContext,
    name: &'static str,
    began: SystemTime,
    ended: SystemTime,
    more: impl FnOnce(&mut SpanBuilder),
) {
    let Some(state) = STATE.get() else { return };
    let mut builder = SpanBuilder::from_name(name).with_kind(SpanKind::Internal).with_start_time(began);
    more(&mut builder);
    let parent = Context::new().with_remote_span_context(parent.clone());
    state.tracer.build_with_context(builder, &parent).end_with_timestamp(ended);
}

/// A span that another node continues before it ends.
pub(crate) struct OpenSpan {
    context: Context,
}

impl OpenSpan {
    /// Begins a span of a call to another node.
    pub(crate) fn call(parent: &SpanContext, name: &'static str, peer: u64) -> Option<Self> {
        let state = STATE.get()?;
        let builder = SpanBuilder::from_name(name)
            .with_kind(SpanKind::Client)
            .with_attributes([KeyValue::new("chronicle.peer.id", i64::try_from(peer).unwrap_or(i64::MAX))]);
        let parent = Context::new().with_remote_span_context(parent.clone());
        let span = state.tracer.build_with_context(builder, &parent);
        Some(Self { context: Context::new().with_span(span) })
    }

    /// Returns the span's context.
    pub(crate) fn context(&self) -> SpanContext {
        self.context.span().span_context().clone()
    }

    /// Ends it.
    pub(crate) fn end(self, error: Option<String>) {
        if let Some(error) = error {
            self.context.span().set_status(Status::error(error));
        }
        self.context.span().end();
    }
}
