//! Cutting damage out of a closed log, so that it opens again and can be filled from another replica.
//!
//! What is cut out is moved, not deleted: into `quarantine-<n>/` in the log's directory, where nothing but the log's deletion and
//! later cuts touch it.
//!
//! Promise: at every step a crash leaves a log that is as it was, answers [`LogError::Damaged`], or is cut. The journal's
//! durable mark is what holds this together: it is *raised* first to the highest index that may have been acknowledged, so that
//! no open in between takes the missing entries for a torn write, and lowered to the new end last. Trying again goes on
//! where the first attempt stopped.

use std::{
    io::{self, IoSlice},
    path::{Path, PathBuf},
};

use bytes::Bytes;

use super::{
    LogInner, Phase, Segment,
    recover::{FoundSegment, Scan, Survey},
};
use crate::{
    LogError,
    disk::{Disk, OpenMode, write_all_at},
    frame,
    journal::engine_key,
    reader::{FrameReader, Stop},
    segment::{Contents, SCAN_CHUNK, index_path, segment_name},
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
    /// The highest index (exclusive) that was on disk as far as any mark or intact frame tells: what this replica may have
    /// acknowledged. Never below `next_index`.
    pub was: u64,
    /// The folder with the files as they were; `None` when no file had anything to cut.
    pub quarantine: Option<PathBuf>,
}

/// What is to be done to the files.
struct Plan {
    /// The segment to be shortened: its place among the found ones, what it keeps.
    shorten: Option<(usize, Contents)>,
    /// The first found segment to go; every later one goes too.
    gone_from: usize,
    next_index: u64,
}

impl LogInner {
    /// Cuts at the first damaged place, or at `from` at the latest. The log is not open, and nobody may open it meanwhile.
    pub(crate) fn cut_out(&self, from: Option<u64>, known_durable: Option<u64>) -> Result<Cut, LogError> {
        let Survey { found, start, journal_mark, clean } = self.survey(known_durable)?;
        let scan = Scan::run(self, &found, start, journal_mark, clean)?;
        let damage = scan.damage(self, &found, known_durable);
        if scan.broken.as_ref().is_some_and(|place| place.foreign)
            && let Some(error) = damage
        {
            // Nothing is damaged: a newer release wrote it and can read it.
            return Err(error);
        }
        let trusted = known_durable.unwrap_or(u64::MAX);
        if from.is_none() && damage.is_none() && !found.iter().any(FoundSegment::is_misplaced) {
            let next_index = scan.verdict().min(trusted);
            return Ok(Cut { next_index, was: next_index.max(scan.marked.min(trusted)), quarantine: None });
        }
        let plan = self.plan_cut(&found, &scan, from, trusted, start.index)?;
        let was = scan.marked.max(scan.seen).min(trusted).max(plan.next_index);
        tracing::warn!(
            log = %self.id, next_index = plan.next_index, was,
            damage = %damage.map_or_else(|| "found by reading".to_owned(), |error| error.to_string()),
            "cutting damage out of the log"
        );
        if journal_mark < was {
            self.set_durable_mark(was)?;
        }
        let quarantine = self.quarantine(&found, &plan)?;
        self.shared.journal_and_wait(self.id, engine_key::CLEAN, None)?;
        self.set_durable_mark(plan.next_index)?;
        if quarantine.is_some() {
            self.shared.metrics.quarantines.add(1);
            if let Err(error) = prune_quarantines(&*self.shared.disk, &self.dir, KEPT) {
                tracing::warn!(log = %self.id, %error, "cannot remove old quarantine folders");
            }
        }
        Ok(Cut { next_index: plan.next_index, was, quarantine })
    }

    fn set_durable_mark(&self, index: u64) -> Result<(), LogError> {
        let value = Bytes::copy_from_slice(&index.to_le_bytes());
        self.shared.journal_and_wait(self.id, engine_key::DURABLE_MARK, Some(value))
    }

    fn plan_cut(
        &self,
        found: &[FoundSegment],
        scan: &Scan,
        from: Option<u64>,
        trusted: u64,
        start: u64,
    ) -> Result<Plan, LogError> {
        let mut limit = trusted;
        let holds =
            |segment: &Segment, index| (segment.contents.base_index..segment.contents.next_index).contains(&index);
        if let Some(from) = from {
            limit = limit.min(from);
            if let Some(at) = scan.segments.iter().position(|segment| holds(segment, from)) {
                // Good frames before the bad one stay, wherever in its segment it turns out to be.
                let intact = self.intact_below(&found[at], &scan.segments[at].contents, u64::MAX)?.next_index;
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
            let Segment { contents, phase } = &scan.segments[last];
            let sealed = matches!(phase, Phase::Sealed { .. });
            next_index = contents.next_index;
            let kept =
                if contents.next_index > limit { self.intact_below(&found[last], contents, limit)? } else { *contents };
            let rest = found[last].file_len > kept.data_len;
            if kept.next_index < contents.next_index || (rest && !sealed) {
                next_index = kept.next_index;
                // Nothing of it may be intact after all.
                if kept.is_empty() {
                    keep = last;
                    next_index = if last == 0 { start } else { kept.base_index };
                } else {
                    shorten = Some((last, kept));
                }
            }
        }
        if next_index < start {
            // Only remains of an interrupted retention would stay: a log never ends before its start.
            return Ok(Plan { shorten: None, gone_from: 0, next_index: start });
        }
        Ok(Plan { shorten, gone_from: keep, next_index })
    }

    /// What the intact frames of a segment say, from its first one up to the first bad one, `limit` or where they are to end.
    fn intact_below(&self, found: &FoundSegment, contents: &Contents, limit: u64) -> Result<Contents, LogError> {
        let path = self.dir.join(segment_name(found.base_index));
        let Ok(header) = &found.header else { return Ok(Contents::empty(found.base_index, contents.base_offset, 0)) };
        let mut intact = Contents::empty(header.base_index, header.base_offset, header.prev_crc);
        let seed = frame::seed(self.id, found.base_index);
        let mut reader = FrameReader::new(found.file.clone(), seed, intact.data_len, contents.data_len, SCAN_CHUNK);
        while intact.next_index < limit {
            match reader.next() {
                Ok(Some(frame)) if intact.expect().advance(&frame.header).is_ok() => intact.push(&frame.header),
                Ok(_) | Err(Stop::Bad(_)) => break,
                Err(Stop::Io(error)) => return Err(LogError::io(&path, "read the segment", error)),
            }
        }
        Ok(intact)
    }

    /// Moves what goes into a quarantine folder, and shortens what stays. Returns the folder, if there was anything to do.
    fn quarantine(&self, found: &[FoundSegment], plan: &Plan) -> Result<Option<PathBuf>, LogError> {
        let disk = &self.shared.disk;
        let folder = self.dir.join(UNFINISHED);
        let begun = list_dirs(&**disk, &self.dir)?.iter().any(|name| name == UNFINISHED);
        if plan.shorten.is_none() && plan.gone_from == found.len() && !begun {
            return Ok(None);
        }
        let sync = |dir: &Path| disk.sync_dir(dir).map_err(|error| LogError::io(dir, "flush the directory", error));
        disk.create_dir(&folder).map_err(|error| LogError::io(&folder, "create the quarantine folder", error))?;
        sync(&self.dir)?;
        if let Some((at, kept)) = &plan.shorten {
            let segment = &found[*at];
            let name = segment_name(segment.base_index);
            self.copy(segment, &folder.join(&name))?;
            sync(&folder)?;
            self.remove_index(segment.base_index)?;
            let path = self.dir.join(&name);
            segment.file.set_len(kept.data_len).map_err(|error| LogError::io(&path, "cut the segment", error))?;
            segment.file.sync_data().map_err(|error| LogError::io(&path, "flush the segment", error))?;
        }
        for segment in &found[plan.gone_from..] {
            let name = segment_name(segment.base_index);
            self.remove_index(segment.base_index)?;
            let (path, to) = (self.dir.join(&name), folder.join(&name));
            disk.rename(&path, &to).map_err(|error| LogError::io(&path, "move the segment to quarantine", error))?;
            // The new name first: the file is never without one.
            sync(&folder)?;
            sync(&self.dir)?;
        }
        let newest = quarantines(&**disk, &self.dir)?.into_iter().max().unwrap_or(0);
        let named = self.dir.join(format!("{PREFIX}{}", newest + 1));
        disk.rename(&folder, &named).map_err(|error| LogError::io(&folder, "name the quarantine folder", error))?;
        sync(&self.dir)?;
        Ok(Some(named))
    }

    fn copy(&self, segment: &FoundSegment, to: &Path) -> Result<(), LogError> {
        let from = self.dir.join(segment_name(segment.base_index));
        let write = |error| LogError::io(to, "copy the segment to quarantine", error);
        let copy = self.shared.disk.open(to, OpenMode::Truncate).map_err(write)?;
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

    fn remove_index(&self, base_index: u64) -> Result<(), LogError> {
        let index = index_path(&self.dir, base_index);
        match self.shared.disk.remove_file(&index) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(LogError::io(&index, "remove the index", error))
            }
            _ => Ok(()),
        }
    }
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
