//! Cutting damage out of a closed log, so that it opens again and can be filled from another replica.
//!
//! Files that are cut out are moved, not deleted: into `quarantine-<n>/` in the log's directory, where only later cuts and the
//! deletion of the log touch them.
//!
//! Neighbours: survey and scan are those of `recover.rs`. Names no open log.
//!
//! Promise: at every step a crash leaves a log that is as it was, whose open fails with [`LogError::Damaged`], or that is cut.
//! The journal's durable mark ensures this: it is *raised* first to the highest index that may have been acknowledged, so that
//! no open in between takes the missing entries for a torn write, and lowered to the new end last. A second attempt
//! continues where the first stopped.

use std::{
    io::IoSlice,
    path::{Path, PathBuf},
};

use super::extent::may_have_held;
use super::recover::{FoundSegment, Scan, Survey};
use crate::{
    LogError,
    disk::{Disk, OpenMode, write_all_at},
    journal::engine_key,
    log_dir::LogDir,
    marks::durable_mark,
    reader::{FrameReader, Stop},
    segment::{Contents, SCAN_CHUNK, segment_name},
    segments::{Phase, Segment},
    workers::Workers,
};

/// Quarantine folders kept in a log; older ones are removed by the next cut.
const KEPT: usize = 2;
/// What a quarantine folder is called until it is complete.
const UNFINISHED: &str = "quarantine-new";
const PREFIX: &str = "quarantine-";

/// What [`crate::Store::cut_damaged`] or [`crate::Store::cut_from`] did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cut {
    /// Index that the next append must start with: where the log ends now (exclusive).
    pub next_index: u64,
    /// The highest index (exclusive) that any mark or intact frame shows to have been on disk: what this replica may have
    /// acknowledged. Never below `next_index`.
    pub was: u64,
    /// The highest index (exclusive) that it may have held at most, with frames at the end that cannot be read any more. Never
    /// below `was`.
    pub held: u64,
    /// The folder with the files as they were; `None` when no file had anything to cut.
    pub quarantine: Option<PathBuf>,
}

/// The changes to the files that a cut makes.
struct CutPlan {
    /// The segment to be shortened: its position among the found ones, and the contents that it keeps.
    shorten: Option<(usize, Contents)>,
    /// The first found segment to be moved; every later one is moved too.
    gone_from: usize,
    next_index: u64,
}

/// Cuts at the first damaged place, or at `from` at the latest. The log must be claimed, not open.
pub(crate) fn cut_out(
    workers: &Workers,
    dir: &LogDir,
    from: Option<u64>,
    known_durable: Option<u64>,
) -> Result<Cut, LogError> {
    let Survey { found, start, journal_mark, clean } = Survey::of(workers, dir, known_durable)?;
    let scan = Scan::run(dir, &found, start, journal_mark, clean)?;
    let damage = scan.damage(dir, &found, known_durable);
    if scan.broken.as_ref().is_some_and(|place| place.foreign)
        && let Some(error) = damage
    {
        // Not damage: a newer release wrote the entry and can read it.
        return Err(error);
    }
    let trusted = known_durable.unwrap_or(u64::MAX);
    if from.is_none() && damage.is_none() && !found.iter().any(FoundSegment::is_misplaced) {
        let next_index = scan.verdict().min(trusted);
        let was = next_index.max(scan.marked.min(trusted));
        return Ok(Cut { next_index, was, held: was, quarantine: None });
    }
    let plan = plan_cut(dir, &found, &scan, from, trusted, start.index)?;
    let was = scan.marked.max(scan.seen).min(trusted).max(plan.next_index);
    // What a failed log had beyond its last flush was never acknowledged.
    let held = if known_durable.is_some() { was } else { may_have_held(dir, &found, was)? };
    tracing::warn!(
        log = %dir.id(), next_index = plan.next_index, was,
        damage = %damage.map_or_else(|| "found by reading".to_owned(), |error| error.to_string()),
        "cutting damage out of the log"
    );
    let put_durable_mark = |index| workers.put_and_wait(dir.id(), engine_key::DURABLE_MARK, Some(durable_mark(index)));
    if journal_mark < was {
        put_durable_mark(was)?;
    }
    let quarantine = quarantine(dir, &found, &plan)?;
    workers.put_and_wait(dir.id(), engine_key::CLEAN, None)?;
    put_durable_mark(plan.next_index)?;
    if quarantine.is_some() {
        workers.context.metrics.quarantines.add(1);
        if let Err(error) = prune_quarantines(&**dir.disk(), dir.path(), KEPT) {
            tracing::warn!(log = %dir.id(), %error, "cannot remove old quarantine folders");
        }
    }
    Ok(Cut { next_index: plan.next_index, was, held, quarantine })
}

fn plan_cut(
    dir: &LogDir,
    found: &[FoundSegment],
    scan: &Scan,
    from: Option<u64>,
    trusted: u64,
    start: u64,
) -> Result<CutPlan, LogError> {
    let mut limit = trusted;
    let holds = |segment: &Segment, index| (segment.contents.base_index..segment.contents.next_index).contains(&index);
    if let Some(from) = from {
        limit = limit.min(from);
        if let Some(at) = scan.segments.iter().position(|segment| holds(segment, from)) {
            // Good frames before the bad one stay, wherever in its segment it turns out to be.
            let intact = intact_below(dir, &found[at], &scan.segments[at].contents, u64::MAX)?.next_index;
            if intact < scan.segments[at].contents.next_index {
                limit = trusted.min(intact);
            }
        }
    }
    let mut keep = scan.segments.len();
    while keep > 0 {
        let contents = &scan.segments[keep - 1].contents;
        if contents.base_index < limit && !contents.is_empty() {
            break;
        }
        keep -= 1;
    }
    let mut shorten = None;
    let mut next_index = start;
    if let Some(last) = keep.checked_sub(1) {
        let Segment { contents, phase, .. } = &scan.segments[last];
        let sealed = matches!(phase, Phase::Sealed { .. });
        next_index = contents.next_index;
        let kept =
            if contents.next_index > limit { intact_below(dir, &found[last], contents, limit)? } else { *contents };
        let rest = found[last].file_len > kept.data_len;
        if kept.next_index < contents.next_index || (rest && !sealed) {
            next_index = kept.next_index;
            // It may turn out that none of its frames is intact.
            if kept.is_empty() {
                keep = last;
                next_index = if last == 0 { start } else { kept.base_index };
            } else {
                shorten = Some((last, kept));
            }
        }
    }
    if next_index < start {
        // Only segments that an interrupted retention left would stay: a log never ends before its start.
        return Ok(CutPlan { shorten: None, gone_from: 0, next_index: start });
    }
    Ok(CutPlan { shorten, gone_from: keep, next_index })
}

/// The contents of a segment up to its first bad frame, entry `limit`, or the end that `contents` names.
fn intact_below(dir: &LogDir, found: &FoundSegment, contents: &Contents, limit: u64) -> Result<Contents, LogError> {
    let Ok(header) = &found.header else { return Ok(Contents::empty(found.base_index, contents.base_offset, 0, 0)) };
    let mut intact = header.no_frames();
    let mut reader = FrameReader::new(found.file.clone(), header.seed, intact.data_len, contents.data_len, SCAN_CHUNK);
    while intact.next_index < limit {
        match reader.next() {
            Ok(Some(frame)) if intact.expect().advance(&frame.header).is_ok() => intact.push(&frame.header),
            Ok(_) | Err(Stop::Bad(_)) => break,
            Err(Stop::Io(error)) => return Err(dir.segment_error(found.base_index, "read the segment")(error)),
        }
    }
    Ok(intact)
}

/// Moves the segments of the plan into a quarantine folder, and shortens the last one that stays. Returns the folder, if there
/// was anything to do.
fn quarantine(dir: &LogDir, found: &[FoundSegment], plan: &CutPlan) -> Result<Option<PathBuf>, LogError> {
    let disk = dir.disk();
    let folder = dir.path().join(UNFINISHED);
    let begun = list_dirs(&**disk, dir.path())?.iter().any(|name| name == UNFINISHED);
    if plan.shorten.is_none() && plan.gone_from == found.len() && !begun {
        return Ok(None);
    }
    let sync = |dir: &Path| disk.sync_dir(dir).map_err(|error| LogError::io(dir, "flush the directory", error));
    disk.create_dir(&folder).map_err(|error| LogError::io(&folder, "create the quarantine folder", error))?;
    sync(dir.path())?;
    if let Some((at, kept)) = &plan.shorten {
        let segment = &found[*at];
        let name = segment_name(segment.base_index);
        copy(dir, segment, &folder.join(&name))?;
        sync(&folder)?;
        dir.remove_index(segment.base_index)?;
        let path = dir.path().join(&name);
        segment.file.set_len(kept.data_len).map_err(|error| LogError::io(&path, "cut the segment", error))?;
        segment.file.sync_data().map_err(|error| LogError::io(&path, "flush the segment", error))?;
    }
    for segment in &found[plan.gone_from..] {
        let name = segment_name(segment.base_index);
        dir.remove_index(segment.base_index)?;
        let (path, to) = (dir.path().join(&name), folder.join(&name));
        disk.rename(&path, &to).map_err(|error| LogError::io(&path, "move the segment to quarantine", error))?;
        // Make the new name durable first, so that a crash cannot leave the file without a name.
        sync(&folder)?;
        sync(dir.path())?;
    }
    let newest = quarantines(&**disk, dir.path())?.into_iter().max().unwrap_or(0);
    let named = dir.path().join(format!("{PREFIX}{}", newest + 1));
    disk.rename(&folder, &named).map_err(|error| LogError::io(&folder, "name the quarantine folder", error))?;
    sync(dir.path())?;
    Ok(Some(named))
}

/// Moves one file (or folder) of a log into a new quarantine folder. Returns the folder; `None`: there is no such file.
pub(super) fn quarantine_file(dir: &LogDir, name: &str) -> Result<Option<PathBuf>, LogError> {
    let disk = dir.disk();
    let list = disk.list(dir.path()).map_err(|error| LogError::io(dir.path(), "list the directory", error))?;
    if !list.iter().any(|entry| entry.name == name) {
        return Ok(None);
    }
    let sync = |dir: &Path| disk.sync_dir(dir).map_err(|error| LogError::io(dir, "flush the directory", error));
    let newest = quarantines(&**disk, dir.path())?.into_iter().max().unwrap_or(0);
    let folder = dir.path().join(format!("{PREFIX}{}", newest + 1));
    disk.create_dir(&folder).map_err(|error| LogError::io(&folder, "create the quarantine folder", error))?;
    sync(dir.path())?;
    let (path, to) = (dir.path().join(name), folder.join(name));
    disk.rename(&path, &to).map_err(|error| LogError::io(&path, "move the file to quarantine", error))?;
    sync(&folder)?;
    sync(dir.path())?;
    if let Err(error) = prune_quarantines(&**disk, dir.path(), KEPT) {
        tracing::warn!(log = %dir.id(), %error, "cannot remove old quarantine folders");
    }
    Ok(Some(folder))
}

fn copy(dir: &LogDir, segment: &FoundSegment, to: &Path) -> Result<(), LogError> {
    let from = dir.segment_path(segment.base_index);
    let write = |error| LogError::io(to, "copy the segment to quarantine", error);
    let copy = dir.disk().open(to, OpenMode::Truncate).map_err(write)?;
    let mut position = 0;
    loop {
        let bytes = segment.file.read_at(position, SCAN_CHUNK);
        let bytes = bytes.map_err(|error| LogError::io(&from, "read the segment", error))?;
        if bytes.is_empty() {
            break;
        }
        write_all_at(&*copy, position, &mut [IoSlice::new(&bytes)]).map_err(write)?;
        position += bytes.len() as u64;
    }
    copy.sync_data().map_err(write)
}

fn list_dirs(disk: &dyn Disk, dir: &Path) -> Result<Vec<String>, LogError> {
    let list = disk.list(dir).map_err(|error| LogError::io(dir, "list the directory", error))?;
    Ok(list.into_iter().filter(|entry| entry.is_dir).map(|entry| entry.name).collect())
}

/// Numbers of the complete quarantine folders of a log.
fn quarantines(disk: &dyn Disk, dir: &Path) -> Result<Vec<u64>, LogError> {
    let names = list_dirs(disk, dir)?;
    Ok(names.iter().filter_map(|name| name.strip_prefix(PREFIX)?.parse().ok()).collect())
}

/// Removes all quarantine folders of a log but the `keep` newest.
pub(crate) fn prune_quarantines(disk: &dyn Disk, dir: &Path, keep: usize) -> Result<(), LogError> {
    let mut numbers = quarantines(disk, dir)?;
    numbers.sort_unstable();
    numbers.truncate(numbers.len().saturating_sub(keep));
    for number in numbers {
        let path = dir.join(format!("{PREFIX}{number}"));
        disk.remove_dir(&path).map_err(|error| LogError::io(&path, "remove the quarantine folder", error))?;
    }
    Ok(())
}
