//! Calls to the coordinator of a consumer group.
//!
//! Any node takes such a call; a node that is not the coordinator redirects it, and the redirect is followed. Stands on
//! `connection.rs`. It keeps no state of a member; `member.rs` does.

use std::time::Duration;

use chronicle_proto::v1;
use chronicle_proto::v1::groups_client::GroupsClient;
use tonic::transport::Channel;

use crate::connection::Connection;
use crate::error::ClientError;
use crate::resolver::Target;
use crate::retry::Repeat;

/// The way to the coordinators of groups.
pub(crate) struct Coordinator {
    connection: Connection,
}

impl Coordinator {
    pub(crate) fn new(connection: Connection) -> Self {
        Self { connection }
    }

    /// Joins a group or renews the membership, and returns the assignment.
    pub(super) async fn heartbeat(
        &self,
        request: &v1::GroupHeartbeatRequest,
    ) -> Result<v1::GroupHeartbeatResponse, ClientError> {
        // When a repeated request joins twice, the extra member is dropped at the end of its session.
        self.call(Repeat::Always, false, |mut groups| {
            let request = request.clone();
            async move { groups.heartbeat(request).await }
        })
        .await
    }

    /// Leaves a group.
    pub(super) async fn leave(&self, group: &str, member_id: &str) -> Result<(), ClientError> {
        let answer = self.call(Repeat::Always, false, |mut groups| {
            let request = v1::LeaveGroupRequest { group: group.to_owned(), member_id: member_id.to_owned() };
            async move { groups.leave(request).await }
        });
        answer.await.map(drop)
    }

    /// Committed offsets: of the given partitions, or of all when the list is empty.
    pub(crate) async fn fetch_offsets(
        &self,
        request: &v1::FetchOffsetsRequest,
    ) -> Result<Vec<v1::GroupOffset>, ClientError> {
        let answer = self.call(Repeat::Always, false, |mut groups| {
            let request = request.clone();
            async move { groups.fetch_offsets(request).await }
        });
        Ok(answer.await?.offsets)
    }

    /// Commits offsets.
    pub(crate) async fn commit_offsets(&self, request: &v1::CommitOffsetsRequest) -> Result<(), ClientError> {
        // The request holds absolute values and is fenced, so it is idempotent.
        let answer = self.call(Repeat::Always, true, |mut groups| {
            let request = request.clone();
            async move { groups.commit_offsets(request).await }
        });
        answer.await.map(drop)
    }

    /// Makes a call. `mutates`: without an answer its outcome is unknown.
    pub(crate) async fn call<T, F>(
        &self,
        repeat: Repeat,
        mutates: bool,
        mut attempt: impl FnMut(GroupsClient<Channel>) -> F,
    ) -> Result<T, ClientError>
    where
        F: Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    {
        let answer_bytes_max = self.connection.config().answer_bytes_max;
        self.connection
            .call(Target::Any, repeat, mutates, Duration::ZERO, |channel| {
                attempt(GroupsClient::new(channel).max_decoding_message_size(answer_bytes_max))
            })
            .await
    }
}
