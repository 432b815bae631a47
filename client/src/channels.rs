//! Channels: one gRPC channel per address, made when it is first asked for, and the health of each address.
//!
//! Invariants:
//! - All use of an address goes through its one [`Health`], which the connector keeps up to date: connections that are open,
//!   connections ever established, failures in a row. So the client knows whether a request can have left this process
//!   ([`TrackedChannel::is_unsent`]), and every caller that chooses an address knows whether it fails.
//! - After a failure an address is avoided for a time that grows with the number of failures and with what an attempt costs.
//!   It is never forbidden: when there is no other choice, the client tries it.
//!
//! Stands on `config.rs`, `connector.rs` and `address.rs`. It does not know which node has which address, nor what a
//! request is for.

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

use crate::address::{Address, parse_address};
use crate::config::ClientConfig;
use crate::connector::{BoxedIo, Connector};

/// HTTP/2 flow-control window of one stream: how far a node may send ahead of the reader.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
/// HTTP/2 flow-control window of a connection.
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;

/// How long a failed address is avoided, doubled with each failure in a row up to the maximum.
const AVOID_MIN: Duration = Duration::from_millis(100);
const AVOID_MAX: Duration = Duration::from_secs(1);
/// A failure that took long counts for more: connecting to a bad address takes at most a tenth of the time.
const AVOID_COST: u32 = 10;
const AVOID_COST_MAX: Duration = Duration::from_secs(30);

/// The channels, by address.
pub(crate) struct Channels {
    config: Arc<ClientConfig>,
    table: Mutex<HashMap<Address, Entry>>,
}

struct Entry {
    channel: Channel,
    health: Arc<Health>,
}

/// A channel for one attempt, with the health of its address when the attempt began.
#[derive(Clone)]
pub(crate) struct TrackedChannel {
    pub(crate) channel: Channel,
    health: Arc<Health>,
    was_open: bool,
    established: u64,
}

impl TrackedChannel {
    /// Whether a request of this attempt certainly never left this process.
    pub(crate) fn is_unsent(&self) -> bool {
        !self.was_open && self.health.state.lock().established == self.established
    }

    /// The node answered: its address is healthy.
    pub(crate) fn note_answer(&self) {
        self.health.clear_failures();
    }
}

impl Channels {
    pub(crate) fn new(config: Arc<ClientConfig>) -> Self {
        Self { config, table: Mutex::default() }
    }

    /// The channel to an address that [`parse_address`] accepts.
    pub(crate) fn get(&self, address: &Address) -> TrackedChannel {
        let mut table = self.table.lock();
        let entry = table.entry(address.clone()).or_insert_with(|| {
            let health = Arc::new(Health::default());
            Entry { channel: channel(&self.config, address, &health), health }
        });
        let state = entry.health.state.lock();
        TrackedChannel {
            channel: entry.channel.clone(),
            health: entry.health.clone(),
            was_open: state.open > 0,
            established: state.established,
        }
    }

    /// Whether to avoid the address when there is another choice.
    pub(crate) fn is_avoided(&self, address: &str) -> bool {
        let until = self.table.lock().get(address).and_then(|entry| entry.health.state.lock().avoid_until);
        until.is_some_and(|until| until > Instant::now())
    }

    /// Why the last attempt to connect failed; `None` when there was none or it succeeded.
    pub(crate) fn failure(&self, address: &str) -> Option<String> {
        let table = self.table.lock();
        let state = table.get(address)?.health.state.lock();
        (state.failures > 0).then(|| state.failure.clone())
    }

    /// Stops avoiding the address: there is news that its node works.
    pub(crate) fn clear_failures(&self, address: &str) {
        if let Some(entry) = self.table.lock().get(address) {
            entry.health.clear_failures();
        }
    }

    /// Makes the next attempt open a new connection, because the current one is silent. Streams on the old connection stay
    /// open until they are dropped.
    pub(crate) fn renew(&self, address: &Address) {
        if let Some(entry) = self.table.lock().get_mut(address) {
            entry.channel = channel(&self.config, address, &entry.health);
        }
    }

    /// Drops the channels of addresses that are no longer used.
    pub(crate) fn retain(&self, mut used: impl FnMut(&str) -> bool) {
        self.table.lock().retain(|address, _| used(address));
    }
}

/// The health of one address.
#[derive(Default)]
struct Health {
    state: Mutex<HealthState>,
}

#[derive(Default)]
struct HealthState {
    /// Connections that are open now.
    open: usize,
    /// Connections that were ever established.
    established: u64,
    /// Attempts that failed since the node last answered.
    failures: u32,
    failure: String,
    avoid_until: Option<Instant>,
    /// Until then attempts fail at once with the last failure, so that queued requests do not each wait for a timeout.
    fail_fast_until: Option<Instant>,
}

impl Health {
    fn clear_failures(&self) {
        let mut state = self.state.lock();
        (state.failures, state.avoid_until, state.fail_fast_until) = (0, None, None);
    }

    async fn connect(self: Arc<Self>, connector: Connector, address: String, limit: Duration) -> io::Result<Tracked> {
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
                Ok(Tracked { io, health: self })
            }
            Err(error) => {
                let now = Instant::now();
                let cost = now - began;
                let mut state = self.state.lock();
                let growing = AVOID_MIN.saturating_mul(1 << state.failures.min(10)).min(AVOID_MAX);
                let avoid = growing.max((cost * AVOID_COST).min(AVOID_COST_MAX));
                state.failures = state.failures.saturating_add(1);
                state.failure = error.to_string();
                state.avoid_until = Some(now + avoid);
                state.fail_fast_until = Some(now + cost / 4);
                Err(error)
            }
        }
    }
}

/// A connection that its address's health counts while it is open.
struct Tracked {
    io: BoxedIo,
    health: Arc<Health>,
}

impl Drop for Tracked {
    fn drop(&mut self) {
        self.health.state.lock().open -= 1;
    }
}

impl AsyncRead for Tracked {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.io).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Tracked {
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

fn channel(config: &ClientConfig, address: &Address, health: &Arc<Health>) -> Channel {
    // Callers have checked the address; connecting to an invalid one would fail.
    let uri = parse_address(address).unwrap_or_default();
    let (connector, target, limit, health) =
        (config.connector.clone(), address.to_string(), config.connect_timeout, health.clone());
    let connect = service_fn(move |_: Uri| {
        let connecting = health.clone().connect(connector.clone(), target.clone(), limit);
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
    use crate::error::ClientError;

    fn channels(connector: Connector) -> Channels {
        let mut config = ClientConfig::new("a:1").connector(connector);
        config.connect_timeout = Duration::from_secs(2);
        Channels::new(Arc::new(config))
    }

    async fn use_once(channels: &Channels, address: &Address) -> (TrackedChannel, ClientError) {
        let used = channels.get(address);
        let mut log = chronicle_proto::v1::log_client::LogClient::new(used.channel.clone());
        let status = log.init_producer(chronicle_proto::v1::InitProducerRequest {}).await.unwrap_err();
        (used, status.into())
    }

    #[tokio::test(start_paused = true)]
    async fn a_refused_address_is_avoided_for_a_short_growing_time() {
        let channels = channels(Arc::new(|_| Box::pin(async { Err(io::ErrorKind::ConnectionRefused.into()) })));
        let address = Address::from("a:1");
        assert!(!channels.is_avoided("a:1"));
        let mut last = Duration::ZERO;
        for _ in 0..6 {
            let (used, error) = use_once(&channels, &address).await;
            assert!(used.is_unsent() && error.not_accepted(), "{error}");
            let failed = Instant::now();
            while channels.is_avoided("a:1") {
                tokio::time::advance(Duration::from_millis(10)).await;
            }
            let avoided = failed.elapsed();
            assert!(avoided >= last && avoided <= Duration::from_millis(1020), "{avoided:?} {last:?}");
            last = avoided;
        }
        assert!(last >= AVOID_MAX);
        channels.clear_failures("a:1");
        assert_eq!(channels.failure("a:1"), None);
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_that_never_answers_is_tried_once_for_a_whole_queue() {
        let channels = Arc::new(channels(Arc::new(|_| Box::pin(std::future::pending()))));
        let address = Address::from("a:1");
        let began = Instant::now();
        let errors = futures::future::join_all((0..20).map(|_| use_once(&channels, &address))).await;
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
        assert!(errors.iter().all(|(used, error)| used.is_unsent() && error.message.contains("2000 ms")));
        tokio::time::advance(Duration::from_secs(15)).await;
        assert!(channels.is_avoided("a:1"), "a failure that took long counts for more");
    }

    #[tokio::test]
    async fn a_request_that_had_a_connection_is_not_called_unsent() {
        let channels = channels(Arc::new(|_| {
            Box::pin(async {
                let (near, far) = tokio::io::duplex(1 << 16);
                tokio::spawn(async move {
                    tokio::task::yield_now().await;
                    drop(far);
                });
                Ok(Box::new(near) as BoxedIo)
            })
        }));
        let (used, _) = use_once(&channels, &Address::from("a:1")).await;
        assert!(!used.is_unsent());
        assert!(channels.failure("a:1").is_none());
    }
}
