//! One listening port: accepts connections, limits their number, and ends them at shutdown.
//!
//! Each port has a [`Protocol`], which defines its encryption, its limits and how it rejects a connection. The accept
//! loop, the count of connections and the order of a shutdown are the same for all ports.
//!
//! Never names a protocol. Neighbours: `mod.rs` has the list of ports; `connection.rs` is the data port's protocol.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::connection_limits::{ConnectionLimits, ConnectionSlot, ConnectionSlots, TooMany};
use super::context::Context;
use crate::config::LimitsConfig;
use crate::host::net::{Acceptor, Socket};
use crate::model::ApiError;
use crate::telemetry::Metrics;

/// How many connections over the limit get an error response at the same time. Further ones are closed at once.
const REFUSALS_MAX: usize = 64;
/// Pause after a failed accept, for example without free file descriptors: these are free again when connections close.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// The two signals that end connections.
#[derive(Clone)]
pub(crate) struct Ending {
    /// Finish the accepted requests, then close.
    pub(crate) drain: CancellationToken,
    /// Close now.
    pub(crate) kill: CancellationToken,
}

/// The protocol of a port.
pub(crate) trait Protocol: Send + Sync + 'static {
    /// Returns the connection limits of this port from the current configuration.
    fn limits(&self, limits: &LimitsConfig) -> ConnectionLimits;

    /// Serves one connection until it ends.
    fn serve<'a>(&'a self, socket: Socket, address: SocketAddr, ending: &'a Ending) -> BoxFuture<'a, ()>;

    /// Sends `error` to a client that is over the connection limit, in the client's protocol, and closes the
    /// connection. Bounded in time.
    fn refuse<'a>(&'a self, socket: Socket, error: &'a ApiError) -> BoxFuture<'a, ()>;
}

/// A bound port and its protocol.
pub(crate) struct Port {
    pub(crate) acceptor: Acceptor,
    /// The address that the port is bound to.
    pub(crate) address: SocketAddr,
    pub(crate) protocol: Arc<dyn Protocol>,
}

impl Port {
    /// Accepts connections until `shutdown` is cancelled. Each connection runs as a task in `tasks`, which continues
    /// after `shutdown` and stops when `ending` signals it.
    pub(crate) async fn accept_until(
        self,
        shutdown: &CancellationToken,
        context: &Context,
        tasks: &TaskTracker,
        ending: &Ending,
    ) {
        let Self { acceptor, protocol, .. } = self;
        let slots = ConnectionSlots::default();
        let refusals = Arc::new(Semaphore::new(REFUSALS_MAX));
        loop {
            // Safe to drop: the poll that accepts a connection also returns it.
            let (socket, address) = tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                accepted = accept(&acceptor) => accepted,
            };
            let (protocol, ending) = (protocol.clone(), ending.clone());
            let limits = protocol.limits(&context.config().limits);
            let error = match slots.take(address.ip(), &limits) {
                Ok(slot) => {
                    let open = Open::new(&context.metrics, slot);
                    tasks.spawn(async move {
                        protocol.serve(socket, address, &ending).await;
                        drop(open);
                    });
                    continue;
                }
                Err(TooMany { cause, error }) => {
                    context.metrics.connection_refused(cause);
                    error
                }
            };
            if let Ok(permit) = refusals.clone().try_acquire_owned() {
                tasks.spawn(async move {
                    let _ = ending.kill.run_until_cancelled(protocol.refuse(socket, &error)).await;
                    drop(permit);
                });
            }
        }
    }
}

/// Returns the next connection. Logs a failed accept and retries it after a pause.
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

/// The connection slot of an open connection, counted in the metrics until it is dropped.
struct Open {
    metrics: Metrics,
    _slot: ConnectionSlot,
}

impl Open {
    fn new(metrics: &Metrics, slot: ConnectionSlot) -> Self {
        metrics.connection_opened();
        Self { metrics: metrics.clone(), _slot: slot }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.metrics.connection_closed();
    }
}
