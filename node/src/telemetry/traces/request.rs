//! The span of one request, from its headers to its response.

use std::borrow::Cow;

use chronicle_client::trace::w3c;
use chronicle_proto::v1;
use http::{HeaderMap, Method};
use opentelemetry::Context;
use opentelemetry::trace::{SpanContext, Status, TraceContextExt};
use tracing::instrument::Instrumented;
use tracing::{Instrument, Span};
use tracing_opentelemetry::OpenTelemetrySpanExt;

use super::{SPANS, STATE};
use crate::model::{ApiError, ErrorKind};

/// Longest name of a call that is used as it is, in bytes: the client chooses the name.
const NAME_BYTES_MAX: usize = 64;

/// Returns the remote parent in the headers of a request.
pub(crate) fn parent_of(headers: &HeaderMap) -> Option<SpanContext> {
    STATE.get()?;
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    w3c::parse(text(w3c::TRACEPARENT)?, text(w3c::TRACESTATE).unwrap_or_default())
}

/// Returns the remote parent in a message.
pub(crate) fn parent_in(trace: &v1::TraceContext) -> Option<SpanContext> {
    STATE.get()?;
    w3c::parse(&trace.traceparent, &trace.tracestate)
}

/// Returns the name of a call by its HTTP method and path: for gRPC `Service/Method`. `None`: a stream, each of whose
/// requests has its own span.
pub(crate) fn call_of<'a>(is_grpc: bool, method: &Method, path: &'a str) -> Option<Cow<'a, str>> {
    if is_grpc {
        let name = path.strip_prefix("/chronicle.v1.").filter(|name| name.len() <= NAME_BYTES_MAX).unwrap_or("gRPC");
        return (!name.ends_with("Stream") && name != "gRPC").then_some(Cow::Borrowed(name));
    }
    // Not the path: it contains topic names.
    let what = match path.rsplit('/').next().unwrap_or_default() {
        _ if path == "/" => "records",
        "records" => "records",
        "offsets" => "offsets",
        _ => "topics",
    };
    Some(Cow::Owned(format!("HTTP {} {what}", if method.as_str().len() > 7 { "?" } else { method.as_str() })))
}

/// The span of a request; disabled when it is not sampled. Ends when the last clone is dropped.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    span: Span,
}

impl Request {
    /// A request that is not traced.
    pub(crate) fn untraced() -> Self {
        Self { span: Span::none() }
    }

    /// Decides whether a request with this parent is traced, and begins its span if so. Calls `name` only then; without
    /// a name there is no span.
    pub(crate) fn begin<'a>(parent: Option<SpanContext>, name: impl FnOnce() -> Option<Cow<'a, str>>) -> Self {
        let Some(state) = STATE.get() else { return Self::untraced() };
        if !state.sampling.read().samples(parent.as_ref()) {
            return Self::untraced();
        }
        let Some(name) = name() else { return Self::untraced() };
        // At level error, so that no level filter drops it; the span itself is not logged.
        let span = tracing::error_span!(
            target: SPANS,
            parent: None,
            "request",
            otel.name = &*name,
            otel.kind = "server",
        );
        if let Some(parent) = parent {
            // Fails only for a span that has begun already, which this one has not.
            let _ = span.set_parent(Context::new().with_remote_span_context(parent));
        }
        Self { span }
    }

    /// As [`Request::begin`], for one request of a ProduceStream: with its own context, else the context of the call.
    pub(crate) fn begin_streamed(own: Option<&v1::TraceContext>, of_call: Option<&SpanContext>) -> Option<Box<Self>> {
        STATE.get()?;
        let parent = own.and_then(parent_in).or_else(|| of_call.cloned());
        let request = Self::begin(parent, || Some(Cow::Borrowed("Log/ProduceStream")));
        (!request.span.is_disabled()).then(|| Box::new(request))
    }

    /// Wraps `work` so that the request's span is active whenever `work` is polled.
    pub(crate) fn instrument<F: Future>(&self, work: F) -> Instrumented<F> {
        work.instrument(self.span.clone())
    }

    /// Runs `work` with the request's span active.
    pub(crate) fn in_scope<T>(&self, work: impl FnOnce() -> T) -> T {
        self.span.in_scope(work)
    }

    /// Records the response: a failure of the node marks the span as an error, a rejected request does not.
    pub(crate) fn answered<B>(&self, response: &http::Response<B>) {
        if self.span.is_disabled() {
            return;
        }
        let grpc = response.headers().get("grpc-status").and_then(|code| code.to_str().ok()?.parse::<i64>().ok());
        let http = i64::from(response.status().as_u16());
        match grpc {
            Some(code) => self.span.set_attribute("rpc.grpc.status_code", code),
            None => self.span.set_attribute("http.response.status_code", http),
        }
        // UNKNOWN, DEADLINE_EXCEEDED, INTERNAL, UNAVAILABLE, DATA_LOSS.
        if http >= 500 || grpc.is_some_and(|code| matches!(code, 2 | 4 | 13 | 14 | 15)) {
            self.span.set_status(Status::error(""));
        }
    }

    /// Records that one request of a stream failed or was rejected.
    pub(crate) fn failed(&self, error: &ApiError) {
        self.span.set_attribute("error.type", error.reason.as_str());
        if matches!(error.kind(), ErrorKind::Unknown | ErrorKind::Fatal | ErrorKind::Retry) {
            self.span.set_status(Status::error(error.message.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_calls_do_not_grow_with_what_callers_make_up() {
        let name = |is_grpc: bool, method: &str, path: &str| {
            call_of(is_grpc, &method.parse().unwrap(), path).map(Cow::into_owned).unwrap_or_default()
        };
        assert_eq!(name(true, "POST", "/chronicle.v1.Log/Produce"), "Log/Produce");
        assert_eq!(name(true, "POST", "/chronicle.v1.Log/ProduceStream"), "");
        assert_eq!(name(true, "POST", &format!("/chronicle.v1.{}", "x".repeat(65))), "");
        assert_eq!(name(true, "POST", "/grpc.health.v1.Health/Check"), "");
        assert_eq!(name(false, "POST", "/"), "HTTP POST records");
        assert_eq!(name(false, "GET", "/v1/topics/t/partitions/0/records"), "HTTP GET records");
        assert_eq!(name(false, "GET", "/v1/topics/made-up"), "HTTP GET topics");
        assert_eq!(name(false, "MADEUPMETHOD", "/x"), "HTTP ? topics");
    }
}
