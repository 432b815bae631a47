//! The calls of `chronicle.v1.Cluster`: nodes, partition metadata and operations.
//!
//! Methods of [`Client`], each with retries. Any node takes them and forwards what it cannot do itself. Stands on `client.rs`.

use std::time::Duration;

use chronicle_proto::v1;
use chronicle_proto::v1::cluster_client::ClusterClient;
use tonic::transport::Channel;

use crate::client::Client;
use crate::error::{ClientError, ErrorKind};
use crate::resolver::Target;
use crate::retry::Repeat;

impl Client {
    /// The nodes of the cluster.
    ///
    /// # Errors
    /// When no node answers within the deadline.
    pub async fn get_servers(&self) -> Result<v1::GetServersResponse, ClientError> {
        self.connection()
            .call(Target::Any, Repeat::Always, false, Duration::ZERO, |channel| {
                let mut cluster = self.cluster(channel);
                async move { cluster.get_servers(v1::GetServersRequest {}).await }
            })
            .await
    }

    /// Leaders and replicas of the partitions of these topics; of all topics when the list is empty. The client makes this call by
    /// itself to find leaders.
    ///
    /// # Errors
    /// When no node answers within the deadline. Unknown topics are no error; the response lists them in `unknown`.
    pub async fn get_metadata(&self, topics: &[&str]) -> Result<v1::GetMetadataResponse, ClientError> {
        let request = v1::GetMetadataRequest { topics: topics.iter().map(|&topic| topic.to_owned()).collect() };
        self.connection()
            .call(Target::Any, Repeat::Always, false, Duration::ZERO, |channel| {
                let (mut cluster, request) = (self.cluster(channel), request.clone());
                async move { cluster.get_metadata(request).await }
            })
            .await
    }

    /// Health of the cluster: controller group, replicas that are behind, operations.
    ///
    /// # Errors
    /// When no node answers within the deadline.
    pub async fn cluster_status(&self) -> Result<v1::GetStatusResponse, ClientError> {
        self.connection()
            .call(Target::Any, Repeat::Always, false, Duration::ZERO, |channel| {
                let mut cluster = self.cluster(channel);
                async move { cluster.get_status(v1::GetStatusRequest {}).await }
            })
            .await
    }

    /// Starts to move every replica off a node (UUID or unique name) and to remove it for good.
    ///
    /// # Errors
    /// Refused when the remaining nodes cannot satisfy the topics' replication factors; `OUTCOME_UNKNOWN` when it may have started.
    pub async fn decommission(&self, node: &str) -> Result<v1::Operation, ClientError> {
        let request = v1::NodeRequest { node: node.to_owned() };
        let answer = self.connection().call(Target::Any, Repeat::NotAccepted, true, Duration::ZERO, |channel| {
            let (mut cluster, request) = (self.cluster(channel), request.clone());
            async move { cluster.decommission(request).await }
        });
        operation(answer.await?)
    }

    /// Transfers all leadership away from a node (UUID or unique name), and keeps it from leading until it restarts or is
    /// undrained.
    ///
    /// # Errors
    /// When there is no such node, or no node answers within the deadline.
    pub async fn drain(&self, node: &str) -> Result<v1::Operation, ClientError> {
        let request = v1::NodeRequest { node: node.to_owned() };
        // A drain is idempotent, and so is its opposite.
        let answer = self.connection().call(Target::Any, Repeat::Always, true, Duration::ZERO, |channel| {
            let (mut cluster, request) = (self.cluster(channel), request.clone());
            async move { cluster.drain(request).await }
        });
        operation(answer.await?)
    }

    /// Ends a drain.
    ///
    /// # Errors
    /// As [`Self::drain`].
    pub async fn undrain(&self, node: &str) -> Result<v1::Operation, ClientError> {
        let request = v1::NodeRequest { node: node.to_owned() };
        let answer = self.connection().call(Target::Any, Repeat::Always, true, Duration::ZERO, |channel| {
            let (mut cluster, request) = (self.cluster(channel), request.clone());
            async move { cluster.undrain(request).await }
        });
        operation(answer.await?)
    }

    /// Cancels a running operation. Replicas that it has moved stay where they are.
    ///
    /// # Errors
    /// When there is no such operation; `OUTCOME_UNKNOWN` when it may have been cancelled.
    pub async fn cancel_operation(&self, id: u64) -> Result<v1::Operation, ClientError> {
        let answer = self.connection().call(Target::Any, Repeat::NotAccepted, true, Duration::ZERO, |channel| {
            let mut cluster = self.cluster(channel);
            async move { cluster.cancel_operation(v1::CancelOperationRequest { id }).await }
        });
        operation(answer.await?)
    }

    /// Transfers the leadership of one partition, or of the controller group (an empty topic in the request), to another replica.
    ///
    /// # Errors
    /// When the replica cannot take over; `OUTCOME_UNKNOWN` when it may have taken over.
    pub async fn transfer_leadership(
        &self,
        request: v1::TransferLeadershipRequest,
    ) -> Result<v1::TransferLeadershipResponse, ClientError> {
        // A transfer to a named node is idempotent. Without a name, a repeated request would move the leadership again.
        let repeat = if request.to.is_empty() { Repeat::NotAccepted } else { Repeat::Always };
        self.connection()
            .call(Target::Any, repeat, true, Duration::ZERO, |channel| {
                let (mut cluster, request) = (self.cluster(channel), request.clone());
                async move { cluster.transfer_leadership(request).await }
            })
            .await
    }

    /// Declares the replica of one node to be the truth of a partition that cannot recover by itself. Acknowledged records that it does
    /// not have are lost. Returns the replicas as they were before.
    ///
    /// # Errors
    /// When the partition has a leader, or the node cannot be the source.
    pub async fn recover(&self, request: v1::RecoverRequest) -> Result<v1::RecoverResponse, ClientError> {
        self.connection()
            .call(Target::Any, Repeat::NotAccepted, true, Duration::ZERO, |channel| {
                let (mut cluster, request) = (self.cluster(channel), request.clone());
                async move { cluster.recover(request).await }
            })
            .await
    }

    /// Compares the replicas of a topic's partitions (empty: of all topics) by the hashes of their entries, read from disk.
    /// Returns a stream with one response per partition.
    ///
    /// # Errors
    /// When the stream cannot be opened within the deadline. Errors of the open stream are gRPC statuses, which convert into
    /// [`ClientError`].
    pub async fn verify(&self, topic: &str) -> Result<tonic::Streaming<v1::VerifyResponse>, ClientError> {
        self.connection()
            .call(Target::Any, Repeat::Always, false, Duration::ZERO, |channel| {
                let (mut cluster, request) = (self.cluster(channel), v1::VerifyRequest { topic: topic.to_owned() });
                async move { cluster.verify(request).await }
            })
            .await
    }

    fn cluster(&self, channel: Channel) -> ClusterClient<Channel> {
        ClusterClient::new(channel).max_decoding_message_size(self.connection().config().answer_bytes_max)
    }
}

fn operation(answer: v1::OperationResponse) -> Result<v1::Operation, ClientError> {
    let missing = || ClientError::new(ErrorKind::Fatal, "INTERNAL", "the response has no operation");
    answer.operation.ok_or_else(missing)
}
