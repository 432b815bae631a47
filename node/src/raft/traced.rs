//! Table of the entries in flight that contain sampled requests. Separate, because openraft's entries have no field for
//! it.
//!
//! On the leader an entry is in the table from its append to its application, on a follower from its arrival to its
//! append. The table is empty while no request is sampled; then each look-up costs one relaxed load.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::SystemTime;

use chronicle_proto::internal as proto;
use opentelemetry::trace::{SpanContext, SpanId, TraceFlags, TraceId, TraceState};
use parking_lot::Mutex;

use crate::telemetry::traces::{EntryTrace, PARENTS_MAX};

/// Most entries in the table; beyond that the oldest is removed. As many as a leader may have in flight.
const ENTRIES_MAX: usize = 1024;
/// Most sampled requests in one message to a follower.
pub(super) const SENT_MAX: usize = 64;

/// An entry with sampled requests.
#[derive(Clone)]
pub(super) struct TracedEntry {
    pub(super) trace: Arc<EntryTrace>,
    /// When it was appended or received here.
    pub(super) at: SystemTime,
}

/// The traced entries of one group, by index.
#[derive(Default)]
pub(super) struct Traced {
    count: AtomicUsize,
    entries: Mutex<BTreeMap<u64, TracedEntry>>,
}

impl Traced {
    /// Whether the table is empty. A task sees the entries of another task that inserted them before waking it.
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

    /// Inserts the traced entries in a message of another node. Returns their indexes, for [`Traced::remove`].
    pub(super) fn received(&self, received: &[proto::TracedEntry]) -> Vec<u64> {
        let mut parents: BTreeMap<u64, Vec<SpanContext>> = BTreeMap::new();
        for entry in received.iter().take(SENT_MAX) {
            if let Some(parent) = decode(&entry.parent) {
                parents.entry(entry.index).or_default().push(parent);
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

    /// Removes entries that were not appended.
    pub(super) fn remove(&self, indexes: &[u64]) {
        for index in indexes {
            self.take(*index);
        }
    }

    /// Removes the entries from `index` on, because the log was truncated there.
    pub(super) fn cut(&self, index: u64) {
        if self.is_empty() {
            return;
        }
        let mut entries = self.entries.lock();
        entries.split_off(&index);
        self.count.store(entries.len(), Ordering::Relaxed);
    }
}

/// Encodes a span for the wire: trace id and span id. Only sampled spans are sent.
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

const _: () = assert!(PARENTS_MAX <= SENT_MAX);

#[cfg(test)]
mod tests {
    use super::*;

    fn traced_entry(index: u64, span: u64) -> proto::TracedEntry {
        let context =
            SpanContext::new(TraceId::from(7), SpanId::from(span), TraceFlags::SAMPLED, true, TraceState::default());
        proto::TracedEntry { index, parent: encode(&context) }
    }

    #[test]
    fn entries_that_a_follower_received_stay_until_they_are_taken() {
        let traced = Traced::default();
        let indexes = traced.received(&[traced_entry(3, 1), traced_entry(3, 2), traced_entry(5, 3)]);
        assert_eq!(indexes, [3, 5]);
        let parents = traced.take(3).unwrap().trace.parents().to_vec();
        assert_eq!(parents.iter().map(|p| p.span_id()).collect::<Vec<_>>(), [SpanId::from(1), SpanId::from(2)]);
        assert!(traced.take(3).is_none() && !traced.is_empty());
        traced.remove(&indexes);
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
    fn the_table_stays_bounded() {
        let traced = Traced::default();
        let many: Vec<_> = (0..1000).map(|index| traced_entry(index, 1)).collect();
        assert_eq!(traced.received(&many).len(), SENT_MAX);
        for round in 0..100 {
            let many: Vec<_> = (0..64).map(|index| traced_entry(round * 64 + index, 1)).collect();
            traced.received(&many);
        }
        assert_eq!(traced.entries.lock().len(), ENTRIES_MAX);
        traced.cut(0);
        assert!(traced.is_empty());
        let crowd: Vec<_> = (1..=64).map(|span| traced_entry(1, span)).collect();
        traced.received(&crowd);
        assert_eq!(traced.take(1).unwrap().trace.parents().len(), PARENTS_MAX);
    }
}
