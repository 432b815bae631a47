//! The content hash of a run of entries, equal on every replica that holds them.
//!
//! BLAKE3 over, for each entry in order, its index, term, leader, base offset, timestamp, offset count, kind and payload length
//! (56 bytes), then its payload; see `docs/disk-format.md`. It leaves out what only one replica knows: durable marks, the chain,
//! and where segments begin.

use crate::{
    EntryKind, StoredEntry,
    bytes_le::{put_i64, put_u32, put_u64},
    frame::FrameHeader,
};

/// Hashes a run of entries, one after the other. Over the entries of one sealed segment it equals
/// [`crate::SegmentInfo::content_hash`], over those of a range [`crate::Log::digest`].
#[derive(Debug, Clone)]
pub struct ContentHash {
    hasher: blake3::Hasher,
    /// Small pieces wait here: BLAKE3 is several times faster on long inputs.
    buffer: Vec<u8>,
}

/// Bytes gathered before they are hashed; longer pieces are hashed where they are.
const BUFFER: usize = 64 << 10;

impl Default for ContentHash {
    fn default() -> Self {
        Self::new()
    }
}

impl ContentHash {
    /// A hash that no entry was added to.
    pub fn new() -> Self {
        Self { hasher: blake3::Hasher::new(), buffer: Vec::new() }
    }

    /// Adds the next entry.
    pub fn update(&mut self, stored: &StoredEntry) {
        let entry = &stored.entry;
        self.add(
            [entry.index, entry.term, entry.leader, stored.base_offset],
            entry.max_timestamp,
            entry.record_count,
            entry.kind,
            &entry.payload,
        );
    }

    /// Adds a frame as read.
    pub(crate) fn update_frame(&mut self, header: &FrameHeader, payload: &[u8]) {
        let numbers = [header.index, header.term, header.leader, header.base_offset];
        self.add(numbers, header.max_timestamp, header.record_count, header.kind, payload);
    }

    fn add(&mut self, numbers: [u64; 4], timestamp: i64, record_count: u32, kind: EntryKind, payload: &[u8]) {
        let mut fixed = [0; 56];
        for (at, number) in numbers.into_iter().enumerate() {
            put_u64(&mut fixed, at * 8, number);
        }
        put_i64(&mut fixed, 32, timestamp);
        put_u32(&mut fixed, 40, record_count);
        put_u32(&mut fixed, 44, u32::from(kind as u8));
        put_u64(&mut fixed, 48, payload.len() as u64);
        self.put(&fixed);
        self.put(payload);
    }

    fn put(&mut self, bytes: &[u8]) {
        if self.buffer.len() + bytes.len() > BUFFER {
            self.hasher.update(&self.buffer);
            self.buffer.clear();
        }
        if bytes.len() > BUFFER {
            self.hasher.update(bytes);
        } else {
            self.buffer.extend_from_slice(bytes);
        }
    }

    /// The hash of what was added so far. More may be added afterwards.
    pub fn finalize(&self) -> [u8; 32] {
        *self.hasher.clone().update(&self.buffer).finalize().as_bytes()
    }
}
