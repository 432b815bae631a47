"""BLAKE3 without a key, in pure Python: enough for the content hashes of segments.

After the reference implementation of the BLAKE3 paper (https://github.com/BLAKE3-team/BLAKE3-specs).
"""

import struct

IV = (0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19)
PERMUTATION = (2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8)
CHUNK_START, CHUNK_END, PARENT, ROOT = 1, 2, 4, 8
CHUNK, BLOCK = 1024, 64
MASK = 0xFFFFFFFF
LANES = ((0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15),
         (0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14))


def compress(chaining, words, counter, length, flags):
    """The compression function; returns the first eight words of its output."""
    v = list(chaining) + list(IV[:4]) + [counter & MASK, counter >> 32, length, flags]
    for round_number in range(7):
        for lane, (a, b, c, d) in enumerate(LANES):
            va = (v[a] + v[b] + words[2 * lane]) & MASK
            vd = v[d] ^ va
            vd = (vd >> 16 | vd << 16) & MASK
            vc = (v[c] + vd) & MASK
            vb = v[b] ^ vc
            vb = (vb >> 12 | vb << 20) & MASK
            va = (va + vb + words[2 * lane + 1]) & MASK
            vd ^= va
            vd = (vd >> 8 | vd << 24) & MASK
            vc = (vc + vd) & MASK
            vb ^= vc
            v[a], v[b], v[c], v[d] = va, (vb >> 7 | vb << 25) & MASK, vc, vd
        if round_number < 6:
            words = [words[at] for at in PERMUTATION]
    return tuple(v[at] ^ v[at + 8] for at in range(8))


def chunk_node(data, counter):
    """A chunk, up to its last compression: the arguments of that."""
    blocks = [data[at:at + BLOCK] for at in range(0, len(data), BLOCK)] or [b""]
    chaining = IV
    for at, block in enumerate(blocks):
        flags = (CHUNK_START if at == 0 else 0) | (CHUNK_END if at == len(blocks) - 1 else 0)
        words = struct.unpack("<16I", block.ljust(BLOCK, b"\0"))
        node = (chaining, words, counter, len(block), flags)
        if at < len(blocks) - 1:
            chaining = compress(*node)
    return node


def tree_node(data, first_chunk):
    """The tree over some chunks, up to the last compression of its root."""
    if len(data) <= CHUNK:
        return chunk_node(data, first_chunk)
    # The left subtree is the largest full one that leaves at least one byte.
    left = CHUNK
    while left * 2 < len(data):
        left *= 2
    words = compress(*tree_node(data[:left], first_chunk)) + compress(*tree_node(data[left:], first_chunk + left // CHUNK))
    return (IV, words, 0, BLOCK, PARENT)


def blake3(data):
    """The 32-byte hash of some bytes."""
    chaining, words, _, length, flags = tree_node(bytes(data), 0)
    return struct.pack("<8I", *compress(chaining, words, 0, length, flags | ROOT))


if __name__ == "__main__":
    # The first of the published test vectors: bytes that count up modulo 251.
    VECTORS = {
        0: "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262",
        1: "2d3adedff11b61f14c886e35afa036736dcd87a74d27b5c1510225d0f592e213",
    }
    for size, expected in VECTORS.items():
        assert blake3(bytes(at % 251 for at in range(size))).hex() == expected, size
