//! Plain gRPC and HTTP calls to a node, and helpers to read the answers.
//!
//! Uses the generated code and nothing of `chronicle-client`, whose retries would hide the real answers of the node.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use chronicle_client::{tcp_connector, tls_connector};
use chronicle_proto::v1;
use chronicle_proto::v1::admin_client::AdminClient;
use chronicle_proto::v1::cluster_client::ClusterClient;
use chronicle_proto::v1::log_client::LogClient;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic_types::StatusExt;

use crate::input::Item;
use crate::tls;

/// Largest gRPC message that the harness accepts.
const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// A connection to a node's data port.
///
/// # Errors
/// The port is closed.
pub async fn connect(address: SocketAddr) -> Result<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))?
        .connect_timeout(Duration::from_secs(10))
        .tcp_nodelay(true)
        .initial_stream_window_size(4 << 20)
        .initial_connection_window_size(8 << 20);
    if let Some(secured) = tls::of(address) {
        // Uses the client's TLS configuration, and no other part of the client.
        let connector = tls_connector(tcp_connector(), secured.client.client());
        let connect = tower::service_fn(move |_: Uri| {
            let connecting = connector(address.to_string());
            async move { connecting.await.map(TokioIo::new) }
        });
        let connected = endpoint.connect_with_connector(connect).await;
        return connected.with_context(|| format!("connecting to {address}"));
    }
    endpoint.connect().await.with_context(|| format!("connecting to {address}"))
}

/// The `Log` service of a node.
///
/// # Errors
/// The port is closed.
pub async fn log(address: SocketAddr) -> Result<LogClient<Channel>> {
    Ok(log_on(connect(address).await?))
}

/// The `Cluster` service of a node.
///
/// # Errors
/// The port is closed.
pub async fn cluster(address: SocketAddr) -> Result<ClusterClient<Channel>> {
    Ok(ClusterClient::new(connect(address).await?).max_decoding_message_size(MESSAGE_BYTES_MAX))
}

/// The `Admin` service of a node.
///
/// # Errors
/// The port is closed.
pub async fn admin(address: SocketAddr) -> Result<AdminClient<Channel>> {
    Ok(AdminClient::new(connect(address).await?).max_decoding_message_size(MESSAGE_BYTES_MAX))
}

/// The `Log` service over a connection.
pub fn log_on(channel: Channel) -> LogClient<Channel> {
    LogClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX).max_encoding_message_size(MESSAGE_BYTES_MAX)
}

/// Partition 0 of a topic.
pub fn partition(topic: &str) -> Option<v1::Partition> {
    Some(v1::Partition { topic: topic.into(), partition: 0 })
}

/// A record with a key, a value and nothing else.
pub fn record(item: &Item) -> v1::Record {
    v1::Record { key: Some(item.key.clone()), value: Some(item.value.clone()), headers: Vec::new(), timestamp_ms: None }
}

/// Creates a topic of `partitions` partitions.
///
/// # Errors
/// The node refuses.
pub async fn create_topic(
    address: SocketAddr,
    name: &str,
    partitions: i32,
    settings: Option<v1::TopicSettings>,
) -> Result<()> {
    let mut admin = AdminClient::new(connect(address).await?);
    admin
        .create_topic(v1::CreateTopicRequest {
            name: name.into(),
            partitions,
            replication_factor: 0,
            settings,
            if_not_exists: false,
        })
        .await
        .with_context(|| format!("creating topic {name}"))?;
    Ok(())
}

/// Appends one record to partition 0 and returns its offset.
///
/// # Errors
/// The status with which the node refuses.
pub async fn append(client: &mut LogClient<Channel>, topic: &str, value: Bytes) -> Result<i64, tonic::Status> {
    let record = v1::Record { value: Some(value), ..v1::Record::default() };
    let request = v1::ProduceRequest { partition: partition(topic), records: vec![record], ..Default::default() };
    Ok(client.produce(request).await?.into_inner().base_offset)
}

/// The `reason` of a status' `ErrorInfo`, or an empty text.
pub fn reason(status: &tonic::Status) -> String {
    status.get_details_error_info().map(|info| info.reason).unwrap_or_default()
}

/// A value of a status' `ErrorInfo`, or an empty text.
pub fn metadata(status: &tonic::Status, name: &str) -> String {
    status.get_details_error_info().and_then(|info| info.metadata.get(name).cloned()).unwrap_or_default()
}

/// Reads partition 0 from its first record to its end over gRPC, in answers of at most `bytes_max` bytes.
///
/// # Errors
/// A call fails, or an answer's offsets leave a gap.
pub async fn read_all(address: SocketAddr, topic: &str, bytes_max: u32) -> Result<Vec<v1::StoredRecord>> {
    let mut client = log(address).await?;
    let ends = client.list_offsets(v1::ListOffsetsRequest { partition: partition(topic), timestamp_ms: None });
    let ends = ends.await?.into_inner();
    let mut records = Vec::new();
    let mut next = ends.earliest;
    while next < ends.next {
        let request = v1::ConsumeRequest {
            partition: partition(topic),
            from: Some(v1::Position { at: Some(v1::position::At::Offset(next)) }),
            max_bytes: bytes_max,
            ..Default::default()
        };
        let answer = client.consume(request).await.with_context(|| format!("reading from offset {next}"))?.into_inner();
        ensure!(!answer.records.is_empty(), "offset {next} of {}: an answer without records", ends.next);
        for record in answer.records {
            ensure!(record.offset == next, "offset {next} is missing: {} follows", record.offset);
            next += 1;
            records.push(record);
        }
        ensure!(answer.next_offset == next, "next_offset is {} after offset {}", answer.next_offset, next - 1);
    }
    Ok(records)
}

/// Reads partition 0 from its first record to its end over HTTP.
///
/// # Errors
/// A call fails, or an answer's offsets leave a gap.
pub async fn read_all_http(address: SocketAddr, topic: &str, bytes_max: u32) -> Result<Vec<v1::StoredRecord>> {
    let http = tls::http(address)?;
    let path = format!("{}/v1/topics/{topic}/partitions/0", tls::url(address));
    let ends: Value = http.get(format!("{path}/offsets")).send().await?.error_for_status()?.json().await?;
    let number =
        |value: &Value, name: &str| value[name].as_i64().with_context(|| format!("no number {name} in {value}"));
    let (mut next, end) = (number(&ends, "earliest")?, number(&ends, "next")?);
    let mut records = Vec::new();
    while next < end {
        let answer = http.get(format!("{path}/records?offset={next}&max_bytes={bytes_max}")).send().await?;
        let answer: Value = answer.error_for_status()?.json().await?;
        let batch = answer["records"].as_array().context("no list of records")?;
        ensure!(!batch.is_empty(), "offset {next} of {end}: an answer without records");
        for record in batch {
            ensure!(number(record, "offset")? == next, "offset {next} is missing: {} follows", record["offset"]);
            next += 1;
            let bytes = |name: &str| -> Result<Option<Bytes>> {
                record[name].as_str().map(|text| Ok(Bytes::from(BASE64.decode(text)?))).transpose()
            };
            records.push(v1::StoredRecord {
                offset: next - 1,
                timestamp_ms: number(record, "timestamp")?,
                key: bytes("key")?,
                value: bytes("value")?,
                headers: Vec::new(),
            });
        }
        ensure!(number(&answer, "next_offset")? == next, "next_offset is {} after {}", answer["next_offset"], next - 1);
    }
    Ok(records)
}
