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
mod port;
mod sniff;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use self::ops::{OpsServer, Probe};

use self::connection::DataPort;
use self::context::Context;
use self::front::Routes;
use self::port::{Ending, Port};
use crate::broker::Broker;
use crate::groups::Groups;
use crate::host::net::{Acceptor, BindError};
use crate::peers::PeerServer;
use crate::security::Tls;
use crate::telemetry::Metrics;

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

/// The ports of a node, bound, and serving once [`Server::serve`] runs.
pub struct Server {
    ports: Vec<Port>,
    context: Context,
    /// Connections, and the requests of HTTP/2 connections.
    tasks: TaskTracker,
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
        let context = Context::new(services);
        let tasks = TaskTracker::new();
        let protocol = Arc::new(DataPort::new(Routes::new(context.clone()), &tasks));
        Self { ports: vec![Port { acceptor, address, protocol }], context, tasks }
    }

    /// The address of the data port; the port is the real one when the configuration says 0.
    pub fn local_addr(&self) -> SocketAddr {
        self.ports[0].address
    }

    /// Serves until `shutdown`: then accepts no more, ends streams and long polls, finishes accepted requests for at most
    /// `limits.shutdown-grace-ms`, and closes what is left. Returns when every connection and task has ended.
    pub async fn serve(self, shutdown: CancellationToken) {
        let Self { ports, context, tasks } = self;
        let ending = Ending { drain: context.stopping.clone(), kill: CancellationToken::new() };
        let resizing = resize(&context, &shutdown);
        let serving = ports.into_iter().map(|port| port.accept_until(&shutdown, &context, &tasks, &ending));
        tokio::join!(resizing, futures::future::join_all(serving));
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

/// Keeps the byte budgets at what is configured, until `shutdown`.
async fn resize(context: &Context, shutdown: &CancellationToken) {
    let mut changes = context.broker.live().changes();
    context.resize();
    loop {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            // The sender lives as long as the broker, which is in the context.
            Ok(()) = changes.changed() => context.resize(),
        }
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
