#!/usr/bin/env python3
"""Reads a data directory and says what a node would find in it: a second implementation of docs/disk-format.md.

    reader.py DIRECTORY...

Written from that page alone, with nothing but the standard library, so that the page stays enough to write a reader from. It changes
nothing. It prints, for each directory, the format, the node and the journal, and for each log where it starts and ends by the rules under
Recovery, its segments with their content hashes, and the hash of all entries; or the place where it is damaged. A line `problem` is
something that does not keep the log from being opened: an entry, a hash or an index that does not agree with the rest.
"""

import re
import struct
import sys
import uuid
from pathlib import Path

from crc32c import crc32c
from segments import (
    Bad, Contents, Newer, align8, content_hash, frames_anywhere, i64, index_problem, parse_footer, parse_header,
    seeds_of_damaged, u32, u64, walk,
)

ENGINE = 1
DURABLE_MARK, CLEAN, START, DELETING, ORIGIN = range(5)
PUT, REMOVE, REMOVE_LOG, MARK = 1, 2, 3, 4


class Damaged(Exception):
    """The directory cannot be opened."""


def log_bytes(name):
    """The 20 bytes of a log's name; `None`: it is not the name of a log."""
    match = re.fullmatch(r"([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})-(0|[1-9][0-9]*)", name)
    if not match or int(match[2]) >= 2**32:
        return None
    return uuid.UUID(match[1]).bytes + struct.pack("<I", int(match[2]))


def log_name(data):
    return f"{uuid.UUID(bytes=bytes(data[:16]))}-{u32(data, 16)}"


# The directory and its journal.


def read_format(directory):
    """Version and node of the directory."""
    path = directory / "FORMAT"
    if not path.exists():
        raise Damaged("no FORMAT")
    fields = dict(line.split(" ", 1) for line in path.read_bytes().decode(errors="replace").split("\n") if " " in line)
    try:
        version, node = int(fields["chronicle-data"]), uuid.UUID(fields["node"].strip())
    except (KeyError, ValueError) as error:
        raise Damaged(f"FORMAT: {error}") from error
    if version > 2:
        raise Newer(f"data format {version}")
    return version, node


def closed_note(meta, node):
    """Sequence number and durable bytes that `meta/closed` vouches for; `None` if there is no usable note."""
    path = meta / "closed"
    data = path.read_bytes() if path.exists() else b""
    if len(data) != 48 or data[:8] != b"CHRNLEND" or data[16:32] != node.bytes:
        return None
    if u32(data, 12) != crc32c(data[16:], crc32c(data[:12])) or u32(data, 8) != 1:
        return None
    return u64(data, 32), u64(data, 40)


def parse_record(data, at, seed):
    """The journal's record at a position: (its length, kind, key, value, durable mark); `None` if none parses there."""
    if len(data) - at < 40:
        return None
    length = u32(data, at)
    if not 32 <= length <= 32 + 65536 or at + 8 + length > len(data):
        return None
    body = data[at + 8 : at + 8 + length]
    if u32(data, at + 4) != crc32c(body, crc32c(data[at : at + 4], seed)) or body[0] not in (1, 2, 3, 4):
        return None
    key = (body[4:24], body[1], body[2])
    return align8(8 + length), body[0], key, body[32:], u64(body, 24)


def read_journal(directory, node):
    """The keys of the journal, and what is to say about its file."""
    meta = directory / "meta"
    names = sorted(path.name for path in meta.iterdir() if re.fullmatch(r"journal-[0-9]{20}", path.name))
    if not names:
        raise Damaged("no journal")
    sequence = int(names[-1].removeprefix("journal-"))
    note = closed_note(meta, node)
    if note and note[0] > sequence:
        raise Damaged(f"journal {note[0]} is missing")
    data = (meta / names[-1]).read_bytes()
    header_ok = len(data) >= 56 and data[:8] == b"CHRNLJNL" and u32(data, 52) == crc32c(data[:52])
    if not header_ok:
        raise Damaged("the journal's header")
    if u32(data, 8) != 1:
        raise Newer(f"journal version {u32(data, 8)}")
    if data[16:32] != node.bytes or u64(data, 32) != sequence:
        raise Damaged("the journal belongs elsewhere")
    seed = crc32c(node.bytes + struct.pack("<Q", sequence))
    marks = [u64(data, 40)] + [bytes_known for of, bytes_known in [note or (None, 0)] if of == sequence]
    keys, at = {}, 56
    while record := parse_record(data, at, seed):
        length, kind, key, value, mark = record
        marks.append(mark)
        if kind == PUT:
            keys[key] = value
        elif kind == REMOVE:
            keys.pop(key, None)
        elif kind == REMOVE_LOG:
            keys = {other: value for other, value in keys.items() if other[0] != key[0]}
        at = min(at + length, len(data))
    end = at
    for behind in range(at + 8, len(data), 8):
        if record := parse_record(data, behind, seed):
            marks.append(record[4])
    if max(marks) > end:
        raise Damaged(f"the journal ends at byte {end}, but {max(marks)} bytes were durable")
    return keys, f"journal {sequence} ends at byte {end}, {len(data) - end} bytes torn"


# One log.


class Segment:
    """A segment file, looked at but not walked."""

    def __init__(self, path, log_ids):
        self.path, self.base_index, self.data = path, int(path.stem), path.read_bytes()
        self.header = self.footer = self.bad = None
        self.misplaced = False
        try:
            header = parse_header(self.data)
            self.misplaced = header.log_id not in log_ids or header.base_index != self.base_index
            if self.misplaced:
                self.bad, self.seeds = "the header names another segment", []
                return
            self.header, self.seeds = header, [header.seed]
            self.footer = parse_footer(self.data, header.seed)
        except Bad as bad:
            self.bad, self.seeds = f"header: {bad}", seeds_of_damaged(self.data, log_ids, self.base_index)

    def index_problem(self, contents, frames=None):
        path = self.path.with_suffix(".idx")
        return index_problem(path.read_bytes(), contents, self.header.seed, frames) if path.exists() else "missing"


class CleanMark:
    """What the journal has of a log that was closed cleanly."""

    def __init__(self, value):
        self.segments, self.base_index, self.next_index = u64(value, 24), u64(value, 40), u64(value, 56)
        self.newest = Contents(
            u64(value, 40), u64(value, 48), u64(value, 56), u64(value, 64), u64(value, 72), u32(value, 112),
            i64(value, 80), i64(value, 88), u64(value, 96), u64(value, 104),
        )


class Log:
    """One log, opened by the rules under Recovery."""

    def __init__(self, path, keys):
        self.path = path
        self.id = log_bytes(path.name)
        self.keys = {number: value for (log, space, number), value in keys.items() if (log, space) == (self.id, ENGINE)}
        # Segments may name the log, or its origin.
        self.ids = [self.id] + [value for key, value in self.keys.items() if key == ORIGIN and len(value) == 20]
        start = self.keys.get(START, b"")
        self.start = struct.unpack("<QQQ", start) if len(start) == 24 else (0, 0, 0)
        self.problems, self.damage, self.kept, self.place = [], None, [], self.start[:2]

    def clean_mark(self):
        value = self.keys.get(CLEAN, b"")
        return CleanMark(value) if len(value) == 128 else None

    def files(self):
        """The segments that count: a reset under way removes all, an interrupted retention those before the start."""
        if self.start[2] != 0:
            return []
        paths = sorted(path for path in self.path.iterdir() if re.fullmatch(r"[0-9]{20}\.log", path.name))
        if any(int(path.stem) == self.start[0] for path in paths):
            paths = [path for path in paths if int(path.stem) >= self.start[0]]
        return [Segment(path, self.ids) for path in paths]

    def open(self):
        """Finds the break, judges it, and leaves what the log has then in `kept` and `place`."""
        segments, clean = self.files(), self.clean_mark()
        for segment in segments:
            if segment.misplaced:
                self.damage = f"{segment.path.name}, byte 16, entry {segment.base_index}"
                return
        mark = self.keys.get(DURABLE_MARK, b"")
        marks = [u64(mark, 0) if len(mark) == 8 else 0, self.start[0]] + ([clean.next_index] if clean else [])
        expect = (*self.start[:2], 0)
        broken = foreign = None
        for at, segment in enumerate(segments):
            following = segments[at + 1].base_index if at + 1 < len(segments) else None
            if segment.bad:
                index = segment.base_index if at == 0 else min(segment.base_index, expect[0])
                broken = (at, 0, index)
                break
            header = segment.header
            begins = (header.base_index, header.base_offset, header.prev_crc)
            if at == 0 and begins[0] <= expect[0]:
                expect = begins
            marks.append(header.durable_mark)
            if begins != expect:
                broken = (at, 0, expect[0])
                break
            if segment.footer:
                contents = segment.footer.contents
                marks.append(contents.next_index)
            elif self.taken_by_mark(segment, following, clean, len(segments)):
                contents = clean.newest
            else:
                walked = walk(segment.data, header, len(segment.data))
                contents = walked.contents
                marks.extend(frame.durable_mark for frame in walked.frames)
                complete = following == contents.next_index and walked.frames
                if walked.bad and not complete:
                    broken, foreign = (at, contents.data_len, contents.next_index), walked.foreign
            self.kept.append((segment, contents))
            expect = (contents.next_index, contents.next_offset, contents.last_crc)
            if broken:
                break
        self.place = expect[:2]
        if broken:
            marks.extend(self.marks_behind(segments, broken))
        highest, index = max(marks), broken[2] if broken else expect[0]
        if index < highest or foreign:
            if broken:
                name, position = segments[broken[0]].path.name, broken[1]
            else:
                last = segments[-1] if segments else None
                name, position = (last.path.name, len(last.data)) if last else (self.path.name, 0)
            self.damage = f"{name}, byte {position}, entry {index}"
            return
        # Cut: a segment that has no entry left is not kept, unless it is the first.
        while len(self.kept) > 1 and self.kept[-1][1].next_index == self.kept[-1][1].base_index:
            self.kept.pop()

    @staticmethod
    def taken_by_mark(segment, following, clean, count):
        return (
            clean is not None
            and following is None
            and clean.segments == count
            and clean.base_index == segment.base_index
            and clean.newest.data_len == len(segment.data)
            and clean.newest.base_offset == segment.header.base_offset
            and segment.index_problem(clean.newest) is None
        )

    @staticmethod
    def marks_behind(segments, broken):
        """The marks of everything intact at and after the break."""
        for at, segment in enumerate(segments[broken[0] :]):
            if segment.header:
                yield segment.header.durable_mark
            if segment.footer:
                yield segment.footer.contents.next_index
                continue
            for seed in segment.seeds:
                start = max(broken[1] if at == 0 else 0, seed.first_frame)
                for frame in frames_anywhere(segment.data, start, len(segment.data), seed):
                    yield frame.durable_mark

    def verify(self):
        """Reads everything that the log has, and notes what does not agree. Returns the hash of all entries."""
        content, whole = [], True
        for segment, contents in self.kept:
            name = segment.path.name
            walked = walk(segment.data, segment.header, contents.data_len)
            content.extend(walked.frames)
            if walked.bad or walked.contents != contents:
                whole = False
                self.problems.append(f"{name}: {walked.bad or 'its frames are not what its footer or mark says'}")
            elif segment.footer and segment.footer.hash != content_hash(walked.frames):
                self.problems.append(f"{name}: the content hash")
            problem = segment.index_problem(contents, walked.frames)
            if segment.footer and problem:
                self.problems.append(f"{name}: index: {problem}")
        return content_hash(content).hex() if whole else "damaged"

    def checkpoint(self):
        """Whether the checkpoint is absent, sound or damaged."""
        path = self.path / "checkpoint"
        if not path.exists():
            return "absent"
        data = path.read_bytes()
        sound = len(data) >= 24 and data[:8] == b"CHRNLCKP" and len(data) == 24 + u64(data, 16)
        if not sound or u32(data, 12) != crc32c(data[24:], crc32c(data[16:24], crc32c(self.id + data[:12]))):
            return "damaged"
        return "sound" if u32(data, 8) == 1 else "newer"

    def report(self):
        """The lines about the log."""
        yield f"log {self.path.name}"
        try:
            self.open()
        except Newer as newer:
            yield f"  newer: {newer}"
            return
        if self.damage:
            yield f"  damage: {self.damage}"
            return
        digest = self.verify()
        first = self.kept[0][1] if self.kept else None
        index, offset = (first.base_index, first.base_offset) if first else self.place
        yield f"  indexes {index}..{self.place[0]}, offsets {offset}..{self.place[1]}"
        for segment, contents in self.kept:
            sealed = segment.footer.hash.hex() if segment.footer else "not sealed"
            yield f"  segment {contents.base_index}, version {segment.header.seed.version}: {sealed}"
        yield f"  all entries: {digest}"
        yield f"  checkpoint {self.checkpoint()}"
        for problem in self.problems:
            yield f"  problem: {problem}"


def read(directory):
    """The lines about a data directory."""
    yield f"directory {directory}"
    try:
        version, node = read_format(directory)
        keys, journal = read_journal(directory, node)
    except Damaged as damaged:
        yield f"damaged: {damaged}"
        return
    except Newer as newer:
        yield f"newer: {newer}"
        return
    yield f"format {version}, node {node}"
    yield journal
    deleted = {log_name(log) for (log, space, number) in keys if (space, number) == (ENGINE, DELETING)}
    for path in sorted((directory / "logs").iterdir()):
        if path.is_dir() and log_bytes(path.name) and path.name not in deleted:
            yield from Log(path, keys).report()


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    for argument in sys.argv[1:]:
        for line in read(Path(argument)):
            print(line)
