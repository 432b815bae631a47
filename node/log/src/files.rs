//! The sealed segments that are open for reading, for the whole store.
//!
//! Bounded, because each holds a file descriptor and a memory map (`vm.max_map_count`); the least recently used goes
//! first. A reader keeps what it got for as long as it reads.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use hashbrown::HashMap;
use parking_lot::Mutex;

use crate::{
    LogError, LogId,
    disk::{DiskFile, OpenMode},
    frame::seed,
    index::{IndexOwner, SparseIndex, map_index, write_index},
    segment::{Contents, SEGMENT_HEADER, SegmentHeader, index_path, segment_name, walk},
    shared::Shared,
};

/// A sealed segment, open.
#[derive(Clone)]
pub(crate) struct SealedSegment {
    pub(crate) file: Arc<dyn DiskFile>,
    pub(crate) index: SparseIndex,
}

struct Slot {
    segment: Arc<SealedSegment>,
    used: AtomicU64,
}

/// The open sealed segments.
pub(crate) struct OpenFiles {
    slots: Mutex<HashMap<(LogId, u64), Slot>>,
    limit: usize,
    tick: AtomicU64,
}

impl std::fmt::Debug for OpenFiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OpenFiles").field("limit", &self.limit).finish_non_exhaustive()
    }
}

impl OpenFiles {
    pub(crate) fn new(limit: usize) -> Self {
        Self { slots: Mutex::default(), limit, tick: AtomicU64::new(0) }
    }

    /// The segment, opened if it is not.
    pub(crate) fn get(
        &self,
        shared: &Shared,
        id: LogId,
        dir: &Path,
        contents: &Contents,
    ) -> Result<Arc<SealedSegment>, LogError> {
        let key = (id, contents.base_index);
        let now = self.tick.fetch_add(1, Relaxed);
        if let Some(slot) = self.slots.lock().get(&key) {
            slot.used.store(now, Relaxed);
            return Ok(slot.segment.clone());
        }
        let segment = Arc::new(open(shared, id, dir, contents)?);
        let mut slots = self.slots.lock();
        slots.insert(key, Slot { segment: segment.clone(), used: AtomicU64::new(now) });
        while slots.len() > self.limit {
            let oldest = slots.iter().min_by_key(|(_, slot)| slot.used.load(Relaxed)).map(|(key, _)| *key);
            oldest.map(|oldest| slots.remove(&oldest));
        }
        Ok(segment)
    }

    /// Forgets the segments of a log, after its files changed.
    pub(crate) fn forget(&self, id: LogId) {
        self.slots.lock().retain(|key, _| key.0 != id);
    }
}

fn open(shared: &Shared, id: LogId, dir: &Path, contents: &Contents) -> Result<SealedSegment, LogError> {
    let path = dir.join(segment_name(contents.base_index));
    let io = |action| {
        let path = path.clone();
        move |error| LogError::io(path, action, error)
    };
    let file = shared.disk.open(&path, OpenMode::Read).map_err(io("open the segment"))?;
    let seed = seed(id, contents.base_index);
    let owner = IndexOwner { seed, data_len: contents.data_len, last_crc: contents.last_crc };
    let index_file = index_path(dir, contents.base_index);
    let index = match map_index(&*shared.disk, &index_file, owner) {
        Ok(index) => index,
        Err(error) => {
            tracing::warn!(path = ?index_file, %error, "rebuilding the index from its segment");
            let bytes = file.read_at(0, SEGMENT_HEADER).map_err(io("read the segment's header"))?;
            let header = SegmentHeader::decode(&bytes)
                .map_err(|error| LogError::damaged(&path, 0, Some(contents.base_index), error))?;
            let interval = shared.config.index_interval_bytes;
            let walked =
                walk(&file, &header, seed, contents.data_len, interval, |_, _| {}).map_err(io("read the segment"))?;
            let index = SparseIndex::Memory(walked.index);
            // In a damaged segment the index ends before the damage, so that everything before it can be read and
            // whatever is looked up behind it runs into it.
            if walked.bad.is_none()
                && let Err(error) = write_index(&*shared.disk, &index_file, owner, &index)
            {
                tracing::warn!(path = ?index_file, %error, "cannot write the index; it stays in memory");
            }
            index
        }
    };
    Ok(SealedSegment { file, index })
}
