//! What peers say to this node, and what it answers.

use std::sync::Arc;

use chronicle_log::LogId;
use chronicle_proto::internal as proto;
use chronicle_proto::internal::group_request::Ask;
use chronicle_proto::internal::raft_frame::Message;
use futures::FutureExt;
use futures::future::BoxFuture;
use tonic::Status;

use super::{Broker, BrokerError, Reason};
use crate::controller::CONTROLLER_LOG;
use crate::partition::{ACTIVE, PartitionRole, SlotState, pull};
use crate::peers::{Handler, PullStream};

impl Handler for Broker {
    fn raft(&self, from: u64, group: LogId, message: Message) -> BoxFuture<'static, Message> {
        let broker = self.clone();
        async move {
            if broker.inner.stop.is_cancelled() {
                return Message::Refused("the node is stopping".into());
            }
            if group == CONTROLLER_LOG {
                return match broker.controller() {
                    Ok(controller) => controller.raft(from, message).await,
                    Err(error) => Message::Refused(error.message),
                };
            }
            match broker.existing_slot(group) {
                Ok(slot) => slot.raft(from, message).await,
                Err(error) => Message::Refused(error.message),
            }
        }
        .boxed()
    }

    fn refusal(&self, from: u64) -> Option<String> {
        self.inner.env.state().departed(from).map(|refusal| refusal.to_string())
    }

    fn hello(&self, request: proto::HelloRequest) -> proto::HelloResponse {
        self.inner.membership.hello(&request)
    }

    fn promise(&self, request: proto::PromiseRequest) -> BoxFuture<'static, Result<proto::PromiseResponse, Status>> {
        let membership = self.inner.membership.clone();
        // What cannot be remembered is no answer: a refusal would be final.
        async move { membership.promise(request).await.map_err(|e| Status::unavailable(e.to_string())) }.boxed()
    }

    fn found(&self, request: proto::FoundRequest) -> BoxFuture<'static, Result<proto::FoundResponse, Status>> {
        let membership = self.inner.membership.clone();
        async move { membership.found(request).await.map_err(|e| Status::unavailable(e.to_string())) }.boxed()
    }

    fn join(&self, request: proto::JoinRequest) -> BoxFuture<'static, Result<proto::JoinResponse, Status>> {
        let broker = self.clone();
        async move { broker.take_in(request).await }.boxed()
    }

    fn command(&self, request: proto::CommandRequest) -> BoxFuture<'static, Result<proto::CommandResponse, Status>> {
        let broker = self.clone();
        async move {
            let controller = broker.controller().map_err(|e| Status::failed_precondition(e.message))?;
            match controller.serve(request.command).await {
                Ok((outcome, applied)) => Ok(proto::CommandResponse { outcome, applied }),
                Err(error) if error.reason == Reason::Unavailable => Err(Status::failed_precondition(error.message)),
                Err(error) => Err(Status::unknown(error.message)),
            }
        }
        .boxed()
    }

    fn pull(&self, from: u64, request: proto::PullRequest) -> BoxFuture<'static, Result<PullStream, Status>> {
        let broker = self.clone();
        async move {
            let id = crate::peers::named_group(&request.group)?;
            let slot = broker.existing_slot(id).map_err(|e| Status::unavailable(e.message))?;
            pull(broker.inner.env.clone(), &slot, from, request).await
        }
        .boxed()
    }

    fn group(
        &self,
        _from: u64,
        request: proto::GroupRequest,
    ) -> BoxFuture<'static, Result<proto::GroupResponse, Status>> {
        let broker = self.clone();
        async move {
            let id = crate::peers::named_group(&request.group)?;
            let ask = request.ask.ok_or_else(|| Status::invalid_argument("ask: missing: must be given"))?;
            broker.answer_about(id, ask).await.map_err(|e| Status::unavailable(e.message))
        }
        .boxed()
    }

    fn forwarded(&self, request: proto::ForwardRequest) -> BoxFuture<'static, proto::ForwardResponse> {
        let broker = self.clone();
        async move { broker.answer_forwarded(request).await }.boxed()
    }
}

impl Broker {
    async fn answer_about(&self, id: LogId, ask: Ask) -> Result<proto::GroupResponse, BrokerError> {
        match ask {
            Ask::Status(_) => self.group_status(id, true).await,
            Ask::TransferTo(to) => {
                let leader = self.hand_over(id, to).await?;
                Ok(proto::GroupResponse { leader, accepted: true, ..Default::default() })
            }
            Ask::Sleep(position) => {
                let slot = self.existing_slot(id)?;
                let accepted = slot.sleep_with_leader(position).await;
                Ok(proto::GroupResponse { accepted, ..Default::default() })
            }
            Ask::Digest(range) => {
                let digest = self.digest(id, range).await.map_err(|e| BrokerError::new(Reason::Unavailable, e))?;
                Ok(proto::GroupResponse { digest: digest.into(), ..Default::default() })
            }
            Ask::Lead(_) => {
                let slot = self.existing_slot(id)?;
                // Who leads instead is in the answer.
                let led = slot.lead().await;
                let mut answer = self.group_status(id, false).await?;
                if led.is_ok() {
                    answer.leader = self.inner.env.node();
                }
                Ok(answer)
            }
            Ask::ReadIndex(_) => {
                let read_index = match id {
                    CONTROLLER_LOG => self.controller()?.read_index().await?,
                    id => {
                        let partition = self.existing_slot(id)?.lead().await?;
                        partition.read_index().await?;
                        partition.group().status().applied.map(|index| index + 1).unwrap_or(0)
                    }
                };
                Ok(proto::GroupResponse { read_index, accepted: true, ..Default::default() })
            }
        }
    }

    /// This node's replica of a group. `open`: wake it, or let it begin to fill its log.
    pub(super) async fn group_status(&self, id: LogId, open: bool) -> Result<proto::GroupResponse, BrokerError> {
        if id == CONTROLLER_LOG {
            return Ok(status_response(&self.controller()?.status(), ACTIVE));
        }
        let slot = self.existing_slot(id)?;
        if open {
            // The state below says why it does not open.
            let _ = slot.get().await;
        }
        Ok(match slot.state() {
            SlotState::Active(partition) => {
                let mut answer = status_response(&partition.group().status(), ACTIVE);
                answer.first_index = partition.log().position().first_index;
                if let PartitionRole::Leading(_) = partition.role() {
                    answer.leader = self.inner.env.node();
                }
                answer
            }
            SlotState::Filling(filling) => proto::GroupResponse {
                state: "filling".into(),
                filling_left: filling.progress.left.load(std::sync::atomic::Ordering::Relaxed),
                ..Default::default()
            },
            SlotState::Failed { error, .. } => {
                proto::GroupResponse { state: format!("failed: {error}"), ..Default::default() }
            }
            SlotState::Dormant | SlotState::Closed => {
                proto::GroupResponse { state: "dormant".into(), ..Default::default() }
            }
        })
    }

    /// BLAKE3 of a range of entries of this node's replica; empty while it has not applied them all.
    pub(super) async fn digest(&self, id: LogId, range: proto::DigestRange) -> Result<Vec<u8>, String> {
        let slot = self.existing_slot(id).map_err(|e| e.message)?;
        let partition = slot.get().await.map_err(|e| e.message)?;
        let applied = partition.group().status().applied.map(|index| index + 1).unwrap_or(0);
        if applied < range.to {
            return Ok(Vec::new());
        }
        if range.from >= range.to {
            return Ok(chronicle_log::ContentHash::new().finalize().to_vec());
        }
        let log = partition.log().clone();
        let digest = crate::host::blocking(move || log.digest(range.from, range.to)).await;
        match digest.map_err(|e| e.to_string())? {
            Ok(digest) => Ok(digest.to_vec()),
            Err(error) => {
                let error = crate::partition::log_error(&error);
                if let Some(index) = error.value("index").and_then(|index| index.parse().ok()) {
                    drop(partition);
                    self.inner.tasks.spawn(async move { slot.damaged(index).await });
                }
                Err(error.message)
            }
        }
    }
}

fn status_response(status: &crate::raft::GroupStatus, state: &str) -> proto::GroupResponse {
    proto::GroupResponse {
        state: state.into(),
        term: status.term,
        leader: status.leader.unwrap_or(0),
        next_index: status.last.map(|index| index + 1).unwrap_or(0),
        applied: status.applied.map(|index| index + 1).unwrap_or(0),
        voters: status.voters.iter().copied().collect(),
        learners: status.learners.iter().copied().collect(),
        ..Default::default()
    }
}

/// Keeps the trait object's type in one place.
pub(crate) fn handler(broker: &Broker) -> Arc<dyn Handler> {
    Arc::new(broker.clone())
}
