//! Settings of a store and of one log. Neighbours: the node fills them; nothing here reads a file.

use std::{fmt, sync::Arc, time::Duration};

use uuid::Uuid;

use crate::{
    LogError,
    clock::{Clock, SystemClock},
    entropy::{Entropy, SystemEntropy},
};

/// How a flush round makes many files durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Barrier {
    /// `fdatasync` per file; one `syncfs` instead when many files are dirty *and* the data directory is the root of a
    /// volume of its own (on a shared volume `syncfs` would also wait for the data of other programs). Where `syncfs` hides
    /// write errors (kernels before 5.17, other file systems than ext4, XFS, Btrfs and F2FS), always `fdatasync`.
    #[default]
    Auto,
    /// Always `fdatasync` per file.
    Fdatasync,
    /// One `syncfs` whenever more than two files are dirty; `fdatasync` per file where `syncfs` hides write errors.
    Syncfs,
}

/// Called when a driven store gets something to do; see [`Threads::Driven`].
pub type OnWork = Arc<dyn Fn() + Send + Sync>;

/// Which threads do a store's work.
#[derive(Clone, Default)]
pub enum Threads {
    /// The store's own threads.
    #[default]
    Own,
    /// None: [`crate::Store::drive`] works on the caller's thread, for deterministic simulation. Calls that wait (such as
    /// [`crate::Log::flush`] or [`crate::Log::truncate_after`]) drive the store themselves.
    Driven {
        /// Called when work was queued, maybe under a lock of the store: it must do no more than wake the driving thread.
        on_work: Option<OnWork>,
    },
}

impl Threads {
    pub(crate) fn is_driven(&self) -> bool {
        matches!(self, Self::Driven { .. })
    }

    pub(crate) fn on_work(&self) -> Option<OnWork> {
        match self {
            Self::Own => None,
            Self::Driven { on_work } => on_work.clone(),
        }
    }
}

impl fmt::Debug for Threads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_driven() { "Driven" } else { "Own" })
    }
}

/// When an append counts as done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Durability {
    /// Once it is on disk.
    #[default]
    Fsync,
    /// Once it is in the page cache; it reaches the disk within the interval. A power cut may lose that much.
    Memory {
        /// Longest time that a completed append may stay unflushed.
        flush_interval: Duration,
    },
}

/// Settings of one log.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LogConfig {
    /// Roll to a new segment before it would exceed this many bytes. 0: the store's [`StoreConfig::segment_bytes`].
    /// Default: 0.
    pub segment_bytes: u64,
    /// When an append counts as done. Default: [`Durability::Fsync`].
    pub durability: Durability,
}

/// Settings of a store.
#[derive(Debug, Clone)]
pub struct StoreConfig {
    /// Roll to a new segment before it would exceed this many bytes. Larger: fewer files, slower recovery after a crash.
    /// Default: 128 MiB.
    pub segment_bytes: u64,
    /// Put an entry in the sparse index for every so many bytes of segment. Smaller: shorter scans per lookup, larger
    /// indexes (32 bytes an entry). Default: 4096.
    pub index_interval_bytes: u64,
    /// Bytes of recent entries kept in memory, for the whole store. Entries that are not flushed yet are kept
    /// beyond this limit. Default: 64 MiB.
    pub tail_cache_bytes: u64,
    /// Bytes that may be appended and not yet flushed, for the whole store; appends above it are refused as
    /// [`LogError::Overloaded`]. One append larger than this is accepted when nothing else waits. Default: 64 MiB.
    pub max_pending_bytes: u64,
    /// How a round of many files is made durable. Default: [`Barrier::Auto`].
    pub barrier: Barrier,
    /// Dirty files from which [`Barrier::Auto`] prefers `syncfs`. Default: 16.
    pub syncfs_threshold: usize,
    /// Threads that run `fdatasync` beside the writer thread. Default: 8.
    pub flush_threads: usize,
    /// Sealed segment files, and maps of their indexes, kept open for reading. Default: 512.
    pub open_segments: usize,
    /// How often the durable marks of all logs that were written to go to the journal, with one flush. What was written to a log
    /// after its last mark may be lost by the disk without a trace: a missing end looks like a torn write. Default: 1 s.
    pub mark_interval: Duration,
    /// How long the journal stays idle before its own durable mark is written: the same window for the journal. Default: 500 ms.
    pub idle_mark_delay: Duration,
    /// Longest time that a lazy journal record waits. Default: 1 s.
    pub journal_lazy_delay: Duration,
    /// Rewrite the journal once it is larger than this and mostly dead, in bytes. Default: 4 MiB.
    pub journal_rewrite_bytes: u64,
    /// Which threads do the work. Default: [`Threads::Own`].
    pub threads: Threads,
    /// The identity that the directory gets when it is made; without effect on one that exists. Default: `None`, a random one.
    pub new_node_id: Option<Uuid>,
    /// Source of time. Default: the system's clocks.
    pub clock: Arc<dyn Clock>,
    /// Source of the secrets of segments. Default: the operating system's generator.
    pub entropy: Arc<dyn Entropy>,
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self {
            segment_bytes: 128 << 20,
            index_interval_bytes: 4096,
            tail_cache_bytes: 64 << 20,
            max_pending_bytes: 64 << 20,
            barrier: Barrier::Auto,
            syncfs_threshold: 16,
            flush_threads: 8,
            open_segments: 512,
            mark_interval: Duration::from_secs(1),
            idle_mark_delay: Duration::from_millis(500),
            journal_lazy_delay: Duration::from_secs(1),
            journal_rewrite_bytes: 4 << 20,
            threads: Threads::Own,
            new_node_id: None,
            clock: Arc::new(SystemClock::new()),
            entropy: Arc::new(SystemEntropy),
        }
    }
}

impl StoreConfig {
    /// When marks are due next, by the store's clock: a multiple of the interval, so that the marks of all logs are due together.
    pub(crate) fn next_mark(&self) -> Duration {
        let (now, interval) = (self.clock.monotonic(), self.mark_interval.max(Duration::from_nanos(1)));
        let past = Duration::from_nanos((now.as_nanos() % interval.as_nanos()) as u64);
        now + (interval - past)
    }

    /// Checks every field against its range.
    pub fn validate(&self) -> Result<(), LogError> {
        let at_least = |field, value: u64, least: u64, rule| {
            if value < least { Err(LogError::InvalidConfig { field, value, rule }) } else { Ok(()) }
        };
        at_least("segment_bytes", self.segment_bytes, 1024, "it must be at least 1024")?;
        at_least("index_interval_bytes", self.index_interval_bytes, 64, "it must be at least 64")?;
        at_least("max_pending_bytes", self.max_pending_bytes, 1, "it must be at least 1")?;
        at_least("flush_threads", self.flush_threads as u64, 1, "it must be at least 1")?;
        at_least("open_segments", self.open_segments as u64, 1, "it must be at least 1")?;
        at_least("journal_rewrite_bytes", self.journal_rewrite_bytes, 4096, "it must be at least 4096")
    }
}
