//! Encoding entries into segment files.
//!
//! The [`Writer`] is the only one that appends to a log's files. It does not sync: it remembers what is to be synced, and
//! the scheduler's barrier does so for all logs of a round at once.

use std::{
    io::IoSlice,
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;

use super::{LogInner, Phase, Segment, State};
use crate::{
    EntryKind, LogError, LogId, StoredEntry,
    disk::{Disk, DiskFile, OpenMode, write_all_at},
    frame::{Expect, FrameHeader, encode_header, frame_len, seed},
    index::{IndexBuilder, IndexEntry, SparseIndex},
    segment::{Contents, SEGMENT_HEADER, SegmentHeader, segment_name},
};

/// Payloads up to this many bytes are copied beside their header: cheaper than one more slice for the kernel.
const COPY_BELOW: usize = 512;

/// The write side of one log.
#[derive(Debug)]
pub(crate) struct Writer {
    /// The segment being written; `None`: the next entry starts one.
    pub(crate) active: Option<Active>,
    /// What the next frame will say of its place.
    pub(crate) expect: Expect,
    /// Files written to and not synced, with their paths.
    pub(crate) unsynced: Vec<(Arc<dyn DiskFile>, PathBuf)>,
    /// The directory has new names that are not synced.
    pub(crate) names_unsynced: bool,
    /// The journal says that the log was closed cleanly: to be taken back before anything is written.
    pub(crate) clean_mark: bool,
}

/// The segment being written.
#[derive(Debug)]
pub(crate) struct Active {
    pub(crate) file: Arc<dyn DiskFile>,
    pub(crate) path: PathBuf,
    pub(crate) contents: Contents,
    pub(crate) builder: IndexBuilder,
}

/// What a round added to one segment.
pub(crate) struct Piece {
    /// The file, when the segment is new.
    new_file: Option<Arc<dyn DiskFile>>,
    contents: Contents,
    index: Vec<IndexEntry>,
}

/// Everything about its surroundings that writing needs.
pub(crate) struct WriteContext<'a> {
    pub(crate) disk: &'a dyn Disk,
    pub(crate) dir: &'a Path,
    pub(crate) id: LogId,
    pub(crate) segment_bytes: u64,
    pub(crate) index_interval: u64,
    pub(crate) now_ms: i64,
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
struct Batch {
    scratch: Vec<u8>,
    parts: Vec<Part>,
}

impl Batch {
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

impl Writer {
    /// A writer of an empty log at a place.
    pub(crate) fn idle(expect: Expect) -> Self {
        Self { active: None, expect, unsynced: Vec::new(), names_unsynced: false, clean_mark: false }
    }

    /// Writes entries, starting segments where needed. On an error, what is on disk beyond the old end is garbage that
    /// only reopening the log clears.
    pub(crate) fn write(
        &mut self,
        context: &WriteContext<'_>,
        entries: &[StoredEntry],
    ) -> Result<Vec<Piece>, LogError> {
        let mut pieces: Vec<Piece> = Vec::new();
        let mut batch = Batch::default();
        // Where the batch starts in the active file.
        let mut start = self.active.as_ref().map_or(0, |active| active.contents.data_len);
        let mut segment_seed = self.active.as_ref().map_or(0, |active| seed(context.id, active.contents.base_index));
        for stored in entries {
            let len = frame_len(stored.entry.payload.len());
            let full = self.active.as_ref().is_some_and(|active| {
                !active.contents.is_empty() && active.contents.data_len + len > context.segment_bytes
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
                    segment_seed = seed(context.id, active.contents.base_index);
                    let (file, path) = (active.file.clone(), active.path.clone());
                    self.unsynced.push((file.clone(), path));
                    self.names_unsynced = true;
                    pieces.push(Piece { new_file: Some(file), contents: active.contents, index: Vec::new() });
                    self.active.insert(active)
                }
            };
            if pieces.is_empty() {
                pieces.push(Piece { new_file: None, contents: active.contents, index: Vec::new() });
                if !self.unsynced.iter().any(|(file, _)| Arc::ptr_eq(file, &active.file)) {
                    self.unsynced.push((active.file.clone(), active.path.clone()));
                }
            }
            let prev_crc = active.contents.last_crc;
            let (header, crc) = encode_header(stored, context.durable_next, prev_crc, segment_seed);
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
            if let Some(piece) = pieces.last_mut() {
                piece.contents = active.contents;
                piece.index.extend(noted);
            }
        }
        if let Some(active) = &self.active
            && !batch.parts.is_empty()
        {
            batch.write(&*active.file, &active.path, start)?;
        }
        Ok(pieces)
    }

    /// Creates the file of the next segment. Its header is written with its first frames.
    fn create(&self, context: &WriteContext<'_>) -> Result<(Active, [u8; SEGMENT_HEADER]), LogError> {
        let Expect { index, offset, prev_crc } = self.expect;
        let path = context.dir.join(segment_name(index));
        let file = context
            .disk
            .open(&path, OpenMode::CreateNew)
            .map_err(|error| LogError::io(&path, "create the segment", error))?;
        let header = SegmentHeader {
            id: context.id,
            base_index: index,
            base_offset: offset,
            prev_crc,
            created_ms: context.now_ms,
            durable_mark: context.durable_next,
        };
        let contents = Contents::empty(index, offset, prev_crc);
        let builder = IndexBuilder::new(context.index_interval);
        Ok((Active { file, path, contents, builder }, header.encode()))
    }
}

impl State {
    /// Takes over what a round wrote.
    pub(crate) fn apply_pieces(&mut self, pieces: Vec<Piece>) {
        for piece in pieces {
            self.written_next = piece.contents.next_index;
            match (piece.new_file, self.segments.back_mut()) {
                (None, Some(last)) => {
                    last.contents = piece.contents;
                    if let Phase::Open { index: SparseIndex::Memory(entries), .. } = &mut last.phase {
                        entries.extend(piece.index);
                    }
                }
                (Some(file), _) => {
                    let index = SparseIndex::Memory(piece.index);
                    let phase = Phase::Open { file, index, seal_queued: false };
                    self.segments.push_back(Segment { contents: piece.contents, phase });
                    self.last_is_active = true;
                }
                (None, None) => unreachable!("a round adds to a segment that exists"),
            }
        }
    }
}

impl LogInner {
    pub(crate) fn write_context(&self, durable_next: u64) -> WriteContext<'_> {
        WriteContext {
            disk: &*self.shared.disk,
            dir: &self.dir,
            id: self.id,
            segment_bytes: self.segment_bytes(),
            index_interval: self.shared.config.index_interval_bytes,
            now_ms: self.shared.config.clock.wall_ms(),
            durable_next,
        }
    }
}
