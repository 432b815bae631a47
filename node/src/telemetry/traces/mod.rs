//! OpenTelemetry traces: which requests are traced, and the spans of a request on its way through the node.
//!
//! ```text
//! request (server) ── queue      from its place in the queue of the partition to its proposal
//!                  ├─ append     from the proposal to the entry in the log's memory
//!                  ├─ flush      from there to the flush of this replica
//!                  ├─ replicate  one per follower, with the follower's `append` and `flush` below it
//!                  ├─ commit     from the entry in memory to the word of a majority
//!                  └─ apply      by the state machine
//! ```
//!
//! Invariants:
//! - Whether a request is traced is decided once, when it arrives (`sampling`), before any span exists. One that is not
//!   costs a look at its headers here, and further down checks of an empty `Option`: no span, no allocation, no clock.
//! - Spans are made in arrears, by whoever knows when a stage began and ended; no layer waits for tracing. The queue to the
//!   exporter is bounded in spans, and what does not fit is dropped (`export`).
//! - One per process, as the log lines are.
//!
//! Request spans are spans of `tracing` on the target [`SPANS`], which `tracing-opentelemetry` turns into those of
//! OpenTelemetry and keeps active while the request is worked on. Log lines written meanwhile carry `trace_id` and `span_id`.
//!
//! Neighbours: `listeners/` and `peers/` begin requests; `partition/sequencer.rs` and `raft/` record stages; the W3C texts are
//! the client's (`chronicle_client::trace`).

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

/// Target of the `tracing` spans that become spans of OpenTelemetry. Log lines do not show them.
pub const SPANS: &str = "chronicle_traces";

static STATE: OnceLock<State> = OnceLock::new();

struct State {
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
    /// Starts what sends spans away, as the configuration and the standard `OTEL_*` variables of the process say. `None`:
    /// they name no endpoint, and nothing is traced. The exporter works on the current tokio runtime.
    ///
    /// # Errors
    /// A variable that does not parse, an endpoint that is none.
    pub fn start(config: &TracesConfig, node: &str) -> Result<Option<Self>, TracesError> {
        let Some(settings) = Settings::resolve(config, |name| std::env::var(name).ok())? else { return Ok(None) };
        let (provider, cluster) = export::provider(&settings, node)?;
        let tracer = opentelemetry::trace::TracerProvider::tracer(&provider, "chronicle-node");
        let state = State { tracer: tracer.clone(), sampling: RwLock::new(settings.sampling), cluster };
        STATE.set(state).map_err(|_| TracesError::Started)?;
        Ok(Some(Self { provider, tracer, shutdown: Duration::from_millis(config.shutdown_ms) }))
    }

    /// From now on requests are sampled as this says, and the standard variables of the process; without traces nothing happens.
    pub(crate) fn resample(config: &TracesConfig) {
        let Some(state) = STATE.get() else { return };
        match settings::sampling(config, &|name| std::env::var(name).ok()) {
            Ok(sampling) => *state.sampling.write() = sampling,
            Err(error) => tracing::error!(%error, "sampling stays as it was"),
        }
    }

    /// The layer that turns spans of the target [`SPANS`] into those of OpenTelemetry.
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
            // All of them are of this level; without the hint every disabled event of the process would be looked at.
            .with_filter(filter_fn(|metadata| metadata.target() == SPANS).with_max_level_hint(LevelFilter::ERROR))
    }

    /// Sends what is queued, for at most `telemetry.traces.shutdown-ms`, and stops.
    pub async fn shutdown(self) {
        let stopped = crate::host::blocking(move || self.provider.shutdown_with_timeout(self.shutdown)).await;
        if let Ok(Err(error)) = stopped {
            tracing::warn!(%error, "the last spans were not sent");
        }
    }
}

/// The node is part of this cluster: spans say so from now on.
pub(crate) fn of_cluster(cluster: Uuid) {
    if let Some(state) = STATE.get() {
        let _ = state.cluster.set(cluster);
    }
}

/// The sampled span that is active here.
pub(crate) fn current() -> Option<SpanContext> {
    STATE.get()?;
    Context::map_current(|context| {
        let sampled = context.has_active_span() && context.span().span_context().is_sampled();
        sampled.then(|| context.span().span_context().clone())
    })
}

/// Trace id of the sampled request that is being worked on here, as 32 hexadecimal digits: for exemplars and log lines.
pub fn current_trace_id() -> Option<String> {
    current().map(|context| context.trace_id().to_string())
}

/// Adds to the sampled span that is active here, if there is one.
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

/// Makes the span of a stage that is over.
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

/// A span that others continue before it ends: on another node.
pub(crate) struct Open {
    context: Context,
}

impl Open {
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

    /// The span.
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
