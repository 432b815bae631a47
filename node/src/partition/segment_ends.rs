//! Ends of segments: the leader ends a segment by an entry, which every replica writes and which ends its segment there. So the
//! segments of all replicas hold the same entries, and have the same content hash.
//!
//! The sequencer asks before each entry. Beside that, retention ends a segment whose records have expired ([`super::retention`]).
//! Should neither happen (the members do not all know control entries yet), the log itself ends a segment at twice the size
//! ([`super::storage`]).

use std::sync::Arc;
use std::sync::atomic::Ordering;

use chronicle_log::Log;

use super::environment::Environment;
use super::state_machine::{AppliedState, PartitionMachine};
use crate::host::now_ms;
use crate::raft::{ControlEntry, LeaderTerm, RaftGroup, RaftGroupError};

/// Bytes that an entry takes in a segment beside its payload, at most.
const ENTRY_OVERHEAD: u64 = 80;

/// Returns whether the leader may propose control entries: every member of the group runs a release that knows them. An earlier
/// release would refuse the entry, and with it everything after it.
///
/// A group whose log has one needs no answer of its members, of which some may be dead: all of them knew it then, and no other
/// becomes a member (`members.rs`).
pub(super) fn may_propose_control(
    env: &Environment,
    group: &RaftGroup<PartitionMachine>,
    shared: &AppliedState,
) -> bool {
    if shared.has_control_entries() {
        return true;
    }
    let status = group.status();
    status.voters.union(&status.learners).all(|node| env.cluster.knows_control_entries(*node))
}

/// Ends segments in one term of a leader.
pub(super) struct SegmentEnds {
    env: Arc<Environment>,
    group: Arc<RaftGroup<PartitionMachine>>,
    shared: Arc<AppliedState>,
    leader: LeaderTerm,
    /// Size at which a segment ends.
    segment_bytes: u64,
}

impl SegmentEnds {
    /// For a leader that is about to propose the first entry of its term, with everything in the log applied.
    pub(super) fn new(
        env: Arc<Environment>,
        group: Arc<RaftGroup<PartitionMachine>>,
        shared: Arc<AppliedState>,
        log: &Log,
        leader: LeaderTerm,
    ) -> Self {
        shared.open_bytes.store(log.open_bytes(), Ordering::Relaxed);
        let settings = env.cluster.settings(log.id());
        let segment_bytes = settings.map_or(u64::MAX, |settings| settings.segment_bytes.max(0) as u64);
        Self { env, group, shared, leader, segment_bytes }
    }

    /// Called before an entry with this payload is proposed: ends the segment first if the entry would exceed its size.
    ///
    /// # Errors
    /// When the group has stopped.
    pub(super) async fn before_entry(&self, payload_bytes: usize) -> Result<(), RaftGroupError> {
        let bytes = payload_bytes as u64 + ENTRY_OVERHEAD;
        let open = self.shared.open_bytes.load(Ordering::Relaxed);
        let full = open > 0 && open.saturating_add(bytes) > self.segment_bytes;
        if full && may_propose_control(&self.env, &self.group, &self.shared) {
            let time_ms = self.env.cluster.agreed_ms().unwrap_or_else(now_ms);
            let end = ControlEntry::SegmentEnd { time_ms };
            // Whether it is committed shows when it is applied. If it is not, neither are the entries behind it.
            self.group.propose(self.leader, end.into(), |_| {}).await?;
            self.shared.open_bytes.store(0, Ordering::Relaxed);
        }
        self.shared.open_bytes.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }
}
