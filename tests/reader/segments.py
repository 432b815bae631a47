"""Segment files and their indexes, as docs/disk-format.md describes them."""

import struct
from dataclasses import dataclass, field

from blake3 import blake3
from crc32c import crc32c

NO_MIN, NO_MAX = 2**63 - 1, -(2**63)
DATA, KINDS = 1, (1, 2, 3, 4)
FRAME_HEADER, FOOTER, INDEX_HEADER, INDEX_ENTRY = 72, 144, 40, 32
MAX_PAYLOAD = 256 << 20


class Bad(Exception):
    """Bytes that are not what they should be."""


class Newer(Exception):
    """Written in a version that this reader does not know."""


def u16(data, at):
    return struct.unpack_from("<H", data, at)[0]


def u32(data, at):
    return struct.unpack_from("<I", data, at)[0]


def u64(data, at):
    return struct.unpack_from("<Q", data, at)[0]


def i64(data, at):
    return struct.unpack_from("<q", data, at)[0]


def align8(n):
    return (n + 7) // 8 * 8


@dataclass(frozen=True)
class Seed:
    """Where the checksums of a segment start."""

    version: int
    crc: int
    secret: bytes = bytes(8)

    @property
    def first_frame(self):
        return {1: 80, 2: 96}[self.version]

    @staticmethod
    def of_log(log_id, base_index):
        return Seed(1, crc32c(log_id + struct.pack("<Q", base_index)))

    @staticmethod
    def of_secret(secret, base_index):
        return Seed(2, crc32c(secret + struct.pack("<Q", base_index)), secret)


@dataclass
class Header:
    """A segment header."""

    log_id: bytes
    prev_crc: int
    base_index: int
    base_offset: int
    durable_mark: int
    seed: Seed


def parse_header(data):
    """The header at the start of a segment file."""
    if len(data) < 16 or data[:8] != b"CHRNLSEG":
        raise Bad("no segment header")
    version, length = u32(data, 8), u32(data, 12)
    if not 80 <= length <= 256 or length % 8 or length > len(data):
        raise Bad(f"a header of {length} bytes")
    if u32(data, length - 4) != crc32c(data[: length - 4]):
        raise Bad("the header's checksum")
    if version not in (1, 2):
        raise Newer(f"segment version {version}")
    if length != {1: 80, 2: 96}[version]:
        raise Bad(f"a header of {length} bytes")
    log_id, base_index = data[16:36], u64(data, 40)
    if version == 1:
        seed = Seed.of_log(log_id, base_index)
    else:
        seed = Seed.of_secret(data[72:80], base_index)
    return Header(log_id, u32(data, 36), base_index, u64(data, 48), u64(data, 64), seed)


def seeds_of_damaged(data, log_ids, base_index):
    """The seeds with which the frames of a segment with a damaged header are looked for."""
    if (len(data) >= 12 and u32(data, 8) == 1) or (len(data) >= 16 and u32(data, 12) == 80):
        return [Seed.of_log(log_id, base_index) for log_id in log_ids]
    copies = {data[at : at + 8] for at in (72, 80) if len(data) >= at + 8} - {bytes(8)}
    return [Seed.of_secret(secret, base_index) for secret in sorted(copies)]


@dataclass
class Frame:
    """One entry on disk."""

    position: int
    length: int
    crc: int
    kind: int
    offset_count: int
    term: int
    leader: int
    index: int
    base_offset: int
    timestamp: int
    durable_mark: int
    prev_crc: int
    payload: bytes

    @property
    def next_offset(self):
        return self.base_offset + (self.offset_count if self.kind == DATA else 0)

    def content(self):
        """What the content hash covers of it."""
        return (
            struct.pack("<QQQQqIIQ", self.index, self.term, self.leader, self.base_offset, self.timestamp,
                        self.offset_count, self.kind, len(self.payload)) + self.payload
        )


class Foreign(Bad):
    """An intact frame of a version or kind that is not known."""


def parse_frame(data, at, end, seed):
    """The frame at a position; it must end before `end`."""
    if end - at < FRAME_HEADER:
        raise Bad("no room for a frame header")
    header = data[at : at + FRAME_HEADER]
    if u32(header, 68) != crc32c(header[8:68], crc32c(header[:4], seed.crc)):
        raise Bad("the header's checksum")
    if seed.version > 1 and header[10:12] != seed.secret[:2]:
        raise Bad("the tag")
    length = u32(header, 0)
    whole = 64 <= length <= 64 + MAX_PAYLOAD and at + 8 + length <= end
    intact = whole and u32(header, 4) == crc32c(data[at + 8 : at + 8 + length], seed.crc)
    if header[8] != 1 or header[9] not in KINDS:
        raise Foreign(f"version {header[8]}, kind {header[9]}")
    if not intact:
        raise Bad("the frame's checksum" if whole else "the frame does not fit")
    return Frame(
        at, align8(8 + length), u32(header, 4), header[9], u32(header, 12), u64(header, 16), u64(header, 24),
        u64(header, 32), u64(header, 40), i64(header, 48), u64(header, 56), u32(header, 64),
        data[at + FRAME_HEADER : at + 8 + length],
    )


def frames_anywhere(data, start, end, seed):
    """Every frame that parses, at any multiple of 8."""
    at = align8(start)
    while at < end:
        try:
            frame = parse_frame(data, at, end, seed)
        except Bad:
            at += 8
            continue
        yield frame
        at += frame.length


@dataclass
class Contents:
    """What a segment holds, as its footer, a clean mark or its frames say."""

    base_index: int
    base_offset: int
    next_index: int
    next_offset: int
    data_len: int
    last_crc: int
    min_timestamp: int = NO_MIN
    max_timestamp: int = NO_MAX
    last_term: int = 0
    last_leader: int = 0


@dataclass
class Footer:
    """The end of a sealed segment."""

    contents: Contents
    hash: bytes


def parse_footer(data, seed):
    """The footer at the end of a segment file; `None`: there is no intact one."""
    at = len(data) - FOOTER
    if at < seed.first_frame:
        return None
    footer = data[at:]
    intact = (
        footer[:8] == b"CHRNLFTR"
        and u32(footer, 140) == crc32c(footer[:140], seed.crc)
        and u32(footer, 8) == seed.version
        and (seed.version == 1 or footer[128:136] == seed.secret)
        and u64(footer, 16) == at
    )
    if not intact:
        return None
    contents = Contents(
        u64(footer, 32), u64(footer, 48), u64(footer, 40), u64(footer, 56), at, u32(footer, 136), i64(footer, 64),
        i64(footer, 72), u64(footer, 80), u64(footer, 88),
    )
    return Footer(contents, footer[96:128])


@dataclass
class Walk:
    """The frames of a segment from its first on, and why they end before the segment does."""

    contents: Contents
    frames: list = field(default_factory=list)
    bad: str = None
    foreign: bool = False


def walk(data, header, end):
    """Walks the frames of a segment up to `end` or the first that is not valid."""
    contents = Contents(
        header.base_index, header.base_offset, header.base_index, header.base_offset, header.seed.first_frame,
        header.prev_crc,
    )
    result = Walk(contents)
    while contents.data_len < end:
        try:
            frame = parse_frame(data, contents.data_len, end, header.seed)
        except Bad as bad:
            result.bad, result.foreign = str(bad), isinstance(bad, Foreign)
            break
        place = (frame.index, frame.base_offset, frame.prev_crc)
        if place != (contents.next_index, contents.next_offset, contents.last_crc):
            result.bad = "the frame's place in the log"
            break
        result.frames.append(frame)
        if frame.kind == DATA:
            contents.min_timestamp = min(contents.min_timestamp, frame.timestamp)
            contents.max_timestamp = max(contents.max_timestamp, frame.timestamp)
        contents.next_index, contents.next_offset = frame.index + 1, frame.next_offset
        contents.data_len += frame.length
        contents.last_term, contents.last_leader, contents.last_crc = frame.term, frame.leader, frame.crc
    return result


def content_hash(frames):
    """The content hash of a run of frames."""
    return blake3(b"".join(frame.content() for frame in frames))


def index_problem(data, contents, seed, frames=None):
    """Why an index file is not usable for a segment, and with the segment's frames also whether it says what they do."""
    if len(data) < INDEX_HEADER or data[:8] != b"CHRNLIDX" or u32(data, 8) != 1:
        return "no index"
    if len(data) != INDEX_HEADER + INDEX_ENTRY * u64(data, 24):
        return "its length"
    if u32(data, 36) != crc32c(data[INDEX_HEADER:], crc32c(data[:36], seed.crc)):
        return "its checksum"
    if u64(data, 16) != contents.data_len or u32(data, 12) != contents.last_crc:
        return "stale"
    if frames is None:
        return None
    entries, newest = {}, NO_MAX
    for frame in frames:
        entries[frame.position] = (frame.index, frame.base_offset, frame.position, newest)
        if frame.kind == DATA:
            newest = max(newest, frame.timestamp)
    found = [struct.unpack_from("<QQQq", data, at) for at in range(INDEX_HEADER, len(data), INDEX_ENTRY)]
    if frames and (not found or found[0][2] != frames[0].position):
        return "its first entry is not the first frame"
    if any(entries.get(entry[2]) != entry for entry in found) or found != sorted(found):
        return "an entry does not describe its frame"
    return None
