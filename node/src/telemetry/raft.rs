//! Metrics of raft groups and sequencers: duration of each stage of an append, and changes of leadership. They are sums
//! over all groups of the node: no partition becomes a label.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::{Registry, Unit};

use super::latency::{Latency, LatencyMaker};
use super::traces::EntryTrace;

/// A stage of an append, in the order in which it passes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Of a request: from entering the partition's queue until the sequencer takes it.
    Queue,
    /// Of an entry on a replica: from raft to the log's tail in memory.
    Append,
    /// Of an entry on a replica: from the tail in memory until it is on disk.
    Flush,
    /// Of a message with entries, on the leader: until the follower has responded.
    Replicate,
    /// Of an entry, on the leader: from its proposal until it is committed and applied and its producers have their
    /// responses.
    Commit,
    /// Of an entry on a replica: the work of applying it.
    Apply,
}

impl Stage {
    const ALL: [Stage; 6] = [Self::Queue, Self::Append, Self::Flush, Self::Replicate, Self::Commit, Self::Apply];

    fn as_str(self) -> &'static str {
        match self {
            Self::Queue => "queue",
            Self::Append => "append",
            Self::Flush => "flush",
            Self::Replicate => "replicate",
            Self::Commit => "commit",
            Self::Apply => "apply",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StageLabels {
    stage: &'static str,
}

struct RaftFamilies {
    stages: Family<StageLabels, Latency, LatencyMaker>,
    /// The histograms of `stages`, by stage.
    resolved: [Latency; Stage::ALL.len()],
    elections: Counter,
    won: Counter,
    lost: Counter,
}

/// The metrics of all groups of one node. Cheap to clone.
#[derive(Clone)]
pub struct RaftMetrics(Arc<RaftFamilies>);

impl fmt::Debug for RaftMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RaftMetrics")
    }
}

impl Default for RaftMetrics {
    fn default() -> Self {
        let stages = Family::new_with_constructor(Latency::new as LatencyMaker);
        let resolved = Stage::ALL.map(|stage| stages.get_or_create_owned(&StageLabels { stage: stage.as_str() }));
        let (elections, won, lost) = Default::default();
        Self(Arc::new(RaftFamilies { stages, resolved, elections, won, lost }))
    }
}

impl RaftMetrics {
    /// Counts one passage through a stage.
    pub fn stage(&self, stage: Stage, took: Duration) {
        self.0.resolved[stage as usize].observe(took, None);
    }

    /// Counts the passage of a sampled entry through a stage: its trace becomes the exemplar.
    pub(crate) fn stage_of(&self, stage: Stage, took: Duration, entry: &EntryTrace) {
        self.0.resolved[stage as usize].observe(took, entry.trace_id());
    }

    /// Counts an election that this node starts in a group.
    pub fn election(&self) {
        self.0.elections.inc();
    }

    /// Counts a leadership that this node has won.
    pub fn won(&self) {
        self.0.won.inc();
    }

    /// Counts the end of a leadership of this node: transferred, lost, or stopped.
    pub fn lost(&self) {
        self.0.lost.inc();
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        let RaftFamilies { stages, elections, won, lost, .. } = &*self.0;
        registry.register_with_unit(
            "stage_duration",
            "Time spent in each stage of an append: queue (a request), append, flush, commit, apply (an entry), replicate (a message)",
            Unit::Seconds,
            stages.clone(),
        );
        registry.register("raft_elections", "Elections that this node started, in all groups", elections.clone());
        registry.register("raft_leaderships_won", "Leaderships that this node gained, in all groups", won.clone());
        registry.register(
            "raft_leaderships_lost",
            "Leaderships that this node transferred, lost, or gave up by stopping, in all groups",
            lost.clone(),
        );
    }
}
