#!/usr/bin/env python3
"""Writes the batches beside it, with no code of this crate: Python for the format, gzip from its library, and the
reference tools `lz4` and `zstd` from PATH. The records are those of `vector_records` in interop.rs.

    python3 make.py
"""

import gzip
import pathlib
import struct
import subprocess

T0 = 1_700_000_000_000
RECORDS = [
    (T0, b"k", b"chronicle " * 20_000, [(b"h", b"v"), (b"n", None)]),
    (T0 + 5, None, b"", []),
    (T0 - 7, b"", None, [("\u00fc".encode(), b"")]),
]


def varint(value):
    raw = (value << 1) ^ (value >> 63)
    raw &= (1 << 64) - 1
    out = bytearray()
    while raw >= 0x80:
        out.append(raw & 0x7F | 0x80)
        raw >>= 7
    out.append(raw)
    return bytes(out)


def nullable(data):
    return varint(-1) if data is None else varint(len(data)) + data


def record(index, timestamp, key, value, headers):
    body = b"\0" + varint(timestamp - T0) + varint(index) + nullable(key) + nullable(value) + varint(len(headers))
    body += b"".join(nullable(name) + nullable(data) for name, data in headers)
    return varint(len(body)) + body


def crc32c(data):
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    crc = 0xFFFFFFFF
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def batch(codec, packed):
    times = [timestamp for timestamp, *_ in RECORDS]
    hashed = struct.pack(">hiqqqhii", codec, len(RECORDS) - 1, T0, max(times), 77, 3, 12, len(RECORDS)) + packed
    return struct.pack(">qiibI", 40, 9 + len(hashed), 6, 2, crc32c(hashed)) + hashed


def tool(*command):
    return subprocess.run(command, input=PLAIN, capture_output=True, check=True).stdout


PLAIN = b"".join(record(index, *fields) for index, fields in enumerate(RECORDS))
HERE = pathlib.Path(__file__).parent
for name, codec, packed in [
    ("gzip", 1, gzip.compress(PLAIN, mtime=0)),
    ("lz4-independent", 3, tool("lz4", "-B4", "-BI", "-BX", "-c", "-z")),
    ("lz4-linked", 3, tool("lz4", "-B4", "-BD", "--no-frame-crc", "-c", "-z")),
    ("lz4-4MiB", 3, tool("lz4", "-9", "-B7", "-c", "-z")),
    ("zstd", 4, tool("zstd", "-c", "--no-check")),
    ("zstd-19", 4, tool("zstd", "-19", "--check", "-c")),
]:
    (HERE / f"{name}.batch").write_bytes(batch(codec, packed))
