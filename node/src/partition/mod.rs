//! Partitions on this node: their logs, their raft groups, and their sequencers while this node leads.
//!
//! A [`Replica`] opens its partition on first use, fills its log when it is behind, puts it to sleep when it is idle, and starts
//! it again after a failure. While a partition sleeps it costs no memory, no timer and no open file, on any of its replicas.
//!
//! ```text
//! replicas.rs     all replicas of the node, by log; housekeeping.rs and inspect.rs beside it
//!   replica.rs    the life of one: asleep, open, filling, failed, closed
//!     open.rs     an open one; look_after.rs is what it has instead of timers, members.rs changes its voters
//!       leading.rs    starts and stops the sequencer as leadership comes and goes
//!         sequencer.rs    owns the order of appends (producers.rs, keys.rs), proposes entries to raft
//!       machine.rs    applies committed entries: offsets, producers, the topic's view (view.rs)
//! fill.rs, pull.rs    copy a log from another replica, and to one
//! ```
//!
//! Write path: [`Partition::submit`] → `sequencer` → `raft::Group` → `chronicle-log`. Reads go from [`Partition::read`]
//! straight to the log, up to the applied index, on every replica.
//!
//! Never names the controller, the broker, or a protocol: what replicas report to the controller goes through
//! [`Reports`](crate::cluster::Reports), and which topics have a view is decided above ([`ViewOf`]).

mod environment;
mod fill;
mod housekeeping;
mod inspect;
mod keys;
mod lag;
mod leading;
mod look_after;
mod machine;
mod members;
mod open;
mod producers;
mod pull;
mod replica;
mod replicas;
mod retention;
mod sequencer;
mod storage;
mod throttle;
mod upkeep;
mod verify;
mod view;

pub use environment::{Environment, ViewOf};
pub(crate) use fill::ACTIVE;
pub use inspect::PartitionTotals;
pub(crate) use inspect::{Peek, status_response};
pub use lag::ReplicaLag;
pub use leading::PartitionRole;
pub use machine::Progress;
pub use open::Partition;
pub(crate) use pull::pull;
pub use replica::{Filling, Replica, ReplicaState};
pub use replicas::Replicas;
pub use sequencer::{Answer, Reply};
pub use throttle::Throttle;
pub use view::View;
