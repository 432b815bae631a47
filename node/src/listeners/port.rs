//! One listening port: who may connect, how many at a time, and what happens to a connection.
//!
//! What is spoken on a port is a [`Protocol`]: its encryption, its limits and its way to refuse are its own. The accept loop, the
//! count of connections and the order of a shutdown are the same for all.
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

use super::context::Context;
use super::places::{Place, Places, TooMany};
use crate::config::LimitsConfig;
use crate::host::net::{Acceptor, Socket};
use crate::model::ApiError;
use crate::telemetry::Metrics;

/// Connections over the limit that are answered at a time; further ones are closed at once.
const REFUSALS_MAX: usize = 64;
/// Wait after a failed accept: running out of file descriptors passes when connections close.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// How connections are ended.
#[derive(Clone)]
pub(crate) struct Ending {
    /// Finish what was accepted, then close.
    pub(crate) drain: CancellationToken,
    /// Close now.
    pub(crate) kill: CancellationToken,
}

/// Most connections of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ConnectionLimits {
    /// All together, and the field of the configuration that says so.
    pub(crate) all: (&'static str, usize),
    /// From one address, likewise.
    pub(crate) per_address: (&'static str, usize),
}

/// What is spoken on a port.
pub(crate) trait Protocol: Send + Sync + 'static {
    /// The limits that are configured now.
    fn limits(&self, limits: &LimitsConfig) -> ConnectionLimits;

    /// Serves one connection to its end.
    fn serve<'a>(&'a self, socket: Socket, address: SocketAddr, ending: &'a Ending) -> BoxFuture<'a, ()>;

    /// Answers a client that is over the connection limit, in its protocol, and closes. Bounded in time.
    fn refuse<'a>(&'a self, socket: Socket, error: &'a ApiError) -> BoxFuture<'a, ()>;
}

/// A bound port and what is spoken there.
pub(crate) struct Port {
    pub(crate) acceptor: Acceptor,
    /// The address in force.
    pub(crate) address: SocketAddr,
    pub(crate) protocol: Arc<dyn Protocol>,
}

impl Port {
    /// Accepts connections until `shutdown`; they go on in `tasks`, and end as `ending` says.
    pub(crate) async fn accept_until(
        self,
        shutdown: &CancellationToken,
        context: &Context,
        tasks: &TaskTracker,
        ending: &Ending,
    ) {
        let Self { acceptor, protocol, .. } = self;
        let places = Places::default();
        let refusals = Arc::new(Semaphore::new(REFUSALS_MAX));
        loop {
            // Dropping the accept loses nothing: an accepted connection is returned by the poll that took it.
            let (socket, address) = tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                accepted = accept(&acceptor) => accepted,
            };
            let (protocol, ending) = (protocol.clone(), ending.clone());
            let limits = protocol.limits(&context.config().limits);
            let error = match places.take(address.ip(), &limits) {
                Ok(place) => {
                    let open = Open::new(&context.metrics, place);
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
