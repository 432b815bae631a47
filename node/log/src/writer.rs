//! Encoding entries into segment files.
//!
//! Invariant: the [`Writer`] of a log is the only one that appends to its files, and there is one. It does not sync: it
//! remembers what is to be synced, and the barrier of the round does so for all logs at once.
//!
//! Neighbours: `state.rs` keeps the writer while no one uses it; a round (`round.rs`) or a change (`log/change.rs`) takes it
//! out. Names no lock, no queue and no journal.

use std::{
    io::IoSlice,
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;

use crate::{
    Entropy, EntryKind, LogError, StoredEntry,
    disk::{DiskFile, OpenMode, write_all_at},
    frame::{Expect, FrameHeader, encode_header, frame_len},
    index::{IndexBuilder, IndexEntry},
    log_dir::LogDir,
    seed::{Seed, SegmentVersion},
    segment::{Contents, SegmentHeader},
};

/// Payloads up to this many bytes are copied beside their header: cheaper than one more slice for the kernel.
const COPY_BELOW: usize = 512;

/// The write side of one log.
#[derive(Debug)]
pub(crate) struct Writer {
    /// The segment being written; `None`: the next entry starts one.
    active: Option<ActiveSegment>,
    /// Index, offset and previous checksum of the next frame.
    expect: Expect,
    /// Files written to and not synced, with their paths.
    unsynced: Vec<(Arc<dyn DiskFile>, PathBuf)>,
    /// The directory has new names that are not synced.
    names_unsynced: bool,
    /// The journal has a clean mark, which must be removed before anything is written.
    clean_mark: bool,
}

/// The segment being written.
#[derive(Debug)]
pub(crate) struct ActiveSegment {
    file: Arc<dyn DiskFile>,
    path: PathBuf,
    contents: Contents,
    seed: Seed,
    builder: IndexBuilder,
}

/// What a round added to one segment.
pub(crate) struct WrittenSegment {
    /// The file, when the segment is new.
    pub(crate) new_file: Option<Arc<dyn DiskFile>>,
    /// What the segment holds now.
    pub(crate) contents: Contents,
    pub(crate) seed: Seed,
    /// Index entries of the new frames.
    pub(crate) index: Vec<IndexEntry>,
    /// Its last frame ends it.
    pub(crate) ended: bool,
}

impl WrittenSegment {
    fn new(new_file: Option<Arc<dyn DiskFile>>, contents: Contents, seed: Seed) -> Self {
        Self { new_file, contents, seed, index: Vec::new(), ended: false }
    }
}

/// What a round needs beside the entries.
pub(crate) struct WriteContext<'a> {
    pub(crate) dir: &'a LogDir,
    pub(crate) segment_bytes: u64,
    pub(crate) now_ms: i64,
    /// Gives new segments their secrets.
    pub(crate) entropy: &'a dyn Entropy,
    /// Goes into every frame: all entries below are on disk.
    pub(crate) durable_next: u64,
}

/// A run of bytes to write: from the scratch buffer, or a payload as it is.
enum Part {
    Scratch(Range<usize>),
    Payload(Bytes),
}

/// Frames of one segment on their way to the file.
#[derive(Default)]
struct FrameBuffer {
    scratch: Vec<u8>,
    parts: Vec<Part>,
}

impl FrameBuffer {
    fn put(&mut self, bytes: &[u8]) {
        let start = self.scratch.len();
        self.scratch.extend_from_slice(bytes);
        let end = self.scratch.len();
        match self.parts.last_mut() {
            Some(Part::Scratch(range)) if range.end == start => range.end = end,
            _ => self.parts.push(Part::Scratch(start..end)),
        }
    }

    fn put_frame(&mut self, header: &[u8], payload: &Bytes) {
        self.put(header);
        if payload.len() <= COPY_BELOW {
            self.put(payload);
        } else {
            self.parts.push(Part::Payload(payload.clone()));
        }
        let padding = frame_len(payload.len()) as usize - header.len() - payload.len();
        if padding > 0 {
            self.put(&[0; 8][..padding]);
        }
    }

    fn write(&mut self, file: &dyn DiskFile, path: &Path, position: u64) -> Result<(), LogError> {
        let mut slices: Vec<IoSlice<'_>> = self
            .parts
            .iter()
            .map(|part| match part {
                Part::Payload(payload) => IoSlice::new(payload),
                Part::Scratch(range) => IoSlice::new(&self.scratch[range.clone()]),
            })
            .collect();
        write_all_at(file, position, &mut slices).map_err(|error| LogError::io(path, "write to the segment", error))?;
        drop(slices);
        self.scratch.clear();
        self.parts.clear();
        Ok(())
    }
}

impl ActiveSegment {
    /// Continues a segment that has `contents`; `last` is the position of its last index entry.
    pub(crate) fn resume(
        dir: &LogDir,
        file: Arc<dyn DiskFile>,
        contents: Contents,
        seed: Seed,
        last: Option<u64>,
    ) -> Self {
        let builder = IndexBuilder::resume(dir.index_interval(), last, contents.max_timestamp);
        Self { file, path: dir.segment_path(contents.base_index), contents, seed, builder }
    }
}

impl Writer {
    /// A writer that continues at `expect`: in `active`, or with a new segment. `clean_mark`: the journal has a clean mark.
    pub(crate) fn new(active: Option<ActiveSegment>, expect: Expect, clean_mark: bool) -> Self {
        Self { active, expect, unsynced: Vec::new(), names_unsynced: false, clean_mark }
    }

    /// Index, offset and previous checksum of the next frame.
    pub(crate) fn expect(&self) -> Expect {
        self.expect
    }

    /// Whether the journal has a clean mark, which must be removed before a write.
    pub(crate) fn has_clean_mark(&self) -> bool {
        self.clean_mark
    }

    /// The clean mark was removed from the journal.
    pub(crate) fn clean_mark_removed(&mut self) {
        self.clean_mark = false;
    }

    /// Ends the active segment, if it has entries. Returns whether it did.
    pub(crate) fn finish_segment(&mut self) -> bool {
        self.active.take_if(|active| !active.contents.is_empty()).is_some()
    }

    /// Lets go of the active segment, whose file is about to change.
    pub(crate) fn release_segment(&mut self) {
        self.active = None;
    }

    /// Continues at `expect` after a truncation: in `active`, or with a new segment.
    pub(crate) fn resume(&mut self, active: Option<ActiveSegment>, expect: Expect) {
        self.active = active;
        self.expect = expect;
    }

    /// Continues with an empty log at `expect`.
    pub(crate) fn reset(&mut self, expect: Expect) {
        self.active = None;
        self.clean_mark = false;
        self.expect = expect;
        self.unsynced.clear();
    }

    /// Whether a file was written to and not synced.
    pub(crate) fn has_unsynced(&self) -> bool {
        !self.unsynced.is_empty()
    }

    /// Takes the files that are to be synced, with their paths.
    pub(crate) fn take_unsynced(&mut self) -> impl Iterator<Item = (Arc<dyn DiskFile>, PathBuf)> + '_ {
        self.unsynced.drain(..)
    }

    /// Whether the directory has new names that are to be synced. They count as synced then.
    pub(crate) fn take_names_unsynced(&mut self) -> bool {
        std::mem::take(&mut self.names_unsynced)
    }

    /// Gives up what is not synced, after a failure that stops the log.
    pub(crate) fn discard_unsynced(&mut self) {
        self.unsynced.clear();
    }

    /// Writes entries, starting segments where needed. On an error, what is on disk beyond the old end is garbage that
    /// only reopening the log clears.
    pub(crate) fn write(
        &mut self,
        context: &WriteContext<'_>,
        entries: &[StoredEntry],
    ) -> Result<Vec<WrittenSegment>, LogError> {
        let mut written: Vec<WrittenSegment> = Vec::new();
        let mut batch = FrameBuffer::default();
        // Where the batch starts in the active file.
        let mut start = self.active.as_ref().map_or(0, |active| active.contents.data_len);
        for stored in entries {
            let len = frame_len(stored.entry.payload.len());
            // An end belongs to the segment that it ends, however large that is.
            let ends = stored.entry.kind == EntryKind::SegmentEnd;
            let full = self.active.as_ref().is_some_and(|active| {
                !ends && !active.contents.is_empty() && active.contents.data_len + len > context.segment_bytes
            });
            if full && let Some(active) = self.active.take() {
                batch.write(&*active.file, &active.path, start)?;
            }
            let active = match &mut self.active {
                Some(active) => active,
                None => {
                    let (active, header) = self.create(context)?;
                    batch.put(&header);
                    start = 0;
                    let (file, path) = (active.file.clone(), active.path.clone());
                    self.unsynced.push((file.clone(), path));
                    self.names_unsynced = true;
                    written.push(WrittenSegment::new(Some(file), active.contents, active.seed));
                    self.active.insert(active)
                }
            };
            if written.is_empty() {
                written.push(WrittenSegment::new(None, active.contents, active.seed));
                if !self.unsynced.iter().any(|(file, _)| Arc::ptr_eq(file, &active.file)) {
                    self.unsynced.push((active.file.clone(), active.path.clone()));
                }
            }
            let prev_crc = active.contents.last_crc;
            let (header, crc) = encode_header(stored, context.durable_next, prev_crc, active.seed);
            batch.put_frame(&header, &stored.entry.payload);
            let position = active.contents.data_len;
            let entry = &stored.entry;
            let timestamp = (entry.kind == EntryKind::Data).then_some(entry.max_timestamp);
            let noted = active.builder.note(entry.index, stored.base_offset, position, timestamp);
            active.contents.push(&FrameHeader {
                payload_len: entry.payload.len(),
                crc,
                kind: entry.kind,
                record_count: entry.record_count,
                term: entry.term,
                leader: entry.leader,
                index: entry.index,
                base_offset: stored.base_offset,
                max_timestamp: entry.max_timestamp,
                durable_mark: context.durable_next,
                prev_crc,
            });
            self.expect = active.contents.expect();
            if let Some(last) = written.last_mut() {
                last.contents = active.contents;
                last.index.extend(noted);
                last.ended = ends;
            }
            if ends && let Some(active) = self.active.take() {
                batch.write(&*active.file, &active.path, start)?;
            }
        }
        if let Some(active) = &self.active
            && !batch.parts.is_empty()
        {
            batch.write(&*active.file, &active.path, start)?;
        }
        Ok(written)
    }

    /// Creates the file of the next segment. Its header is written with its first frames.
    fn create(
        &self,
        context: &WriteContext<'_>,
    ) -> Result<(ActiveSegment, [u8; SegmentVersion::V2.header_len()]), LogError> {
        let Expect { index, offset, prev_crc } = self.expect;
        let path = context.dir.segment_path(index);
        let file = context
            .dir
            .disk()
            .open(&path, OpenMode::CreateNew)
            .map_err(|error| LogError::io(&path, "create the segment", error))?;
        let header = SegmentHeader {
            id: context.dir.id(),
            base_index: index,
            base_offset: offset,
            prev_crc,
            created_ms: context.now_ms,
            durable_mark: context.durable_next,
            seed: Seed::version_2(context.entropy.secret(), index),
        };
        let (contents, seed) = (header.no_frames(), header.seed);
        let builder = IndexBuilder::new(context.dir.index_interval());
        Ok((ActiveSegment { file, path, contents, seed, builder }, header.encode()))
    }
}
