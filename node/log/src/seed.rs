//! What keeps the frames of a segment apart from all other bytes: where its checksums start, and its tag.
//!
//! A client chooses payloads, and after a torn write a reader looks for frames at any place: bytes of a payload must not pass for
//! a frame. In version 1 the seed was made of the log's identity and the segment's base index, which clients can know. Since
//! version 2 it is made of random bytes, the *secret*, which the segment's header holds; each frame has 16 bits of the secret
//! as well, so that 48 bits have to be guessed.
//!
//! Imports only `id.rs` and `bytes_le.rs`.

use crate::{LogId, bytes_le::get_u16};

/// Version of a segment: of its header, and of what its checksums start from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SegmentVersion {
    /// Written by releases before data format 2.
    V1 = 1,
    /// What this release writes.
    V2 = 2,
}

impl SegmentVersion {
    /// Bytes of a segment's header; its first frame starts there.
    pub(crate) const fn header_len(self) -> usize {
        match self {
            Self::V1 => 80,
            Self::V2 => 96,
        }
    }
}

/// The seed of one segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seed {
    version: SegmentVersion,
    crc: u32,
    /// Zero in version 1.
    secret: [u8; 8],
}

impl Seed {
    /// The seed of a version 1 segment.
    pub(crate) fn version_1(id: LogId, base_index: u64) -> Self {
        let crc = crc32c::crc32c_append(crc32c::crc32c(&id.to_bytes()), &base_index.to_le_bytes());
        Self { version: SegmentVersion::V1, crc, secret: [0; 8] }
    }

    /// The seed of a version 2 segment with this secret.
    pub(crate) fn version_2(secret: [u8; 8], base_index: u64) -> Self {
        let crc = crc32c::crc32c_append(crc32c::crc32c(&secret), &base_index.to_le_bytes());
        Self { version: SegmentVersion::V2, crc, secret }
    }

    pub(crate) fn version(self) -> SegmentVersion {
        self.version
    }

    /// The start of every checksum in the segment.
    pub(crate) fn crc(self) -> u32 {
        self.crc
    }

    /// The bytes from which it was made; zero in version 1.
    pub(crate) fn secret(self) -> [u8; 8] {
        self.secret
    }

    /// What bytes 10..12 of every frame hold. In version 1 zero is written and nothing is checked.
    pub(crate) fn tag(self) -> u16 {
        // Bytes 4..8 alone make every seed possible, whatever the tag is: the two are 48 independent bits.
        get_u16(&self.secret, 0)
    }

    /// Where the first frame starts.
    pub(crate) fn first_frame(self) -> u64 {
        self.version.header_len() as u64
    }
}
