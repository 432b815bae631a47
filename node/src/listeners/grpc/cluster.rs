//! `chronicle.v1.Cluster`: nodes, partition leaders, status, operations on nodes, and verification.

use chronicle_proto::v1 as proto;
use chronicle_proto::v1::cluster_server::Cluster;
use futures::StreamExt;
use futures::stream::BoxStream;
use tonic::{Request, Response, Status};

use super::observe::observe;
use super::{caller, convert, status};
use crate::broker::OperationProgress;
use crate::listeners::context::Context;
use crate::model::{ApiError, TopicPartition};
use crate::telemetry::ApiOperation;

pub(super) struct ClusterService {
    context: Context,
}

impl ClusterService {
    pub(super) fn new(context: Context) -> Self {
        Self { context }
    }
}

#[tonic::async_trait]
impl Cluster for ClusterService {
    async fn get_servers(
        &self,
        request: Request<proto::GetServersRequest>,
    ) -> Result<Response<proto::GetServersResponse>, Status> {
        observe(&self.context, ApiOperation::Servers, async {
            let caller = caller(&request)?;
            let (servers, cluster_id) = self.context.broker.for_caller(&caller).servers().await?;
            Ok(Response::new(proto::GetServersResponse {
                servers: servers.into_iter().map(convert::server).collect(),
                cluster_id: cluster_id.to_string(),
            }))
        })
        .await
    }

    async fn get_metadata(
        &self,
        request: Request<proto::GetMetadataRequest>,
    ) -> Result<Response<proto::GetMetadataResponse>, Status> {
        observe(&self.context, ApiOperation::Servers, async {
            let caller = caller(&request)?;
            let topics = request.into_inner().topics;
            Ok(Response::new(convert::metadata(self.context.broker.for_caller(&caller).metadata(&topics).await?)))
        })
        .await
    }

    async fn get_status(
        &self,
        request: Request<proto::GetStatusRequest>,
    ) -> Result<Response<proto::GetStatusResponse>, Status> {
        observe(&self.context, ApiOperation::Servers, async {
            let caller = caller(&request)?;
            Ok(Response::new(convert::status(self.context.broker.for_caller(&caller).status().await?)))
        })
        .await
    }

    async fn decommission(
        &self,
        request: Request<proto::NodeRequest>,
    ) -> Result<Response<proto::OperationResponse>, Status> {
        self.operation(async {
            let caller = caller(&request)?;
            self.context.broker.for_caller(&caller).decommission(&request.get_ref().node).await
        })
        .await
    }

    async fn drain(&self, request: Request<proto::NodeRequest>) -> Result<Response<proto::OperationResponse>, Status> {
        self.operation(async {
            let caller = caller(&request)?;
            self.context.broker.for_caller(&caller).drain(&request.get_ref().node).await
        })
        .await
    }

    async fn undrain(
        &self,
        request: Request<proto::NodeRequest>,
    ) -> Result<Response<proto::OperationResponse>, Status> {
        self.operation(async {
            let caller = caller(&request)?;
            self.context.broker.for_caller(&caller).undrain(&request.get_ref().node).await
        })
        .await
    }

    async fn cancel_operation(
        &self,
        request: Request<proto::CancelOperationRequest>,
    ) -> Result<Response<proto::OperationResponse>, Status> {
        self.operation(async {
            let caller = caller(&request)?;
            self.context.broker.for_caller(&caller).cancel_operation(request.get_ref().id).await
        })
        .await
    }

    async fn transfer_leadership(
        &self,
        request: Request<proto::TransferLeadershipRequest>,
    ) -> Result<Response<proto::TransferLeadershipResponse>, Status> {
        observe(&self.context, ApiOperation::Servers, async {
            let caller = caller(&request)?;
            let proto::TransferLeadershipRequest { topic, partition, to } = request.into_inner();
            let target = (!topic.is_empty()).then_some(TopicPartition { topic, partition });
            let leader = self.context.broker.for_caller(&caller).transfer_leadership(target, &to).await?;
            Ok(Response::new(proto::TransferLeadershipResponse { leader: leader.to_string() }))
        })
        .await
    }

    async fn recover(
        &self,
        request: Request<proto::RecoverRequest>,
    ) -> Result<Response<proto::RecoverResponse>, Status> {
        observe(&self.context, ApiOperation::Servers, async {
            let caller = caller(&request)?;
            let proto::RecoverRequest { topic, partition, source, dry_run } = request.into_inner();
            let target = TopicPartition { topic, partition };
            let replicas = self.context.broker.for_caller(&caller).recover(target, &source, dry_run).await?;
            Ok(Response::new(convert::recovered(replicas)))
        })
        .await
    }

    type VerifyStream = BoxStream<'static, Result<proto::VerifyResponse, Status>>;

    async fn verify(&self, request: Request<proto::VerifyRequest>) -> Result<Response<Self::VerifyStream>, Status> {
        observe(&self.context, ApiOperation::Servers, async {
            let caller = caller(&request)?;
            let topic = request.into_inner().topic;
            let verified = self.context.broker.for_caller(&caller).verify(&topic).await?;
            let answers = verified.map(|one| one.map(convert::verified).map_err(|error| status::status(&error)));
            Ok(Response::new(answers.boxed()))
        })
        .await
    }
}

impl ClusterService {
    async fn operation(
        &self,
        begin: impl Future<Output = Result<OperationProgress, ApiError>>,
    ) -> Result<Response<proto::OperationResponse>, Status> {
        observe(&self.context, ApiOperation::Servers, async {
            let operation = Some(convert::operation(begin.await?));
            Ok(Response::new(proto::OperationResponse { operation }))
        })
        .await
    }
}
