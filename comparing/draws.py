"""Which rows count and whom they are paired with: the permutation of the floors, and rows drawn from a run."""

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np

import features
from comparing.codes import ENTRY_BYTES

FLOOR_SEED = 0  # of the row permutation that a floor is the score of


@functools.lru_cache(maxsize=1)
def permutation(n_samples: int) -> np.ndarray:
    """The one permutation that every floor is of: the source's row n is paired with the target's row [n]."""
    rows = np.arange(n_samples, dtype=np.int32 if n_samples < 1 << 31 else np.int64)  # less to hold
    return np.random.default_rng(FLOOR_SEED).permutation(rows)


def shuffled_rows(run: features.Run) -> np.ndarray:
    """The permutation of a floor: the same for all runs of the same samples."""
    return permutation(run.n_samples)


def shuffled_blocks(
    run: features.Run, layer: str, rows: slice = slice(None), memory: int = 1 << 62
) -> Iterator[Any]:
    """A layer in the order of `shuffled_rows`, of which `rows` only, in blocks of CSR [row, feature].

    The layer is read once for all rows that `memory` bytes hold, so that memory decides how often it is read,
    and never which rows are paired.
    """
    order = shuffled_rows(run)[rows]
    first = next(run.blocks(layer))
    row_bytes = max(first.nnz, 1) / first.shape[0] * ENTRY_BYTES
    step = int(min(max(memory / row_bytes, features.PART_ROWS), max(len(order), 1)))
    for start in range(0, len(order), step):
        wanted = order[start : start + step]
        ascending = np.argsort(wanted)
        chunk = chosen_rows(run, layer, wanted[ascending])[np.argsort(ascending)]
        for block in range(0, len(wanted), features.PART_ROWS):
            yield chunk[block : block + features.PART_ROWS]


def chosen_rows(run: features.Run, layer: str, rows: np.ndarray) -> Any:
    """Some rows of a layer, in ascending order, without holding the others: scipy CSR [row, feature]."""
    import scipy.sparse

    parts, start, reached = [], 0, 0
    for block in run.blocks(layer):
        first, reached = reached, int(np.searchsorted(rows, start + block.shape[0]))
        parts.append(block[rows[first:reached].astype(np.int64) - start])
        start += block.shape[0]
    return scipy.sparse.vstack(parts, format="csr")
