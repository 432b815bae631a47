//! The time on which the cluster decides: the median of the clocks of its live nodes. A clock that is wrong, this node's included,
//! decides nothing alone.
//!
//! Heartbeats carry the clocks; `peers/liveness.rs` keeps them.

use std::time::Duration;

use super::Cluster;
use crate::host::now_ms;
use crate::metadata::NodeState;

/// Age from which the clock in a heartbeat does not count any more. Heartbeats come several times a second.
const AGE_MAX: Duration = Duration::from_secs(3);

/// Returns the lower median of the clocks; `None`: they are not those of a majority of `members`.
fn median(mut clocks: Vec<i64>, members: usize) -> Option<i64> {
    if clocks.len() <= members / 2 {
        return None;
    }
    clocks.sort_unstable();
    clocks.get((clocks.len() - 1) / 2).copied()
}

impl Cluster {
    /// The time that a majority of the members agrees on, in milliseconds since the Unix epoch: the median of their clocks, of two
    /// the lower. `None` while this node does not know the clocks of a majority.
    pub(crate) fn agreed_ms(&self) -> Option<i64> {
        let mut clocks = self.peers.liveness().peer_clocks(AGE_MAX);
        clocks.push(now_ms());
        let state = self.state();
        let members = state.nodes.values().filter(|node| node.state != NodeState::Removed).count();
        median(clocks, members)
    }

    /// By how many milliseconds this node's clock is ahead of the agreed time (negative: behind).
    pub(crate) fn clock_ahead_ms(&self) -> Option<i64> {
        self.agreed_ms().map(|agreed| now_ms().saturating_sub(agreed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOURS_12: i64 = 12 * 3600 * 1000;

    #[test]
    fn one_wrong_clock_of_three_decides_nothing() {
        for wrong in [-HOURS_12, HOURS_12, i64::MIN, i64::MAX] {
            for (own, others) in [(wrong, [1000, 1010]), (1000, [wrong, 1010]), (1010, [1000, wrong])] {
                let agreed = median([&[own][..], &others].concat(), 3).unwrap();
                assert!((1000..=1010).contains(&agreed), "{own} and {others:?}: {agreed}");
            }
        }
    }

    #[test]
    fn of_an_even_number_the_lower_one_counts_so_that_less_expires() {
        assert_eq!(median(vec![5 + HOURS_12, 5], 2), Some(5));
        assert_eq!(median(vec![7, 5 + HOURS_12], 3), Some(7), "one of three is dead");
        assert_eq!(median(vec![4, 3, 2, 1], 4), Some(2));
        assert_eq!(median(vec![9], 1), Some(9), "alone");
        assert_eq!(median(vec![9], 0), Some(9), "before it knows the members");
    }

    #[test]
    fn without_a_majority_there_is_no_agreed_time() {
        assert_eq!(median(vec![1], 2), None);
        assert_eq!(median(vec![1], 3), None);
        assert_eq!(median(vec![1, 2], 4), None);
        assert_eq!(median(vec![1, 2, 3], 5), Some(2));
    }
}
