//! Trace ids in log lines and exemplars: the one place that knows where a span keeps its trace.
//!
//! Whoever makes traces puts a [`TraceId`] into the extensions of its spans. Without that there are none, and looking costs
//! next to nothing.

use std::fmt;

use tracing_subscriber::Registry;
use tracing_subscriber::registry::{Extensions, LookupSpan};

/// Identity of a trace, as W3C Trace Context has it. Shown as 32 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceId(pub u128);

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// The trace that a span belongs to, from the span's extensions.
pub(super) fn trace_id_of(extensions: &Extensions<'_>) -> Option<TraceId> {
    extensions.get::<TraceId>().copied()
}

/// The trace that the caller is part of: that of the current span or of the nearest one around it.
pub fn current_trace_id() -> Option<TraceId> {
    let current = tracing::Span::current();
    current.with_subscriber(|(id, dispatch)| {
        let span = dispatch.downcast_ref::<Registry>()?.span(id)?;
        span.scope().find_map(|span| trace_id_of(&span.extensions()))
    })?
}

#[cfg(test)]
pub(crate) mod tests {
    use tracing::span::{Attributes, Id};
    use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

    use super::*;

    /// Makes every span without a parent the first of a trace with this id.
    pub(crate) struct Traced(pub(crate) u128);

    impl<S: tracing::Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Traced {
        fn on_new_span(&self, _: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
            let span = context.span(id).expect("the span is new");
            if span.parent().is_none() {
                span.extensions_mut().insert(TraceId(self.0));
            }
        }
    }

    #[test]
    fn the_trace_of_the_nearest_span_that_has_one_is_found() {
        assert_eq!(current_trace_id(), None);
        let subscriber = tracing_subscriber::registry().with(Traced(0xabc));
        tracing::subscriber::with_default(subscriber, || {
            assert_eq!(current_trace_id(), None);
            let _outer = tracing::info_span!("outer").entered();
            let _inner = tracing::info_span!("inner").entered();
            assert_eq!(current_trace_id(), Some(TraceId(0xabc)));
        });
        assert_eq!(TraceId(0xabc).to_string(), "00000000000000000000000000000abc");
    }
}
