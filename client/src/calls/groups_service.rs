//! The calls of `chronicle.v1.Groups`: offsets and state of consumer groups.
//!
//! Methods of [`Client`], each with retries, sent through the group's [`Coordinator`]. Stands on `client.rs` and
//! `group/coordinator.rs`; joining a group is [`Client::group_consumer`].

use chronicle_proto::v1;

use crate::client::Client;
use crate::error::ClientError;
use crate::group::Coordinator;
use crate::retry::Repeat;

impl Client {
    /// The consumer groups that the answering node knows, ordered by name.
    ///
    /// # Errors
    /// When no node answers within the deadline.
    pub async fn list_groups(&self) -> Result<Vec<v1::GroupSummary>, ClientError> {
        let coordinator = self.coordinator();
        let answer = coordinator.call(Repeat::Always, false, |mut groups| async move {
            groups.list_groups(v1::ListGroupsRequest {}).await
        });
        Ok(answer.await?.groups)
    }

    /// Members, assignment, offsets and lag of a group.
    ///
    /// # Errors
    /// `UNKNOWN_GROUP`.
    pub async fn describe_group(&self, group: &str) -> Result<v1::DescribeGroupResponse, ClientError> {
        self.coordinator()
            .call(Repeat::Always, false, |mut groups| {
                let request = v1::DescribeGroupRequest { group: group.to_owned() };
                async move { groups.describe_group(request).await }
            })
            .await
    }

    /// Committed offsets of a group: of the given partitions, or of all when the list is empty.
    ///
    /// # Errors
    /// When no node answers within the deadline. An unknown group has no offsets.
    pub async fn fetch_group_offsets(
        &self,
        request: v1::FetchOffsetsRequest,
    ) -> Result<Vec<v1::GroupOffset>, ClientError> {
        self.coordinator().fetch_offsets(&request).await
    }

    /// Commits offsets of a group. [`Client::group_consumer`] commits what it reads by itself; this call is for offsets set from
    /// outside (without a member id), and for other implementations of a consumer.
    ///
    /// # Errors
    /// `UNKNOWN_MEMBER`, `STALE_GENERATION`; `GROUP_NOT_EMPTY` without a member id; `OUTCOME_UNKNOWN` when they may or may not be
    /// committed.
    pub async fn commit_group_offsets(&self, request: v1::CommitOffsetsRequest) -> Result<(), ClientError> {
        self.coordinator().commit_offsets(&request).await
    }

    /// Resets the offsets of a group that has no members. Returns the offsets that were set, or with `dry_run` would be set.
    ///
    /// # Errors
    /// `GROUP_NOT_EMPTY`, `UNKNOWN_TOPIC`, `UNKNOWN_PARTITION`, `INVALID_REQUEST`.
    pub async fn reset_group_offsets(
        &self,
        request: v1::ResetOffsetsRequest,
    ) -> Result<Vec<v1::GroupOffset>, ClientError> {
        let coordinator = self.coordinator();
        let answer = coordinator.call(Repeat::Always, !request.dry_run, |mut groups| {
            let request = request.clone();
            async move { groups.reset_offsets(request).await }
        });
        Ok(answer.await?.offsets)
    }

    /// Deletes a group that has no members.
    ///
    /// # Errors
    /// `UNKNOWN_GROUP`, `GROUP_NOT_EMPTY`.
    pub async fn delete_group(&self, group: &str) -> Result<(), ClientError> {
        let coordinator = self.coordinator();
        let answer = coordinator.call(Repeat::NotAccepted, true, |mut groups| {
            let request = v1::DeleteGroupRequest { group: group.to_owned() };
            async move { groups.delete_group(request).await }
        });
        answer.await.map(drop)
    }

    fn coordinator(&self) -> Coordinator {
        Coordinator::new(self.connection().clone())
    }
}
