"""Maxima of layers that do not fit into memory: sums over blocks of rows, added up over processes."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import scipy.linalg
import scipy.sparse
from jaxtyping import Float

from comparing.codes import WEIGHTLESS, AddUp, Codes, ColumnSums, Reading, as_codes
from comparing.pearson import (
    BYTE_WORTH,
    TILE_ROWS,
    ByteSearch,
    FloatSearch,
    Maxima,
    Search,
    Sums,
    _add_pairs,
    _check_rows,
    _csr,
    _fused_maxima,
    _maxima_of,
    _multiplies_bytes,
    _prefers_gemm,
    _unpermuted,
)
from plumbing.threads import in_parallel

JOINED_ENTRIES = 1 << 21  # stored entries of blocks that are summed at once: 16 MB


def max_correlations(
    source: Any,
    target: Any,
    *,
    rows: np.ndarray | None = None,
    weights: np.ndarray | None = None,
    permutation: np.ndarray | None = None,
) -> tuple[Maxima, Maxima]:
    """The maxima of the source's features over the target's, and the other way round, in one go.

    `source` and `target` are Codes, scipy sparse or numpy [row, feature] with the same rows. `rows` chooses
    rows of both (indices, repeats allowed). Then `weights` [row] counts each row so often, and `permutation`
    [row] pairs the source's row n with the target's row permutation[n]; the weight belongs to the pair.
    """
    source, target = as_codes(source).take(rows), as_codes(target).take(rows)
    _check_rows(source, target, weights, permutation)
    if _prefers_gemm(source, target):
        sides = [source.matrix], [target.take(permutation).matrix]
        return streamed_maxima(*(lambda side=side: side for side in sides), weights=weights)
    source_sums = source.sums(weights)
    partner = np.empty(0, np.int64) if permutation is None else np.asarray(permutation, np.int64)
    target_sums = target.sums(_unpermuted(weights, permutation))
    sides = [(side.mean, side.inverse_sd) for side in (source_sums, target_sums)]
    weights = WEIGHTLESS if weights is None else np.asarray(weights, np.float64)
    fixed = (source.by_feature, partner, weights, target.by_row, source_sums.n or 1.0, *sides)
    return _maxima_of(_fused_maxima, fixed, np.diff(source.by_feature[0]), target.n_features)


def max_correlation(source: Any, target: Any, **choices: Any) -> Maxima:
    """`rho_i(source->target) = max_j r_ij` (DESIGN 2); the choices are those of `max_correlations`."""
    return max_correlations(source, target, **choices)[0]


def streamed_maxima(
    source: Callable[[], Iterable[Any]],
    target: Callable[[], Iterable[Any]],
    memory: int = 2 << 30,
    rank: int = 0,
    add_up: AddUp = lambda array, how: None,
    weights: np.ndarray | None = None,
) -> tuple[Maxima, Maxima]:
    """`max_correlations` of two sides that are read in blocks of rows, with at most `memory` bytes of sums.

    `source()` and `target()` start a reading: blocks [row, feature] of any number of rows, in all the same
    rows on both sides. Every slice of the source's features that fits takes one reading of both; where the codes
    are dense, two or more, after one for all slices. Of several processes each reads its own share of the rows,
    has its own `rank`, and `add_up` adds the others' sums.
    """

    def read() -> Iterator[tuple[Any, Any, np.ndarray | None]]:
        start = 0
        for x, y in aligned(source(), target()):
            yield x, y, None if weights is None else weights[start : start + x.shape[0]]
            start += x.shape[0]

    seen = _first_look(read)
    add_up(seen, "MAX")
    n_source, n_target, dense, floats = map(int, seen)
    sides = _all_column_sums(read, n_source, n_target, add_up) if dense else None
    width = max(1, int(memory / 8 / n_target))
    forward, backward = [], Maxima.none(n_target)
    for start in range(0, n_source, width):
        features, found = slice(start, start + width), None
        for search in _searches(*sides, features, rank, bool(floats), add_up) if sides else ():
            candidates = _summed(search, read, add_up).candidates()
            if candidates:
                found = _refined(search, *candidates, read, add_up)
                break
        own, other = found or _summed(Sums(n_source, n_target, features), read, add_up).maxima()
        forward.append(own)
        backward.merge(other)
    return Maxima(*map(np.concatenate, zip(*forward, strict=True))), backward


def _first_look(read: Reading) -> Float[np.ndarray, "4"]:
    """Both sides' widths, whether they are dense, and whether a `ByteSearch` cannot read them; 0 without rows."""
    for x, y, weights in read():
        sparse = scipy.sparse.issparse(x) and scipy.sparse.issparse(y)
        dense = _prefers_gemm(Codes(x), Codes(y))
        return np.array([x.shape[1], y.shape[1], dense, not sparse or weights is not None], np.float64)
    return np.zeros(4)


def _all_column_sums(read: Reading, n_source: int, n_target: int, add_up: AddUp) -> list[ColumnSums]:
    """Both sides' sums over all rows of all processes."""
    sides = [ColumnSums.of_nothing(n_source), ColumnSums.of_nothing(n_target)]
    for *blocks, weights in read():
        sides = [side + Codes(block).sums(weights) for side, block in zip(sides, blocks, strict=True)]
    return [side.add_up(add_up) for side in sides]


def _summed(sums: Any, read: Reading, add_up: AddUp) -> Any:
    for chunk in read():
        sums.add(*chunk)
    sums.add_up(add_up)
    return sums


def _searches(
    source: ColumnSums, target: ColumnSums, features: slice, rank: int, floats: bool, add_up: AddUp
) -> Iterator[Search]:
    """The searches that are worth trying, the quickest first; the same ones in every process."""
    if source.n * len(source.total) * len(target.total) >= BYTE_WORTH and not floats:
        slow = np.array([float(not _multiplies_bytes())])
        add_up(slow, "MAX")
        if not slow[0]:
            yield ByteSearch(source, target, features, rank)
    yield FloatSearch(source, target, features)


def _refined(
    search: Search, own: np.ndarray, other: np.ndarray, read: Reading, add_up: AddUp
) -> tuple[Maxima, Maxima]:
    """The maxima among the pairs that a search found, in float64."""
    source, target = search.source, search.target
    products = np.zeros(len(own))
    for x, y, weights in read():
        weights = WEIGHTLESS if weights is None else np.asarray(weights, np.float64)
        fixed = (own + search.first, other, _csr(x), _csr(y), (x.shape[1], y.shape[1]), weights)
        step = TILE_ROWS * -(-x.shape[0] // (16 * TILE_ROWS)) or 1  # 16 sums of rows, whatever the threads
        ranges = [(first, min(first + step, x.shape[0])) for first in range(0, x.shape[0], step)]
        parts = {first: np.zeros(len(own)) for first, _ in ranges}
        in_parallel(lambda f=fixed, p=parts: lambda a, b: _add_pairs(a, b, *f, p[a]), ranges)
        products += sum(parts.values())
    add_up(products, "SUM")
    r = products / (source.n or 1.0) - source.mean[own] * target.mean[other]
    r *= source.inverse_sd[own] * target.inverse_sd[other]
    forward = _best(own, other, r, source.inverse_sd > 0, target.inverse_sd > 0)
    backward = _best(other, own, r, target.inverse_sd > 0, source.inverse_sd > 0)
    return forward, Maxima(backward.rho, backward.match + search.first)


def _best(
    own: np.ndarray, other: np.ndarray, r: np.ndarray, varies: np.ndarray, partner_varies: np.ndarray
) -> Maxima:
    """The highest r of each feature among the pairs (own, other); features that never vary give and get 0."""
    best = Maxima(np.where(varies, -2.0, 0.0), np.zeros(len(varies), np.int64))
    order = np.lexsort((other, -r, own))
    features, first = np.unique(own[order], return_index=True)
    best.rho[features], best.match[features] = r[order][first], other[order][first]
    if not partner_varies.all():
        constant = np.argmin(partner_varies)
        best.merge(Maxima(np.zeros(len(varies)), np.full(len(varies), constant)))
    best.match[~varies] = 0
    return best


def aligned(source: Iterable[Any], target: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
    """Blocks of rows of two readers, cut so that they hold the same rows."""
    sides, blocks = (joined(source), joined(target)), [None, None]
    while True:
        for i, side in enumerate(sides):
            while blocks[i] is None or not blocks[i].shape[0]:
                blocks[i] = next(side, None)
                if blocks[i] is None:
                    return
        rows = min(block.shape[0] for block in blocks)
        yield tuple(block if block.shape[0] == rows else block[:rows] for block in blocks)
        blocks = [None if block.shape[0] == rows else block[rows:] for block in blocks]


def joined(blocks: Iterable[Any]) -> Iterator[Any]:
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
