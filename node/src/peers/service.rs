//! The receiving side: serves `chronicle.internal.v1.Peer` on connections from the listener.

use std::sync::Arc;
use std::time::Duration;

use chronicle_log::LogId;
use chronicle_proto::internal as proto;
use chronicle_proto::internal::peer_server::{Peer, PeerServer as Generated};
use chronicle_proto::internal::raft_frame::Message;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};
use uuid::Uuid;

use super::generations::{show, shown};
use super::liveness::shown_in;
use super::protocol::{MESSAGE_BYTES_MAX, WINDOW_BYTES, group_id, is_refusal, removed, rolled_back};
use super::repeats::Repeats;
use super::transport::Peers;
use crate::identity::{NodeClaim, PeerCertificate};
use crate::telemetry::traces;

/// Handles the requests of peers. `from`: the caller's raft id.
pub trait Handler: Send + Sync + 'static {
    /// Handles a message to the replica of a group.
    fn raft(&self, from: u64, group: LogId, message: Message) -> BoxFuture<'static, Message>;
    /// Returns why this caller is rejected, if it was removed from the cluster.
    fn refusal(&self, from: u64) -> Option<String>;
    /// Responds to a join probe.
    fn hello(&self, request: proto::HelloRequest) -> proto::HelloResponse;
    /// First phase of bootstrapping a cluster.
    fn promise(&self, request: proto::PromiseRequest) -> BoxFuture<'static, Result<proto::PromiseResponse, Status>>;
    /// Second phase of bootstrapping a cluster.
    fn found(&self, request: proto::FoundRequest) -> BoxFuture<'static, Result<proto::FoundResponse, Status>>;
    /// Handles the request of a node to become a member.
    fn join(&self, request: proto::JoinRequest) -> BoxFuture<'static, Result<proto::JoinResponse, Status>>;
    /// Executes a controller command.
    fn command(&self, request: proto::CommandRequest) -> BoxFuture<'static, Result<proto::CommandResponse, Status>>;
    /// Returns entries of a log.
    fn pull(&self, from: u64, request: proto::PullRequest) -> BoxFuture<'static, Result<PullStream, Status>>;
    /// Handles a request about a group.
    fn group(
        &self,
        from: u64,
        request: proto::GroupRequest,
    ) -> BoxFuture<'static, Result<proto::GroupResponse, Status>>;
    /// Handles a client's request, which must not be forwarded again.
    fn forwarded(&self, request: proto::ForwardRequest) -> BoxFuture<'static, proto::ForwardResponse>;
}

/// Responses to a pull.
pub type PullStream = BoxStream<'static, Result<proto::PullResponse, Status>>;

/// Serves connections of peers.
#[derive(Clone)]
pub struct PeerServer {
    peers: Arc<Peers>,
    handler: Arc<dyn Handler>,
    consensus: Handle,
    stop: CancellationToken,
    logged: Arc<Repeats>,
    /// Certificate of this connection's peer; `None`: plaintext.
    certificate: Option<Arc<PeerCertificate>>,
    /// The node that it was last found valid for: raft id, and version of the list of peers.
    approved: Arc<Mutex<Option<(u64, u64)>>>,
}

impl PeerServer {
    /// Serves groups on `consensus`; ends with `stop`.
    pub fn new(peers: Arc<Peers>, handler: Arc<dyn Handler>, consensus: Handle, stop: CancellationToken) -> Self {
        let (logged, approved) = (Arc::default(), Arc::default());
        Self { peers, handler, consensus, stop, logged, certificate: None, approved }
    }

    /// Returns the runtime that serves raft messages and calls.
    pub fn consensus(&self) -> &Handle {
        &self.consensus
    }

    /// Returns the runtime that serves heartbeats.
    pub fn liveness(&self) -> &Handle {
        self.peers.liveness().runtime()
    }

    /// Serves one connection, whose preface has been read, to its end. With TLS on, every request on it must come from
    /// a node that `certificate` is valid for.
    pub async fn serve<I>(mut self, io: I, certificate: Option<Arc<PeerCertificate>>)
    where
        I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let stop = self.stop.clone();
        self.certificate = certificate;
        self.approved = Arc::default();
        let service =
            Generated::new(self).max_decoding_message_size(MESSAGE_BYTES_MAX).max_encoding_message_size(usize::MAX);
        let routes = tonic::service::Routes::new(service);
        let connection = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES)
            .keep_alive_interval(Duration::from_secs(5))
            .keep_alive_timeout(Duration::from_secs(5))
            .serve_connection(TokioIo::new(io), TowerToHyperService::new(routes.prepare()));
        if let Some(Err(error)) = stop.run_until_cancelled(connection).await {
            tracing::debug!(%error, "connection of a peer ended with an error");
        }
    }

    /// Logs that a node is rejected, unless the same line was logged lately.
    pub(crate) fn refused(&self, why: &str) {
        if self.logged.is_news(why) {
            tracing::warn!(why, "a node is refused");
        }
    }

    /// Checks a request and returns the caller's raft id.
    fn caller<T>(&self, request: &Request<T>) -> Result<u64, Status> {
        self.judge(request).inspect_err(|status| {
            if is_refusal(status) {
                self.refused(status.message());
            }
        })
    }

    fn judge<T>(&self, request: &Request<T>) -> Result<u64, Status> {
        let text = |name: &str| {
            request
                .metadata()
                .get(name)
                .and_then(|value| value.to_str().ok())
                .ok_or_else(|| Status::invalid_argument(format!("{name}: missing: must be given")))
        };
        let number = |name: &str| {
            text(name)?.parse::<u64>().map_err(|_| Status::invalid_argument(format!("{name}: must be a number")))
        };
        let me = self.peers.me().ok_or_else(|| Status::unavailable("this node is not part of a cluster yet"))?;
        let cluster: Uuid = text("chronicle-cluster")?
            .parse()
            .map_err(|_| Status::invalid_argument("chronicle-cluster: must be a UUID"))?;
        if cluster != me.cluster {
            return Err(Status::failed_precondition(format!(
                "FOREIGN_CLUSTER: the caller is of cluster {cluster}, this node of {}",
                me.cluster
            )));
        }
        let to = number("chronicle-to")?;
        if to != me.node {
            return Err(Status::failed_precondition(format!(
                "WRONG_NODE: the request is for node {to}, this is node {}",
                me.node
            )));
        }
        let from = number("chronicle-from")?;
        let boot = number("chronicle-boot")?;
        if let Some(why) = self.handler.refusal(from) {
            return Err(removed(&why));
        }
        self.identified(from)?;
        let liveness = self.peers.liveness();
        // Two processes must not share one identity. A restarted process is accepted once the old process is dead, or
        // once the process at its address responds to heartbeats with the new number.
        if liveness.alive(from) && liveness.boot_of(from) != boot {
            return Err(Status::unavailable(format!("DUPLICATE: another process of node {from} is alive")));
        }
        // Last: what a copy of a member's directory shows is remembered only once the member is dead.
        liveness.generations().observe(from, shown(request.metadata())).map_err(|why| rolled_back(&why))?;
        Ok(from)
    }

    /// Returns a response that shows the generation of this node.
    fn answer<T>(&self, message: T) -> Response<T> {
        let mut response = Response::new(message);
        show(response.metadata_mut(), self.peers.liveness().generations().at_start());
        response
    }

    /// Checks that the certificate of this connection is valid for the caller.
    fn identified(&self, from: u64) -> Result<(), Status> {
        let Some(certificate) = &self.certificate else { return Ok(()) };
        let version = self.peers.version();
        if *self.approved.lock() == Some((from, version)) {
            return Ok(());
        }
        // The caller may have been admitted a moment ago: it retries.
        let known = self.peers.known_as(from);
        let known = known
            .ok_or_else(|| Status::unavailable(format!("node {from} is not in this node's list of members yet")))?;
        self.judged(certificate, NodeClaim { name: &known.name, address: &known.address })?;
        *self.approved.lock() = Some((from, version));
        Ok(())
    }

    /// Checks that the certificate of this connection is valid for the name and address of a caller without a raft id.
    fn claimed(&self, name: &str, address: &str) -> Result<(), Status> {
        let Some(certificate) = &self.certificate else { return Ok(()) };
        if name.is_empty() || address.is_empty() {
            return Err(Status::invalid_argument("name, address: empty: must be given"));
        }
        self.judged(certificate, NodeClaim { name, address })
    }

    /// Checks that the certificate of this connection is valid for one of these nodes.
    fn one_of(&self, founders: &[proto::Founder]) -> Result<(), Status> {
        let claims = founders.iter().map(|founder| self.claimed(&founder.name, &founder.address));
        let first = claims.reduce(|found, next| if found.is_ok() { found } else { next });
        first.unwrap_or_else(|| self.claimed("", ""))
    }

    fn judged(&self, certificate: &PeerCertificate, claim: NodeClaim<'_>) -> Result<(), Status> {
        self.peers.judge(certificate, claim).map_err(|why| {
            let status = Status::permission_denied(format!("CERTIFICATE: {why}"));
            self.refused(status.message());
            status
        })
    }
}

#[tonic::async_trait]
impl Peer for PeerServer {
    type ExchangeStream = BoxStream<'static, Result<proto::RaftFrame, Status>>;

    async fn exchange(
        &self,
        request: Request<Streaming<proto::RaftFrame>>,
    ) -> Result<Response<Self::ExchangeStream>, Status> {
        let from = self.caller(&request)?;
        let mut frames = request.into_inner();
        let (answers, outgoing) = mpsc::channel(64);
        let (handler, liveness, runtime) =
            (self.handler.clone(), self.peers.liveness().clone(), self.consensus.clone());
        runtime.clone().spawn(async move {
            while let Ok(Some(frame)) = frames.message().await {
                liveness.heard(from);
                let proto::RaftFrame { id, group, message: Some(message) } = frame else { continue };
                let Ok(group) = group_id(group) else { continue };
                let (handler, answers) = (handler.clone(), answers.clone());
                // Bounded by the sender's window, which each request occupies until its response.
                runtime.spawn(async move {
                    let message = Some(handler.raft(from, group, message).await);
                    let _ = answers.send(Ok(proto::RaftFrame { id, group: None, message })).await;
                });
            }
        });
        Ok(self.answer(ReceiverStream::new(outgoing).boxed()))
    }

    type BeatStream = BoxStream<'static, Result<proto::BeatMessage, Status>>;

    async fn beat(
        &self,
        request: Request<Streaming<proto::BeatMessage>>,
    ) -> Result<Response<Self::BeatStream>, Status> {
        let from = self.caller(&request)?;
        let mut beats = request.into_inner();
        let (handler, liveness) = (self.handler.clone(), self.peers.liveness().clone());
        let stop = self.stop.clone();
        let (answers, outgoing) = mpsc::channel(4);
        tokio::spawn(async move {
            loop {
                let beat = tokio::select! {
                    () = stop.cancelled() => {
                        // A heartbeat with `leaving` lets the peer react at once instead of waiting for a timeout.
                        let _ = answers.try_send(Ok(liveness.leaving_beat()));
                        return;
                    }
                    beat = beats.message() => beat,
                };
                let Ok(Some(beat)) = beat else { return };
                // The caller may have been removed since the stream was opened, without having received the decision.
                if let Some(why) = handler.refusal(from) {
                    let _ = answers.send(Err(removed(&why))).await;
                    return;
                }
                // Another process of the node may have shown a later generation since then.
                if let Err(why) = liveness.generations().observe(from, shown_in(&beat)) {
                    let _ = answers.send(Err(rolled_back(&why))).await;
                    return;
                }
                if beat.leaving {
                    liveness.left(from);
                    continue;
                }
                liveness.beat(from, &beat);
                if let Some(answer) = liveness.answer(from, beat.sequence) {
                    let _ = answers.try_send(Ok(answer));
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(outgoing).boxed()))
    }

    async fn hello(&self, request: Request<proto::HelloRequest>) -> Result<Response<proto::HelloResponse>, Status> {
        let request = request.into_inner();
        self.claimed(&request.name, &request.address)?;
        Ok(Response::new(self.handler.hello(request)))
    }

    async fn promise(
        &self,
        request: Request<proto::PromiseRequest>,
    ) -> Result<Response<proto::PromiseResponse>, Status> {
        let request = request.into_inner();
        self.one_of(&request.founders)?;
        self.handler.promise(request).await.map(Response::new)
    }

    async fn found(&self, request: Request<proto::FoundRequest>) -> Result<Response<proto::FoundResponse>, Status> {
        let request = request.into_inner();
        self.one_of(&request.founders)?;
        self.handler.found(request).await.map(Response::new)
    }

    async fn join(&self, request: Request<proto::JoinRequest>) -> Result<Response<proto::JoinResponse>, Status> {
        let request = request.into_inner();
        self.claimed(&request.name, &request.address)?;
        self.handler.join(request).await.map(Response::new)
    }

    async fn command(
        &self,
        request: Request<proto::CommandRequest>,
    ) -> Result<Response<proto::CommandResponse>, Status> {
        self.caller(&request)?;
        self.handler.command(request.into_inner()).await.map(Response::new)
    }

    type PullStream = PullStream;

    async fn pull(&self, request: Request<proto::PullRequest>) -> Result<Response<Self::PullStream>, Status> {
        let from = self.caller(&request)?;
        self.handler.pull(from, request.into_inner()).await.map(|parts| self.answer(parts))
    }

    async fn group(&self, request: Request<proto::GroupRequest>) -> Result<Response<proto::GroupResponse>, Status> {
        let from = self.caller(&request)?;
        self.handler.group(from, request.into_inner()).await.map(|answer| self.answer(answer))
    }

    async fn forward(
        &self,
        request: Request<proto::ForwardRequest>,
    ) -> Result<Response<proto::ForwardResponse>, Status> {
        self.caller(&request)?;
        // Traced only as part of an existing trace: the node that received the client's request decides about sampling.
        let parent = traces::parent_of(request.metadata().as_ref());
        let trace = match parent {
            Some(parent) => traces::Request::begin(Some(parent), || Some("Peer/Forward".into())),
            None => traces::Request::untraced(),
        };
        Ok(Response::new(trace.instrument(self.handler.forwarded(request.into_inner())).await))
    }
}
