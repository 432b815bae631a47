//! What the broker's tests share.
#![allow(dead_code, unreachable_pub, reason = "every test binary uses its own part")]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use chronicle_log::disk::Disk;
use chronicle_node::broker::{Broker, Route};
use chronicle_node::config::Config;
use chronicle_node::model::{
    ApiError, Expectation, Fetch, Fetched, NewRecord, Position, Produce, ProducePayload, Produced, ProducerIdentity,
    TopicPartition,
};
use chronicle_node::runtime::Node;
use chronicle_records::Compression;

/// A configuration for a node in `dir`.
pub fn config(dir: &Path) -> Config {
    let mut config = Config::default();
    config.node.data_dir = dir.join("data");
    config.listeners.data = "127.0.0.1:0".parse().unwrap();
    config.listeners.ops = "127.0.0.1:0".parse().unwrap();
    config
}

/// A node without listeners: its broker, and the means to stop it.
#[derive(Clone)]
pub struct Core(Node);

impl Core {
    pub async fn start(config: Arc<Config>) -> Result<Self, ApiError> {
        Node::start(config).await.map(Self)
    }

    pub async fn start_on(config: Arc<Config>, disk: Arc<dyn Disk>) -> Result<Self, ApiError> {
        Node::start_on(config, disk).await.map(Self)
    }

    pub async fn shutdown(&self) {
        self.0.shutdown().await;
    }
}

impl std::ops::Deref for Core {
    type Target = Broker;

    fn deref(&self) -> &Broker {
        self.0.broker()
    }
}

/// A node without listeners on the real disk.
pub async fn start(config: Config) -> Core {
    Core::start(Arc::new(config)).await.unwrap()
}

/// Partition 0 of a topic.
pub fn target(topic: &str) -> TopicPartition {
    TopicPartition { topic: topic.into(), partition: 0 }
}

/// A record with a value only.
pub fn record(value: impl Into<Bytes>) -> NewRecord {
    NewRecord { value: Some(value.into()), ..NewRecord::default() }
}

/// A record with a key.
pub fn keyed(key: &str, value: &str) -> NewRecord {
    NewRecord { key: Some(Bytes::copy_from_slice(key.as_bytes())), ..record(Bytes::copy_from_slice(value.as_bytes())) }
}

/// An append of records to partition 0 of `default`.
pub fn append(records: Vec<NewRecord>) -> Produce {
    Produce {
        target: target("default"),
        payload: ProducePayload::Records { records, compression: Compression::None },
        producer: None,
        expectation: None,
    }
}

/// Appends one value to `default`.
pub async fn put(broker: &Broker, value: impl Into<Bytes>) -> Result<Produced, ApiError> {
    broker.produce(append(vec![record(value)]), Route::Local).await
}

/// Appends one value as an idempotent producer.
pub async fn put_as(
    broker: &Broker,
    producer_id: i64,
    epoch: i16,
    sequence: i32,
    value: &str,
) -> Result<Produced, ApiError> {
    let mut request = append(vec![record(Bytes::copy_from_slice(value.as_bytes()))]);
    request.producer = Some(ProducerIdentity { producer_id, epoch, sequence });
    broker.produce(request, Route::Local).await
}

/// Appends under a condition.
pub async fn put_if(broker: &Broker, record: NewRecord, expectation: Expectation) -> Result<Produced, ApiError> {
    let mut request = append(vec![record]);
    request.expectation = Some(expectation);
    broker.produce(request, Route::Local).await
}

/// One read of `default`.
pub async fn fetch(broker: &Broker, from: Position, wait_ms: u64) -> Result<Fetched, ApiError> {
    fetch_topic(broker, "default", from, wait_ms).await
}

/// One read of partition 0 of a topic.
pub async fn fetch_topic(broker: &Broker, topic: &str, from: Position, wait_ms: u64) -> Result<Fetched, ApiError> {
    let max_wait = Duration::from_millis(wait_ms);
    broker.fetch(Fetch { target: target(topic), from, max_bytes: 0, max_wait }, Route::Local).await
}

/// Every value of `default`, from the log start to the end.
pub async fn all_values(broker: &Broker) -> Vec<Bytes> {
    let offsets = broker.offsets(&target("default"), None, Route::Local).await.unwrap();
    let mut next = offsets.earliest;
    let mut values = Vec::new();
    while next < offsets.next {
        let fetched = fetch(broker, Position::Offset(next), 0).await.unwrap();
        let (records, after) = fetched.records(None).unwrap();
        for record in records {
            assert_eq!(record.offset, next, "offsets are dense");
            next += 1;
            values.push(record.value.unwrap());
        }
        assert_eq!(after, next);
    }
    values
}
