//! Walks the frames of a segment file, front to back, checking each.
//!
//! One `pread` fetches a chunk into one buffer, frames are checked in place and payloads are slices of that buffer: no
//! byte is copied after it left the page cache. Recovery, sealing, reads and debugging all walk with this.
//!
//! Promise: a frame is returned only if both of its checksums match; no bytes make it panic. Names no segment header and no log.

use std::{io, sync::Arc};

use bytes::Bytes;

use crate::{
    disk::DiskFile,
    frame::{FRAME_HEADER, FrameError, FrameHeader, decode_header},
    seed::Seed,
};

/// A frame as found.
#[derive(Debug)]
pub(crate) struct Found {
    /// Where the frame starts in the file.
    pub(crate) position: u64,
    pub(crate) header: FrameHeader,
    pub(crate) payload: Bytes,
}

/// Why a walk stopped.
#[derive(Debug)]
pub(crate) enum Stop {
    Bad(FrameError),
    Io(io::Error),
}

/// A walk through `position..end` of one file.
pub(crate) struct FrameReader {
    file: Arc<dyn DiskFile>,
    seed: Seed,
    position: u64,
    end: u64,
    chunk: usize,
    buffer: Bytes,
    /// File position of the buffer's first byte.
    buffer_at: u64,
}

impl FrameReader {
    /// Starts at `position`, which must be the start of a frame. Bytes from `end` on are not looked at.
    pub(crate) fn new(file: Arc<dyn DiskFile>, seed: Seed, position: u64, end: u64, chunk: usize) -> Self {
        Self { file, seed, position, end, chunk: chunk.max(FRAME_HEADER), buffer: Bytes::new(), buffer_at: position }
    }

    /// Where the next frame starts.
    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    /// The bytes from the current position on: at least `need` unless the range ends before.
    fn fill(&mut self, need: usize) -> io::Result<&[u8]> {
        let left = self.end.saturating_sub(self.position);
        let need = usize::try_from(left).unwrap_or(usize::MAX).min(need);
        let start = self.position.checked_sub(self.buffer_at).and_then(|start| usize::try_from(start).ok());
        if let Some(start) = start.filter(|start| start.checked_add(need).is_some_and(|end| end <= self.buffer.len())) {
            return Ok(&self.buffer[start..]);
        }
        let len = usize::try_from(left).unwrap_or(usize::MAX).min(self.chunk.max(need));
        self.buffer = Bytes::from(self.file.read_at(self.position, len)?);
        self.buffer_at = self.position;
        Ok(&self.buffer)
    }

    /// The header at the current position, without moving. `None` at the end of the range.
    pub(crate) fn peek(&mut self) -> Result<Option<FrameHeader>, Stop> {
        if self.position >= self.end {
            return Ok(None);
        }
        let (left, seed) = (self.end - self.position, self.seed);
        let bytes = self.fill(FRAME_HEADER).map_err(Stop::Io)?;
        decode_header(bytes, left, seed).map(Some).map_err(Stop::Bad)
    }

    /// Jumps over the frame whose header was just peeked, without looking at its payload.
    pub(crate) fn skip(&mut self, header: &FrameHeader) {
        self.position += header.frame_len();
    }

    /// The next frame, checked, or `None` at the end of the range. After an error the position has not moved.
    pub(crate) fn next(&mut self) -> Result<Option<Found>, Stop> {
        let Some(header) = self.peek()? else { return Ok(None) };
        self.take(header).map(Some)
    }

    /// The frame whose header was just peeked, checked.
    pub(crate) fn take(&mut self, header: FrameHeader) -> Result<Found, Stop> {
        let (need, seed, left) = (FRAME_HEADER + header.payload_len, self.seed, self.end - self.position);
        let bytes = self.fill(need).map_err(Stop::Io)?;
        if bytes.len() < need {
            // The file is shorter than its range: it was cut during the walk.
            return Err(Stop::Bad(FrameError::ShortPayload { need: need as u64, have: left.min(bytes.len() as u64) }));
        }
        header.check(bytes, seed).map_err(Stop::Bad)?;
        let start = (self.position - self.buffer_at) as usize;
        let payload = self.buffer.slice(start + FRAME_HEADER..start + need);
        let found = Found { position: self.position, header, payload };
        self.position += header.frame_len();
        Ok(found)
    }

    /// Moves to the next place where a frame may start.
    pub(crate) fn step(&mut self) {
        self.position = self.position.saturating_add(8);
    }

    /// Ends the walk: nothing is left.
    pub(crate) fn stop(&mut self) {
        self.position = self.end;
    }

    /// Looks for the next valid frame at or after the current position, at any multiple of 8 bytes.
    pub(crate) fn resync(&mut self) -> io::Result<Option<Found>> {
        self.position = self.position.next_multiple_of(8);
        while self.position < self.end {
            match self.next() {
                Ok(Some(found)) => return Ok(Some(found)),
                Ok(None) => break,
                Err(Stop::Bad(_)) => self.position += 8,
                Err(Stop::Io(error)) => return Err(error),
            }
        }
        Ok(None)
    }
}
