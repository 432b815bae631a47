//! Lag of the other replicas of a led partition, in entries and in time.
//!
//! A replica is behind from the moment when the leader's log has an entry that the replica lacks. That moment and the end of the
//! log then are stored. When the replica reaches that end, the measurement restarts from now: a replica that follows under load at
//! a small distance is never behind for long.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::raft::RaftGroupStatus;

/// Reference point for the lag of one replica.
#[derive(Debug, Clone, Copy)]
struct LagStart {
    /// Last index of the leader's log at `since`.
    end: u64,
    since: Instant,
}

/// Lags of the other replicas of one partition.
#[derive(Debug, Default)]
pub(super) struct ReplicaLags {
    behind: BTreeMap<u64, LagStart>,
    now: ReplicaLag,
}

/// Lag of the other replicas of one partition, combined.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ReplicaLag {
    /// Raft entries that they lack, the sum.
    pub entries: u64,
    /// Raft entries that the replica with the largest lag lacks.
    pub entries_max: u64,
    /// Time that the replica with the longest lag has been behind.
    pub longest: Duration,
}

impl ReplicaLags {
    /// Updates the lags from the status of a group that this node leads.
    pub(super) fn observe(&mut self, status: &RaftGroupStatus, now: Instant) {
        let Some(end) = status.last else { return };
        let mut lag = ReplicaLag::default();
        self.behind.retain(|node, _| status.matched.contains_key(node));
        for (node, matched) in &status.matched {
            let lacks = matched.map_or(end + 1, |matched| end.saturating_sub(matched));
            if lacks == 0 {
                self.behind.remove(node);
                continue;
            }
            let behind = self.behind.entry(*node).or_insert(LagStart { end, since: now });
            if matched.is_some_and(|matched| matched >= behind.end) {
                *behind = LagStart { end, since: now };
            }
            lag.entries += lacks;
            lag.entries_max = lag.entries_max.max(lacks);
            lag.longest = lag.longest.max(now - behind.since);
        }
        self.now = lag;
    }

    /// Clears the lags: this node does not lead.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    pub(super) fn now(&self) -> ReplicaLag {
        self.now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(last: u64, matched: &[(u64, Option<u64>)]) -> RaftGroupStatus {
        RaftGroupStatus { last: Some(last), matched: matched.iter().copied().collect(), ..RaftGroupStatus::default() }
    }

    #[test]
    fn a_replica_is_behind_since_the_log_had_what_it_lacks() {
        let (mut lags, start) = (ReplicaLags::default(), Instant::now());
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        lags.observe(&status(9, &[(2, Some(9)), (3, None)]), at(0));
        assert_eq!(lags.now(), ReplicaLag { entries: 10, entries_max: 10, longest: Duration::ZERO });
        lags.observe(&status(19, &[(2, Some(15)), (3, Some(5))]), at(4));
        assert_eq!(lags.now(), ReplicaLag { entries: 18, entries_max: 14, longest: Duration::from_secs(4) });
        // It has reached the end of the log at the first measurement.
        lags.observe(&status(19, &[(2, Some(19)), (3, Some(10))]), at(6));
        assert_eq!(lags.now(), ReplicaLag { entries: 9, entries_max: 9, longest: Duration::ZERO });
        lags.observe(&status(19, &[(2, Some(19)), (3, Some(12))]), at(8));
        assert_eq!(lags.now().longest, Duration::from_secs(2));
        lags.observe(&status(19, &[(2, Some(19)), (3, Some(19))]), at(9));
        assert_eq!(lags.now(), ReplicaLag::default());
        lags.observe(&status(20, &[(2, Some(19))]), at(10));
        lags.clear();
        assert_eq!(lags.now(), ReplicaLag::default());
    }
}
