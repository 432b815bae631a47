//! When a group last had contact with a leader or a candidate: what elections go by.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// How long a candidate that got this node's vote, or was asked to take over, is left alone. An election takes two flushes
/// on each side; a slow disk may need this long for them.
const ELECTION_GRACE: Duration = Duration::from_millis(500);

/// What this node has heard of the group's leaders and candidates.
pub(super) struct LeaderContact {
    /// The node has reason to think that the leader is gone; until a leader is heard again.
    pub(super) leader_lost: AtomicBool,
    /// Another replica wants a leader, and cannot be it because it lacks entries that are here.
    pub(super) leader_wanted: AtomicBool,
    /// When a leader was last heard, in milliseconds since `started`; 0: never.
    pub(super) leader_ms: AtomicU64,
    /// When another node was last helped to become the leader, likewise.
    candidate_ms: AtomicU64,
    /// The last term in which this node led and handed leadership over.
    pub(super) resigned: AtomicU64,
    started: Instant,
}

impl LeaderContact {
    pub(super) fn new() -> Self {
        Self {
            leader_lost: AtomicBool::new(false),
            leader_wanted: AtomicBool::new(false),
            leader_ms: AtomicU64::new(0),
            candidate_ms: AtomicU64::new(0),
            resigned: AtomicU64::new(0),
            started: Instant::now(),
        }
    }

    pub(super) fn now_ms(&self) -> u64 {
        // From 1, so that 0 is never.
        self.started.elapsed().as_millis() as u64 + 1
    }

    pub(super) fn leader(&self) {
        self.leader_ms.store(self.now_ms(), Ordering::Relaxed);
        self.leader_lost.store(false, Ordering::Relaxed);
        // The election is over.
        self.candidate_ms.store(0, Ordering::Relaxed);
    }

    pub(super) fn candidate(&self) {
        self.candidate_ms.store(self.now_ms(), Ordering::Relaxed);
    }

    pub(super) fn election_under_way(&self) -> bool {
        match self.candidate_ms.load(Ordering::Relaxed) {
            0 => false,
            at => self.now_ms() - at < ELECTION_GRACE.as_millis() as u64,
        }
    }

    pub(super) fn has_resigned(&self, term: u64) -> bool {
        term > 0 && self.resigned.load(Ordering::Relaxed) == term
    }
}
