//! What remains of groups when segments of their topic are deleted.

use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::config::Config;
use crate::model::NewTopic;
use crate::runtime::Node;

fn commit(group: &str, offset: i64, metadata: &str) -> Commit {
    let offset = CommittedOffset { topic: "orders".into(), partition: 0, offset, metadata: metadata.into() };
    Commit { group: group.into(), offsets: vec![offset], ..Commit::default() }
}

#[test]
fn the_partition_of_a_group_is_fixed_for_ever() {
    let places: Vec<i32> = ["", "a", "orders-workers", "g1"].iter().map(|name| partition_of(name, 16)).collect();
    assert_eq!(places, PLACES);
    assert!((0..1000).all(|i| (0..7).contains(&partition_of(&format!("g{i}"), 7))));
}

const PLACES: [i32; 4] = [15, 7, 13, 10];

#[tokio::test(flavor = "multi_thread")]
async fn retention_of_the_internal_topic_keeps_every_offset() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = Config::default();
    config.node.data_dir = dir.path().join("data");
    config.partitions.retention_check_ms = 20;
    let config = Arc::new(config);
    let node = Node::start(config.clone()).await.unwrap();
    let broker = node.broker().clone();
    broker.create_topic(NewTopic { name: "orders".into(), ..NewTopic::default() }).await.unwrap();
    let topic = Backend::new(broker.clone()).create(128 << 10, 64 << 10).await.unwrap();
    let groups = Groups::start(broker.clone());
    groups.commit(commit("kept", 7, "first")).await.unwrap();
    // Commits of another group of the same partition make retention delete the first one's segment.
    let number = partition_of("kept", topic.partitions);
    let other = (0..).map(|i| format!("other{i}")).find(|g| partition_of(g, topic.partitions) == number).unwrap();
    let mut written = 0;
    let metadata = "m".repeat(4000);
    let partition = || async { broker.partition(&topic, number).await.unwrap() };
    while partition().await.log_start() == 0 {
        written += 1;
        groups.commit(commit(&other, written, &metadata)).await.unwrap();
        assert!(written < 10_000, "retention does not come");
    }
    for restart in [false, true] {
        if restart {
            groups.shutdown().await;
            node.shutdown().await;
        }
        let (node, groups) = if restart {
            let node = Node::start(config.clone()).await.unwrap();
            let groups = Groups::start(node.broker().clone());
            (node, groups)
        } else {
            (node.clone(), groups.clone())
        };
        let kept = groups.offsets("kept", &Partitions::new()).await.unwrap();
        assert_eq!((kept.len(), kept[0].offset, kept[0].metadata.as_str()), (1, 7, "first"));
        assert_eq!(groups.offsets(&other, &Partitions::new()).await.unwrap()[0].offset, written);
        if restart {
            groups.shutdown().await;
            node.shutdown().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_of_silent_members_end_and_groups_without_members_leave_memory() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = Config::default();
    config.node.data_dir = dir.path().join("data");
    let node = Node::start(Arc::new(config)).await.unwrap();
    let broker = node.broker().clone();
    let groups = Groups::start(broker.clone());
    let join = Heartbeat {
        group: "g".into(),
        topics: vec!["default".into()],
        session_timeout_ms: 1000,
        ..Heartbeat::default()
    };
    let first = groups.heartbeat(join.clone()).await.unwrap();
    assert_eq!((first.generation, &first.assigned["default"]), (1, &vec![0]));
    while !groups.list().await.unwrap().iter().all(|group| group.members == 0) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let gone = Heartbeat { member_id: first.member_id, generation: 1, ..join.clone() };
    assert_eq!(groups.heartbeat(gone).await.unwrap_err().reason, Reason::UnknownMember);
    let in_memory =
        || groups.inner.coordinators.lock().values().map(|one| one.cached_groups.lock().len()).sum::<usize>();
    while in_memory() > 0 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // The generation continues from the stored one.
    assert_eq!(groups.heartbeat(join).await.unwrap().generation, 3);
    groups.shutdown().await;
    node.shutdown().await;
}
