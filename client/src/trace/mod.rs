//! OpenTelemetry: calls and records carry the application's active span, and readers get it back from records.
//!
//! There is nothing to enable. While no span is active, nothing is added. While one is active (of the `opentelemetry` API, or
//! of `tracing` through `tracing-opentelemetry`):
//!
//! - every call of `chronicle.v1.Log` carries it as `traceparent` and `tracestate` in its metadata;
//! - a [`Producer`](crate::Producer) starts a span `send <topic>` for each `send`, if the active span is sampled, with the
//!   application's global tracer provider. The span ends when the node has answered. Records carry it as the headers
//!   `traceparent` and `tracestate`, unless they have a `traceparent` already, and so does the request to the node;
//! - [`context_of`] returns the context of the writer of a record, and [`process`] starts a span in it.
//!
//! A request has the records of many calls. The node's spans belong to the first sampled one of them; the `send` spans of
//! the others are linked to it.

// Stands on `record.rs`, `error.rs` and `w3c.rs`; names nothing that sends.
pub mod w3c;

use chronicle_proto::v1;
use opentelemetry::trace::{Link, SpanContext, SpanKind, Status, TraceContextExt, Tracer};
use opentelemetry::{Context, KeyValue, global};
use tonic::metadata::MetadataValue;
use tonic::{Request, Status as GrpcStatus};

use crate::error::ClientError;
use crate::record::{Partition, Record, StoredRecord};

/// Name of the tracer that makes the spans of this crate.
const TRACER: &str = "chronicle-client";

/// The context in which a record was written, as parent of the reader's spans. Empty unless the record carries one.
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

/// Starts a span `process <topic>` for the work on a record, in the trace of the record's writer and linked to the span that is
/// active here. It ends when the last clone of the context is dropped. For a record without a context, it is a child of the
/// active span.
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

/// Writes a span into the metadata of a request.
pub fn inject(metadata: &mut tonic::metadata::MetadataMap, context: &SpanContext) {
    if let Ok(value) = MetadataValue::try_from(w3c::traceparent(context)) {
        metadata.insert(w3c::TRACEPARENT, value);
    }
    if let Some(value) = w3c::tracestate(context).and_then(|text| MetadataValue::try_from(text).ok()) {
        metadata.insert(w3c::TRACESTATE, value);
    }
}

/// Interceptor that adds the active span to a call.
pub(crate) fn with_active_span(mut request: Request<()>) -> Result<Request<()>, GrpcStatus> {
    if let Some(context) = active() {
        inject(request.metadata_mut(), &context);
    }
    Ok(request)
}

/// The type of the interceptor.
pub(crate) type Interceptor = fn(Request<()>) -> Result<Request<()>, GrpcStatus>;

/// The span of the records of one `send`, until they are answered.
#[derive(Debug)]
pub(crate) struct SendSpan {
    /// Has the `send` span if the caller's span is sampled; it ends when this is dropped.
    context: Context,
}

impl SendSpan {
    /// Starts the span and writes it into the records. `None`: no span is active here.
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
            // An application that forwards a record may want to keep its original context.
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

    /// The node answered.
    pub(crate) fn answered(&self, error: Option<&ClientError>) {
        if let Some(error) = error {
            self.context.span().set_status(Status::error(error.to_string()));
        }
    }
}

/// The trace context of a request with these spans: the first sampled one, else the first. The others are linked to it.
pub(crate) fn of_request<'a>(items: impl Iterator<Item = &'a SendSpan> + Clone) -> Option<v1::TraceContext> {
    let sampled = |sending: &&SendSpan| sending.context.span().span_context().is_sampled();
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

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLED: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    const QUIET: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";

    /// Sends a record while this span is active; the application has no tracer provider. Returns the record's headers and the
    /// request's span.
    fn sent(active: Option<&str>, record: Record) -> (Vec<(String, String)>, Option<String>) {
        let remote = active.map(|text| w3c::parse(text, "a=b").unwrap());
        let _active = remote.map(|remote| Context::new().with_remote_span_context(remote).attach());
        let mut records = [record];
        let sending = SendSpan::start(&Partition::new("t", 0), &mut records);
        let request = of_request(sending.iter().map(|sending| &**sending));
        let text = |value: Option<bytes::Bytes>| String::from_utf8(value.unwrap().to_vec()).unwrap();
        let headers = records[0].headers.clone().into_iter().map(|(name, value)| (name, text(value))).collect();
        (headers, request.map(|request| request.traceparent))
    }

    #[test]
    fn outside_any_span_nothing_is_added() {
        assert_eq!(sent(None, Record::value("x")), (Vec::new(), None));
    }

    #[test]
    fn a_sampled_span_goes_with_the_record_and_the_request() {
        let (headers, request) = sent(Some(SAMPLED), Record::value("x"));
        let expected = [("traceparent", SAMPLED), ("tracestate", "a=b")].map(|(a, b)| (a.to_owned(), b.to_owned()));
        assert_eq!((headers, request.as_deref()), (expected.to_vec(), Some(SAMPLED)));
    }

    #[test]
    fn an_unsampled_span_goes_with_the_request_and_adds_nothing_to_records() {
        assert_eq!(sent(Some(QUIET), Record::value("x")), (Vec::new(), Some(QUIET.to_owned())));
    }

    #[test]
    fn a_record_that_has_a_context_keeps_it() {
        let (headers, _) = sent(Some(SAMPLED), Record::value("x").header("traceparent", QUIET));
        assert_eq!(headers, [("traceparent".to_owned(), QUIET.to_owned())]);
    }

    #[test]
    fn of_many_items_the_first_sampled_one_goes_with_the_request() {
        let sending =
            |text| SendSpan { context: Context::new().with_remote_span_context(w3c::parse(text, "").unwrap()) };
        let other = SAMPLED.replace("00f067aa0ba902b7", "00f067aa0ba902b8");
        let items = [sending(QUIET), sending(SAMPLED), sending(&other)];
        assert_eq!(of_request(items.iter()).unwrap().traceparent, SAMPLED);
        assert_eq!(of_request(items[..1].iter()).unwrap().traceparent, QUIET);
        assert_eq!(of_request([].iter()), None);
    }

    #[test]
    fn a_reader_gets_the_context_back_and_nothing_from_malformed_headers() {
        let record = |value: Option<&'static str>| StoredRecord {
            headers: vec![v1::Header { key: "traceparent".into(), value: value.map(Into::into) }],
            ..StoredRecord::default()
        };
        let context = context_of(&record(Some(SAMPLED)));
        assert_eq!(w3c::traceparent(context.span().span_context()), SAMPLED);
        for malformed in [None, Some(""), Some("00-what")] {
            assert!(!context_of(&record(malformed)).span().span_context().is_valid());
        }
    }

    #[test]
    fn calls_carry_the_active_span() {
        let active = Context::new().with_remote_span_context(w3c::parse(SAMPLED, "a=b").unwrap()).attach();
        let request = with_active_span(Request::new(())).unwrap();
        assert_eq!(request.metadata().get("traceparent").unwrap(), SAMPLED);
        assert_eq!(request.metadata().get("tracestate").unwrap(), "a=b");
        drop(active);
        assert!(with_active_span(Request::new(())).unwrap().metadata().is_empty());
    }
}
