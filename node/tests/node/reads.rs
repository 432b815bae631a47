//! Reads of several partitions at once, waiting for any of them, and where leaders' terms end.

use std::time::Duration;

use chronicle_node::broker::Route;
use chronicle_node::identity::Principal;
use chronicle_node::model::{NewTopic, Position, Produce, Reason, TermEnd, TopicPartition, Want};
use chronicle_node::security::{AclRule, Action, Caller, Effect, PatternKind, ResourceKind};
use tokio::time::Instant;

use crate::support::*;

fn partition(topic: &str, partition: i32) -> TopicPartition {
    TopicPartition { topic: topic.into(), partition }
}

fn want(target: TopicPartition, offset: i64) -> Want {
    Want { target, from: Position::Offset(offset), max_bytes: 0 }
}

async fn put_in(broker: &Core, target: TopicPartition, bytes: usize) {
    let request = Produce { target, ..append(vec![record(vec![7u8; bytes])]) };
    broker.produce(request, Route::Local).await.unwrap();
}

async fn with_topic(partitions: i32) -> (tempfile::TempDir, Core) {
    let directory = tempfile::tempdir().unwrap();
    let broker = start(config(directory.path())).await;
    broker.create_topic(NewTopic { name: "t".into(), partitions, ..NewTopic::default() }).await.unwrap();
    (directory, broker)
}

#[tokio::test(flavor = "multi_thread")]
async fn one_read_answers_every_want_in_order() {
    let (_directory, broker) = with_topic(3).await;
    put_in(&broker, partition("t", 0), 100).await;
    put_in(&broker, partition("t", 2), 100).await;
    put_in(&broker, partition("t", 2), 100).await;
    let wants = [
        want(partition("t", 0), 0),
        want(partition("t", 1), 0),
        want(partition("t", 2), 1),
        want(partition("t", 2), 3),
        want(partition("t", 9), 0),
        want(partition("none", 0), 0),
        want(partition("t", 0), -1),
        Want { from: Position::Latest, ..want(partition("t", 0), 0) },
    ];
    let answers = broker.read_now(&wants, 1 << 20).await;
    let read: Vec<_> = answers
        .iter()
        .map(|answer| match answer {
            Ok(fetched) => {
                Ok((fetched.batches.len(), fetched.start_offset, fetched.next_offset, fetched.high_watermark))
            }
            Err(error) => Err(error.reason),
        })
        .collect();
    let expected = [
        Ok((1, 0, 1, 1)),
        Ok((0, 0, 0, 0)),
        Ok((1, 1, 2, 2)),
        Err(Reason::OffsetOutOfRange),
        Err(Reason::UnknownPartition),
        Err(Reason::UnknownTopic),
        Err(Reason::InvalidRequest),
        Ok((0, 1, 1, 1)),
    ];
    assert_eq!(read, expected);
    broker.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_limit_of_a_read_is_for_all_wants_together_and_never_starves_the_first() {
    let (_directory, broker) = with_topic(3).await;
    for number in 0..3 {
        put_in(&broker, partition("t", number), 10_000).await;
    }
    let wants = [1, 0, 2].map(|number| want(partition("t", number), 0));
    let batches = async |max_bytes| {
        let answers = broker.read_now(&wants, max_bytes).await;
        answers.into_iter().map(|answer| answer.unwrap().batches.len()).collect::<Vec<_>>()
    };
    assert_eq!(batches(1).await, [1, 0, 0]);
    assert_eq!(batches(10_500).await, [1, 1, 0], "a batch that begins below the limit is whole");
    assert_eq!(batches(1 << 20).await, [1, 1, 1]);
    broker.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_over_many_partitions_ends_with_the_requested_bytes() {
    let (_directory, broker) = with_topic(50).await;
    let wants: Vec<Want> = (0..50).map(|number| want(partition("t", number), 0)).collect();
    let far = Instant::now() + Duration::from_secs(600);
    let waits = |min_bytes| {
        let (broker, wants) = (broker.clone(), wants.clone());
        tokio::spawn(async move { broker.wait_any(&wants, min_bytes, far).await })
    };
    let (any, many) = (waits(1), waits(5000));
    put_in(&broker, partition("t", 37), 1000).await;
    tokio::time::timeout(Duration::from_secs(60), any).await.expect("one record ends the wait for any").unwrap();
    assert!(!many.is_finished(), "1000 bytes are fewer than 5000");
    put_in(&broker, partition("t", 3), 3000).await;
    put_in(&broker, partition("t", 37), 2000).await;
    tokio::time::timeout(Duration::from_secs(60), many).await.expect("6000 bytes end the wait for 5000").unwrap();
    // What is there already counts.
    tokio::time::timeout(Duration::from_secs(60), waits(5000)).await.expect("they are there").unwrap();
    let none = Instant::now() + Duration::from_millis(20);
    broker.wait_any(&[want(partition("t", 0), 0)], 1, none).await;
    assert!(Instant::now() >= none, "nothing came");
    broker.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_ends_at_once_when_a_read_would_be_an_error() {
    let (_directory, broker) = with_topic(1).await;
    let far = Instant::now() + Duration::from_secs(600);
    for wrong in [want(partition("none", 0), 0), want(partition("t", 0), 5), want(partition("t", 7), 0)] {
        let wants = [want(partition("t", 0), 0), wrong.clone()];
        let waited = tokio::time::timeout(Duration::from_secs(60), broker.wait_any(&wants, 1, far)).await;
        assert!(waited.is_ok(), "{wrong:?}");
    }
    broker.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_reads_what_it_may_and_is_refused_the_rest_in_order() {
    let directory = tempfile::tempdir().unwrap();
    let mut config = config(directory.path());
    config.security.authorization.enabled = true;
    config.security.authorization.super_users = vec!["root".into()];
    let broker = start(config).await;
    let caller = |name: &str| Caller::new(Some(Principal::new(name).unwrap()), "192.0.2.1:5".parse().unwrap());
    let (root, ann) = (caller("root"), caller("ann"));
    for name in ["open", "hidden"] {
        let topic = NewTopic { name: name.into(), ..NewTopic::default() };
        broker.for_caller(&root).create_topic(topic).await.unwrap();
        put_in(&broker, partition(name, 0), 10).await;
    }
    let rule = AclRule {
        principal: "ann".into(),
        kind: ResourceKind::Topic,
        pattern: PatternKind::Literal,
        name: "open".into(),
        action: Action::Read,
        effect: Effect::Allow,
    };
    broker.for_caller(&root).create_acls(vec![rule]).await.unwrap();
    let wants = ["hidden", "open", "none", "open"].map(|name| want(partition(name, 0), 0));
    let answers = broker.for_caller(&ann).read_now(&wants, 1 << 20).await.unwrap();
    let read: Vec<_> = answers
        .into_iter()
        .map(|answer| answer.map(|fetched| fetched.batches.len()).map_err(|error| error.reason))
        .collect();
    assert_eq!(read, [Err(Reason::UnknownTopic), Ok(1), Err(Reason::UnknownTopic), Ok(1)]);
    broker.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_term_ends_where_the_next_one_begins() {
    let directory = tempfile::tempdir().unwrap();
    let mut ends = Vec::new();
    let target = target("default");
    for round in 0..4 {
        let broker = start(config(directory.path())).await;
        for _ in 0..=round {
            put(&broker, "v").await.unwrap();
        }
        let (_, partitions) = broker.describe_topic("default").await.unwrap();
        ends.push((partitions[0].term as u64, partitions[0].next));
        let latest = ends[ends.len() - 1].0;
        for (term, end_offset) in ends.clone() {
            let found = broker.end_of_term(&target, term).await.unwrap();
            assert_eq!(found, Some(TermEnd { term, end_offset }), "{ends:?}");
        }
        let later = broker.end_of_term(&target, latest + 10).await.unwrap().unwrap();
        assert_eq!((later.term, later.end_offset), ends[ends.len() - 1]);
        // The founders' membership is the only entry of term 0.
        let founding = broker.end_of_term(&target, 0).await.unwrap();
        assert_eq!(founding, Some(TermEnd { term: 0, end_offset: 0 }));
        broker.shutdown().await;
    }
    assert!(ends.windows(2).all(|pair| pair[0].0 < pair[1].0), "each start is a new term: {ends:?}");
}
