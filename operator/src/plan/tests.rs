use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::jiff::Timestamp;
use proptest::prelude::*;

use super::*;
use crate::api::MemberState;

fn desired() -> DesiredState {
    DesiredState {
        name: "log".into(),
        namespace: "ns".into(),
        replicas: 3,
        storage_bytes: 10,
        revision: "new".into(),
        image: "chronicle:1".into(),
        files: vec!["now".into(), "founders".into()],
        version: None,
        paused: false,
        delete_claims: true,
        voters: 3,
        replace_lost: false,
        replace_after_seconds: 900,
        replace: None,
    }
}

fn pod(ordinal: i32, revision: &str) -> PodView {
    PodView {
        uid: format!("pod-{ordinal}"),
        resource_version: "1".into(),
        revision: revision.into(),
        image: "chronicle:1".into(),
        ready: true,
        running: true,
        terminating: false,
        unready_since: None,
        host: HostState::Present,
        trouble: String::new(),
    }
}

fn node(ordinal: i32) -> NodeView {
    NodeView {
        node_id: format!("node-{ordinal}"),
        raft_id: ordinal as u64 + 1,
        name: pod_name("log", ordinal),
        voter: ordinal < 3,
        state: MemberState::Active,
        alive: true,
        version: "1.0.0".into(),
        zone: String::new(),
        certificate_not_after: None,
        certificate_serial: None,
        answered: true,
        configuration: None,
    }
}

fn observed(pods: i32, revision: &str) -> ObservedState {
    let claim = |ordinal: i32| ClaimView {
        uid: format!("claim-{ordinal}"),
        requested: 10,
        terminating: false,
        lost: false,
        removed_node: None,
    };
    ObservedState {
        now: Timestamp::from_second(1_000_000).unwrap(),
        set: Some(SetView { uid: "set".into(), replicas: pods, template_bytes: 10, terminating: false }),
        pods: (0..pods).map(|ordinal| (ordinal, pod(ordinal, revision))).collect(),
        claims: (0..pods).map(|ordinal| (ordinal, claim(ordinal))).collect(),
        cluster: Some(ClusterView {
            id: "c".into(),
            leader: Some("node-0".into()),
            nodes: (0..pods).map(node).collect(),
            removed: BTreeSet::new(),
            offline: 0,
            under_replicated: 0,
            moving: 0,
            operations: Vec::new(),
        }),
        catch_up: CatchUp::Unknown,
        not_ready_to_start: None,
    }
}

fn recorded(size: i32) -> RecordedState {
    RecordedState { operation: None, size: Some(size), cluster_id: Some("c".into()) }
}

fn begun(step: &Step) -> (&OperationStatus, i32) {
    match step {
        Step::Begin { operation, size } => (operation, *size),
        other => panic!("{other:?} starts no operation"),
    }
}

fn waits(step: &Step) -> &str {
    match step {
        Step::Wait { message, .. } | Step::Blocked { message, .. } => message,
        other => panic!("{other:?} does not wait"),
    }
}

#[test]
fn the_highest_follower_is_rolled_first_and_the_leader_last() {
    let mut seen = observed(3, "old");
    assert_eq!(begun(&plan(&desired(), &recorded(3), &seen)).0.target, "log-2");
    seen.pods.get_mut(&2).unwrap().revision = "new".into();
    assert_eq!(begun(&plan(&desired(), &recorded(3), &seen)).0.target, "log-1");
    seen.pods.get_mut(&1).unwrap().revision = "new".into();
    assert_eq!(begun(&plan(&desired(), &recorded(3), &seen)).0.target, "log-0");
    seen.pods.get_mut(&0).unwrap().revision = "new".into();
    assert_eq!(plan(&desired(), &recorded(3), &seen), Step::Idle);
}

#[test]
fn a_pod_without_a_live_node_is_rolled_first() {
    let mut seen = observed(3, "old");
    seen.pods.get_mut(&0).unwrap().ready = false;
    seen.cluster.as_mut().unwrap().nodes[0].alive = false;
    seen.cluster.as_mut().unwrap().leader = Some("node-1".into());
    assert_eq!(begun(&plan(&desired(), &recorded(3), &seen)).0.target, "log-0");
}

#[test]
fn nothing_is_rolled_while_another_node_is_missing_or_the_cluster_is_not_whole() {
    type Spoil = fn(&mut ObservedState);
    let spoil: [(&str, Spoil); 6] = [
        ("is not ready", |seen| seen.pods.get_mut(&1).unwrap().ready = false),
        ("is missing", |seen| drop(seen.pods.remove(&1))),
        ("2 partitions have no majority", |seen| seen.cluster.as_mut().unwrap().offline = 2),
        ("3 partitions are under-replicated", |seen| seen.cluster.as_mut().unwrap().under_replicated = 3),
        ("4 partitions are being moved", |seen| seen.cluster.as_mut().unwrap().moving = 4),
        ("no majority of the controller group's voters responds", |seen| seen.cluster = None),
    ];
    for (why, spoil) in spoil {
        let mut seen = observed(3, "new");
        seen.pods.get_mut(&2).unwrap().revision = "old".into();
        spoil(&mut seen);
        let step = plan(&desired(), &recorded(3), &seen);
        assert!(waits(&step).contains(why), "{step:?} does not contain {why:?}");
    }
}

#[test]
fn leadership_is_transferred_before_a_pod_is_deleted_but_not_forever() {
    let mut seen = observed(3, "old");
    let (operation, size) = match plan(&desired(), &recorded(3), &seen) {
        Step::Begin { operation, size } => (operation, size),
        other => panic!("{other:?}"),
    };
    let recorded = RecordedState { operation: Some(operation), ..recorded(size) };
    assert_eq!(plan(&desired(), &recorded, &seen), Step::Drain { node_id: "node-2".into() });
    let cluster = seen.cluster.as_mut().unwrap();
    cluster.nodes[2].state = MemberState::Draining;
    cluster.operations.push(RunningOperation {
        kind: "drain".into(),
        node_id: "node-2".into(),
        reason: String::new(),
        remaining: 5,
    });
    assert!(waits(&plan(&desired(), &recorded, &seen)).contains("leads 5 partitions"));
    seen.now = Timestamp::from_second(1_000_060).unwrap();
    let Step::Advance { operation, .. } = plan(&desired(), &recorded, &seen) else { panic!("waits forever") };
    assert_eq!(operation.step, OperationStep::Pod);
    // Another node has gone in the meantime: the pod stays.
    seen.cluster.as_mut().unwrap().nodes[1].alive = false;
    let recorded = RecordedState { operation: Some(operation), ..recorded };
    assert!(waits(&plan(&desired(), &recorded, &seen)).contains("no heartbeat from node log-1"));
    seen.cluster.as_mut().unwrap().nodes[1].alive = true;
    assert!(
        waits(&plan(&desired(), &recorded, &seen)).contains("cannot confirm yet that the other nodes have all records")
    );
    seen.catch_up = CatchUp::Done;
    assert!(matches!(plan(&desired(), &recorded, &seen), Step::DeletePod { ordinal: 2, .. }));
}

#[test]
fn a_node_whose_removal_is_not_confirmed_keeps_its_pod() {
    let mut seen = observed(4, "new");
    let operation = match plan(&desired(), &recorded(4), &seen) {
        Step::Begin { operation, .. } => operation,
        other => panic!("{other:?}"),
    };
    assert_eq!((operation.kind, operation.node_id.as_deref()), (OperationKind::ScaleDown, Some("node-3")));
    let recorded = RecordedState { operation: Some(operation), ..recorded(4) };
    assert_eq!(plan(&desired(), &recorded, &seen), Step::Decommission { node_id: "node-3".into() });
    // Not in the list, and not known to be removed either: a response from before it joined, for example.
    seen.cluster.as_mut().unwrap().nodes.pop();
    assert!(waits(&plan(&desired(), &recorded, &seen)).contains("cannot confirm yet that node node-3"));
    seen.cluster.as_mut().unwrap().removed.insert("node-3".into());
    assert!(matches!(plan(&desired(), &recorded, &seen), Step::Advance { size: 3, .. }));
}

#[test]
fn a_node_on_an_unreachable_machine_is_not_replaced_and_the_message_has_the_action() {
    let mut seen = observed(3, "new");
    let lost = seen.pods.get_mut(&2).unwrap();
    (lost.ready, lost.host, lost.unready_since) =
        (false, HostState::Unreachable, Some(Timestamp::from_second(1).unwrap()));
    seen.claims.get_mut(&2).unwrap().lost = true;
    seen.cluster.as_mut().unwrap().nodes[2].alive = false;
    let auto = DesiredState { replace_lost: true, ..desired() };
    assert!(waits(&plan(&auto, &recorded(3), &seen)).contains("out-of-service"));
    seen.pods.get_mut(&2).unwrap().host = HostState::Gone;
    assert_eq!(begun(&plan(&auto, &recorded(3), &seen)).0.kind, OperationKind::Replace);
    seen.pods.get_mut(&2).unwrap().unready_since = Some(Timestamp::from_second(999_990).unwrap());
    assert!(waits(&plan(&auto, &recorded(3), &seen)).contains("unready for less than 900 seconds"));
}

#[test]
fn kept_volumes_make_a_cluster_as_large_as_it_was() {
    let mut seen = observed(5, "new");
    (seen.set, seen.pods, seen.cluster) = (None, BTreeMap::new(), None);
    seen.claims.get_mut(&4).unwrap().removed_node = Some("gone".into());
    let step = plan(&desired(), &RecordedState::default(), &seen);
    let (operation, size) = begun(&step);
    assert_eq!((operation.kind, size), (OperationKind::Create, 4));
}

#[test]
fn an_existing_set_whose_status_was_lost_is_taken_as_it_is() {
    let seen = observed(5, "new");
    assert_eq!(begun(&plan(&desired(), &RecordedState::default(), &seen)).1, 5);
}

fn reports(file: &str, restart: &[&str], error: &str) -> Option<NodeConfiguration> {
    let restart_fields = restart.iter().map(|field| (*field).to_owned()).collect();
    Some(NodeConfiguration { file_digest: file.into(), restart_fields, error: error.into() })
}

/// All nodes report the same configuration state.
fn all_report(seen: &mut ObservedState, configuration: &Option<NodeConfiguration>) {
    let nodes = &mut seen.cluster.as_mut().unwrap().nodes;
    nodes.iter_mut().for_each(|node| node.configuration = configuration.clone());
}

#[test]
fn the_operator_waits_for_nodes_to_load_the_file_unless_they_never_report_it() {
    let mut seen = observed(3, "new");
    assert_eq!(plan(&desired(), &recorded(3), &seen), Step::Idle, "older versions do not report what they loaded");
    all_report(&mut seen, &reports("now", &[], ""));
    seen.cluster.as_mut().unwrap().nodes[1].configuration = reports("founders", &[], "");
    assert_eq!(plan(&desired(), &recorded(3), &seen), Step::Idle);
    seen.cluster.as_mut().unwrap().nodes[2].configuration = reports("before", &["listeners.data"], "");
    let step = plan(&desired(), &recorded(3), &seen);
    assert!(waits(&step).contains("current configuration file: log-2;"), "{step:?}");
    assert!(matches!(step, Step::Wait { reason: CONFIGURATION_PENDING, .. }), "{step:?}");
    let unreachable = &mut seen.cluster.as_mut().unwrap().nodes[2];
    (unreachable.configuration, unreachable.answered) = (None, false);
    assert!(
        waits(&plan(&desired(), &recorded(3), &seen)).contains("log-2"),
        "a node that did not respond may be behind"
    );
    seen.cluster.as_mut().unwrap().nodes[2].alive = false;
    assert_eq!(not_loaded(&desired(), &seen), Vec::<String>::new(), "another condition reports dead nodes");
}

#[test]
fn a_roll_does_not_wait_for_the_file_that_it_brings() {
    let mut seen = observed(3, "old");
    all_report(&mut seen, &reports("before", &[], ""));
    assert_eq!(begun(&plan(&desired(), &recorded(3), &seen)).0.kind, OperationKind::Roll);
    let fields = reports("now", &["partitions.queue-bytes-max"], "");
    all_report(&mut seen, &fields);
    assert_eq!(begun(&plan(&desired(), &recorded(3), &seen)).0.target, "log-2");
}

#[test]
fn a_rejected_file_stops_the_roll_and_leaves_no_node_drained() {
    let refused =
        |step: &Step| assert!(matches!(step, Step::Blocked { reason: CONFIGURATION_REFUSED, .. }), "{step:?}");
    let mut seen = observed(3, "old");
    all_report(&mut seen, &reports("before", &[], ""));
    seen.cluster.as_mut().unwrap().nodes[0].configuration = reports("before", &[], "limits.topics-max: many");
    let step = plan(&desired(), &recorded(3), &seen);
    refused(&step);
    assert!(waits(&step).contains("log-0 rejects") && waits(&step).contains("limits.topics-max: many"), "{step:?}");
    // A roll that has begun turns back.
    let mut operation = begun(&plan(&desired(), &recorded(3), &observed(3, "old"))).0.clone();
    let begun_roll = |operation: &OperationStatus| RecordedState { operation: Some(operation.clone()), ..recorded(3) };
    assert_eq!(plan(&desired(), &begun_roll(&operation), &seen), Step::Finish);
    seen.cluster.as_mut().unwrap().nodes[2].state = MemberState::Draining;
    operation.step = OperationStep::Pod;
    seen.catch_up = CatchUp::Done;
    assert_eq!(plan(&desired(), &begun_roll(&operation), &seen), Step::Undrain { node_id: "node-2".into() });
    seen.cluster.as_mut().unwrap().nodes[2].state = MemberState::Active;
    // No node is added either: it would not start.
    let mut whole = observed(3, "new");
    all_report(&mut whole, &reports("before", &[], "no such field"));
    refused(&plan(&desired(), &recorded(3), &whole));
    refused(&plan(&DesiredState { replicas: 4, ..desired() }, &recorded(3), &whole));
    // A pod that does not run may be deleted.
    let broken = seen.pods.get_mut(&1).unwrap();
    (broken.running, broken.ready) = (false, false);
    assert!(matches!(plan(&desired(), &recorded(3), &seen), Step::DeletePod { ordinal: 1, .. }));
}

#[test]
fn a_rejection_by_another_version_does_not_count() {
    let mut seen = observed(3, "old");
    all_report(&mut seen, &reports("before", &[], "no such field"));
    let next = DesiredState { image: "chronicle:2".into(), ..desired() };
    assert_eq!(rejection(&next, &seen), None);
    assert_eq!(begun(&plan(&next, &recorded(3), &seen)).0.target, "log-2");
    // The same template, but the image name was rewritten.
    seen.pods.get_mut(&1).unwrap().revision = "new".into();
    assert!(rejection(&next, &seen).unwrap().starts_with("log-1 rejects"));
}

#[test]
fn a_node_that_cannot_apply_a_field_while_it_runs_is_restarted_once() {
    let mut seen = observed(3, "new");
    all_report(&mut seen, &reports("now", &[], ""));
    seen.cluster.as_mut().unwrap().nodes[1].configuration = reports("now", &["limits.idle-ms"], "");
    let step = plan(&desired(), &recorded(3), &seen);
    let (operation, _) = begun(&step);
    assert_eq!((operation.kind, operation.target.as_str()), (OperationKind::Roll, "log-1"));
    let under_way = RecordedState { operation: Some(operation.clone()), ..recorded(3) };
    assert_eq!(plan(&desired(), &under_way, &seen), Step::Drain { node_id: "node-1".into() });
    // Fields of a former file need no restart; neither does a node that reports nothing.
    for other in [reports("before", &["limits.idle-ms"], ""), reports("now", &[], ""), None] {
        seen.cluster.as_mut().unwrap().nodes[1].configuration = other;
        assert_eq!(plan(&desired(), &under_way, &seen), Step::Finish);
        assert!(!plan(&desired(), &recorded(3), &seen).acts());
    }
}

fn any_observed() -> impl Strategy<Value = (DesiredState, RecordedState, ObservedState)> {
    let pod_state = (0..6u8, prop::bool::ANY, prop::bool::ANY);
    let node_state = (prop::bool::ANY, 0..3u8);
    let configuration = prop_oneof![
        4 => Just(None),
        2 => Just(reports("now", &[], "")),
        2 => Just(reports("now", &["node.name"], "")),
        1 => Just(reports("before", &["node.name"], "")),
        1 => Just(reports("now", &[], "no such field")),
    ];
    let step = prop_oneof![
        Just(OperationStep::Drain),
        Just(OperationStep::Decommission),
        Just(OperationStep::DeleteClaim),
        Just(OperationStep::Pod),
        Just(OperationStep::Join),
        Just(OperationStep::Claim),
    ];
    let kind = prop_oneof![
        Just(OperationKind::Create),
        Just(OperationKind::ScaleUp),
        Just(OperationKind::ScaleDown),
        Just(OperationKind::Roll),
        Just(OperationKind::Replace),
        Just(OperationKind::Stop),
        Just(OperationKind::Start),
    ];
    (
        (0..6i32, prop::bool::ANY, prop::bool::ANY, 1..5i32),
        prop::collection::vec(pod_state, 5),
        prop::collection::vec(node_state, 5),
        prop::option::of((kind, step, 0..5i32)),
        (0..3u32, 0..2u32, prop::option::of(0..5i32), prop::bool::ANY, 0..3u8),
        (prop::collection::vec(configuration, 5), prop::bool::ANY, prop::bool::ANY),
    )
        .prop_map(
            |(
                (replicas, lost, delete, size),
                pods,
                nodes,
                operation,
                (spoil, moving, leader, known, remove),
                (configurations, another, caught_up),
            )| {
                let mut seen = observed(5, "new");
                seen.set.as_mut().unwrap().replicas = size;
                for (ordinal, (state, old, unreachable)) in pods.into_iter().enumerate() {
                    let ordinal = ordinal as i32;
                    let pod = seen.pods.get_mut(&ordinal).unwrap();
                    pod.revision = if old { "old".into() } else { "new".into() };
                    match state {
                        0 => pod.ready = false,
                        1 => (pod.ready, pod.running) = (false, false),
                        2 => pod.terminating = true,
                        3 if unreachable => (pod.ready, pod.host) = (false, HostState::Unreachable),
                        3 => (pod.ready, pod.running, pod.host) = (false, false, HostState::Gone),
                        _ => {}
                    }
                }
                let cluster = seen.cluster.as_mut().unwrap();
                for (node, (alive, state)) in cluster.nodes.iter_mut().zip(nodes) {
                    node.alive = alive;
                    node.configuration = configurations[node.raft_id as usize - 1].clone();
                    node.state =
                        [MemberState::Active, MemberState::Draining, MemberState::Decommissioning][state as usize];
                }
                (cluster.offline, cluster.under_replicated, cluster.moving) = (spoil / 2, spoil % 2, moving);
                cluster.leader = leader.map(|leader| format!("node-{leader}"));
                for ordinal in (5 - i32::from(remove))..5 {
                    let id = format!("node-{ordinal}");
                    cluster.nodes.retain(|node| node.node_id != id);
                    cluster.removed.insert(id);
                }
                if !known {
                    seen.cluster = None;
                }
                if caught_up {
                    seen.catch_up = CatchUp::Done;
                }
                let image = if another { "chronicle:2".to_owned() } else { desired().image };
                let desired = DesiredState { replicas, replace_lost: lost, delete_claims: delete, image, ..desired() };
                let operation = operation.map(|(kind, step, ordinal)| OperationStatus {
                    kind,
                    step,
                    target: pod_name("log", ordinal),
                    pod_uid: Some(format!("pod-{ordinal}")),
                    claim_uid: Some(format!("claim-{ordinal}")),
                    node_id: Some(format!("node-{ordinal}")),
                    started_at: Some("1970-01-01T00:00:00Z".into()),
                });
                (desired, RecordedState { operation, ..recorded(size) }, seen)
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, ..ProptestConfig::default() })]

    /// From any state, possible or not, one step keeps the invariants.
    #[test]
    fn no_step_from_any_state_breaks_an_invariant((desired, recorded, seen) in any_observed()) {
        let step = plan(&desired, &recorded, &seen);
        let current = recorded.operation.as_ref();
        let named = |ordinal: i32| current.filter(|operation| operation.target == pod_name("log", ordinal));
        match &step {
            Step::DeletePod { ordinal, uid, resource_version, .. } => {
                let pod = &seen.pods[ordinal];
                prop_assert_eq!(uid, &pod.uid);
                prop_assert!(named(*ordinal).is_some() || (!pod.running && resource_version.is_some()));
                let alive = |node: &&NodeView| node.alive;
                let takes_part = pod.running && seen.cluster.as_ref().is_none_or(|cluster| {
                    cluster.nodes.iter().find(|node| node.name == pod_name("log", *ordinal)).filter(alive).is_some()
                });
                if takes_part && current.map(|operation| operation.kind) != Some(OperationKind::Replace) {
                    let cluster = seen.cluster.as_ref().expect("a pod that may be live is deleted without an observation");
                    prop_assert!(seen.catch_up == CatchUp::Done || recorded.size == Some(1));
                    prop_assert_eq!((cluster.offline, cluster.under_replicated, cluster.moving), (0, 0, 0));
                    let size = recorded.size.unwrap();
                    let others = (0..size).filter(|other| other != ordinal);
                    for other in others {
                        prop_assert!(seen.pods[&other].ready && !seen.pods[&other].terminating);
                    }
                    prop_assert_eq!(rejection(&desired, &seen), None);
                    prop_assert!(outdated(&desired, &seen, *ordinal, pod), "an up-to-date pod is restarted");
                }
            }
            Step::DeleteClaim { ordinal, uid } => {
                let operation = named(*ordinal).expect("a claim is deleted without a record");
                prop_assert_eq!(Some(uid), operation.claim_uid.as_ref());
                let cluster = seen.cluster.as_ref().expect("a claim is deleted without an observation");
                let id = operation.node_id.as_ref().unwrap();
                let dead = cluster.nodes.iter().any(|node| node.node_id == *id && !node.alive);
                let replaced = operation.kind == OperationKind::Replace && dead;
                prop_assert!(cluster.removed.contains(id) || replaced);
                prop_assert!(replaced || !seen.pods.contains_key(ordinal));
            }
            Step::Drain { node_id } | Step::Undrain { node_id } | Step::Decommission { node_id } => {
                prop_assert!(seen.cluster.is_some());
                let operation = current.expect("a command to the cluster without a record");
                let node = seen.cluster.as_ref().unwrap().nodes.iter().find(|node| node.node_id == *node_id).unwrap();
                prop_assert_eq!(&node.name, &operation.target);
            }
            Step::Begin { operation, .. } => {
                let turns = matches!(operation.kind, OperationKind::Stop | OperationKind::Start | OperationKind::ScaleUp);
                prop_assert!(current.is_none() || turns, "a second operation starts: {:?} after {:?}", operation, current);
                if !matches!(operation.kind, OperationKind::Stop | OperationKind::Start) {
                    prop_assert!(seen.cluster.is_some());
                }
                let target = seen.node_named(&operation.target).filter(|node| node.alive);
                if operation.kind == OperationKind::Roll && target.is_some() {
                    prop_assert_eq!(rejection(&desired, &seen), None);
                }
            }
            Step::Advance { operation, size } => {
                let before = current.expect("an operation advances that was not recorded");
                prop_assert_eq!(&operation.target, &before.target);
                prop_assert!((recorded.size.unwrap() - size).abs() <= 5);
            }
            Step::ApplySet { replicas } if *replicas < seen.set.as_ref().unwrap().replicas => {
                let stop = current.is_some_and(|operation| operation.kind == OperationKind::Stop);
                for ordinal in *replicas..seen.set.as_ref().unwrap().replicas {
                    let member = seen.cluster.as_ref().is_none_or(|cluster| {
                        cluster.nodes.iter().any(|node| node.name == pod_name("log", ordinal))
                    });
                    prop_assert!(stop || current.is_some() || !member, "the pod {} of a member is removed", ordinal);
                }
            }
            _ => {}
        }
    }
}
