//! Listeners: bytes to requests and answers to bytes, no decisions.
//!
//! One TCP port carries gRPC and HTTP/JSON, over HTTP/1.1 and HTTP/2. The way of a request:
//!
//! ```text
//! net (accept) -> security (TLS, if on) -> sniff (HTTP version, or a peer) -> connection (limits) -> front (gRPC or JSON) -> intake (metered body)
//!   -> grpc/ or http/ (request of the broker) -> broker -> outflow (chunked, watched answer)
//! ```
//!
//! Invariants:
//! - Memory is bounded: connections, streams of a connection, headers, message size, bytes in flight (`budget`), and
//!   what a client that does not read can pin (`outflow`).
//! - Every task started here is waited for by [`Server::serve`].
//! - A protocol has one table for errors: `grpc::status` and `http::problem`.
//!
//! `ops.rs` is a port of its own: health and metrics, no data. Neighbours: `broker/` and `groups/` below.

mod connection;
mod context;
mod decode;
mod front;
pub mod grpc;
pub mod http;
mod intake;
mod ops;
mod outflow;
mod pace;
mod places;
mod sniff;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use self::ops::{OpsServer, Probe};

use self::connection::{Builders, Ending};
use self::context::Context;
use self::front::Routes;
use self::places::{Place, Places, TooMany};
use crate::broker::Broker;
use crate::groups::Groups;
use crate::host::net::{Acceptor, BindError, Socket};
use crate::peers::PeerServer;
use crate::security::Tls;
use crate::security::budget::{Budget, Shares};
use crate::telemetry::Metrics;

/// Connections over the limit that are told so at a time; beyond them they are closed without a word.
const REFUSALS_MAX: usize = 64;
/// Wait after a failed accept: running out of file descriptors passes when connections close.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// Listens on the data port; returns the address in force.
///
/// # Errors
/// When the address cannot be listened on.
pub async fn listen(wanted: SocketAddr) -> Result<(Acceptor, SocketAddr), BindError> {
    let error = |source| BindError { field: "listeners.data", address: wanted, source };
    let acceptor = Acceptor::bind(wanted).await.map_err(error)?;
    let address = acceptor.local_addr().map_err(error)?;
    Ok((acceptor, address))
}

/// What the data port serves.
pub struct Services {
    /// The node's API.
    pub broker: Broker,
    /// The consumer groups that this node coordinates; shut down with the port.
    pub groups: Groups,
    /// Serves connections of other nodes.
    pub peers: PeerServer,
    /// Encrypts the port; `None`: it speaks plaintext.
    pub tls: Option<Arc<Tls>>,
    /// What is measured of requests and connections.
    pub metrics: Metrics,
}

/// The data port: bound, and serving once [`Server::serve`] runs.
pub struct Server {
    acceptor: Acceptor,
    address: SocketAddr,
    routes: Routes,
}

impl Server {
    /// Listens on `listeners.data` of the broker's configuration. Limits are those of its `limits`.
    ///
    /// # Errors
    /// When the address cannot be listened on.
    pub async fn bind(services: Services) -> Result<Self, BindError> {
        let (acceptor, address) = listen(services.broker.config().listeners.data).await?;
        Ok(Self::new(acceptor, address, services))
    }

    /// As [`Server::bind`], on a port that was bound before the broker started.
    pub fn new(acceptor: Acceptor, address: SocketAddr, services: Services) -> Self {
        let Services { broker, groups, peers, tls, metrics } = services;
        let limits = &broker.config().limits;
        let budget = Budget::new("limits.in-flight-bytes-max", limits.in_flight_bytes_max);
        let shares = Shares::new(budget.clone(), "limits.principal-bytes-max", limits.principal_bytes_max);
        let (gauge, live) = (budget.clone(), broker.live().clone());
        metrics.register_collector(move |samples| {
            let used = gauge.used() as f64;
            samples.gauge("in_flight_bytes", "Bytes of requests being served, and of answers not taken yet", used);
            let help = "Most of in_flight_bytes: limits.in-flight-bytes-max";
            samples.gauge("in_flight_bytes_limit", help, gauge.max() as f64);
            let help = "Most of connections_open: limits.connections-max";
            samples.gauge("connections_limit", help, live.now().limits.connections_max as f64);
        });
        let (lagging, live) = (groups.clone(), broker.live().clone());
        metrics.register_collector(move |samples| {
            for lag in lagging.lags(live.now().metrics.groups_max) {
                let labels = [("group", lag.group), ("topic", lag.topic)];
                let help = "Records that a consumer group has not consumed, by the node that coordinates it";
                samples.gauge_of("group_lag_records", help, &labels, lag.records as f64);
                let help = "Age of the oldest record that a consumer group has not consumed";
                samples.gauge_of("group_lag_seconds", help, &labels, lag.age_ms as f64 / 1000.0);
            }
        });
        let context =
            Context { broker, groups, metrics, budget, shares, peers, tls, stopping: CancellationToken::new() };
        Self { acceptor, address, routes: Routes::new(context) }
    }

    /// The address in force; the port is the real one when the configuration says 0.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `shutdown`: then accepts no more, ends streams and long polls, finishes accepted requests for at most
    /// `limits.shutdown-grace-ms`, and closes what is left. Returns when every connection and task has ended.
    pub async fn serve(self, shutdown: CancellationToken) {
        let Self { acceptor, routes, .. } = self;
        let context = routes.context().clone();
        let tasks = TaskTracker::new();
        let builders =
            Arc::new(Builders::new(Duration::from_millis(context.config().limits.header_timeout_ms), &tasks));
        let ending = Ending { drain: context.stopping.clone(), kill: CancellationToken::new() };
        let places = Places::default();
        let mut changes = context.broker.live().changes();
        context.resize();
        let refusals = Arc::new(Semaphore::new(REFUSALS_MAX));
        // Dropping the accept loses nothing: an accepted connection is returned by the poll that took it.
        loop {
            let (socket, address) = tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                // It lives as long as the broker, which is in the context.
                Ok(()) = changes.changed() => {
                    context.resize();
                    continue;
                }
                accepted = accept(&acceptor) => accepted,
            };
            let (builders, metrics) = (builders.clone(), &context.metrics);
            let error = match places.take(address.ip(), &context.config().limits) {
                Ok(place) => {
                    let open = Open::new(metrics, place);
                    let (routes, ending) = (routes.clone(), ending.clone());
                    tasks.spawn(async move {
                        builders.serve(socket, address, &routes, &ending).await;
                        drop(open);
                    });
                    continue;
                }
                Err(TooMany { cause, error }) => {
                    metrics.connection_refused(cause);
                    error
                }
            };
            if let Ok(permit) = refusals.clone().try_acquire_owned() {
                let (kill, tls) = (ending.kill.clone(), context.tls.clone());
                tasks.spawn(async move {
                    let refusing = builders.refuse(socket, tls.as_deref(), &error);
                    let _ = kill.run_until_cancelled(refusing).await;
                    drop(permit);
                });
            }
        }
        drop(acceptor);
        ending.drain.cancel();
        tasks.close();
        let grace_ms = context.config().limits.shutdown_grace_ms;
        if timeout(Duration::from_millis(grace_ms), tasks.wait()).await.is_err() {
            tracing::warn!(grace_ms, "closing connections that did not finish in time");
            ending.kill.cancel();
            tasks.wait().await;
        }
        context.groups.shutdown().await;
    }
}

/// The next connection; failures are logged and waited out.
async fn accept(acceptor: &Acceptor) -> (Socket, SocketAddr) {
    loop {
        match acceptor.accept().await {
            Ok(accepted) => return accepted,
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_RETRY).await;
            }
        }
    }
}

/// A place under the connection limit, and its count.
struct Open {
    metrics: Metrics,
    _place: Place,
}

impl Open {
    fn new(metrics: &Metrics, place: Place) -> Self {
        metrics.connection_opened();
        Self { metrics: metrics.clone(), _place: place }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.metrics.connection_closed();
    }
}

#[cfg(test)]
mod tests {
    use super::{grpc, http};
    use crate::model::{ErrorKind, Reason};

    #[test]
    fn the_documentation_of_errors_has_exactly_the_reasons_with_the_codes_of_the_tables() {
        let text = include_str!("../../../docs/errors.md");
        let documented: Vec<Vec<&str>> = text
            .lines()
            .filter(|line| line.starts_with("| `"))
            .map(|line| line.split('|').map(str::trim).skip(1).take(4).collect())
            .collect();
        let tables: Vec<Vec<String>> = Reason::ALL
            .iter()
            .map(|reason| {
                let code = format!("{:?}", grpc::status::code(*reason));
                let code = code.chars().enumerate().fold(String::new(), |name, (i, c)| match c {
                    c if c.is_ascii_uppercase() && i > 0 => name + "_" + &c.to_string(),
                    c => name + &c.to_ascii_uppercase().to_string(),
                });
                let kind = match reason.kind() {
                    ErrorKind::Retry => "retry",
                    ErrorKind::Redirect => "redirect",
                    ErrorKind::Rejected => "rejected",
                    ErrorKind::Unknown => "unknown",
                    ErrorKind::Fatal => "fatal",
                };
                let status = http::problem::status(*reason).as_u16().to_string();
                vec![format!("`{}`", reason.as_str()), code, status, kind.to_owned()]
            })
            .collect();
        assert_eq!(documented, tables);
        for reason in Reason::ALL {
            assert!(text.contains(&format!("\n**`{}`** ", reason.as_str())), "{reason:?} is not explained");
        }
    }
}
