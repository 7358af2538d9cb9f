"""Labels of rows, 128 bits of a hash in place of each text, and the rows that share one.

Two of n labels have the same bits by chance with a probability of n² / 2^129: below 1e-26 for a million rows, 1e-22
for a hundred million.
"""

import hashlib
from array import array
from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeAlias, no_type_check

import numpy as np
from jaxtyping import Int, UInt64

from plumbing.compiled import compiled
from samples import Samples, Texts

KEY_BYTES = 8  # of a text's BLAKE2b digest: what halves and folds are taken from

UNNAMED_ROWS = 1 << 16  # whose numbers are written out at once

Labels: TypeAlias = UInt64[np.ndarray, "2 row"]  # the first number is the digest


class Told(NamedTuple):
    """What is kept of a run's samples: `names` and lower-cased `captions`, Labels; `n_words` int32 [row], the captions'."""

    names: np.ndarray
    captions: np.ndarray
    n_words: np.ndarray

    @staticmethod
    def of(blocks: Iterable[Samples], n_rows: int) -> "Told":
        """Of samples that are read some rows at a time."""
        names, captions = np.empty((2, 2, n_rows), np.uint64)
        told, start = Told(names, captions, np.empty(n_rows, np.int32)), 0
        for block in blocks:
            rows = slice(start, start + len(block))
            told.names[:, rows] = labels(named(block))
            told.captions[:, rows] = labels(block.captions.lowered())
            told.n_words[rows] = n_words(block.captions)
            start = rows.stop
        return told


def labels(texts: Sequence[str | None]) -> Labels:
    """The labels of texts: the digest, which is the same everywhere, and this process's own hash of the text."""
    held = as_texts(texts)
    found = np.empty((2, len(held)), np.uint64)
    digests, hashes = bytearray(), array("q")
    for text in held.encoded():
        digests += hashlib.blake2b(text, digest_size=KEY_BYTES).digest()
        hashes.append(hash(text))
    found[0], found[1] = np.frombuffer(digests, "<u8"), np.frombuffer(hashes, np.uint64)
    return found


def unnamed(n_rows: int) -> Labels:
    """Of rows without names: their numbers."""
    found = np.empty((2, n_rows), np.uint64)
    for start in range(0, n_rows, UNNAMED_ROWS):
        rows = range(start, min(start + UNNAMED_ROWS, n_rows))
        found[:, rows.start : rows.stop] = labels([str(row) for row in rows])
    return found


def as_texts(texts: Sequence[str | None]) -> Texts:
    return texts if isinstance(texts, Texts) else Texts.of([text or "" for text in texts])


def named(samples: Samples) -> Texts:
    """The image of each row, or the row's id where it has none."""
    if samples.images.lengths().all():
        return samples.images
    return Texts.of([image or row for image, row in zip(samples.images, samples.ids, strict=True)])


class Groups:
    """Rows that share a label are in one group, joined transitively. The label of "" joins nothing."""

    def __init__(self, n_rows: int):
        self._above = np.arange(
            n_rows, dtype=np.int32
        )  # a row of the group that stands above, or the row itself

    def join(self, *shared: Labels):
        """Join the rows that share a label; with several labels a row, those that have any in common."""
        every = shared[0] if len(shared) == 1 else np.concatenate(shared, axis=1)
        slots = 1 << max(2 * every.shape[1] - 1, 1).bit_length()
        _join(every, labels([""])[:, 0], self._above, np.full(slots, -1, np.int32))

    def numbered(self) -> Int[np.ndarray, " row"]:
        """The number of each row's group, by first appearance."""
        return _number(self._above)


def joined(*shared: Sequence[str | None] | np.ndarray) -> Int[np.ndarray, " row"]:
    """The number of each row's group: rows that share any label, which are Labels or texts [row], are in one."""
    each = [one if isinstance(one, np.ndarray) else labels(one) for one in shared]
    groups = Groups(each[0].shape[1])
    for one in each:
        groups.join(one)
    return groups.numbered()


def n_words(captions: Texts) -> Int[np.ndarray, " row"]:
    """The words of each caption, parted by what Python's `split` takes for white space."""
    found = np.concatenate([np.empty(0, np.int64), *(_count_words(*some) for some in captions.buffers())])
    for row in np.flatnonzero(found < 0):  # not ASCII
        found[row] = len(captions[int(row)].split())
    return found


@compiled()
@no_type_check
def _count_words(letters, edges):
    """The words of texts in ASCII; -1 for others."""
    found = np.zeros(edges.size - 1, np.int64)
    for row in range(found.size):
        text = letters[edges[row] : edges[row + 1]]
        every, before = np.uint8(0), np.uint8(1)
        for place in range(
            text.size
        ):  # without a branch: words end too often for the processor to foresee it
            letter = text[place]
            is_space = np.uint8(
                (letter == 32) | ((letter >= 9) & (letter <= 13)) | ((letter >= 28) & (letter <= 31))
            )
            found[row] += before & (is_space ^ 1)
            every, before = every | letter, is_space
        if every >= 128:
            found[row] = -1
    return found


@compiled()
@no_type_check
def _join(every, nothing, above, table):
    """`table` int32 [power of two], -1: a hash table of the first place with each label."""
    last = np.uint64(table.size - 1)
    for place in range(every.shape[1]):
        key, rest = every[0, place], every[1, place]
        if key == nothing[0] and rest == nothing[1]:
            continue
        slot = key & last
        while table[slot] >= 0 and (every[0, table[slot]] != key or every[1, table[slot]] != rest):
            slot = (slot + np.uint64(1)) & last
        if table[slot] < 0:
            table[slot] = place
        else:
            _unite(place % above.size, table[slot] % above.size, above)


@compiled()
@no_type_check
def _unite(row, other, above):
    while above[row] != row:
        above[row] = above[above[row]]
        row = above[row]
    while above[other] != other:
        above[other] = above[above[other]]
        other = above[other]
    above[max(row, other)] = min(row, other)


@compiled()
@no_type_check
def _number(above):
    number, n = np.empty(above.size, np.int32), 0
    for row in range(above.size):
        if above[row] == row:
            number[row] = n
            n += 1
        else:
            number[row] = number[above[row]]
    return number
