//! The Rust client of Chronicle.
//!
//! Promise: a call answers within its deadline, and its error says whether the node took the request
//! ([`ErrorKind`]). Nothing is repeated that could happen twice: reads and requests that were not accepted are retried
//! with growing, jittered pauses; an append whose outcome is open is repeated only when it carries a producer id and
//! sequence, which make the repetition harmless.
//!
//! - [`Client`] (`client.rs`, `cluster.rs`, `access.rs`, `node.rs`): the calls of `chronicle.v1`, each with retries inside a
//!   deadline.
//! - [`Producer`] (`producer/`): ordered, batched, pipelined appends to one partition, exactly once by default.
//! - [`Consumer`] (`consumer.rs`): the records of a partition from a position on, across reconnects.
//! - [`GroupConsumer`] (`group.rs`): topics shared out among the members of a consumer group, with remembered offsets.
//!
//! Where the application has an OpenTelemetry span active, calls carry it to the node, and records to whoever reads them
//! ([`trace`]).
//!
//! Appends go to the leader of the partition and reads to its followers, wherever they are at the time; after a fail-over,
//! an idempotent producer goes on exactly where it was.
//!
//! Below them: `retry.rs` (what is repeated, and when), `attempts.rs` (from one attempt to the next: redirects, other nodes,
//! pauses), `resolver.rs` (which node a request goes to; how it finds out), `metadata.rs` (what it believes), `nodes.rs`
//! (connections, and which addresses fail), `connect.rs` (the one seam to the network, replaceable by a simulation), `tls.rs`
//! (encryption on top of it),
//! `error.rs` (status and stream errors decoded).
//!
//! ```no_run
//! # async fn example() -> Result<(), chronicle_client::ClientError> {
//! use chronicle_client::{Client, ConsumerConfig, Partition, ProducerConfig, Record};
//!
//! let client = Client::connect("127.0.0.1:7400")?;
//! let producer = client.producer(Partition::new("default", 0), ProducerConfig::default());
//! let offset = producer.send(Record::value("hello")).await?.await?;
//! producer.close().await?;
//!
//! let mut consumer = client.consumer(Partition::new("default", 0), ConsumerConfig::from_offset(offset));
//! let record = consumer.next().await?;
//! # let _ = record; Ok(()) }
//! ```
#![forbid(unsafe_code)]

mod access;
mod attempts;
mod client;
mod cluster;
mod config;
mod connect;
mod consumer;
mod error;
mod group;
mod metadata;
mod node;
mod nodes;
mod producer;
mod record;
mod resolver;
mod retry;
mod tls;
pub mod trace;

pub use chronicle_proto::v1;
pub use client::Client;
pub use config::{ClientConfig, ReadFrom, RetryConfig};
pub use connect::{BoxedIo, Connector, Io, tcp_connector};
pub use consumer::{Consumer, ConsumerConfig};
pub use error::{ClientError, ErrorKind};
pub use group::{GroupConfig, GroupConsumer, GroupRecord, GroupStart};
pub use producer::{Delivery, Producer, ProducerConfig};
pub use record::{Compression, Partition, Position, Record, StoredRecord};
pub use tls::{Pem, TlsConfig, tls_connector};
