//! Checking what is stored against itself (scrub) and for comparison with other replicas (digest).
//!
//! Both read files from end to end without a lock, as reads do: the log's generation shows a truncation or deletion during the
//! work, which then starts again.
//!
//! Neighbours: plans and the retry are those of `read.rs`. Names no writer and no queue.

use super::{
    Log,
    read::{Interrupted, Lookup},
};
use crate::{
    ContentHash, LogError,
    disk::OpenMode,
    frame::frame_len,
    seed::Seed,
    segment::{Contents, FOOTER, Footer, SCAN_CHUNK},
    segments::{Phase, Segment},
};

impl Log {
    /// Reads one sealed segment from the disk, past every cache, and checks all of it: header, every frame, the chain
    /// through them, the footer, and the content hash. `progress` is called with the bytes read since its last call, about
    /// every 1 MiB (one larger entry is read at once), so that the caller may take its time; no lock is held then.
    ///
    /// A footer that is bad while everything else is well is derived data: it is written again, which is no error. Fine too when
    /// no sealed segment starts at `base_index` (any more): there is nothing to check. Damage does not stop the log.
    ///
    /// # Errors
    /// [`LogError::Damaged`] with the first bad place; [`LogError::Io`].
    pub fn scrub(&self, base_index: u64, progress: &mut dyn FnMut(u64)) -> Result<(), LogError> {
        loop {
            let (contents, hash, generation) = {
                let state = self.log.lock();
                match state.segments().starting_at(base_index) {
                    Some(Segment { contents, phase: Phase::Sealed { hash }, .. }) => {
                        (*contents, *hash, state.generation())
                    }
                    _ => return Ok(()),
                }
            };
            let Err(error) = self.scrub_once(&contents, hash, progress) else { return Ok(()) };
            match self.explain(error, generation) {
                Interrupted::Again => {}
                Interrupted::Failed(error) => return Err(error),
            }
        }
    }

    /// The content hash (see [`ContentHash`]) of the entries `from..to_exclusive`, read from the files and checked. Waits until
    /// all of them are written. Equal on every replica that has the same entries.
    ///
    /// # Errors
    /// [`LogError::Compacted`] below the first entry, [`LogError::NotStored`] above the last, [`LogError::Damaged`].
    pub fn digest(&self, from: u64, to_exclusive: u64) -> Result<[u8; 32], LogError> {
        let unwritten = {
            let state = self.log.lock();
            if to_exclusive > state.next_index() {
                return Err(LogError::NotStored { index: to_exclusive - 1, next: state.next_index() });
            }
            to_exclusive > state.written_next()
        };
        if unwritten {
            self.flush()?;
        }
        loop {
            match self.digest_once(from, to_exclusive) {
                Ok(hash) => return Ok(hash),
                Err(Interrupted::Again) => {}
                Err(Interrupted::Failed(error)) => return Err(error),
            }
        }
    }

    /// How many bytes of segment files the entries `from_index..to_index` take, about: for progress. Entries that are not
    /// stored count nothing. Reads no file.
    pub fn bytes_between(&self, from_index: u64, to_index: u64) -> u64 {
        let state = self.log.lock();
        let stored = state.segments().iter().map(|Segment { contents, .. }| {
            let entries = contents.next_index - contents.base_index;
            let (from, to) = (from_index.max(contents.base_index), to_index.min(contents.next_index));
            let within = u128::from(to.saturating_sub(from)) * u128::from(contents.data_len);
            // As if all of a segment's entries had the same size.
            u64::try_from(within / u128::from(entries.max(1))).unwrap_or(u64::MAX)
        });
        let first = state.tail().first_index();
        let (from, to) = (from_index.max(state.written_next()).max(first), to_index.min(state.next_index()));
        let waiting = state.tail().range(if from < to { from..to } else { first..first });
        let waiting = waiting.map(|stored| frame_len(stored.entry.payload.len()));
        stored.chain(waiting).sum()
    }
}

impl Log {
    fn scrub_once(&self, contents: &Contents, hash: [u8; 32], progress: &mut dyn FnMut(u64)) -> Result<(), LogError> {
        let base_index = contents.base_index;
        let dir = &self.log.dir;
        let io = |action| dir.segment_error(base_index, action);
        let damaged = |position, index, reason: &str| {
            Err(LogError::damaged(dir.segment_path(base_index), position, Some(index), reason))
        };
        let file = dir.open_segment(base_index, OpenMode::Read)?;
        file.forget_cached().map_err(io("drop the segment from the page cache"))?;
        let header = dir.read_header(&*file, base_index)?;
        if !dir.names().any(|id| id == header.id)
            || header.base_index != base_index
            || header.base_offset != contents.base_offset
        {
            return damaged(0, base_index, "its header is not the one that was written");
        }
        let mut hasher = ContentHash::new();
        let mut read = 0;
        let walked = dir.walk(&file, &header, contents.data_len, |header, payload| {
            hasher.update_frame(header, payload);
            read += header.frame_len();
            if read >= SCAN_CHUNK as u64 {
                progress(std::mem::take(&mut read));
            }
        })?;
        if let Some(bad) = walked.bad {
            return damaged(walked.contents.data_len, walked.contents.next_index, &bad.to_string());
        }
        if walked.contents != *contents {
            return damaged(0, base_index, "its frames are not the ones that were written");
        }
        let file_len = file.len().map_err(io("read the segment"))?;
        let footer = Footer::read(&*file, file_len, header.seed).map_err(io("read the segment's footer"))?;
        if hasher.finalize() != hash {
            return damaged(contents.data_len, base_index, "the content hash does not match the frames");
        }
        let written = Footer { contents: *contents, hash };
        if footer != Some(written) {
            tracing::warn!(path = ?dir.segment_path(base_index), "the footer was damaged; writing it again");
            self.log.metrics().damage_found.add(1);
            self.restore_footer(&written, header.seed)?;
        }
        progress(read + FOOTER as u64);
        // No client asked for these bytes: leave the page cache to reads that clients do.
        file.forget_cached().map_err(io("drop the segment from the page cache"))
    }

    /// Writes the footer of a sealed segment again, unless the segment is gone.
    fn restore_footer(&self, footer: &Footer, seed: Seed) -> Result<(), LogError> {
        let log = &self.log;
        let _seal = log.lock_seals();
        let base_index = footer.contents.base_index;
        let is_there =
            log.lock().segments().starting_at(base_index).is_some_and(|found| found.contents == footer.contents);
        if !is_there {
            return Ok(());
        }
        let file = log.dir.open_segment(base_index, OpenMode::Write)?;
        log.dir.write_footer(&*file, footer, seed).inspect_err(|error| log.fail(error.root().clone()))
    }

    fn digest_once(&self, from: u64, to: u64) -> Result<[u8; 32], Interrupted> {
        let mut hasher = ContentHash::new();
        let mut generation = None;
        let mut at = from;
        let mut found = Vec::new();
        while at < to {
            let state = self.log.lock();
            if *generation.get_or_insert(state.generation()) != state.generation() {
                return Err(Interrupted::Again);
            }
            if at < state.first_index() {
                return Err(LogError::Compacted { first: state.first_index() }.into());
            }
            if to > state.written_next() {
                return Err(LogError::NotStored { index: to - 1, next: state.written_next() }.into());
            }
            let plan = self.plan(state, |contents| contents.base_index <= at, Lookup::Index(at), to)?;
            self.collect(&plan, &mut at, &mut SCAN_CHUNK.clone(), &mut found)?;
            for stored in found.drain(..) {
                hasher.update(&stored);
            }
        }
        Ok(hasher.finalize())
    }
}
