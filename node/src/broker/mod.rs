//! The one API that every listener calls: admission, routing, topics, reads and appends.
//!
//! Listeners turn bytes into the requests of `types` and answers into bytes; everything that is decided is decided here
//! or below. They come in by `access`, which judges who asks; [`Broker`] itself serves the node. Neighbours: `listeners/` above; `partition/` (one sequencer per raft group) and `controller/` below.

mod access;
mod cluster;
mod decode;
mod disk_space;
mod error;
mod forward;
mod housekeeping;
mod internal;
mod joining;
mod observe;
mod peer_calls;
mod reads;
mod start;
mod topic_traffic;
mod topics;
mod types;
pub(crate) mod validate;

use std::collections::HashMap;
use std::sync::Arc;

use bytes::BytesMut;
use chronicle_log::{LogId, Store};
use chronicle_proto::internal::group_request::Ask;
use chronicle_records::BatchHeader;
use opentelemetry::KeyValue;
use parking_lot::RwLock;
use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub(crate) use crate::host::now_ms;
pub use access::ForCaller;
use disk_space::DiskSpace;
pub use error::{BrokerError, ErrorKind, Reason};
pub(crate) use internal::Peek;
pub use observe::{ControllerView, PartitionTotals};
use topic_traffic::TopicTable;
pub use topic_traffic::TopicTraffic;
pub use types::*;

use crate::config::{Config, Live};
use crate::controller::{Controller, unknown_topic};
use crate::discovery::Discovery;
use crate::membership::{JoinRefusal, Membership};
use crate::partition::{Answer, Environment, Partition, Slot, ask_group};
use crate::security::{Authorizer, Tls};
use crate::telemetry::traces;

/// How often the controller group is looked at for a failure.
const FAILURE_CHECK: std::time::Duration = std::time::Duration::from_millis(500);

/// The cluster does not have this node, and never will.
fn refused(refusal: JoinRefusal, why: &str) -> BrokerError {
    BrokerError::new(Reason::Unavailable, format!("the cluster refuses this node: {refusal}: {why}"))
}

/// An accepted append that is waiting for its answer. Dropping it does not take the append back.
#[derive(Debug)]
pub struct PendingProduce {
    answer: oneshot::Receiver<Answer>,
    traffic: Arc<TopicTraffic>,
    bytes: usize,
}

impl PendingProduce {
    /// Waits until the append is durable and committed, or refused.
    ///
    /// # Errors
    /// As [`Broker::produce`].
    pub async fn wait(self) -> Result<Produced, BrokerError> {
        let produced = self.answer.await.unwrap_or_else(|_| {
            let stopped = BrokerError::new(Reason::Unavailable, "the partition stopped without an answer");
            Err(BrokerError::unknown(&stopped))
        })?;
        if !produced.duplicate {
            self.traffic.appended(produced.record_count.max(0) as u64, self.bytes as u64);
        }
        Ok(produced)
    }
}

/// An append that satisfies what can be told without its partition.
struct Admitted {
    topic: Topic,
    target: TopicPartition,
    batch: BytesMut,
    header: BatchHeader,
    expectation: Option<Expectation>,
}

/// The node behind its listeners. Cheap to clone.
#[derive(Clone)]
pub struct Broker {
    inner: Arc<Inner>,
}

struct Inner {
    config: Live,
    store: Arc<Store>,
    env: Arc<Environment>,
    /// `None`: plaintext.
    tls: Option<Arc<Tls>>,
    membership: Arc<Membership>,
    discovery: Arc<dyn Discovery>,
    /// Partitions that have been used, by log.
    slots: RwLock<HashMap<LogId, Arc<Slot>>>,
    disk_space: DiskSpace,
    traffic: TopicTable,
    authorizer: Authorizer,
    /// Held while a topic is changed: what is changed is what was read.
    changing_topics: tokio::sync::Mutex<()>,
    /// The cluster knows of this process of the node.
    established: tokio::sync::watch::Sender<bool>,
    stop: CancellationToken,
    /// Ends what peers are served with, last of all.
    peer_stop: CancellationToken,
    tasks: TaskTracker,
    /// Consensus and liveness. Taken at shutdown: a runtime must not be dropped inside another one.
    runtimes: parking_lot::Mutex<Vec<Runtime>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Nobody called `shutdown`: dropping the runtime here would panic inside another one.
        for runtime in self.runtimes.lock().drain(..) {
            runtime.shutdown_background();
        }
    }
}

impl Broker {
    /// The configuration in force.
    pub fn config(&self) -> Arc<Config> {
        self.inner.config.now()
    }

    /// The configuration in force, and its changes.
    pub fn live(&self) -> &Live {
        &self.inner.config
    }

    /// The cluster that the node is part of, once it is.
    pub fn cluster(&self) -> Option<uuid::Uuid> {
        self.inner.env.peers.me().map(|me| me.cluster)
    }

    /// Encryption of the data port; `None`: it speaks plaintext.
    pub fn tls(&self) -> Option<Arc<Tls>> {
        self.inner.tls.clone()
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
        let Some(controller) = self.inner.env.controller.get() else {
            return Readiness::NotReady(self.inner.membership.status().borrow().clone());
        };
        match controller.failure() {
            Some(error) => Readiness::NotReady(format!("controller group: {error}")),
            None if self.inner.env.peers.liveness().removed().borrow().is_some() => {
                Readiness::NotReady(JoinRefusal::Removed.to_string())
            }
            None if !*self.inner.established.borrow() => {
                Readiness::NotReady("the cluster has not taken note of this node yet".into())
            }
            None => Readiness::Ready,
        }
    }

    /// Waits until the node is part of its cluster.
    pub(crate) async fn established(&self) {
        // Ends only with the broker.
        let _ = self.inner.established.subscribe().wait_for(|established| *established).await;
    }

    /// Waits until the node cannot go on, and says why: the controller group has failed, or the cluster has removed the node.
    /// A healthy member waits for ever.
    pub async fn failed(&self) -> BrokerError {
        let mut removed = self.inner.env.peers.liveness().removed();
        let mut tick = tokio::time::interval(FAILURE_CHECK);
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                Ok(why) = removed.wait_for(Option::is_some) => {
                    return refused(JoinRefusal::Removed, why.as_deref().unwrap_or_default());
                }
            }
            if let Some(error) = self.inner.env.controller.get().and_then(|controller| controller.failure()) {
                return error;
            }
        }
    }

    /// Checks and queues an append; appends to one partition are judged in the order in which this returns. The answer
    /// comes from [`PendingProduce::wait`]. Waits while the partition's queue is full.
    ///
    /// # Errors
    /// Everything that [`Broker::produce`] refuses before the append has its place in the queue.
    pub async fn submit(&self, request: Produce) -> Result<PendingProduce, BrokerError> {
        let append = self.admit(request).await?;
        self.queue(append).await
    }

    /// Checks an append, whoever leads its partition.
    async fn admit(&self, request: Produce) -> Result<Admitted, BrokerError> {
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
    async fn queue(&self, append: Admitted) -> Result<PendingProduce, BrokerError> {
        traces::describe(|| {
            let TopicPartition { topic, partition } = &append.target;
            vec![
                KeyValue::new("messaging.destination.name", topic.clone()),
                KeyValue::new("messaging.destination.partition.id", partition.to_string()),
                KeyValue::new("messaging.batch.message_count", i64::from(append.header.record_count)),
            ]
        });
        self.inner.disk_space.check(&self.inner.store)?;
        let partition = self.lead(&append.topic, append.target.partition).await?;
        let (traffic, bytes) = (self.inner.traffic.of(&append.topic.name), append.batch.len());
        let answer = partition.submit(append.batch, append.header, append.expectation).await?;
        Ok(PendingProduce { answer, traffic, bytes })
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
        Ok((self.controller()?.producer_id().await?, 0))
    }

    /// The controller group on this node.
    fn controller(&self) -> Result<&Arc<Controller>, BrokerError> {
        self.inner.env.controller.get().ok_or_else(|| {
            let status = self.inner.membership.status().borrow().clone();
            BrokerError::new(Reason::Unavailable, format!("the node is not part of a cluster yet: {status}"))
        })
    }

    /// The topic of a request, when it has the partition asked for. What this node does not know it asks the controller
    /// leader for once: it may have been agreed a moment ago.
    async fn topic(&self, target: &TopicPartition) -> Result<Topic, BrokerError> {
        match self.known_topic(target) {
            Ok(topic) => Ok(topic),
            Err(error) if self.alone() => Err(error),
            // Boxed: rare, and large.
            Err(_) => match Box::pin(self.controller()?.sync()).await {
                Ok(()) => self.known_topic(target),
                // A node that has just started knows of nothing yet: "no such topic" would be final, and wrong.
                Err(unavailable) => Err(unavailable),
            },
        }
    }

    fn known_topic(&self, target: &TopicPartition) -> Result<Topic, BrokerError> {
        let state = self.inner.env.state();
        let topic = match state.topics.get(&target.topic) {
            Some(topic) => topic,
            None => {
                self.controller()?;
                return Err(unknown_topic(&target.topic));
            }
        };
        validate::partition(topic, target.partition)?;
        Ok(topic.clone())
    }

    /// This node is the whole cluster, and knows what was agreed before it started.
    fn alone(&self) -> bool {
        *self.inner.established.borrow() && self.inner.env.state().nodes.len() == 1
    }

    fn slot(&self, topic: &Topic, partition: i32) -> Result<Arc<Slot>, BrokerError> {
        let id = LogId { topic: topic.id, partition: partition as u32 };
        if let Some(slot) = self.inner.slots.read().get(&id) {
            return Ok(slot.clone());
        }
        let mut slots = self.inner.slots.write();
        // A topic that was deleted since the caller saw it gets no slots any more.
        if self.inner.env.state().topics.get(&topic.name).is_none_or(|agreed| agreed.id != topic.id) {
            return Err(unknown_topic(&topic.name));
        }
        Ok(slots.entry(id).or_insert_with(|| Arc::new(Slot::new(self.inner.env.clone(), id))).clone())
    }

    /// The replica of a partition on this node, open.
    async fn open(&self, topic: &Topic, partition: i32) -> Result<Arc<Partition>, BrokerError> {
        self.not_stopping()?;
        self.slot(topic, partition)?.get().await
    }

    /// The replica of a partition on this node, leading.
    async fn lead(&self, topic: &Topic, partition: i32) -> Result<Arc<Partition>, BrokerError> {
        self.not_stopping()?;
        let slot = self.slot(topic, partition)?;
        // Boxed where it may take a while: the common case stays small.
        Box::pin(slot.lead()).await
    }

    fn not_stopping(&self) -> Result<(), BrokerError> {
        match self.inner.stop.is_cancelled() {
            true => Err(BrokerError::new(Reason::Unavailable, "the node is stopping")),
            false => Ok(()),
        }
    }

    /// A replica that was opened to be read has heard no leader: it may lack what others acknowledged while it was away.
    /// Whoever should lead is woken, once.
    fn nudge(&self, topic: &Topic, number: i32, partition: &Arc<Partition>) {
        if !partition.wants_leader() {
            return;
        }
        let id = LogId { topic: topic.id, partition: number as u32 };
        let env = self.inner.env.clone();
        let slot = self.slot(topic, number);
        self.inner.tasks.spawn(async move {
            match env.designated(id) {
                Some(leader) if leader != env.node() => {
                    let _ = ask_group(&env, id, leader, Ask::Lead(true)).await;
                }
                Some(_) => {
                    if let Ok(slot) = slot {
                        let _ = slot.lead().await;
                    }
                }
                None => {}
            }
        });
    }

    /// Damage that a read has found is repaired in the background.
    fn report_damage(&self, topic: &Topic, partition: i32, error: &BrokerError) {
        let index = error.value("index").and_then(|index| index.parse().ok());
        if error.reason != Reason::DataDamaged || index.is_none() {
            return;
        }
        if let (Ok(slot), Some(index)) = (self.slot(topic, partition), index) {
            self.inner.tasks.spawn(async move { slot.damaged(index).await });
        }
    }
}
