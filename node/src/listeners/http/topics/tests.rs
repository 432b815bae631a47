use serde_json::Value;

use super::*;
use crate::model::{Addresses, Reason};

/// Returns a partition and a server as in responses.
pub(in crate::listeners::http) fn samples() -> (Value, Value) {
    let description = PartitionDescription {
        partition: 0,
        earliest: 0,
        next: 1,
        bytes: 2,
        segments: 1,
        term: 1,
        leader: "127.0.0.1:7400".into(),
        state: "active".into(),
        replicas: vec![uuid::Uuid::nil()],
    };
    let node = NodeDescription {
        node_id: uuid::Uuid::nil(),
        name: "chronicle-0".into(),
        addresses: Addresses::of_data("127.0.0.1:7400"),
        controller_leader: true,
        version: "0.1.0".into(),
        zone: String::new(),
        voter: true,
        state: crate::metadata::NodeState::Active,
        alive: true,
        raft_id: 1,
        replicas: 1,
        replicas_out_of_service: 0,
        preferred_leaders: 1,
        encryption: None,
    };
    (partition(description), server(node))
}

#[test]
fn a_topic_needs_only_a_name_and_settings_have_the_names_of_the_contract() {
    let body: CreateBody = body::parse(br#"{"name": "t"}"#).unwrap();
    assert_eq!((body.name.as_str(), body.partitions, body.if_not_exists), ("t", 0, false));
    assert_eq!(SettingsChange::from(body.settings), SettingsChange::default());
    let body: AlterBody = body::parse(br#"{"settings": {"durability": "memory", "retention_ms": -1}}"#).unwrap();
    let change = SettingsChange::from(body.settings);
    assert_eq!((change.durability, change.retention_ms), (Some(TopicDurability::Memory), Some(-1)));
}

#[test]
fn unknown_fields_and_values_are_refused() {
    for text in [r#"{"name": "t", "partition": 1}"#, r#"{"name": "t", "settings": {"durability": "best"}}"#, "{}"] {
        assert_eq!(body::parse::<CreateBody>(text.as_bytes()).unwrap_err().reason, Reason::MalformedBody, "{text}");
    }
    let error = not_negative("partitions", -3).unwrap_err();
    assert_eq!(error.message, "partitions: -3: must be at least 0");
}
