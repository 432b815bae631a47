//! Decides which requests are traced: the sender's decision applies, else a fixed share of the requests.
//!
//! The rule of `parentbased_traceidratio` and its relatives in OpenTelemetry's specification, applied before a span
//! exists; the provider itself samples every span that reaches it.

use opentelemetry::trace::{SpanContext, TraceId};

/// How requests are sampled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sampling {
    /// A request with a parent span is traced when the parent is sampled.
    by_parent: bool,
    /// Traces whose 63-bit number is below this one are sampled.
    below: u64,
}

/// Numbers of traces.
const NUMBERS: u64 = 1 << 63;

impl Sampling {
    /// `ratio`: from 0 to 1.
    pub(super) fn new(by_parent: bool, ratio: f64) -> Self {
        // Saturates: a ratio of 1 takes all of them.
        let below = if ratio >= 1.0 { NUMBERS } else { (ratio.max(0.0) * NUMBERS as f64) as u64 };
        Self { by_parent, below }
    }

    /// Whether a request with this parent is traced.
    #[expect(clippy::disallowed_methods, reason = "sampling decides nothing but which requests have spans")]
    pub(super) fn samples(&self, parent: Option<&SpanContext>) -> bool {
        match parent {
            Some(parent) if self.by_parent => parent.is_sampled(),
            // The same result on every node that the trace passes.
            Some(parent) => number(parent.trace_id()) < self.below,
            None => self.below > 0 && (self.below == NUMBERS || rand::random::<u64>() >> 1 < self.below),
        }
    }
}

fn number(trace: TraceId) -> u64 {
    let [.., a, b, c, d, e, f, g, h] = trace.to_bytes();
    u64::from_be_bytes([a, b, c, d, e, f, g, h]) >> 1
}

#[cfg(test)]
mod tests {
    use opentelemetry::trace::{SpanId, TraceFlags, TraceState};

    use super::*;

    fn parent(number: u64, sampled: bool) -> SpanContext {
        let flags = TraceFlags::default().with_sampled(sampled);
        SpanContext::new(TraceId::from(u128::from(number)), SpanId::from(1), flags, true, TraceState::default())
    }

    #[test]
    fn the_parent_decides_where_there_is_one() {
        for ratio in [0.0, 0.5, 1.0] {
            let sampling = Sampling::new(true, ratio);
            assert!(sampling.samples(Some(&parent(u64::MAX, true))));
            assert!(!sampling.samples(Some(&parent(1, false))));
        }
    }

    #[test]
    fn a_ratio_takes_its_share_and_the_same_traces_everywhere() {
        let sampling = Sampling::new(false, 0.25);
        assert!(sampling.samples(Some(&parent(u64::MAX / 4 - 9, false))));
        assert!(!sampling.samples(Some(&parent(u64::MAX / 4 + 9, true))));
        let taken = (0..10_000).filter(|_| Sampling::new(true, 0.25).samples(None)).count();
        assert!((2_000..3_000).contains(&taken), "{taken}");
        assert!((0..1000).all(|_| Sampling::new(true, 1.0).samples(None) && !Sampling::new(true, 0.0).samples(None)));
    }
}
