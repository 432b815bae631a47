//! The sealer: finishes segments that no writer touches any more.
//!
//! It reads a segment back from the disk and checks every frame (a scrub for free) while hashing it, then writes index and
//! footer. A footer promises that everything before it is on disk, so the segment is synced first. Writers are never
//! held up: the footer is written under the log's `seal_lock`, which only changes such as truncations take.
//!
//! Invariant: each segment that comes out of the queue ends its count in the log's state, whatever came of the seal.
//!
//! Neighbours: `workers.rs` runs it, on its own thread or step by step. Names no writer and no journal.

use std::sync::Arc;

use crate::{
    ContentHash, LogError,
    index::SparseIndex,
    open_log::{OpenLog, Queues},
    open_logs::OpenLogs,
    queue::NextSeal,
    segment::Footer,
};

/// Seals the segments of one store.
#[derive(Debug, Clone)]
pub(crate) struct Sealer {
    queues: Arc<Queues>,
    logs: Arc<OpenLogs>,
}

impl Sealer {
    pub(crate) fn new(queues: Arc<Queues>, logs: Arc<OpenLogs>) -> Self {
        Self { queues, logs }
    }

    /// The sealer's thread: seals until the queue is stopped. What still waits then is sealed after the next start.
    pub(crate) fn run(&self) {
        while let Some(next) = self.queues.seals.wait() {
            match next {
                NextSeal::Seal((log, base_index)) => self.seal(&log, base_index),
                NextSeal::GiveUp((log, _)) => self.end(&log),
            }
        }
    }

    /// Seals the segment that has waited longest. Returns whether there was one.
    pub(crate) fn seal_one(&self) -> bool {
        let Some((log, base_index)) = self.queues.seals.pop() else { return false };
        self.seal(&log, base_index);
        true
    }

    /// Gives up what waits; it is sealed after the next start.
    pub(crate) fn give_up(&self) {
        for (log, _) in self.queues.seals.drain() {
            self.end(&log);
        }
    }

    fn seal(&self, log: &Arc<OpenLog>, base_index: u64) {
        match seal(log, base_index) {
            Ok(()) => {}
            Err(error @ LogError::Damaged { .. }) => {
                log.metrics().damage_found.add(1);
                log.fail(error);
            }
            Err(LogError::Failed(error)) => log.fail((*error).clone()),
            // Not fatal: the segment is complete and is sealed after the next start.
            Err(error) => tracing::warn!(log = %log.id(), %error, "cannot seal a segment"),
        }
        self.end(log);
    }

    fn end(&self, log: &Arc<OpenLog>) {
        let mut state = log.lock();
        state.seal_ended();
        self.logs.remove_if_idle(log, state);
    }
}

fn seal(log: &OpenLog, base_index: u64) -> Result<(), LogError> {
    let dir = &log.dir;
    let unsealed = || log.lock().segments().unsealed(base_index);
    // Truncated away since it was queued: nothing to do.
    let Some((file, contents)) = unsealed() else { return Ok(()) };
    // A failed flush is never retried: it stops the log.
    file.sync_data().map_err(|error| dir.segment_error(base_index, "flush the segment")(error).sticky())?;

    let header = dir.read_header(&*file, base_index)?;
    let mut hasher = ContentHash::new();
    let walked = dir.walk(&file, &header, contents.data_len, |header, payload| hasher.update_frame(header, payload))?;

    let _seal = log.lock_seals();
    if unsealed().is_none_or(|(_, now)| now != contents) {
        return Ok(());
    }
    let damaged = |position, index, reason: &dyn ToString| {
        Err(LogError::damaged(dir.segment_path(base_index), position, Some(index), reason.to_string()))
    };
    if let Some(bad) = walked.bad {
        let at = &walked.contents;
        return damaged(at.data_len, at.next_index, &bad);
    }
    if walked.contents != contents {
        return damaged(0, base_index, &"its frames are not the ones that were written");
    }
    let index = SparseIndex::Memory(walked.index);
    dir.write_index(&contents, header.seed, &index).map_err(dir.segment_error(base_index, "write the index"))?;
    let footer = Footer { contents, hash: hasher.finalize() };
    dir.write_footer(&*file, &footer, header.seed)?;

    log.lock().sealed(base_index, footer.hash);
    log.metrics().sealed_segments.add(1);
    Ok(())
}
