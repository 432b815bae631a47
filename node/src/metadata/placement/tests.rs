use proptest::prelude::*;

use super::super::controller_state::ControllerCommand;
use super::super::fixtures::{cluster, create, topic};
use super::*;

const ID: Uuid = Uuid::from_u128(1);

fn spread(state: &ControllerState) -> (u32, u32) {
    let loads = state.loads();
    let range = |of: &dyn Fn(u64) -> u32| {
        let counts: Vec<u32> = state.nodes.keys().map(|node| of(*node)).collect();
        counts.iter().max().unwrap() - counts.iter().min().unwrap()
    };
    (range(&|node| loads.replicas(node)), range(&|node| loads.leaders(node)))
}

#[test]
fn replicas_are_in_different_zones_while_there_are_enough() {
    let mut state = cluster(&["a", "a", "a", "b", "c"]);
    create(&mut state, topic("t", 1, 12, 3));
    for placement in &state.placements[&ID] {
        let mut zones: Vec<&str> = placement.replicas.iter().map(|node| state.nodes[node].zone.as_str()).collect();
        zones.sort_unstable();
        assert_eq!(zones, ["a", "b", "c"]);
    }
    let in_a: Vec<u32> = (1..=3).map(|node| state.loads().replicas(node)).collect();
    assert_eq!(in_a, [4, 4, 4]);
}

#[test]
fn a_draining_node_takes_replicas_last_and_is_preferred_by_none() {
    let mut state = cluster(&["", "", "", ""]);
    state.apply(ControllerCommand::SetNodeState { node: 2, state: NodeState::Draining, now_ms: 1 });
    create(&mut state, topic("t", 1, 4, 3));
    assert_eq!(state.loads().replicas(2), 0);
    create(&mut state, topic("all", 2, 8, 4));
    assert_eq!((state.loads().replicas(2), state.loads().leaders(2)), (8, 0));
}

#[test]
fn ties_are_not_broken_by_the_lowest_id() {
    let mut state = cluster(&[""; 9]);
    for id in 1..=9 {
        create(&mut state, topic(&format!("t{id}"), id, 1, 1));
    }
    let order: Vec<u64> = (1..=9).map(|id| state.placements[&Uuid::from_u128(id)][0].replicas[0]).collect();
    assert!(!order.is_sorted(), "{order:?}");
    assert_eq!(spread(&state), (0, 0));
}

#[test]
fn the_partitions_of_one_leader_have_their_second_replica_on_several_nodes() {
    let mut state = cluster(&[""; 5]);
    create(&mut state, topic("t", 1, 100, 3));
    let followed_by =
        |second: u64| state.placements[&ID].iter().filter(|p| p.replicas[0] == 1 && p.replicas[1] == second).count();
    assert!((2..=5).all(|second| followed_by(second) > 0));
}

#[test]
fn the_designated_leader_is_the_first_live_voter_that_may_lead() {
    let mut state = cluster(&[""; 5]);
    let mut placement = Placement::founded(vec![3, 1, 2]);
    let leader = |placement: &Placement, dead: &[u64], state: &ControllerState| {
        designated_leader(placement, |node| !dead.contains(&node), state)
    };
    assert_eq!(leader(&placement, &[], &state), Some(3));
    assert_eq!(leader(&placement, &[3], &state), Some(1));
    assert_eq!(leader(&placement, &[1, 2, 3], &state), None);
    // 4 replaces 3: it has no log yet, and 3 still votes.
    placement.replicas = vec![4, 1, 2];
    assert_eq!(leader(&placement, &[], &state), Some(1));
    assert_eq!(leader(&placement, &[1, 2], &state), Some(3));
    // The report that 4 votes may have been lost with the old voters.
    assert_eq!(leader(&placement, &[1, 2, 3], &state), Some(4));
    state.apply(ControllerCommand::SetNodeState { node: 1, state: NodeState::Draining, now_ms: 1 });
    assert_eq!(leader(&placement, &[], &state), Some(2));
    assert_eq!(leader_candidates(&placement, |_| true, &state), [2, 3, 1, 4]);
    assert_eq!(leader(&placement, &[2, 3], &state), Some(1));
}

#[test]
fn an_assignment_changes_one_replica_and_is_checked() {
    let mut state = cluster(&[""; 4]);
    create(&mut state, topic("t", 1, 1, 2));
    let now = state.placements[&ID][0].replicas.clone();
    let free: Vec<u64> = (1..=4).filter(|node| !now.contains(node)).collect();
    let mut assign = |partition, from: &[u64], replicas: &[u64]| {
        let command =
            ControllerCommand::Assign { topic: ID, partition, from: from.to_vec(), replicas: replicas.to_vec() };
        match state.apply(command) {
            CommandOutcome::Refused(refusal) => refusal.to_string(),
            _ => String::new(),
        }
    };
    assert!(assign(0, &now, &[]).contains("must have at least one node"));
    assert!(assign(0, &now, &[now[0], now[0]]).contains("listed twice"));
    assert!(assign(0, &now, &[now[0], 77]).contains("node 77 does not exist"));
    assert!(assign(0, &now, &free).contains("may change one replica"));
    assert!(assign(0, &now, &now[..1]).contains("drop none"));
    assert!(assign(9, &now, &now).contains("partition 9: does not exist"));
    assert!(assign(0, &free, &[now[0], free[0]]).contains("are"), "planned from something else");
    assert_eq!(assign(0, &now, &[now[0], free[0]]), "");
    assert_eq!(assign(0, &now, &[now[0], free[0]]), "", "once more is no change");
    assert!(!state.placements[&ID][0].settled());
}

#[test]
fn a_late_report_of_voters_does_not_undo_a_newer_one_and_founders_leave_permanently() {
    let mut state = cluster(&[""; 4]);
    create(&mut state, topic("t", 1, 1, 1));
    let old = state.placements[&ID][0].replicas[0];
    let new = old % 4 + 1;
    state.apply(ControllerCommand::Assign { topic: ID, partition: 0, from: vec![old], replicas: vec![new] });
    let mut settle = |voters: &[u64], index| {
        let outcome =
            state.apply(ControllerCommand::Settle { topic: ID, partition: 0, voters: voters.to_vec(), index });
        (outcome, state.placements[&ID][0].clone())
    };
    let (_, moving) = settle(&[new, old], 5);
    assert!(!moving.settled() && moving.voters.is_sorted() && moving.founders == [old]);
    let (_, moved) = settle(&[new], 7);
    assert!(moved.settled() && moved.founders.is_empty());
    let (outcome, late) = settle(&[old], 6);
    assert_eq!((outcome, late), (CommandOutcome::Done(None), moved));
    assert!(matches!(settle(&[], 9).0, CommandOutcome::Refused(Refusal::InvalidReplicas { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn new_topics_spread_evenly_over_equal_nodes(
        nodes in 1usize..9,
        topics in prop::collection::vec((1i32..20, 1i32..4), 1..8),
    ) {
        let mut state = cluster(&vec![""; nodes]);
        for (id, (partitions, factor)) in topics.iter().enumerate() {
            let factor = (*factor).min(nodes as i32);
            create(&mut state, topic(&format!("t{id}"), id as u128 + 1, *partitions, factor));
            for placement in &state.placements[&Uuid::from_u128(id as u128 + 1)] {
                let mut distinct = placement.replicas.clone();
                distinct.sort_unstable();
                distinct.dedup();
                prop_assert_eq!(distinct.len(), factor as usize);
                prop_assert!(placement.settled());
            }
            prop_assert!(spread(&state).0 <= 1, "{:?}", state.loads());
        }
    }
}
