//! The calls of `chronicle.v1.Log`: appends, reads and offsets.
//!
//! Methods of [`Client`], each one request with retries. Stands on `client.rs`; the streaming [`Client::producer`] and
//! [`Client::consumer`] do not go through here.

use std::time::Duration;

use chronicle_proto::v1;

use crate::client::Client;
use crate::error::ClientError;
use crate::record::Partition;
use crate::resolver::Target;
use crate::retry::Repeat;

impl Client {
    /// Appends the records of one request, all or none, and returns when they are durable. An append whose outcome is unknown is
    /// repeated only when `request.producer` is set.
    ///
    /// # Errors
    /// See docs/errors.md; `OUTCOME_UNKNOWN` when the append may or may not have happened.
    pub async fn produce(&self, request: v1::ProduceRequest) -> Result<v1::ProduceResponse, ClientError> {
        let repeat = if request.producer.is_some() { Repeat::Always } else { Repeat::NotAccepted };
        let leader = Target::Leader(partition_of(&request.partition));
        self.connection()
            .call(leader, repeat, true, Duration::ZERO, |channel| {
                let (mut log, request) = (self.connection().log(channel), request.clone());
                async move { log.produce(request).await }
            })
            .await
    }

    /// Reads one batch of records, waiting up to `request.max_wait_ms` for some to arrive.
    ///
    /// # Errors
    /// See docs/errors.md; `OFFSET_OUT_OF_RANGE` carries `earliest` and `next`.
    pub async fn consume(&self, request: v1::ConsumeRequest) -> Result<v1::ConsumeResponse, ClientError> {
        let target = reads_from(&request.partition, &request.from);
        let answer = self.consume_from(target, &request).await;
        if let Err(error) = &answer
            && let Some(asked) = request.from.and_then(|from| from.at)
            && let v1::position::At::Offset(asked) = asked
            && self.connection().is_in_range_at_leader(&partition_of(&request.partition), asked, error).await?
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
        self.connection()
            .call(target, Repeat::Always, false, wait, |channel| {
                let (mut log, request) = (self.connection().log(channel), request.clone());
                async move { log.consume(request).await }
            })
            .await
    }

    /// Opens a stream of records, which does not reconnect; [`Client::consumer`] reconnects.
    ///
    /// # Errors
    /// When the stream cannot be opened within the deadline. Errors of the open stream are gRPC statuses, which convert into
    /// [`ClientError`].
    pub async fn consume_stream(
        &self,
        request: v1::ConsumeStreamRequest,
    ) -> Result<tonic::Streaming<v1::ConsumeResponse>, ClientError> {
        let target = reads_from(&request.partition, &request.from);
        self.connection()
            .call(target, Repeat::Always, false, Duration::ZERO, |channel| {
                let (mut log, request) = (self.connection().log(channel), request.clone());
                async move { log.consume_stream(request).await }
            })
            .await
    }

    /// Allocates a producer id for idempotent appends.
    ///
    /// # Errors
    /// When no node answers within the deadline.
    pub async fn init_producer(&self) -> Result<v1::InitProducerResponse, ClientError> {
        let connection = self.connection();
        connection.init_producer(connection.config().request_timeout).await
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
        self.connection().list_offsets(partition, timestamp_ms).await
    }
}

fn partition_of(partition: &Option<v1::Partition>) -> Partition {
    partition.as_ref().map_or_else(|| Partition::new("", 0), Partition::from)
}

/// Only the leader knows the end of the log and the first record after a time. An offset means the same on every replica.
fn reads_from(partition: &Option<v1::Partition>, from: &Option<v1::Position>) -> Target {
    use v1::position::At;
    let partition = partition_of(partition);
    match from.as_ref().and_then(|from| from.at.as_ref()) {
        Some(At::Latest(_) | At::TimestampMs(_)) => Target::Leader(partition),
        _ => Target::Reader(partition),
    }
}
