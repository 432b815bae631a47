//! The ops port: plain HTTP, no data. `/livez`, `/readyz` and `/metrics`.
//!
//! It is separate from the data port, so that it responds while the node recovers and when the data port is full.
//! Liveness reports only that the process runs its tasks. Everything else is readiness, because restarts in a loop do
//! not repair, for example, a node that cannot write.

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

/// Most open connections: enough for a few probes and scrapers.
const CONNECTIONS_MAX: usize = 64;
/// Longest wait for a request header, and how long an idle connection stays open.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest time that one connection stays open. This also disconnects clients that do not read.
const CONNECTION_LIFE: Duration = Duration::from_secs(300);
/// Longest wait for responses in progress when stopping.
const GRACE: Duration = Duration::from_secs(1);
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// The source of readiness: the broker, once it has started. Cheap to clone.
#[derive(Clone, Default)]
pub struct Probe(Arc<OnceLock<Broker>>);

impl Probe {
    /// Returns a probe that reports "not ready: starting" until [`Probe::attach`].
    pub fn new() -> Self {
        Self::default()
    }

    /// Reports the readiness of `broker` from now on. Later calls have no effect.
    pub fn attach(&self, broker: Broker) {
        let _ = self.0.set(broker);
    }

    /// Returns whether the node can serve.
    pub fn readiness(&self) -> Readiness {
        match self.0.get() {
            Some(broker) => broker.readiness(),
            None => Readiness::NotReady("starting: recovering the data directory".into()),
        }
    }
}

/// The bound ops port. It accepts connections while [`OpsServer::serve`] runs.
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
    /// When the node cannot listen on the address.
    pub async fn bind(address: SocketAddr, probe: Probe, metrics: Metrics) -> Result<Self, BindError> {
        let error = |source| BindError { field: "listeners.ops", address, source };
        let acceptor = Acceptor::bind(address).await.map_err(error)?;
        let address = acceptor.local_addr().map_err(error)?;
        Ok(Self { acceptor, address, probe, metrics })
    }

    /// Returns the address of the port, with the assigned port number when the configured one is 0.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `shutdown` is cancelled, then finishes requests in progress. Returns when every connection has
    /// ended.
    pub async fn serve(self, shutdown: CancellationToken) {
        let (tasks, kill, places) =
            (TaskTracker::new(), CancellationToken::new(), Arc::new(Semaphore::new(CONNECTIONS_MAX)));
        loop {
            // Safe to drop: the poll that accepts a connection also returns it.
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
        _ => (StatusCode::NOT_FOUND, PLAIN, "path: must be /livez, /readyz or /metrics\n".into()),
    };
    text(status, kind, body)
}

fn text(status: StatusCode, kind: &'static str, body: String) -> Response<Body> {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}
