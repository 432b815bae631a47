//! Mutated messages of gRPC requests, from the bytes to a request of the broker.

use bytes::Bytes;
use chronicle_fuzz::Fuzz;
use chronicle_proto::v1 as proto;
use prost::Message;

use super::convert::{alter, consume, consume_stream, new_topic, produce};

#[test]
fn mutated_messages_become_requests_or_are_refused() {
    let partition = Some(proto::Partition { topic: "t".into(), partition: 1 });
    let header = proto::Header { key: "h".into(), value: Some(Bytes::from_static(b"x")) };
    let record = proto::Record {
        key: Some(Bytes::from_static(b"key")),
        value: Some(Bytes::from_static(b"value")),
        headers: vec![header],
        timestamp_ms: Some(7),
    };
    let key_version = proto::KeyVersion { key: Bytes::from_static(b"key"), version: 4 };
    let produced = proto::ProduceRequest {
        partition: partition.clone(),
        records: vec![record.clone(), record],
        compression: 1,
        producer: Some(proto::ProducerIdentity { producer_id: 1, epoch: 2, sequence: 3 }),
        expectation: Some(proto::Expectation { expect: Some(proto::expectation::Expect::KeyVersion(key_version)) }),
        ..Default::default()
    };
    let consumed = proto::ConsumeRequest {
        partition,
        from: Some(proto::Position { at: Some(proto::position::At::Offset(9)) }),
        ..Default::default()
    };
    let settings = proto::TopicSettings { durability: Some(1), retention_ms: Some(5), ..Default::default() };
    let created = proto::CreateTopicRequest {
        name: "t".into(),
        partitions: 3,
        replication_factor: 3,
        settings: Some(settings),
        if_not_exists: true,
    };
    Fuzz::new("grpc-requests")
        .seed(produced.encode_to_vec())
        .seed(consumed.encode_to_vec())
        .seed(created.encode_to_vec())
        // A record takes more than a hundred bytes in memory and at least two on the wire.
        .allowance(256, 64 << 10)
        .run(|bytes| {
            let bytes = Bytes::copy_from_slice(bytes);
            let message = |error: crate::model::ApiError| error.message;
            let all = [
                proto::ProduceRequest::decode(bytes.clone()).ok().map(|r| produce(r).map(|_| ()).map_err(message)),
                proto::ConsumeRequest::decode(bytes.clone()).ok().map(|r| consume(r).map(|_| ()).map_err(message)),
                proto::ConsumeStreamRequest::decode(bytes.clone())
                    .ok()
                    .map(|r| consume_stream(r).map(|_| ()).map_err(message)),
                proto::CreateTopicRequest::decode(bytes.clone())
                    .ok()
                    .map(|r| new_topic(r).map(|_| ()).map_err(message)),
                proto::AlterTopicRequest::decode(bytes).ok().map(|r| alter(r).map(|_| ()).map_err(message)),
            ];
            format!("{all:?}")
        });
}
