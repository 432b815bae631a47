//! Chooses the voters of the controller group.

use std::collections::BTreeSet;

use super::balancer::ClusterObservation;
use super::controller_state::ControllerState;
use super::entities::NodeState;

/// A voter that is dead for this long (milliseconds) is replaced by a node that is alive.
const PATIENCE_MS: u64 = 30_000;

/// Returns the target voters of the controller group: an odd number of the nodes that stay, at most `max`. The others are learners.
///
/// An odd number, since an even one needs a larger majority and survives no more losses: two voters lose their majority when
/// either of them dies, so a cluster of two nodes has one voter. Voters change as little as possible: a healthy voter stays, a
/// voter that leaves is kept until another node can replace it, and a voter that is merely dead is replaced only after 30 seconds,
/// and only by a node that is alive. Where there is a choice, voters are spread over zones.
pub(crate) fn controller_voters(state: &ControllerState, observed: &ClusterObservation, max: usize) -> BTreeSet<u64> {
    let current = &observed.controller_voters;
    let members = state.nodes.values().filter(|node| node.stays()).count();
    let target = odd(max.min(members));
    let state_of = |node: &u64| state.nodes.get(node).map_or(NodeState::Removed, |info| info.state);
    let stays = |node: &u64| state.nodes.get(node).is_some_and(|info| info.stays());

    let (dead, fine): (Vec<u64>, Vec<u64>) =
        current.iter().copied().filter(stays).partition(|node| observed.dead_for(*node, PATIENCE_MS));
    let mut chosen: Vec<u64> = fine;
    let mut spare: Vec<u64> = observed.targets(state).filter(|node| !current.contains(node)).collect();
    while chosen.len() < target && !spare.is_empty() {
        let best = (0..spare.len()).min_by_key(|at| (state.crowding(spare[*at], chosen.iter().copied()), spare[*at]));
        chosen.extend(best.map(|at| spare.remove(at)));
    }
    let leaving = current.iter().copied().filter(|node| state_of(node) == NodeState::Decommissioning);
    let missing = target.saturating_sub(chosen.len());
    chosen.extend(dead.into_iter().chain(leaving).take(missing));

    // Too many, or an even number because too few nodes are alive: drop the least useful ones.
    let size = odd(chosen.len().min(target));
    while chosen.len() > size.max(1) {
        let worst = (0..chosen.len()).max_by_key(|at| {
            let node = chosen[*at];
            let others = chosen.iter().copied();
            let draining = state_of(&node) != NodeState::Active;
            (!current.contains(&node), !observed.is_alive(node), draining, state.crowding(node, others), node)
        });
        let Some(worst) = worst else { break };
        chosen.remove(worst);
    }
    if chosen.is_empty() { current.clone() } else { chosen.into_iter().collect() }
}

/// The largest odd number up to `count`; 0 of 0.
fn odd(count: usize) -> usize {
    if count == 0 { 0 } else { (count - 1) | 1 }
}

#[cfg(test)]
mod tests;
