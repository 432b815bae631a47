//! Converts messages of `chronicle.v1` to requests of the broker and back. Pure: no I/O, and no message causes a panic.
//!
//! A message that breaks a rule is rejected with the field, its value and the rule.

use std::time::Duration;

use bytes::Bytes;
use chronicle_proto::v1 as proto;
use chronicle_records::{Compression, Record};

use uuid::Uuid;

use crate::broker::{ClusterStatus, Metadata, NodeDescription, OperationProgress, ReplicaRecovery};
use crate::config::live::FileReport;
use crate::listeners::context::DEFAULT_TOPIC;
use crate::metadata::{NodeState, OperationKind, OperationState};
use crate::model::{
    ApiError, Expectation, Fetch, NewRecord, NewTopic, Offsets, PartitionDescription, Position, Produce,
    ProducePayload, Produced, ProducerIdentity, Reason, SettingsChange, Topic, TopicDurability, TopicPartition,
    VerifiedPartition,
};

/// Limit of one response in bytes when a read sets none.
pub(super) const FETCH_BYTES_DEFAULT: usize = 1 << 20;

fn at_least(field: &str, value: i64, least: i64) -> Result<i64, ApiError> {
    if value < least {
        return Err(ApiError::invalid(field, value, &format!("must be at least {least}")));
    }
    Ok(value)
}

/// Absent: partition 0 of the default topic.
pub(super) fn target(partition: Option<proto::Partition>) -> Result<TopicPartition, ApiError> {
    let proto::Partition { topic, partition } = partition.unwrap_or_default();
    at_least("partition.partition", partition.into(), 0)?;
    let topic = if topic.is_empty() { DEFAULT_TOPIC.to_owned() } else { topic };
    Ok(TopicPartition { topic, partition })
}

pub(super) fn produce(request: proto::ProduceRequest) -> Result<Produce, ApiError> {
    // The caller has handled the trace context already.
    let proto::ProduceRequest { partition, records, compression, batch, producer, expectation, trace: _ } = request;
    let target = target(partition)?;
    let payload = match (records.is_empty(), batch.is_empty()) {
        (true, true) => {
            return Err(ApiError::invalid(
                "records",
                "empty",
                "must have at least one record, or `batch` must be given",
            ));
        }
        (false, false) => {
            return Err(ApiError::invalid("batch", format!("{} bytes", batch.len()), "must be empty beside `records`"));
        }
        (true, false) if compression != 0 => {
            return Err(ApiError::invalid("compression", compression, "must be unset for `batch`, which has its own"));
        }
        (true, false) if producer.is_some() => {
            return Err(ApiError::invalid("producer", "given", "must be absent for `batch`, which has its own"));
        }
        (true, false) => ProducePayload::Batch(batch),
        (false, true) => ProducePayload::Records {
            compression: self::compression(compression)?,
            records: records
                .into_iter()
                .enumerate()
                .map(|(i, record)| self::record(i, record))
                .collect::<Result<_, _>>()?,
        },
    };
    let producer = producer.map(self::producer).transpose()?;
    let expectation = expectation.map(self::expectation).transpose()?;
    Ok(Produce { target, payload, producer, expectation })
}

fn record(i: usize, record: proto::Record) -> Result<NewRecord, ApiError> {
    let proto::Record { key, value, headers, timestamp_ms } = record;
    if let Some(timestamp) = timestamp_ms
        && timestamp < 0
    {
        return Err(ApiError::invalid(&format!("records[{i}].timestamp_ms"), timestamp, "must be at least 0"));
    }
    let mut converted = Vec::with_capacity(headers.len());
    for (j, proto::Header { key, value }) in headers.into_iter().enumerate() {
        if key.is_empty() {
            return Err(ApiError::invalid(
                &format!("records[{i}].headers[{j}].key"),
                "empty",
                "must have at least one character",
            ));
        }
        converted.push((key, value));
    }
    Ok(NewRecord { key, value, headers: converted, timestamp_ms })
}

fn compression(value: i32) -> Result<Compression, ApiError> {
    Ok(match proto::Compression::try_from(value) {
        Ok(proto::Compression::Unspecified) => Compression::None,
        Ok(proto::Compression::Gzip) => Compression::Gzip,
        Ok(proto::Compression::Snappy) => Compression::Snappy,
        Ok(proto::Compression::Lz4) => Compression::Lz4,
        Ok(proto::Compression::Zstd) => Compression::Zstd,
        Err(_) => {
            let message = format!("compression: {value}: must be 0 (none), 1 (gzip), 2 (snappy), 3 (lz4) or 4 (zstd)");
            return Err(ApiError::new(Reason::UnsupportedCompression, message));
        }
    })
}

fn producer(producer: proto::ProducerIdentity) -> Result<ProducerIdentity, ApiError> {
    let proto::ProducerIdentity { producer_id, epoch, sequence } = producer;
    at_least("producer.producer_id", producer_id, 0)?;
    at_least("producer.sequence", sequence.into(), 0)?;
    let epoch = i16::try_from(epoch)
        .ok()
        .filter(|epoch| *epoch >= 0)
        .ok_or_else(|| ApiError::invalid("producer.epoch", epoch, "must be from 0 to 32767"))?;
    Ok(ProducerIdentity { producer_id, epoch, sequence })
}

fn expectation(expectation: proto::Expectation) -> Result<Expectation, ApiError> {
    match expectation.expect {
        None => Err(ApiError::invalid("expectation", "empty", "must have `next_offset` or `key_version`")),
        Some(proto::expectation::Expect::NextOffset(offset)) => {
            at_least("expectation.next_offset", offset, 0).map(Expectation::NextOffset)
        }
        Some(proto::expectation::Expect::KeyVersion(proto::KeyVersion { key, version })) => {
            at_least("expectation.key_version.version", version, -1)?;
            Ok(Expectation::KeyVersion { key, version })
        }
    }
}

pub(super) fn produced(produced: Produced) -> proto::ProduceResponse {
    let Produced { base_offset, record_count, duplicate } = produced;
    proto::ProduceResponse { base_offset, record_count, duplicate }
}

pub(super) fn position(from: Option<proto::Position>) -> Result<Position, ApiError> {
    use proto::position::At;
    match from.and_then(|position| position.at) {
        None | Some(At::Earliest(true)) => Ok(Position::Earliest),
        Some(At::Latest(true)) => Ok(Position::Latest),
        Some(At::Offset(offset)) => at_least("from.offset", offset, 0).map(Position::Offset),
        Some(At::TimestampMs(time)) => at_least("from.timestamp_ms", time, 0).map(Position::Timestamp),
        Some(At::Earliest(false)) => Err(ApiError::invalid("from.earliest", false, "must be true when given")),
        Some(At::Latest(false)) => Err(ApiError::invalid("from.latest", false, "must be true when given")),
    }
}

/// The form of the response to a read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) max_records: Option<usize>,
    pub(super) max_bytes: usize,
    pub(super) raw_batches: bool,
}

fn bytes_or_default(max_bytes: u32) -> usize {
    if max_bytes == 0 { FETCH_BYTES_DEFAULT } else { max_bytes as usize }
}

pub(super) fn consume(request: proto::ConsumeRequest) -> Result<(Fetch, Shape), ApiError> {
    let proto::ConsumeRequest { partition, from, max_bytes, max_records, max_wait_ms, raw_batches } = request;
    if raw_batches && max_records != 0 {
        return Err(ApiError::invalid("max_records", max_records, "must be 0 with `raw_batches`: batches are not cut"));
    }
    let max_bytes = bytes_or_default(max_bytes);
    let fetch = Fetch {
        target: target(partition)?,
        from: position(from)?,
        max_bytes,
        max_wait: Duration::from_millis(max_wait_ms.into()),
    };
    let max_records = (max_records != 0).then_some(max_records as usize);
    Ok((fetch, Shape { max_records, max_bytes, raw_batches }))
}

/// Returns the first fetch of a stream (the caller sets its wait), the form of its responses, and its end (exclusive).
pub(super) fn consume_stream(request: proto::ConsumeStreamRequest) -> Result<(Fetch, Shape, Option<i64>), ApiError> {
    let proto::ConsumeStreamRequest { partition, from, max_bytes, raw_batches, until_offset } = request;
    let until = until_offset.map(|offset| at_least("until_offset", offset, 0)).transpose()?;
    let max_bytes = bytes_or_default(max_bytes);
    let fetch = Fetch { target: target(partition)?, from: position(from)?, max_bytes, max_wait: Duration::ZERO };
    Ok((fetch, Shape { max_records: None, max_bytes, raw_batches }, until))
}

pub(super) fn stored(record: Record) -> proto::StoredRecord {
    let Record { offset, timestamp, key, value, headers } = record;
    let headers = headers.into_iter().map(|(key, value)| proto::Header { key: text(&key), value }).collect();
    proto::StoredRecord { offset, timestamp_ms: timestamp, key, value, headers }
}

fn text(bytes: &Bytes) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

pub(super) fn offsets(offsets: Offsets) -> proto::ListOffsetsResponse {
    let Offsets { earliest, next, at_timestamp } = offsets;
    let at_timestamp = at_timestamp.map(|(offset, timestamp_ms)| proto::OffsetAndTime { offset, timestamp_ms });
    proto::ListOffsetsResponse { earliest, next, at_timestamp }
}

pub(super) fn time(timestamp_ms: Option<i64>) -> Result<Option<i64>, ApiError> {
    timestamp_ms.map(|time| at_least("timestamp_ms", time, 0)).transpose()
}

pub(super) fn settings(settings: Option<proto::TopicSettings>) -> Result<SettingsChange, ApiError> {
    let proto::TopicSettings {
        retention_bytes,
        retention_ms,
        segment_bytes,
        max_message_bytes,
        durability,
        flush_interval_ms,
    } = settings.unwrap_or_default();
    let durability = match durability.map(|value| (value, proto::Durability::try_from(value))) {
        None => None,
        Some((_, Ok(proto::Durability::Unspecified | proto::Durability::Fsync))) => Some(TopicDurability::Fsync),
        Some((_, Ok(proto::Durability::Memory))) => Some(TopicDurability::Memory),
        Some((value, Err(_))) => {
            return Err(ApiError::invalid("settings.durability", value, "must be 1 (fsync) or 2 (memory)"));
        }
    };
    Ok(SettingsChange {
        retention_bytes,
        retention_ms,
        segment_bytes,
        max_message_bytes,
        durability,
        flush_interval_ms,
    })
}

pub(super) fn new_topic(request: proto::CreateTopicRequest) -> Result<NewTopic, ApiError> {
    let proto::CreateTopicRequest { name, partitions, replication_factor, settings, if_not_exists } = request;
    at_least("partitions", partitions.into(), 0)?;
    at_least("replication_factor", replication_factor.into(), 0)?;
    let settings = self::settings(settings)?;
    Ok(NewTopic { name: topic_name(name)?, partitions, replication_factor, settings, if_not_exists })
}

pub(super) fn topic_name(name: String) -> Result<String, ApiError> {
    if name.is_empty() {
        return Err(ApiError::invalid("name", "empty", "must be the name of a topic"));
    }
    Ok(name)
}

pub(super) fn alter(request: proto::AlterTopicRequest) -> Result<(String, i32, SettingsChange), ApiError> {
    let proto::AlterTopicRequest { name, partitions, settings } = request;
    at_least("partitions", partitions.into(), 0)?;
    Ok((topic_name(name)?, partitions, self::settings(settings)?))
}

pub(super) fn topic(topic: Topic) -> proto::Topic {
    let durability = match topic.settings.durability {
        TopicDurability::Fsync => proto::Durability::Fsync,
        TopicDurability::Memory => proto::Durability::Memory,
    };
    proto::Topic {
        name: topic.name,
        id: topic.id.to_string(),
        partitions: topic.partitions,
        replication_factor: topic.replication_factor,
        settings: Some(proto::TopicSettings {
            retention_bytes: Some(topic.settings.retention_bytes),
            retention_ms: Some(topic.settings.retention_ms),
            segment_bytes: Some(topic.settings.segment_bytes),
            max_message_bytes: Some(topic.settings.max_message_bytes),
            durability: Some(durability.into()),
            flush_interval_ms: Some(topic.settings.flush_interval_ms),
        }),
        created_ms: topic.created_ms,
    }
}

pub(super) fn partition(partition: PartitionDescription) -> proto::PartitionDescription {
    let PartitionDescription { partition, earliest, next, bytes, segments, term, leader, state, replicas } = partition;
    let replicas = replicas.iter().map(Uuid::to_string).collect();
    proto::PartitionDescription { partition, earliest, next, bytes, segments, term, leader, state, replicas }
}

pub(super) fn server(server: NodeDescription) -> proto::Server {
    let role = if server.voter { proto::ServerRole::Voter } else { proto::ServerRole::Learner };
    let state = match server.state {
        NodeState::Active => proto::ServerState::Active,
        NodeState::Draining => proto::ServerState::Draining,
        NodeState::Decommissioning => proto::ServerState::Decommissioning,
        NodeState::Removed => proto::ServerState::Removed,
    };
    proto::Server {
        node_id: server.node_id.to_string(),
        name: server.name,
        address: server.addresses.data().to_owned(),
        addresses: server.addresses.to_message(),
        controller_leader: server.controller_leader,
        version: server.version,
        zone: server.zone,
        role: role.into(),
        state: state.into(),
        alive: server.alive,
        raft_id: server.raft_id,
        replicas: server.replicas,
        replicas_out_of_service: server.replicas_out_of_service,
        preferred_leaders: server.preferred_leaders,
        encryption: server.encryption.map(|encryption| proto::Encryption {
            certificate_serial: encryption.certificate_serial,
            certificate_not_after_s: encryption.certificate_not_after_s,
        }),
    }
}

pub(super) fn metadata(metadata: Metadata) -> proto::GetMetadataResponse {
    let topics = metadata.topics.into_iter().map(|topic| proto::TopicMetadata {
        name: topic.name,
        id: topic.id.to_string(),
        partitions: topic
            .partitions
            .into_iter()
            .enumerate()
            .map(|(number, partition)| proto::PartitionMetadata {
                partition: number as i32,
                leader: partition.leader.map(|leader| leader.to_string()).unwrap_or_default(),
                term: partition.term,
                replicas: partition.replicas.iter().map(Uuid::to_string).collect(),
            })
            .collect(),
    });
    proto::GetMetadataResponse {
        topics: topics.collect(),
        servers: metadata.servers.into_iter().map(server).collect(),
        cluster_id: metadata.cluster_id.to_string(),
        unknown: metadata.unknown,
    }
}

pub(super) fn status(status: ClusterStatus) -> proto::GetStatusResponse {
    proto::GetStatusResponse {
        cluster_id: status.cluster_id.to_string(),
        controller_leader: status.controller_leader.map(|leader| leader.to_string()).unwrap_or_default(),
        controller_term: status.controller_term,
        servers: status.servers.into_iter().map(server).collect(),
        partitions: status.partitions,
        under_replicated: status.under_replicated,
        offline: status.offline,
        moving: status.moving,
        operations: status.operations.into_iter().map(operation).collect(),
        configuration: configuration(status.configuration),
    }
}

/// Returns `None` for a node that does not watch a configuration file.
fn configuration(report: FileReport) -> Option<proto::Configuration> {
    let FileReport { digest, restart_fields, error, .. } = report;
    let looks = !digest.is_empty() || !error.is_empty();
    looks.then_some(proto::Configuration { file_digest: digest, restart_fields, error })
}

pub(super) fn operation(view: OperationProgress) -> proto::Operation {
    let operation = view.operation;
    let (state, reason) = match operation.state {
        OperationState::Running => ("running", view.waiting_for),
        OperationState::Done => ("done", String::new()),
        OperationState::Failed(why) => ("failed", why),
        OperationState::Cancelled => ("cancelled", String::new()),
    };
    let kind = match operation.kind {
        OperationKind::Decommission => "decommission",
        OperationKind::Drain => "drain",
        OperationKind::Replace => "replace",
        OperationKind::Rebalance => "rebalance",
    };
    proto::Operation {
        id: operation.id,
        kind: kind.into(),
        node_id: view.node.to_string(),
        state: state.into(),
        reason,
        started_ms: operation.started_ms,
        finished_ms: operation.finished_ms,
        total: operation.total,
        remaining: view.remaining,
    }
}

pub(super) fn recovered(replicas: Vec<ReplicaRecovery>) -> proto::RecoverResponse {
    let replica = |replica: ReplicaRecovery| proto::ReplicaRecovery {
        node_id: replica.node_id.to_string(),
        state: replica.state,
        damaged: replica.damaged,
        next_index: replica.next_index,
        held_end: replica.held_end,
        error: replica.error,
    };
    proto::RecoverResponse { replicas: replicas.into_iter().map(replica).collect() }
}

pub(super) fn verified(verified: VerifiedPartition) -> proto::VerifyResponse {
    let replicas = verified.replicas.into_iter().map(|(node, digest)| {
        let (digest, error) = match digest {
            Ok(digest) => (digest, String::new()),
            Err(error) => (String::new(), error),
        };
        proto::ReplicaDigest { node_id: node.to_string(), digest, error }
    });
    proto::VerifyResponse {
        topic: verified.topic,
        partition: verified.partition,
        from: verified.from,
        to: verified.to,
        replicas: replicas.collect(),
        difference: verified.difference,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message;

    use super::*;

    fn with_record() -> proto::ProduceRequest {
        proto::ProduceRequest {
            records: vec![proto::Record { value: Some(Bytes::from_static(b"v")), ..Default::default() }],
            ..Default::default()
        }
    }

    fn refusal(change: impl FnOnce(&mut proto::ProduceRequest)) -> ApiError {
        let mut request = with_record();
        change(&mut request);
        produce(request).unwrap_err()
    }

    #[test]
    fn a_record_alone_goes_to_the_default_topic() {
        let request = produce(with_record()).unwrap();
        assert_eq!(request.target, TopicPartition { topic: "default".into(), partition: 0 });
        assert!(
            matches!(request.payload, ProducePayload::Records { records, compression: Compression::None } if records.len() == 1)
        );
        assert_eq!((request.producer, request.expectation), (None, None));
    }

    #[test]
    fn refusals_name_field_value_and_rule() {
        let header = |key: &str| proto::Header { key: key.into(), value: None };
        let identity = |producer_id, epoch, sequence| Some(proto::ProducerIdentity { producer_id, epoch, sequence });
        let expect = |expect| Some(proto::Expectation { expect });
        let key_version =
            |version| proto::expectation::Expect::KeyVersion(proto::KeyVersion { key: Bytes::new(), version });
        for (error, message) in [
            (refusal(|r| r.records.clear()), "records: empty: must have at least one record, or `batch` must be given"),
            (refusal(|r| r.batch = Bytes::from_static(b"xyz")), "batch: 3 bytes: must be empty beside `records`"),
            (
                refusal(|r| r.partition = Some(proto::Partition { topic: "t".into(), partition: -1 })),
                "partition.partition: -1: must be at least 0",
            ),
            (refusal(|r| r.records[0].timestamp_ms = Some(-5)), "records[0].timestamp_ms: -5: must be at least 0"),
            (
                refusal(|r| r.records[0].headers = vec![header("a"), header("")]),
                "records[0].headers[1].key: empty: must have at least one character",
            ),
            (refusal(|r| r.producer = identity(-1, 0, 0)), "producer.producer_id: -1: must be at least 0"),
            (refusal(|r| r.producer = identity(1, 32768, 0)), "producer.epoch: 32768: must be from 0 to 32767"),
            (refusal(|r| r.producer = identity(1, 0, -2)), "producer.sequence: -2: must be at least 0"),
            (refusal(|r| r.expectation = expect(None)), "expectation: empty: must have `next_offset` or `key_version`"),
            (
                refusal(|r| r.expectation = expect(Some(proto::expectation::Expect::NextOffset(-1)))),
                "expectation.next_offset: -1: must be at least 0",
            ),
            (
                refusal(|r| r.expectation = expect(Some(key_version(-2)))),
                "expectation.key_version.version: -2: must be at least -1",
            ),
        ] {
            assert_eq!((error.reason, error.message.as_str()), (Reason::InvalidRequest, message));
        }
        assert_eq!(refusal(|r| r.compression = 9).reason, Reason::UnsupportedCompression);
    }

    #[test]
    fn a_batch_brings_its_own_compression_and_producer() {
        let batch = proto::ProduceRequest { batch: Bytes::from_static(b"b"), ..Default::default() };
        assert!(matches!(produce(batch.clone()).unwrap().payload, ProducePayload::Batch(_)));
        let compressed = proto::ProduceRequest { compression: 1, ..batch.clone() };
        assert!(produce(compressed).unwrap_err().message.starts_with("compression: 1: must be unset"));
        let identified = proto::ProduceRequest { producer: Some(Default::default()), ..batch };
        assert!(produce(identified).unwrap_err().message.starts_with("producer: given: must be absent"));
    }

    #[test]
    fn positions_are_checked_and_default_to_the_earliest() {
        use proto::position::At;
        let at = |at| position(Some(proto::Position { at: Some(at) }));
        assert_eq!(position(None).unwrap(), Position::Earliest);
        assert_eq!(position(Some(proto::Position { at: None })).unwrap(), Position::Earliest);
        assert_eq!(at(At::Offset(7)).unwrap(), Position::Offset(7));
        assert_eq!(at(At::Latest(true)).unwrap(), Position::Latest);
        assert_eq!(at(At::Offset(-7)).unwrap_err().message, "from.offset: -7: must be at least 0");
        assert_eq!(at(At::TimestampMs(-1)).unwrap_err().message, "from.timestamp_ms: -1: must be at least 0");
        assert_eq!(at(At::Latest(false)).unwrap_err().message, "from.latest: false: must be true when given");
    }

    #[test]
    fn settings_refuse_an_unknown_durability() {
        let unknown = proto::TopicSettings { durability: Some(7), ..Default::default() };
        let error = settings(Some(unknown)).unwrap_err();
        assert_eq!(error.message, "settings.durability: 7: must be 1 (fsync) or 2 (memory)");
        assert_eq!(settings(None).unwrap(), SettingsChange::default());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        #[test]
        fn arbitrary_bytes_as_messages_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
            if let Ok(request) = proto::ProduceRequest::decode(&bytes[..]) {
                let _ = produce(request);
            }
            if let Ok(request) = proto::ConsumeRequest::decode(&bytes[..]) {
                let _ = consume(request);
            }
            if let Ok(request) = proto::ConsumeStreamRequest::decode(&bytes[..]) {
                let _ = consume_stream(request);
            }
            if let Ok(request) = proto::CreateTopicRequest::decode(&bytes[..]) {
                let _ = new_topic(request);
            }
            if let Ok(request) = proto::AlterTopicRequest::decode(&bytes[..]) {
                let _ = alter(request);
            }
        }

        #[test]
        fn arbitrary_fields_never_panic(
            partition in any::<i32>(), compression in any::<i32>(), id in any::<i64>(), epoch in any::<i32>(),
            sequence in any::<i32>(), version in any::<i64>(), time in any::<i64>(), batch in any::<bool>(),
        ) {
            let _ = produce(proto::ProduceRequest {
                partition: Some(proto::Partition { topic: String::new(), partition }),
                records: vec![proto::Record { timestamp_ms: Some(time), ..Default::default() }],
                compression,
                batch: if batch { Bytes::from_static(b"x") } else { Bytes::new() },
                producer: Some(proto::ProducerIdentity { producer_id: id, epoch, sequence }),
                expectation: Some(proto::Expectation {
                    expect: Some(proto::expectation::Expect::NextOffset(version)),
                }),
                ..Default::default()
            });
        }
    }
}
