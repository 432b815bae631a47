//! How far the other replicas of a led partition are behind, in entries and in time.
//!
//! A replica is behind from the moment at which the log had an entry that it does not hold. When it reaches what was the end of
//! the log then, it is behind only since that was so: a replica that follows under load at a small distance is never behind for
//! long.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::raft::GroupStatus;

/// Where one replica was, and what it is measured by.
#[derive(Debug, Clone, Copy)]
struct Behind {
    /// Last index of the leader's log when this was noted.
    end: u64,
    since: Instant,
}

/// The other replicas of one partition.
#[derive(Debug, Default)]
pub(super) struct ReplicaLags {
    behind: BTreeMap<u64, Behind>,
    now: ReplicaLag,
}

/// The other replicas of one partition, together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ReplicaLag {
    /// Raft entries that they lack, the sum.
    pub entries: u64,
    /// Of the one that lacks most.
    pub entries_max: u64,
    /// For how long the one that is behind longest has been.
    pub longest: Duration,
}

impl ReplicaLags {
    /// Looks at a group that this node leads.
    pub(super) fn observe(&mut self, status: &GroupStatus, now: Instant) {
        let Some(end) = status.last else { return };
        let mut lag = ReplicaLag::default();
        self.behind.retain(|node, _| status.matched.contains_key(node));
        for (node, matched) in &status.matched {
            let lacks = matched.map_or(end + 1, |matched| end.saturating_sub(matched));
            if lacks == 0 {
                self.behind.remove(node);
                continue;
            }
            let behind = self.behind.entry(*node).or_insert(Behind { end, since: now });
            if matched.is_some_and(|matched| matched >= behind.end) {
                *behind = Behind { end, since: now };
            }
            lag.entries += lacks;
            lag.entries_max = lag.entries_max.max(lacks);
            lag.longest = lag.longest.max(now - behind.since);
        }
        self.now = lag;
    }

    /// Nothing is known any more: this node does not lead.
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

    fn status(last: u64, matched: &[(u64, Option<u64>)]) -> GroupStatus {
        GroupStatus { last: Some(last), matched: matched.iter().copied().collect(), ..GroupStatus::default() }
    }

    #[test]
    fn a_replica_is_behind_since_the_log_had_what_it_lacks() {
        let (mut lags, start) = (ReplicaLags::default(), Instant::now());
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        lags.observe(&status(9, &[(2, Some(9)), (3, None)]), at(0));
        assert_eq!(lags.now(), ReplicaLag { entries: 10, entries_max: 10, longest: Duration::ZERO });
        lags.observe(&status(19, &[(2, Some(15)), (3, Some(5))]), at(4));
        assert_eq!(lags.now(), ReplicaLag { entries: 18, entries_max: 14, longest: Duration::from_secs(4) });
        // It reached what was the end at first.
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
