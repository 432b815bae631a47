//! Serves one connection of the data port: detects the protocol, applies limits, drains, and closes stalled clients.
//!
//! Memory that one HTTP/2 connection can pin before a handler runs: [`CONNECTION_WINDOW_BYTES`] of unread request
//! bodies, [`STREAMS_MAX`] × [`HEADER_LIST_BYTES`] of headers. The byte budgets (`budget.rs`) count the bodies that
//! handlers read, and the responses.

use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use futures::FutureExt;
use futures::future::BoxFuture;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::AsyncWriteExt;
use tokio::runtime::Handle;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::connection_limits::ConnectionLimits;
use super::front::{Routes, is_grpc};
use super::grpc::status;
use super::http::problem::Problem;
use super::outflow::{Stalls, Verdict};
use super::port::{Ending, Protocol};
use super::sniff::{Prefixed, Version, sniff};
use crate::config::LimitsConfig;
use crate::host::net;
use crate::host::net::Socket;
use crate::identity::PeerCertificate;
use crate::model::ApiError;
use crate::peers::{PeerServer, Purpose, other_version};
use crate::security::budget::Holder;
use crate::security::{Caller, HandshakeOutcome, Remote, Tls};

/// Flow-control window of one HTTP/2 stream, in bytes: 1 GB/s at 1 ms of round trip.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
/// Flow-control window of one HTTP/2 connection, in bytes.
const CONNECTION_WINDOW_BYTES: u32 = 4 << 20;
/// Largest HTTP/2 frame accepted, in bytes: fewer, larger reads for large batches.
const FRAME_BYTES: u32 = 256 << 10;
/// Most concurrent requests of one HTTP/2 connection.
const STREAMS_MAX: u32 = 256;
/// Largest size of the headers of one request, in bytes.
const HEADER_LIST_BYTES: u32 = 16 << 10;
/// Bytes of one response that HTTP/2 buffers beyond the client's flow-control window.
const SEND_BUFFER_BYTES: usize = 256 << 10;
/// Size of the read buffer and of the write buffer of one HTTP/1 connection, in bytes each. A client can pin no more
/// than these two after its last response.
const HTTP1_BUFFER_BYTES: usize = 128 << 10;
/// How long a client's first request waits when the node is not part of its cluster yet.
const ESTABLISH_PATIENCE: Duration = Duration::from_secs(3);
/// The TLS alert `protocol_version`, fatal (RFC 8446, section 6): the response to TLS on a plaintext port.
const NO_TLS: &[u8] = &[21, 3, 1, 0, 2, 2, 70];
/// Longest time that a connection over the limit stays open.
const REFUSAL: Duration = Duration::from_secs(1);

/// Runs HTTP/2's per-request futures as tasks that the server waits for.
#[derive(Clone)]
struct Tracked(TaskTracker);

impl<F> hyper::rt::Executor<F> for Tracked
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, future: F) {
        self.0.spawn(async move {
            future.await;
        });
    }
}

/// The protocol of the data port: gRPC and HTTP/JSON over HTTP/1.1 and HTTP/2, and other nodes.
pub(crate) struct DataPort {
    routes: Routes,
    builders: Builders,
}

impl DataPort {
    /// `tasks`: where the requests of HTTP/2 connections run.
    pub(crate) fn new(routes: Routes, tasks: &TaskTracker) -> Self {
        let header_timeout = Duration::from_millis(routes.context().config().limits.header_timeout_ms);
        Self { routes, builders: Builders::new(header_timeout, tasks) }
    }
}

impl Protocol for DataPort {
    fn limits(&self, limits: &LimitsConfig) -> ConnectionLimits {
        ConnectionLimits {
            all: ("limits.connections-max", limits.connections_max),
            per_address: ("limits.connections-per-address-max", limits.connections_per_address_max),
        }
    }

    fn serve<'a>(&'a self, socket: Socket, address: SocketAddr, ending: &'a Ending) -> BoxFuture<'a, ()> {
        self.builders.serve(socket, address, &self.routes, ending).boxed()
    }

    fn refuse<'a>(&'a self, socket: Socket, error: &'a ApiError) -> BoxFuture<'a, ()> {
        self.builders.refuse(socket, self.routes.context().tls.as_deref(), error).boxed()
    }
}

/// The settings of both HTTP versions.
#[derive(Clone)]
struct Builders {
    http1: http1::Builder,
    http2: http2::Builder<Tracked>,
    header_timeout: Duration,
}

impl Builders {
    /// `header_timeout` limits the wait for a complete request header, and so how long an idle HTTP/1 connection stays
    /// open. An idle HTTP/2 connection is pinged at this interval, and closed when no response to the ping arrives in
    /// the same time.
    fn new(header_timeout: Duration, tasks: &TaskTracker) -> Self {
        let mut http1 = http1::Builder::new();
        http1
            .timer(TokioTimer::new())
            .header_read_timeout(header_timeout)
            .max_header_size(HEADER_LIST_BYTES as usize)
            .max_buf_size(HTTP1_BUFFER_BYTES);
        let mut http2 = http2::Builder::new(Tracked(tasks.clone()));
        http2
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_frame_size(FRAME_BYTES)
            .max_concurrent_streams(STREAMS_MAX)
            .max_header_list_size(HEADER_LIST_BYTES)
            .max_send_buf_size(SEND_BUFFER_BYTES)
            .keep_alive_interval(header_timeout)
            .keep_alive_timeout(header_timeout);
        Self { http1, http2, header_timeout }
    }

    /// Serves one connection until it ends.
    async fn serve(&self, socket: Socket, address: SocketAddr, routes: &Routes, ending: &Ending) {
        let context = routes.context();
        let begin = async {
            tokio::select! {
                first = self.begin(socket, address, context.tls.as_deref()) => first,
                () = ending.drain.cancelled() => None,
            }
        };
        let Some((version, mut io, remote)) = begin.await else { return };
        let (principal, certificate) = match remote {
            None => (None, None),
            Some(Remote::Client(principal)) => (principal, None),
            Some(Remote::Peer(certificate)) => (None, Some(certificate)),
        };
        match (version, &certificate) {
            (Version::Peer(_) | Version::UnknownPeer(_), None) if context.tls.is_some() => {
                let why =
                    "CERTIFICATE: node protocol on a client connection: must negotiate the ALPN protocol of nodes";
                let status = tonic::Status::permission_denied(why);
                return self
                    .refuse_peer(io.into_inner(), (status, format!("{why} (from {address})")), &context.peers)
                    .await;
            }
            (Version::Peer(purpose), _) => {
                return hand_over(purpose, io.into_inner(), certificate, context.peers.clone());
            }
            (Version::UnknownPeer(first), _) => {
                return self.refuse_peer(io.into_inner(), other_version(&first), &context.peers).await;
            }
            (Version::Tls, _) => {
                tracing::debug!(%address, "client sent TLS to a plaintext port");
                // No need to read the bytes of the client first: the response fits into the empty send buffer.
                let _ = io.write_all(NO_TLS).await;
                return;
            }
            (Version::Http1 | Version::Http2, Some(certificate)) => {
                tracing::debug!(%address, node = certificate.describe(), "HTTP on a node connection, closing");
                return;
            }
            (Version::Http1 | Version::Http2, None) => {}
        }
        // A node that has just started joins its cluster soon. Until then it can only reject requests: wait briefly.
        tokio::select! {
            _ = timeout(ESTABLISH_PATIENCE, context.broker.established()) => {}
            () = ending.drain.cancelled() => return,
        }
        let config = context.config();
        let limits = &config.limits;
        let idle = Some(Duration::from_millis(limits.idle_ms)).filter(|idle| !idle.is_zero());
        let stalls = Stalls::new(Duration::from_millis(limits.slow_reader_ms), idle);
        let holder = principal.clone().map_or(Holder::Address(address.ip().to_canonical()), Holder::Principal);
        let share = context.shares.of(holder).share("limits.connection-bytes-max", limits.connection_bytes_max);
        let caller = Caller { principal, address, share };
        let (io, front) = (TokioIo::new(io), routes.front(caller, stalls.clone()));
        let result = match version {
            Version::Http1 => {
                let connection = pin!(self.http1.serve_connection(io, front));
                drive(connection, http1::Connection::graceful_shutdown, &stalls, routes, ending).await
            }
            Version::Http2 => {
                let connection = pin!(self.http2.serve_connection(io, front));
                drive(connection, http2::Connection::graceful_shutdown, &stalls, routes, ending).await
            }
            Version::Peer(_) | Version::UnknownPeer(_) | Version::Tls => return,
        };
        if let Err(error) = result {
            tracing::debug!(%error, "connection ended");
        }
    }

    /// Does the TLS handshake, where TLS is on, and reads the first bytes. Returns the protocol that they start, the
    /// connection, and the remote side's identity (`None` without TLS). Returns `None` when the handshake or the read
    /// fails or times out.
    async fn begin(
        &self,
        socket: Socket,
        address: SocketAddr,
        tls: Option<&Tls>,
    ) -> Option<(Version, Prefixed<Socket>, Option<Remote>)> {
        let (socket, remote) = match tls {
            None => (socket, None),
            Some(tls) => match timeout(self.header_timeout, tls.accept(socket)).await {
                Ok(Ok((socket, remote))) => (socket, Some(remote)),
                Ok(Err(error)) => {
                    tracing::debug!(
                        %address,
                        outcome = error.outcome.as_str(),
                        %error,
                        "TLS handshake with client failed"
                    );
                    return None;
                }
                Err(_) => {
                    tls.count(HandshakeOutcome::Timeout);
                    return None;
                }
            },
        };
        let (version, io) = timeout(self.header_timeout, sniff(socket)).await.ok()?.ok()?;
        Some((version, io, remote))
    }

    /// Rejects another node's connection. The response uses only what all versions of the protocol have in common:
    /// HTTP/2 after the first bytes, and a gRPC status.
    async fn refuse_peer(&self, socket: Socket, (status, why): (tonic::Status, String), peers: &PeerServer) {
        peers.refused(&why);
        let service = service_fn(|_: Request<Incoming>| {
            std::future::ready(Ok::<_, std::convert::Infallible>(status.clone().into_http::<Body>()))
        });
        let _ = timeout(REFUSAL, self.http2.serve_connection(TokioIo::new(socket), service)).await;
    }

    /// Sends `error` to a client that is over the connection limit, in the client's protocol, and closes the
    /// connection.
    async fn refuse(&self, socket: Socket, tls: Option<&Tls>, error: &ApiError) {
        let refusal = async {
            let socket = match tls {
                None => socket,
                Some(tls) => tls.accept(socket).await.ok()?.0,
            };
            let (version, io) = sniff(socket).await.ok()?;
            let io = TokioIo::new(io);
            let answered = CancellationToken::new();
            let service = service_fn(|request: Request<Incoming>| {
                answered.cancel();
                std::future::ready(Ok::<_, std::convert::Infallible>(refusal(&request, error)))
            });
            match version {
                Version::Http1 => {
                    let mut builder = self.http1.clone();
                    builder.keep_alive(false).serve_connection(io, service).await.ok()
                }
                Version::Http2 => {
                    let mut connection = pin!(self.http2.serve_connection(io, service));
                    tokio::select! {
                        result = connection.as_mut() => return result.ok(),
                        () = answered.cancelled() => connection.as_mut().graceful_shutdown(),
                    }
                    connection.await.ok()
                }
                // No error response for peers: the connection arrived while no slot was free. An accepted peer
                // connection does not keep its slot.
                Version::Peer(_) | Version::UnknownPeer(_) | Version::Tls => None,
            }
        };
        // A client that sends no request in time is disconnected without a response.
        let _ = timeout(REFUSAL, refusal).await;
    }
}

/// Moves another node's connection to the runtime of its purpose. The connection ends with the broker, not with the
/// listener.
fn hand_over(purpose: Purpose, socket: Socket, certificate: Option<Arc<PeerCertificate>>, peers: PeerServer) {
    let runtime = match purpose {
        Purpose::Consensus => peers.consensus().clone(),
        Purpose::Liveness => peers.liveness().clone(),
        Purpose::Forwarding => Handle::current(),
    };
    let socket = match net::release(socket) {
        Ok(socket) => socket,
        Err(error) => return tracing::warn!(%error, "cannot release peer connection from the listener"),
    };
    runtime.spawn(async move {
        match net::adopt(socket) {
            Ok(socket) => peers.serve(socket, certificate).await,
            Err(error) => tracing::warn!(%error, "cannot move peer connection to its runtime"),
        }
    });
}

fn refusal(request: &Request<Incoming>, error: &ApiError) -> Response<Body> {
    if is_grpc(request.headers()) {
        status::status(error).into_http()
    } else {
        Problem::from(error.clone()).into_response()
    }
}

async fn drive<C>(
    mut connection: Pin<&mut C>,
    drain: impl Fn(Pin<&mut C>),
    stalls: &Arc<Stalls>,
    routes: &Routes,
    ending: &Ending,
) -> hyper::Result<()>
where
    C: Future<Output = hyper::Result<()>>,
{
    let mut tick = interval(stalls.interval());
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut draining = false;
    loop {
        // The other branches only signal. The loop polls the connection until it ends, or closes it by returning.
        tokio::select! {
            result = connection.as_mut() => return result,
            () = ending.drain.cancelled(), if !draining => {
                draining = true;
                drain(connection.as_mut());
            }
            () = ending.kill.cancelled() => return Ok(()),
            _ = tick.tick() => {
                match stalls.check(&routes.context().metrics) {
                    Verdict::Fine => {}
                    Verdict::Idle if draining => {}
                    Verdict::Idle => {
                        tracing::debug!("closing idle connection");
                        draining = true;
                        drain(connection.as_mut());
                    }
                    Verdict::Close => {
                        tracing::info!("closing connection: client does not read");
                        return Ok(());
                    }
                }
            }
        }
    }
}
