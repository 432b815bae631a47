//! The segmented log engine of Chronicle: raft entries, durable, readable by index, offset and time.
//!
//! Synchronous; knows neither network nor raft. One [`Store`] owns a data directory; a [`Log`] in it is one partition.
//!
//! Each file imports only files in lines below its own, so that the crate can be read from either end:
//!
//! ```text
//! store.rs                        a data directory, open: opens, closes and deletes its logs
//! log/close.rs, verify.rs         what a caller does with one log; may wait for the workers
//! log/change.rs, checkpoint.rs, read.rs, repair.rs
//! log/mod.rs, recover.rs
//! workers.rs                      who runs scheduler and sealer, and how to wait for them
//! scheduler.rs, sealer.rs         rounds of writes and flushes; footers of finished segments
//! round.rs, timers.rs, open_logs.rs
//! open_log.rs                     one log as those threads see it: state, lock, directory, queues
//! state.rs                        what one log has accepted, written and flushed
//! segments.rs, context.rs         the segments of one log; what the parts of a store share
//! writer.rs, sealed_files.rs      frames into the newest segment; sealed segments open for reading
//! log_dir.rs, marks.rs, debug.rs  the directory of one log; its marks in the journal
//! lost_tail.rs                    what was cut off the end of a log
//! segment.rs, journal.rs, queue.rs
//! reader.rs, index.rs, tail.rs, content_hash.rs, data_dir.rs, done.rs, config.rs
//! frame.rs, barrier.rs, error.rs, disk/real.rs, memory.rs, faulty.rs
//! disk/mod.rs, entry.rs, position.rs, metrics.rs, seed.rs, entropy.rs, clock.rs
//! id.rs
//! bytes_le.rs, mutant.rs
//! ```
//!
//! An append goes down and up again: [`Log::append`] takes offsets and keeps the entries in memory (`tail.rs`), and queues the log
//! (`queue.rs`). A round of the scheduler flushes the journal, encodes the entries of all queued logs into their segments
//! (`writer.rs`), makes all of it durable with one barrier (`round.rs`, `barrier.rs`), and calls each append's `done`. The sealer
//! verifies and hashes finished segments and writes their index and footer.
//!
//! All I/O goes through [`disk::Disk`]. The bytes are described in `docs/disk-format.md`.

mod barrier;
mod bytes_le;
mod clock;
mod config;
mod content_hash;
mod context;
mod data_dir;
pub mod debug;
pub mod disk;
mod done;
mod entropy;
mod entry;
mod error;
mod frame;
mod id;
mod index;
mod journal;
mod journal_end;
mod log;
mod log_dir;
mod lost_tail;
mod marks;
mod metrics;
mod mutant;
mod open_log;
mod open_logs;
mod position;
mod queue;
mod reader;
mod round;
mod scheduler;
mod sealed_files;
mod sealer;
mod seed;
mod segment;
mod segments;
#[cfg(feature = "simulated")]
pub mod simulated;
mod state;
mod store;
mod tail;
mod timers;
mod workers;
mod writer;

pub use clock::{Clock, SystemClock};
pub use config::{Barrier, Durability, LogConfig, OnWork, StoreConfig, Threads};
pub use content_hash::ContentHash;
pub use data_dir::FORMAT_VERSION;
pub use done::Done;
pub use entropy::{Entropy, SystemEntropy};
pub use entry::{Entry, EntryKind, StoredEntry};
pub use error::LogError;
pub use frame::MAX_PAYLOAD;
pub use id::LogId;
pub use journal::{MAX_JOURNAL_VALUE, SalvagedJournal};
pub use log::{Cut, Log};
pub use lost_tail::LostTail;
pub use metrics::{Counter, FLUSH_BUCKETS_US, StoreMetrics};
#[cfg(chronicle_mutants)]
#[doc(hidden)]
pub use mutant::is_mutant;
pub use position::{Appended, DeletedSegments, LastEntry, LogPosition, SegmentInfo};
pub use store::{LogSummary, Store};
