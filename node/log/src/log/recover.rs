//! Opening a log: which of its files and frames are valid, and what a crash may have torn.
//!
//! Sealed segments are taken by their footer. The others (normally one) are scanned, unless the journal shows that the log
//! was closed cleanly and the file still has the length it had then. The first frame that is missing or bad is then judged
//! by the highest durable mark found anywhere — in the journal (the start of the log is one too), in segment headers, in
//! frames before *and after* the bad one:
//! an entry at or above every mark was never acknowledged, so it and everything after is cut; an entry below a mark was, and
//! the log is [`LogError::Damaged`]. Nothing is changed on disk before that verdict.
//!
//! Neighbours: `store.rs` opens a log with it; `repair.rs` uses survey and scan to find the damage; `change.rs` shares the
//! durable steps of a reset. Works on the log's directory and its marks alone: there is no open log yet.

use std::{collections::BTreeSet, sync::Arc};

use crate::{
    EntryKind, LogError,
    disk::{DiskFile, OpenMode},
    frame::Expect,
    index::SparseIndex,
    journal::engine_key,
    log_dir::LogDir,
    lost_tail::{CutPart, LostTail},
    marks::{CleanMark, StartMark, durable_mark, read_durable_mark},
    reader::{FrameReader, Stop},
    seed::Seed,
    segment::{Contents, Footer, HeaderError, MAX_SEGMENT_HEADER, SCAN_CHUNK, SEGMENT_VERSION, SegmentHeader},
    segments::{Phase, Segment, SegmentList},
    state::LogState,
    workers::Workers,
    writer::{ActiveSegment, Writer},
};

/// Bytes fetched to look at the last frames of a segment.
const LAST_CHUNK: usize = 16 << 10;

/// A segment file as found.
pub(super) struct FoundSegment {
    pub(super) base_index: u64,
    pub(super) file: Arc<dyn DiskFile>,
    pub(super) file_len: u64,
    pub(super) header: Result<SegmentHeader, HeaderError>,
    /// The seed in the header; those that it may have had, if it is damaged.
    pub(super) seeds: Vec<Seed>,
    footer: Option<Footer>,
}

/// The first place where a valid frame is missing.
pub(super) struct Break {
    /// Position in the list of segments.
    pub(super) segment: usize,
    position: u64,
    pub(super) index: u64,
    reason: String,
    /// Intact bytes that this release does not understand: never cut.
    pub(super) foreign: bool,
}

/// A log's files and its marks in the journal, before any verdict.
pub(super) struct Survey {
    pub(super) found: Vec<FoundSegment>,
    /// Where the log starts.
    pub(super) start: Expect,
    /// The highest index that the journal has as on disk (exclusive).
    pub(super) journal_mark: u64,
    pub(super) clean: Option<CleanMark>,
}

/// Opens a log: its state, built from what is on disk. `known_durable`: the log failed earlier in this process, and nothing
/// from that index on can be trusted, even if it reads well, since the page cache may hold what the disk does not.
///
/// What is cut off its end is in the journal before, as a [`LostTail`].
pub(crate) fn recover(workers: &Workers, dir: &LogDir, known_durable: Option<u64>) -> Result<LogState, LogError> {
    let Survey { found, start, journal_mark, clean } = Survey::of(workers, dir, known_durable)?;
    if let Some(misplaced) = found.iter().find(|segment| segment.is_misplaced())
        && let Err(error) = misplaced.header
    {
        workers.context.metrics.damage_found.add(1);
        let path = dir.segment_path(misplaced.base_index);
        return Err(LogError::damaged(&path, 16, Some(misplaced.base_index), error));
    }
    let mut scan = Scan::run(dir, &found, start, journal_mark, clean)?;
    workers.context.metrics.recoveries.add(u64::from(scan.scanned));
    if let Some(error) = scan.damage(dir, &found, known_durable) {
        workers.context.metrics.damage_found.add(1);
        return Err(error);
    }
    let verdict = scan.verdict();
    scan.leave_out_torn(dir, known_durable)?;
    if known_durable.is_none_or(|durable| verdict < durable) {
        note_lost_tail(workers, dir, verdict, &found, &scan)?;
    }
    let state = finish(workers, dir, found, scan, journal_mark, clean.is_some())?;
    if state.segments().len() > 0 {
        dir.make_durable()?;
    }
    Ok(state)
}

/// The durable steps of a reset, which recovery repeats when the first of them was done and the last was not.
pub(super) fn reset_on_disk(
    workers: &Workers,
    dir: &LogDir,
    bases: Vec<u64>,
    next_index: u64,
    next_offset: u64,
) -> Result<(), LogError> {
    let id = dir.id();
    let mut mark = StartMark { first_index: next_index, start_offset: next_offset, resetting: true };
    workers.put_and_wait(id, engine_key::START, Some(mark.encode()))?;
    workers.put_and_wait(id, engine_key::CLEAN, None)?;
    for base_index in bases.into_iter().rev() {
        dir.remove_segment(base_index)?;
    }
    workers.put_and_wait(id, engine_key::DURABLE_MARK, Some(durable_mark(next_index)))?;
    mark.resetting = false;
    workers.put_and_wait(id, engine_key::START, Some(mark.encode()))
}

impl Survey {
    /// Reads the marks, the headers and the footers of the log. Completes a reset or a retention that was interrupted; otherwise
    /// removes only leftover temporary files.
    pub(super) fn of(workers: &Workers, dir: &LogDir, known_durable: Option<u64>) -> Result<Self, LogError> {
        dir.remove_leftovers()?;
        let journal = &workers.context.journal;
        let start = StartMark::read(journal, dir.id());
        let mut bases = dir.base_indexes()?;
        if start.resetting {
            reset_on_disk(workers, dir, std::mem::take(&mut bases), start.first_index, start.start_offset)?;
        } else if bases.contains(&start.first_index) {
            // Retention that a crash interrupted: the caller was answered that the segments before the start are deleted.
            let gone = bases.partition_point(|base| *base < start.first_index);
            for base_index in bases.drain(..gone) {
                dir.remove_segment(base_index)?;
            }
        }
        let start = Expect { index: start.first_index, offset: start.start_offset, prev_crc: 0 };
        let found = bases.iter().map(|base| FoundSegment::look_at(dir, *base)).collect::<Result<Vec<_>, _>>()?;
        let clean = CleanMark::read(journal, dir.id());
        // Retention moves the start over sealed segments only, which are on disk.
        let closed_at = clean.map_or(0, |mark| mark.newest.next_index);
        let journal_mark = read_durable_mark(journal, dir.id()).max(closed_at).max(start.index);
        let clean = match known_durable {
            None => clean.filter(|mark| fits(mark, &found)),
            Some(_) => None,
        };
        Ok(Self { found, start, journal_mark, clean })
    }
}

/// Whether the newest segment looks as it did when the clean mark was written.
fn fits(mark: &CleanMark, found: &[FoundSegment]) -> bool {
    let same = match found.last() {
        Some(FoundSegment { footer: Some(footer), .. }) => footer.contents.next_index == mark.newest.next_index,
        Some(last) => {
            last.base_index == mark.newest.base_index
                && last.file_len == mark.newest.data_len
                && last.header.is_ok_and(|header| header.base_offset == mark.newest.base_offset)
        }
        None => mark.segments == 0,
    };
    same && mark.segments == found.len() as u64
}

/// Notes in the journal what is about to be cut, unless that cannot have been entries. Durable when it returns: after the cut
/// nothing else shows it.
fn note_lost_tail(
    workers: &Workers,
    dir: &LogDir,
    from: u64,
    found: &[FoundSegment],
    scan: &Scan,
) -> Result<(), LogError> {
    let keep = scan.segments.len();
    let cut = found.iter().enumerate().filter_map(|(at, segment)| {
        // With a damaged header the frames may be unreadable: any entry may have been there then.
        let seed = segment.seeds.first().copied();
        let seed = seed.unwrap_or_else(|| Seed::version_1(dir.id(), segment.base_index));
        let start = match scan.segments.get(at).map(|kept| (&kept.phase, kept.contents.data_len)) {
            None => seed.first_frame(),
            Some((Phase::Open { .. }, data_len)) if at + 1 == keep => data_len,
            Some(_) => return None,
        };
        Some(CutPart {
            file: segment.file.clone(),
            seed,
            start,
            end: segment.file_len,
            base_index: segment.header.ok().map(|header| header.base_index),
        })
    });
    let lost =
        LostTail::measure(from, cut.collect()).map_err(|error| LogError::io(dir.path(), "read the cut tail", error))?;
    let Some(lost) = lost else { return Ok(()) };
    let before = LostTail::read(&workers.context.journal, dir.id());
    let lost = before.map_or(lost, |before| before.merge(lost));
    workers.put_and_wait(dir.id(), engine_key::LOST_TAIL, Some(lost.encode()))
}

/// Cuts what the scan left out, and builds the state. `clean`: the files are as a clean close left them.
fn finish(
    workers: &Workers,
    dir: &LogDir,
    mut found: Vec<FoundSegment>,
    scan: Scan,
    marked: u64,
    clean: bool,
) -> Result<LogState, LogError> {
    let metrics = &workers.context.metrics;
    let keep = scan.segments.len();
    for gone in found.drain(keep..).rev() {
        metrics.truncated_tail_bytes.add(gone.file_len);
        drop(gone.file);
        dir.remove_segment(gone.base_index)?;
    }
    let mut active = None;
    for (at, (segment, found)) in scan.segments.iter().zip(&found).enumerate() {
        let Phase::Open { file, index, .. } = &segment.phase else { continue };
        let data_len = segment.contents.data_len;
        let newest = at + 1 == keep;
        if found.file_len > data_len && newest {
            file.set_len(data_len).map_err(dir.segment_error(found.base_index, "cut the torn tail of the segment"))?;
            metrics.truncated_tail_bytes.add(found.file_len - data_len);
        }
        if !clean && !crate::mutant!("recovered-not-flushed") {
            // What was read may be only in the page cache, left there by a process that was killed.
            file.sync_data().map_err(dir.segment_error(found.base_index, "flush the segment"))?;
        }
        if newest && !scan.ends.contains(&segment.contents.next_index) {
            let last = index.len().checked_sub(1).map(|last| index.get(last).position);
            active = Some(ActiveSegment::resume(dir, file.clone(), segment.contents, segment.seed, last));
        }
    }
    if !clean && keep > 0 {
        dir.sync()?;
    }
    let segments = SegmentList::new(scan.segments, active.is_some());
    let clean_mark = CleanMark::read(&workers.context.journal, dir.id()).is_some();
    let writer = Writer::new(active, scan.expect, clean_mark);
    Ok(LogState::recovered(segments, Some(writer), scan.expect, marked))
}

impl FoundSegment {
    fn look_at(dir: &LogDir, base_index: u64) -> Result<Self, LogError> {
        let error = |action| dir.segment_error(base_index, action);
        let file = dir.open_segment(base_index, OpenMode::Write)?;
        let file_len = file.len().map_err(error("read the segment"))?;
        let bytes = file.read_at(0, MAX_SEGMENT_HEADER).map_err(error("read the segment's header"))?;
        let header = match SegmentHeader::decode(&bytes) {
            Err(HeaderError::Version(found)) => {
                let path = dir.segment_path(base_index);
                return Err(LogError::NewerFormat { path, found, supported: SEGMENT_VERSION });
            }
            Ok(header) if !dir.names().any(|id| id == header.id) || header.base_index != base_index => {
                Err(HeaderError::Misplaced { id: header.id, base_index: header.base_index })
            }
            other => other,
        };
        let (footer, seeds) = match &header {
            Ok(header) => {
                let footer = Footer::read(&*file, file_len, header.seed).map_err(error("read the segment's footer"))?;
                (footer.filter(|footer| footer.belongs_to(header)), vec![header.seed])
            }
            Err(_) => {
                let of = |id| SegmentHeader::salvage_seeds(&bytes, id, base_index);
                let mut seeds: Vec<Seed> = dir.names().flat_map(of).collect();
                seeds.dedup();
                (None, seeds)
            }
        };
        Ok(Self { base_index, file, file_len, header, seeds, footer })
    }

    /// It has a footer.
    pub(super) fn is_sealed(&self) -> bool {
        self.footer.is_some()
    }

    /// The file is intact and belongs elsewhere.
    pub(super) fn is_misplaced(&self) -> bool {
        matches!(self.header, Err(HeaderError::Misplaced { .. }))
    }
}

/// The pass over all segments, oldest first, that finds where the valid log ends.
pub(super) struct Scan {
    /// The segments up to the break; the last one has what is intact before it.
    pub(super) segments: Vec<Segment>,
    /// Index, offset and chain that the entry after the last valid one must have.
    pub(super) expect: Expect,
    pub(super) broken: Option<Break>,
    /// The highest durable mark found anywhere (exclusive).
    pub(super) marked: u64,
    /// Index after the last intact frame found anywhere, even behind the break.
    pub(super) seen: u64,
    /// Indexes after the entries that end their segments, of the segments without a footer.
    ends: BTreeSet<u64>,
    /// A segment had to be walked, or the log is broken.
    scanned: bool,
}

impl Scan {
    /// Reads the segments; changes nothing.
    pub(super) fn run(
        dir: &LogDir,
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
        let mut ends = BTreeSet::new();
        for at in 0..found.len() {
            let this = &found[at];
            let next = found.get(at + 1).map(|next| next.base_index);
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
                // It may start before the start mark, if the segment at the mark is missing.
                expect = begins;
            }
            marked = marked.max(header.durable_mark);
            if begins != expect {
                // A segment before it is missing or short. Directory entries reach the disk in any order too, so that this
                // alone is not damage.
                let reason = format!("the segment starts at entry {}, expected entry {}", begins.index, expect.index);
                broken = Some(break_at(0, expect.index, reason));
                break;
            }
            let segment = match this.footer {
                Some(Footer { contents, hash }) => {
                    marked = marked.max(contents.next_index);
                    Segment { contents, seed: header.seed, phase: Phase::Sealed { hash } }
                }
                None => {
                    let file = this.file.clone();
                    let known = clean.filter(|mark| next.is_none() && mark.newest.base_index == this.base_index);
                    let mapped =
                        known.and_then(|mark| load_index(dir, &mark.newest, header.seed).map(|index| (mark, index)));
                    if let Some((mark, index)) = mapped {
                        if is_ended(dir, &file, &mark.newest, header.seed, &index)? {
                            ends.insert(mark.newest.next_index);
                        }
                        Segment::open(mark.newest, header.seed, file, index)
                    } else {
                        scanned = true;
                        let walked = dir.walk(&file, &header, this.file_len, |frame, _| {
                            if frame.kind == EntryKind::SegmentEnd {
                                ends.insert(frame.index.saturating_add(1));
                            }
                        })?;
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
                        Segment::open(walked.contents, header.seed, file, index)
                    }
                }
            };
            expect = segment.contents.expect();
            segments.push(segment);
            if broken.is_some() {
                break;
            }
        }
        let mut seen = expect.index;
        if let Some(place) = &broken {
            let after = look_behind(dir, found, place)?;
            marked = marked.max(after.marked);
            seen = seen.max(after.seen);
        }
        let scanned = scanned || broken.is_some();
        Ok(Self { segments, expect, broken, marked, seen, ends, scanned })
    }

    /// Index of the entry that should stand at the break; the log's end if there is none.
    pub(super) fn verdict(&self) -> u64 {
        self.broken.as_ref().map_or(self.expect.index, |place| place.index)
    }

    /// The error, if entries that were durable are bad or missing. A log that failed earlier was known to be on disk up to
    /// `known_durable` only; marks never exceed that.
    pub(super) fn damage(&self, dir: &LogDir, found: &[FoundSegment], known_durable: Option<u64>) -> Option<LogError> {
        let (verdict, marked) = (self.verdict(), self.marked);
        let foreign = self.broken.as_ref().is_some_and(|place| place.foreign);
        if crate::mutant!("damage-cut-as-torn") || verdict >= marked.min(known_durable.unwrap_or(u64::MAX)) && !foreign
        {
            return None;
        }
        Some(match &self.broken {
            Some(place) => {
                let path = dir.segment_path(found[place.segment].base_index);
                let reason = format!("{}; entries below {marked} were durable", place.reason);
                LogError::damaged(path, place.position, Some(place.index), reason)
            }
            None => {
                let last = found.last().map_or(dir.path().to_owned(), |last| dir.segment_path(last.base_index));
                let end = found.last().map_or(0, |last| last.file_len);
                let reason = format!("the log ends before entry {verdict}, but entries below {marked} were durable");
                LogError::damaged(last, end, Some(verdict), reason)
            }
        })
    }

    /// Leaves out the remains of a torn write, and entries that are not known to be durable.
    fn leave_out_torn(&mut self, dir: &LogDir, known_durable: Option<u64>) -> Result<(), LogError> {
        let cut_at = known_durable.unwrap_or(u64::MAX);
        if let Some(place) = &self.broken {
            tracing::info!(
                log = %dir.id(), index = place.index, position = place.position, reason = %place.reason, durable_mark = self.marked,
                "cut a torn, unacknowledged tail"
            );
        }
        let segments = &mut self.segments;
        if self.expect.index > cut_at {
            cut_to(dir, segments, cut_at, &mut self.expect)?;
        }
        // A break at the start of a segment leaves a segment without entries, unless it is the first: not worth a file.
        while segments.len() > 1 && segments.last().is_some_and(|last| last.contents.is_empty()) {
            segments.pop();
        }
        Ok(())
    }
}

/// The highest durable mark and the end of the valid frames behind a break.
struct Behind {
    marked: u64,
    seen: u64,
}

/// The highest durable mark, and the last entry, in valid frames after a break. Blocks reach the disk in any order, so there
/// may be some.
fn look_behind(dir: &LogDir, found: &[FoundSegment], place: &Break) -> Result<Behind, LogError> {
    let mut behind = Behind { marked: 0, seen: 0 };
    for (at, segment) in found.iter().enumerate().skip(place.segment).filter(|(_, segment)| !segment.is_misplaced()) {
        if let Ok(header) = &segment.header {
            behind.marked = behind.marked.max(header.durable_mark);
        }
        if let Some(footer) = &segment.footer {
            behind.marked = behind.marked.max(footer.contents.next_index);
            continue;
        }
        for seed in &segment.seeds {
            let from = if at == place.segment { place.position } else { 0 };
            let start = from.max(seed.first_frame());
            let mut reader = FrameReader::new(segment.file.clone(), *seed, start, segment.file_len, SCAN_CHUNK);
            loop {
                match reader.resync() {
                    Ok(Some(frame)) => {
                        behind.marked = behind.marked.max(frame.header.durable_mark);
                        behind.seen = behind.seen.max(frame.header.index.saturating_add(1));
                    }
                    Ok(None) => break,
                    Err(error) => return Err(dir.segment_error(segment.base_index, "read the segment")(error)),
                }
            }
        }
    }
    Ok(behind)
}

/// Shortens the segments to the entries below `cut_at`, after a failed flush: they read well, but may not be on disk.
fn cut_to(dir: &LogDir, segments: &mut Vec<Segment>, cut_at: u64, expect: &mut Expect) -> Result<(), LogError> {
    while segments.len() > 1 && segments.last().is_some_and(|last| last.contents.base_index >= cut_at) {
        segments.pop();
    }
    let Some(last) = segments.last_mut() else { return Ok(()) };
    if last.contents.next_index > cut_at {
        let base_index = last.contents.base_index;
        let Phase::Open { file, .. } = &last.phase else {
            let reason = "a sealed segment holds entries that were never durable";
            return Err(LogError::damaged(dir.segment_path(base_index), 0, Some(cut_at), reason));
        };
        let file = file.clone();
        let header = dir.read_header(&*file, base_index)?;
        let (seed, end) = (header.seed, last.contents.data_len);
        let mut reader = FrameReader::new(file.clone(), seed, seed.first_frame(), end, SCAN_CHUNK);
        while let Ok(Some(header)) = reader.peek() {
            if header.index >= cut_at {
                break;
            }
            reader.skip(&header);
        }
        let walked = dir.walk(&file, &header, reader.position(), |_, _| {})?;
        *last = Segment::open(walked.contents, header.seed, file, SparseIndex::Memory(walked.index));
    }
    *expect = last.contents.expect();
    Ok(())
}

/// Whether the last frame of a segment that was not walked ends it. A bad frame is left for readers to find.
fn is_ended(
    dir: &LogDir,
    file: &Arc<dyn DiskFile>,
    contents: &Contents,
    seed: Seed,
    index: &SparseIndex,
) -> Result<bool, LogError> {
    let base_index = contents.base_index;
    let start = index.floor_index(contents.next_index.saturating_sub(1));
    let start = start.map_or(seed.first_frame(), |entry| entry.position);
    let mut reader = FrameReader::new(file.clone(), seed, start, contents.data_len, LAST_CHUNK);
    let mut ended = false;
    loop {
        match reader.peek() {
            Ok(Some(header)) => {
                ended = header.kind == EntryKind::SegmentEnd;
                reader.skip(&header);
            }
            Ok(None) => return Ok(ended),
            Err(Stop::Bad(_)) => return Ok(false),
            Err(Stop::Io(error)) => return Err(dir.segment_error(base_index, "read the segment")(error)),
        }
    }
}

/// The index of the newest segment as it was written when the log was closed, in memory so that it can grow.
fn load_index(dir: &LogDir, contents: &Contents, seed: Seed) -> Option<SparseIndex> {
    match dir.map_index(contents, seed) {
        Ok(index) => Some(SparseIndex::Memory((0..index.len()).map(|at| index.get(at)).collect())),
        Err(error) => {
            let path = dir.index_path(contents.base_index);
            tracing::info!(?path, %error, "index is not usable; scanning the segment");
            None
        }
    }
}
