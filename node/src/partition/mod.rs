//! Partitions on this node: their logs, their raft groups, and their sequencers while this node leads.
//!
//! A [`Replica`] opens its partition on first use, fills its log when it is behind, closes it when it is idle, and restarts
//! it after a failure. A dormant partition uses no memory, timer or open file, on any of its replicas.
//!
//! ```text
//! replicas.rs     all replicas of the node, by log; housekeeping.rs and inspect.rs beside it
//!   replica.rs    the lifecycle of one: dormant, open, filling, failed, closed
//!     open.rs     an open one; tick.rs runs at a fixed interval (no timers), members.rs changes its voters
//!       leading.rs    starts and stops the sequencer when leadership is won and lost
//!         sequencer.rs    owns the order of appends (keys.rs), proposes entries to raft; segment_ends.rs ends segments
//!       state_machine.rs    applies committed entries: offsets, producers, the topic's view (views.rs)
//! fill_source.rs, pull.rs  which replica a log is copied from, and whether it may be copied to another one
//! ```
//!
//! Write path: [`Partition::submit`] → `sequencer` → `raft::RaftGroup` → `chronicle-log`. Reads go from [`Partition::read`]
//! straight to the log, up to the applied index, on every replica.
//!
//! Never names the controller, the broker, or a protocol: what replicas report to the controller goes through
//! [`Reports`](crate::cluster::Reports), and the caller decides which topics have a view ([`ViewOf`]).

mod confirming;
mod environment;
mod fill_source;
mod housekeeping;
mod inspect;
mod keys;
mod leading;
mod members;
mod open;
mod pull;
mod reassigned;
mod repeated;
mod replica;
mod replica_lag;
mod replicas;
mod retention;
mod segment_ends;
mod sequencer;
#[cfg(test)]
mod sequencer_tests;
mod state_machine;
mod storage;
mod tick;
mod tick_state;
mod verify;
mod views;

pub use environment::{Environment, ViewOf};
pub use inspect::PartitionTotals;
pub(crate) use inspect::{Peek, status_response};
pub use leading::PartitionRole;
pub use open::Partition;
pub(crate) use pull::pull;
pub use replica::{Filling, Replica, ReplicaState};
pub use replica_lag::ReplicaLag;
pub use replicas::Replicas;
pub use retention::Maintained;
pub use sequencer::{AppendAnswer, Reply};
pub use state_machine::Progress;
pub use views::View;
