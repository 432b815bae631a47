//! Appends: checked, queued at the partition's leader, answered when they are durable.

use std::sync::Arc;

use bytes::BytesMut;
use chronicle_records::BatchHeader;
use opentelemetry::KeyValue;
use tokio::sync::oneshot;

use super::errors::partition_error;
use super::{Broker, Route, TopicTraffic, validate};
use crate::cluster::Cluster;
use crate::host::now_ms;
use crate::model::{ApiError, Expectation, PartitionError, Produce, Produced, Topic, TopicPartition};
use crate::partition::AppendAnswer;
use crate::telemetry::traces;

/// An accepted append that is waiting for its answer. Dropping it does not take the append back.
pub struct PendingProduce {
    answer: oneshot::Receiver<AppendAnswer>,
    cluster: Arc<Cluster>,
    traffic: Arc<TopicTraffic>,
    bytes: usize,
}

impl PendingProduce {
    /// Waits until the append is durable and committed, or refused.
    ///
    /// # Errors
    /// As [`Broker::produce`].
    pub async fn wait(self) -> Result<Produced, ApiError> {
        let answer = self.answer.await.unwrap_or_else(|_| {
            Err(PartitionError::unknown(PartitionError::Unavailable("the partition stopped without an answer".into())))
        });
        let produced = answer.map_err(|error| partition_error(error, &self.cluster.state()))?;
        if !produced.duplicate {
            self.traffic.appended(produced.record_count.max(0) as u64, self.bytes as u64);
        }
        Ok(produced)
    }
}

/// An append that satisfies what can be told without its partition.
pub(super) struct Admitted {
    pub(super) topic: Topic,
    pub(super) target: TopicPartition,
    pub(super) batch: BytesMut,
    header: BatchHeader,
    pub(super) expectation: Option<Expectation>,
}

impl Broker {
    /// Checks and queues an append; appends to one partition are judged in the order in which this returns. The answer
    /// comes from [`PendingProduce::wait`]. Waits while the partition's queue is full.
    ///
    /// # Errors
    /// Everything that [`Broker::produce`] refuses before the append has its place in the queue.
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
    /// only when the leader cannot be reached). Open: `Reason::OutcomeUnknown`.
    pub async fn produce(&self, request: Produce, route: Route) -> Result<Produced, ApiError> {
        let append = self.admit(request).await?;
        if route == Route::Leader
            && let Err(not_here) = self.inner.replicas.lead(&append.topic, append.target.partition).await
        {
            return self.forward_append(append, not_here).await;
        }
        self.queue(append).await?.wait().await
    }

    /// Hands out a producer id and epoch.
    ///
    /// # Errors
    /// [`Reason::DiskFull`](crate::model::Reason::DiskFull); failures of the controller group.
    pub async fn init_producer(&self) -> Result<(i64, i16), ApiError> {
        self.check_space()?;
        Ok((self.controller()?.producer_id().await?, 0))
    }

    /// Checks an append, whoever leads its partition.
    async fn admit(&self, request: Produce) -> Result<Admitted, ApiError> {
        validate::not_internal("partition.topic", &request.target.topic)?;
        let topic = self.topic(&request.target).await?;
        if let Some(expectation) = &request.expectation {
            validate::expectation(expectation)?;
        }
        let config = self.config();
        let (batch, header) = validate::batch(request.payload, request.producer, &topic, &config.limits, now_ms())?;
        Ok(Admitted { topic, target: request.target, batch, header, expectation: request.expectation })
    }

    /// Gives a checked append its place in the queue of its partition, which this node must lead.
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
        Ok(PendingProduce { answer, cluster: self.inner.cluster.clone(), traffic, bytes })
    }
}
