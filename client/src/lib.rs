//! The Rust client of Chronicle.
//!
//! Promise: a call ends within its deadline, and its error says whether a node took the request ([`ErrorKind`]). The client
//! never repeats a request when that could have a second effect. It retries reads, and requests that were not accepted, with
//! exponential backoff and jitter. It repeats an append whose outcome is unknown only when the append carries a producer id and
//! sequence, which let the node recognise the duplicate.
//!
//! - [`Client`]: the calls of `chronicle.v1`, each with retries inside a deadline.
//! - [`Producer`]: ordered, batched, pipelined appends to one partition, exactly once by default.
//! - [`Consumer`]: the records of a partition from a position on, across reconnects.
//! - [`GroupConsumer`]: topics as a member of a consumer group, with committed offsets.
//!
//! Appends go to the leader of the partition and reads to its followers, wherever they are at the time. After a failover, an
//! idempotent producer continues exactly where it was. While the application has an OpenTelemetry span active, calls and
//! records carry it ([`trace`]).
//!
//! The files form floors, and each names only files of lower floors:
//!
//! ```text
//! calls/                            the calls of chronicle.v1, one file per gRPC service
//! client                            the handle of the application
//! group/                            members of consumer groups
//! producer/, consumer               one partition each
//! connection                        calls with deadline, shared by all of the above
//! retry                             retries of one call
//! attempts                          from one attempt to the next: redirects, other nodes, pauses
//! resolver, backoff                 the node for an attempt; the pause before it
//! metadata_cache                    asks the nodes who leads
//! channels, metadata                connections and their health; leaders and replicas as last received
//! config, address, trace/           configuration; HOST:PORT; OpenTelemetry
//! tls                               encrypts what a connector opens
//! error, record, connector          status decoded; records and positions; the one way to the network
//! ```
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

mod address;
mod attempts;
mod backoff;
mod calls;
mod channels;
mod client;
mod config;
mod connection;
mod connector;
mod consumer;
mod error;
mod group;
mod metadata;
mod metadata_cache;
mod mutant;
mod producer;
mod record;
mod resolver;
mod retry;
mod tls;
pub mod trace;

pub use chronicle_proto::v1;
pub use client::Client;
pub use config::{ClientConfig, ConsumerConfig, GroupConfig, GroupStart, ProducerConfig, ReadFrom, RetryConfig};
pub use connector::{BoxedIo, Connector, Io, tcp_connector};
pub use consumer::Consumer;
pub use error::{ClientError, ErrorKind};
pub use group::{GroupConsumer, GroupRecord};
pub use producer::{Delivery, Producer};
pub use record::{Compression, Partition, Position, Record, StoredRecord};
pub use tls::{Pem, TlsConfig, tls_connector};
