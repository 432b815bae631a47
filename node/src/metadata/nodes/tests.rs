use super::super::fixtures::{CLUSTER, all_alive, cluster, create, join, node, topic};
use super::super::state::Command;
use super::super::types::Placement;
use super::*;

fn refusal(outcome: Outcome) -> Refusal {
    match outcome {
        Outcome::Refused(refusal) => refusal,
        other => panic!("not refused: {other:?}"),
    }
}

fn taken_in(outcome: Outcome) -> NodeInfo {
    match outcome {
        Outcome::Node(node) => node,
        other => panic!("not taken in: {other:?}"),
    }
}

/// A node that nobody knows, under some name.
fn stranger(uuid: u64, name: &str) -> NodeInfo {
    NodeInfo { name: name.into(), address: format!("{name}:7400"), ..node(uuid, "") }
}

#[test]
fn a_node_gets_an_id_that_was_never_used_and_keeps_it() {
    let mut state = cluster(&[""; 3]);
    let four = taken_in(state.apply(join(&state.clone(), &node(77, ""), &[1, 2, 3])));
    assert_eq!((four.id, four.state), (4, NodeState::Active));
    let moved = NodeInfo { name: "other".into(), address: "other:1".into(), boot: 2, ..node(77, "") };
    let again = taken_in(state.apply(join(&state.clone(), &moved, &[1, 2, 3])));
    assert_eq!((again.id, again.name.as_str(), again.address.as_str(), again.joined_ms), (4, "other", "other:1", 5));
    state.apply(Command::StartOperation { kind: OperationKind::Decommission, node: 4, now_ms: 6 });
    taken_in(state.apply(Command::RemoveNode { node: 4, now_ms: 7 }));
    let removed = refusal(state.apply(join(&state.clone(), &moved, &[1, 2, 3])));
    assert_eq!(removed, Refusal::Removed { node: 4, name: "other".into() });
    assert_eq!(taken_in(state.apply(join(&state.clone(), &node(78, ""), &[1, 2, 3]))).id, 5);
}

#[test]
fn only_who_was_removed_has_departed_and_not_who_is_still_to_be_heard_of() {
    let mut state = cluster(&[""; 3]);
    taken_in(state.apply(join(&state.clone(), &node(77, ""), &[1, 2, 3])));
    let before = state.clone();
    assert_eq!(before.departed(4), None, "a member");
    assert_eq!(before.departed(5), None, "it may have joined, and lead, without this node's knowing");
    state.apply(Command::StartOperation { kind: OperationKind::Decommission, node: 4, now_ms: 6 });
    assert_eq!(state.departed(4), None, "on its way out");
    let name = taken_in(state.apply(Command::RemoveNode { node: 4, now_ms: 7 })).name;
    assert_eq!(state.departed(4), Some(Refusal::Removed { node: 4, name }));
    state.nodes.remove(&4);
    assert!(state.departed(4).is_some(), "forgotten, but its id was given");
    assert_eq!(ControllerState::default().departed(1), None, "nothing is agreed here yet");
}

#[test]
fn nobody_joins_a_cluster_that_is_not_founded_or_is_another_one() {
    let mut state = ControllerState::default();
    assert_eq!(refusal(state.apply(join(&state.clone(), &node(5, ""), &[]))), Refusal::NotFounded);
    let mut state = cluster(&[""]);
    let asked = Uuid::from_u128(99);
    let Command::Join { uuid, name, address, zone, version, boot, now_ms, alive_uuids, .. } =
        join(&state, &node(5, ""), &[])
    else {
        unreachable!()
    };
    let mut ask = |cluster_id| {
        let (name, address, zone, version) = (name.clone(), address.clone(), zone.clone(), version.clone());
        let alive_uuids = alive_uuids.clone();
        refusal(state.apply(Command::Join {
            uuid,
            name,
            address,
            zone,
            version,
            boot,
            now_ms,
            cluster_id,
            alive_uuids,
        }))
    };
    assert_eq!(ask(asked), Refusal::ForeignCluster { asked, ours: CLUSTER });
    assert_eq!(ask(CLUSTER), Refusal::UnknownMember(uuid));
}

#[test]
fn names_and_addresses_of_live_nodes_are_not_given_twice() {
    let mut state = cluster(&[""; 3]);
    let duplicate = |field: &str, value: &str| Refusal::Duplicate {
        field: field.into(),
        value: value.into(),
        node: 2,
        uuid: Uuid::from_u128(2),
    };
    let same_name = NodeInfo { address: "new:1".into(), ..stranger(9, "n2") };
    assert_eq!(refusal(state.apply(join(&state.clone(), &same_name, &[1, 2, 3]))), duplicate("name", "n2"));
    let same_address = NodeInfo { address: "n2:7400".into(), ..stranger(9, "n9") };
    assert_eq!(refusal(state.apply(join(&state.clone(), &same_address, &[1, 2]))), duplicate("address", "n2:7400"));
    // A known node may not take the name of a live one either, but that of a dead one.
    let renamed = NodeInfo { name: "n2".into(), ..node(1, "") };
    assert_eq!(refusal(state.apply(join(&state.clone(), &renamed, &[2]))), duplicate("name", "n2"));
    taken_in(state.apply(join(&state.clone(), &renamed, &[1, 3])));
    assert_eq!(state.nodes[&2].state, NodeState::Active, "a known node supersedes nobody");
    // The address of a dead node may be given again.
    taken_in(state.apply(join(&state.clone(), &same_address, &[1, 3])));
}

#[test]
fn a_wiped_node_takes_the_place_of_its_former_self() {
    let mut state = cluster(&[""; 3]);
    create(&mut state, topic("t", 1, 6, 2));
    let before = state.placements.clone();
    let on_two = state.partitions_on(2);
    let four = taken_in(state.apply(join(&state.clone(), &stranger(9, "n2"), &[1, 3])));
    assert_eq!(four.id, 4);
    assert_eq!(state.nodes[&2].state, NodeState::Decommissioning);
    let operation = state.operations.values().next().unwrap();
    assert_eq!((operation.kind, operation.node, operation.total), (OperationKind::Replace, 2, on_two));
    assert_eq!(state.operations.len(), 1, "no rebalance: it takes what the old one had");
    for (old, new) in before.values().flatten().zip(state.placements.values().flatten()) {
        let swapped: Vec<u64> = old.replicas.iter().map(|node| if *node == 2 { 4 } else { *node }).collect();
        assert_eq!(new, &Placement { replicas: swapped, ..old.clone() }, "voters and founders are for the reconciler");
    }
    // It cannot be taken back, and whoever comes with the old disk is let in to give its data away.
    let cancel = Command::CancelOperation { id: operation.id, now_ms: 8 };
    assert!(matches!(refusal(state.clone().apply(cancel)), Refusal::NotCancellable { .. }));
    let old_disk = NodeInfo { boot: 5, ..node(2, "") };
    let back = taken_in(state.apply(join(&state.clone(), &old_disk, &[1, 3, 4])));
    assert_eq!((back.id, back.state), (2, NodeState::Decommissioning));
    assert_eq!(state.find_node("n2").unwrap().id, 4);
}

#[test]
fn a_node_that_is_wiped_again_and_again_leaves_no_replica_behind() {
    let mut state = cluster(&[""; 3]);
    create(&mut state, topic("t", 1, 6, 3));
    for life in 0..3u64 {
        let lives = 3 + life;
        taken_in(state.apply(join(&state.clone(), &stranger(100 + life, "n2"), &[1, 3])));
        for placement in state.placements.values().flatten() {
            assert!(placement.replicas.contains(&(lives + 1)) && placement.replicas.len() == 3, "{placement:?}");
        }
    }
    assert_eq!(state.nodes.values().filter(|node| node.state == NodeState::Decommissioning).count(), 3);
}

#[test]
fn a_drain_ends_with_the_restart_and_not_with_a_word_of_the_same_life() {
    let mut state = cluster(&[""; 3]);
    state.apply(Command::StartOperation { kind: OperationKind::Drain, node: 2, now_ms: 1 });
    assert_eq!(taken_in(state.apply(join(&state.clone(), &node(2, ""), &[1, 3]))).state, NodeState::Draining);
    let restarted = NodeInfo { boot: 2, ..node(2, "") };
    assert_eq!(taken_in(state.apply(join(&state.clone(), &restarted, &[1, 3]))).state, NodeState::Active);
    assert_eq!(state.operations[&0].state, OperationState::Done);
}

#[test]
fn a_new_node_and_a_new_zone_start_one_rebalance() {
    let mut state = cluster(&[""; 2]);
    state.apply(join(&state.clone(), &node(50, ""), &[1, 2]));
    assert!(state.operations.is_empty(), "nothing to spread");
    create(&mut state, topic("t", 1, 6, 1));
    state.apply(join(&state.clone(), &node(51, ""), &[1, 2]));
    state.apply(join(&state.clone(), &node(1, "b"), &[1, 2]));
    assert_eq!(state.operations.len(), 1);
    assert_eq!(state.operations[&0].kind, OperationKind::Rebalance);
}

#[test]
fn a_node_is_removed_only_when_nothing_needs_it() {
    let mut state = cluster(&[""; 3]);
    create(&mut state, topic("t", 1, 3, 2));
    state.apply(Command::DeleteTopic { name: "t".into() });
    create(&mut state, topic("u", 2, 3, 2));
    let remove = Command::RemoveNode { node: 3, now_ms: 9 };
    assert!(matches!(refusal(state.apply(remove.clone())), Refusal::NodeState { .. }));
    state.apply(Command::StartOperation { kind: OperationKind::Decommission, node: 3, now_ms: 9 });
    assert_eq!(refusal(state.apply(remove.clone())), Refusal::NodeInUse { node: 3, partitions: 2 });
    state.apply(Command::DeleteTopic { name: "u".into() });
    assert_eq!(taken_in(state.apply(remove.clone())).state, NodeState::Removed);
    assert_eq!(state.operations[&0].state, OperationState::Done);
    assert!(state.deleted.iter().all(|deleted| deleted.nodes == [1, 2]), "a removed node has no files to report");
    assert_eq!(all_alive(&state).alive.len(), 2);
}

#[test]
fn a_node_is_found_by_uuid_and_by_a_name_that_is_unique() {
    let mut state = cluster(&[""; 3]);
    assert_eq!(state.find_node("n3").unwrap().id, 3);
    assert_eq!(state.find_node(&Uuid::from_u128(2).to_string()).unwrap().id, 2);
    assert_eq!(state.find_node("n9").unwrap_err(), Refusal::NoSuchNode("n9".into()));
    state.nodes.get_mut(&3).unwrap().name = "n2".into();
    assert_eq!(state.find_node("n2").unwrap_err(), Refusal::AmbiguousName { name: "n2".into(), nodes: 2 });
}

#[test]
fn the_number_of_nodes_is_bounded_and_so_is_the_memory_of_removed_ones() {
    let mut state = cluster(&[""]);
    for uuid in 2..=NODES_MAX as u64 {
        taken_in(state.apply(join(&state.clone(), &node(uuid, ""), &[])));
    }
    let more = node(5000, "");
    assert_eq!(refusal(state.apply(join(&state.clone(), &more, &[]))), Refusal::TooManyNodes(NODES_MAX));
    let mut state = cluster(&[""; 2]);
    for uuid in 0..=(REMOVED_MAX as u64) {
        let id = taken_in(state.apply(join(&state.clone(), &stranger(5000 + uuid, "x"), &[1]))).id;
        assert_eq!(id, uuid + 3);
        state.apply(Command::StartOperation { kind: OperationKind::Decommission, node: id, now_ms: 1 });
        taken_in(state.apply(Command::RemoveNode { node: id, now_ms: 2 }));
    }
    assert_eq!(state.nodes.len(), 2 + REMOVED_MAX);
}
