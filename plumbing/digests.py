"""BLAKE2b of many texts at once: what hashlib gives of each, in a quarter of the time."""

from typing import no_type_check

import numpy as np
from jaxtyping import Int, UInt8, UInt64

from plumbing.compiled import compiled

BLOCK = 128  # bytes that are mixed in at a time
LANES = (
    32  # texts that are hashed side by side; with fewer, the compiler does not vectorise the loops over them
)

# RFC 7693, sections 2.6 and 2.7. Unsigned: an index that might be negative keeps a loop from being vectorised.
START = np.array(
    [
        0x6A09E667F3BCC908,
        0xBB67AE8584CAA73B,
        0x3C6EF372FE94F82B,
        0xA54FF53A5F1D36F1,
        0x510E527FADE682D1,
        0x9B05688C2B3E6C1F,
        0x1F83D9ABFB41BD6B,
        0x5BE0CD19137E2179,
    ],
    np.uint64,
)
SCHEDULE = np.array(
    [
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15],
        [14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3],
        [11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4],
        [7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8],
        [9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13],
        [2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9],
        [12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11],
        [13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10],
        [6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5],
        [10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0],
    ],
    np.uint64,
)
ROUNDS = 12
COLUMNS = np.array(
    [
        [0, 4, 8, 12],
        [1, 5, 9, 13],
        [2, 6, 10, 14],
        [3, 7, 11, 15],
        [0, 5, 10, 15],
        [1, 6, 11, 12],
        [2, 7, 8, 13],
        [3, 4, 9, 14],
    ],
    np.uint64,
)


def digests(
    letters: UInt8[np.ndarray, " byte"], edges: Int[np.ndarray, " text_and_1"], size: int
) -> UInt64[np.ndarray, "2 text"]:
    """The first 16 bytes of each text's hash, as two numbers; text n is `letters[edges[n] : edges[n + 1]]`.

    `size`: bytes of the digest that is asked for, which BLAKE2b mixes in. With 8, the first number is the digest, and
    both are still 128 bits that tell one text from another.
    """
    found = np.empty((2, len(edges) - 1), np.uint64)
    _hash(letters, edges, size, found)
    return found


@compiled()
@no_type_check
def _hash(letters, edges, size, found):
    """Plain loops over numbers: what stands for a loop over an array takes long to compile."""
    state, work = np.empty((8, LANES), np.uint64), np.empty((16, LANES), np.uint64)
    taken, words = np.empty((LANES, BLOCK), np.uint8), np.empty((16, LANES), np.uint64)
    as_words, lengths = taken.view(np.uint64), np.zeros(LANES, np.int64)
    for first in range(0, edges.size - 1, LANES):
        n_lanes, longest = min(LANES, edges.size - 1 - first), 1
        for lane in range(n_lanes):
            lengths[lane] = edges[first + lane + 1] - edges[first + lane]
            longest = max(longest, lengths[lane])
            for word in range(8):
                state[word, lane] = START[word]
            state[0, lane] ^= np.uint64(0x01010000) | np.uint64(size)
        for start in range(0, longest, BLOCK):
            _take(letters, edges[first : first + n_lanes + 1], start, taken)
            for lane in range(n_lanes):
                for word in range(16):
                    words[word, lane] = as_words[lane, word]
            _compress(state, work, words, start, lengths)
        for lane in range(n_lanes):
            found[0, first + lane], found[1, first + lane] = state[0, lane], state[1, lane]


@compiled()
@no_type_check
def _take(letters, edges, start, taken):
    """One block of each text, 0 after its end."""
    for lane in range(edges.size - 1):
        block, text = taken[lane], letters[edges[lane] + start : edges[lane + 1]]
        size = min(text.size, BLOCK)
        for place in range(size):
            block[place] = text[place]
        for place in range(size, BLOCK):
            block[place] = 0


@compiled()
@no_type_check
def _compress(state, work, words, start, lengths):
    """Mix one block of each text into its state; a text that is over already is left as it is."""
    for word in range(8):
        for lane in range(LANES):
            work[word, lane], work[word + 8, lane] = state[word, lane], START[word]
    for lane in range(LANES):
        work[12, lane] ^= np.uint64(min(lengths[lane], start + BLOCK))
        if lengths[lane] <= start + BLOCK:
            work[14, lane] = ~work[14, lane]
    for number in range(ROUNDS):
        order = SCHEDULE[number % 10]
        for step in range(8):
            a, b, c, d = COLUMNS[step]
            _mix(work[a], work[b], work[c], work[d], words[order[2 * step]], words[order[2 * step + 1]])
    for word in range(8):
        for lane in range(LANES):
            if start == 0 or lengths[lane] > start:
                state[word, lane] ^= work[word, lane] ^ work[word + 8, lane]


@compiled()
@no_type_check
def _mix(a, b, c, d, x, y):
    for i in range(LANES):
        a[i] += b[i] + x[i]
        mixed = d[i] ^ a[i]
        d[i] = (mixed >> np.uint64(32)) | (mixed << np.uint64(32))
        c[i] += d[i]
        mixed = b[i] ^ c[i]
        b[i] = (mixed >> np.uint64(24)) | (mixed << np.uint64(40))
        a[i] += b[i] + y[i]
        mixed = d[i] ^ a[i]
        d[i] = (mixed >> np.uint64(16)) | (mixed << np.uint64(48))
        c[i] += d[i]
        mixed = b[i] ^ c[i]
        b[i] = (mixed >> np.uint64(63)) | (mixed << np.uint64(1))
