//! Which entries on their way carry sampled requests: the side table that openraft's path through the log has no room for.
//!
//! On the leader an entry is here from its append to its application, on a follower from its arrival to its append. Empty as
//! long as nothing is sampled, and then each look costs one relaxed load.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::SystemTime;

use chronicle_proto::internal as proto;
use opentelemetry::trace::{SpanContext, SpanId, TraceFlags, TraceId, TraceState};
use parking_lot::Mutex;

use crate::telemetry::traces::{EntryTrace, PARENTS_MAX};

/// Entries remembered; beyond them the oldest is forgotten. As many as a leader may have in flight.
const ENTRIES_MAX: usize = 1024;
/// Sampled requests told to a follower with one message.
pub(super) const TOLD_MAX: usize = 64;

/// An entry with sampled requests.
#[derive(Clone)]
pub(super) struct TracedEntry {
    pub(super) trace: Arc<EntryTrace>,
    /// When it was appended here, or came.
    pub(super) at: SystemTime,
}

/// The entries of one group, by index.
#[derive(Default)]
pub(super) struct Traced {
    count: AtomicUsize,
    entries: Mutex<BTreeMap<u64, TracedEntry>>,
}

impl Traced {
    /// Whether there is none. What one task has put here another one sees that was woken by it afterwards.
    pub(super) fn is_empty(&self) -> bool {
        self.count.load(Ordering::Relaxed) == 0
    }

    pub(super) fn insert(&self, index: u64, entry: TracedEntry) {
        let mut entries = self.entries.lock();
        entries.insert(index, entry);
        while entries.len() > ENTRIES_MAX {
            entries.pop_first();
        }
        self.count.store(entries.len(), Ordering::Relaxed);
    }

    pub(super) fn get(&self, index: u64) -> Option<TracedEntry> {
        if self.is_empty() {
            return None;
        }
        self.entries.lock().get(&index).cloned()
    }

    pub(super) fn take(&self, index: u64) -> Option<TracedEntry> {
        if self.is_empty() {
            return None;
        }
        let mut entries = self.entries.lock();
        let taken = entries.remove(&index);
        self.count.store(entries.len(), Ordering::Relaxed);
        taken
    }

    /// What another node tells about the entries of its message. Answers their indexes, for [`Traced::forget`].
    pub(super) fn received(&self, told: &[proto::TracedEntry]) -> Vec<u64> {
        let mut parents: BTreeMap<u64, Vec<SpanContext>> = BTreeMap::new();
        for told in told.iter().take(TOLD_MAX) {
            if let Some(parent) = decode(&told.parent) {
                parents.entry(told.index).or_default().push(parent);
            }
        }
        let indexes = parents.keys().copied().collect();
        for (index, parents) in parents {
            let trace = EntryTrace::received(parents);
            let at = trace.since();
            self.insert(index, TracedEntry { trace, at });
        }
        indexes
    }

    /// Entries that were not appended after all.
    pub(super) fn forget(&self, indexes: &[u64]) {
        for index in indexes {
            self.take(*index);
        }
    }

    /// The log ends before `index` now.
    pub(super) fn cut(&self, index: u64) {
        if self.is_empty() {
            return;
        }
        let mut entries = self.entries.lock();
        entries.split_off(&index);
        self.count.store(entries.len(), Ordering::Relaxed);
    }
}

/// A span on the wire: trace id and span id. That it is sampled goes without saying.
pub(super) fn encode(context: &SpanContext) -> bytes::Bytes {
    let mut out = Vec::with_capacity(24);
    out.extend_from_slice(&context.trace_id().to_bytes());
    out.extend_from_slice(&context.span_id().to_bytes());
    out.into()
}

fn decode(bytes: &[u8]) -> Option<SpanContext> {
    let (trace, span) = bytes.split_first_chunk::<16>()?;
    let span: [u8; 8] = span.try_into().ok()?;
    let (trace, span) = (TraceId::from_bytes(*trace), SpanId::from_bytes(span));
    let context = SpanContext::new(trace, span, TraceFlags::SAMPLED, true, TraceState::default());
    context.is_valid().then_some(context)
}

const _: () = assert!(PARENTS_MAX <= TOLD_MAX);

#[cfg(test)]
mod tests {
    use super::*;

    fn told(index: u64, span: u64) -> proto::TracedEntry {
        let context =
            SpanContext::new(TraceId::from(7), SpanId::from(span), TraceFlags::SAMPLED, true, TraceState::default());
        proto::TracedEntry { index, parent: encode(&context) }
    }

    #[test]
    fn what_a_follower_is_told_is_there_until_it_is_taken() {
        let traced = Traced::default();
        let indexes = traced.received(&[told(3, 1), told(3, 2), told(5, 3)]);
        assert_eq!(indexes, [3, 5]);
        let parents = traced.take(3).unwrap().trace.parents().to_vec();
        assert_eq!(parents.iter().map(|p| p.span_id()).collect::<Vec<_>>(), [SpanId::from(1), SpanId::from(2)]);
        assert!(traced.take(3).is_none() && !traced.is_empty());
        traced.forget(&indexes);
        assert!(traced.is_empty());
    }

    #[test]
    fn bytes_that_are_no_span_are_ignored() {
        let traced = Traced::default();
        for parent in [&b""[..], &[1; 23], &[1; 25], &[0; 24]] {
            let entry = proto::TracedEntry { index: 1, parent: bytes::Bytes::copy_from_slice(parent) };
            assert!(traced.received(&[entry]).is_empty());
        }
        assert!(traced.is_empty());
    }

    #[test]
    fn however_much_is_told_it_stays_bounded() {
        let traced = Traced::default();
        let many: Vec<_> = (0..1000).map(|index| told(index, 1)).collect();
        assert_eq!(traced.received(&many).len(), TOLD_MAX);
        for round in 0..100 {
            let many: Vec<_> = (0..64).map(|index| told(round * 64 + index, 1)).collect();
            traced.received(&many);
        }
        assert_eq!(traced.entries.lock().len(), ENTRIES_MAX);
        traced.cut(0);
        assert!(traced.is_empty());
        let crowd: Vec<_> = (1..=64).map(|span| told(1, span)).collect();
        traced.received(&crowd);
        assert_eq!(traced.take(1).unwrap().trace.parents().len(), PARENTS_MAX);
    }
}
