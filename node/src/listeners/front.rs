//! The one service behind every connection of the data port. It distinguishes gRPC and HTTP/JSON by content type.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, Request, Response, Version};
use hyper::body::Incoming;
use hyper::service::Service;
use tower::Service as _;

use super::context::Context;
use super::http::problem::Problem;
use super::intake::{Intake, Messages};
use super::outflow::{Outflow, Stalls};
use super::pace::Pace;
use super::{grpc, http as json};
use crate::model::{ApiError, Reason};
use crate::security::Caller;
use crate::security::budget::Hold;
use crate::telemetry::{ApiOperation, Listener, traces};

/// Routes of both protocols.
#[derive(Clone)]
pub(crate) struct Routes {
    context: Context,
    grpc: Router,
    http: Router,
}

impl Routes {
    pub(crate) fn new(context: Context) -> Self {
        Self { grpc: grpc::router(&context), http: json::router(&context), context }
    }

    pub(crate) fn context(&self) -> &Context {
        &self.context
    }

    /// Returns the service of one connection. All its requests come from `caller`.
    pub(crate) fn front(&self, caller: Caller, stalls: Arc<Stalls>) -> Front {
        Front { routes: self.clone(), caller, stalls }
    }
}

/// [`Routes`] for one connection.
#[derive(Clone)]
pub(crate) struct Front {
    routes: Routes,
    caller: Caller,
    stalls: Arc<Stalls>,
}

/// Returns whether a request is gRPC, by its content type.
pub(crate) fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

impl Front {
    async fn answer(self, request: Request<Incoming>) -> Response<Outflow<Body>> {
        let Routes { context, grpc, http } = self.routes;
        let is_grpc = is_grpc(request.headers());
        let busy = self.stalls.busy();
        let ticket = self.caller.share.ticket();
        let http_version = request.version();
        let config = context.config();
        let limits = &config.limits;
        let mut request = request.map(|body| {
            Body::new(Intake {
                body,
                ticket: ticket.clone(),
                metrics: context.metrics.clone(),
                messages: is_grpc.then(Messages::default),
                message_bytes_max: limits.request_bytes_max,
                pace: Pace::new(Duration::from_millis(limits.body_timeout_ms)),
                refused: None,
            })
        });
        request.extensions_mut().insert(ticket.clone());
        request.extensions_mut().insert(self.caller);
        let trace = traces::Request::begin(traces::parent_of(request.headers()), || {
            traces::call_of(is_grpc, request.method(), request.uri().path())
        });
        let mut response = if !is_grpc {
            trace.instrument(call(http, request)).await
        } else if http_version == Version::HTTP_2 {
            grpc::refine(trace.instrument(call(grpc, request)).await)
        } else {
            context.metrics.request(
                Listener::Grpc,
                ApiOperation::Other,
                Some(Reason::UnsupportedMediaType),
                Duration::ZERO,
            );
            let message = format!("content-type: application/grpc over {http_version:?}: gRPC needs HTTP/2");
            Problem::from(ApiError::new(Reason::UnsupportedMediaType, message)).into_response()
        };
        trace.answered(&response);
        let hold = response.extensions_mut().remove::<Arc<Hold>>();
        response.map(|body| Outflow::new(body, is_grpc, busy, context.metrics, hold))
    }
}

async fn call(mut router: Router, request: Request<Body>) -> Response<Body> {
    match router.call(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    }
}

impl Service<Request<Incoming>> for Front {
    type Response = Response<Outflow<Body>>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let front = self.clone();
        Box::pin(async move { Ok(front.answer(request).await) })
    }
}
