"""Half-by-half sums of layers that are read in blocks of rows, and the maxima that come of them."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from jaxtyping import UInt8

from comparing.codes import WEIGHTLESS, AddUp, Codes, as_codes
from comparing.dense import add_dense_products, prefers_gemm
from comparing.half_maxima import add_half_products, split_maxima_of, whole_maxima_of
from comparing.halves import MIN_ACTIVE, Moments, Spread, by_half, counted
from comparing.partners import Matched, Shuffled
from plumbing.threads import equal_ranges, in_parallel


def maxima_of_both(
    kind: type, loop: Callable, fixed: tuple, costs: np.ndarray, target: Spread, order: np.ndarray
) -> tuple:
    """Run a loop over all source features; each thread keeps its own maxima of the target's.

    `kind` is Matched or Shuffled; `order` [target] are the target's features as the loop counts them.
    """
    forward, backward, own = kind.none(len(costs)), kind.none(len(order)), []

    def make_worker():
        own.append(kind.none(len(order)))
        back = own[-1]
        return lambda first, last: loop(first, last, *fixed, forward, back)

    in_parallel(make_worker, equal_ranges(costs))
    for back in own:
        backward.merge(back)
    rho = backward.rho[0] if kind is Matched else backward.rho
    np.maximum(backward.every, rho, out=backward.every)
    if kind is Matched:
        backward.match[target.inverse_sd[:, order] == 0] = -1  # constant: it has no partner
        forward.match[forward.match >= 0] = order[forward.match[forward.match >= 0]]
    original = kind(*(np.empty_like(array) for array in backward))
    for array, ordered in zip(original, backward, strict=True):
        array[..., order] = ordered
    return forward.settled(), original.settled()


class Products:
    """Σxy of a slice of the source's features with all of the target's, by half, over the rows seen so far.

    They add up over blocks of rows and over processes. Memory: 16 bytes a pair of features, and 8 where
    `halved` is False: then both halves go into one sum, and `shuffled` alone can be asked for.
    """

    def __init__(self, n_source: int, n_target: int, features: slice = slice(None), halved: bool = True):
        self.first, self.last, _ = features.indices(n_source)
        self.parts = 1 + halved
        self.sums = np.zeros((self.parts, self.last - self.first, n_target))
        self.source, self.target = Moments.of_nothing(n_source), Moments.of_nothing(n_target)

    def add(self, source: Any, target: Any, half: UInt8[np.ndarray, " row"]):
        """Add a block of rows, with all features of both sides."""
        source, target, half = as_codes(source), as_codes(target), np.ascontiguousarray(half, np.uint8)
        self.source = self.source.plus(Moments.of(source, half))
        self.target = self.target.plus(Moments.of(target, half))
        if prefers_gemm(source, target):
            self._add_dense(source, target, half)
        else:
            self._add_sparse(source, target, half)

    def _add_sparse(self, source: Codes, target: Codes, half: np.ndarray):
        starts, rows, values = by_half(source, half)
        entries, costs = (starts[:: 3 - self.parts].copy(), rows, values), np.diff(starts[::2])
        for part, sums in enumerate(self.sums):
            fixed = (self.first, part, self.parts, entries, target.by_row, sums)
            ranges = equal_ranges(costs[self.first : self.last], self.first)
            in_parallel(lambda f=fixed: lambda first, last: add_half_products(first, last, *f), ranges)

    def _add_dense(self, source: Codes, target: Codes, half: np.ndarray):
        for part, sums in enumerate(self.sums):
            rows = np.flatnonzero(half == part) if self.parts == 2 else None
            x, y = source.take(rows), target.take(rows)
            if x.n_rows:
                both = x.sums().of(slice(self.first, self.last)), y.sums()
                add_dense_products(x, y, WEIGHTLESS, both, sums, self.first, exact=True)

    def add_up(self, add_up: AddUp):
        """Add what other processes have."""
        add_up(self.sums, "SUM")
        self.source, self.target = self.source.add_up(add_up), self.target.add_up(add_up)

    def matched(self, min_active: int = MIN_ACTIVE) -> tuple[Matched, Matched]:
        """The maxima of both sides; the target's are over the kept source features."""
        forward, backward = maxima_of_both(Matched, split_maxima_of, *self._of_sums(min_active))
        backward.match[backward.match >= 0] += self.first
        return forward, backward

    def shuffled(self, min_active: int = MIN_ACTIVE) -> tuple[Shuffled, Shuffled]:
        """The same of rows that were permuted before they were added."""
        return maxima_of_both(Shuffled, whole_maxima_of, *self._of_sums(min_active))

    def _of_sums(self, min_active: int) -> tuple:
        counts = counted(self.source, min_active)[self.first : self.last]
        targets = counted(self.target, min_active)
        order, spread = np.argsort(~targets, kind="stable"), self.target.spread()
        source = self.source.spread().of(slice(self.first, self.last))
        fixed = (self.sums, order, counts, int(targets.sum()), tuple(source), tuple(spread.of(order)))
        return fixed, np.ones(len(counts)), spread, order


# Starts a reading of both sides: blocks [row, feature] of the same rows, and the half of each row.
Reading = Callable[[], Iterator[tuple[Any, Any, np.ndarray]]]


def streamed(
    read: Reading,
    widths: tuple[int, int],
    memory: int = 2 << 30,
    halved: bool = True,
    min_active: int = MIN_ACTIVE,
    add_up: AddUp = lambda array, how: None,
) -> tuple[Any, Any]:
    """`matched` of two sides that are read in blocks, or, with `halved` False, `shuffled` of permuted ones.

    `memory` bytes of sums are held at a time: each slice of the source's features that fits takes one reading.
    Of several processes each reads its own share of the rows, and `add_up` adds the others' sums.
    """
    kind: type = Matched if halved else Shuffled
    width = max(1, int(memory / 8 / (1 + halved) / widths[1]))
    forward, backward = [], kind.none(widths[1])
    for start in range(0, widths[0], width):
        products = Products(*widths, slice(start, start + width), halved)
        for block in read():
            products.add(*block)
        products.add_up(add_up)
        own, other = products.matched(min_active) if halved else products.shuffled(min_active)
        forward.append(own)
        backward.merge(other)
    joined = kind(*(np.concatenate(arrays, axis=-1) for arrays in zip(*forward, strict=True)))
    return joined, backward.settled()
