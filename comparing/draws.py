"""Which rows count, how often, and whom they are paired with: all of them, a floor's permutation, a half, a fold."""

import functools
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import scipy.sparse
from jaxtyping import Float, Int

import features
from comparing.codes import ENTRY_BYTES, Matrix

JOINED_ENTRIES = 1 << 21  # stored entries of blocks that are summed at once: 16 MB
FLOOR_SEED = 0  # of the row permutation that a floor is the score of


class Draw(NamedTuple):
    """The pairs of rows that a correlation is over.

    Pair n is the source's row `source[n]` beside the target's row `target[n]`, int [pair], and counts
    `weights[n]` times, float [pair]. None: all rows in their order, each once. So a half or a fold names the
    same rows on both sides, and a floor permutes the target's.
    """

    source: np.ndarray | None = None
    target: np.ndarray | None = None
    weights: np.ndarray | None = None

    @staticmethod
    def of_rows(rows: Int[np.ndarray, " pair"]) -> "Draw":
        """Some rows, each beside itself; a row that is named twice counts twice."""
        return Draw(rows, rows)

    def n_pairs(self, n_rows: int) -> int:
        """The number of pairs of two runs of `n_rows` rows."""
        return next((len(array) for array in self if array is not None), n_rows)

    def check(self, n_source: int, n_target: int):
        """Refuse what does not pair `n_source` rows, those named, with as many of the target's `n_target`."""
        lengths = {n_source, n_target if self.target is None else len(self.target)}
        lengths |= {len(array) for array in (self.source, self.weights) if array is not None}
        if len(lengths) != 1:
            raise ValueError(f"the two sides, their rows and weights differ in length: {sorted(lengths)}")

    def target_weights(self, n_rows: int) -> Float[np.ndarray, " row"] | None:
        """How often each of the target's `n_rows` rows counts; None where each counts once."""
        if self.target is None:
            return self.weights
        counts = np.bincount(self.target, self.weights, minlength=n_rows).astype(np.float64)
        return None if (counts == 1).all() else counts


ALL = Draw()


class Layer(NamedTuple):
    """A layer of a run."""

    run: features.Run
    name: str

    def blocks(self, rows: slice = slice(None)) -> Iterator[scipy.sparse.csr_array]:
        """Its features, or some rows of them, in blocks of CSR float32 [row, feature]."""
        return self.run.blocks(self.name, rows)


class Cell(NamedTuple):
    """Two layers to correlate, over the pairs of rows that `draw` names."""

    source: Layer
    target: Layer
    draw: Draw = ALL

    def blocks(self, pairs: slice, memory: int) -> tuple[Iterator[scipy.sparse.csr_array], ...]:
        """Both sides' rows of some of the pairs, in the draw's order, in blocks of CSR [pair, feature]."""
        return (
            blocks(self.source, self.draw.source, pairs, memory),
            blocks(self.target, self.draw.target, pairs, memory),
        )


@functools.lru_cache(maxsize=1)
def permutation(n_samples: int) -> Int[np.ndarray, " row"]:
    """The one permutation that every floor is of: the same for all runs of the same samples."""
    rows = np.arange(n_samples, dtype=np.int32 if n_samples < 1 << 31 else np.int64)  # less to hold
    return np.random.default_rng(FLOOR_SEED).permutation(rows)


def floor(n_samples: int) -> Draw:
    """The draw of a floor: every row of the source beside another one of the target, by chance."""
    return Draw(target=permutation(n_samples))


def blocks(
    layer: Layer, order: Int[np.ndarray, " pair"] | None, pairs: slice = slice(None), memory: int = 1 << 62
) -> Iterator[scipy.sparse.csr_array]:
    """A layer's rows in the order of one side of a Draw, of which `pairs` only, in blocks of CSR [pair, feature].

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
