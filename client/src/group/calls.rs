//! The calls of `chronicle.v1.Groups`.

use std::time::Duration;

use chronicle_proto::v1;
use chronicle_proto::v1::groups_client::GroupsClient;
use tonic::transport::Channel;

use crate::client::Client;
use crate::error::ClientError;
use crate::resolver::Target;
use crate::retry::Repeat;

impl Client {
    /// The consumer groups that the answering node knows of, by name.
    ///
    /// # Errors
    /// When no node answers within the deadline.
    pub async fn list_groups(&self) -> Result<Vec<v1::GroupSummary>, ClientError> {
        let ask = |mut groups: GroupsClient<Channel>| async move { groups.list_groups(v1::ListGroupsRequest {}).await };
        Ok(self.ask_groups(Repeat::Always, false, ask).await?.groups)
    }

    /// Members, assignment, offsets and lag of a group.
    ///
    /// # Errors
    /// `UNKNOWN_GROUP`.
    pub async fn describe_group(&self, group: &str) -> Result<v1::DescribeGroupResponse, ClientError> {
        self.ask_groups(Repeat::Always, false, |mut groups| {
            let request = v1::DescribeGroupRequest { group: group.to_owned() };
            async move { groups.describe_group(request).await }
        })
        .await
    }

    /// Remembered offsets of a group: of the partitions named, or of all when none is.
    ///
    /// # Errors
    /// When no node answers within the deadline. An unknown group has no offsets.
    pub async fn fetch_group_offsets(
        &self,
        request: v1::FetchOffsetsRequest,
    ) -> Result<Vec<v1::GroupOffset>, ClientError> {
        let answer = self.ask_groups(Repeat::Always, false, |mut groups| {
            let request = request.clone();
            async move { groups.fetch_offsets(request).await }
        });
        Ok(answer.await?.offsets)
    }

    /// Remembers offsets of a group. [`Client::group_consumer`] commits what it reads by itself; this is for offsets set from
    /// outside (without a member id), and for consumers of another make.
    ///
    /// # Errors
    /// `UNKNOWN_MEMBER`, `STALE_GENERATION`, `GROUP_NOT_EMPTY` without a member id; `OUTCOME_UNKNOWN`, when they may or may not
    /// be remembered.
    pub async fn commit_group_offsets(&self, request: v1::CommitOffsetsRequest) -> Result<(), ClientError> {
        // Absolute values, fenced: the same done once or twice.
        let answer = self.ask_groups(Repeat::Always, true, |mut groups| {
            let request = request.clone();
            async move { groups.commit_offsets(request).await }
        });
        answer.await.map(drop)
    }

    /// Sets the offsets of a group that has no members; answers what was, or with `dry_run` would be, set.
    ///
    /// # Errors
    /// `GROUP_NOT_EMPTY`, `UNKNOWN_TOPIC`, `UNKNOWN_PARTITION`, `INVALID_REQUEST`.
    pub async fn reset_group_offsets(
        &self,
        request: v1::ResetOffsetsRequest,
    ) -> Result<Vec<v1::GroupOffset>, ClientError> {
        let answer = self.ask_groups(Repeat::Always, !request.dry_run, |mut groups| {
            let request = request.clone();
            async move { groups.reset_offsets(request).await }
        });
        Ok(answer.await?.offsets)
    }

    /// Forgets a group that has no members.
    ///
    /// # Errors
    /// `UNKNOWN_GROUP`, `GROUP_NOT_EMPTY`.
    pub async fn delete_group(&self, group: &str) -> Result<(), ClientError> {
        let answer = self.ask_groups(Repeat::NotAccepted, true, |mut groups| {
            let request = v1::DeleteGroupRequest { group: group.to_owned() };
            async move { groups.delete_group(request).await }
        });
        answer.await.map(drop)
    }

    pub(crate) async fn group_heartbeat(
        &self,
        request: &v1::GroupHeartbeatRequest,
    ) -> Result<v1::GroupHeartbeatResponse, ClientError> {
        // A member that joined twice is dropped when its session ends.
        self.ask_groups(Repeat::Always, false, |mut groups| {
            let request = request.clone();
            async move { groups.heartbeat(request).await }
        })
        .await
    }

    pub(crate) async fn leave_group(&self, group: &str, member_id: &str) -> Result<(), ClientError> {
        let answer = self.ask_groups(Repeat::Always, false, |mut groups| {
            let request = v1::LeaveGroupRequest { group: group.to_owned(), member_id: member_id.to_owned() };
            async move { groups.leave(request).await }
        });
        answer.await.map(drop)
    }

    /// A call to the coordinator of a group: any node says who that is.
    async fn ask_groups<T, F>(
        &self,
        repeat: Repeat,
        mutates: bool,
        mut attempt: impl FnMut(GroupsClient<Channel>) -> F,
    ) -> Result<T, ClientError>
    where
        F: Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    {
        self.call(Target::Any, repeat, mutates, Duration::ZERO, |channel| attempt(self.groups(channel))).await
    }
}
