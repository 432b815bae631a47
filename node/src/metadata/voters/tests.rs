use proptest::prelude::*;

use super::super::entities::NodeState;
use super::super::fixtures::{cluster, node};
use super::*;

fn observed(alive: &[u64], dead: &[(u64, u64)], current: &[u64]) -> ClusterObservation {
    ClusterObservation {
        alive: alive.iter().copied().collect(),
        dead_for_ms: dead.iter().copied().collect(),
        controller_voters: current.iter().copied().collect(),
    }
}

fn voters(state: &ControllerState, observed: &ClusterObservation, max: usize) -> Vec<u64> {
    controller_voters(state, observed, max).into_iter().collect()
}

#[test]
fn voters_are_odd_in_number_and_grow_with_the_cluster() {
    let grown = |nodes: usize, current: &[u64], max| {
        let alive: Vec<u64> = (1..=nodes as u64).collect();
        voters(&cluster(&vec![""; nodes]), &observed(&alive, &[], current), max)
    };
    assert_eq!(grown(1, &[1], 5), [1]);
    assert_eq!(grown(2, &[1], 5), [1], "two voters are lost with either");
    assert_eq!(grown(3, &[1], 5), [1, 2, 3]);
    assert_eq!(grown(4, &[1, 2, 3], 5), [1, 2, 3]);
    assert_eq!(grown(5, &[1, 2, 3], 5), [1, 2, 3, 4, 5]);
    assert_eq!(grown(9, &[2, 4, 9], 3), [2, 4, 9], "those that are fine stay");
    assert_eq!(grown(9, &[1, 2, 3, 4, 5], 3), [1, 2, 3]);
}

#[test]
fn a_dead_node_is_no_new_voter_and_an_old_one_has_time_to_come_back() {
    let state = cluster(&[""; 4]);
    assert_eq!(voters(&state, &observed(&[1, 2], &[(3, 99), (4, 99)], &[1]), 5), [1]);
    let long = PATIENCE_MS;
    assert_eq!(voters(&state, &observed(&[1, 2, 4], &[(3, long - 1)], &[1, 2, 3]), 5), [1, 2, 3]);
    assert_eq!(voters(&state, &observed(&[1, 2, 4], &[(3, long)], &[1, 2, 3]), 5), [1, 2, 4]);
    assert_eq!(voters(&state, &observed(&[1, 2], &[(3, long), (4, long)], &[1, 2, 3]), 5), [1, 2, 3]);
}

#[test]
fn a_leaving_node_votes_until_a_staying_node_replaces_it() {
    let mut state = cluster(&[""; 4]);
    state.nodes.get_mut(&2).unwrap().state = NodeState::Decommissioning;
    assert_eq!(voters(&state, &observed(&[1, 2, 3, 4], &[], &[1, 2, 3]), 5), [1, 3, 4]);
    assert_eq!(voters(&state, &observed(&[1, 2, 3], &[(4, 9)], &[1, 2, 3]), 5), [1, 2, 3]);
    // Three nodes, one leaves: two remain, one votes.
    let mut state = cluster(&[""; 3]);
    state.nodes.get_mut(&1).unwrap().state = NodeState::Decommissioning;
    assert_eq!(voters(&state, &observed(&[1, 2, 3], &[], &[1, 2, 3]), 5), [2]);
}

#[test]
fn new_voters_are_spread_over_zones() {
    let state = cluster(&["a", "a", "a", "b", "c"]);
    assert_eq!(voters(&state, &observed(&[1, 2, 3, 4, 5], &[], &[1]), 3), [1, 4, 5]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    /// The choice is the same after the change is carried out, and never an even number or a removed node.
    #[test]
    fn the_choice_is_odd_and_stable(
        states in prop::collection::vec((0u8..8, prop::bool::ANY, prop::bool::ANY, 0u64..60_000), 1..10),
        max in prop::sample::select(vec![1usize, 3, 5, 7]),
    ) {
        let mut state = ControllerState::default();
        let mut seen = ClusterObservation::default();
        for (id, (kind, alive, votes, dead_for)) in (1..).zip(states) {
            let mut info = node(id, ["a", "b", ""][id as usize % 3]);
            info.state = match kind {
                0 => NodeState::Removed,
                1 => NodeState::Decommissioning,
                2 => NodeState::Draining,
                _ => NodeState::Active,
            };
            if alive { seen.alive.insert(id); } else { seen.dead_for_ms.insert(id, dead_for); }
            if votes { seen.controller_voters.insert(id); }
            state.nodes.insert(id, info);
        }
        let chosen = controller_voters(&state, &seen, max);
        prop_assume!(chosen != seen.controller_voters);
        prop_assert!(chosen.len() % 2 == 1 && chosen.len() <= max, "{chosen:?}");
        prop_assert!(chosen.iter().all(|node| state.nodes[node].state != NodeState::Removed));
        for new in chosen.difference(&seen.controller_voters) {
            prop_assert!(seen.is_alive(*new) && state.nodes[new].state == NodeState::Active);
        }
        let after = ClusterObservation { controller_voters: chosen.clone(), ..seen };
        prop_assert_eq!(controller_voters(&state, &after, max), chosen);
    }
}
