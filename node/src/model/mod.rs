//! Types that all other modules of the node share: topics, listeners, appends, reads, and errors.
//!
//! Plain values without behaviour of their own. There are two layers of errors: a [`PartitionError`] carries what failed as data; an
//! [`ApiError`] contains what the client receives: the reason and what to do next. `broker/errors.rs` maps one to the other.
//!
//! Never names any other module of the node.

mod append_request;
mod batches;
mod error;
mod fetch;
mod listener;
mod partition;
mod partition_error;
mod topic_definition;

pub use append_request::{Expectation, NewRecord, Produce, ProducePayload, Produced, ProducerIdentity};
pub use batches::UndecodableEntry;
pub(crate) use batches::{STORED, batches_from};
pub use error::{ApiError, ErrorKind, Reason};
pub use fetch::{Fetch, Fetched, Offsets, Position, TermEnd, Want};
pub use listener::{Addresses, InvalidListenerName, ListenerName, is_host_port};
pub use partition::{PartitionDescription, VerifiedPartition};
pub use partition_error::PartitionError;
pub(crate) use topic_definition::unknown_topic;
pub use topic_definition::{
    NewTopic, SettingsChange, Topic, TopicDurability, TopicPartition, TopicSettings, is_topic_name,
};
