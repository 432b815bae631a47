//! Answers the calls of other nodes to this node.

use std::sync::Arc;

use chronicle_log::LogId;
use chronicle_proto::internal as proto;
use chronicle_proto::internal::group_request::Ask;
use chronicle_proto::internal::raft_frame::Message;
use futures::FutureExt;
use futures::future::BoxFuture;
use tonic::Status;

use super::Node;
use crate::cluster::{ACTIVE, CONTROLLER_LOG, damaged_response, with_marks};
use crate::controller::{Controller, ControllerError};
use crate::partition::{pull, status_response};
use crate::peers::{Handler, PullStream};

impl Handler for Node {
    fn raft(&self, from: u64, group: LogId, message: Message) -> BoxFuture<'static, Message> {
        let node = self.clone();
        async move {
            if node.inner.stop.is_cancelled() {
                return Message::Refused("the node is stopping".into());
            }
            if group == CONTROLLER_LOG {
                return match node.controller() {
                    Ok(controller) => controller.raft(from, message).await,
                    Err(error) => Message::Refused(error),
                };
            }
            match node.inner.replicas.placed(group) {
                Ok(replica) => replica.raft(from, message).await,
                Err(error) => Message::Refused(error.to_string()),
            }
        }
        .boxed()
    }

    fn refusal(&self, from: u64) -> Option<String> {
        self.inner.cluster.state().departed(from).map(|refusal| refusal.to_string())
    }

    fn hello(&self, request: proto::HelloRequest) -> proto::HelloResponse {
        self.inner.membership.hello(&request)
    }

    fn promise(&self, request: proto::PromiseRequest) -> BoxFuture<'static, Result<proto::PromiseResponse, Status>> {
        let membership = self.inner.membership.clone();
        // When the decision cannot be stored, the call fails and the caller retries: a refusal would be final.
        async move { membership.promise(request).await.map_err(|e| Status::unavailable(e.to_string())) }.boxed()
    }

    fn found(&self, request: proto::FoundRequest) -> BoxFuture<'static, Result<proto::FoundResponse, Status>> {
        let membership = self.inner.membership.clone();
        async move { membership.found(request).await.map_err(|e| Status::unavailable(e.to_string())) }.boxed()
    }

    fn join(&self, request: proto::JoinRequest) -> BoxFuture<'static, Result<proto::JoinResponse, Status>> {
        let node = self.clone();
        async move { node.take_in(request).await }.boxed()
    }

    fn command(&self, request: proto::CommandRequest) -> BoxFuture<'static, Result<proto::CommandResponse, Status>> {
        let node = self.clone();
        async move {
            let controller = node.controller().map_err(Status::failed_precondition)?;
            match controller.serve(request.command).await {
                Ok((outcome, applied)) => Ok(proto::CommandResponse { outcome, applied }),
                Err(ControllerError::Unavailable(why)) => Err(Status::failed_precondition(why)),
                Err(error) => Err(Status::unknown(error.to_string())),
            }
        }
        .boxed()
    }

    fn pull(&self, from: u64, request: proto::PullRequest) -> BoxFuture<'static, Result<PullStream, Status>> {
        let node = self.clone();
        async move {
            let id = crate::peers::named_group(&request.group)?;
            if id == CONTROLLER_LOG {
                return node.controller().map_err(Status::unavailable)?.pull(from, request).await;
            }
            let replica = node.inner.replicas.placed(id).map_err(|e| Status::unavailable(e.to_string()))?;
            pull(node.inner.replicas.environment().clone(), &replica, from, request).await
        }
        .boxed()
    }

    fn group(
        &self,
        _from: u64,
        request: proto::GroupRequest,
    ) -> BoxFuture<'static, Result<proto::GroupResponse, Status>> {
        let node = self.clone();
        async move {
            let id = crate::peers::named_group(&request.group)?;
            let ask = request.ask.ok_or_else(|| Status::invalid_argument("ask: missing: must be given"))?;
            node.answer_about(id, ask).await.map_err(Status::unavailable)
        }
        .boxed()
    }

    fn forwarded(&self, request: proto::ForwardRequest) -> BoxFuture<'static, proto::ForwardResponse> {
        let node = self.clone();
        async move { node.inner.broker.answer_forwarded(request).await }.boxed()
    }
}

impl Node {
    async fn answer_about(&self, id: LogId, ask: Ask) -> Result<proto::GroupResponse, String> {
        match ask {
            Ask::Status(_) => self.group_status(id, true).await,
            Ask::TransferTo(to) => {
                let leader = self.inner.broker.hand_over(id, to).await.map_err(|error| error.message)?;
                Ok(proto::GroupResponse { leader, accepted: true, ..Default::default() })
            }
            Ask::Sleep(position) => {
                let replica = self.inner.replicas.placed(id).map_err(text)?;
                let accepted = replica.sleep_with_leader(position).await;
                Ok(proto::GroupResponse { accepted, ..Default::default() })
            }
            Ask::Digest(range) => {
                let digest = self.inner.replicas.digest(id, range).await?;
                Ok(proto::GroupResponse { digest: digest.into(), ..Default::default() })
            }
            Ask::Lead(_) => {
                let replica = self.inner.replicas.placed(id).map_err(text)?;
                // The response names the current leader.
                let led = replica.lead().await;
                let mut answer = self.group_status(id, false).await?;
                if led.is_ok() {
                    answer.leader = self.inner.cluster.node();
                }
                Ok(answer)
            }
            Ask::DeclareSource(_) | Ask::StartOver(_) if id == CONTROLLER_LOG => {
                Err("the controller group is recovered offline: chronicle debug recover".into())
            }
            Ask::DeclareSource(_) => {
                let replica = self.inner.replicas.placed(id).map_err(text)?;
                // Completes also when the caller does not wait.
                let declared = tokio::spawn(async move { replica.declare_source().await });
                let next_index = declared.await.map_err(text)??;
                Ok(proto::GroupResponse { accepted: true, next_index, ..Default::default() })
            }
            Ask::StartOver(_) => {
                let replica = self.inner.replicas.placed(id).map_err(text)?;
                tokio::spawn(async move { replica.start_over().await }).await.map_err(text)??;
                Ok(proto::GroupResponse { accepted: true, ..Default::default() })
            }
            Ask::ReadIndex(_) => {
                let read_index = match id {
                    CONTROLLER_LOG => self.controller()?.read_index().await.map_err(text)?,
                    id => {
                        let replica = self.inner.replicas.placed(id).map_err(text)?;
                        let partition = replica.lead().await.map_err(text)?;
                        partition.read_index().await.map_err(text)?;
                        partition.group().status().applied.map(|index| index + 1).unwrap_or(0)
                    }
                };
                Ok(proto::GroupResponse { read_index, accepted: true, ..Default::default() })
            }
        }
    }

    async fn group_status(&self, id: LogId, open: bool) -> Result<proto::GroupResponse, String> {
        match id {
            CONTROLLER_LOG => match self.controller() {
                Ok(controller) => {
                    let mut answer = status_response(&controller.status(), ACTIVE);
                    answer.last = controller.last_position().await;
                    Ok(with_marks(&self.inner.cluster, id, answer))
                }
                Err(error) => damaged_response(&self.inner.cluster, id).ok_or(error),
            },
            id => self.inner.replicas.group_status(id, open).await.map_err(text),
        }
    }

    fn controller(&self) -> Result<&Arc<Controller>, String> {
        self.inner.broker.controller().map_err(|error| error.message)
    }
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}
