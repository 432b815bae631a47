//! The one API that every listener calls: admission, routing, topics, reads and appends.
//!
//! Listeners turn bytes into the requests of `types` and answers into bytes; everything that is decided is decided here
//! or below. Neighbours: `listeners/` above; `partition/` (one sequencer per raft group) and `controller/` below.

mod cluster;
mod decode;
mod disk_space;
mod error;
mod internal;
mod reads;
mod start;
mod topics;
mod types;
pub(crate) mod validate;

use std::collections::HashMap;
use std::sync::Arc;

use chronicle_log::{LogId, Store};
use parking_lot::RwLock;
use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use disk_space::DiskSpace;
pub use error::{BrokerError, ErrorKind, Reason};
pub use types::*;

use crate::config::Config;
use crate::controller::{Controller, unknown_topic};
use crate::partition::{Answer, Environment, Partition, Slot, SlotState};

/// How often the controller group is looked at for a failure.
const FAILURE_CHECK: std::time::Duration = std::time::Duration::from_millis(500);

/// An accepted append that is waiting for its answer. Dropping it does not take the append back.
#[derive(Debug)]
pub struct PendingProduce {
    answer: oneshot::Receiver<Answer>,
}

impl PendingProduce {
    /// Waits until the append is durable and committed, or refused.
    ///
    /// # Errors
    /// As [`Broker::produce`].
    pub async fn wait(self) -> Result<Produced, BrokerError> {
        self.answer.await.unwrap_or_else(|_| {
            let stopped = BrokerError::new(Reason::Unavailable, "the partition stopped without an answer");
            Err(BrokerError::unknown(&stopped))
        })
    }
}

/// The node behind its listeners. Cheap to clone.
#[derive(Clone)]
pub struct Broker {
    inner: Arc<Inner>,
}

struct Inner {
    config: Arc<Config>,
    store: Arc<Store>,
    env: Arc<Environment>,
    controller: Controller,
    /// Partitions that have been used, by log.
    slots: RwLock<HashMap<LogId, Arc<Slot>>>,
    disk_space: DiskSpace,
    /// Held while a topic is changed: what is changed is what was read.
    changing_topics: tokio::sync::Mutex<()>,
    stop: CancellationToken,
    tasks: TaskTracker,
    /// Taken at shutdown: a runtime must not be dropped inside another one.
    consensus: parking_lot::Mutex<Option<Runtime>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Nobody called `shutdown`: dropping the runtime here would panic inside another one.
        if let Some(runtime) = self.consensus.lock().take() {
            runtime.shutdown_background();
        }
    }
}

/// Counts for metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PartitionCounts {
    /// Topics of the cluster.
    pub topics: usize,
    /// Partitions of all topics.
    pub partitions: usize,
    /// Partitions that are open on this node.
    pub active: usize,
    /// Partitions that failed and wait to be tried again.
    pub failed: usize,
}

impl Broker {
    /// The configuration in force.
    pub fn config(&self) -> &Config {
        &self.inner.config
    }

    /// The data directory, for its metrics.
    pub fn store(&self) -> &Arc<Store> {
        &self.inner.store
    }

    /// Whether the node can serve.
    pub fn readiness(&self) -> Readiness {
        if self.inner.stop.is_cancelled() {
            return Readiness::NotReady("stopping".into());
        }
        match self.inner.controller.failure() {
            Some(error) => Readiness::NotReady(format!("controller group: {error}")),
            None => Readiness::Ready,
        }
    }

    /// Waits until the controller group has failed, and says why. A healthy node waits for ever.
    pub async fn failed(&self) -> BrokerError {
        let mut tick = tokio::time::interval(FAILURE_CHECK);
        loop {
            tick.tick().await;
            if let Some(error) = self.inner.controller.failure() {
                return error;
            }
        }
    }

    /// Counts for metrics.
    pub fn partition_counts(&self) -> PartitionCounts {
        let state = self.inner.controller.state();
        let mut counts = PartitionCounts {
            topics: state.topics.len(),
            partitions: state.topics.values().map(|topic| topic.partitions as usize).sum(),
            ..PartitionCounts::default()
        };
        for slot in self.inner.slots.read().values() {
            match slot.state() {
                SlotState::Active(partition) if partition.failure().is_some() => counts.failed += 1,
                SlotState::Active(_) => counts.active += 1,
                SlotState::Failed { .. } => counts.failed += 1,
                SlotState::Dormant | SlotState::Closed => {}
            }
        }
        counts
    }

    /// Checks and queues an append; appends to one partition are judged in the order in which this returns. The answer
    /// comes from [`PendingProduce::wait`]. Waits while the partition's queue is full.
    ///
    /// # Errors
    /// Everything that [`Broker::produce`] refuses before the append has its place in the queue.
    pub async fn submit(&self, request: Produce) -> Result<PendingProduce, BrokerError> {
        validate::not_internal("partition.topic", &request.target.topic)?;
        let topic = self.topic(&request.target)?;
        if let Some(expectation) = &request.expectation {
            validate::expectation(expectation)?;
        }
        let limits = &self.inner.config.limits;
        let (batch, header) = validate::batch(request.payload, request.producer, &topic, limits, start::now_ms())?;
        self.inner.disk_space.check(&self.inner.store)?;
        let partition = self.open(&topic, request.target.partition).await?;
        let answer = partition.submit(batch, header, request.expectation).await?;
        Ok(PendingProduce { answer })
    }

    /// Appends and waits until it is durable.
    ///
    /// # Errors
    /// Not accepted: [`Reason::UnknownTopic`], [`Reason::UnknownPartition`], [`Reason::RecordTooLarge`],
    /// [`Reason::CorruptBatch`], [`Reason::UnsupportedCompression`], [`Reason::InvalidRequest`],
    /// [`Reason::VersionConflict`], [`Reason::OutOfOrderSequence`], [`Reason::ProducerFenced`], [`Reason::DiskFull`],
    /// [`Reason::DiskFailed`], [`Reason::DataDamaged`], [`Reason::Unavailable`]. Open: [`Reason::OutcomeUnknown`].
    pub async fn produce(&self, request: Produce) -> Result<Produced, BrokerError> {
        self.submit(request).await?.wait().await
    }

    /// Hands out a producer id and epoch.
    ///
    /// # Errors
    /// [`Reason::DiskFull`]; failures of the controller group.
    pub async fn init_producer(&self) -> Result<(i64, i16), BrokerError> {
        self.inner.disk_space.check(&self.inner.store)?;
        Ok((self.inner.controller.producer_id().await?, 0))
    }

    /// The topic of a request, when it has the partition asked for.
    fn topic(&self, target: &TopicPartition) -> Result<Topic, BrokerError> {
        let state = self.inner.controller.state();
        let topic = state.topics.get(&target.topic).ok_or_else(|| unknown_topic(&target.topic))?;
        validate::partition(topic, target.partition)?;
        Ok(topic.clone())
    }

    fn slot(&self, topic: &Topic, partition: i32) -> Result<Arc<Slot>, BrokerError> {
        let id = LogId { topic: topic.id, partition: partition as u32 };
        if let Some(slot) = self.inner.slots.read().get(&id) {
            return Ok(slot.clone());
        }
        let mut slots = self.inner.slots.write();
        // A topic that was deleted since the caller saw it gets no slots any more.
        if self.inner.controller.state().topics.get(&topic.name).is_none_or(|agreed| agreed.id != topic.id) {
            return Err(unknown_topic(&topic.name));
        }
        Ok(slots.entry(id).or_insert_with(|| Arc::new(Slot::new(self.inner.env.clone(), id))).clone())
    }

    async fn open(&self, topic: &Topic, partition: i32) -> Result<Arc<Partition>, BrokerError> {
        if self.inner.stop.is_cancelled() {
            return Err(BrokerError::new(Reason::Unavailable, "the node is stopping"));
        }
        self.slot(topic, partition)?.get().await
    }
}
