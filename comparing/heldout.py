"""Maxima of correlations over all rows and over each half of them, and what each half's partner scores on the other.

The maximum over thousands of correlations is never 0. A partner that is chosen on one half of the rows and
scored on the other is not flattered by the choice (van Hasselt, arXiv 1302.7175). One pass gives all of it: a
feature's entries are kept half by half, so the products of each half come out of the loop that adds up the whole.
"""

from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Int, UInt8

from comparing.codes import AddUp, Codes, Entries, Matrix, as_codes
from comparing.dense import add_dense_products, prefers_gemm
from comparing.found import Best, Matched, Shuffled, nothing
from comparing.half_maxima import (
    add_half_products,
    split_maxima,
    split_maxima_of,
    whole_maxima,
    whole_maxima_of,
)
from comparing.halves import MIN_ACTIVE, Moments, Side, Spread, by_half, counted
from plumbing.threads import equal_ranges, in_parallel

FEW = 4  # times as few entries as the other side has


def matched(source: Side, target: Side, both: bool = True) -> tuple[Matched, Matched]:
    """The maxima of the source's features over the target's, and the other way round, in one pass.

    Without `both` the second is left empty: for few source features it takes longer than the first.
    """
    _check(source, target)
    if prefers_gemm(source.pattern, target.pattern):
        products = Products(source.n_features, target.n_features)
        products.add(source.codes, target.codes, source.half)
        return products.best(Matched, source.min_active)
    return _by_loop(Matched, split_maxima, source.by_half, source, target, target.by_row, both)


def shuffled(source: Side, target: Side, partner: Int[np.ndarray, " row"]) -> tuple[Shuffled, Shuffled]:
    """The maxima with the source's row n beside the target's row `partner[n]`: what chance gives both sides."""
    _check(source, target)
    if prefers_gemm(source.pattern, target.pattern):
        products = Products(source.n_features, target.n_features, halved=False)
        products.add(source.codes, target.codes.take(partner), source.half)
        return products.best(Shuffled, source.min_active)
    if FEW * source.pattern.stored < target.pattern.stored:  # moving the source's rows is quicker then
        return _by_loop(Shuffled, whole_maxima, source.moved_to(partner), source, target, target.by_row)
    return _by_loop(Shuffled, whole_maxima, source.by_feature, source, target, target.beside(partner))


# A compiled loop over the source features `first` to `last`: (first, last, ..., forward, backward).
Loop = Callable[..., None]


def _by_loop(
    kind: type[Best],
    loop: Loop,
    entries: Entries,
    source: Side,
    target: Side,
    by_row: Entries,
    both: bool = True,
) -> tuple[Best, Best]:
    fixed = (entries, by_row, source.counted, int(target.counted.sum()))
    fixed = (*fixed, tuple(source.spread), tuple(target.spread.of(target.order)))
    costs = np.diff(source.by_feature[0])
    return maxima_of_both(kind, loop, fixed, costs, target.spread, target.order, both)


def _check(source: Side, target: Side):
    if source.pattern.n_rows != target.pattern.n_rows or not np.array_equal(source.half, target.half):
        raise ValueError("the two sides have other rows, or other halves")


def maxima_of_both(
    kind: type[Best],
    loop: Loop,
    fixed: tuple,
    costs: np.ndarray,
    target: Spread,
    order: np.ndarray,
    both: bool = True,
) -> tuple[Best, Best]:
    """Run a loop over all source features; each thread keeps its own maxima of the target's.

    `kind` is Matched or Shuffled; `order` [target] are the target's features as the loop counts them. Without `both`
    the target's are not kept.
    """
    forward, backward, own = nothing(kind, len(costs)), nothing(kind, len(order)), []

    def make_worker():
        back = nothing(kind, len(order))
        if both:
            own.append(back)
        else:
            back.rho[:] = np.inf  # that nothing is higher than
        return lambda first, last: loop(first, last, *fixed, tuple(forward), tuple(back))

    in_parallel(make_worker, equal_ranges(costs))
    for back in own:
        backward.merge(back)
    rho = backward.rho[0] if isinstance(backward, Matched) else backward.rho
    np.maximum(backward.every, rho, out=backward.every)
    if isinstance(forward, Matched) and isinstance(backward, Matched):
        backward.match[target.inverse_sd[:, order] == 0] = -1  # constant: it has no partner
        forward.match[forward.match >= 0] = order[forward.match[forward.match >= 0]]
    original = kind(*(np.empty_like(array) for array in backward))
    for array, ordered in zip(original, backward, strict=True):
        array[..., order] = ordered
    forward.settle()
    original.settle()
    return forward, original


class Products:
    """Σxy of a slice of the source's features with all of the target's, by half, over the rows seen so far.

    They add up over blocks of rows and over processes. Memory: 16 bytes a pair of features, and 8 where
    `halved` is False: then both halves go into one sum, and `best(Shuffled)` alone can be asked for.
    """

    def __init__(self, n_source: int, n_target: int, features: slice = slice(None), halved: bool = True):
        self.first, self.last, _ = features.indices(n_source)
        self.parts = 1 + halved
        self.sums = np.zeros((self.parts, self.last - self.first, n_target))
        self.source, self.target = Moments.of_nothing(n_source), Moments.of_nothing(n_target)

    def add(self, source: Matrix | Codes, target: Matrix | Codes, half: UInt8[np.ndarray, " row"]):
        """Add a block of rows, with all features of both sides."""
        source, target, half = as_codes(source), as_codes(target), np.ascontiguousarray(half, np.uint8)
        self.source = self.source.plus(Moments.of(source, half))
        self.target = self.target.plus(Moments.of(target, half))
        if prefers_gemm(source, target):
            self._add_dense(source, target, half)
        else:
            self._add_sparse(source, target, half)

    def _add_sparse(self, source: Codes, target: Codes, half: np.ndarray):
        starts, held = by_half(source, half)
        entries, costs = (starts[:: 3 - self.parts].copy(), held), np.diff(starts[::2])
        for part, sums in enumerate(self.sums):
            fixed = (self.first, part, self.parts, entries, target.by_row, sums)
            ranges = equal_ranges(costs[self.first : self.last], self.first)
            in_parallel(lambda f=fixed: lambda first, last: add_half_products(first, last, *f), ranges)

    def _add_dense(self, source: Codes, target: Codes, half: np.ndarray):
        for part, sums in enumerate(self.sums):
            rows = np.flatnonzero(half == part) if self.parts == 2 else None
            x, y = source.take(rows), target.take(rows)
            if x.n_rows:
                add_dense_products(x, y, sums, self.first, exact=True)

    def add_up(self, add_up: AddUp):
        """Add what other processes have."""
        add_up(self.sums, "SUM")
        self.source, self.target = self.source.add_up(add_up), self.target.add_up(add_up)

    def best(self, kind: type[Best], min_active: int = MIN_ACTIVE) -> tuple[Best, Best]:
        """The maxima of both sides, the target's over the kept source features.

        `kind`: Matched, or Shuffled of rows that were permuted before they were added.
        """
        loop = split_maxima_of if kind is Matched else whole_maxima_of
        forward, backward = maxima_of_both(kind, loop, *self._of_sums(min_active))
        if isinstance(backward, Matched):
            backward.match[backward.match >= 0] += self.first
        return forward, backward

    def _of_sums(self, min_active: int) -> tuple:
        counts = counted(self.source, min_active)[self.first : self.last]
        targets = counted(self.target, min_active)
        order, spread = np.argsort(~targets, kind="stable"), self.target.spread()
        source = self.source.spread().of(slice(self.first, self.last))
        fixed = (self.sums, order, counts, int(targets.sum()), tuple(source), tuple(spread.of(order)))
        return fixed, np.ones(len(counts)), spread, order


# Starts a reading of both sides: blocks [row, feature] of the same rows, and the half of each row.
Reading = Callable[[], Iterator[tuple[Matrix, Matrix, np.ndarray]]]


def streamed(
    kind: type[Best],
    read: Reading,
    widths: tuple[int, int],
    memory: int = 2 << 30,
    min_active: int = MIN_ACTIVE,
    add_up: AddUp = lambda array, how: None,
) -> tuple[Best, Best]:
    """`matched` of two sides that are read in blocks, or `shuffled` of permuted ones, as `kind` says.

    `memory` bytes of sums are held at a time: each slice of the source's features that fits takes one reading.
    Of several processes each reads its own share of the rows, and `add_up` adds the others' sums.
    """
    halved = kind is Matched
    width = max(1, int(memory / 8 / (1 + halved) / widths[1]))
    forward, backward = [], nothing(kind, widths[1])
    for start in range(0, widths[0], width):
        products = Products(*widths, slice(start, start + width), halved)
        for block in read():
            products.add(*block)
        products.add_up(add_up)
        own, other = products.best(kind, min_active)
        forward.append(own)
        backward.merge(other)
    joined = kind(*(np.concatenate(arrays, axis=-1) for arrays in zip(*forward, strict=True)))
    backward.settle()
    return joined, backward
