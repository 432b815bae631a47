//! gRPC: `chronicle.v1`, health and reflection.
//!
//! `convert` converts messages to requests of the broker and back (pure). `status` is the only table of errors. Each
//! service and each streaming call has its own file. Only uncompressed messages are accepted: record batches are
//! compressed themselves.

mod acls;
mod admin;
mod cluster;
mod consume;
mod convert;
mod diagnostics;
mod groups;
#[cfg(test)]
mod grpc_fuzz;
mod health;
mod log;
mod node;
mod observe;
mod produce_stream;
pub mod status;

use axum::Router;
use axum::body::Body;
use chronicle_proto::v1::access_server::AccessServer;
use chronicle_proto::v1::admin_server::AdminServer;
use chronicle_proto::v1::cluster_server::ClusterServer;
use chronicle_proto::v1::groups_server::GroupsServer;
use chronicle_proto::v1::log_server::LogServer;
use chronicle_proto::v1::node_server::NodeServer;
use http::Response;
use tonic::service::Routes;
use tonic::{Code, Request, Status};
use tonic_health::pb::health_server::HealthServer;

use super::context::Context;
use crate::model::{ApiError, Reason};
use crate::security::Caller;

/// Routes of every gRPC service of the data port.
pub(crate) fn router(context: &Context) -> Router {
    // `Intake` checks lengths first and returns this node's own error. The limit here is a second line of defence.
    let decode_max = context.config().limits.request_bytes_max;
    // The size of a response is limited to `limits.fetch-bytes-max` and one more record.
    let encode_max = usize::MAX;
    let log = LogServer::new(log::LogService::new(context.clone()))
        .max_decoding_message_size(decode_max)
        .max_encoding_message_size(encode_max);
    let admin = AdminServer::new(admin::AdminService::new(context.clone())).max_decoding_message_size(decode_max);
    let cluster = ClusterServer::new(cluster::ClusterService::new(context.clone()));
    let health = HealthServer::new(health::HealthService::new(context.clone()));
    let groups = GroupsServer::new(groups::GroupsService::new(context.clone())).max_decoding_message_size(decode_max);
    let node = NodeServer::new(node::NodeService::new(context.clone()));
    let access = AccessServer::new(acls::AccessService::new(context.clone())).max_decoding_message_size(decode_max);
    let mut routes = Routes::new(log)
        .add_service(admin)
        .add_service(cluster)
        .add_service(groups)
        .add_service(access)
        .add_service(node)
        .add_service(health);
    match reflection().build_v1() {
        Ok(service) => routes = routes.add_service(service),
        Err(error) => tracing::error!(%error, "cannot start gRPC reflection"),
    }
    match reflection().build_v1alpha() {
        Ok(service) => routes = routes.add_service(service),
        Err(error) => tracing::error!(%error, "cannot start gRPC reflection (v1alpha)"),
    }
    routes.prepare().into_axum_router()
}

fn reflection() -> tonic_reflection::server::Builder<'static> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(chronicle_proto::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
}

/// Returns the caller of a request. `front` stores it in the extensions of the request.
fn caller<T>(request: &Request<T>) -> Result<Caller, ApiError> {
    // A request without a caller must fail: never treat it as a request of a known caller.
    let unknown = || ApiError::new(Reason::Internal, "request: has no caller");
    request.extensions().get::<Caller>().cloned().ok_or_else(unknown)
}

/// Replaces the error that tonic returns for bytes that it cannot decode (INTERNAL without details) by MALFORMED_BODY,
/// because the client sent wrong bytes. The node's own errors always have details.
pub(crate) fn refine(mut response: Response<Body>) -> Response<Body> {
    if let Some(status) = Status::from_header_map(response.headers())
        && let Some(error) = malformed(&status)
    {
        let headers = response.headers_mut();
        headers.remove("grpc-status");
        headers.remove("grpc-message");
        if let Err(status) = status::status(&error).add_header(headers) {
            return status.into_http();
        }
    }
    response
}

/// Returns the error that replaces `status`, see [`refine`]; `None`: `status` is not from tonic's decoder.
fn malformed(status: &Status) -> Option<ApiError> {
    (status.code() == Code::Internal && status.details().is_empty())
        .then(|| ApiError::new(Reason::MalformedBody, format!("message: cannot be decoded: {}", status.message())))
}
