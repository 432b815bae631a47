//! `grpc.health.v1.Health`, from the broker's readiness.
//!
//! Readiness applies to the whole node, so every service has the same state as the empty service name.

use std::time::Duration;

use futures::StreamExt;
use futures::stream::{self, BoxStream};
use tonic::{Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_server::Health;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use crate::broker::Readiness;
use crate::listeners::context::Context;

/// How often a watch checks the readiness.
const WATCH: Duration = Duration::from_millis(500);

const SERVICES: [&str; 4] = ["", "chronicle.v1.Log", "chronicle.v1.Admin", "chronicle.v1.Cluster"];

pub(super) struct HealthService {
    context: Context,
}

impl HealthService {
    pub(super) fn new(context: Context) -> Self {
        Self { context }
    }
}

fn serving(context: &Context) -> ServingStatus {
    match context.broker.readiness() {
        Readiness::Ready if !context.stopping.is_cancelled() => ServingStatus::Serving,
        _ => ServingStatus::NotServing,
    }
}

fn response(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status.into() }
}

#[tonic::async_trait]
impl Health for HealthService {
    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        let service = request.into_inner().service;
        // NOT_FOUND for an unknown service is part of the health protocol.
        if !SERVICES.contains(&service.as_str()) {
            return Err(Status::not_found(format!("service: {service:?}: must be one of {SERVICES:?}")));
        }
        Ok(Response::new(response(serving(&self.context))))
    }

    type WatchStream = BoxStream<'static, Result<HealthCheckResponse, Status>>;

    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let known = SERVICES.contains(&request.into_inner().service.as_str());
        let state = (self.context.clone(), None, false);
        let stream = stream::unfold(state, move |(context, mut last, ended)| async move {
            if ended {
                return None;
            }
            loop {
                let status = if known { serving(&context) } else { ServingStatus::ServiceUnknown };
                let ended = context.stopping.is_cancelled();
                if last != Some(status) || ended {
                    last = Some(status);
                    return Some((Ok(response(status)), (context, last, ended)));
                }
                tokio::select! {
                    () = tokio::time::sleep(WATCH) => {}
                    () = context.stopping.cancelled() => {}
                }
            }
        });
        Ok(Response::new(stream.boxed()))
    }
}
