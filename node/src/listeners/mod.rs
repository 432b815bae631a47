//! Listeners: turn bytes into requests and responses into bytes. They make no decisions.
//!
//! One TCP port serves gRPC and HTTP/JSON, over HTTP/1.1 and HTTP/2. The path of a request:
//!
//! ```text
//! net (accept) -> security (TLS, if on) -> sniff (HTTP version, or a peer) -> connection (limits) -> front (gRPC or JSON) -> intake (metered body)
//!   -> grpc/ or http/ (request of the broker) -> broker -> outflow (response in chunks, checked for slow readers)
//! ```
//!
//! Invariants:
//! - Memory is bounded: connections, streams of a connection, headers, message size, bytes in flight (`budget`), and
//!   the memory that a client that does not read can pin (`outflow`).
//! - [`Server::serve`] waits for every task that is started here.
//! - Each protocol has exactly one table of errors: `grpc::status` and `http::problem`.
//!
//! `frames.rs` is what `intake.rs` is, for a protocol of length-prefixed frames on a port of its own. `ops.rs` is a separate
//! port for health and metrics, without data. Neighbours: calls `broker/` and `groups/`.

#[cfg(test)]
mod bytes_fuzz;
mod connection;
mod connection_limits;
mod context;
mod decode;
pub mod frames;
mod front;
pub mod grpc;
pub mod http;
mod intake;
mod ops;
mod outflow;
mod pace;
mod port;
mod sniff;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use self::context::Services;
pub use self::ops::{OpsServer, Probe};

use self::connection::DataPort;
use self::context::Context;
use self::front::Routes;
use self::port::{Ending, Port};
use crate::host::net::{Acceptor, BindError};

/// Listens on the data port and returns the address that the port is bound to.
///
/// # Errors
/// When the node cannot listen on the address.
pub async fn listen(wanted: SocketAddr) -> Result<(Acceptor, SocketAddr), BindError> {
    let error = |source| BindError { field: "listeners.data", address: wanted, source };
    let acceptor = Acceptor::bind(wanted).await.map_err(error)?;
    let address = acceptor.local_addr().map_err(error)?;
    Ok((acceptor, address))
}

/// The bound ports of a node. They accept connections while [`Server::serve`] runs.
pub struct Server {
    ports: Vec<Port>,
    context: Context,
    /// The tasks of connections and of requests on HTTP/2 connections.
    tasks: TaskTracker,
}

impl Server {
    /// Listens on `listeners.data` of the broker's configuration, with the limits in its section `limits`.
    ///
    /// # Errors
    /// When the node cannot listen on the address.
    pub async fn bind(services: Services) -> Result<Self, BindError> {
        let (acceptor, address) = listen(services.broker.config().listeners.data).await?;
        Ok(Self::new(acceptor, address, services))
    }

    /// Like [`Server::bind`], with a port that was bound before the broker started.
    pub fn new(acceptor: Acceptor, address: SocketAddr, services: Services) -> Self {
        let context = Context::new(services);
        let tasks = TaskTracker::new();
        let protocol = Arc::new(DataPort::new(Routes::new(context.clone()), &tasks));
        Self { ports: vec![Port { acceptor, address, protocol }], context, tasks }
    }

    /// Returns the address of the data port, with the assigned port number when the configured one is 0.
    pub fn local_addr(&self) -> SocketAddr {
        self.ports[0].address
    }

    /// Serves until `shutdown` is cancelled. Then it accepts no more connections, ends streams and long polls, lets
    /// accepted requests finish for at most `limits.shutdown-grace-ms`, and closes the remaining connections. Returns
    /// when every connection and task has ended.
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

/// Applies configuration changes to the byte budgets until `shutdown` is cancelled.
async fn resize(context: &Context, shutdown: &CancellationToken) {
    let mut changes = context.broker.live().changes();
    context.resize();
    loop {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            // `changed` cannot fail: the broker owns the sender, and the context holds the broker.
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
