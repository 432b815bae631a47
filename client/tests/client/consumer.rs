//! The consumer: every record once and in order, across reconnects.

use std::time::Duration;

use crate::fake::Node;
use chronicle_client::{Client, Consumer, ConsumerConfig, Partition, Position, StoredRecord};
use futures::StreamExt;

fn consumer(node: &Node, config: ConsumerConfig) -> Consumer {
    node.client().consumer(Partition::new("", 0), config)
}

fn values(range: std::ops::Range<usize>) -> impl Iterator<Item = String> {
    range.map(|n| n.to_string())
}

fn value(record: &StoredRecord) -> &str {
    std::str::from_utf8(record.value.as_ref().unwrap()).unwrap()
}

#[tokio::test]
async fn a_reader_resumes_exactly_where_it_was() {
    let node = Node::start();
    node.store(values(0..50));
    node.state.lock().end_reads_after.extend([3, 0, 1, 0, 7]);
    let mut consumer = consumer(&node, ConsumerConfig::default().until(50));
    let mut read = Vec::new();
    while let Some(record) = consumer.next().await.unwrap() {
        assert_eq!(record.offset, read.len() as i64);
        read.push(value(&record).to_owned());
    }
    assert_eq!(read, values(0..50).collect::<Vec<_>>());
    assert!(node.state.lock().connections > 4);
    assert!(consumer.next_batch().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_reader_at_the_end_sees_what_comes_and_nothing_before() {
    let node = Node::start();
    node.store(values(0..10));
    let mut consumer = consumer(&node, ConsumerConfig::from(Position::Latest));
    // The first stream ends before its first response; records appended meanwhile must not be skipped.
    node.state.lock().end_reads_after.push_back(0);
    let (record, ()) = tokio::join!(consumer.next(), async {
        node.wait(|state| state.connections >= 1 && state.offsets_calls == 1).await;
        node.store(values(10..12));
    });
    let first = record.unwrap().unwrap();
    assert_eq!((first.offset, value(&first)), (10, "10"));
    assert_eq!(consumer.next().await.unwrap().unwrap().offset, 11);
    assert_eq!(node.state.lock().offsets_calls, 1);
}

#[tokio::test]
async fn a_cancelled_read_loses_nothing() {
    let node = Node::start();
    let mut consumer = consumer(&node, ConsumerConfig::from_offset(0));
    for number in 0..20 {
        assert!(tokio::time::timeout(Duration::from_millis(1), consumer.next()).await.is_err());
        node.store([number.to_string()]);
        assert_eq!(value(&consumer.next().await.unwrap().unwrap()), number.to_string());
    }
}

#[tokio::test]
async fn an_end_before_the_first_record_is_an_end() {
    let node = Node::start();
    node.store(values(0..5));
    assert_eq!(consumer(&node, ConsumerConfig::default().until(0)).next().await.unwrap(), None);
    assert_eq!(consumer(&node, ConsumerConfig::from_offset(3).until(3)).next().await.unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn a_reader_times_out_and_can_continue_later() {
    let node = Node::start();
    node.store(values(0..4));
    let client = Client::connect(node.config().request_timeout(Duration::from_millis(50))).unwrap();
    let mut consumer = client.consumer(Partition::new("", 0), ConsumerConfig::from_offset(0));
    assert_eq!(consumer.next_batch().await.unwrap().len(), 2);
    node.refuse_connections(true);
    node.cut();
    let mut read = 2;
    // First the records that the connection still carried, then the failure.
    let error = loop {
        match consumer.next().await {
            Ok(record) => read += i64::from(record.is_some()),
            Err(error) => break error,
        }
    };
    assert_eq!(error.reason, "UNREACHABLE", "{error}");
    node.refuse_connections(false);
    node.store(["more".to_owned()]);
    let next = consumer.next().await.unwrap().unwrap();
    assert_eq!(next.offset, read);
}

#[tokio::test]
async fn a_consumer_is_a_stream_of_records() {
    let node = Node::start();
    node.store(values(0..9));
    let records = consumer(&node, ConsumerConfig::default().until(9)).into_stream();
    let offsets: Vec<i64> = records.map(|record| record.unwrap().offset).collect().await;
    assert_eq!(offsets, (0..9).collect::<Vec<i64>>());
}
