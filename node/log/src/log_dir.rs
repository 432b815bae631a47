//! The directory of one log: its paths, and the steps on single files that several operations need.
//!
//! Promise: a name that was added or removed is durable after [`LogDir::sync`], and a removed segment after
//! [`LogDir::remove_segment`] returns. A missing index is never an error: an index is derived from its segment.
//!
//! Neighbours: recovery, repair, changes, the sealer and the open sealed files use it; it uses `segment.rs`, `index.rs` and
//! `disk`. It holds no state of the log but whether the directory's own name is durable, and takes no lock. Names neither
//! journal nor scheduler.

use std::{
    io::{self, IoSlice},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;

use crate::{
    LogError, LogId,
    disk::{Disk, DiskFile, OpenMode, write_all_at},
    frame::FrameHeader,
    index::{IndexError, IndexOwner, SparseIndex, map_index, write_index},
    seed::Seed,
    segment::{
        Contents, Footer, MAX_SEGMENT_HEADER, SegmentHeader, Walk, index_path, parse_segment_name, segment_name, walk,
    },
};

/// The directory of one log.
#[derive(Debug)]
pub(crate) struct LogDir {
    id: LogId,
    /// The log whose segments this one took over.
    origin: Option<LogId>,
    path: PathBuf,
    disk: Arc<dyn Disk>,
    index_interval: u64,
    /// The directory's name is known to survive a crash.
    durable: AtomicBool,
}

impl LogDir {
    /// The directory of log `id` in `logs`, which took over the segments of `origin`. `durable`: its name is known to survive a crash.
    pub(crate) fn new(
        disk: Arc<dyn Disk>,
        logs: &Path,
        id: LogId,
        origin: Option<LogId>,
        index_interval: u64,
        durable: bool,
    ) -> Self {
        let path = logs.join(id.to_string());
        Self { id, origin, path, disk, index_interval, durable: AtomicBool::new(durable) }
    }

    pub(crate) fn id(&self) -> LogId {
        self.id
    }

    /// The logs that a segment in this directory may name: this one, and the one whose segments it took over.
    pub(crate) fn names(&self) -> impl Iterator<Item = LogId> {
        [self.id].into_iter().chain(self.origin)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The directory that holds this one and those of the other logs.
    pub(crate) fn parent(&self) -> &Path {
        self.path.parent().unwrap_or(&self.path)
    }

    pub(crate) fn disk(&self) -> &Arc<dyn Disk> {
        &self.disk
    }

    /// Bytes of segment for each entry of an index.
    pub(crate) fn index_interval(&self) -> u64 {
        self.index_interval
    }

    pub(crate) fn segment_path(&self, base_index: u64) -> PathBuf {
        self.path.join(segment_name(base_index))
    }

    /// Makes the names in the directory durable.
    pub(crate) fn sync(&self) -> Result<(), LogError> {
        self.disk.sync_dir(&self.path).map_err(|error| LogError::io(&self.path, "flush the directory", error))
    }

    pub(crate) fn is_durable(&self) -> bool {
        self.durable.load(Ordering::Acquire)
    }

    /// Notes that the directory's own name was flushed.
    pub(crate) fn note_durable(&self) {
        self.durable.store(true, Ordering::Release);
    }

    /// Makes sure that the directory's own name survives a crash.
    pub(crate) fn make_durable(&self) -> Result<(), LogError> {
        if !self.is_durable() {
            let parent = self.parent();
            let sync = self.disk.sync_dir(parent);
            sync.map_err(|error| LogError::io(parent, "flush the directory", error))?;
            self.note_durable();
        }
        Ok(())
    }

    /// Base indexes of the segment files, in order.
    pub(crate) fn base_indexes(&self) -> Result<Vec<u64>, LogError> {
        let list = self.disk.list(&self.path);
        let list = list.map_err(|error| LogError::io(&self.path, "list the directory", error))?;
        let mut bases: Vec<u64> = list.iter().filter_map(|entry| parse_segment_name(&entry.name)).collect();
        bases.sort_unstable();
        Ok(bases)
    }

    /// Removes the files that an interrupted replacement left behind.
    pub(crate) fn remove_leftovers(&self) -> Result<(), LogError> {
        let list = self.disk.list(&self.path);
        let list = list.map_err(|error| LogError::io(&self.path, "list the directory", error))?;
        for entry in list.iter().filter(|entry| entry.name.ends_with(".tmp")) {
            let path = self.path.join(&entry.name);
            self.disk.remove_file(&path).map_err(|error| LogError::io(&path, "remove a leftover file", error))?;
        }
        Ok(())
    }

    /// The error of an operating system call on a segment.
    pub(crate) fn segment_error(&self, base_index: u64, action: &'static str) -> impl Fn(io::Error) -> LogError {
        let path = self.segment_path(base_index);
        move |error| LogError::io(&path, action, error)
    }

    pub(crate) fn open_segment(&self, base_index: u64, mode: OpenMode) -> Result<Arc<dyn DiskFile>, LogError> {
        let path = self.segment_path(base_index);
        self.disk.open(&path, mode).map_err(|error| LogError::io(&path, "open the segment", error))
    }

    pub(crate) fn read_header(&self, file: &dyn DiskFile, base_index: u64) -> Result<SegmentHeader, LogError> {
        let path = self.segment_path(base_index);
        let bytes = file.read_at(0, MAX_SEGMENT_HEADER);
        let bytes = bytes.map_err(|error| LogError::io(&path, "read the segment's header", error))?;
        SegmentHeader::decode(&bytes).map_err(|error| LogError::damaged(&path, 0, Some(base_index), error))
    }

    /// Walks the frames of a segment up to `end` or the first bad one; see [`walk`].
    pub(crate) fn walk(
        &self,
        file: &Arc<dyn DiskFile>,
        header: &SegmentHeader,
        end: u64,
        each: impl FnMut(&FrameHeader, &Bytes),
    ) -> Result<Walk, LogError> {
        let base_index = header.base_index;
        let walked = walk(file, header, end, self.index_interval, each);
        walked.map_err(self.segment_error(base_index, "read the segment"))
    }

    /// Removes a segment and its index, durably.
    pub(crate) fn remove_segment(&self, base_index: u64) -> Result<(), LogError> {
        self.remove_index(base_index)?;
        let path = self.segment_path(base_index);
        self.disk.remove_file(&path).map_err(|error| LogError::io(&path, "remove the segment", error))?;
        self.sync()
    }

    /// Removes the index of a segment, if there is one.
    pub(crate) fn remove_index(&self, base_index: u64) -> Result<(), LogError> {
        let index = index_path(&self.path, base_index);
        match self.disk.remove_file(&index) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(LogError::io(&index, "remove the index", error))
            }
            _ => Ok(()),
        }
    }

    /// Path of a segment's index.
    pub(crate) fn index_path(&self, base_index: u64) -> PathBuf {
        index_path(&self.path, base_index)
    }

    pub(crate) fn map_index(&self, contents: &Contents, seed: Seed) -> Result<SparseIndex, IndexError> {
        map_index(&*self.disk, &self.index_path(contents.base_index), IndexOwner::of(contents, seed))
    }

    pub(crate) fn write_index(&self, contents: &Contents, seed: Seed, index: &SparseIndex) -> io::Result<()> {
        write_index(&*self.disk, &self.index_path(contents.base_index), IndexOwner::of(contents, seed), index)
    }

    /// Ends a segment with its footer, durably. Its frames are on disk, and the caller holds the log's `seal_lock`.
    pub(crate) fn write_footer(&self, file: &dyn DiskFile, footer: &Footer, seed: Seed) -> Result<(), LogError> {
        let Contents { base_index, data_len, .. } = footer.contents;
        let error = |action| self.segment_error(base_index, action);
        let bytes = footer.encode(seed);
        // Remains of a footer that an earlier crash tore go first: a footer is found from the end of the file.
        if file.len().map_err(error("read the segment"))? > data_len {
            file.set_len(data_len).map_err(error("cut an old footer"))?;
        }
        write_all_at(file, data_len, &mut [IoSlice::new(&bytes)]).map_err(error("write the footer"))?;
        file.sync_data().map_err(|sync| error("flush the segment")(sync).sticky())
    }
}
