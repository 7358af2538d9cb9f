"""Pearson correlation between the features of two runs.

Pearson is a function of sums (n, Σx, Σx², Σy, Σy², Σxy), which add up over chunks of rows, shards and hosts.
Two ways to get Σxy, chosen by cost: TopK codes are sparse, so one compiled loop takes a source feature at a
time, adds the target codes of its rows into a row of products that stays in the cache, and keeps only the
maxima; dense codes go through matrix products (dense.py).

Sums are float64, so r is within 1e-6 of float64 also where a mean is a hundred times its spread. Only the blocks
of dense codes (`--activation relu`) are multiplied in float32, about their means: there r is within 1e-5.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple, no_type_check

import numpy as np
from jaxtyping import Float

from comparing.codes import AddUp, Codes, ColumnSums, Matrix, as_codes
from comparing.dense import add_dense_products, prefers_gemm
from comparing.draws import aligned
from plumbing.compiled import compiled, prefetch
from plumbing.threads import equal_ranges, in_parallel

SLICE_BYTES = 2 << 30  # of float64 products held at once; a wider pair goes slice by slice

# Starts a reading: of the source and the target, blocks [row, feature] of any number of rows.
Reading = Callable[[], tuple[Iterable[Matrix], ...]]


@compiled()
@no_type_check
def add_products(feature, by_feature, by_row, products):
    """products[j] += Σ x_n y_nj over the rows n of one source feature."""
    source_starts, source_entries = by_feature
    starts, entries = by_row
    last = source_starts[feature + 1] - 1
    for entry in range(source_starts[feature], last + 1):
        ahead = source_entries[min(entry + 6, last)].index
        soon = starts[ahead]
        if soon < entries.size:  # the target's rows lie scattered: waiting for them took 1.7 times as long
            for line in range(4):
                prefetch(entries, min(soon + 10 * line, entries.size - 1))
        row = source_entries[entry].index
        value = np.float64(source_entries[entry].value)
        for other in range(np.uint64(starts[row]), np.uint64(starts[row + 1])):  # no index is negative
            products[np.uint64(entries[other].index)] += value * entries[other].value


@compiled(fastmath={"nnan", "nsz", "contract"})
@no_type_check
def _keep_maxima(feature, products, n, source, target, best, match, back, back_match):
    """Turn one source feature's products into correlations, and keep its maximum and the targets' maxima."""
    mean, inverse_sd = source[0][feature] * n, source[1][feature] / n
    for j in range(products.size):
        products[j] = (products[j] - mean * target[0][j]) * target[1][j] * inverse_sd
    highest = -2.0
    for j in range(products.size):
        highest = max(highest, products[j])
    best[feature] = highest
    for j in range(products.size):
        if products[j] == highest:
            match[feature] = j
            break
    for j in range(products.size):
        if products[j] > back[j]:
            back[j], back_match[j] = products[j], feature


@compiled()
@no_type_check
def _fused_maxima(first, last, by_feature, by_row, n, source, target, best, match, back, back_match):
    products = np.empty(target[0].size)
    for feature in range(first, last):
        products[:] = 0
        if source[1][feature] > 0:
            add_products(feature, by_feature, by_row, products)
        _keep_maxima(feature, products, n, source, target, best, match, back, back_match)


@compiled()
@no_type_check
def _fused_products(first, last, offset, by_feature, by_row, products):
    for feature in range(first, last):
        add_products(feature, by_feature, by_row, products[feature - offset])


@compiled()
@no_type_check
def _block_maxima(first, last, products, n, source, target, best, match, back, back_match):
    for feature in range(first, last):
        _keep_maxima(feature, products[feature].copy(), n, source, target, best, match, back, back_match)


class Maxima(NamedTuple):
    """For each feature of one side, its best partner on the other.

    `rho` float64 [feature]: the highest Pearson correlation, below 0 where every one is; `match` int64
    [feature]: who has it, the first of several. Features that never vary correlate 0 with everything.
    """

    rho: np.ndarray
    match: np.ndarray

    @staticmethod
    def none(n_features: int) -> "Maxima":
        return Maxima(np.full(n_features, -2.0), np.zeros(n_features, np.int64))

    def merge(self, other: "Maxima"):
        """Take over what is higher in `other`, or as high with an earlier partner; in place."""
        better = (other.rho > self.rho) | ((other.rho == self.rho) & (other.match < self.match))
        self.rho[better], self.match[better] = other.rho[better], other.match[better]


def max_correlations(source: Matrix | Codes, target: Matrix | Codes) -> tuple[Maxima, Maxima]:
    """The maxima of the source's features over the target's, and the other way round, in one go.

    `rho_i(source->target) = max_j r_ij`.
    """
    source, target = both_codes(source, target)
    if prefers_gemm(source, target):
        return maxima_in_slices(
            source.n_features,
            target.n_features,
            SLICE_BYTES,
            lambda features: Sums.of(source, target, features),
        )
    source_sums, target_sums = source.sums(), target.sums()
    sides = [(side.mean, side.inverse_sd) for side in (source_sums, target_sums)]
    fixed = (source.by_feature, target.by_row, source_sums.n or 1.0, *sides)
    return _maxima_of(_fused_maxima, fixed, np.diff(source.by_feature[0]), target.n_features)


def correlation_matrix(source: Matrix | Codes, target: Matrix | Codes) -> Float[np.ndarray, "source target"]:
    """All of r_ij, where it fits: 302 MB for 6,144 x 6,144."""
    return Sums.of(*both_codes(source, target)).correlations()


def both_codes(source: Matrix | Codes, target: Matrix | Codes) -> tuple[Codes, Codes]:
    """Both sides as Codes; refuses sides of different numbers of rows."""
    source, target = as_codes(source), as_codes(target)
    if source.n_rows != target.n_rows:
        raise ValueError(f"the two sides have {source.n_rows} and {target.n_rows} rows")
    return source, target


def maxima_in_slices(
    n_source: int, n_target: int, memory: int, sums_of: Callable[[slice], "Sums"]
) -> tuple[Maxima, Maxima]:
    """The maxima of both sides, from sums of as many source features at a time as `memory` bytes hold."""
    width = max(1, int(memory / 8 / n_target))
    forward, backward = [], Maxima.none(n_target)
    for start in range(0, n_source, width):
        own, other = sums_of(slice(start, start + width)).maxima()
        forward.append(own)
        backward.merge(other)
    return Maxima(*map(np.concatenate, zip(*forward, strict=True))), backward


def streamed_maxima(
    read: Reading,
    memory: int = SLICE_BYTES,
    add_up: AddUp = lambda array, how: None,
) -> tuple[Maxima, Maxima]:
    """`max_correlations` of two sides that are read in blocks of rows, with at most `memory` bytes of sums.

    Both sides hold the same rows in all. Every slice of the source's features that
    fits takes one reading of both. Of several processes each reads its own share of the rows, and `add_up` adds
    the others' sums.
    """
    widths = np.array([next((block.shape[1] for block in side), 0) for side in read()], np.float64)
    add_up(widths, "MAX")  # a process without rows of its own has seen none
    n_source, n_target = map(int, widths)

    def sums_of(features: slice) -> Sums:
        sums = Sums(n_source, n_target, features)
        for x, y in aligned(*read()):
            sums.add(x, y)
        sums.add_up(add_up)
        return sums

    return maxima_in_slices(n_source, n_target, memory, sums_of)


class Sums:
    """The sums of one pair of layers over the rows seen so far; they add up over chunks, shards and hosts.

    Memory does not depend on the rows: 8 bytes a pair of features. `features` keeps only that slice of the
    source's, so that a pair of any width runs in slices. `products` float64 [source, target] holds Σxy.
    """

    def __init__(self, n_source: int, n_target: int, features: slice = slice(None)):
        self.first, self.last, _ = features.indices(n_source)
        self.products = np.zeros((self.last - self.first, n_target))
        self.source = ColumnSums.of_nothing(self.last - self.first)
        self.target = ColumnSums.of_nothing(n_target)

    @classmethod
    def of(cls, source: Codes, target: Codes, features: slice = slice(None)) -> "Sums":
        """The sums over all rows of two layers."""
        sums = cls(source.n_features, target.n_features, features)
        sums.add(source, target)
        return sums

    def add(self, source: Matrix | Codes, target: Matrix | Codes):
        """Add a chunk of rows, with all features of both sides (also where a slice is kept)."""
        source, target = both_codes(source, target)
        if prefers_gemm(source, target):
            own, other = add_dense_products(source, target, self.products, self.first)
        else:
            own, other = source.sums().of(slice(self.first, self.last)), target.sums()
            fixed = (self.first, source.by_feature, target.by_row, self.products)
            ranges = equal_ranges(np.diff(source.by_feature[0])[self.first : self.last], self.first)
            in_parallel(lambda: lambda first, last: _fused_products(first, last, *fixed), ranges)
        self.source, self.target = self.source.plus(own), self.target.plus(other)

    def add_up(self, add_up: AddUp):
        """Add what other processes have."""
        add_up(self.products, "SUM")
        self.source, self.target = self.source.add_up(add_up), self.target.add_up(add_up)

    def covariances(self) -> Float[np.ndarray, "source target"]:
        """cov(x_i, y_j) of the kept source features with every target feature."""
        covariances = self.products / (self.source.n or 1.0)
        for row, mean in zip(covariances, self.source.mean, strict=True):
            row -= mean * self.target.mean
        return covariances

    def correlations(self) -> Float[np.ndarray, "source target"]:
        """r_ij of the kept source features with every target feature."""
        r = self.covariances()
        r *= self.source.inverse_sd[:, None]
        r *= self.target.inverse_sd
        return r

    def maxima(self) -> tuple[Maxima, Maxima]:
        """The maxima of both sides; the target's are over the kept source features, by their own numbers."""
        kept, width = self.products.shape
        sides = [(side.mean, side.inverse_sd) for side in (self.source, self.target)]
        fixed = (self.products, self.source.n or 1.0, *sides)
        forward, backward = _maxima_of(_block_maxima, fixed, np.ones(kept), width)
        for rho in (forward.rho, backward.rho):
            np.minimum(rho, 1, out=rho)  # float32 products err by up to 1e-5
        return forward, Maxima(backward.rho, backward.match + self.first)


def _maxima_of(
    loop: Callable[..., None], fixed: tuple, costs: np.ndarray, n_target: int
) -> tuple[Maxima, Maxima]:
    """Run a compiled loop over all source features; each thread keeps its own maxima of the target's."""
    forward, backward, own = Maxima.none(len(costs)), Maxima.none(n_target), []

    def make_worker():
        own.append(Maxima.none(n_target))
        back = own[-1]
        return lambda first, last: loop(first, last, *fixed, *forward, *back)

    in_parallel(make_worker, equal_ranges(costs))
    for back in own:
        backward.merge(back)
    return forward, backward
