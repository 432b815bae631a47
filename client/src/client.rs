//! The calls of `chronicle.v1`, each with retries inside its deadline.

use std::sync::Arc;
use std::time::Duration;

use chronicle_proto::v1;
use chronicle_proto::v1::admin_client::AdminClient;
use chronicle_proto::v1::cluster_client::ClusterClient;
use chronicle_proto::v1::groups_client::GroupsClient;
use chronicle_proto::v1::log_client::LogClient;
use tonic::transport::Channel;

use crate::config::{ClientConfig, RetryConfig};
use crate::consumer::{Consumer, ConsumerConfig};
use crate::error::ClientError;
use crate::producer::{Producer, ProducerConfig};
use crate::record::Partition;
use crate::resolver::Resolver;
use crate::retry::{Repeat, with_retries};

/// A connection to a Chronicle cluster. Cheap to clone; clones share connections.
#[derive(Clone)]
pub struct Client {
    config: Arc<ClientConfig>,
    resolver: Resolver,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("server", &self.config.server).finish_non_exhaustive()
    }
}

impl Client {
    /// A client of this server (`"HOST:PORT"` or a [`ClientConfig`]). Connects when it is first used, and again when the
    /// connection breaks.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` when the address is not `HOST:PORT`.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn connect(config: impl Into<ClientConfig>) -> Result<Self, ClientError> {
        let config = config.into();
        Ok(Self { resolver: Resolver::new(&config)?, config: Arc::new(config) })
    }

    /// The `HOST:PORT` that this client was given.
    pub fn server(&self) -> &str {
        &self.config.server
    }

    /// A producer of one partition. At most one producer should write a partition when its order matters.
    pub fn producer(&self, partition: Partition, config: ProducerConfig) -> Producer {
        Producer::start(self.clone(), partition, config)
    }

    /// The records of a partition from a position on.
    pub fn consumer(&self, partition: Partition, config: ConsumerConfig) -> Consumer {
        Consumer::new(self.clone(), partition, config)
    }

    /// Appends the records of one request, all or none, and answers when they are durable. An append whose outcome is
    /// open is repeated only when `request.producer` is set.
    ///
    /// # Errors
    /// As docs/errors.md; `OUTCOME_UNKNOWN` when the append may or may not have happened.
    pub async fn produce(&self, request: v1::ProduceRequest) -> Result<v1::ProduceResponse, ClientError> {
        let repeat = if request.producer.is_some() { Repeat::Always } else { Repeat::NotAccepted };
        self.call(repeat, true, Duration::ZERO, || {
            let (mut log, request) = (self.log(), request.clone());
            async move { log.produce(request).await }
        })
        .await
    }

    /// Reads one batch of records, waiting up to `request.max_wait_ms` for some to arrive.
    ///
    /// # Errors
    /// As docs/errors.md; `OFFSET_OUT_OF_RANGE` carries `earliest` and `next`.
    pub async fn consume(&self, request: v1::ConsumeRequest) -> Result<v1::ConsumeResponse, ClientError> {
        let wait = Duration::from_millis(request.max_wait_ms.into());
        self.call(Repeat::Always, false, wait, || {
            let (mut log, request) = (self.log(), request.clone());
            async move { log.consume(request).await }
        })
        .await
    }

    /// Reads answers as they come, without reconnecting; [`Client::consumer`] reconnects.
    ///
    /// # Errors
    /// When the stream cannot be opened within the deadline; errors of the open stream come as gRPC statuses, which
    /// convert into [`ClientError`].
    pub async fn consume_stream(
        &self,
        request: v1::ConsumeStreamRequest,
    ) -> Result<tonic::Streaming<v1::ConsumeResponse>, ClientError> {
        self.call(Repeat::Always, false, Duration::ZERO, || {
            let (mut log, request) = (self.log(), request.clone());
            async move { log.consume_stream(request).await }
        })
        .await
    }

    /// Hands out a producer id for idempotent appends.
    ///
    /// # Errors
    /// When no node answers within the deadline.
    pub async fn init_producer(&self) -> Result<v1::InitProducerResponse, ClientError> {
        self.call(Repeat::Always, false, Duration::ZERO, || {
            let mut log = self.log();
            async move { log.init_producer(v1::InitProducerRequest {}).await }
        })
        .await
    }

    /// Offsets of a partition: earliest, next, and the first at or after a time (milliseconds since the Unix epoch).
    ///
    /// # Errors
    /// `UNKNOWN_TOPIC`, `UNKNOWN_PARTITION`, or no answer within the deadline.
    pub async fn list_offsets(
        &self,
        partition: &Partition,
        timestamp_ms: Option<i64>,
    ) -> Result<v1::ListOffsetsResponse, ClientError> {
        let request = v1::ListOffsetsRequest { partition: Some(partition.into()), timestamp_ms };
        self.call(Repeat::Always, false, Duration::ZERO, || {
            let (mut log, request) = (self.log(), request.clone());
            async move { log.list_offsets(request).await }
        })
        .await
    }

    /// Creates a topic.
    ///
    /// # Errors
    /// `TOPIC_EXISTS` unless `if_not_exists`; `INVALID_REQUEST`.
    pub async fn create_topic(&self, request: v1::CreateTopicRequest) -> Result<v1::CreateTopicResponse, ClientError> {
        let repeat = if request.if_not_exists { Repeat::Always } else { Repeat::NotAccepted };
        self.call(repeat, true, Duration::ZERO, || {
            let (mut admin, request) = (self.admin(), request.clone());
            async move { admin.create_topic(request).await }
        })
        .await
    }

    /// All topics, by name.
    ///
    /// # Errors
    /// When no node answers within the deadline.
    pub async fn list_topics(&self) -> Result<Vec<v1::Topic>, ClientError> {
        let answer = self
            .call(Repeat::Always, false, Duration::ZERO, || {
                let mut admin = self.admin();
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
        self.call(Repeat::Always, false, Duration::ZERO, || {
            let (mut admin, request) = (self.admin(), v1::DescribeTopicRequest { name: name.to_owned() });
            async move { admin.describe_topic(request).await }
        })
        .await
    }

    /// Changes settings of a topic or grows its partition count.
    ///
    /// # Errors
    /// `UNKNOWN_TOPIC`, `INVALID_REQUEST`.
    pub async fn alter_topic(&self, request: v1::AlterTopicRequest) -> Result<v1::AlterTopicResponse, ClientError> {
        // Absolute values: the same done once or twice.
        self.call(Repeat::Always, true, Duration::ZERO, || {
            let (mut admin, request) = (self.admin(), request.clone());
            async move { admin.alter_topic(request).await }
        })
        .await
    }

    /// Deletes a topic and its data.
    ///
    /// # Errors
    /// `UNKNOWN_TOPIC`.
    pub async fn delete_topic(&self, name: &str) -> Result<(), ClientError> {
        self.call(Repeat::NotAccepted, true, Duration::ZERO, || {
            let (mut admin, request) = (self.admin(), v1::DeleteTopicRequest { name: name.to_owned() });
            async move { admin.delete_topic(request).await }
        })
        .await
        .map(|_| ())
    }

    /// The nodes of the cluster.
    ///
    /// # Errors
    /// When no node answers within the deadline.
    pub async fn get_servers(&self) -> Result<v1::GetServersResponse, ClientError> {
        self.call(Repeat::Always, false, Duration::ZERO, || {
            let mut cluster = ClusterClient::new(self.resolver.any());
            async move { cluster.get_servers(v1::GetServersRequest {}).await }
        })
        .await
    }

    pub(crate) fn retry(&self) -> RetryConfig {
        self.config.retry
    }

    pub(crate) fn request_timeout(&self) -> Duration {
        self.config.request_timeout
    }

    pub(crate) fn log(&self) -> LogClient<Channel> {
        // What a request may weigh is the node's to say: no limit of our own before it.
        LogClient::new(self.resolver.any())
            .max_decoding_message_size(self.config.answer_bytes_max)
            .max_encoding_message_size(usize::MAX)
    }

    pub(crate) fn groups(&self) -> GroupsClient<Channel> {
        GroupsClient::new(self.resolver.any()).max_decoding_message_size(self.config.answer_bytes_max)
    }

    fn admin(&self) -> AdminClient<Channel> {
        AdminClient::new(self.resolver.any()).max_decoding_message_size(self.config.answer_bytes_max)
    }

    pub(crate) async fn call<T, F>(
        &self,
        repeat: Repeat,
        mutates: bool,
        wait: Duration,
        mut attempt: impl FnMut() -> F,
    ) -> Result<T, ClientError>
    where
        F: Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    {
        let deadline = self.config.request_timeout + wait;
        let attempt = || {
            let answer = attempt();
            async move { answer.await.map(tonic::Response::into_inner) }
        };
        with_retries(self.config.retry, deadline, repeat, mutates, attempt).await
    }
}
