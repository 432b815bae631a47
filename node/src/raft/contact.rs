//! Tracks when a group last had contact with a leader or a candidate. Elections depend on it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::lease::Ballot;

/// Time for which this node starts no election after it granted its vote or after a leadership transfer was requested.
/// An election takes two flushes on each side; a slow disk may need this long for them.
const ELECTION_GRACE: Duration = Duration::from_millis(500);

/// Last contacts with the group's leaders and candidates.
pub(super) struct LeaderContact {
    /// The node considers the leader failed. Reset by the next message from a leader.
    pub(super) leader_lost: AtomicBool,
    /// Another replica has requested a pre-vote and cannot win, because it lacks entries that this replica has.
    pub(super) leader_wanted: AtomicBool,
    /// When a message from a leader last arrived, in milliseconds since `started`; 0: never.
    pub(super) leader_ms: AtomicU64,
    /// When this node last granted a vote or saw a transfer to another node, likewise.
    candidate_ms: AtomicU64,
    /// The last term in which this node led and transferred leadership.
    pub(super) resigned: AtomicU64,
    /// The latest leader from which an append or a heartbeat has arrived, accepted or not.
    latest: Mutex<Ballot>,
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
            latest: Mutex::default(),
            started: Instant::now(),
        }
    }

    pub(super) fn now_ms(&self) -> u64 {
        // Starts at 1, because 0 means never.
        self.started.elapsed().as_millis() as u64 + 1
    }

    pub(super) fn leader(&self) {
        self.leader_ms.store(self.now_ms(), Ordering::Relaxed);
        self.leader_lost.store(false, Ordering::Relaxed);
        // The election has ended.
        self.candidate_ms.store(0, Ordering::Relaxed);
    }

    /// An append or a heartbeat of `leader` has arrived. To be called before raft sees it.
    pub(super) fn arrived(&self, leader: Ballot) {
        let mut latest = self.latest.lock();
        *latest = leader.max(*latest);
    }

    /// The latest leader, if it is a later one than `leader`.
    pub(super) fn later_than(&self, leader: Ballot) -> Option<Ballot> {
        Some(*self.latest.lock()).filter(|latest| *latest > leader)
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
