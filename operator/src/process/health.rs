//! Serves `/livez`, `/readyz` and `/metrics` over plain HTTP.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::telemetry::Metrics;

/// Whether the process has connected to the API server.
#[derive(Clone, Default)]
pub(super) struct ReadyFlag(Arc<AtomicBool>);

impl ReadyFlag {
    pub(super) fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Binds the listener for [`serve`].
pub(super) async fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    TcpListener::bind(address).await
}

/// Serves until `stop` is cancelled.
pub(super) async fn serve(
    listener: TcpListener,
    metrics: Metrics,
    ready: ReadyFlag,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let router = Router::new()
        .route("/livez", get(|| async { "alive\n" }))
        .route(
            "/readyz",
            get(|State((_, ready)): State<(Metrics, ReadyFlag)>| async move {
                match ready.0.load(Ordering::Relaxed) {
                    true => (StatusCode::OK, "ready\n"),
                    false => (StatusCode::SERVICE_UNAVAILABLE, "not ready: no connection to the API server yet\n"),
                }
            }),
        )
        .route(
            "/metrics",
            get(|State((metrics, _)): State<(Metrics, ReadyFlag)>| async move {
                let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
                ([(header::CONTENT_TYPE, kind)], metrics.encode()).into_response()
            }),
        )
        .with_state((metrics, ready));
    axum::serve(listener, router).with_graceful_shutdown(async move { stop.cancelled().await }).await
}
