//! The calls of `chronicle.v1`, each with retries inside its deadline.

use std::sync::Arc;
use std::time::Duration;

use chronicle_proto::v1;
use chronicle_proto::v1::admin_client::AdminClient;
use chronicle_proto::v1::groups_client::GroupsClient;
use chronicle_proto::v1::log_client::LogClient;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;

use crate::attempts::Attempts;
use crate::config::ClientConfig;
use crate::consumer::{Consumer, ConsumerConfig};
use crate::error::ClientError;
use crate::producer::{Producer, ProducerConfig};
use crate::record::Partition;
use crate::resolver::{Resolver, Target};
use crate::retry::{Plan, Repeat, with_retries};
use crate::trace::{self, Interceptor};

/// A connection to a Chronicle cluster. Cheap to clone; clones share connections.
#[derive(Clone)]
pub struct Client {
    config: Arc<ClientConfig>,
    /// The configured addresses as one text.
    servers: Arc<str>,
    resolver: Resolver,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("servers", &self.servers).finish_non_exhaustive()
    }
}

impl Client {
    /// A client of the cluster that these servers belong to (`"HOST:PORT"`, several with commas between them, or a
    /// [`ClientConfig`]). Connects when it is first used, and again when a connection breaks.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` when the address is not `HOST:PORT`.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn connect(config: impl Into<ClientConfig>) -> Result<Self, ClientError> {
        let config = Arc::new(config.into());
        let servers = config.servers.join(",").into();
        Ok(Self { resolver: Resolver::new(config.clone())?, servers, config })
    }

    /// The `HOST:PORT` that this client was given; several with commas between them.
    pub fn server(&self) -> &str {
        &self.servers
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
        let leader = Target::Leader(partition_of(&request.partition));
        self.call(leader, repeat, true, Duration::ZERO, |channel| {
            let (mut log, request) = (self.log(channel), request.clone());
            async move { log.produce(request).await }
        })
        .await
    }

    /// Reads one batch of records, waiting up to `request.max_wait_ms` for some to arrive.
    ///
    /// # Errors
    /// As docs/errors.md; `OFFSET_OUT_OF_RANGE` carries `earliest` and `next`.
    pub async fn consume(&self, request: v1::ConsumeRequest) -> Result<v1::ConsumeResponse, ClientError> {
        let target = reads_from(&request.partition, &request.from);
        let answer = self.consume_from(target, &request).await;
        if let Err(error) = &answer
            && let Some(asked) = request.from.and_then(|from| from.at)
            && let v1::position::At::Offset(asked) = asked
            && self.is_refuted(&partition_of(&request.partition), asked, error).await?
        {
            return self.consume_from(Target::Leader(partition_of(&request.partition)), &request).await;
        }
        answer
    }

    async fn consume_from(
        &self,
        target: Target,
        request: &v1::ConsumeRequest,
    ) -> Result<v1::ConsumeResponse, ClientError> {
        let wait = Duration::from_millis(request.max_wait_ms.into());
        self.call(target, Repeat::Always, false, wait, |channel| {
            let (mut log, request) = (self.log(channel), request.clone());
            async move { log.consume(request).await }
        })
        .await
    }

    /// Whether an offset that a node called out of range is in the range that the leader tells: the node was behind, and not
    /// the leader that it was taken for. That the offset is the very end of the node is nothing to doubt.
    pub(crate) async fn is_refuted(
        &self,
        partition: &Partition,
        asked: i64,
        error: &ClientError,
    ) -> Result<bool, ClientError> {
        if error.reason != "OFFSET_OUT_OF_RANGE" || error.number("next") == Some(asked) {
            return Ok(false);
        }
        let offsets = self.list_offsets(partition, None).await?;
        Ok((offsets.earliest..=offsets.next).contains(&asked))
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
        let target = reads_from(&request.partition, &request.from);
        self.call(target, Repeat::Always, false, Duration::ZERO, |channel| {
            let (mut log, request) = (self.log(channel), request.clone());
            async move { log.consume_stream(request).await }
        })
        .await
    }

    /// Hands out a producer id for idempotent appends.
    ///
    /// # Errors
    /// When no node answers within the deadline.
    pub async fn init_producer(&self) -> Result<v1::InitProducerResponse, ClientError> {
        self.init_producer_within(self.config.request_timeout).await
    }

    /// As [`Client::init_producer`], with another deadline.
    pub(crate) async fn init_producer_within(
        &self,
        deadline: Duration,
    ) -> Result<v1::InitProducerResponse, ClientError> {
        self.call_within(deadline, Target::Any, Repeat::Always, false, Duration::ZERO, |channel| {
            let mut log = self.log(channel);
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
        self.call(Target::Leader(partition.clone()), Repeat::Always, false, Duration::ZERO, |channel| {
            let (mut log, request) = (self.log(channel), request.clone());
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
        self.call(Target::Any, repeat, true, Duration::ZERO, |channel| {
            let (mut admin, request) = (self.admin(channel), request.clone());
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
        self.call(Target::Any, Repeat::Always, false, Duration::ZERO, |channel| {
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
        // Absolute values: the same done once or twice.
        self.call(Target::Any, Repeat::Always, true, Duration::ZERO, |channel| {
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
        self.call(Target::Any, Repeat::NotAccepted, true, Duration::ZERO, |channel| {
            let (mut admin, request) = (self.admin(channel), v1::DeleteTopicRequest { name: name.to_owned() });
            async move { admin.delete_topic(request).await }
        })
        .await
        .map(|_| ())
    }

    pub(crate) fn attempts(&self, target: Target) -> Attempts {
        Attempts::new(self.resolver.clone(), target, self.config.retry)
    }

    pub(crate) fn resolver(&self) -> &Resolver {
        &self.resolver
    }

    pub(crate) fn config(&self) -> &ClientConfig {
        &self.config
    }

    /// The channel to one node.
    pub(crate) fn channel_to(&self, address: &str) -> Channel {
        self.resolver.route_to(&address.into()).channel()
    }

    pub(crate) fn log(&self, channel: Channel) -> LogClient<InterceptedService<Channel, Interceptor>> {
        // What a request may weigh is the node's to say: no limit of our own before it.
        LogClient::with_interceptor(channel, trace::with_active_span as Interceptor)
            .max_decoding_message_size(self.config.answer_bytes_max)
            .max_encoding_message_size(usize::MAX)
    }

    pub(crate) fn groups(&self, channel: Channel) -> GroupsClient<Channel> {
        GroupsClient::new(channel).max_decoding_message_size(self.config.answer_bytes_max)
    }

    fn admin(&self, channel: Channel) -> AdminClient<Channel> {
        AdminClient::new(channel).max_decoding_message_size(self.config.answer_bytes_max)
    }

    /// Attempts a call, with retries, at the nodes that can take it. `mutates`: without an answer its outcome is open. `wait`:
    /// what the node may take on purpose before it answers, on top of the request timeout.
    pub(crate) async fn call<T, F>(
        &self,
        target: Target,
        repeat: Repeat,
        mutates: bool,
        wait: Duration,
        attempt: impl FnMut(Channel) -> F,
    ) -> Result<T, ClientError>
    where
        F: Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    {
        let deadline = self.config.request_timeout + wait;
        self.call_within(deadline, target, repeat, mutates, wait, attempt).await
    }

    /// As [`Client::call`], with another deadline.
    async fn call_within<T, F>(
        &self,
        deadline: Duration,
        target: Target,
        repeat: Repeat,
        mutates: bool,
        wait: Duration,
        mut attempt: impl FnMut(Channel) -> F,
    ) -> Result<T, ClientError>
    where
        F: Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    {
        // The leader is judged by who leads, not by how long it takes.
        let is_patient = mutates || matches!(target, Target::Leader(_));
        let plan = Plan {
            target,
            repeat,
            mutates,
            deadline,
            patience: (!is_patient).then(|| self.config.suspect_after + wait),
        };
        with_retries(&self.resolver, self.config.retry, plan, |channel| {
            let answer = attempt(channel);
            async move { answer.await.map(tonic::Response::into_inner) }
        })
        .await
    }
}

fn partition_of(partition: &Option<v1::Partition>) -> Partition {
    partition.as_ref().map_or_else(|| Partition::new("", 0), Partition::from)
}

/// Only the leader knows the end, and which record is the first after a time; an offset is the same on every replica.
fn reads_from(partition: &Option<v1::Partition>, from: &Option<v1::Position>) -> Target {
    use v1::position::At;
    let partition = partition_of(partition);
    match from.as_ref().and_then(|from| from.at.as_ref()) {
        Some(At::Latest(_) | At::TimestampMs(_)) => Target::Leader(partition),
        _ => Target::Reader(partition),
    }
}
