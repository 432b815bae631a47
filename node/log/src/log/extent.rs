//! The most that a damaged log may have held, for the owner that must not forget what it may have acknowledged.
//!
//! Marks and intact frames show what was there ([`super::Cut::was`]). Behind the last intact frame of the newest segment there may be
//! more frames whose bytes are wrong: their headers tell how many while they parse, and behind that every 72 bytes may have been one.
//! Zeros at the end are not counted: they look like a write that never reached the disk, which only marks can tell from a lost one.

use super::recover::FoundSegment;
use crate::{
    LogError,
    frame::FRAME_HEADER,
    log_dir::LogDir,
    reader::{FrameReader, Stop},
    seed::Seed,
    segment::SCAN_CHUNK,
};

/// Index (exclusive) above which the log has held no entry, unless it was lost without a trace. Never below `was`.
pub(super) fn may_have_held(dir: &LogDir, found: &[FoundSegment], was: u64) -> Result<u64, LogError> {
    let Some(newest) = found.last().filter(|segment| !segment.is_misplaced() && !segment.is_sealed()) else {
        return Ok(was);
    };
    let io = |error| dir.segment_error(newest.base_index, "read the segment")(error);
    // With a damaged header the frames may be unreadable: every 72 bytes count then.
    let seed = newest.seeds.first().copied().unwrap_or_else(|| Seed::version_1(dir.id(), newest.base_index));
    let start = seed.first_frame();
    let mut next_index = newest.base_index;
    let mut end = start;
    let mut reader = FrameReader::new(newest.file.clone(), seed, start, newest.file_len, SCAN_CHUNK);
    while let Some(frame) = reader.resync().map_err(io)? {
        next_index = frame.header.index.saturating_add(1);
        end = reader.position();
    }
    // Frames with a sound header and a bad payload.
    let mut reader = FrameReader::new(newest.file.clone(), seed, end, newest.file_len, SCAN_CHUNK);
    loop {
        match reader.peek() {
            Ok(Some(header)) => {
                next_index = header.index.saturating_add(1);
                reader.skip(&header);
            }
            Ok(None) | Err(Stop::Bad(_)) => break,
            Err(Stop::Io(error)) => return Err(io(error)),
        }
    }
    end = reader.position().min(newest.file_len);
    let mut written = 0;
    let mut at = end;
    while at < newest.file_len {
        let bytes = newest.file.read_at(at, SCAN_CHUNK).map_err(io)?;
        if bytes.is_empty() {
            break;
        }
        if let Some(last) = bytes.iter().rposition(|byte| *byte != 0) {
            written = at + last as u64 + 1 - end;
        }
        at += bytes.len() as u64;
    }
    Ok(was.max(next_index.saturating_add(written.div_ceil(FRAME_HEADER as u64))))
}
