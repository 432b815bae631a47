//! Consumer groups over gRPC, on a node that is restarted and killed.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::serving::Node;
use chronicle_client::{Client, GroupConfig, GroupConsumer, GroupStart, Partition, v1};
use chronicle_node::config::Config;
use chronicle_node::groups::{Commit, CommittedOffset, Groups, Heartbeat, HeartbeatResponse, Partitions};
use chronicle_node::runtime;

const PATIENCE: Duration = Duration::from_secs(60);

async fn client(node: &Node, topic: &str, partitions: i32) -> Client {
    let client = Client::connect(node.address.to_string()).unwrap();
    let request = v1::CreateTopicRequest { name: topic.into(), partitions, ..Default::default() };
    client.create_topic(request).await.unwrap();
    client
}

async fn produce(client: &Client, topic: &str, partition: i32, values: std::ops::Range<u32>) {
    for value in values {
        let request = v1::ProduceRequest {
            partition: Some(v1::Partition { topic: topic.into(), partition }),
            records: vec![v1::Record { value: Some(value.to_string().into()), ..Default::default() }],
            ..Default::default()
        };
        client.produce(request).await.unwrap();
    }
}

fn config(group: &str) -> GroupConfig {
    let session_timeout = Duration::from_secs(2);
    GroupConfig { session_timeout, auto_commit: None, ..GroupConfig::new(group, ["t"]) }
}

async fn next(consumer: &mut GroupConsumer) -> (i32, i64) {
    let next = tokio::time::timeout(PATIENCE, consumer.next()).await.expect("a record comes").unwrap();
    (next.partition.partition, next.record.offset)
}

/// Reads on until the consumer has this many partitions.
async fn until_assigned(consumer: &mut GroupConsumer, partitions: usize) {
    let settled = async {
        while consumer.assigned().len() != partitions {
            // What it gives up goes back when it asks for the next record.
            let _ = tokio::time::timeout(Duration::from_millis(20), consumer.next()).await;
        }
    };
    tokio::time::timeout(PATIENCE, settled).await.expect("the assignment comes");
}

async fn described(client: &Client, group: &str) -> v1::DescribeGroupResponse {
    client.describe_group(group).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_consumers_share_a_topic_and_when_one_dies_the_other_goes_on_where_it_was() {
    let node = Node::start().await;
    let client = client(&node, "t", 4).await;
    for partition in 0..4 {
        produce(&client, "t", partition, 0..10).await;
    }
    let mut first = client.group_consumer(config("g"));
    // As in a process of its own.
    let doomed = tokio::runtime::Runtime::new().unwrap();
    let address = node.address.to_string();
    doomed.spawn(async move {
        let mut second = Client::connect(address).unwrap().group_consumer(config("g"));
        loop {
            second.next().await.unwrap();
            second.commit().await.unwrap();
        }
    });
    let shared = async {
        loop {
            let group = client.describe_group("g").await;
            if group.is_ok_and(|group| group.members.len() == 2 && group.state == "stable") {
                return;
            }
            let _ = tokio::time::timeout(Duration::from_millis(20), first.next()).await;
        }
    };
    tokio::time::timeout(PATIENCE, shared).await.expect("two members share the topic");
    until_assigned(&mut first, 2).await;
    first.commit().await.unwrap();
    let group = described(&client, "g").await;
    let owned = |member: &v1::GroupMember| member.assigned.iter().map(|one| one.partitions.len()).sum::<usize>();
    assert_eq!(group.members.iter().map(owned).collect::<Vec<_>>(), [2, 2]);
    // It dies without a word.
    doomed.shutdown_background();
    until_assigned(&mut first, 4).await;
    // Nothing that was committed comes again, everything else does.
    let committed: BTreeMap<i32, i64> =
        described(&client, "g").await.partitions.iter().map(|lag| (lag.partition, lag.offset.max(0))).collect();
    for partition in 0..4 {
        produce(&client, "t", partition, 10..11).await;
    }
    let mut seen: BTreeMap<i32, i64> = BTreeMap::new();
    while seen.len() < 4 || seen.values().any(|last| *last < 10) {
        let (partition, offset) = next(&mut first).await;
        assert!(offset >= committed[&partition], "{partition}: {offset} was committed");
        seen.insert(partition, offset);
    }
    first.commit().await.unwrap();
    let group = described(&client, "g").await;
    assert!(group.partitions.iter().all(|lag| lag.offset == 11 && lag.lag_records == 0), "{group:?}");
    first.close().await.unwrap();
    assert_eq!(described(&client, "g").await.state, "empty");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_moves_without_a_record_read_twice_or_left_out() {
    let node = Node::start().await;
    let client = client(&node, "t", 6).await;
    let mut first = client.group_consumer(GroupConfig { auto_commit: Some(PATIENCE), ..config("g") });
    until_assigned(&mut first, 6).await;
    // Until both have read.
    let (both, enough) = tokio::sync::watch::channel(false);
    let mut producer = {
        let client = client.clone();
        tokio::spawn(async move {
            let mut value = 0;
            while value < 40 || !*enough.borrow() {
                for partition in 0..6 {
                    produce(&client, "t", partition, value..value + 1).await;
                }
                value += 1;
            }
            value as usize * 6
        })
    };
    let mut seen: BTreeMap<i32, Vec<i64>> = BTreeMap::new();
    for _ in 0..10 {
        let (partition, offset) = next(&mut first).await;
        seen.entry(partition).or_default().push(offset);
    }
    // The second one comes while the first reads.
    let mut second = client.group_consumer(GroupConfig { auto_commit: Some(PATIENCE), ..config("g") });
    let mut of_second = 0;
    let mut produced = None;
    while produced.is_none_or(|produced| seen.values().map(Vec::len).sum::<usize>() < produced) {
        let record = tokio::select! {
            all = &mut producer, if produced.is_none() => { produced = Some(all.unwrap()); continue }
            record = first.next() => record,
            record = second.next() => { of_second += 1; both.send_replace(true); record }
            () = tokio::time::sleep(PATIENCE) => panic!("records are left out: {seen:?}"),
        };
        let record = record.unwrap();
        seen.entry(record.partition.partition).or_default().push(record.record.offset);
    }
    assert!(of_second > 0);
    for (partition, offsets) in seen {
        assert_eq!(offsets, (0..produced.unwrap() as i64 / 6).collect::<Vec<i64>>(), "partition {partition}");
    }
    first.close().await.unwrap();
    second.close().await.unwrap();
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn commits_of_stale_and_unknown_members_are_refused_and_change_nothing() {
    let node = Node::start().await;
    let client = client(&node, "t", 2).await;
    produce(&client, "t", 0, 0..5).await;
    let mut consumer = client.group_consumer(config("g"));
    until_assigned(&mut consumer, 2).await;
    let group = described(&client, "g").await;
    let offset = v1::GroupOffset { topic: "t".into(), partition: 0, offset: 3, metadata: String::new() };
    let commit = |member: &str, generation| v1::CommitOffsetsRequest {
        group: "g".into(),
        member_id: member.into(),
        generation,
        offsets: vec![offset.clone()],
    };
    let member = group.members[0].member_id.clone();
    for (request, reason) in [
        (commit(&member, group.generation - 1), "STALE_GENERATION"),
        (commit("somebody", group.generation), "UNKNOWN_MEMBER"),
        (commit("", 0), "GROUP_NOT_EMPTY"),
        (commit(&member, group.generation + 1), "INVALID_REQUEST"),
    ] {
        assert_eq!(client.commit_group_offsets(request).await.unwrap_err().reason, reason);
    }
    let offsets = || client.fetch_group_offsets(v1::FetchOffsetsRequest { group: "g".into(), partitions: Vec::new() });
    assert!(offsets().await.unwrap().is_empty());
    client.commit_group_offsets(commit(&member, group.generation)).await.unwrap();
    assert_eq!(offsets().await.unwrap(), std::slice::from_ref(&offset));
    consumer.close().await.unwrap();
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn offsets_are_reset_by_offset_time_and_ends_and_lag_is_reported() {
    let node = Node::start().await;
    let client = client(&node, "t", 1).await;
    for time in [1000, 2000, 3000] {
        let record = v1::Record { timestamp_ms: Some(time), value: Some("v".into()), ..Default::default() };
        let partition = Some(v1::Partition { topic: "t".into(), partition: 0 });
        let request = v1::ProduceRequest { partition, records: vec![record], ..Default::default() };
        client.produce(request).await.unwrap();
    }
    use v1::reset_offsets_request::To;
    let reset = |to, dry_run| {
        let to = Some(to);
        let request = v1::ResetOffsetsRequest { group: "g".into(), topic: "t".into(), to, dry_run, partitions: vec![] };
        let client = client.clone();
        async move { client.reset_group_offsets(request).await.map(|offsets| offsets[0].offset) }
    };
    assert_eq!(reset(To::Latest(true), true).await.unwrap(), 3);
    assert_eq!(client.describe_group("g").await.unwrap_err().reason, "UNKNOWN_GROUP");
    for (to, expected) in [
        (To::TimestampMs(1500), 1),
        (To::TimestampMs(9000), 3),
        (To::Earliest(true), 0),
        (To::Offset(99), 3),
        (To::Offset(2), 2),
    ] {
        assert_eq!(reset(to, false).await.unwrap(), expected, "{to:?}");
        let group = described(&client, "g").await;
        let lag = &group.partitions[0];
        assert_eq!((group.state.as_str(), lag.offset, lag.end, lag.lag_records), ("empty", expected, 3, 3 - expected));
        // Records of long ago are this old.
        assert!(if expected == 3 { lag.lag_ms == 0 } else { lag.lag_ms > 1_000_000_000 }, "{lag:?}");
    }
    assert_eq!(reset(To::Offset(-1), false).await.unwrap_err().reason, "INVALID_REQUEST");
    // A new member starts there, and while there is one nobody else sets offsets.
    let mut consumer = client.group_consumer(config("g"));
    assert_eq!(next(&mut consumer).await, (0, 2));
    assert_eq!(reset(To::Earliest(true), false).await.unwrap_err().reason, "GROUP_NOT_EMPTY");
    assert_eq!(client.delete_group("g").await.unwrap_err().reason, "GROUP_NOT_EMPTY");
    consumer.close().await.unwrap();
    client.delete_group("g").await.unwrap();
    assert!(client.list_groups().await.unwrap().is_empty());
    assert_eq!(client.delete_group("g").await.unwrap_err().reason, "UNKNOWN_GROUP");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_is_refused_with_the_reason_and_the_internal_topic_is_for_reading_only() {
    let node = Node::start().await;
    let client = client(&node, "t", 1).await;
    let commit = |group: &str, topic: &str, partition, offset, metadata: &str| v1::CommitOffsetsRequest {
        group: group.into(),
        offsets: vec![v1::GroupOffset { topic: topic.into(), partition, offset, metadata: metadata.into() }],
        ..Default::default()
    };
    for (request, reason) in [
        (commit("", "t", 0, 0, ""), "INVALID_REQUEST"),
        (commit("a b", "t", 0, 0, ""), "INVALID_REQUEST"),
        (commit("g", "none", 0, 0, ""), "UNKNOWN_TOPIC"),
        (commit("g", "t", 1, 0, ""), "UNKNOWN_PARTITION"),
        (commit("g", "t", 0, -1, ""), "INVALID_REQUEST"),
        (commit("g", "t", 0, 0, &"x".repeat(4097)), "INVALID_REQUEST"),
    ] {
        assert_eq!(client.commit_group_offsets(request).await.unwrap_err().reason, reason);
    }
    let mut nowhere = client.group_consumer(GroupConfig::new("g", ["none"]));
    assert_eq!(nowhere.next().await.unwrap_err().reason, "UNKNOWN_TOPIC");
    nowhere.close().await.unwrap();
    client.commit_group_offsets(commit("g", "t", 0, 7, "note")).await.unwrap();
    // What is remembered can be read by everybody, and written by nobody.
    let topics = client.list_topics().await.unwrap();
    assert!(topics.iter().any(|topic| topic.name == "__groups" && topic.partitions == 16));
    let partition = Some(v1::Partition { topic: "__groups".into(), partition: 0 });
    let record = v1::Record { value: Some("x".into()), ..Default::default() };
    let request = v1::ProduceRequest { partition, records: vec![record], ..Default::default() };
    assert_eq!(client.produce(request).await.unwrap_err().reason, "INVALID_REQUEST");
    assert_eq!(client.delete_topic("__groups").await.unwrap_err().reason, "INVALID_REQUEST");
    let request = v1::CreateTopicRequest { name: "__mine".into(), ..Default::default() };
    assert_eq!(client.create_topic(request).await.unwrap_err().reason, "INVALID_REQUEST");
    let mut records = 0;
    for partition in 0..16 {
        let offsets = client.list_offsets(&Partition::new("__groups", partition), None).await.unwrap();
        records += offsets.next;
    }
    assert_eq!(records, 1);
    // A topic of the same name is another one.
    client.delete_topic("t").await.unwrap();
    let request = v1::CreateTopicRequest { name: "t".into(), ..Default::default() };
    client.create_topic(request).await.unwrap();
    let request = v1::FetchOffsetsRequest { group: "g".into(), partitions: Vec::new() };
    assert!(client.fetch_group_offsets(request).await.unwrap().is_empty());
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_that_starts_at_the_end_reads_only_what_comes_then() {
    let node = Node::start().await;
    let client = client(&node, "t", 1).await;
    produce(&client, "t", 0, 0..3).await;
    let mut consumer = client.group_consumer(GroupConfig { start: GroupStart::Latest, ..config("g") });
    until_assigned(&mut consumer, 1).await;
    // The reader looks for the end by itself: records from then on come, whenever that is.
    let producer = {
        let client = client.clone();
        tokio::spawn(async move {
            loop {
                produce(&client, "t", 0, 0..1).await;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
    };
    assert!(next(&mut consumer).await.1 >= 3);
    producer.abort();
    consumer.close().await.unwrap();
    node.stop().await;
}

async fn open(dir: &Path) -> (runtime::Node, Groups) {
    let mut config = Config::default();
    config.node.data_dir = dir.to_path_buf();
    let node = runtime::Node::start(Arc::new(config)).await.unwrap();
    let groups = Groups::start(node.broker().clone());
    (node, groups)
}

fn commit_of(offset: i64) -> Commit {
    let offset = CommittedOffset { topic: "default".into(), partition: 0, offset, metadata: format!("at {offset}") };
    Commit { group: "g".into(), offsets: vec![offset], ..Commit::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn offsets_survive_a_restart_and_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let (node, groups) = open(&data).await;
    groups.commit(commit_of(1)).await.unwrap();
    groups.commit(commit_of(5)).await.unwrap();
    groups.shutdown().await;
    node.shutdown().await;
    let (node, groups) = open(&data).await;
    let offsets = groups.offsets("g", &Partitions::new()).await.unwrap();
    assert_eq!((offsets.len(), offsets[0].offset, offsets[0].metadata.as_str()), (1, 5, "at 5"));
    groups.commit(commit_of(8)).await.unwrap();
    // Killed: what the disk has at this moment is all that is left.
    let copy = dir.path().join("copy");
    copy_dir(&data, &copy);
    let (survivor, after) = open(&copy).await;
    assert_eq!(after.offsets("g", &Partitions::new()).await.unwrap()[0].offset, 8);
    for (groups, node) in [(groups, node), (after, survivor)] {
        groups.shutdown().await;
        node.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn members_keep_what_they_own_when_the_coordinator_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let (node, groups) = open(dir.path()).await;
    node.broker().alter_topic("default", 4, Default::default()).await.unwrap();
    let join = Heartbeat { group: "g".into(), topics: vec!["default".into()], ..Heartbeat::default() };
    let beat = |member: &HeartbeatResponse| Heartbeat {
        member_id: member.member_id.clone(),
        generation: member.generation,
        owned: member.assigned.clone(),
        ..join.clone()
    };
    let mut first = groups.heartbeat(join.clone()).await.unwrap();
    let mut second = groups.heartbeat(join.clone()).await.unwrap();
    for _ in 0..3 {
        first = groups.heartbeat(beat(&first)).await.unwrap();
        second = groups.heartbeat(beat(&second)).await.unwrap();
    }
    assert_eq!((first.assigned["default"].len(), second.assigned["default"].len()), (2, 2));
    groups.shutdown().await;
    node.shutdown().await;

    let (node, groups) = open(dir.path()).await;
    // Whoever is new gets nothing before everybody was heard.
    let third = groups.heartbeat(join.clone()).await.unwrap();
    assert!(third.assigned.is_empty());
    assert_eq!(third.generation, first.generation + 1, "the generation is remembered");
    // A commit may be the first word of a member.
    let holder = if first.assigned["default"].contains(&0) { &first } else { &second };
    let (member_id, generation) = (holder.member_id.clone(), holder.generation);
    groups.commit(Commit { member_id, generation, ..commit_of(3) }).await.unwrap();
    let again = groups.heartbeat(beat(&first)).await.unwrap();
    assert_eq!(again.assigned, first.assigned);
    let last = groups.heartbeat(beat(&second)).await.unwrap();
    assert!(last.assigned["default"].iter().all(|partition| second.assigned["default"].contains(partition)));
    assert_eq!(groups.describe("g").await.unwrap().members.len(), 3);
    groups.shutdown().await;
    node.shutdown().await;
}

fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}
