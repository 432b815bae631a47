//! Reads what a stopped node has on its disk, without the node.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use chronicle_log::debug::{SegmentFile, Stretch};
use chronicle_log::disk::RealDisk;
use chronicle_log::{EntryKind, LogId};
use chronicle_records::{Limits, records, split};

/// A record as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Its offset.
    pub offset: i64,
    /// Its key.
    pub key: Option<Bytes>,
    /// Its value.
    pub value: Option<Bytes>,
}

/// The segment files of a log in a data folder, oldest first; none when there is no such log.
///
/// # Errors
/// The folder cannot be read.
pub fn segments(data_dir: &Path, log: LogId) -> Result<Vec<PathBuf>> {
    let dir = data_dir.join("logs").join(log.to_string());
    let entries = match std::fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("reading {}", dir.display())),
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "log") {
            files.push(path);
        }
    }
    // Names are first indexes with leading zeros.
    files.sort();
    Ok(files)
}

/// Every record of a log, in order of offset.
///
/// # Errors
/// A file cannot be read, has damage, or leaves a gap.
pub fn read(data_dir: &Path, log: LogId) -> Result<Vec<Stored>> {
    let mut stored = Vec::new();
    let mut next: Option<(u64, u64)> = None;
    for path in segments(data_dir, log)? {
        let segment = SegmentFile::open(&RealDisk, &path)?;
        for stretch in segment.stretches() {
            let frame = match stretch? {
                Stretch::Frame { frame, .. } => frame,
                // Preallocated space behind the last frame.
                Stretch::Damage { position, len, reason } => {
                    let bytes = std::fs::read(&path)?;
                    let (from, len) = (usize::try_from(position)?, usize::try_from(len)?);
                    ensure!(
                        bytes[from..from + len].iter().all(|byte| *byte == 0),
                        "{}: {len} bytes at byte {position}: {reason}",
                        path.display()
                    );
                    continue;
                }
            };
            if let Some((index, offset)) = next {
                ensure!(
                    (frame.index, frame.base_offset) == (index, offset),
                    "{}: entry {} at offset {} follows, not entry {index} at offset {offset}",
                    path.display(),
                    frame.index,
                    frame.base_offset
                );
            }
            next = Some((frame.index + 1, frame.base_offset + u64::from(frame.record_count)));
            if frame.kind != EntryKind::Data {
                continue;
            }
            for batch in split(&frame.payload) {
                for record in records(&batch?.1, &Limits::default())? {
                    let record = record?;
                    stored.push(Stored { offset: record.offset, key: record.key, value: record.value });
                }
            }
        }
    }
    Ok(stored)
}

/// Inverts one byte of a file.
///
/// # Errors
/// The file has no such byte, or cannot be written.
pub fn flip_byte(path: &Path, position: u64) -> Result<()> {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::options().read(true).write(true).open(path)?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, position).with_context(|| format!("byte {position} of {}", path.display()))?;
    file.write_all_at(&[!byte[0]], position)?;
    file.sync_all()?;
    Ok(())
}

/// Inverts a byte in the payload of the last data frame of a segment: damage in the tail that is no torn write when the
/// frame was flushed.
///
/// # Errors
/// The segment has no data frame, or cannot be written.
pub fn flip_in_last_record(path: &Path) -> Result<()> {
    let last = data_frames(path)?.pop();
    flip_byte(path, last.with_context(|| format!("{}: no data frame", path.display()))?)
}

/// Inverts a byte in the payload of the first data frame of a segment.
///
/// # Errors
/// As [`flip_in_last_record`].
pub fn flip_in_first_record(path: &Path) -> Result<()> {
    let first = data_frames(path)?.first().copied();
    flip_byte(path, first.with_context(|| format!("{}: no data frame", path.display()))?)
}

/// The offset of the first record of a segment.
///
/// # Errors
/// The segment has no data frame, or cannot be read.
pub fn first_offset(path: &Path) -> Result<i64> {
    for stretch in SegmentFile::open(&RealDisk, path)?.stretches() {
        if let Stretch::Frame { frame, .. } = stretch?
            && frame.kind == EntryKind::Data
        {
            return Ok(i64::try_from(frame.base_offset)?);
        }
    }
    anyhow::bail!("{}: no data frame", path.display())
}

/// A position inside each data frame of a segment.
fn data_frames(path: &Path) -> Result<Vec<u64>> {
    let segment = SegmentFile::open(&RealDisk, path)?;
    let mut found = Vec::new();
    for stretch in segment.stretches() {
        if let Stretch::Frame { position, frame } = stretch?
            && frame.kind == EntryKind::Data
        {
            found.push(position + frame.len / 2);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_is_flipped_and_flipped_back() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), [1, 2, 3]).unwrap();
        flip_byte(file.path(), 1).unwrap();
        assert_eq!(std::fs::read(file.path()).unwrap(), [1, 253, 3]);
        flip_byte(file.path(), 1).unwrap();
        assert_eq!(std::fs::read(file.path()).unwrap(), [1, 2, 3]);
        assert!(flip_byte(file.path(), 3).is_err());
    }

    #[test]
    fn a_log_that_is_not_there_has_no_records() {
        let dir = tempfile::tempdir().unwrap();
        assert!(read(dir.path(), LogId { topic: uuid::Uuid::nil(), partition: 0 }).unwrap().is_empty());
    }
}
