"""Maxima of layers that do not fit into memory: sums over blocks of rows, added up over processes."""

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import scipy.sparse

from comparing.codes import AddUp, Matrix
from comparing.pearson import SLICE_BYTES, Maxima, Sums, maxima_in_slices

JOINED_ENTRIES = 1 << 21  # stored entries of blocks that are summed at once: 16 MB

# Starts a reading: of the source and the target, blocks [row, feature] of any number of rows.
Reading = Callable[[], tuple[Iterable[Matrix], ...]]


def streamed_maxima(
    read: Reading,
    memory: int = SLICE_BYTES,
    add_up: AddUp = lambda array, how: None,
    weights: np.ndarray | None = None,
) -> tuple[Maxima, Maxima]:
    """`max_correlations` of two sides that are read in blocks of rows, with at most `memory` bytes of sums.

    Both sides hold the same rows in all, which `weights` [row] count. Every slice of the source's features that
    fits takes one reading of both. Of several processes each reads its own share of the rows, and `add_up` adds
    the others' sums.
    """
    widths = np.array([next((block.shape[1] for block in side), 0) for side in read()], np.float64)
    add_up(widths, "MAX")  # a process without rows of its own has seen none
    n_source, n_target = map(int, widths)

    def sums_of(features: slice) -> Sums:
        sums, start = Sums(n_source, n_target, features), 0
        for x, y in aligned(*read()):
            sums.add(x, y, None if weights is None else weights[start : start + x.shape[0]])
            start += x.shape[0]
        sums.add_up(add_up)
        return sums

    return maxima_in_slices(n_source, n_target, memory, sums_of)


def aligned(source: Iterable[Matrix], target: Iterable[Matrix]) -> Iterator[tuple[Matrix, Matrix]]:
    """Blocks of rows of two readers, cut so that they hold the same rows."""
    others = joined(target)
    y = next(others, None)
    for x in joined(source):
        while y is not None and x.shape[0]:
            rows = min(x.shape[0], y.shape[0])
            if rows:
                yield cut(x, 0, rows), cut(y, 0, rows)
            x = cut(x, rows, x.shape[0])
            y = cut(y, rows, y.shape[0]) if rows < y.shape[0] else next(others, None)


def cut(block: Matrix, first: int, last: int) -> Matrix:
    """Some rows of a block; the block itself where they are all, which copies nothing."""
    return block if (first, last) == (0, block.shape[0]) else block[first:last]


def joined(blocks: Iterable[Matrix]) -> Iterator[Matrix]:
    """Sparse blocks joined until they hold JOINED_ENTRIES: the sums are gone through once for each block."""
    held = []
    for block in blocks:
        held.append(block)
        sparse = scipy.sparse.issparse(block)
        if not sparse or sum(one.nnz for one in held) >= JOINED_ENTRIES:
            yield block if len(held) == 1 else scipy.sparse.vstack(held, format="csr")
            held = []
    if held:
        yield scipy.sparse.vstack(held, format="csr")
