//! Topics, nodes and producer ids. Documents use the names and units of `chronicle.v1`.

use axum::body::Body;
use http::{Response, StatusCode};
use serde::Deserialize;
use serde_json::json;

use super::problem::Problem;
use super::query::Query;
use super::{Call, accept, body, document};
use crate::broker::NodeDescription;
use crate::listeners::context::Context;
use crate::model::{ApiError, NewTopic, PartitionDescription, SettingsChange, TopicDurability};

/// See [`SettingsChange`].
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct SettingsBody {
    retention_bytes: Option<i64>,
    retention_ms: Option<i64>,
    segment_bytes: Option<i64>,
    max_message_bytes: Option<i32>,
    durability: Option<TopicDurability>,
    flush_interval_ms: Option<i32>,
}

impl From<SettingsBody> for SettingsChange {
    fn from(body: SettingsBody) -> Self {
        let SettingsBody {
            retention_bytes,
            retention_ms,
            segment_bytes,
            max_message_bytes,
            durability,
            flush_interval_ms,
        } = body;
        Self { retention_bytes, retention_ms, segment_bytes, max_message_bytes, durability, flush_interval_ms }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CreateBody {
    name: String,
    #[serde(default)]
    partitions: i32,
    #[serde(default)]
    replication_factor: i32,
    #[serde(default)]
    settings: SettingsBody,
    #[serde(default)]
    if_not_exists: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct AlterBody {
    #[serde(default)]
    partitions: i32,
    #[serde(default)]
    settings: SettingsBody,
}

fn not_negative(field: &str, value: i32) -> Result<i32, ApiError> {
    if value < 0 { Err(ApiError::invalid(field, value, "must be at least 0")) } else { Ok(value) }
}

/// The checks of every endpoint in this file: `Accept`, and no query parameters.
fn begin(call: &Call) -> Result<(), Problem> {
    accept::choose(&call.headers, &[accept::JSON])?;
    Query::parse(&call.uri, &[])?;
    Ok(())
}

pub(super) async fn list(context: &Context, call: Call) -> Result<Response<Body>, Problem> {
    begin(&call)?;
    document(StatusCode::OK, &json!({"topics": context.broker.for_caller(&call.caller).topics().await?}))
}

pub(super) async fn create(context: &Context, call: Call) -> Result<Response<Body>, Problem> {
    begin(&call)?;
    accept::require_json(&call.headers)?;
    let caller = call.caller;
    let body: CreateBody = body::parse(&body::read(call.body, &context.config().limits).await?)?;
    let new = NewTopic {
        name: body.name,
        partitions: not_negative("partitions", body.partitions)?,
        replication_factor: not_negative("replication_factor", body.replication_factor)?,
        settings: body.settings.into(),
        if_not_exists: body.if_not_exists,
    };
    let (topic, created) = context.broker.for_caller(&caller).create_topic(new).await?;
    let status = if created { StatusCode::CREATED } else { StatusCode::OK };
    document(status, &json!({"topic": topic, "created": created}))
}

pub(super) async fn describe(context: &Context, call: Call) -> Result<Response<Body>, Problem> {
    begin(&call)?;
    let (topic, partitions) = context.broker.for_caller(&call.caller).describe_topic(call.topic()).await?;
    let partitions: Vec<_> = partitions.into_iter().map(partition).collect();
    document(StatusCode::OK, &json!({"topic": topic, "partitions": partitions}))
}

fn partition(partition: PartitionDescription) -> serde_json::Value {
    let PartitionDescription { partition, earliest, next, bytes, segments, term, leader, state, replicas } = partition;
    json!({
        "partition": partition, "earliest": earliest, "next": next, "bytes": bytes, "segments": segments, "term": term,
        "leader": leader, "state": state, "replicas": replicas,
    })
}

pub(super) async fn alter(context: &Context, call: Call) -> Result<Response<Body>, Problem> {
    begin(&call)?;
    accept::require_json(&call.headers)?;
    let (topic, caller) = (call.topic().to_owned(), call.caller);
    let body: AlterBody = body::parse(&body::read(call.body, &context.config().limits).await?)?;
    let partitions = not_negative("partitions", body.partitions)?;
    let topic = context.broker.for_caller(&caller).alter_topic(&topic, partitions, body.settings.into()).await?;
    document(StatusCode::OK, &json!({"topic": topic}))
}

pub(super) async fn delete(context: &Context, call: Call) -> Result<Response<Body>, Problem> {
    Query::parse(&call.uri, &[])?;
    context.broker.for_caller(&call.caller).delete_topic(call.topic()).await?;
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    Ok(response)
}

pub(super) async fn servers(context: &Context, call: Call) -> Result<Response<Body>, Problem> {
    begin(&call)?;
    let (servers, cluster_id) = context.broker.for_caller(&call.caller).servers().await?;
    let servers: Vec<_> = servers.into_iter().map(server).collect();
    document(StatusCode::OK, &json!({"servers": servers, "cluster_id": cluster_id}))
}

fn server(server: NodeDescription) -> serde_json::Value {
    json!({
        "node_id": server.node_id, "name": server.name, "address": server.addresses.data(),
        "controller_leader": server.controller_leader, "version": server.version, "zone": server.zone,
        "role": if server.voter { "voter" } else { "learner" }, "state": server.state, "alive": server.alive,
        "raft_id": server.raft_id, "replicas": server.replicas,
        "replicas_out_of_service": server.replicas_out_of_service, "preferred_leaders": server.preferred_leaders,
    })
}

pub(super) async fn init_producer(context: &Context, call: Call) -> Result<Response<Body>, Problem> {
    begin(&call)?;
    let (id, epoch) = context.broker.for_caller(&call.caller).init_producer().await?;
    document(StatusCode::OK, &json!({"id": id, "epoch": epoch}))
}

#[cfg(test)]
pub(in crate::listeners::http) mod tests;
