//! Checks of requests, before any other work is done for them. Pure.

use bytes::{Bytes, BytesMut};
use chronicle_records::{BatchBuilder, BatchError, BatchHeader, Compression, Limits};

use crate::config::LimitsConfig;
use crate::model::{
    ApiError, Expectation, NewRecord, NewTopic, ProducePayload, ProducerIdentity, Reason, SettingsChange, Topic,
    TopicSettings, is_topic_name,
};

const PARTITIONS_MAX: i32 = 10_000;
const SEGMENT_BYTES_MIN: i64 = 64 << 10;
const SEGMENT_BYTES_MAX: i64 = 4 << 30;
const MESSAGE_BYTES_MIN: i32 = 1024;

/// Checks the name of a new topic.
pub(super) fn topic_name(name: &str) -> Result<(), ApiError> {
    if is_topic_name(name) {
        return Ok(());
    }
    let shown: String = name.chars().take(64).collect();
    Err(ApiError::invalid(
        "name",
        format!("{shown:?}"),
        "must have 1 to 249 characters of a-z A-Z 0-9 . _ - and be neither . nor ..",
    ))
}

/// Rejects names of internal topics, which begin with `__`: only the node itself writes and changes them; clients may read them.
pub(super) fn not_internal(field: &str, name: &str) -> Result<(), ApiError> {
    if !name.starts_with("__") {
        return Ok(());
    }
    let shown: String = name.chars().take(64).collect();
    Err(ApiError::invalid(field, format!("{shown:?}"), "must not begin with __: internal topics are read-only"))
}

/// Maximum number of replicas of a partition.
const REPLICATION_MAX: i32 = 7;

/// Checks the partition count and replication factor of a new topic. A partition count of 0 becomes 1; a factor of 0 stays, for the
/// cluster's default.
pub(super) fn topic_shape(topic: &NewTopic) -> Result<(i32, i32), ApiError> {
    let partitions = if topic.partitions == 0 { 1 } else { topic.partitions };
    partition_count(partitions)?;
    let replication = topic.replication_factor;
    if !(0..=REPLICATION_MAX).contains(&replication) {
        let rule = format!("must be from 1 to {REPLICATION_MAX}, or 0 for the cluster's default");
        return Err(ApiError::invalid("replication_factor", replication, &rule));
    }
    Ok((partitions, replication))
}

/// Checks the number of partitions of a topic.
pub(super) fn partition_count(partitions: i32) -> Result<(), ApiError> {
    if (1..=PARTITIONS_MAX).contains(&partitions) {
        return Ok(());
    }
    Err(ApiError::invalid("partitions", partitions, &format!("must be from 1 to {PARTITIONS_MAX}")))
}

/// Checks a change of settings and applies it.
pub(super) fn settings(
    mut settings: TopicSettings,
    change: &SettingsChange,
    limits: &LimitsConfig,
) -> Result<TopicSettings, ApiError> {
    if let Some(bytes) = change.retention_bytes {
        at_least("retention_bytes", bytes, -1)?;
        settings.retention_bytes = bytes;
    }
    if let Some(ms) = change.retention_ms {
        at_least("retention_ms", ms, -1)?;
        settings.retention_ms = ms;
    }
    if let Some(bytes) = change.segment_bytes {
        if !(SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX).contains(&bytes) {
            let rule = format!("must be from {SEGMENT_BYTES_MIN} to {SEGMENT_BYTES_MAX}");
            return Err(ApiError::invalid("segment_bytes", bytes, &rule));
        }
        settings.segment_bytes = bytes;
    }
    if let Some(bytes) = change.max_message_bytes {
        let max = i32::try_from(limits.request_bytes_max).unwrap_or(i32::MAX);
        if !(MESSAGE_BYTES_MIN..=max).contains(&bytes) {
            let rule = format!("must be from {MESSAGE_BYTES_MIN} to {max} (limits.request-bytes-max)");
            return Err(ApiError::invalid("max_message_bytes", bytes, &rule));
        }
        settings.max_message_bytes = bytes;
    }
    if let Some(durability) = change.durability {
        settings.durability = durability;
    }
    if let Some(ms) = change.flush_interval_ms {
        at_least("flush_interval_ms", i64::from(ms), 1)?;
        settings.flush_interval_ms = ms;
    }
    Ok(settings)
}

fn at_least(field: &str, value: i64, least: i64) -> Result<(), ApiError> {
    if value >= least {
        return Ok(());
    }
    Err(ApiError::invalid(field, value, &format!("must be at least {least}")))
}

/// Checks that a topic has a partition with this number.
pub(super) fn partition(topic: &Topic, partition: i32) -> Result<(), ApiError> {
    if (0..topic.partitions).contains(&partition) {
        return Ok(());
    }
    Err(ApiError::new(
        Reason::UnknownPartition,
        format!("partition: {partition}: topic {:?} has partitions 0 to {}", topic.name, topic.partitions - 1),
    ))
}

/// Checks the fields of an expectation.
pub(super) fn expectation(expectation: &Expectation) -> Result<(), ApiError> {
    match expectation {
        Expectation::NextOffset(offset) => at_least("expectation.next_offset", *offset, 0),
        Expectation::KeyVersion { version, .. } => at_least("expectation.key_version.version", *version, -1),
    }
}

/// Returns the validated batch that a request stores; encodes it when the payload has records.
pub(super) fn batch(
    payload: ProducePayload,
    producer: Option<ProducerIdentity>,
    topic: &Topic,
    limits: &LimitsConfig,
    now_ms: i64,
) -> Result<(BytesMut, BatchHeader), ApiError> {
    let max_batch_bytes = topic.settings.max_message_bytes as usize;
    match payload {
        ProducePayload::Records { records, compression } => {
            let batch = encode(records, compression, producer, max_batch_bytes, limits, now_ms)?;
            let header = chronicle_records::parse_header(&batch).map_err(|e| batch_error(&e))?;
            Ok((batch, header))
        }
        ProducePayload::Batch(bytes) => {
            if producer.is_some() {
                return Err(ApiError::invalid(
                    "producer",
                    "given",
                    "must be absent with `batch`, whose own producer fields are used",
                ));
            }
            let limits = Limits {
                max_batch_bytes,
                max_decompressed_bytes: limits.decompressed_bytes_max,
                max_records: limits.batch_records_max,
            };
            let header = chronicle_records::check(&bytes, &limits).map_err(|e| batch_error(&e))?;
            raw_batch(&header)?;
            // A buffer without other references is reused without a copy.
            let batch = bytes.try_into_mut().unwrap_or_else(|shared: Bytes| BytesMut::from(&shared[..]));
            Ok((batch, header))
        }
    }
}

/// Checks a batch that a producer has built itself, beyond its structure.
fn raw_batch(header: &BatchHeader) -> Result<(), ApiError> {
    if header.is_control {
        return Err(ApiError::invalid("batch.attributes", "control batch", "must not be set by producers"));
    }
    if header.is_transactional {
        return Err(ApiError::invalid(
            "batch.attributes",
            "transactional batch",
            "must not be set: this version does not support transactions",
        ));
    }
    if header.producer_id >= 0 {
        producer(header.producer_id, i32::from(header.producer_epoch), header.base_sequence)?;
    }
    Ok(())
}

/// Checks the fields of an idempotent producer. Returns the epoch in its stored width.
pub(crate) fn producer(producer_id: i64, epoch: i32, sequence: i32) -> Result<i16, ApiError> {
    at_least("producer.producer_id", producer_id, 0)?;
    at_least("producer.sequence", i64::from(sequence), 0)?;
    let narrow = i16::try_from(epoch).ok().filter(|epoch| *epoch >= 0);
    narrow.ok_or_else(|| ApiError::invalid("producer.epoch", epoch, "must be from 0 to 32767"))
}

fn encode(
    records: Vec<NewRecord>,
    compression: Compression,
    identity: Option<ProducerIdentity>,
    max_batch_bytes: usize,
    limits: &LimitsConfig,
    now_ms: i64,
) -> Result<BytesMut, ApiError> {
    if records.is_empty() {
        return Err(ApiError::invalid("records", "empty", "must have at least one record"));
    }
    if records.len() > limits.batch_records_max {
        let rule = format!("at most {} in a request (limits.batch-records-max)", limits.batch_records_max);
        return Err(ApiError::invalid("records", records.len(), &rule));
    }
    let size = records.iter().map(record_bytes).sum::<usize>();
    if size > limits.decompressed_bytes_max {
        return Err(too_large(size, limits.decompressed_bytes_max, "limits.decompressed-bytes-max"));
    }
    let mut builder = BatchBuilder::with_capacity(compression, size);
    if let Some(identity) = identity {
        producer(identity.producer_id, i32::from(identity.epoch), identity.sequence)?;
        builder = builder.with_producer(identity.producer_id, identity.epoch, identity.sequence);
    }
    for (index, record) in records.iter().enumerate() {
        let timestamp = record.timestamp_ms.unwrap_or(now_ms);
        if timestamp < 0 {
            return Err(ApiError::invalid(
                &format!("records[{index}].timestamp_ms"),
                timestamp,
                "must be at least 0 (milliseconds since the Unix epoch)",
            ));
        }
        let headers = record.headers.iter().map(|(name, value)| (name.as_str(), value.as_deref()));
        builder
            .push(timestamp, record.key.as_deref(), record.value.as_deref(), headers)
            .map_err(|e| batch_error(&e))?;
    }
    let batch = builder.build().map_err(|e| batch_error(&e))?;
    if batch.len() > max_batch_bytes {
        return Err(too_large(batch.len(), max_batch_bytes, "max_message_bytes"));
    }
    Ok(batch)
}

fn record_bytes(record: &NewRecord) -> usize {
    let headers: usize = record.headers.iter().map(|(n, v)| n.len() + v.as_ref().map_or(0, Bytes::len) + 10).sum();
    record.key.as_ref().map_or(0, Bytes::len) + record.value.as_ref().map_or(0, Bytes::len) + headers + 40
}

fn too_large(bytes: usize, limit: usize, what: &str) -> ApiError {
    ApiError::new(Reason::RecordTooLarge, format!("batch: {bytes} bytes: at most {limit} ({what})"))
        .with("limit", limit)
}

/// Converts an error of a batch for clients.
pub(super) fn batch_error(error: &BatchError) -> ApiError {
    let message = format!("batch: {error}");
    match error {
        BatchError::UnknownCompression(_) => ApiError::new(Reason::UnsupportedCompression, message),
        BatchError::TooLarge { limit, .. } | BatchError::TooManyRecords { limit, .. } => {
            ApiError::new(Reason::RecordTooLarge, message).with("limit", limit)
        }
        BatchError::Compress { .. } => ApiError::new(Reason::Internal, message),
        _ => ApiError::new(Reason::CorruptBatch, message),
    }
}
