//! OpenTelemetry: the span that is active in the application goes with calls and records, and comes back from records.
//!
//! Nothing has to be switched on. Where no span is active, nothing is added to anything. Where one is (of the
//! `opentelemetry` API, or of `tracing` through `tracing-opentelemetry`):
//!
//! - every call carries it as `traceparent` and `tracestate` in its metadata;
//! - what a [`Producer`](crate::Producer) is handed gets a span `send <topic>` from then until it is answered, if the active span
//!   is sampled, by the application's global tracer provider. The record carries that span as the headers `traceparent` and
//!   `tracestate`, unless it has a `traceparent` already, and the request to the node does;
//! - [`context_of`] gives the reader of a record the context of the one who wrote it, and [`process`] begins a span there.
//!
//! A request holds the records of many calls. The node's spans belong to the first sampled one of them; the `send` spans of
//! the others are linked to it.

pub mod w3c;

use opentelemetry::trace::{Link, SpanContext, SpanKind, Status, TraceContextExt, Tracer};
use opentelemetry::{Context, KeyValue, global};
use tonic::metadata::MetadataValue;
use tonic::{Request, Status as GrpcStatus};

use crate::error::ClientError;
use crate::record::{Partition, Record, StoredRecord};
use crate::v1;

/// Name of the tracer that makes the spans of this crate.
const TRACER: &str = "chronicle-client";

/// The context that a record was written in, for spans of whoever reads it: empty unless the record carries one.
pub fn context_of(record: &StoredRecord) -> Context {
    let header = |name: &str| {
        let found = record.headers.iter().rev().find(|header| header.key == name)?;
        std::str::from_utf8(found.value.as_deref()?).ok()
    };
    let parent =
        header(w3c::TRACEPARENT).and_then(|text| w3c::parse(text, header(w3c::TRACESTATE).unwrap_or_default()));
    match parent {
        Some(parent) => Context::new().with_remote_span_context(parent),
        None => Context::new(),
    }
}

/// Begins a span `process <topic>` for the work on a record: in the trace of whoever wrote it, and linked to the span that is
/// active here. It ends with the last clone of the context. A record that carries no context gets a child of the active span.
pub fn process(partition: &Partition, record: &StoredRecord) -> Context {
    let parent = context_of(record);
    let active = active();
    let parent_is_known = parent.span().span_context().is_valid();
    let topic = partition.topic_name();
    let mut builder = global::tracer(TRACER)
        .span_builder(format!("process {topic}"))
        .with_kind(SpanKind::Consumer)
        .with_attributes(attributes(partition, "process"));
    if let (true, Some(active)) = (parent_is_known, active) {
        builder = builder.with_links(vec![Link::with_context(active)]);
    }
    let parent = if parent_is_known { parent } else { Context::current() };
    let span = global::tracer(TRACER).build_with_context(builder, &parent);
    parent.with_span(span)
}

fn attributes(partition: &Partition, operation: &'static str) -> Vec<KeyValue> {
    vec![
        KeyValue::new("messaging.system", "chronicle"),
        KeyValue::new("messaging.operation.name", operation),
        KeyValue::new("messaging.destination.name", partition.topic_name().to_owned()),
        KeyValue::new("messaging.destination.partition.id", partition.partition.to_string()),
    ]
}

/// The span that is active here, sampled or not.
fn active() -> Option<SpanContext> {
    Context::map_current(|context| {
        context.has_active_span().then(|| context.span().span_context().clone()).filter(SpanContext::is_valid)
    })
}

/// Puts a span into the metadata of a request.
pub fn inject(metadata: &mut tonic::metadata::MetadataMap, context: &SpanContext) {
    if let Ok(value) = MetadataValue::try_from(w3c::traceparent(context)) {
        metadata.insert(w3c::TRACEPARENT, value);
    }
    if let Some(value) = w3c::tracestate(context).and_then(|text| MetadataValue::try_from(text).ok()) {
        metadata.insert(w3c::TRACESTATE, value);
    }
}

/// Interceptor: the active span goes with every call.
pub(crate) fn with_active_span(mut request: Request<()>) -> Result<Request<()>, GrpcStatus> {
    if let Some(context) = active() {
        inject(request.metadata_mut(), &context);
    }
    Ok(request)
}

/// What the interceptor is called through.
pub(crate) type Interceptor = fn(Request<()>) -> Result<Request<()>, GrpcStatus>;

/// The trace of one handed-over item, until it is answered.
#[derive(Debug)]
pub(crate) struct Sending {
    /// With the item's own span, if it is sampled: that ends when this is dropped.
    context: Context,
}

impl Sending {
    /// Begins the span of an item and puts it into its records. `None`: no span is active here.
    pub(crate) fn start(partition: &Partition, records: &mut [Record]) -> Option<Box<Self>> {
        let active = active()?;
        if !active.is_sampled() {
            return Some(Box::new(Self { context: Context::new().with_remote_span_context(active) }));
        }
        let builder = global::tracer(TRACER)
            .span_builder(format!("send {}", partition.topic_name()))
            .with_kind(SpanKind::Producer)
            .with_attributes(attributes(partition, "send"));
        let span = global::tracer(TRACER).build_with_context(builder, &Context::current());
        let context = Context::new().with_span(span);
        let own = context.span().span_context().clone();
        let (traceparent, tracestate) = (w3c::traceparent(&own), w3c::tracestate(&own));
        for record in records {
            // Whoever passes a record on may have a reason to keep its first context.
            if record.headers.iter().any(|(name, _)| name == w3c::TRACEPARENT) {
                continue;
            }
            record.headers.push((w3c::TRACEPARENT.to_owned(), Some(traceparent.clone().into())));
            if let Some(state) = &tracestate {
                record.headers.push((w3c::TRACESTATE.to_owned(), Some(state.clone().into())));
            }
        }
        Some(Box::new(Self { context }))
    }

    /// The item was answered.
    pub(crate) fn answered(&self, error: Option<&ClientError>) {
        if let Some(error) = error {
            self.context.span().set_status(Status::error(error.to_string()));
        }
    }
}

/// What a request that holds these items tells the node: the first sampled one, else the first. The others are linked to it.
pub(crate) fn of_request<'a>(items: impl Iterator<Item = &'a Sending> + Clone) -> Option<v1::TraceContext> {
    let sampled = |sending: &&Sending| sending.context.span().span_context().is_sampled();
    let chosen = items.clone().find(sampled).or_else(|| items.clone().next())?;
    let context = chosen.context.span().span_context().clone();
    for other in items.filter(sampled).filter(|other| !std::ptr::eq(*other, chosen)) {
        other.context.span().add_link(context.clone(), Vec::new());
    }
    Some(v1::TraceContext {
        traceparent: w3c::traceparent(&context),
        tracestate: w3c::tracestate(&context).unwrap_or_default(),
    })
}
