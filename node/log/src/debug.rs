//! Inspection of one segment file without a store, after something went wrong.
//!
//! [`SegmentFile::open`] reads what it can of the header; iterating gives every frame, and every stretch that is no frame, in file
//! order; [`SegmentFile::footer`] and [`SegmentFile::check_index`] judge the rest.
//!
//! Promise: nothing here writes, and no bytes make it panic. Names no store, log or lock.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    ContentHash, EntryKind, LogError, LogId,
    disk::{Disk, DiskFile, OpenMode},
    frame::{Expect, FrameHeader},
    index::{IndexBuilder, IndexError, IndexOwner, map_index},
    reader::{FrameReader, Stop},
    seed::Seed,
    segment::{Contents, Footer, MAX_SEGMENT_HEADER, SCAN_CHUNK, SegmentHeader, parse_segment_name},
};

/// A segment file, open for inspection.
#[derive(Debug)]
pub struct SegmentFile {
    path: PathBuf,
    file: Arc<dyn DiskFile>,
    len: u64,
    header: Result<SegmentHeader, String>,
    id: LogId,
    base_index: u64,
    seed: Seed,
    footer: Option<Footer>,
}

/// The header of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeaderInfo {
    /// Version of the segment.
    pub version: u32,
    /// The log it belongs to.
    pub id: LogId,
    /// First index.
    pub base_index: u64,
    /// Offset of the first record.
    pub base_offset: u64,
    /// When it was created, in ms since the Unix epoch.
    pub created_ms: i64,
    /// CRC of the last frame of the segment before.
    pub prev_crc: u32,
    /// Every entry below this index was on disk when the segment was created.
    pub durable_mark: u64,
}

/// The footer of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FooterInfo {
    /// First index.
    pub base_index: u64,
    /// First index after the segment.
    pub next_index: u64,
    /// Offset of the first record.
    pub base_offset: u64,
    /// First offset after the segment.
    pub next_offset: u64,
    /// Where the frames end in the file.
    pub data_len: u64,
    /// Smallest and greatest timestamp of its data entries, `None` if it has none.
    pub timestamps: Option<(i64, i64)>,
    /// BLAKE3 of the content.
    pub hash: [u8; 32],
}

/// One intact frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FrameInfo {
    /// Bytes it takes in the file, with padding.
    pub len: u64,
    /// Raft index.
    pub index: u64,
    /// Raft term.
    pub term: u64,
    /// Raft id of the leader that made it.
    pub leader: u64,
    /// What it carries.
    pub kind: EntryKind,
    /// Offset of its first record.
    pub base_offset: u64,
    /// Number of offsets that it takes.
    pub record_count: u32,
    /// Greatest timestamp, in ms since the Unix epoch.
    pub max_timestamp: i64,
    /// Every entry below this index was on disk when the frame was encoded.
    pub durable_mark: u64,
    /// The frame's CRC.
    pub crc: u32,
    /// The payload.
    pub payload: bytes::Bytes,
    /// The frame is intact, but does not follow the one before it: what is wrong.
    pub misplaced: Option<String>,
}

/// A stretch of a segment file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stretch {
    /// A frame.
    Frame {
        /// Where it starts.
        position: u64,
        /// Its fields.
        frame: FrameInfo,
    },
    /// Bytes that are no frame, up to the next one or the end.
    Damage {
        /// Where they start.
        position: u64,
        /// How many.
        len: u64,
        /// Why they are no frame.
        reason: String,
    },
}

/// The problems that [`SegmentFile::verify`] found in a segment, one line each; empty if there are none.
pub type Problems = Vec<String>;

impl SegmentFile {
    /// Opens `<dir>/<log id>/<base index>.log`. With a damaged header, log and base index are taken from the path.
    ///
    /// # Errors
    /// [`LogError::Io`] when the file cannot be read; [`LogError::InvalidName`] when neither header nor path name the log.
    pub fn open(disk: &dyn Disk, path: &Path) -> Result<Self, LogError> {
        let io = |error| LogError::io(path, "read the segment", error);
        let file = disk.open(path, OpenMode::Read).map_err(io)?;
        let len = file.len().map_err(io)?;
        let bytes = file.read_at(0, MAX_SEGMENT_HEADER).map_err(io)?;
        let header = SegmentHeader::decode(&bytes);
        let name = |path: Option<&std::ffi::OsStr>| path.map(|name| name.to_string_lossy().into_owned());
        let (id, base_index, seed) = match &header {
            Ok(header) => (header.id, header.base_index, header.seed),
            Err(_) => {
                let file_name = name(path.file_name()).unwrap_or_default();
                let base_index = parse_segment_name(&file_name).ok_or(LogError::InvalidName(file_name))?;
                let dir = path.canonicalize().unwrap_or_else(|_| path.to_owned());
                let dir = name(dir.parent().and_then(Path::file_name)).unwrap_or_default();
                let id = dir.parse()?;
                (id, base_index, salvage_seed(&file, len, &bytes, id, base_index).map_err(io)?)
            }
        };
        let footer = Footer::read(&*file, len, seed).map_err(io)?;
        let header = header.map_err(|error| error.to_string());
        Ok(Self { path: path.to_owned(), file, len, header, id, base_index, seed, footer })
    }

    /// The log that the segment belongs to.
    pub fn id(&self) -> LogId {
        self.id
    }

    /// Length of the file in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether the file has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The header, or what is wrong with it.
    ///
    /// # Errors
    /// The reason, as text.
    pub fn header(&self) -> Result<HeaderInfo, String> {
        self.header.clone().map(|header| HeaderInfo {
            version: header.seed.version() as u32,
            id: header.id,
            base_index: header.base_index,
            base_offset: header.base_offset,
            created_ms: header.created_ms,
            prev_crc: header.prev_crc,
            durable_mark: header.durable_mark,
        })
    }

    /// The footer; `None` when there is no intact one: the segment is not sealed, or the footer is damaged.
    pub fn footer(&self) -> Option<FooterInfo> {
        self.footer.map(|Footer { contents, hash }| FooterInfo {
            base_index: contents.base_index,
            next_index: contents.next_index,
            base_offset: contents.base_offset,
            next_offset: contents.next_offset,
            data_len: contents.data_len,
            timestamps: (contents.min_timestamp <= contents.max_timestamp)
                .then_some((contents.min_timestamp, contents.max_timestamp)),
            hash,
        })
    }

    /// Every stretch of the file between header and footer, in order.
    pub fn stretches(&self) -> Stretches {
        let end = self.footer.map_or(self.len, |footer| footer.contents.data_len);
        let seed = self.seed;
        let reader = FrameReader::new(self.file.clone(), seed, seed.first_frame(), end, SCAN_CHUNK);
        let expect = self.header.as_ref().ok().map(|header| Expect {
            index: header.base_index,
            offset: header.base_offset,
            prev_crc: header.prev_crc,
        });
        Stretches { reader, expect, end, next: None }
    }

    /// Walks everything and reports each problem, with its position: header, frames, footer against frames (with the hash), index
    /// against frames. Empty: the segment is intact.
    ///
    /// # Errors
    /// The operating system's, when the file cannot be read on.
    pub fn verify(&self, disk: &dyn Disk) -> io::Result<Problems> {
        let mut problems = Problems::new();
        if let Err(reason) = &self.header {
            problems.push(format!("header: {reason}"));
        }
        let (base_offset, prev_crc) =
            self.header.as_ref().map_or((0, 0), |header| (header.base_offset, header.prev_crc));
        let mut contents = Contents::empty(self.base_index, base_offset, prev_crc, self.seed.first_frame());
        let mut hasher = ContentHash::new();
        for stretch in self.stretches() {
            match stretch? {
                Stretch::Frame { position, frame } => {
                    if let Some(reason) = &frame.misplaced {
                        problems.push(format!("entry {} at byte {position}: {reason}", frame.index));
                    }
                    let header = frame.header();
                    hasher.update_frame(&header, &frame.payload);
                    contents.push(&header);
                }
                Stretch::Damage { position, len, reason } => {
                    problems.push(format!("{len} bytes at byte {position}: {reason}"));
                }
            }
        }
        if let Some(footer) = &self.footer
            && problems.is_empty()
        {
            if footer.contents != contents {
                problems.push(format!("footer: it has {:?}, but the frames have {contents:?}", footer.contents));
            }
            if footer.hash != hasher.finalize() {
                problems.push("footer: its hash does not match the frames".to_owned());
            }
        }
        if let Err(reason) = self.check_index(disk) {
            problems.push(format!("index: {reason}"));
        }
        Ok(problems)
    }

    /// Checks the index file beside the segment against the frames. Fine if the segment is not sealed: its index is in memory.
    ///
    /// # Errors
    /// The reason, as text.
    pub fn check_index(&self, disk: &dyn Disk) -> Result<(), String> {
        let Some(Footer { contents, .. }) = self.footer else { return Ok(()) };
        let owner = IndexOwner::of(&contents, self.seed);
        let index =
            map_index(disk, &self.path.with_extension("idx"), owner).map_err(|error: IndexError| error.to_string())?;
        let mut builder = IndexBuilder::new(0);
        let mut at = 0;
        for stretch in self.stretches() {
            if let Stretch::Frame { position, frame } = stretch.map_err(|error| error.to_string())? {
                let here = builder.note_frame(&frame.header(), position);
                if at < index.len() && here == Some(index.get(at)) {
                    at += 1;
                }
            }
        }
        if at < index.len() {
            return Err(format!("entry {at} of {} does not match any frame: {:?}", index.len(), index.get(at)));
        }
        Ok(())
    }
}

/// The seed of a segment with a damaged header: of those that it may have had, one with which frames parse.
fn salvage_seed(file: &Arc<dyn DiskFile>, len: u64, header: &[u8], id: LogId, base_index: u64) -> io::Result<Seed> {
    let seeds = SegmentHeader::salvage_seeds(header, id, base_index);
    for seed in &seeds {
        let mut reader = FrameReader::new(file.clone(), *seed, seed.first_frame(), len, SCAN_CHUNK);
        if reader.resync()?.is_some() {
            return Ok(*seed);
        }
    }
    // No frame parses with any other either.
    Ok(seeds.first().copied().unwrap_or(Seed::version_1(id, base_index)))
}

impl FrameInfo {
    fn header(&self) -> FrameHeader {
        FrameHeader {
            payload_len: self.payload.len(),
            crc: self.crc,
            kind: self.kind,
            record_count: self.record_count,
            term: self.term,
            leader: self.leader,
            index: self.index,
            base_offset: self.base_offset,
            max_timestamp: self.max_timestamp,
            durable_mark: self.durable_mark,
            prev_crc: 0,
        }
    }
}

/// Iterates over a segment file; see [`SegmentFile::stretches`].
pub struct Stretches {
    reader: FrameReader,
    expect: Option<Expect>,
    end: u64,
    /// A frame found behind damage that was reported first.
    next: Option<crate::reader::Found>,
}

impl std::fmt::Debug for Stretches {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stretches").field("position", &self.reader.position()).finish_non_exhaustive()
    }
}

impl Stretches {
    fn frame(&mut self, found: crate::reader::Found) -> Stretch {
        let header = found.header;
        let misplaced = self.expect.and_then(|mut expect| expect.advance(&header).err()).map(|error| error.to_string());
        // Whatever it is, the next one is judged by it.
        self.expect =
            Some(Expect { index: header.index.saturating_add(1), offset: header.next_offset(), prev_crc: header.crc });
        let frame = FrameInfo {
            len: header.frame_len(),
            index: header.index,
            term: header.term,
            leader: header.leader,
            kind: header.kind,
            base_offset: header.base_offset,
            record_count: header.record_count,
            max_timestamp: header.max_timestamp,
            durable_mark: header.durable_mark,
            crc: header.crc,
            payload: found.payload,
            misplaced,
        };
        Stretch::Frame { position: found.position, frame }
    }
}

impl Iterator for Stretches {
    type Item = io::Result<Stretch>;

    fn next(&mut self) -> Option<io::Result<Stretch>> {
        if let Some(found) = self.next.take() {
            return Some(Ok(self.frame(found)));
        }
        match self.reader.next() {
            Ok(None) => None,
            Ok(Some(found)) => Some(Ok(self.frame(found))),
            Err(Stop::Io(error)) => {
                self.reader.stop();
                Some(Err(error))
            }
            Err(Stop::Bad(bad)) => {
                let position = self.reader.position();
                match self.reader.resync() {
                    Ok(found) => {
                        let end = found.as_ref().map_or(self.end, |found| found.position);
                        self.next = found;
                        let len = end.saturating_sub(position);
                        Some(Ok(Stretch::Damage { position, len, reason: bad.to_string() }))
                    }
                    Err(error) => {
                        self.reader.stop();
                        Some(Err(error))
                    }
                }
            }
        }
    }
}
