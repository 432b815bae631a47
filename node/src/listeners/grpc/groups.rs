//! `chronicle.v1.Groups`: consumer groups, and the conversions of their messages.

use chronicle_proto::v1 as proto;
use chronicle_proto::v1::groups_server;
use tonic::{Request, Response, Status};

use super::caller;
use super::observe::observe;
use crate::groups::{
    Commit, CommittedOffset, GroupDescription, Heartbeat, HeartbeatResponse, MemberDescription, PartitionLag,
    Partitions, Reset, ResetTo,
};
use crate::listeners::context::Context;
use crate::model::ApiError;
use crate::telemetry::ApiOperation;

pub(super) struct GroupsService {
    context: Context,
}

impl GroupsService {
    pub(super) fn new(context: Context) -> Self {
        Self { context }
    }
}

#[tonic::async_trait]
impl groups_server::Groups for GroupsService {
    async fn heartbeat(
        &self,
        request: Request<proto::GroupHeartbeatRequest>,
    ) -> Result<Response<proto::GroupHeartbeatResponse>, Status> {
        observe(&self.context, ApiOperation::GroupHeartbeat, async {
            let caller = caller(&request)?;
            let answer = self.context.groups.for_caller(&caller).heartbeat(heartbeat(request.into_inner())).await?;
            Ok(Response::new(membership(answer)))
        })
        .await
    }

    async fn leave(
        &self,
        request: Request<proto::LeaveGroupRequest>,
    ) -> Result<Response<proto::LeaveGroupResponse>, Status> {
        observe(&self.context, ApiOperation::GroupLeave, async {
            let caller = caller(&request)?;
            let proto::LeaveGroupRequest { group, member_id } = request.into_inner();
            self.context.groups.for_caller(&caller).leave(&group, &member_id).await?;
            Ok(Response::new(proto::LeaveGroupResponse {}))
        })
        .await
    }

    async fn commit_offsets(
        &self,
        request: Request<proto::CommitOffsetsRequest>,
    ) -> Result<Response<proto::CommitOffsetsResponse>, Status> {
        observe(&self.context, ApiOperation::GroupCommit, async {
            let caller = caller(&request)?;
            let proto::CommitOffsetsRequest { group, member_id, generation, offsets } = request.into_inner();
            let offsets = offsets.into_iter().map(committed).collect();
            self.context.groups.for_caller(&caller).commit(Commit { group, member_id, generation, offsets }).await?;
            Ok(Response::new(proto::CommitOffsetsResponse {}))
        })
        .await
    }

    async fn fetch_offsets(
        &self,
        request: Request<proto::FetchOffsetsRequest>,
    ) -> Result<Response<proto::FetchOffsetsResponse>, Status> {
        observe(&self.context, ApiOperation::GroupOffsets, async {
            let caller = caller(&request)?;
            let proto::FetchOffsetsRequest { group, partitions } = request.into_inner();
            let offsets = self.context.groups.for_caller(&caller).offsets(&group, &by_topic(partitions)).await?;
            Ok(Response::new(proto::FetchOffsetsResponse { offsets: offsets.into_iter().map(offset).collect() }))
        })
        .await
    }

    async fn list_groups(
        &self,
        request: Request<proto::ListGroupsRequest>,
    ) -> Result<Response<proto::ListGroupsResponse>, Status> {
        observe(&self.context, ApiOperation::GroupAdmin, async {
            let caller = caller(&request)?;
            let groups =
                self.context.groups.for_caller(&caller).list().await?.into_iter().map(|summary| proto::GroupSummary {
                    group: summary.group,
                    state: summary.state.as_str().to_owned(),
                    members: summary.members as u32,
                });
            Ok(Response::new(proto::ListGroupsResponse { groups: groups.collect() }))
        })
        .await
    }

    async fn describe_group(
        &self,
        request: Request<proto::DescribeGroupRequest>,
    ) -> Result<Response<proto::DescribeGroupResponse>, Status> {
        observe(&self.context, ApiOperation::GroupAdmin, async {
            let caller = caller(&request)?;
            let found = self.context.groups.for_caller(&caller).describe(&request.into_inner().group).await?;
            Ok(Response::new(description(found)))
        })
        .await
    }

    async fn reset_offsets(
        &self,
        request: Request<proto::ResetOffsetsRequest>,
    ) -> Result<Response<proto::ResetOffsetsResponse>, Status> {
        observe(&self.context, ApiOperation::GroupAdmin, async {
            let caller = caller(&request)?;
            let offsets = self.context.groups.for_caller(&caller).reset(reset(request.into_inner())?).await?;
            Ok(Response::new(proto::ResetOffsetsResponse { offsets: offsets.into_iter().map(offset).collect() }))
        })
        .await
    }

    async fn delete_group(
        &self,
        request: Request<proto::DeleteGroupRequest>,
    ) -> Result<Response<proto::DeleteGroupResponse>, Status> {
        observe(&self.context, ApiOperation::GroupAdmin, async {
            let caller = caller(&request)?;
            self.context.groups.for_caller(&caller).delete(&request.into_inner().group).await?;
            Ok(Response::new(proto::DeleteGroupResponse {}))
        })
        .await
    }
}

/// Merges the partitions of each topic. The same topic may occur several times in `list`.
fn by_topic(list: Vec<proto::TopicPartitions>) -> Partitions {
    list.into_iter().fold(Partitions::new(), |mut all, one| {
        all.entry(one.topic).or_default().extend(one.partitions);
        all
    })
}

fn topic_partitions(partitions: Partitions) -> Vec<proto::TopicPartitions> {
    partitions.into_iter().map(|(topic, partitions)| proto::TopicPartitions { topic, partitions }).collect()
}

fn heartbeat(request: proto::GroupHeartbeatRequest) -> Heartbeat {
    Heartbeat {
        group: request.group,
        member_id: request.member_id,
        generation: request.generation,
        client_name: request.client_name,
        topics: request.topics,
        session_timeout_ms: request.session_timeout_ms,
        owned: by_topic(request.owned),
    }
}

fn membership(answer: HeartbeatResponse) -> proto::GroupHeartbeatResponse {
    proto::GroupHeartbeatResponse {
        member_id: answer.member_id,
        generation: answer.generation,
        assigned: topic_partitions(answer.assigned),
        heartbeat_interval_ms: u32::try_from(answer.interval.as_millis()).unwrap_or(u32::MAX),
    }
}

fn committed(offset: proto::GroupOffset) -> CommittedOffset {
    let proto::GroupOffset { topic, partition, offset, metadata } = offset;
    CommittedOffset { topic, partition, offset, metadata }
}

fn offset(offset: CommittedOffset) -> proto::GroupOffset {
    let CommittedOffset { topic, partition, offset, metadata } = offset;
    proto::GroupOffset { topic, partition, offset, metadata }
}

fn description(group: GroupDescription) -> proto::DescribeGroupResponse {
    let member = |member: MemberDescription| proto::GroupMember {
        member_id: member.member_id,
        client_name: member.client_name,
        topics: member.topics,
        assigned: topic_partitions(member.assigned),
    };
    let lag = |lag: PartitionLag| proto::GroupLag {
        topic: lag.topic,
        partition: lag.partition,
        offset: lag.offset,
        end: lag.end,
        lag_records: lag.lag_records,
        lag_ms: lag.lag_ms,
        member_id: lag.member_id,
    };
    proto::DescribeGroupResponse {
        group: group.group,
        state: group.state.as_str().to_owned(),
        generation: group.generation,
        coordinator: group.coordinator.to_string(),
        members: group.members.into_iter().map(member).collect(),
        partitions: group.partitions.into_iter().map(lag).collect(),
    }
}

fn reset(request: proto::ResetOffsetsRequest) -> Result<Reset, ApiError> {
    use proto::reset_offsets_request::To;
    let to = match request.to {
        Some(To::Offset(offset)) => ResetTo::Offset(offset),
        Some(To::TimestampMs(time)) => ResetTo::Timestamp(time),
        Some(To::Earliest(true)) => ResetTo::Earliest,
        Some(To::Latest(true)) => ResetTo::Latest,
        Some(To::Earliest(false) | To::Latest(false)) => {
            return Err(ApiError::invalid("to", "false", "must be true when earliest or latest is given"));
        }
        None => {
            return Err(ApiError::invalid("to", "absent", "must be one of offset, timestamp_ms, earliest and latest"));
        }
    };
    let proto::ResetOffsetsRequest { group, topic, partitions, dry_run, .. } = request;
    Ok(Reset { group, topic, partitions, to, dry_run })
}
