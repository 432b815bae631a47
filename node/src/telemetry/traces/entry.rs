//! The sampled requests of one raft entry, and the stages that they pass together.

use std::sync::Arc;
use std::time::SystemTime;

use opentelemetry::trace::{Link, SpanContext};

use super::stage;

/// Most sampled requests of one entry that get spans for its stages. Further requests get a link to the first one.
pub(crate) const PARENTS_MAX: usize = 8;

/// A sampled request in the queue of its partition.
#[derive(Debug)]
pub(crate) struct Queued {
    request: SpanContext,
    since: SystemTime,
}

impl Queued {
    /// Returns the request whose span is active here, as queued now; `None` when it is not sampled.
    #[expect(clippy::disallowed_methods, reason = "spans carry wall-clock times, which decide nothing")]
    pub(crate) fn now() -> Option<Box<Self>> {
        super::current().map(|request| Box::new(Self { request, since: SystemTime::now() }))
    }
}

/// The sampled requests of an entry.
#[derive(Debug, PartialEq, Eq)]
pub struct EntryTrace {
    parents: Vec<SpanContext>,
    since: SystemTime,
}

impl EntryTrace {
    /// Ends the queue stage of these requests, whose entry is being proposed. Returns `None` when there are none.
    pub(crate) fn proposed(requests: Vec<Queued>) -> Option<Arc<Self>> {
        let first = requests.first()?.request.clone();
        #[expect(clippy::disallowed_methods, reason = "spans carry wall-clock times, which decide nothing")]
        let since = SystemTime::now();
        for (at, Queued { request, since: queued }) in requests.iter().enumerate() {
            stage(request, "queue", *queued, since, |span| {
                if at >= PARENTS_MAX {
                    span.links = Some(vec![Link::with_context(first.clone())]);
                }
            });
        }
        let parents = requests.into_iter().map(|queued| queued.request).take(PARENTS_MAX).collect();
        Some(Arc::new(Self { parents, since }))
    }

    /// Returns the trace of an entry received now from another node. `parents` are spans of that node.
    #[expect(clippy::disallowed_methods, reason = "spans carry wall-clock times, which decide nothing")]
    pub(crate) fn received(mut parents: Vec<SpanContext>) -> Arc<Self> {
        parents.truncate(PARENTS_MAX);
        Arc::new(Self { parents, since: SystemTime::now() })
    }

    /// Returns the parents of the spans of its stages.
    pub(crate) fn parents(&self) -> &[SpanContext] {
        &self.parents
    }

    /// Returns the trace id of its first request, as 32 hexadecimal digits.
    pub(crate) fn trace_id(&self) -> Option<String> {
        self.parents.first().map(|parent| parent.trace_id().to_string())
    }

    /// Returns the time at which it was proposed or received.
    pub(crate) fn since(&self) -> SystemTime {
        self.since
    }

    /// Makes the spans of a stage that has ended.
    pub(crate) fn stage(&self, name: &'static str, began: SystemTime, ended: SystemTime) {
        for parent in &self.parents {
            stage(parent, name, began, ended, |_| {});
        }
    }
}
