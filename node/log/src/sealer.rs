//! The sealer: one thread that finishes segments nobody writes to any more.
//!
//! It reads a segment back from the disk and checks every frame (a scrub for free) while hashing it, then writes index and
//! footer. A footer promises that everything before it is on disk, so the segment is synced first. Writers are never
//! held up: the footer is written under the log's `seal_lock`, which only changes such as truncations take.

use std::{collections::VecDeque, sync::Arc};

use parking_lot::{Condvar, Mutex};

use crate::{
    ContentHash, LogError, OnWork,
    disk::{DiskFile, write_all_at},
    frame::seed,
    index::{IndexOwner, SparseIndex, write_index},
    log::{LogInner, Phase},
    segment::{Contents, Footer, index_path, segment_name, walk},
    shared::Shared,
};

#[derive(Default)]
struct Waiting {
    segments: VecDeque<(Arc<LogInner>, u64)>,
    stop: bool,
}

/// Segments that wait to be sealed. Bounded by the segments that exist: each is queued once.
pub(crate) struct SealQueue {
    waiting: Mutex<Waiting>,
    changed: Condvar,
    on_work: Option<OnWork>,
}

impl std::fmt::Debug for SealQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SealQueue").finish_non_exhaustive()
    }
}

impl SealQueue {
    pub(crate) fn new(on_work: Option<OnWork>) -> Self {
        Self { waiting: Mutex::default(), changed: Condvar::new(), on_work }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.lock().segments.is_empty()
    }

    /// Adds the segment with this base index. Whoever adds it has counted it in the log's `sealing`.
    pub(crate) fn push(&self, log: Arc<LogInner>, base_index: u64) {
        self.waiting.lock().segments.push_back((log, base_index));
        match &self.on_work {
            Some(on_work) => on_work(),
            None => drop(self.changed.notify_one()),
        }
    }

    pub(crate) fn stop(&self) {
        self.waiting.lock().stop = true;
        self.changed.notify_all();
    }

    /// Seals until told to stop. What still waits then is sealed after the next start.
    pub(crate) fn run(&self, shared: &Shared) {
        loop {
            let mut waiting = self.waiting.lock();
            while waiting.segments.is_empty() && !waiting.stop {
                self.changed.wait(&mut waiting);
            }
            let stop = waiting.stop;
            let Some((log, base_index)) = waiting.segments.pop_front() else { return };
            drop(waiting);
            if !stop {
                settle(&log, seal(shared, &log, base_index));
            }
            finish(&log);
        }
    }

    /// Seals the segment that has waited longest. Returns whether there was one.
    pub(crate) fn drive(&self, shared: &Shared) -> bool {
        let next = self.waiting.lock().segments.pop_front();
        let Some((log, base_index)) = next else { return false };
        settle(&log, seal(shared, &log, base_index));
        finish(&log);
        true
    }

    /// Gives up what waits; it is sealed after the next start.
    pub(crate) fn drain(&self) {
        let waiting = std::mem::take(&mut self.waiting.lock().segments);
        for (log, _) in waiting {
            finish(&log);
        }
    }
}

fn finish(log: &Arc<LogInner>) {
    let mut state = log.state.lock();
    state.sealing -= 1;
    log.rest_if_done(state);
}

fn settle(log: &LogInner, result: Result<(), LogError>) {
    match result {
        Ok(()) => {}
        Err(error @ LogError::Damaged { .. }) => {
            log.shared.metrics.damage_found.add(1);
            log.fail(error);
        }
        Err(LogError::Failed(error)) => log.fail((*error).clone()),
        // Not written is no harm: the segment is complete and is sealed after the next start.
        Err(error) => tracing::warn!(log = %log.id, %error, "cannot seal a segment"),
    }
}

/// Ends a segment with its footer, durably. Its frames are on disk, and the caller holds the `seal_lock`.
pub(crate) fn write_footer(log: &LogInner, file: &dyn DiskFile, footer: &Footer) -> Result<(), LogError> {
    let Contents { base_index, data_len, .. } = footer.contents;
    let path = log.dir.join(segment_name(base_index));
    let io = |action| {
        let path = path.clone();
        move |error| LogError::io(path, action, error)
    };
    let bytes = footer.encode(seed(log.id, base_index));
    // Remains of a footer that an earlier crash tore go first: a footer is found from the end of the file.
    if file.len().map_err(io("read the segment"))? > data_len {
        file.set_len(data_len).map_err(io("cut an old footer"))?;
    }
    write_all_at(file, data_len, &mut [std::io::IoSlice::new(&bytes)]).map_err(io("write the footer"))?;
    file.sync_data().map_err(|error| LogError::io(&path, "flush the segment", error).sticky())
}

fn seal(shared: &Shared, log: &Arc<LogInner>, base_index: u64) -> Result<(), LogError> {
    let path = log.dir.join(segment_name(base_index));
    let io = |action| {
        let path = path.clone();
        move |error| LogError::io(path, action, error)
    };
    // A failed flush is never retried: it stops the log.
    let sync_failed = |error| LogError::io(&path, "flush the segment", error).sticky();
    let open = || {
        let state = log.state.lock();
        let at = state.segments.binary_search_by_key(&base_index, |segment| segment.contents.base_index).ok()?;
        let active = state.last_is_active && at + 1 == state.segments.len();
        match &state.segments[at].phase {
            Phase::Open { file, .. } if !active => Some((file.clone(), state.segments[at].contents)),
            _ => None,
        }
    };
    // Truncated away since it was queued: nothing to do.
    let Some((file, contents)) = open() else { return Ok(()) };
    file.sync_data().map_err(sync_failed)?;

    let seed = seed(log.id, base_index);
    let header = log.read_header(&*file, base_index)?;
    let mut hasher = ContentHash::new();
    let interval = shared.config.index_interval_bytes;
    let walked =
        walk(&file, &header, seed, contents.data_len, interval, |header, payload| hasher.update_frame(header, payload))
            .map_err(io("read the segment"))?;

    let _seal = log.seal_lock.lock();
    if open().is_none_or(|(_, now)| now != contents) {
        return Ok(());
    }
    if let Some(bad) = walked.bad {
        let at = &walked.contents;
        return Err(LogError::damaged(&path, at.data_len, Some(at.next_index), bad));
    }
    if walked.contents != contents {
        return Err(LogError::damaged(&path, 0, Some(base_index), "its frames are not the ones that were written"));
    }
    let owner = IndexOwner { seed, data_len: contents.data_len, last_crc: contents.last_crc };
    let index = SparseIndex::Memory(walked.index);
    write_index(&*shared.disk, &index_path(&log.dir, base_index), owner, &index).map_err(io("write the index"))?;
    let footer = Footer { contents, hash: hasher.finalize() };
    write_footer(log, &*file, &footer)?;

    let mut state = log.state.lock();
    if let Ok(at) = state.segments.binary_search_by_key(&base_index, |segment| segment.contents.base_index) {
        state.segments[at].phase = Phase::Sealed { hash: footer.hash };
        // In memory mode this may come before the flush interval is over. Segments are sealed in order.
        if at.checked_sub(1).is_none_or(|before| matches!(state.segments[before].phase, Phase::Sealed { .. })) {
            state.durable_next = state.durable_next.max(contents.next_index);
        }
    }
    drop(state);
    shared.metrics.sealed_segments.add(1);
    Ok(())
}
