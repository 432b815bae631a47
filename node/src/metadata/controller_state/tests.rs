use uuid::Uuid;

use super::super::fixtures::{CLUSTER, cluster, create, topic};
use super::*;

#[test]
fn a_topic_is_created_once_altered_and_deleted() {
    let mut state = cluster(&["", ""]);
    let create = ControllerCommand::CreateTopic { topic: topic("a", 1, 1, 1), topics_max: 1, default_replication: 3 };
    assert_eq!(state.apply(create.clone()), CommandOutcome::Done(Some(topic("a", 1, 1, 1))));
    assert_eq!(state.apply(create), CommandOutcome::Refused(Refusal::TopicExists("a".into())));
    let one_too_many =
        ControllerCommand::CreateTopic { topic: topic("b", 2, 1, 1), topics_max: 1, default_replication: 3 };
    assert_eq!(state.apply(one_too_many), CommandOutcome::Refused(Refusal::TooManyTopics(1)));
    let grow = ControllerCommand::AlterTopic { topic: topic("a", 1, 3, 1) };
    assert_eq!(state.apply(grow), CommandOutcome::Done(Some(topic("a", 1, 3, 1))));
    assert_eq!(state.placements[&Uuid::from_u128(1)].len(), 3);
    let shrink = ControllerCommand::AlterTopic { topic: topic("a", 1, 2, 1) };
    assert_eq!(state.apply(shrink), CommandOutcome::Refused(Refusal::PartitionsShrink { asked: 2, current: 3 }));
    let another = ControllerCommand::AlterTopic { topic: topic("a", 9, 4, 1) };
    assert_eq!(state.apply(another), CommandOutcome::Refused(Refusal::UnknownTopic("a".into())));
    state.apply(ControllerCommand::DeleteTopic { name: "a".into() });
    assert_eq!(state.deleted, vec![DeletedTopic { id: Uuid::from_u128(1), partitions: 3, nodes: vec![1, 2] }]);
    assert!(state.placements.is_empty() && state.topics.is_empty());
}

#[test]
fn a_deleted_topic_is_removed_when_every_node_has_reported() {
    let mut state = cluster(&["", ""]);
    let id = Uuid::from_u128(1);
    create(&mut state, topic("a", 1, 1, 1));
    state.apply(ControllerCommand::DeleteTopic { name: "a".into() });
    state.apply(ControllerCommand::ForgetTopic { id, node: 2 });
    state.apply(ControllerCommand::ForgetTopic { id, node: 2 });
    assert_eq!(state.deleted[0].nodes, vec![1]);
    state.apply(ControllerCommand::ForgetTopic { id, node: 1 });
    assert!(state.deleted.is_empty());
}

#[test]
fn producer_ids_are_never_reserved_twice() {
    let mut state = ControllerState::default();
    let mut reserve = |count| state.apply(ControllerCommand::ReserveProducerIds { count });
    assert_eq!(reserve(10), CommandOutcome::ProducerIds { first: 0, count: 10 });
    assert_eq!(reserve(5), CommandOutcome::ProducerIds { first: 10, count: 5 });
}

#[test]
fn a_requested_factor_is_never_capped_and_the_default_is() {
    let mut state = cluster(&["", ""]);
    let refused = create(&mut state, topic("asked", 1, 1, 3));
    assert_eq!(refused, CommandOutcome::Refused(Refusal::ReplicationFactor { asked: 3, nodes: 2 }));
    assert!(state.topics.is_empty() && state.placements.is_empty());
    create(&mut state, topic("default", 2, 1, 0));
    assert_eq!(state.topics["default"].replication_factor, 3, "what it gets when there are nodes enough");
    assert_eq!(state.placements[&Uuid::from_u128(2)][0].replicas.len(), 2);
}

/// Entries of a controller log as the version before nodes were agreed on wrote them.
#[test]
fn a_log_of_the_version_without_nodes_is_read_and_its_topics_are_on_the_only_node() {
    let id = Uuid::from_u128(7);
    let topic = r#"{"name":"old","id":"00000000-0000-0000-0000-000000000007","partitions":2,"replication_factor":1,
        "settings":{},"created_ms":1}"#;
    let mut state = ControllerState::default();
    for line in [
        r#"{"command":"init-cluster","cluster_id":"00000000-0000-0000-0000-0000000000c1"}"#.to_owned(),
        format!(r#"{{"command":"create-topic","topic":{topic},"topics_max":10}}"#),
        r#"{"command":"reserve-producer-ids","count":5}"#.to_owned(),
    ] {
        let command: ControllerCommand = serde_json::from_str(&line).unwrap();
        assert!(!matches!(state.apply(command), CommandOutcome::Refused(_)), "{line}");
    }
    assert_eq!(state.placements[&id], vec![Placement::founded(vec![1]); 2]);
    let forget: ControllerCommand =
        serde_json::from_str(r#"{"command":"forget-topic","id":"00000000-0000-0000-0000-000000000007"}"#).unwrap();
    state.apply(ControllerCommand::DeleteTopic { name: "old".into() });
    state.apply(forget);
    assert!(state.deleted.is_empty());
}

#[test]
fn a_state_of_the_version_without_nodes_is_read_and_its_node_is_entered_later() {
    let saved = r#"{"cluster_id":"00000000-0000-0000-0000-0000000000c1","topics":{"old":{"name":"old",
        "id":"00000000-0000-0000-0000-000000000007","partitions":1,"replication_factor":1,"settings":{},"created_ms":1}},
        "deleted":[{"id":"00000000-0000-0000-0000-000000000008","partitions":1}],"next_producer_id":3}"#;
    let mut state: ControllerState = serde_json::from_str(saved).unwrap();
    let id = Uuid::from_u128(7);
    assert_eq!(state.placement(id, 0), Some(Placement::founded(vec![1])));
    assert_eq!(state.placement(id, 1), None);
    let nodes = vec![super::super::fixtures::node(1, "")];
    state.apply(ControllerCommand::InitCluster { cluster_id: CLUSTER, nodes: nodes.clone() });
    assert_eq!(state.placements[&id], vec![Placement::founded(vec![1])]);
    assert_eq!((state.nodes.len(), &state.deleted[0].nodes), (1, &vec![1]));
    state.apply(ControllerCommand::InitCluster { cluster_id: Uuid::from_u128(9), nodes });
    assert_eq!(state.cluster_id, CLUSTER, "a cluster is founded once");
}

const OLD_JOIN: &str = r#"{"command":"join","uuid":"00000000-0000-0000-0000-000000000007","name":"n7","address":"n7:7400","zone":"b","version":"0.1.0","boot":18446744073709551615,"now_ms":-5,"cluster_id":"00000000-0000-0000-0000-000000000000","alive_uuids":["00000000-0000-0000-0000-000000000001"]}"#;

const OLD_INIT: &str = r#"{"command":"init-cluster","cluster_id":"00000000-0000-0000-0000-0000000000c1","nodes":[{"id":1,"uuid":"00000000-0000-0000-0000-000000000001","name":"n1","address":"n1:7400","zone":"","version":"0.1.0","boot":0,"state":"active","joined_ms":0}]}"#;

/// Commands with nodes as the version before the addresses of other listeners read them.
#[derive(Debug, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case")]
#[expect(dead_code, reason = "its fields are there to be read")]
enum OldCommand {
    InitCluster {
        cluster_id: Uuid,
        #[serde(default)]
        nodes: Vec<OldNode>,
    },
    Join {
        uuid: Uuid,
        name: String,
        address: String,
        zone: String,
        version: String,
        boot: u64,
        now_ms: i64,
        cluster_id: Uuid,
        #[serde(default)]
        alive_uuids: Vec<Uuid>,
    },
}

/// A node as that version reads it.
#[derive(Debug, PartialEq, Deserialize)]
struct OldNode {
    id: u64,
    uuid: Uuid,
    name: String,
    address: String,
    zone: String,
    version: String,
    boot: u64,
    state: NodeState,
    joined_ms: i64,
}

const OLD_NODE: &str = r#"{"id":2,"uuid":"00000000-0000-0000-0000-000000000007","name":"n7","address":"n7:7400","zone":"b","version":"0.1.0","boot":18446744073709551615,"state":"active","joined_ms":-5}"#;

#[test]
fn one_address_is_read_and_written_as_the_version_before_does() {
    let mut state = ControllerState::default();
    for text in [OLD_INIT, OLD_JOIN] {
        let command: ControllerCommand = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&command).unwrap(), text);
        let outcome = state.apply(command);
        assert!(!matches!(outcome, CommandOutcome::Refused(_)), "{outcome:?}");
    }
    assert_eq!(state.nodes[&1].addresses, Addresses::of_data("n1:7400"));
    assert_eq!(state.nodes[&2].addresses, Addresses::of_data("n7:7400"));
    assert_eq!(serde_json::to_string(&state.nodes[&2]).unwrap(), OLD_NODE);
    assert_eq!(serde_json::from_str::<NodeInfo>(OLD_NODE).unwrap(), state.nodes[&2]);
    let outcome = CommandOutcome::Node(state.nodes[&2].clone());
    assert_eq!(serde_json::to_string(&outcome).unwrap(), format!(r#"{{"Node":{OLD_NODE}}}"#));
}

#[test]
fn addresses_of_other_listeners_are_written_beside_the_one_that_the_version_before_reads() {
    let with_kafka = |text: &str, node: &str| {
        let address = format!(r#""address":"{node}:7400","#);
        text.replace(&address, &format!(r#"{address}"addresses":{{"kafka":"{node}:9092"}},"#))
    };
    let (init, join, node) = (with_kafka(OLD_INIT, "n1"), with_kafka(OLD_JOIN, "n7"), with_kafka(OLD_NODE, "n7"));
    let mut state = ControllerState::default();
    for text in [&init, &join] {
        let command: ControllerCommand = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&command).unwrap(), *text);
        state.apply(command);
    }
    let kafka = "kafka".parse().unwrap();
    assert_eq!(state.nodes[&1].addresses.get(&kafka), Some("n1:9092"));
    assert_eq!(serde_json::to_string(&state.nodes[&2]).unwrap(), node);
    let restored: ControllerState = serde_json::from_slice(&serde_json::to_vec(&state).unwrap()).unwrap();
    assert_eq!(restored, state);

    let OldCommand::InitCluster { nodes, .. } = serde_json::from_str(&init).unwrap() else { panic!("{init}") };
    assert_eq!(nodes[0].address, "n1:7400");
    let old = serde_json::from_str(&join).unwrap();
    assert!(matches!(&old, OldCommand::Join { address, boot: u64::MAX, .. } if address == "n7:7400"), "{old:?}");
    let old: OldNode = serde_json::from_str(&node).unwrap();
    assert_eq!(old, serde_json::from_str(OLD_NODE).unwrap());
}

#[test]
fn commands_outcomes_and_states_survive_their_text_form() {
    let mut state = cluster(&["a", "b", "c"]);
    create(&mut state, topic("t", 1, 4, 3));
    let started = state.apply(ControllerCommand::StartOperation { kind: OperationKind::Drain, node: 2, now_ms: 9 });
    let text = serde_json::to_string(&state).unwrap();
    assert_eq!(serde_json::from_str::<ControllerState>(&text).unwrap(), state);
    let text = serde_json::to_string(&started).unwrap();
    assert_eq!(serde_json::from_str::<CommandOutcome>(&text).unwrap(), started);
    let failed = OperationState::Failed("why".into());
    let finish = ControllerCommand::FinishOperation { id: 1, state: failed, now_ms: 3 };
    let text = serde_json::to_string(&finish).unwrap();
    assert_eq!(text, r#"{"command":"finish-operation","id":1,"state":{"failed":"why"},"now_ms":3}"#);
    assert_eq!(serde_json::from_str::<ControllerCommand>(&text).unwrap(), finish);
}
