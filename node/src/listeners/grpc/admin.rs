//! `chronicle.v1.Admin`: topics.

use chronicle_proto::v1 as proto;
use chronicle_proto::v1::admin_server::Admin;
use tonic::{Request, Response, Status};

use super::observe::observe;
use super::{caller, convert};
use crate::listeners::context::Context;
use crate::telemetry::ApiOperation;

pub(super) struct AdminService {
    context: Context,
}

impl AdminService {
    pub(super) fn new(context: Context) -> Self {
        Self { context }
    }
}

#[tonic::async_trait]
impl Admin for AdminService {
    async fn create_topic(
        &self,
        request: Request<proto::CreateTopicRequest>,
    ) -> Result<Response<proto::CreateTopicResponse>, Status> {
        observe(&self.context, ApiOperation::CreateTopic, async {
            let caller = caller(&request)?;
            let new = convert::new_topic(request.into_inner())?;
            let (topic, created) = self.context.broker.for_caller(&caller).create_topic(new).await?;
            Ok(Response::new(proto::CreateTopicResponse { topic: Some(convert::topic(topic)), created }))
        })
        .await
    }

    async fn list_topics(
        &self,
        request: Request<proto::ListTopicsRequest>,
    ) -> Result<Response<proto::ListTopicsResponse>, Status> {
        observe(&self.context, ApiOperation::ListTopics, async {
            let caller = caller(&request)?;
            let topics = self.context.broker.for_caller(&caller).topics().await?;
            Ok(Response::new(proto::ListTopicsResponse { topics: topics.into_iter().map(convert::topic).collect() }))
        })
        .await
    }

    async fn describe_topic(
        &self,
        request: Request<proto::DescribeTopicRequest>,
    ) -> Result<Response<proto::DescribeTopicResponse>, Status> {
        observe(&self.context, ApiOperation::DescribeTopic, async {
            let caller = caller(&request)?;
            let name = convert::topic_name(request.into_inner().name)?;
            let (topic, partitions) = self.context.broker.for_caller(&caller).describe_topic(&name).await?;
            Ok(Response::new(proto::DescribeTopicResponse {
                topic: Some(convert::topic(topic)),
                partitions: partitions.into_iter().map(convert::partition).collect(),
            }))
        })
        .await
    }

    async fn alter_topic(
        &self,
        request: Request<proto::AlterTopicRequest>,
    ) -> Result<Response<proto::AlterTopicResponse>, Status> {
        observe(&self.context, ApiOperation::AlterTopic, async {
            let caller = caller(&request)?;
            let (name, partitions, change) = convert::alter(request.into_inner())?;
            let topic = self.context.broker.for_caller(&caller).alter_topic(&name, partitions, change).await?;
            Ok(Response::new(proto::AlterTopicResponse { topic: Some(convert::topic(topic)) }))
        })
        .await
    }

    async fn delete_topic(
        &self,
        request: Request<proto::DeleteTopicRequest>,
    ) -> Result<Response<proto::DeleteTopicResponse>, Status> {
        observe(&self.context, ApiOperation::DeleteTopic, async {
            let caller = caller(&request)?;
            let name = convert::topic_name(request.into_inner().name)?;
            self.context.broker.for_caller(&caller).delete_topic(&name).await?;
            Ok(Response::new(proto::DeleteTopicResponse {}))
        })
        .await
    }
}
