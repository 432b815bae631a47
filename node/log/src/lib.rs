//! The segmented log engine of Chronicle: raft entries, durable, readable by index, offset and time.
//!
//! Synchronous; knows neither network nor raft. One [`Store`] owns a data directory; a [`Log`] in it is one partition.
//!
//! An append goes through these files:
//!
//! ```text
//! log/mod.rs (append: check, take offsets, keep in memory)
//!   -> scheduler.rs (one thread per store: rounds)
//!        -> journal.rs (votes and marks first)
//!        -> log/write.rs, frame.rs (encode, write to segment.rs files)
//!        -> barrier.rs (one flush for all)
//!        -> done(Ok) of every append
//!   -> sealer.rs (finished segments: verify, hash, footer, index.rs)
//! ```
//!
//! With [`Threads::Driven`] there are no threads: `driver.rs` runs the same rounds and seals when it is told to.
//!
//! Opening goes through `store.rs` and `log/recover.rs`, reading through `log/read.rs` and `reader.rs`. `log/verify.rs` looks for
//! damage and compares replicas; `log/repair.rs` cuts damage out. All I/O goes through [`disk::Disk`]. The bytes are described in `docs/disk-format.md`.

mod barrier;
mod bytes_le;
mod clock;
mod config;
mod content_hash;
pub mod debug;
pub mod disk;
mod driver;
mod entry;
mod error;
mod files;
mod frame;
mod id;
mod index;
mod journal;
mod log;
mod metrics;
mod reader;
mod scheduler;
mod sealer;
mod segment;
mod shared;
#[cfg(feature = "simulated")]
pub mod simulated;
mod store;

pub use clock::{Clock, SystemClock};
pub use config::{Barrier, Durability, LogConfig, OnWork, StoreConfig, Threads};
pub use content_hash::ContentHash;
pub use entry::{Entry, EntryKind, StoredEntry};
pub use error::LogError;
pub use frame::MAX_PAYLOAD;
pub use id::LogId;
pub use journal::MAX_JOURNAL_VALUE;
pub use log::{Appended, Cut, DeletedSegments, LastEntry, Log, LogPosition, SegmentInfo};
pub use metrics::{Counter, FLUSH_BUCKETS_US, StoreMetrics};
pub use store::{FORMAT_VERSION, LogSummary, Store};

/// The answer to an append or a journal put: called exactly once, on a thread of the store. Must be quick and must not wait
/// for the store.
pub type Done = Box<dyn FnOnce(Result<(), LogError>) + Send>;

/// Calls a `done`. One that panics must not take the thread down that every log of the store depends on.
fn answer(done: Done, result: Result<(), LogError>) {
    if std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| done(result))).is_err() {
        tracing::error!("the callback of an append or journal put panicked");
    }
}
