//! The ops port: plain HTTP, no data. `/livez`, `/readyz` and `/metrics`.
//!
//! It is apart from the data port, so that it answers while the node recovers and when the data port is full. Liveness
//! says only that the process runs its tasks: a node that cannot write is not made better by a restart loop, so
//! everything else is readiness.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::body::Body;
use http::header::{ALLOW, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::broker::{Broker, Readiness};
use crate::host::net::{Acceptor, BindError};
use crate::telemetry::Metrics;

/// Open connections: a few probes and scrapers.
const CONNECTIONS_MAX: usize = 64;
/// Wait for a request header, and the time that an idle connection is kept.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest life of one connection, which also ends clients that do not read.
const CONNECTION_LIFE: Duration = Duration::from_secs(300);
/// Wait for answers under way when stopping.
const GRACE: Duration = Duration::from_secs(1);
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// Where readiness comes from: nowhere until the broker has started. Cheap to clone.
#[derive(Clone, Default)]
pub struct Probe(Arc<OnceLock<Broker>>);

impl Probe {
    /// Not ready: starting.
    pub fn new() -> Self {
        Self::default()
    }

    /// From now on readiness is the broker's. Later calls change nothing.
    pub fn attach(&self, broker: Broker) {
        let _ = self.0.set(broker);
    }

    /// Whether the node can serve.
    pub fn readiness(&self) -> Readiness {
        match self.0.get() {
            Some(broker) => broker.readiness(),
            None => Readiness::NotReady("starting: recovering the data directory".into()),
        }
    }
}

/// The ops port: bound, and serving once [`OpsServer::serve`] runs.
pub struct OpsServer {
    acceptor: Acceptor,
    address: SocketAddr,
    probe: Probe,
    metrics: Metrics,
}

impl OpsServer {
    /// Listens on `address`, the configuration's `listeners.ops`.
    ///
    /// # Errors
    /// When the address cannot be listened on.
    pub async fn bind(address: SocketAddr, probe: Probe, metrics: Metrics) -> Result<Self, BindError> {
        let error = |source| BindError { field: "listeners.ops", address, source };
        let acceptor = Acceptor::bind(address).await.map_err(error)?;
        let address = acceptor.local_addr().map_err(error)?;
        Ok(Self { acceptor, address, probe, metrics })
    }

    /// The address in force; the port is the real one when the configuration says 0.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `shutdown`, then finishes what is under way. Returns when every connection has ended.
    pub async fn serve(self, shutdown: CancellationToken) {
        let (tasks, kill, places) =
            (TaskTracker::new(), CancellationToken::new(), Arc::new(Semaphore::new(CONNECTIONS_MAX)));
        loop {
            // Dropping the accept loses nothing: an accepted connection is returned by the poll that took it.
            let accepted = tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                accepted = self.acceptor.accept() => accepted,
            };
            let socket = match accepted {
                Ok((socket, _)) => socket,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection on the ops port");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                    continue;
                }
            };
            let Ok(place) = places.clone().try_acquire_owned() else { continue };
            let (probe, metrics, drain, kill) =
                (self.probe.clone(), self.metrics.clone(), shutdown.clone(), kill.clone());
            tasks.spawn(async move {
                let service = service_fn(move |request: Request<hyper::body::Incoming>| {
                    let response = answer(request.method(), request.uri().path(), &probe, &metrics);
                    std::future::ready(Ok::<_, Infallible>(response))
                });
                let mut builder = http1::Builder::new();
                builder.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
                let mut connection = pin!(builder.serve_connection(TokioIo::new(socket), service));
                let whole = async {
                    tokio::select! {
                        result = connection.as_mut() => return result,
                        () = drain.cancelled() => connection.as_mut().graceful_shutdown(),
                    }
                    connection.await
                };
                tokio::select! {
                    result = timeout(CONNECTION_LIFE, whole) => {
                        if let Ok(Err(error)) = result {
                            tracing::debug!(%error, "connection on the ops port ended");
                        }
                    }
                    () = kill.cancelled() => {}
                }
                drop(place);
            });
        }
        tasks.close();
        if timeout(GRACE, tasks.wait()).await.is_err() {
            kill.cancel();
            tasks.wait().await;
        }
    }
}

fn answer(method: &Method, path: &str, probe: &Probe, metrics: &Metrics) -> Response<Body> {
    const PLAIN: &str = "text/plain; charset=utf-8";
    const METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    let (status, kind, body) = match path {
        "/livez" | "/readyz" | "/metrics" if method != Method::GET && method != Method::HEAD => {
            let mut response = text(StatusCode::METHOD_NOT_ALLOWED, PLAIN, "method: must be GET or HEAD\n".into());
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return response;
        }
        "/livez" => (StatusCode::OK, PLAIN, "alive\n".into()),
        "/readyz" => match probe.readiness() {
            Readiness::Ready => (StatusCode::OK, PLAIN, "ready\n".into()),
            Readiness::NotReady(why) => (StatusCode::SERVICE_UNAVAILABLE, PLAIN, format!("not ready: {why}\n")),
        },
        "/metrics" => (StatusCode::OK, METRICS, metrics.encode()),
        _ => (StatusCode::NOT_FOUND, PLAIN, "no such path: /livez, /readyz, /metrics\n".into()),
    };
    text(status, kind, body)
}

fn text(status: StatusCode, kind: &'static str, body: String) -> Response<Body> {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}
