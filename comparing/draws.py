"""Rows of layers: in which order they are read, in which blocks, and beside which rows of another run."""

import functools
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import scipy.sparse
from jaxtyping import Int

import features
from comparing.codes import ENTRY_BYTES, Matrix

JOINED_ENTRIES = 1 << 21  # stored entries of blocks that are summed at once
FLOOR_SEED = 0  # of the row permutation that a floor is the score of


class Layer(NamedTuple):
    """A layer of a run."""

    run: features.Run
    name: str

    def blocks(self, rows: slice = slice(None)) -> Iterator[scipy.sparse.csr_array]:
        """Its features, or some rows of them, in blocks of CSR float32 [row, feature]."""
        return self.run.blocks(self.name, rows)


class Cell(NamedTuple):
    """Two layers to correlate; `partner` int [row]: the target's row beside each of the source's, None: the same."""

    source: Layer
    target: Layer
    partner: np.ndarray | None = None

    def blocks(self, rows: slice, memory: int) -> tuple[Iterator[scipy.sparse.csr_array], ...]:
        """Both sides of some rows of the source, in blocks of CSR [row, feature]."""
        return blocks(self.source, None, rows, memory), blocks(self.target, self.partner, rows, memory)


@functools.lru_cache(maxsize=1)
def permutation(n_samples: int) -> Int[np.ndarray, " row"]:
    """The one permutation that every floor of an older score is of: the same for all runs of the same samples."""
    rows = np.arange(n_samples, dtype=np.int32 if n_samples < 1 << 31 else np.int64)  # less to hold
    return np.random.default_rng(FLOOR_SEED).permutation(rows)


def blocks(
    layer: Layer, order: Int[np.ndarray, " pair"] | None, pairs: slice = slice(None), memory: int = 1 << 62
) -> Iterator[scipy.sparse.csr_array]:
    """A layer's rows in an order (None: as they are), of which `pairs` only, in blocks of CSR [pair, feature].

    The layer is read once for all rows that `memory` bytes hold, so that memory decides how often it is read,
    and never which rows are paired.
    """
    if order is None:
        yield from layer.blocks(pairs)
        return
    order = order[pairs]
    first = next(layer.blocks())
    row_bytes = max(first.nnz, 1) / first.shape[0] * ENTRY_BYTES
    step = int(min(max(memory / row_bytes, features.PART_ROWS), max(len(order), 1)))
    for start in range(0, len(order), step):
        wanted = order[start : start + step]
        ascending = np.argsort(wanted)
        chunk = chosen_rows(layer, wanted[ascending])[np.argsort(ascending)]
        for block in range(0, len(wanted), features.PART_ROWS):
            yield chunk[block : block + features.PART_ROWS]


def chosen_rows(layer: Layer, rows: Int[np.ndarray, " row"]) -> scipy.sparse.csr_array:
    """Some rows of a layer, in ascending order, without holding the others: scipy CSR [row, feature]."""
    parts, start, reached = [], 0, 0
    for block in layer.blocks():
        first, reached = reached, int(np.searchsorted(rows, start + block.shape[0]))
        parts.append(block[rows[first:reached].astype(np.int64) - start])
        start += block.shape[0]
    return scipy.sparse.vstack(parts, format="csr")


def aligned(
    source: Iterable[Matrix], target: Iterable[Matrix], *, entries: int = 1 << 62
) -> Iterator[tuple[Matrix, Matrix]]:
    """Blocks of rows of two readers, cut so that they hold the same rows; small ones are `joined`."""
    others = joined(target, entries)
    y = next(others, None)
    for x in joined(source, entries):
        while y is not None and x.shape[0]:
            rows = min(x.shape[0], y.shape[0])
            if rows:
                yield cut(x, 0, rows), cut(y, 0, rows)
            x = cut(x, rows, x.shape[0])
            y = cut(y, rows, y.shape[0]) if rows < y.shape[0] else next(others, None)


def cut(block: Matrix, first: int, last: int) -> Matrix:
    """Some rows of a block; the block itself where they are all, which copies nothing."""
    return block if (first, last) == (0, block.shape[0]) else block[first:last]


def joined(blocks: Iterable[Matrix], entries: int = 1 << 62) -> Iterator[Matrix]:
    """Sparse blocks joined until they hold `entries` or JOINED_ENTRIES: the sums are gone through once for each."""
    held = []
    for block in blocks:
        held.append(block)
        sparse = scipy.sparse.issparse(block)
        if not sparse or sum(one.nnz for one in held) >= min(entries, JOINED_ENTRIES):
            yield block if len(held) == 1 else scipy.sparse.vstack(held, format="csr")
            held = []
    if held:
        yield scipy.sparse.vstack(held, format="csr")
