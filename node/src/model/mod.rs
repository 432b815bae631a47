//! The vocabulary of the node: topics, listeners, appends, reads, and the errors that carry what happened.
//!
//! Plain values without behaviour of their own; every floor above speaks in them. Two layers of error: a
//! [`PartitionError`] says precisely what happened and carries it as data; an [`ApiError`] says to a client what happened and what
//! to do next. `broker/errors.rs` is the one table between the two.
//!
//! Never names anything else of the node.

mod append;
mod batches;
mod error;
mod listener;
mod partition;
mod partition_error;
mod read;
mod topic;

pub use append::{Expectation, NewRecord, Payload, Produce, Produced, ProducerIdentity};
pub use batches::UndecodableEntry;
pub(crate) use batches::{STORED, batches_from};
pub use error::{ApiError, ErrorKind, Reason};
pub use listener::{Addresses, InvalidListenerName, ListenerName, is_host_port};
pub use partition::{PartitionDescription, VerifiedPartition};
pub use partition_error::PartitionError;
pub use read::{Fetch, Fetched, Offsets, Position};
pub(crate) use topic::unknown_topic;
pub use topic::{NewTopic, SettingsChange, Topic, TopicDurability, TopicPartition, TopicSettings, is_topic_name};
