//! Opening a log: what is there, what of it is valid, and what a crash may have torn.
//!
//! Sealed segments are taken by their footer. The others (normally one) are scanned, unless the journal says that the log
//! was closed cleanly and the file still has the length it had then. The first frame that is missing or bad is then judged
//! by the highest durable mark found anywhere — in the journal, in segment headers, in frames before *and after* the bad one:
//! an entry at or above every mark was never acknowledged, so it and everything after is cut; an entry below a mark was, and
//! the log is [`LogError::Damaged`]. Nothing is changed on disk before that verdict.

use std::sync::Arc;

use bytes::Bytes;

use super::{LastEntry, LogInner, Phase, Segment, State, Writer, write::Active};
use crate::{
    LogError,
    bytes_le::{get_i64, get_u32, get_u64, put_i64, put_u32, put_u64},
    disk::{DiskFile, OpenMode},
    frame::{Expect, seed},
    index::{IndexBuilder, IndexOwner, SparseIndex, map_index},
    journal::{Space, engine_key},
    reader::FrameReader,
    segment::{
        Contents, Footer, HeaderError, SCAN_CHUNK, SEGMENT_HEADER, SegmentHeader, index_path, parse_segment_name,
        segment_name, walk,
    },
};

/// What the journal keeps of a log that was closed cleanly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CleanMark {
    pub(crate) first_index: u64,
    pub(crate) start_offset: u64,
    pub(crate) bytes: u64,
    pub(crate) segments: u64,
    /// Greatest timestamp of any data entry; `i64::MIN` if there is none.
    pub(crate) max_timestamp: i64,
    /// Greatest timestamp of the oldest segment that has data entries; `i64::MIN` if there is none.
    pub(crate) oldest_max_timestamp: i64,
    /// The newest segment when it is not sealed; otherwise an empty one that does not exist, at the log's end.
    pub(crate) newest: Contents,
}

impl CleanMark {
    const LEN: usize = 128;

    pub(crate) fn of(state: &State, writer: &Writer) -> Self {
        let Expect { index, offset, prev_crc } = writer.expect;
        let newest = match state.segments.back() {
            Some(Segment { contents, phase: Phase::Open { .. } }) => *contents,
            _ => Contents::empty(index, offset, prev_crc),
        };
        Self {
            first_index: state.first_index(),
            start_offset: state.start_offset(),
            bytes: state.bytes(),
            segments: state.segments.len() as u64,
            max_timestamp: state.segments.iter().map(|s| s.contents.max_timestamp).max().unwrap_or(i64::MIN),
            oldest_max_timestamp: state
                .segments
                .iter()
                .map(|s| s.contents.max_timestamp)
                .find(|newest| *newest != i64::MIN)
                .unwrap_or(i64::MIN),
            newest,
        }
    }

    pub(crate) fn encode(&self) -> Bytes {
        let mut bytes = vec![0; Self::LEN];
        put_u64(&mut bytes, 0, self.first_index);
        put_u64(&mut bytes, 8, self.start_offset);
        put_u64(&mut bytes, 16, self.bytes);
        put_u64(&mut bytes, 24, self.segments);
        put_i64(&mut bytes, 32, self.max_timestamp);
        let newest = &self.newest;
        put_u64(&mut bytes, 40, newest.base_index);
        put_u64(&mut bytes, 48, newest.base_offset);
        put_u64(&mut bytes, 56, newest.next_index);
        put_u64(&mut bytes, 64, newest.next_offset);
        put_u64(&mut bytes, 72, newest.data_len);
        put_i64(&mut bytes, 80, newest.min_timestamp);
        put_i64(&mut bytes, 88, newest.max_timestamp);
        put_u64(&mut bytes, 96, newest.last_term);
        put_u64(&mut bytes, 104, newest.last_leader);
        put_u32(&mut bytes, 112, newest.last_crc);
        put_i64(&mut bytes, 120, self.oldest_max_timestamp);
        bytes.into()
    }

    /// `None` for a mark of another length: the log is scanned then, which is always right.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        if bytes.len() != Self::LEN {
            return None;
        }
        let newest = Contents {
            base_index: get_u64(bytes, 40),
            base_offset: get_u64(bytes, 48),
            next_index: get_u64(bytes, 56),
            next_offset: get_u64(bytes, 64),
            data_len: get_u64(bytes, 72),
            min_timestamp: get_i64(bytes, 80),
            max_timestamp: get_i64(bytes, 88),
            last_term: get_u64(bytes, 96),
            last_leader: get_u64(bytes, 104),
            last_crc: get_u32(bytes, 112),
        };
        Some(Self {
            first_index: get_u64(bytes, 0),
            start_offset: get_u64(bytes, 8),
            bytes: get_u64(bytes, 16),
            segments: get_u64(bytes, 24),
            max_timestamp: get_i64(bytes, 32),
            oldest_max_timestamp: get_i64(bytes, 120),
            newest,
        })
    }
}

/// Where a log starts: written before old segments are deleted, so that a first segment that is missing shows, and
/// by a reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StartMark {
    pub(crate) first_index: u64,
    pub(crate) start_offset: u64,
    /// A reset to this place is under way: segments from before it may still be there.
    pub(crate) resetting: bool,
}

impl StartMark {
    pub(crate) fn encode(self) -> Bytes {
        let mut bytes = vec![0; 24];
        put_u64(&mut bytes, 0, self.first_index);
        put_u64(&mut bytes, 8, self.start_offset);
        put_u64(&mut bytes, 16, u64::from(self.resetting));
        bytes.into()
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        (bytes.len() == 24).then(|| Self {
            first_index: get_u64(bytes, 0),
            start_offset: get_u64(bytes, 8),
            resetting: get_u64(bytes, 16) != 0,
        })
    }
}

/// A segment file as found.
pub(crate) struct FoundSegment {
    pub(crate) base_index: u64,
    pub(crate) file: Arc<dyn DiskFile>,
    pub(crate) file_len: u64,
    pub(crate) header: Result<SegmentHeader, HeaderError>,
    footer: Option<Footer>,
}

/// The first place where the log does not go on as it should.
pub(crate) struct Break {
    /// Position in the list of segments.
    pub(crate) segment: usize,
    position: u64,
    pub(crate) index: u64,
    reason: String,
    /// Intact bytes that this release does not understand: never cut.
    pub(crate) foreign: bool,
}

/// A log's files and what the journal says of them, before any judgement.
pub(crate) struct Survey {
    pub(crate) found: Vec<FoundSegment>,
    /// Where the log starts.
    pub(crate) start: Expect,
    /// The highest index that the journal says is on disk (exclusive).
    pub(crate) journal_mark: u64,
    pub(crate) clean: Option<CleanMark>,
}

/// What opening a log came to.
pub(crate) struct Recovered {
    pub(crate) state: State,
    /// The log has files, so that its directory must be durable too.
    pub(crate) first_segment: bool,
}

impl LogInner {
    /// Builds the state from what is on disk. `known_durable`: the log failed earlier in this process, and nothing from that
    /// index on can be trusted, even if it reads well, since the page cache may hold what the disk does not.
    pub(crate) fn recover(&self, known_durable: Option<u64>) -> Result<Recovered, LogError> {
        let Survey { found, start, journal_mark, clean } = self.survey(known_durable)?;
        if let Some(misplaced) = found.iter().find(|segment| segment.is_misplaced())
            && let Err(error) = misplaced.header
        {
            self.shared.metrics.damage_found.add(1);
            let path = self.dir.join(segment_name(misplaced.base_index));
            return Err(LogError::damaged(&path, 16, Some(misplaced.base_index), error));
        }
        let scan = Scan::run(self, &found, start, journal_mark, clean)?.judge(self, &found, known_durable)?;
        self.finish(found, scan, journal_mark, clean.is_some())
    }

    /// Looks at everything there is of the log. Completes a reset or a retention that was interrupted; changes nothing else that
    /// counts.
    pub(crate) fn survey(&self, known_durable: Option<u64>) -> Result<Survey, LogError> {
        self.sweep()?;
        let start = self.shared.journal.get((self.id, Space::Engine, engine_key::START));
        let start = start.and_then(|bytes| StartMark::decode(&bytes));
        let start = start.unwrap_or(StartMark { first_index: 0, start_offset: 0, resetting: false });
        let mut bases = self.bases()?;
        if start.resetting {
            self.empty_on_disk(std::mem::take(&mut bases), start.first_index, start.start_offset)?;
        } else if bases.contains(&start.first_index) {
            // Retention that a crash interrupted: what is before the start has gone already, as far as anybody was told.
            let gone = bases.partition_point(|base| *base < start.first_index);
            for base_index in bases.drain(..gone) {
                self.remove_segment(base_index)?;
            }
        }
        let start = Expect { index: start.first_index, offset: start.start_offset, prev_crc: 0 };
        let found = bases.iter().map(|base| self.look_at(*base)).collect::<Result<Vec<_>, _>>()?;
        let journal_mark = self.journal_mark().max(self.journal_clean_mark().map_or(0, |mark| mark.newest.next_index));
        let clean = match known_durable {
            None => self.clean_mark(&found),
            Some(_) => None,
        };
        Ok(Survey { found, start, journal_mark, clean })
    }

    /// Removes files that an interrupted replacement left behind.
    fn sweep(&self) -> Result<(), LogError> {
        let disk = &self.shared.disk;
        let list = disk.list(&self.dir).map_err(|error| LogError::io(&self.dir, "list the directory", error))?;
        for entry in list.iter().filter(|entry| entry.name.ends_with(".tmp")) {
            let path = self.dir.join(&entry.name);
            disk.remove_file(&path).map_err(|error| LogError::io(&path, "remove a leftover file", error))?;
        }
        Ok(())
    }

    fn bases(&self) -> Result<Vec<u64>, LogError> {
        let list = self.shared.disk.list(&self.dir);
        let list = list.map_err(|error| LogError::io(&self.dir, "list the directory", error))?;
        let mut bases: Vec<u64> = list.iter().filter_map(|entry| parse_segment_name(&entry.name)).collect();
        bases.sort_unstable();
        Ok(bases)
    }

    fn journal_mark(&self) -> u64 {
        let value = self.shared.journal.get((self.id, Space::Engine, engine_key::DURABLE_MARK));
        value.filter(|value| value.len() == 8).map_or(0, |value| get_u64(&value, 0))
    }

    pub(crate) fn journal_clean_mark(&self) -> Option<CleanMark> {
        CleanMark::decode(&self.shared.journal.get((self.id, Space::Engine, engine_key::CLEAN))?)
    }

    fn look_at(&self, base_index: u64) -> Result<FoundSegment, LogError> {
        let path = self.dir.join(segment_name(base_index));
        let io = |action| {
            let path = path.clone();
            move |error| LogError::io(path, action, error)
        };
        let file = self.shared.disk.open(&path, OpenMode::Write).map_err(io("open the segment"))?;
        let file_len = file.len().map_err(io("read the segment"))?;
        let bytes = file.read_at(0, SEGMENT_HEADER).map_err(io("read the segment's header"))?;
        let header = match SegmentHeader::decode(&bytes) {
            Err(HeaderError::Version(found)) => {
                return Err(LogError::NewerFormat { path, found, supported: crate::segment::SEGMENT_VERSION });
            }
            Ok(header) if header.id != self.id || header.base_index != base_index => {
                Err(HeaderError::Misplaced { id: header.id, base_index: header.base_index })
            }
            other => other,
        };
        let footer =
            Footer::read(&*file, file_len, seed(self.id, base_index)).map_err(io("read the segment's footer"))?;
        Ok(FoundSegment { base_index, file, file_len, header, footer: footer.filter(|_| header.is_ok()) })
    }

    /// The clean mark, if there is one and the newest segment looks as it did then.
    fn clean_mark(&self, found: &[FoundSegment]) -> Option<CleanMark> {
        let mark = self.journal_clean_mark()?;
        let same = match found.last() {
            Some(FoundSegment { footer: Some(footer), .. }) => footer.contents.next_index == mark.newest.next_index,
            Some(last) => {
                last.base_index == mark.newest.base_index
                    && last.file_len == mark.newest.data_len
                    && last.header.is_ok_and(|header| header.base_offset == mark.newest.base_offset)
            }
            None => mark.segments == 0,
        };
        (same && mark.segments == found.len() as u64).then_some(mark)
    }

    /// Cuts what is to be cut, and builds the state.
    fn finish(
        &self,
        mut found: Vec<FoundSegment>,
        scan: Scan,
        marked: u64,
        clean: bool,
    ) -> Result<Recovered, LogError> {
        let mut segments = scan.segments;
        let keep = segments.len();
        for gone in found.drain(keep..).rev() {
            self.shared.metrics.truncated_tail_bytes.add(gone.file_len);
            drop(gone.file);
            self.remove_segment(gone.base_index)?;
        }
        let mut active = None;
        for (at, (segment, found)) in segments.iter_mut().zip(&found).enumerate() {
            let Phase::Open { file, index, .. } = &segment.phase else { continue };
            let path = self.dir.join(segment_name(found.base_index));
            let io = |action| {
                let path = path.clone();
                move |error| LogError::io(path, action, error)
            };
            let data_len = segment.contents.data_len;
            let newest = at + 1 == keep;
            if found.file_len > data_len && newest {
                file.set_len(data_len).map_err(io("cut the torn tail of the segment"))?;
                self.shared.metrics.truncated_tail_bytes.add(found.file_len - data_len);
            }
            if !clean {
                // What was read may be only in the page cache, left there by a process that was killed.
                file.sync_data().map_err(io("flush the segment"))?;
            }
            if newest {
                let interval = self.shared.config.index_interval_bytes;
                let last = index.len().checked_sub(1).map(|last| index.get(last).position);
                let builder = IndexBuilder::resume(interval, last, segment.contents.max_timestamp);
                active = Some(Active { file: file.clone(), path, contents: segment.contents, builder });
            }
        }
        if !clean && keep > 0 {
            let sync = self.shared.disk.sync_dir(&self.dir);
            sync.map_err(|error| LogError::io(&self.dir, "flush the directory", error))?;
        }
        let expect = scan.expect;
        let last = segments.iter().rev().map(|segment| &segment.contents).find(|contents| !contents.is_empty());
        let last = last.map(|contents| LastEntry {
            index: contents.next_index - 1,
            term: contents.last_term,
            leader: contents.last_leader,
        });
        let last_is_active = active.is_some();
        let writer = Writer {
            active,
            expect,
            unsynced: Vec::new(),
            names_unsynced: false,
            clean_mark: self.journal_clean_mark().is_some(),
        };
        let first_segment = keep > 0;
        let state = State {
            segments: segments.into(),
            last_is_active,
            last,
            marked,
            writer: Some(Box::new(writer)),
            ..State::empty_at(expect)
        };
        Ok(Recovered { state, first_segment })
    }
}

impl FoundSegment {
    /// The file is intact and belongs elsewhere.
    pub(crate) fn is_misplaced(&self) -> bool {
        matches!(self.header, Err(HeaderError::Misplaced { .. }))
    }
}

/// The pass over all segments, oldest first, that finds where the valid log ends.
pub(crate) struct Scan {
    /// The segments up to the break; the last one has what is intact before it.
    pub(crate) segments: Vec<Segment>,
    /// What the entry after the last valid one says of its place.
    pub(crate) expect: Expect,
    pub(crate) broken: Option<Break>,
    /// The highest durable mark found anywhere (exclusive).
    pub(crate) marked: u64,
    /// Index after the last intact frame found anywhere, even behind the break.
    pub(crate) seen: u64,
    /// Not everything could be taken by footers and marks.
    scanned: bool,
}

impl Scan {
    /// Looks, and changes nothing.
    pub(crate) fn run(
        log: &LogInner,
        found: &[FoundSegment],
        start: Expect,
        journal_mark: u64,
        clean: Option<CleanMark>,
    ) -> Result<Self, LogError> {
        let mut segments = Vec::new();
        let mut expect = start;
        let mut marked = journal_mark;
        let mut scanned = false;
        let mut broken = None;
        for at in 0..found.len() {
            let this = &found[at];
            let next = found.get(at + 1).map(|next| next.base_index);
            let path = log.dir.join(segment_name(this.base_index));
            let break_at =
                |position, index, reason: String| Break { segment: at, position, index, reason, foreign: false };
            let header = match &this.header {
                Ok(header) => *header,
                Err(error) => {
                    // Segments before it may be missing too.
                    let index = if at == 0 { this.base_index } else { this.base_index.min(expect.index) };
                    broken = Some(break_at(0, index, error.to_string()));
                    break;
                }
            };
            let begins = Expect { index: header.base_index, offset: header.base_offset, prev_crc: header.prev_crc };
            if at == 0 && begins.index <= expect.index {
                // It may start before the start, if the segment that stood there is missing.
                expect = begins;
            }
            marked = marked.max(header.durable_mark);
            if begins != expect {
                // A segment before it is missing or short. Names reach the disk in any order too, so that this alone is no
                // damage.
                let reason = format!("the log goes on at entry {}, expected was {}", begins.index, expect.index);
                broken = Some(break_at(0, expect.index, reason));
                break;
            }
            let (contents, phase) = match this.footer {
                Some(Footer { contents, hash }) => {
                    marked = marked.max(contents.next_index);
                    (contents, Phase::Sealed { hash })
                }
                None => {
                    let file = this.file.clone();
                    let seed = seed(log.id, this.base_index);
                    let interval = log.shared.config.index_interval_bytes;
                    let known = clean.filter(|mark| next.is_none() && mark.newest.base_index == this.base_index);
                    let mapped = known.and_then(|mark| log.load_index(&mark.newest, seed).map(|index| (mark, index)));
                    if let Some((mark, index)) = mapped {
                        (mark.newest, Phase::Open { file, index, seal_queued: false })
                    } else {
                        scanned = true;
                        let walked = walk(&file, &header, seed, this.file_len, interval, |_, _| {})
                            .map_err(|error| LogError::io(&path, "read the segment", error))?;
                        marked = marked.max(walked.durable_mark);
                        // Before a newer segment, anything after the last entry is the remains of a footer.
                        let complete = next == Some(walked.contents.next_index) && !walked.contents.is_empty();
                        if let Some(bad) = walked.bad.filter(|_| !complete) {
                            let mut place =
                                break_at(walked.contents.data_len, walked.contents.next_index, bad.to_string());
                            place.foreign = bad.is_foreign();
                            broken = Some(place);
                        }
                        let index = SparseIndex::Memory(walked.index);
                        (walked.contents, Phase::Open { file, index, seal_queued: false })
                    }
                }
            };
            expect = contents.expect();
            segments.push(Segment { contents, phase });
            if broken.is_some() {
                break;
            }
        }
        let mut seen = expect.index;
        if let Some(place) = &broken {
            let after = look_behind(log, found, place)?;
            marked = marked.max(after.marked);
            seen = seen.max(after.seen);
        }
        let scanned = scanned || broken.is_some();
        Ok(Self { segments, expect, broken, marked, seen, scanned })
    }

    /// Index of the entry that should stand at the break; the log's end if there is none.
    pub(crate) fn verdict(&self) -> u64 {
        self.broken.as_ref().map_or(self.expect.index, |place| place.index)
    }

    /// The error, if entries that were durable are bad or missing. A log that failed earlier was known to be on disk up to
    /// `known_durable` only; marks never exceed that.
    pub(crate) fn damage(
        &self,
        log: &LogInner,
        found: &[FoundSegment],
        known_durable: Option<u64>,
    ) -> Option<LogError> {
        let (verdict, marked) = (self.verdict(), self.marked);
        let foreign = self.broken.as_ref().is_some_and(|place| place.foreign);
        if verdict >= marked.min(known_durable.unwrap_or(u64::MAX)) && !foreign {
            return None;
        }
        Some(match &self.broken {
            Some(place) => {
                let path = log.dir.join(segment_name(found[place.segment].base_index));
                let reason = format!("{}; entries below {marked} were durable", place.reason);
                LogError::damaged(path, place.position, Some(place.index), reason)
            }
            None => {
                let last = found.last().map_or(log.dir.clone(), |last| log.dir.join(segment_name(last.base_index)));
                let end = found.last().map_or(0, |last| last.file_len);
                let reason = format!("the log ends before entry {verdict}, but entries below {marked} were durable");
                LogError::damaged(last, end, Some(verdict), reason)
            }
        })
    }

    /// Tells damage from a torn write, which is left out of what is returned.
    fn judge(mut self, log: &LogInner, found: &[FoundSegment], known_durable: Option<u64>) -> Result<Self, LogError> {
        log.shared.metrics.recoveries.add(u64::from(self.scanned));
        if let Some(error) = self.damage(log, found, known_durable) {
            log.shared.metrics.damage_found.add(1);
            return Err(error);
        }
        let cut_at = known_durable.unwrap_or(u64::MAX);
        if let Some(place) = &self.broken {
            tracing::info!(
                log = %log.id, index = place.index, position = place.position, reason = %place.reason, durable_mark = self.marked,
                "cut a torn, unacknowledged tail"
            );
        }
        let segments = &mut self.segments;
        if self.expect.index > cut_at {
            cut_to(log, segments, cut_at, &mut self.expect)?;
        }
        // A break at the start of a segment leaves a segment without entries, unless it is the first: not worth a file.
        while segments.len() > 1 && segments.last().is_some_and(|last| last.contents.is_empty()) {
            segments.pop();
        }
        Ok(self)
    }
}

/// What stands behind a break.
struct Behind {
    marked: u64,
    seen: u64,
}

/// The highest durable mark, and the last entry, in valid frames after a break. Blocks reach the disk in any order, so there
/// may be some.
fn look_behind(log: &LogInner, found: &[FoundSegment], place: &Break) -> Result<Behind, LogError> {
    let mut behind = Behind { marked: 0, seen: 0 };
    for (at, segment) in found.iter().enumerate().skip(place.segment).filter(|(_, segment)| !segment.is_misplaced()) {
        let path = log.dir.join(segment_name(segment.base_index));
        if let Ok(header) = &segment.header {
            behind.marked = behind.marked.max(header.durable_mark);
        }
        if let Some(footer) = &segment.footer {
            behind.marked = behind.marked.max(footer.contents.next_index);
            continue;
        }
        let start = if at == place.segment { place.position.max(SEGMENT_HEADER as u64) } else { SEGMENT_HEADER as u64 };
        let seed = seed(log.id, segment.base_index);
        let mut reader = FrameReader::new(segment.file.clone(), seed, start, segment.file_len, SCAN_CHUNK);
        loop {
            match reader.resync() {
                Ok(Some(frame)) => {
                    behind.marked = behind.marked.max(frame.header.durable_mark);
                    behind.seen = behind.seen.max(frame.header.index.saturating_add(1));
                }
                Ok(None) => break,
                Err(error) => return Err(LogError::io(&path, "read the segment", error)),
            }
        }
    }
    Ok(behind)
}

/// Shortens what was found to the entries below `cut_at`, after a failed flush: they read well, but may not be on disk.
fn cut_to(log: &LogInner, segments: &mut Vec<Segment>, cut_at: u64, expect: &mut Expect) -> Result<(), LogError> {
    while segments.len() > 1 && segments.last().is_some_and(|last| last.contents.base_index >= cut_at) {
        segments.pop();
    }
    let Some(last) = segments.last_mut() else { return Ok(()) };
    if last.contents.next_index > cut_at {
        let base_index = last.contents.base_index;
        let path = log.dir.join(segment_name(base_index));
        let Phase::Open { file, .. } = &last.phase else {
            return Err(LogError::damaged(
                &path,
                0,
                Some(cut_at),
                "a sealed segment holds entries that were never durable",
            ));
        };
        let file = file.clone();
        let header = log.read_header(&*file, base_index)?;
        let seed = seed(log.id, base_index);
        let mut reader =
            FrameReader::new(file.clone(), seed, SEGMENT_HEADER as u64, last.contents.data_len, SCAN_CHUNK);
        while let Ok(Some(header)) = reader.peek() {
            if header.index >= cut_at {
                break;
            }
            reader.skip(&header);
        }
        let interval = log.shared.config.index_interval_bytes;
        let walked = walk(&file, &header, seed, reader.position(), interval, |_, _| {})
            .map_err(|error| LogError::io(&path, "read the segment", error))?;
        last.contents = walked.contents;
        last.phase = Phase::Open { file, index: SparseIndex::Memory(walked.index), seal_queued: false };
    }
    *expect = last.contents.expect();
    Ok(())
}

impl LogInner {
    /// The index of the newest segment as it was written when the log was closed, in memory so that it can grow.
    fn load_index(&self, contents: &Contents, seed: u32) -> Option<SparseIndex> {
        let owner = IndexOwner { seed, data_len: contents.data_len, last_crc: contents.last_crc };
        let path = index_path(&self.dir, contents.base_index);
        match map_index(&*self.shared.disk, &path, owner) {
            Ok(index) => Some(SparseIndex::Memory((0..index.len()).map(|at| index.get(at)).collect())),
            Err(error) => {
                tracing::info!(?path, %error, "index is not usable; scanning the segment");
                None
            }
        }
    }
}
