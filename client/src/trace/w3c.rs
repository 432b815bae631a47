//! W3C Trace Context, level 1: conversion of `traceparent` and `tracestate` to a span context and back.
//!
//! Source of the format: <https://www.w3.org/TR/trace-context/>. Malformed values are ignored, never refused: a trace must not
//! decide whether a request is served.

use std::str::FromStr;

use opentelemetry::trace::{SpanContext, SpanId, TraceFlags, TraceId, TraceState};

/// Name of the header, of HTTP requests and of records, that identifies the parent span.
pub const TRACEPARENT: &str = "traceparent";
/// Name of the header with vendor-specific data.
pub const TRACESTATE: &str = "tracestate";

/// Bytes of a `traceparent` of version 00.
const TRACEPARENT_BYTES: usize = 55;
/// A longer `tracestate` is left out, in bytes. The standard requires every party to propagate at least this much.
const TRACESTATE_BYTES_MAX: usize = 512;

/// The remote span that a `traceparent` identifies; `None` when the text is malformed. A `tracestate` that is malformed or too
/// long is treated as empty.
pub fn parse(traceparent: &str, tracestate: &str) -> Option<SpanContext> {
    let bytes = traceparent.as_bytes();
    let parts = [(2, 35), (35, 52), (52, TRACEPARENT_BYTES)];
    if bytes.len() < TRACEPARENT_BYTES || !bytes.is_ascii() || parts.iter().any(|(at, _)| bytes[*at] != b'-') {
        return None;
    }
    let version = hex(&traceparent[..2])?;
    // A later version may have more fields after these, separated by a dash.
    let fits = match bytes.get(TRACEPARENT_BYTES) {
        None => true,
        Some(next) => version > 0 && *next == b'-',
    };
    if version == 0xff || !fits {
        return None;
    }
    let [trace_id, span_id, flags] = parts.map(|(at, end)| &traceparent[at + 1..end]);
    let trace_id = TraceId::from(hex(trace_id)?);
    let span_id = SpanId::from(u64::try_from(hex(span_id)?).ok()?);
    // The other bits are not used.
    let flags = TraceFlags::new(u8::try_from(hex(flags)?).ok()?) & TraceFlags::SAMPLED;
    let state = match tracestate {
        "" => TraceState::default(),
        text if text.len() > TRACESTATE_BYTES_MAX => TraceState::default(),
        text => TraceState::from_str(text).unwrap_or_default(),
    };
    let context = SpanContext::new(trace_id, span_id, flags, true, state);
    context.is_valid().then_some(context)
}

/// The `traceparent` of a span.
pub fn traceparent(context: &SpanContext) -> String {
    let flags = context.trace_flags() & TraceFlags::SAMPLED;
    format!("00-{}-{}-{:02x}", context.trace_id(), context.span_id(), flags.to_u8())
}

/// The `tracestate` of a span; `None` when it is empty or too long to be propagated.
pub fn tracestate(context: &SpanContext) -> Option<String> {
    let text = context.trace_state().header();
    (!text.is_empty() && text.len() <= TRACESTATE_BYTES_MAX).then_some(text)
}

/// Parses hexadecimal digits; lower case only, as the standard requires.
fn hex(text: &str) -> Option<u128> {
    let is_lower_hex = text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    is_lower_hex.then(|| u128::from_str_radix(text, 16).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn what_is_written_is_read_back() {
        let context = parse(TEXT, "congo=t61rcWkgMzE,rojo=00f067aa0ba902b7").unwrap();
        assert!(context.is_sampled() && context.is_remote());
        assert_eq!(traceparent(&context), TEXT);
        assert_eq!(tracestate(&context).unwrap(), "congo=t61rcWkgMzE,rojo=00f067aa0ba902b7");
        let quiet = TEXT.replace("-01", "-00");
        let context = parse(&quiet, "").unwrap();
        assert!(!context.is_sampled());
        assert_eq!((traceparent(&context), tracestate(&context)), (quiet, None));
    }

    #[test]
    fn malformed_texts_identify_no_span() {
        let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
        for text in [
            String::new(),
            "00".into(),
            TEXT[..54].into(),
            format!("{TEXT}0"),
            format!("{TEXT}-00"),
            TEXT.to_uppercase(),
            format!("ff{}", &TEXT[2..]),
            TEXT.replace(trace, &"0".repeat(32)),
            TEXT.replace("00f067aa0ba902b7", &"0".repeat(16)),
            TEXT.replace(trace, &format!("+{}", &trace[1..])),
            TEXT.replace("736-", "736_"),
            format!("00-{trace}-00f067aa0ba902b7-\u{e9}1"),
        ] {
            assert_eq!(parse(&text, ""), None, "{text}");
        }
    }

    #[test]
    fn a_later_version_is_read_as_far_as_it_is_known() {
        let text = format!("cc{}-what-comes-later", &TEXT[2..]);
        assert_eq!(traceparent(&parse(&text, "").unwrap()), TEXT);
        assert_eq!(parse(&format!("cc{}.x", &TEXT[2..]), ""), None);
    }

    #[test]
    fn a_trace_state_that_is_malformed_or_too_long_is_left_out() {
        let long = format!("a={}", "x".repeat(600));
        for state in ["no equals sign", long.as_str()] {
            assert_eq!(tracestate(&parse(TEXT, state).unwrap()), None);
        }
    }
}
