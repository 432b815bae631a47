//! gRPC: `chronicle.v1`, health and reflection.
//!
//! `convert` turns messages into requests of the broker and back (pure); `status` is the one table of errors; a service
//! has a file each, and so has each streaming call. Messages are accepted uncompressed only: record batches bring their
//! own compression.

mod acls;
mod admin;
mod cluster;
mod consume;
mod convert;
mod diagnostics;
mod groups;
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
    // `Intake` checks lengths first, with an error of ours; the limit here is a second line of defence.
    let decode_max = context.config().limits.request_bytes_max;
    // Answers are bounded by `limits.fetch-bytes-max` and one record more.
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
        Err(error) => tracing::error!(%error, "no gRPC reflection"),
    }
    match reflection().build_v1alpha() {
        Ok(service) => routes = routes.add_service(service),
        Err(error) => tracing::error!(%error, "no gRPC reflection (v1alpha)"),
    }
    routes.prepare().into_axum_router()
}

fn reflection() -> tonic_reflection::server::Builder<'static> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(chronicle_proto::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
}

/// Who a request came from: `front` has put it there.
fn caller<T>(request: &Request<T>) -> Result<Caller, ApiError> {
    // Whoever is not known must not be taken for somebody.
    let unknown = || ApiError::new(Reason::Internal, "the request came without its caller");
    request.extensions().get::<Caller>().cloned().ok_or_else(unknown)
}

/// Gives the errors that tonic itself answers to bytes it cannot decode the form of ours: INTERNAL without details is
/// never this node's own answer, and the fault is the client's.
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

/// See [`refine`].
fn malformed(status: &Status) -> Option<ApiError> {
    (status.code() == Code::Internal && status.details().is_empty())
        .then(|| ApiError::new(Reason::MalformedBody, format!("message: cannot be decoded: {}", status.message())))
}
