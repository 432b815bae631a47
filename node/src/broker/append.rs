//! Appends: validates them, queues them at the partition's leader, and waits until they are durable.

use std::sync::Arc;

use bytes::BytesMut;
use chronicle_records::BatchHeader;
use opentelemetry::KeyValue;
use tokio::sync::oneshot;

use super::{Broker, Route, TopicTraffic, request_checks};
use crate::host::now_ms;
use crate::model::{ApiError, Expectation, PartitionError, Produce, Produced, Topic, TopicPartition};
use crate::partition::AppendAnswer;
use crate::telemetry::traces;

/// A queued append that waits for its result. Dropping it does not cancel the append.
pub struct PendingProduce {
    answer: oneshot::Receiver<AppendAnswer>,
    broker: Broker,
    topic: Topic,
    number: i32,
    traffic: Arc<TopicTraffic>,
    bytes: usize,
}

impl PendingProduce {
    /// Waits until the append is durable and committed, or rejected.
    ///
    /// # Errors
    /// As [`Broker::produce`].
    pub async fn wait(self) -> Result<Produced, ApiError> {
        let answer = self.answer.await.unwrap_or_else(|_| {
            Err(PartitionError::unknown(PartitionError::Unavailable("the partition stopped without a response".into())))
        });
        let produced = answer.map_err(|error| self.broker.leader_error(&self.topic, self.number, error))?;
        if !produced.duplicate {
            self.traffic.appended(produced.record_count.max(0) as u64, self.bytes as u64);
        }
        Ok(produced)
    }
}

/// An append that has passed all checks that do not need its partition.
pub(super) struct Admitted {
    pub(super) topic: Topic,
    pub(super) target: TopicPartition,
    pub(super) batch: BytesMut,
    header: BatchHeader,
    pub(super) expectation: Option<Expectation>,
}

impl Broker {
    /// Checks and queues an append; appends to one partition are processed in the order in which this returns.
    /// [`PendingProduce::wait`] returns the result. Waits while the partition's queue is full.
    ///
    /// # Errors
    /// The errors of [`Broker::produce`] that occur before the append is queued.
    pub async fn submit(&self, request: Produce) -> Result<PendingProduce, ApiError> {
        let append = self.admit(request).await?;
        self.queue(append).await
    }

    /// Appends and waits until it is durable.
    ///
    /// # Errors
    /// Not accepted: `Reason::UnknownTopic`, `Reason::UnknownPartition`, `Reason::RecordTooLarge`,
    /// `Reason::CorruptBatch`, `Reason::UnsupportedCompression`, `Reason::InvalidRequest`,
    /// `Reason::VersionConflict`, `Reason::OutOfOrderSequence`, `Reason::ProducerFenced`, `Reason::DiskFull`,
    /// `Reason::DiskFailed`, `Reason::DataDamaged`, `Reason::Unavailable`, `Reason::NotLeader` (with [`Route::Leader`]
    /// only when the leader is unreachable). Unknown: `Reason::OutcomeUnknown`.
    pub async fn produce(&self, request: Produce, route: Route) -> Result<Produced, ApiError> {
        let append = self.admit(request).await?;
        if route == Route::Leader
            && let Err(not_here) = self.inner.replicas.lead(&append.topic, append.target.partition).await
        {
            return self.forward_append(append, not_here).await;
        }
        self.queue(append).await?.wait().await
    }

    /// Allocates a producer id and epoch.
    ///
    /// # Errors
    /// [`Reason::DiskFull`](crate::model::Reason::DiskFull); failures of the controller group.
    pub async fn init_producer(&self) -> Result<(i64, i16), ApiError> {
        self.check_space()?;
        Ok((self.controller()?.producer_id().await?, 0))
    }

    /// Checks an append, independently of the leader of its partition.
    async fn admit(&self, request: Produce) -> Result<Admitted, ApiError> {
        request_checks::not_internal("partition.topic", &request.target.topic)?;
        let topic = self.topic(&request.target).await?;
        if let Some(expectation) = &request.expectation {
            request_checks::expectation(expectation)?;
        }
        let config = self.config();
        let (batch, header) =
            request_checks::batch(request.payload, request.producer, &topic, &config.limits, now_ms())?;
        Ok(Admitted { topic, target: request.target, batch, header, expectation: request.expectation })
    }

    /// Queues a checked append at its partition, which this node must lead.
    async fn queue(&self, append: Admitted) -> Result<PendingProduce, ApiError> {
        traces::describe(|| {
            let TopicPartition { topic, partition } = &append.target;
            vec![
                KeyValue::new("messaging.destination.name", topic.clone()),
                KeyValue::new("messaging.destination.partition.id", partition.to_string()),
                KeyValue::new("messaging.batch.message_count", i64::from(append.header.record_count)),
            ]
        });
        self.check_space()?;
        let partition = self.led_partition(&append.topic, append.target.partition).await?;
        let (traffic, bytes) = (self.inner.traffic.of(&append.topic.name), append.batch.len());
        let answer = partition.submit(append.batch, append.header, append.expectation).await;
        let answer = answer.map_err(|error| self.api_error(error))?;
        let (broker, number) = (self.clone(), append.target.partition);
        Ok(PendingProduce { answer, broker, topic: append.topic, number, traffic, bytes })
    }
}
