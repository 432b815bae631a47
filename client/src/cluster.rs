//! The calls about nodes and where partitions are. Any node takes them; what one node cannot do itself, it passes on.

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
        self.call(Target::Any, Repeat::Always, false, Duration::ZERO, |channel| {
            let mut cluster = self.cluster(channel);
            async move { cluster.get_servers(v1::GetServersRequest {}).await }
        })
        .await
    }

    /// Where the partitions of these topics are; of all topics when none is named. The client asks this by itself to find
    /// leaders.
    ///
    /// # Errors
    /// When no node answers within the deadline. Unknown topics are no error: see `unknown` of the answer.
    pub async fn get_metadata(&self, topics: &[&str]) -> Result<v1::GetMetadataResponse, ClientError> {
        let request = v1::GetMetadataRequest { topics: topics.iter().map(|&topic| topic.to_owned()).collect() };
        self.call(Target::Any, Repeat::Always, false, Duration::ZERO, |channel| {
            let (mut cluster, request) = (self.cluster(channel), request.clone());
            async move { cluster.get_metadata(request).await }
        })
        .await
    }

    /// Health at a glance: controller group, replicas that are behind, operations.
    ///
    /// # Errors
    /// When no node answers within the deadline.
    pub async fn cluster_status(&self) -> Result<v1::GetStatusResponse, ClientError> {
        self.call(Target::Any, Repeat::Always, false, Duration::ZERO, |channel| {
            let mut cluster = self.cluster(channel);
            async move { cluster.get_status(v1::GetStatusRequest {}).await }
        })
        .await
    }

    /// Begins to move every replica off a node (UUID or unique name) and to remove it for good.
    ///
    /// # Errors
    /// Refused when the remaining nodes cannot hold what topics ask for; `OUTCOME_UNKNOWN` when it may have begun.
    pub async fn decommission(&self, node: &str) -> Result<v1::Operation, ClientError> {
        let request = v1::NodeRequest { node: node.to_owned() };
        let answer = self.call(Target::Any, Repeat::NotAccepted, true, Duration::ZERO, |channel| {
            let (mut cluster, request) = (self.cluster(channel), request.clone());
            async move { cluster.decommission(request).await }
        });
        operation(answer.await?)
    }

    /// Hands over everything that a node (UUID or unique name) leads, and keeps it from leading until it restarts or is
    /// undrained.
    ///
    /// # Errors
    /// When there is no such node, or no node answers within the deadline.
    pub async fn drain(&self, node: &str) -> Result<v1::Operation, ClientError> {
        let request = v1::NodeRequest { node: node.to_owned() };
        // The same done once or twice, and so is its opposite.
        let answer = self.call(Target::Any, Repeat::Always, true, Duration::ZERO, |channel| {
            let (mut cluster, request) = (self.cluster(channel), request.clone());
            async move { cluster.drain(request).await }
        });
        operation(answer.await?)
    }

    /// Takes a drain back.
    ///
    /// # Errors
    /// As [`Self::drain`].
    pub async fn undrain(&self, node: &str) -> Result<v1::Operation, ClientError> {
        let request = v1::NodeRequest { node: node.to_owned() };
        let answer = self.call(Target::Any, Repeat::Always, true, Duration::ZERO, |channel| {
            let (mut cluster, request) = (self.cluster(channel), request.clone());
            async move { cluster.undrain(request).await }
        });
        operation(answer.await?)
    }

    /// Stops an operation that is under way; what it has moved stays moved.
    ///
    /// # Errors
    /// When there is no such operation; `OUTCOME_UNKNOWN` when it may have been stopped.
    pub async fn cancel_operation(&self, id: u64) -> Result<v1::Operation, ClientError> {
        let answer = self.call(Target::Any, Repeat::NotAccepted, true, Duration::ZERO, |channel| {
            let mut cluster = self.cluster(channel);
            async move { cluster.cancel_operation(v1::CancelOperationRequest { id }).await }
        });
        operation(answer.await?)
    }

    /// Hands leadership of one partition, or of the controller group (an empty topic in the request), to another replica.
    ///
    /// # Errors
    /// When the replica cannot take over; `OUTCOME_UNKNOWN` when it may have.
    pub async fn transfer_leadership(
        &self,
        request: v1::TransferLeadershipRequest,
    ) -> Result<v1::TransferLeadershipResponse, ClientError> {
        // To a named node it is the same done twice; to the best one it would move again.
        let repeat = if request.to.is_empty() { Repeat::NotAccepted } else { Repeat::Always };
        self.call(Target::Any, repeat, true, Duration::ZERO, |channel| {
            let (mut cluster, request) = (self.cluster(channel), request.clone());
            async move { cluster.transfer_leadership(request).await }
        })
        .await
    }

    /// Compares the replicas of a topic's partitions (empty: of all topics) by the hashes of their entries, read from disk.
    /// One answer per partition, as they are done.
    ///
    /// # Errors
    /// When the stream cannot be opened within the deadline; errors of the open stream come as gRPC statuses, which convert
    /// into [`ClientError`].
    pub async fn verify(&self, topic: &str) -> Result<tonic::Streaming<v1::VerifyResponse>, ClientError> {
        self.call(Target::Any, Repeat::Always, false, Duration::ZERO, |channel| {
            let (mut cluster, request) = (self.cluster(channel), v1::VerifyRequest { topic: topic.to_owned() });
            async move { cluster.verify(request).await }
        })
        .await
    }

    fn cluster(&self, channel: Channel) -> ClusterClient<Channel> {
        ClusterClient::new(channel).max_decoding_message_size(self.config().answer_bytes_max)
    }
}

fn operation(answer: v1::OperationResponse) -> Result<v1::Operation, ClientError> {
    let missing = || ClientError::new(ErrorKind::Fatal, "INTERNAL", "the node answered without the operation");
    answer.operation.ok_or_else(missing)
}
