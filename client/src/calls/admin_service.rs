//! The calls of `chronicle.v1.Admin`: topics.
//!
//! Methods of [`Client`], each with retries. Stands on `client.rs`.

use std::time::Duration;

use chronicle_proto::v1;
use chronicle_proto::v1::admin_client::AdminClient;
use tonic::transport::Channel;

use crate::client::Client;
use crate::error::ClientError;
use crate::resolver::Target;
use crate::retry::Repeat;

impl Client {
    /// Creates a topic.
    ///
    /// # Errors
    /// `TOPIC_EXISTS` unless `if_not_exists`; `INVALID_REQUEST`.
    pub async fn create_topic(&self, request: v1::CreateTopicRequest) -> Result<v1::CreateTopicResponse, ClientError> {
        let repeat = if request.if_not_exists { Repeat::Always } else { Repeat::NotAccepted };
        self.connection()
            .call(Target::Any, repeat, true, Duration::ZERO, |channel| {
                let (mut admin, request) = (self.admin(channel), request.clone());
                async move { admin.create_topic(request).await }
            })
            .await
    }

    /// All topics, ordered by name.
    ///
    /// # Errors
    /// When no node answers within the deadline.
    pub async fn list_topics(&self) -> Result<Vec<v1::Topic>, ClientError> {
        let answer = self
            .connection()
            .call(Target::Any, Repeat::Always, false, Duration::ZERO, |channel| {
                let mut admin = self.admin(channel);
                async move { admin.list_topics(v1::ListTopicsRequest {}).await }
            })
            .await?;
        Ok(answer.topics)
    }

    /// One topic with its partitions.
    ///
    /// # Errors
    /// `UNKNOWN_TOPIC`.
    pub async fn describe_topic(&self, name: &str) -> Result<v1::DescribeTopicResponse, ClientError> {
        self.connection()
            .call(Target::Any, Repeat::Always, false, Duration::ZERO, |channel| {
                let (mut admin, request) = (self.admin(channel), v1::DescribeTopicRequest { name: name.to_owned() });
                async move { admin.describe_topic(request).await }
            })
            .await
    }

    /// Changes settings of a topic or grows its partition count.
    ///
    /// # Errors
    /// `UNKNOWN_TOPIC`, `INVALID_REQUEST`.
    pub async fn alter_topic(&self, request: v1::AlterTopicRequest) -> Result<v1::AlterTopicResponse, ClientError> {
        // The request holds absolute values, so it is idempotent.
        self.connection()
            .call(Target::Any, Repeat::Always, true, Duration::ZERO, |channel| {
                let (mut admin, request) = (self.admin(channel), request.clone());
                async move { admin.alter_topic(request).await }
            })
            .await
    }

    /// Deletes a topic and its data.
    ///
    /// # Errors
    /// `UNKNOWN_TOPIC`.
    pub async fn delete_topic(&self, name: &str) -> Result<(), ClientError> {
        self.connection()
            .call(Target::Any, Repeat::NotAccepted, true, Duration::ZERO, |channel| {
                let (mut admin, request) = (self.admin(channel), v1::DeleteTopicRequest { name: name.to_owned() });
                async move { admin.delete_topic(request).await }
            })
            .await
            .map(|_| ())
    }

    fn admin(&self, channel: Channel) -> AdminClient<Channel> {
        AdminClient::new(channel).max_decoding_message_size(self.connection().config().answer_bytes_max)
    }
}
