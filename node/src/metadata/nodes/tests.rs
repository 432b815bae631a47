use super::super::controller_state::ControllerCommand;
use super::super::entities::Placement;
use super::super::fixtures::{CLUSTER, all_alive, cluster, create, join, node, topic};
use super::*;

fn refusal(outcome: CommandOutcome) -> Refusal {
    match outcome {
        CommandOutcome::Refused(refusal) => refusal,
        other => panic!("not refused: {other:?}"),
    }
}

fn taken_in(outcome: CommandOutcome) -> NodeInfo {
    match outcome {
        CommandOutcome::Node(node) => node,
        other => panic!("not taken in: {other:?}"),
    }
}

/// A node that nobody knows, under some name.
fn stranger(uuid: u64, name: &str) -> NodeInfo {
    NodeInfo { name: name.into(), addresses: Addresses::of_data(format!("{name}:7400")), ..node(uuid, "") }
}

#[test]
fn a_node_gets_an_id_that_was_never_used_and_keeps_it() {
    let mut state = cluster(&[""; 3]);
    let four = taken_in(state.apply(join(&state.clone(), &node(77, ""), &[1, 2, 3])));
    assert_eq!((four.id, four.state), (4, NodeState::Active));
    let moved = NodeInfo { name: "other".into(), addresses: Addresses::of_data("other:1"), boot: 2, ..node(77, "") };
    let again = taken_in(state.apply(join(&state.clone(), &moved, &[1, 2, 3])));
    assert_eq!((again.id, again.name.as_str(), again.addresses.data(), again.joined_ms), (4, "other", "other:1", 5));
    state.apply(ControllerCommand::StartOperation { kind: OperationKind::Decommission, node: 4, now_ms: 6 });
    taken_in(state.apply(ControllerCommand::RemoveNode { node: 4, now_ms: 7 }));
    let removed = refusal(state.apply(join(&state.clone(), &moved, &[1, 2, 3])));
    assert_eq!(removed, Refusal::Removed { node: 4, name: "other".into() });
    assert_eq!(taken_in(state.apply(join(&state.clone(), &node(78, ""), &[1, 2, 3]))).id, 5);
}

#[test]
fn only_a_removed_node_has_departed_and_not_one_that_is_not_admitted_yet() {
    let mut state = cluster(&[""; 3]);
    taken_in(state.apply(join(&state.clone(), &node(77, ""), &[1, 2, 3])));
    let before = state.clone();
    assert_eq!(before.departed(4), None, "a member");
    assert_eq!(before.departed(5), None, "it may have joined, and lead, without this node's knowing");
    state.apply(ControllerCommand::StartOperation { kind: OperationKind::Decommission, node: 4, now_ms: 6 });
    assert_eq!(state.departed(4), None, "on its way out");
    let name = taken_in(state.apply(ControllerCommand::RemoveNode { node: 4, now_ms: 7 })).name;
    assert_eq!(state.departed(4), Some(Refusal::Removed { node: 4, name }));
    state.nodes.remove(&4);
    assert!(state.departed(4).is_some(), "forgotten, but its id was given");
    assert_eq!(ControllerState::default().departed(1), None, "nothing is agreed here yet");
}

#[test]
fn no_node_joins_a_cluster_that_is_not_bootstrapped_or_is_another_one() {
    let mut state = ControllerState::default();
    assert_eq!(refusal(state.apply(join(&state.clone(), &node(5, ""), &[]))), Refusal::NotFounded);
    let mut state = cluster(&[""]);
    let asked = Uuid::from_u128(99);
    let ControllerCommand::Join { uuid, name, addresses, zone, version, boot, now_ms, alive_uuids, .. } =
        join(&state, &node(5, ""), &[])
    else {
        unreachable!()
    };
    let mut ask = |cluster_id| {
        let (name, addresses, zone, version) = (name.clone(), addresses.clone(), zone.clone(), version.clone());
        let alive_uuids = alive_uuids.clone();
        refusal(state.apply(ControllerCommand::Join {
            uuid,
            name,
            addresses,
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
    let same_name = NodeInfo { addresses: Addresses::of_data("new:1"), ..stranger(9, "n2") };
    assert_eq!(refusal(state.apply(join(&state.clone(), &same_name, &[1, 2, 3]))), duplicate("name", "n2"));
    let same_address = NodeInfo { addresses: Addresses::of_data("n2:7400"), ..stranger(9, "n9") };
    assert_eq!(refusal(state.apply(join(&state.clone(), &same_address, &[1, 2]))), duplicate("address", "n2:7400"));
    // A known node may not take the name of a live one either, but that of a dead one.
    let renamed = NodeInfo { name: "n2".into(), ..node(1, "") };
    assert_eq!(refusal(state.apply(join(&state.clone(), &renamed, &[2]))), duplicate("name", "n2"));
    taken_in(state.apply(join(&state.clone(), &renamed, &[1, 3])));
    assert_eq!(state.nodes[&2].state, NodeState::Active, "a known node supersedes nobody");
    // The address of a dead node may be given again.
    taken_in(state.apply(join(&state.clone(), &same_address, &[1, 3])));
}

/// A node that advertises a Kafka listener, too.
fn with_kafka(node: NodeInfo, kafka: &str) -> NodeInfo {
    let others = [("kafka".parse().unwrap(), kafka.to_owned())].into();
    NodeInfo { addresses: Addresses::new(node.addresses.data(), others), ..node }
}

#[test]
fn a_node_has_the_addresses_that_it_announced_last() {
    let mut state = cluster(&[""; 3]);
    let kafka = "kafka".parse().unwrap();
    let address = |state: &ControllerState, id: u64| state.nodes[&id].addresses.get(&kafka).map(str::to_owned);
    let joined = with_kafka(node(77, ""), "n77:9092");
    assert_eq!(taken_in(state.apply(join(&state.clone(), &joined, &[1, 2, 3]))).addresses, joined.addresses);
    // A founder announces its other listeners when it starts.
    assert_eq!(address(&state, 1), None);
    let founder = with_kafka(node(1, ""), "n1:9092");
    taken_in(state.apply(join(&state.clone(), &founder, &[1, 2, 3])));
    assert_eq!(address(&state, 1).as_deref(), Some("n1:9092"));
    let moved = with_kafka(NodeInfo { boot: 2, ..node(77, "") }, "n77.example.com:9094");
    let moved = taken_in(state.apply(join(&state.clone(), &moved, &[1, 2, 3])));
    assert_eq!((moved.id, address(&state, 4).as_deref()), (4, Some("n77.example.com:9094")));
    taken_in(state.apply(join(&state.clone(), &NodeInfo { boot: 3, ..node(77, "") }, &[1, 2, 3])));
    assert_eq!(address(&state, 4), None, "it has no such listener any more");
}

#[test]
fn an_address_of_any_listener_of_a_live_node_is_refused() {
    let mut state = cluster(&[""; 3]);
    taken_in(state.apply(join(&state.clone(), &with_kafka(node(2, ""), "n2:9092"), &[1, 2, 3])));
    let conflict = |state: &ControllerState, node: &NodeInfo, alive: &[u64]| {
        let alive: Vec<Uuid> = alive.iter().map(|id| state.nodes[id].uuid).collect();
        state.address_conflict(node.uuid, &node.addresses, &alive)
    };
    let duplicate = |field: &str, value: &str| {
        let (field, value) = (field.into(), value.into());
        Some(Refusal::Duplicate { field, value, node: 2, uuid: Uuid::from_u128(2) })
    };
    let all = [1, 2, 3];
    let same = with_kafka(stranger(9, "n9"), "n2:9092");
    assert_eq!(conflict(&state, &same, &all), duplicate("addresses.kafka", "n2:9092"));
    let across = with_kafka(stranger(9, "n9"), "n2:7400");
    assert_eq!(conflict(&state, &across, &all), duplicate("addresses.kafka", "n2:7400"));
    let across = NodeInfo { addresses: Addresses::of_data("n2:9092"), ..stranger(9, "n9") };
    assert_eq!(conflict(&state, &across, &all), duplicate("address", "n2:9092"));
    // A member may not take it either. A dead node, a removed one and the node itself do not count.
    assert_eq!(conflict(&state, &with_kafka(node(3, ""), "n2:9092"), &all), duplicate("addresses.kafka", "n2:9092"));
    assert_eq!(conflict(&state, &same, &[1, 3]), None);
    assert_eq!(conflict(&state, &with_kafka(node(2, ""), "n2:9092"), &all), None);
    assert_eq!(conflict(&state, &with_kafka(stranger(9, "n9"), "n9:9092"), &all), None);
    // A wiped node and its former self have the same addresses and may both be alive for a moment.
    let wiped = with_kafka(stranger(9, "n2"), "n2:9092");
    let wiped = taken_in(state.apply(join(&state.clone(), &wiped, &[1, 3])));
    assert_eq!(conflict(&state, &wiped, &[1, 2, 3, 4]), None);
    assert_eq!(conflict(&state, &with_kafka(node(2, ""), "n2:9092"), &[1, 2, 3, 4]), None);
    state.nodes.get_mut(&4).unwrap().state = NodeState::Removed;
    state.nodes.get_mut(&2).unwrap().state = NodeState::Removed;
    assert_eq!(conflict(&state, &same, &[1, 2, 3, 4]), None);
}

/// Nodes of the version before apply the same log and know only the data listener's address: what they admit is admitted.
#[test]
fn applying_a_join_does_not_depend_on_the_addresses_of_other_listeners() {
    let mut with = cluster(&[""; 3]);
    let mut without = with.clone();
    for node in [node(2, ""), stranger(9, "n9"), stranger(10, "n10")] {
        let announced = with_kafka(node.clone(), "all-the-same:9092");
        let new = taken_in(with.apply(join(&with.clone(), &announced, &[1, 2, 3])));
        let old = taken_in(without.apply(join(&without.clone(), &node, &[1, 2, 3])));
        assert_eq!(NodeInfo { addresses: node.addresses, ..new }, old);
    }
}

#[test]
fn a_wiped_node_replaces_its_former_self() {
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
    let cancel = ControllerCommand::CancelOperation { id: operation.id, now_ms: 8 };
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
fn a_drain_ends_with_the_restart_and_not_with_a_report_of_the_same_process() {
    let mut state = cluster(&[""; 3]);
    state.apply(ControllerCommand::StartOperation { kind: OperationKind::Drain, node: 2, now_ms: 1 });
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
    state.apply(ControllerCommand::DeleteTopic { name: "t".into() });
    create(&mut state, topic("u", 2, 3, 2));
    let remove = ControllerCommand::RemoveNode { node: 3, now_ms: 9 };
    assert!(matches!(refusal(state.apply(remove.clone())), Refusal::NodeState { .. }));
    state.apply(ControllerCommand::StartOperation { kind: OperationKind::Decommission, node: 3, now_ms: 9 });
    assert_eq!(refusal(state.apply(remove.clone())), Refusal::NodeInUse { node: 3, partitions: 2 });
    state.apply(ControllerCommand::DeleteTopic { name: "u".into() });
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
        state.apply(ControllerCommand::StartOperation { kind: OperationKind::Decommission, node: id, now_ms: 1 });
        taken_in(state.apply(ControllerCommand::RemoveNode { node: id, now_ms: 2 }));
    }
    assert_eq!(state.nodes.len(), 2 + REMOVED_MAX);
}
