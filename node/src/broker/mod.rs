//! The one API that every listener calls: admission, routing, topics, reads and appends.
//!
//! Listeners turn bytes into the requests of `types` and answers into bytes; everything that is decided is decided here
//! or below. Neighbours: `listeners/` above; `partition/` (one sequencer per raft group) and `controller/` below.

mod decode;
mod error;
mod types;

use std::sync::Arc;

pub use error::{BrokerError, ErrorKind, Reason};
pub use types::*;

use crate::config::Config;

/// An accepted append that is waiting for its answer. Dropping it does not take the append back.
#[derive(Debug)]
pub struct PendingProduce {}

impl PendingProduce {
    /// Waits until the append is durable and committed, or refused.
    ///
    /// # Errors
    /// As [`Broker::produce`].
    pub async fn wait(self) -> Result<Produced, BrokerError> {
        unimplemented!()
    }
}

/// The node behind its listeners. Cheap to clone.
#[derive(Clone)]
pub struct Broker {
    config: Arc<Config>,
}

impl Broker {
    /// Opens the data directory of `config`, starts the controller group and creates the default topic.
    pub async fn start(config: Arc<Config>) -> Result<Broker, BrokerError> {
        Ok(Broker { config })
    }

    /// Finishes accepted work, then closes every partition and the data directory.
    pub async fn shutdown(&self) {}

    /// The configuration in force.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Whether the node can serve.
    pub fn readiness(&self) -> Readiness {
        unimplemented!()
    }

    /// Checks and queues an append; appends to one partition are judged in the order in which this returns. The answer
    /// comes from [`PendingProduce::wait`].
    pub async fn submit(&self, _request: Produce) -> Result<PendingProduce, BrokerError> {
        unimplemented!()
    }

    /// Appends and waits until it is durable.
    pub async fn produce(&self, request: Produce) -> Result<Produced, BrokerError> {
        self.submit(request).await?.wait().await
    }

    /// Reads whole stored batches.
    pub async fn fetch(&self, _request: Fetch) -> Result<Fetched, BrokerError> {
        unimplemented!()
    }

    /// Offsets of a partition, and the first at or after a time (milliseconds since the Unix epoch).
    pub async fn offsets(&self, _target: &TopicPartition, _time_ms: Option<i64>) -> Result<Offsets, BrokerError> {
        unimplemented!()
    }

    /// Hands out a producer id and epoch.
    pub async fn init_producer(&self) -> Result<(i64, i16), BrokerError> {
        unimplemented!()
    }

    /// Creates a topic; `false` when it was there and the request allows it.
    pub async fn create_topic(&self, _topic: NewTopic) -> Result<(Topic, bool), BrokerError> {
        unimplemented!()
    }

    /// All topics, by name.
    pub async fn topics(&self) -> Result<Vec<Topic>, BrokerError> {
        unimplemented!()
    }

    /// One topic and its partitions.
    pub async fn describe_topic(&self, _name: &str) -> Result<(Topic, Vec<PartitionDescription>), BrokerError> {
        unimplemented!()
    }

    /// Changes settings; grows the number of partitions (0: unchanged).
    pub async fn alter_topic(
        &self,
        _name: &str,
        _partitions: i32,
        _change: SettingsChange,
    ) -> Result<Topic, BrokerError> {
        unimplemented!()
    }

    /// Deletes a topic and its data.
    pub async fn delete_topic(&self, _name: &str) -> Result<(), BrokerError> {
        unimplemented!()
    }

    /// The nodes of the cluster, and the cluster's id.
    pub async fn servers(&self) -> Result<(Vec<Server>, uuid::Uuid), BrokerError> {
        unimplemented!()
    }
}
