//! The client: the handle that an application holds, which makes producers, consumers and group members.
//!
//! Promise: cheap to clone, and nothing it makes depends on it; each gets a clone of the [`Connection`].
//!
//! Stands on `producer/`, `consumer.rs` and `group/`. Only `calls/` is above it, which adds a method per call of `chronicle.v1`.

use std::sync::Arc;

use crate::config::{ClientConfig, ConsumerConfig, GroupConfig, ProducerConfig};
use crate::connection::Connection;
use crate::consumer::Consumer;
use crate::error::ClientError;
use crate::group::GroupConsumer;
use crate::producer::Producer;
use crate::record::Partition;

/// A connection to a Chronicle cluster. Cheap to clone; clones share connections.
#[derive(Clone)]
pub struct Client {
    connection: Connection,
    /// The configured addresses as one text.
    servers: Arc<str>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("servers", &self.servers).finish_non_exhaustive()
    }
}

impl Client {
    /// A client of the cluster that these servers belong to (`"HOST:PORT"`, several separated by commas, or a
    /// [`ClientConfig`]). Connects when it is first used, and reconnects when a connection breaks.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` when the address is not `HOST:PORT`.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn connect(config: impl Into<ClientConfig>) -> Result<Self, ClientError> {
        let config = config.into();
        let servers = config.servers.join(",").into();
        Ok(Self { connection: Connection::new(config)?, servers })
    }

    /// The configured `HOST:PORT`; several are separated by commas.
    pub fn server(&self) -> &str {
        &self.servers
    }

    /// A producer of one partition. When the order of a partition matters, only one producer should write to it.
    pub fn producer(&self, partition: Partition, config: ProducerConfig) -> Producer {
        Producer::start(self.connection.clone(), partition, config)
    }

    /// A consumer of one partition.
    pub fn consumer(&self, partition: Partition, config: ConsumerConfig) -> Consumer {
        Consumer::new(self.connection.clone(), partition, config)
    }

    /// Joins a consumer group in the background and reads the partitions that the group assigns.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn group_consumer(&self, config: GroupConfig) -> GroupConsumer {
        GroupConsumer::join(self.connection.clone(), config)
    }

    pub(crate) fn connection(&self) -> &Connection {
        &self.connection
    }
}
