//! The sealed segments that are open for reading, for the whole store.
//!
//! Invariant: at most `limit` are open, because each holds a file descriptor and a memory map (`vm.max_map_count`); the least
//! recently used is closed first. A reader keeps its segment for as long as it reads.
//!
//! Neighbours: `log/read.rs` opens segments through it; code that changes or closes a log calls [`SealedFiles::forget`].
//! Names no log, only its directory.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use hashbrown::HashMap;
use parking_lot::Mutex;

use crate::{
    LogError, LogId,
    disk::{DiskFile, OpenMode},
    index::SparseIndex,
    log_dir::LogDir,
    seed::Seed,
    segment::Contents,
};

/// A sealed segment, open.
#[derive(Clone)]
pub(crate) struct SealedFile {
    pub(crate) file: Arc<dyn DiskFile>,
    pub(crate) index: SparseIndex,
}

struct Slot {
    segment: Arc<SealedFile>,
    used: AtomicU64,
}

/// The open sealed segments.
pub(crate) struct SealedFiles {
    slots: Mutex<HashMap<(LogId, u64), Slot>>,
    limit: usize,
    /// Counts uses; a slot remembers the count of its last one.
    uses: AtomicU64,
}

impl std::fmt::Debug for SealedFiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SealedFiles").field("limit", &self.limit).finish_non_exhaustive()
    }
}

impl SealedFiles {
    pub(crate) fn new(limit: usize) -> Self {
        Self { slots: Mutex::default(), limit, uses: AtomicU64::new(0) }
    }

    /// The segment, opened if it is not.
    pub(crate) fn get(&self, dir: &LogDir, contents: &Contents, seed: Seed) -> Result<Arc<SealedFile>, LogError> {
        let key = (dir.id(), contents.base_index);
        let now = self.uses.fetch_add(1, Relaxed);
        if let Some(slot) = self.slots.lock().get(&key) {
            slot.used.store(now, Relaxed);
            return Ok(slot.segment.clone());
        }
        let segment = Arc::new(open(dir, contents, seed)?);
        let mut slots = self.slots.lock();
        slots.insert(key, Slot { segment: segment.clone(), used: AtomicU64::new(now) });
        while slots.len() > self.limit {
            let oldest = slots.iter().min_by_key(|(_, slot)| slot.used.load(Relaxed)).map(|(key, _)| *key);
            oldest.map(|oldest| slots.remove(&oldest));
        }
        Ok(segment)
    }

    /// Closes the segments of a log, after its files changed.
    pub(crate) fn forget(&self, id: LogId) {
        self.slots.lock().retain(|key, _| key.0 != id);
    }
}

fn open(dir: &LogDir, contents: &Contents, seed: Seed) -> Result<SealedFile, LogError> {
    let file = dir.open_segment(contents.base_index, OpenMode::Read)?;
    let index = match dir.map_index(contents, seed) {
        Ok(index) => index,
        Err(error) => {
            let path = dir.index_path(contents.base_index);
            tracing::warn!(?path, %error, "rebuilding the index from its segment");
            let header = dir.read_header(&*file, contents.base_index)?;
            let walked = dir.walk(&file, &header, contents.data_len, |_, _| {})?;
            let index = SparseIndex::Memory(walked.index);
            // In a damaged segment the index ends before the damage, so that everything before it can be read and
            // a lookup of anything after it reports the damage.
            if walked.bad.is_none()
                && let Err(error) = dir.write_index(contents, seed, &index)
            {
                tracing::warn!(?path, %error, "cannot write the index; it stays in memory");
            }
            index
        }
    };
    Ok(SealedFile { file, index })
}
