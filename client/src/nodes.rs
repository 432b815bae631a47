//! Connections: one channel per address, made when it is first asked for, and what is known about reaching it.
//!
//! Invariants:
//! - All use of an address goes through its one [`Link`], which the connector keeps up to date: connections open now,
//!   connections ever established, failures in a row. So whether a request can have left this process is known
//!   ([`Use::is_unsent`]), and an address that fails is known to all who might choose it.
//! - A failed address is passed over for a while that grows with failures and with what an attempt costs in time; it is never
//!   forbidden: when there is no other choice it is tried.

use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, timeout};
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;

use crate::config::ClientConfig;
use crate::connect::{BoxedIo, Connector};
use crate::error::ClientError;

/// HTTP/2 flow-control window of one stream: what a reader lets the node send ahead.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
/// HTTP/2 flow-control window of a connection.
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;

/// A failed address is passed over for this long, doubled with each failure in a row up to the maximum.
const PASS_OVER_MIN: Duration = Duration::from_millis(100);
const PASS_OVER_MAX: Duration = Duration::from_secs(1);
/// Failures that take time weigh more: an address costs at most a tenth of the time.
const PASS_OVER_COST: u32 = 10;
const PASS_OVER_COST_MAX: Duration = Duration::from_secs(30);

/// `HOST:PORT` of a node.
pub(crate) type Address = Arc<str>;

/// The channels, by address.
pub(crate) struct Nodes {
    config: Arc<ClientConfig>,
    table: Mutex<HashMap<Address, Node>>,
}

struct Node {
    channel: Channel,
    link: Arc<Link>,
}

/// One use of an address: its channel, and what its link was like before.
#[derive(Clone)]
pub(crate) struct Use {
    pub(crate) channel: Channel,
    link: Arc<Link>,
    was_open: bool,
    established: u64,
}

impl Use {
    /// Whether a request made over this use certainly never left this process.
    pub(crate) fn is_unsent(&self) -> bool {
        !self.was_open && self.link.state.lock().established == self.established
    }

    /// The node answered.
    pub(crate) fn answered(&self) {
        let mut state = self.link.state.lock();
        if state.failures > 0 {
            (state.failures, state.pass_over_until, state.fail_fast_until) = (0, None, None);
        }
    }
}

impl Nodes {
    pub(crate) fn new(config: Arc<ClientConfig>) -> Self {
        Self { config, table: Mutex::default() }
    }

    /// The channel to an address that [`check_address`] has let pass.
    pub(crate) fn get(&self, address: &Address) -> Use {
        let mut table = self.table.lock();
        let node = table.entry(address.clone()).or_insert_with(|| {
            let link = Arc::new(Link::default());
            Node { channel: channel(&self.config, address, &link), link }
        });
        let state = node.link.state.lock();
        Use {
            channel: node.channel.clone(),
            link: node.link.clone(),
            was_open: state.open > 0,
            established: state.established,
        }
    }

    /// Whether the address should be passed over when there is another choice.
    pub(crate) fn is_passed_over(&self, address: &str) -> bool {
        let until = self.table.lock().get(address).and_then(|node| node.link.state.lock().pass_over_until);
        until.is_some_and(|until| until > Instant::now())
    }

    /// Why the last attempt to connect failed; `None` when none was made or it did not.
    pub(crate) fn failure(&self, address: &str) -> Option<String> {
        let table = self.table.lock();
        let state = table.get(address)?.link.state.lock();
        (state.failures > 0).then(|| state.failure.clone())
    }

    /// There is reason to believe in the address again.
    pub(crate) fn forgive(&self, address: &str) {
        if let Some(node) = self.table.lock().get(address) {
            let mut state = node.link.state.lock();
            (state.failures, state.pass_over_until, state.fail_fast_until) = (0, None, None);
        }
    }

    /// Opens a new connection for the next use: the present one is silent. What is open on it stays until it is dropped.
    pub(crate) fn renew(&self, address: &Address) {
        if let Some(node) = self.table.lock().get_mut(address) {
            node.channel = channel(&self.config, address, &node.link);
        }
    }

    /// Forgets the addresses that are no longer used.
    pub(crate) fn retain(&self, mut used: impl FnMut(&str) -> bool) {
        self.table.lock().retain(|address, _| used(address));
    }
}

/// What is known about reaching an address.
#[derive(Default)]
struct Link {
    state: Mutex<LinkState>,
}

#[derive(Default)]
struct LinkState {
    /// Connections that stand.
    open: usize,
    /// Connections that ever stood.
    established: u64,
    /// Attempts that failed since the node last answered.
    failures: u32,
    failure: String,
    pass_over_until: Option<Instant>,
    /// Attempts are answered with the last failure: a queue of requests must not pay for it one after the other.
    fail_fast_until: Option<Instant>,
}

impl Link {
    async fn connect(self: Arc<Self>, connector: Connector, address: String, limit: Duration) -> io::Result<Linked> {
        let began = Instant::now();
        {
            let state = self.state.lock();
            if state.fail_fast_until.is_some_and(|until| until > began) {
                return Err(io::Error::other(state.failure.clone()));
            }
        }
        let connected = timeout(limit, connector(address)).await.unwrap_or_else(|_| {
            let message = format!("no connection within {} ms", limit.as_millis());
            Err(io::Error::new(io::ErrorKind::TimedOut, message))
        });
        match connected {
            Ok(io) => {
                let mut state = self.state.lock();
                state.open += 1;
                state.established += 1;
                drop(state);
                Ok(Linked { io, link: self })
            }
            Err(error) => {
                let now = Instant::now();
                let cost = now - began;
                let mut state = self.state.lock();
                let growing = PASS_OVER_MIN.saturating_mul(1 << state.failures.min(10)).min(PASS_OVER_MAX);
                let pass_over = growing.max((cost * PASS_OVER_COST).min(PASS_OVER_COST_MAX));
                state.failures = state.failures.saturating_add(1);
                state.failure = error.to_string();
                state.pass_over_until = Some(now + pass_over);
                state.fail_fast_until = Some(now + cost / 4);
                Err(error)
            }
        }
    }
}

/// A connection that its link knows of while it stands.
struct Linked {
    io: BoxedIo,
    link: Arc<Link>,
}

impl Drop for Linked {
    fn drop(&mut self) {
        self.link.state.lock().open -= 1;
    }
}

impl AsyncRead for Linked {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.io).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Linked {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.io).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.io).poll_shutdown(cx)
    }
}

/// The URI of a `HOST:PORT`.
pub(crate) fn check_address(address: &str) -> Result<Uri, ClientError> {
    let invalid = || ClientError::invalid("server", address, "must be HOST:PORT");
    let uri: Uri = format!("http://{address}").parse().map_err(|_| invalid())?;
    if uri.host().is_none_or(str::is_empty) || uri.port_u16().is_none_or(|port| port == 0) || uri.path() != "/" {
        return Err(invalid());
    }
    Ok(uri)
}

fn channel(config: &ClientConfig, address: &Address, link: &Arc<Link>) -> Channel {
    // Checked before it got here; an address that is none would fail to connect.
    let uri = check_address(address).unwrap_or_default();
    let (connector, target, limit, link) =
        (config.connector.clone(), address.to_string(), config.connect_timeout, link.clone());
    let connect = service_fn(move |_: Uri| {
        let connecting = link.clone().connect(connector.clone(), target.clone(), limit);
        async move { connecting.await.map(TokioIo::new) }
    });
    Endpoint::from(uri)
        .http2_keep_alive_interval(config.keep_alive)
        .keep_alive_timeout(config.keep_alive)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .connect_with_connector_lazy(connect)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(connector: Connector) -> Nodes {
        let mut config = ClientConfig::new("a:1").connector(connector);
        config.connect_timeout = Duration::from_secs(2);
        Nodes::new(Arc::new(config))
    }

    async fn use_once(nodes: &Nodes, address: &Address) -> (Use, ClientError) {
        let node = nodes.get(address);
        let mut log = chronicle_proto::v1::log_client::LogClient::new(node.channel.clone());
        let status = log.init_producer(chronicle_proto::v1::InitProducerRequest {}).await.unwrap_err();
        (node, status.into())
    }

    #[tokio::test(start_paused = true)]
    async fn a_refused_address_is_passed_over_for_a_short_growing_while() {
        let nodes = nodes(Arc::new(|_| Box::pin(async { Err(io::ErrorKind::ConnectionRefused.into()) })));
        let address = Address::from("a:1");
        assert!(!nodes.is_passed_over("a:1"));
        let mut last = Duration::ZERO;
        for _ in 0..6 {
            let (node, error) = use_once(&nodes, &address).await;
            assert!(node.is_unsent() && error.not_accepted(), "{error}");
            let failed = Instant::now();
            while nodes.is_passed_over("a:1") {
                tokio::time::advance(Duration::from_millis(10)).await;
            }
            let passed_over = failed.elapsed();
            assert!(passed_over >= last && passed_over <= Duration::from_millis(1020), "{passed_over:?} {last:?}");
            last = passed_over;
        }
        assert!(last >= PASS_OVER_MAX);
        nodes.forgive("a:1");
        assert_eq!(nodes.failure("a:1"), None);
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_that_swallows_connections_is_tried_once_for_a_whole_queue() {
        let nodes = Arc::new(nodes(Arc::new(|_| Box::pin(std::future::pending()))));
        let address = Address::from("a:1");
        let began = Instant::now();
        let errors = futures::future::join_all((0..20).map(|_| use_once(&nodes, &address))).await;
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
        assert!(errors.iter().all(|(node, error)| node.is_unsent() && error.message.contains("2000 ms")));
        tokio::time::advance(Duration::from_secs(15)).await;
        assert!(nodes.is_passed_over("a:1"), "a costly failure weighs more");
    }

    #[tokio::test]
    async fn a_request_that_had_a_connection_is_not_called_unsent() {
        let nodes = nodes(Arc::new(|_| {
            Box::pin(async {
                let (near, far) = tokio::io::duplex(1 << 16);
                tokio::spawn(async move {
                    tokio::task::yield_now().await;
                    drop(far);
                });
                Ok(Box::new(near) as BoxedIo)
            })
        }));
        let (node, _) = use_once(&nodes, &Address::from("a:1")).await;
        assert!(!node.is_unsent());
        assert!(nodes.failure("a:1").is_none());
    }
}
