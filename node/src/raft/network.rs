//! openraft's network on top of [`Transport`].
//!
//! A group sends requests through a [`Transport`] and does not depend on how they are transmitted. Snapshots are never
//! sent: a follower that is that far behind receives a request to catch up, and copies entries into its log by itself
//! (see `partition::fill`).

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use chronicle_log::LogId;
use chronicle_proto::internal as proto;
use chronicle_proto::internal::raft_frame::Message;
use futures::future::BoxFuture;
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{Backoff, RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest, VoteRequest, VoteResponse,
};
use openraft::{AnyError, OptionalSend};
use tokio::time::Instant;

use super::traced::{SENT_MAX, Traced, encode};
use super::type_config::{RaftMember, RaftVote, Snapshot, TypeConfig};
use super::wire;
use crate::peers::{AskError, Peers};
use crate::telemetry::traces::OpenSpan;
use crate::telemetry::{RaftMetrics, Stage};

/// Longest wait for the response to an append. An append to a slow peer that is alive is retried after it.
const APPEND_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest wait for the response to a heartbeat.
const HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(1);
/// Longest wait for a vote.
const VOTE_TIMEOUT: Duration = Duration::from_secs(1);
/// Pause before a retry with a peer that cannot be reached or is catching up.
const RETRY_PAUSE: Duration = Duration::from_millis(50);

/// Sends requests of a group to the other replicas.
pub trait Transport: Send + Sync + 'static {
    /// Sends a request to the replica on another node and waits for the response.
    fn ask(
        &self,
        to: u64,
        group: LogId,
        message: Message,
        timeout: Duration,
    ) -> BoxFuture<'_, Result<Message, AskError>>;

    /// Whether the node is alive, by its heartbeats.
    fn alive(&self, node: u64) -> bool;
}

impl Transport for Peers {
    fn ask(
        &self,
        to: u64,
        group: LogId,
        message: Message,
        timeout: Duration,
    ) -> BoxFuture<'_, Result<Message, AskError>> {
        Box::pin(Peers::ask(self, to, group, message, timeout))
    }

    fn alive(&self, node: u64) -> bool {
        self.liveness().alive(node)
    }
}

/// Makes clients for one group.
pub(super) struct Network {
    pub(super) transport: Arc<dyn Transport>,
    pub(super) group: LogId,
    pub(super) metrics: RaftMetrics,
    pub(super) traced: Arc<Traced>,
}

/// Sends the requests of one group to one peer.
pub(super) struct ReplicaClient {
    transport: Arc<dyn Transport>,
    group: LogId,
    to: u64,
    heartbeats: bool,
    metrics: RaftMetrics,
    traced: Arc<Traced>,
}

impl Network {
    fn client(&self, to: u64, heartbeats: bool) -> ReplicaClient {
        let (metrics, traced) = (self.metrics.clone(), self.traced.clone());
        ReplicaClient { transport: self.transport.clone(), group: self.group, to, heartbeats, metrics, traced }
    }
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = ReplicaClient;

    async fn new_client(&mut self, target: u64, _node: &RaftMember) -> ReplicaClient {
        self.client(target, false)
    }

    async fn new_heartbeat_client(&mut self, target: u64, _node: &RaftMember) -> ReplicaClient {
        self.client(target, true)
    }
}

impl ReplicaClient {
    async fn ask(&self, message: Message, timeout: Duration) -> Result<Message, RPCError<TypeConfig>> {
        self.transport.ask(self.to, self.group, message, timeout).await.map_err(|error| match &error {
            AskError::Unreachable(..) | AskError::Refused(..) => RPCError::Unreachable(Unreachable::new(&error)),
            AskError::Timeout(..) => RPCError::Network(NetworkError::new(&error)),
        })
    }
}

impl ReplicaClient {
    /// Begins spans for the sampled requests in a message and adds their ids to the message. Empty, and without an
    /// allocation, while no request is sampled.
    fn begin_spans(&self, message: &mut proto::AppendRequest) -> Vec<OpenSpan> {
        let mut spans = Vec::new();
        if self.traced.is_empty() {
            return spans;
        }
        for entry in &message.entries {
            let Some(entry) = self.traced.get(entry.index).map(|traced| (entry.index, traced.trace)) else { continue };
            let (index, trace) = entry;
            for parent in trace.parents() {
                if spans.len() == SENT_MAX {
                    return spans;
                }
                let Some(span) = OpenSpan::call(parent, "replicate", self.to) else { continue };
                message.traces.push(proto::TracedEntry { index, parent: encode(&span.context()) });
                spans.push(span);
            }
        }
        spans
    }
}

/// The error for a response that does not fit the request.
fn mismatched(what: impl ToString) -> RPCError<TypeConfig> {
    RPCError::Network(NetworkError::new(&AnyError::error(format!("response of a peer: {}", what.to_string()))))
}

impl RaftNetworkV2<TypeConfig> for ReplicaClient {
    type SnapshotData = Bytes;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        let timeout = if self.heartbeats { HEARTBEAT_TIMEOUT } else { APPEND_TIMEOUT };
        let began = (!rpc.entries.is_empty()).then(Instant::now);
        let mut message = wire::append_out(rpc);
        let spans = self.begin_spans(&mut message);
        let answer = self.ask(Message::Append(message), timeout).await;
        for span in spans {
            span.end(answer.as_ref().err().map(ToString::to_string));
        }
        let answer = answer?;
        if let Some(began) = began {
            self.metrics.stage(Stage::Replicate, began.elapsed());
        }
        match answer {
            Message::AppendDone(done) => wire::append_done_in(done).map_err(mismatched),
            _ => Err(mismatched("does not belong to an append")),
        }
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        match self.ask(Message::Vote(wire::ask_vote_out(&rpc)), VOTE_TIMEOUT).await? {
            Message::VoteDone(done) => wire::voted_in(done).map_err(mismatched),
            _ => Err(mismatched("does not belong to a vote")),
        }
    }

    async fn full_snapshot(
        &mut self,
        vote: RaftVote,
        snapshot: Snapshot,
        _cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let request = proto::SnapshotRequest {
            vote: Some(wire::vote_out(&vote)),
            last: snapshot.meta.last_log_id.as_ref().map(wire::position_out),
        };
        match self.ask(Message::Snapshot(request), APPEND_TIMEOUT).await.map_err(StreamingError::from)? {
            Message::SnapshotDone(done) => {
                let vote = wire::vote_in(done.vote).map_err(|e| StreamingError::from(mismatched(e)))?;
                Ok(SnapshotResponse::new(vote))
            }
            _ => Err(StreamingError::from(mismatched("does not belong to a snapshot"))),
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<Result<(), openraft::raft::TransferLeaderError<TypeConfig>>, RPCError<TypeConfig>> {
        let message = proto::TransferRequest {
            from: Some(wire::vote_out(request.from_leader())),
            to: *request.to_node_id(),
            last: request.last_log_id().map(wire::position_out),
        };
        match self.ask(Message::Transfer(message), VOTE_TIMEOUT).await? {
            Message::TransferDone(done) if done.error.is_empty() => Ok(Ok(())),
            Message::TransferDone(done) => Err(mismatched(done.error)),
            _ => Err(mismatched("does not belong to a transfer")),
        }
    }

    fn backoff(&self) -> Option<Backoff> {
        Some(Backoff::new(std::iter::repeat(RETRY_PAUSE)))
    }
}
