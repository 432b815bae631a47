use super::super::controller_state::ControllerCommand;
use super::super::entities::NodeInfo;
use super::super::fixtures::{all_alive, cluster, create, join, node, topic};
use super::*;

fn start(state: &mut ControllerState, kind: OperationKind, node: u64) -> Result<Operation, Refusal> {
    match state.apply(ControllerCommand::StartOperation { kind, node, now_ms: 10 }) {
        CommandOutcome::Operation(operation) => Ok(operation),
        CommandOutcome::Refused(refusal) => Err(refusal),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_decommission_that_leaves_too_few_nodes_is_refused_with_the_numbers() {
    let mut state = cluster(&[""; 3]);
    create(&mut state, topic("one", 1, 1, 1));
    create(&mut state, topic("orders", 2, 1, 3));
    let refusal = start(&mut state, OperationKind::Decommission, 2).unwrap_err();
    assert_eq!(
        refusal.to_string(),
        "node 2: topic orders has 3 replicas of each partition: only 2 active nodes would remain without this node"
    );
    assert_eq!(state.nodes[&2].state, NodeState::Active);
    assert_eq!(start(&mut cluster(&[""]), OperationKind::Decommission, 1).unwrap_err(), Refusal::LastNode(1));
    assert_eq!(start(&mut state, OperationKind::Decommission, 9).unwrap_err(), Refusal::UnknownNode(9));
}

#[test]
fn nodes_leave_one_after_the_other() {
    let mut state = cluster(&[""; 5]);
    create(&mut state, topic("t", 1, 5, 2));
    let first = start(&mut state, OperationKind::Decommission, 2).unwrap();
    assert_eq!(first.total, state.partitions_on(2));
    assert_eq!(start(&mut state, OperationKind::Decommission, 2).unwrap(), first, "the same again is no new one");
    let refusal = start(&mut state, OperationKind::Replace, 3).unwrap_err();
    assert_eq!(refusal, Refusal::OperationRunning { id: 0, kind: OperationKind::Decommission, node: 2 });
    state.apply(ControllerCommand::CancelOperation { id: 0, now_ms: 11 });
    assert_eq!((state.nodes[&2].state, &state.operations[&0].state), (NodeState::Active, &OperationState::Cancelled));
    assert_eq!(state.operations[&0].finished_ms, 11);
    start(&mut state, OperationKind::Decommission, 3).unwrap();
}

#[test]
fn a_superseded_node_does_not_keep_others_from_leaving() {
    let mut state = cluster(&[""; 3]);
    create(&mut state, topic("t", 1, 3, 1));
    let wiped = NodeInfo { name: "n2".into(), ..node(9, "") };
    state.apply(join(&state.clone(), &wiped, &[1, 3]));
    start(&mut state, OperationKind::Decommission, 3).unwrap();
}

#[test]
fn a_drain_is_reverted_by_undrain_and_by_cancel() {
    let mut state = cluster(&[""; 3]);
    let drain = start(&mut state, OperationKind::Drain, 2).unwrap();
    assert_eq!(state.nodes[&2].state, NodeState::Draining);
    state.apply(ControllerCommand::SetNodeState { node: 2, state: NodeState::Active, now_ms: 12 });
    assert_eq!(state.operations[&drain.id].state, OperationState::Cancelled);
    let drain = start(&mut state, OperationKind::Drain, 2).unwrap();
    state.apply(ControllerCommand::CancelOperation { id: drain.id, now_ms: 13 });
    assert_eq!(state.nodes[&2].state, NodeState::Active);
    let again = state.apply(ControllerCommand::CancelOperation { id: drain.id, now_ms: 14 });
    assert_eq!(again, CommandOutcome::Refused(Refusal::OperationEnded(drain.id)));
    // A finished drain leaves the node drained.
    let drain = start(&mut state, OperationKind::Drain, 2).unwrap();
    state.apply(ControllerCommand::FinishOperation { id: drain.id, state: OperationState::Done, now_ms: 15 });
    assert_eq!(state.nodes[&2].state, NodeState::Draining);
    start(&mut state, OperationKind::Decommission, 2).unwrap();
    let drain = start(&mut state, OperationKind::Drain, 2);
    assert!(matches!(drain, Err(Refusal::NodeState { node: 2, state: NodeState::Decommissioning, .. })));
}

#[test]
fn only_the_newest_finished_operations_are_kept_and_all_that_run() {
    let mut state = cluster(&[""; 3]);
    create(&mut state, topic("t", 1, 3, 1));
    let long = start(&mut state, OperationKind::Decommission, 3).unwrap();
    for now_ms in 0..60 {
        let drain = start(&mut state, OperationKind::Drain, 2).unwrap();
        state.apply(ControllerCommand::FinishOperation { id: drain.id, state: OperationState::Done, now_ms });
    }
    assert_eq!(state.operations.len(), 1 + FINISHED_MAX);
    state.apply(ControllerCommand::FinishOperation {
        id: long.id,
        state: OperationState::Failed("why".into()),
        now_ms: 60,
    });
    assert!(state.operations.contains_key(&long.id), "it is old, but it ended last");
    assert_eq!(state.operations.len(), FINISHED_MAX);
    assert_eq!(state.nodes[&3].state, NodeState::Active);
}

#[test]
fn progress_reports_what_is_left_and_what_it_waits_for() {
    let mut state = cluster(&[""; 3]);
    create(&mut state, topic("t", 1, 3, 2));
    let leave = start(&mut state, OperationKind::Decommission, 3).unwrap();
    let mut observed = all_alive(&state);
    assert_eq!(remaining(&state, &leave, 0), 2);
    assert_eq!(waiting_for(&state, &leave, &observed), "waiting for 2 partitions to be moved off the node");
    observed.alive.remove(&2);
    assert!(waiting_for(&state, &leave, &observed).contains("1 of 2 voters are alive: needs 2"));
    observed.alive.insert(2);
    state.apply(ControllerCommand::DeleteTopic { name: "t".into() });
    let replaced = "waiting for another node to replace it as a voter of the controller group";
    assert_eq!(waiting_for(&state, &leave, &observed), replaced);
    observed.controller_voters.remove(&3);
    assert_eq!((remaining(&state, &leave, 0), waiting_for(&state, &leave, &observed)), (0, String::new()));
    let drain = start(&mut state, OperationKind::Drain, 1).unwrap();
    assert_eq!(remaining(&state, &drain, 7), 7);
}
