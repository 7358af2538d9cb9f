"""Pearson correlation between the features of two runs.

Pearson is a function of sums (n, Σx, Σx², Σy, Σy², Σxy), which add up over chunks of rows, shards and hosts.
Two ways to get them, chosen by cost: TopK codes are sparse, so one compiled loop takes a source feature at a
time, adds the target codes of its rows into a row of products that stays in the cache, and keeps only the
maxima; dense codes go through matrix products of blocks of rows, on a GPU where there is one.

All sums that a result is made of are float64, so a correlation is within 1e-6 also where a mean is a hundred
times its spread. Products of 8-bit or float32 numbers only search for the maxima of dense codes: see `Search`.
"""

import contextlib
import functools
import os
from collections.abc import Iterator
from typing import Any, NamedTuple, no_type_check

import numpy as np
import scipy.linalg
import scipy.sparse
from jaxtyping import Float
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from comparing.codes import CUDA_FEATURES, DENSE_ROWS, WEIGHTLESS, AddUp, Codes, ColumnSums, _fill, as_codes
from plumbing.compiled import compiled
from plumbing.threads import equal_ranges, in_parallel

FLOAT32_ERROR = 5e-5  # of r: what products of float32 numbers err by at most; up to 6e-6 was seen

MANY_CANDIDATES = 64  # a feature: with more, a finer search is faster

BYTE_LEVELS, BYTE_ROWS = 252, 8192  # steps of an 8-bit number, and rows of one product of them

BYTE_SIGMAS = 9  # standard deviations that the error of an 8-bit product has at most: see ByteSearch

BYTE_WORTH = 3 * 10**11  # multiply-adds that take longer in float32 than importing torch does

TILE_ROWS = 64  # rows of both sides that stay in the cache while the pairs found are multiplied

GEMM_ADVANTAGE = 60  # its multiply-adds in the time of one of the sparse loop, on 2 cores

CUDA_ADVANTAGE = 10_000  # the same with the product on a GPU


@intrinsic
@no_type_check
def _prefetch(context, array, index):
    """Ask for array[index] ahead of its use: the target's rows lie scattered, and waiting is costly."""

    def generate(context, builder, signature, arguments):
        view = context.make_array(signature.args[0])(context, builder, arguments[0])
        pointer = cgutils.get_item_pointer(context, builder, signature.args[0], view, [arguments[1]])
        byte, word = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, word, word, word])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        hints = [ir.Constant(word, hint) for hint in (0, 3, 1)]  # for reading, into every cache level, data
        builder.call(function, [builder.bitcast(pointer, byte), *hints])
        return context.get_dummy_value()

    return types.void(array, types.int64), generate


@compiled()
@no_type_check
def _add_products(feature, by_feature, partner, weights, by_row, products):
    """products[j] += Σ over the rows n of one source feature: weight_n x_n y_{partner(n), j}."""
    source_starts, source_rows, source_values = by_feature
    starts, features, values = by_row
    last = source_starts[feature + 1] - 1
    for entry in range(source_starts[feature], last + 1):
        ahead = source_rows[min(entry + 4, last)]
        soon = starts[partner[ahead] if partner.size else ahead]
        if soon < values.size:
            _prefetch(features, soon)
            _prefetch(values, soon)
            _prefetch(values, min(soon + 16, values.size - 1))
        row = source_rows[entry]
        value = np.float64(source_values[entry])
        if weights.size:
            value *= weights[row]
        row = partner[row] if partner.size else row
        for other in range(starts[row], starts[row + 1]):
            products[features[other]] += value * values[other]


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
def _fused_maxima(
    first, last, by_feature, partner, weights, by_row, n, source, target, best, match, back, back_match
):
    products = np.empty(target[0].size)
    for feature in range(first, last):
        products[:] = 0
        if source[1][feature] > 0:
            _add_products(feature, by_feature, partner, weights, by_row, products)
        _keep_maxima(feature, products, n, source, target, best, match, back, back_match)


@compiled()
@no_type_check
def _fused_products(first, last, offset, by_feature, weights, by_row, products):
    for feature in range(first, last):
        _add_products(feature, by_feature, np.empty(0, np.int64), weights, by_row, products[feature - offset])


@compiled()
@no_type_check
def _block_maxima(first, last, products, n, source, target, best, match, back, back_match):
    for feature in range(first, last):
        _keep_maxima(feature, products[feature].copy(), n, source, target, best, match, back, back_match)


@compiled()
@no_type_check
def _as_bytes(first, last, start, csr, steps, offsets, key, chunk):
    """Rows of a CSR, from `start` on, as 8-bit numbers: value / step - offset, rounded up or down by chance.

    The chance is a hash of `key`, row and column, and rounds to the number itself on average; 0 is exact.
    """
    starts, columns, values = csr
    for row in range(first, last):
        out = chunk[row]
        for column in range(out.size):
            out[column] = -offsets[column]
        row_key = (key + np.uint64(start + row)) * np.uint64(0xD1342543DE82EF95)
        for entry in range(starts[start + row], starts[start + row + 1]):
            column = columns[entry]
            bits = row_key + np.uint64(column) * np.uint64(0x9E3779B97F4A7C15)  # splitmix64
            bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            chance = np.float64(bits >> np.uint64(40)) * 2.0**-24
            out[column] = np.int64(np.floor(values[entry] / steps[column] + chance)) - offsets[column]


@compiled(fastmath={"nnan", "nsz", "contract"})
@no_type_check
def _rough(i, products, terms, r):
    """r of one source feature with every target feature, from the products of a search (see Terms)."""
    own, total, scale, _, _, other, mean, other_scale, _ = terms
    for j in range(r.size):
        r[j] = (products[i, j] + own[i] * other[j] + total[i] * mean[j]) * (scale[i] * other_scale[j])


@compiled()
@no_type_check
def _lowest_maxima(first, last, products, terms, own_floor, floors):
    """What each side's maximum is at least, given how much a search may err."""
    _, _, scale, error, growth, _, _, other_scale, other_error = terms
    r = np.empty(products.shape[1])
    for i in range(first, last):
        if scale[i] > 0:
            _rough(i, products, terms, r)
            for j in range(r.size):
                if other_scale[j] > 0:
                    lowest = r[j] - error[i] - growth[i] * other_error[j]
                    own_floor[i], floors[j] = max(own_floor[i], lowest), max(floors[j], lowest)


@compiled()
@no_type_check
def _candidates(first, last, products, terms, own_floor, floors, places, own, other):
    """The pairs that may be either side's maximum: counted in `places`, or, where that is known, listed."""
    _, _, scale, error, growth, _, _, other_scale, other_error = terms
    r = np.empty(products.shape[1])
    for i in range(first, last):
        if scale[i] > 0:
            _rough(i, products, terms, r)
            found = 0
            for j in range(r.size):
                highest = r[j] + error[i] + growth[i] * other_error[j]
                if other_scale[j] > 0 and (highest >= own_floor[i] or highest >= floors[j]):
                    if own.size:
                        own[places[i] + found], other[places[i] + found] = i, j
                    found += 1
            if not own.size:
                places[i] = found


@compiled()
@no_type_check
def _fill_tile(csr, first, count, tile):
    """Rows of a CSR as a dense float32 [feature, row]."""
    starts, columns, values = csr
    tile[:] = 0
    for row in range(count):
        for entry in range(starts[first + row], starts[first + row + 1]):
            tile[columns[entry], row] = values[entry]


@compiled(fastmath={"reassoc", "contract"})
@no_type_check
def _add_pairs(first, last, own, other, x, y, widths, weights, products):
    """products[p] += Σ over rows `first` to `last` of weight times x of one feature times y of another."""
    tile_x = np.empty((widths[0], TILE_ROWS), np.float32)
    tile_y = np.empty((widths[1], TILE_ROWS), np.float32)
    for start in range(first, last, TILE_ROWS):
        count = min(TILE_ROWS, last - start)
        _fill_tile(x, start, count, tile_x)
        _fill_tile(y, start, count, tile_y)
        for pair in range(own.size):
            a, b, total = tile_x[own[pair]], tile_y[other[pair]], 0.0
            if weights.size:
                for row in range(count):
                    total += weights[start + row] * np.float64(a[row]) * np.float64(b[row])
            else:
                for row in range(TILE_ROWS):
                    total += np.float64(a[row]) * np.float64(b[row])
            products[pair] += total


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


def correlation_matrix(source: Any, target: Any, **choices: Any) -> Float[np.ndarray, "source target"]:
    """All of r_ij, where it fits: 604 MB for 6,144 x 6,144. The choices are those of `max_correlations`."""
    rows, permutation = choices.pop("rows", None), choices.pop("permutation", None)
    source, target = as_codes(source).take(rows), as_codes(target).take(rows)
    _check_rows(source, target, choices.get("weights"), permutation)
    return Sums.of(source, target.take(permutation), **choices).correlations()


def _unpermuted(weights, permutation):
    """The pairs' weights in the order of the target's own rows."""
    if weights is None or permutation is None:
        return weights
    own = np.zeros(len(weights))
    np.add.at(own, permutation, weights)
    return own


def _check_rows(source: Codes, target: Codes, weights, permutation):
    lengths = {source.n_rows, target.n_rows, *(len(a) for a in (weights, permutation) if a is not None)}
    if len(lengths) != 1:
        raise ValueError(f"the two sides, weights and permutation differ in rows: {sorted(lengths)}")


def _prefers_gemm(source: Codes, target: Codes) -> bool:
    """Whether a matrix product is cheaper than visiting every pair of stored entries of a row."""
    dense = source.n_rows * source.n_features * target.n_features
    pairs = source.stored * target.stored / max(source.n_rows, 1)
    return pairs * (CUDA_ADVANTAGE if cuda() else GEMM_ADVANTAGE) > dense


@functools.cache
def cuda() -> Any:
    """torch where a CUDA device can be used, else None; torch is not imported where there is no driver."""
    if not os.path.exists("/dev/nvidia0"):
        return None
    import torch

    return torch if torch.cuda.is_available() else None


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
    def of(cls, source: Any, target: Any, weights: np.ndarray | None = None) -> "Sums":
        """The sums over all rows of two matrices."""
        source, target = as_codes(source), as_codes(target)
        sums = cls(source.n_features, target.n_features)
        sums.add(source, target, weights)
        return sums

    def add(self, source: Any, target: Any, weights: np.ndarray | None = None):
        """Add a chunk of rows, with all features of both sides (also where a slice is kept)."""
        source, target = as_codes(source), as_codes(target)
        _check_rows(source, target, weights, None)
        self.source += source.sums(weights).of(slice(self.first, self.last))
        self.target += target.sums(weights)
        self._add_products(source, target, WEIGHTLESS if weights is None else np.asarray(weights, np.float64))

    def _add_products(self, source: Codes, target: Codes, weights: np.ndarray):
        if _prefers_gemm(source, target):
            for rows, x, y in dense_chunks(source.matrix, target.matrix, (self.first, self.last), np.float64):
                _add_product(x, y, weights[rows], self.products)
            return
        fixed = (self.first, source.by_feature, weights, target.by_row, self.products)
        ranges = equal_ranges(np.diff(source.by_feature[0])[self.first : self.last], self.first)
        in_parallel(lambda: lambda first, last: _fused_products(first, last, *fixed), ranges)

    def __add__(self, other: "Sums") -> "Sums":
        both = Sums(self.last, self.products.shape[1], slice(self.first, self.last))
        both.products = self.products + other.products
        both.source, both.target = self.source + other.source, self.target + other.target
        return both

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
        return forward, Maxima(backward.rho, backward.match + self.first)


class Terms(NamedTuple):
    """What makes r out of a search's products P, and by how much it may err, float64 [feature]:

    r_ij = (P_ij + own_i other_j + total_i mean_j) scale_i other_scale_j, within error_i + growth_i other_error_j.
    """

    own: np.ndarray
    total: np.ndarray
    scale: np.ndarray
    error: np.ndarray
    growth: np.ndarray
    other: np.ndarray
    mean: np.ndarray
    other_scale: np.ndarray
    other_error: np.ndarray


class Search:
    """Quick products that err, by a known bound: they say which pairs may be the maxima, in `candidates`.

    What those pairs' correlations are is then worked out in float64. `source` and `target` are the sums of all
    rows; `features` are those of the source that are searched.
    """

    dtype: Any = np.float32

    def __init__(self, source: ColumnSums, target: ColumnSums, features: slice):
        self.first, self.last, _ = features.indices(len(source.total))
        self.source, self.target = source.of(features), target
        self.products = np.zeros((self.last - self.first, len(target.total)), self.dtype)

    def add(self, source: Any, target: Any, weights: np.ndarray | None):
        """Add a block of rows, with all features of both sides."""
        raise NotImplementedError

    def add_up(self, add_up: AddUp):
        """Add what other processes have."""
        add_up(self.products, "SUM")

    def terms(self) -> Terms:
        """How the products become correlations."""
        raise NotImplementedError

    def candidates(self) -> tuple[np.ndarray, np.ndarray] | None:
        """The pairs (source, target) that may be a side's maximum; None where they are too many."""
        kept, width = self.products.shape
        terms, places, none = self.terms(), np.zeros(kept, np.int64), np.empty(0, np.int64)
        own_floor, floors = np.full(kept, -np.inf), []

        def floor_worker():
            floors.append(np.full(width, -np.inf))
            own = floors[-1]
            return lambda a, b: _lowest_maxima(a, b, self.products, terms, own_floor, own)

        ranges = equal_ranges(np.ones(kept))
        in_parallel(floor_worker, ranges)
        fixed = (self.products, terms, own_floor, np.max(floors, axis=0), places)
        in_parallel(lambda: lambda a, b: _candidates(a, b, *fixed, none, none), ranges)
        count = int(places.sum())
        if not 0 < count <= MANY_CANDIDATES * (kept + width):
            return None
        places[:] = np.cumsum(places) - places
        own, other = np.empty(count, np.int64), np.empty(count, np.int64)
        in_parallel(lambda: lambda a, b: _candidates(a, b, *fixed, own, other), ranges)
        return own, other


class FloatSearch(Search):
    """Products of float32 numbers about their means, at half the time of float64."""

    def add(self, source: Any, target: Any, weights: np.ndarray | None):
        weights = WEIGHTLESS if weights is None else weights
        means = tuple(side.mean.astype(np.float32) for side in (self.source, self.target))
        for rows, x, y in dense_chunks(source, target, (self.first, self.last), np.float32, means):
            _add_product(x, y, weights[rows], self.products)

    def terms(self) -> Terms:
        n = self.source.n or 1.0
        own, other = (side.mean - side.mean.astype(np.float32) for side in (self.source, self.target))
        zero, one = np.zeros(len(own)), np.ones(len(own))
        no_mean, error = np.zeros(len(other)), np.full(len(other), FLOAT32_ERROR)
        scale = self.source.inverse_sd / n
        return Terms(-n * own, zero, scale, zero, one, other, no_mean, self.target.inverse_sd, error)


class ByteSearch(Search):
    """Products of 8-bit numbers, which processors with VNNI multiply four times as fast as float32.

    An activation x becomes x/d - o + e with a step d and an offset o of its feature and an error e of mean 0 that
    is independent of every other row's, since a hash rounds it up or down by chance. So the error of r is a sum
    of independent terms of mean 0, each within an interval as wide as d: by Hoeffding's lemma (1963) it is
    sub-Gaussian with standard deviation at most (d_x/sd_x + d_y/sd_y (1 + d_x/sd_x)) / (2 sqrt(n)). Nine of them
    are passed with a probability below 6e-18, so among 40 million pairs of features below 3e-10.
    """

    dtype = np.int64

    def __init__(self, source: ColumnSums, target: ColumnSums, features: slice, seed: int):
        super().__init__(source, target, features)
        self.seed, self.rows = seed, 0
        self.totals = [np.zeros(width, np.int64) for width in self.products.shape]
        self.steps = [_byte_steps(side) for side in (self.source, target)]

    def add(self, source: Any, target: Any, weights: np.ndarray | None):
        import torch

        source = source if self.products.shape[0] == source.shape[1] else source[:, self.first : self.last]
        sides = list(enumerate(map(_csr, (source, target))))
        for start in range(0, source.shape[0], BYTE_ROWS):
            x, y = (torch.from_numpy(self._bytes(csr, start, side)) for side, csr in sides)
            self.products += torch._int_mm(x.T, y).numpy()
            ones = torch.ones(1, len(x), dtype=torch.int8)
            for total, chunk in zip(self.totals, (x, y), strict=True):
                total += torch._int_mm(ones, chunk)[0].numpy()
        self.rows += source.shape[0]

    def _bytes(self, csr: tuple, start: int, side: int) -> np.ndarray:
        rows = len(csr[0]) - 1 - start
        chunk = np.empty((min(BYTE_ROWS, rows), self.products.shape[side]), np.int8)
        key = np.uint64(2 * self.seed + side) << np.uint64(48) | np.uint64(self.rows)
        fixed = (start, csr, *self.steps[side], key, chunk)
        in_parallel(lambda: lambda a, b: _as_bytes(a, b, *fixed), equal_ranges(np.ones(len(chunk))))
        return chunk

    def add_up(self, add_up: AddUp):
        super().add_up(add_up)
        for total in self.totals:
            add_up(total, "SUM")

    def terms(self) -> Terms:
        n = self.source.n or 1.0
        sides = list(zip((self.source, self.target), self.steps, strict=True))
        own, mean = (offsets - side.mean / steps for side, (steps, offsets) in sides)
        span, other_span = (side.inverse_sd * steps for side, (steps, _) in sides)  # steps in spreads
        total, other = self.totals[0].astype(np.float64), self.totals[1] + n * mean
        each = BYTE_SIGMAS / 2 / np.sqrt(n)
        return Terms(own, total, span / n, each * span, 1 + span, other, mean, other_span, each * other_span)


def _csr(block: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A block of rows as the compiled loops read it: starts, features, activations."""
    csr = scipy.sparse.csr_array(block, dtype=np.float32)
    csr.sum_duplicates()
    return csr.indptr, csr.indices, csr.data


def _byte_steps(side: ColumnSums) -> tuple[np.ndarray, np.ndarray]:
    """Each feature's step and offset, such that its range takes BYTE_LEVELS steps about 0."""
    varies = side.high > side.low
    steps = np.where(varies, side.high - side.low, 1.0) / BYTE_LEVELS
    middle = np.where(varies, side.high / 2 + side.low / 2, 0.0)
    return steps, np.round(middle / steps).astype(np.int64)


@functools.cache
def _multiplies_bytes() -> bool:
    """Whether this processor multiplies 8-bit numbers fast, and torch does so exactly."""
    import torch

    if cuda() or not (hasattr(torch, "_int_mm") and torch.cpu._is_vnni_supported()):
        return False
    x = torch.arange(64 * 64).reshape(64, 64) % 251 - 125  # sums of products beyond 16 bits
    found = torch._int_mm(x.to(torch.int8).T, x.to(torch.int8))
    return bool((found == x.T @ x).all())


def _maxima_of(loop: Any, fixed: tuple, costs: np.ndarray, n_target: int) -> tuple[Maxima, Maxima]:
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


def dense_chunks(
    source: Any,
    target: Any,
    span: tuple[int, int],
    dtype: Any,
    pivots: tuple[Any, Any] = (None, None),
) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """Dense chunks of rows, less `pivots`: which rows, the source's features in `span`, and the target's.

    A chunk is overwritten by the next one: fresh memory for each would take longer than filling it.
    """
    step = max(1, min(DENSE_ROWS * (8 if cuda() else 1), source.shape[0]))
    source = source if span == (0, source.shape[1]) else source[:, span[0] : span[1]]
    sides = [
        (
            matrix,
            np.zeros(matrix.shape[1], dtype) if pivot is None else pivot,
            np.empty((step, matrix.shape[1]), dtype),
        )
        for matrix, pivot in zip((source, target), pivots, strict=True)
    ]
    for start in range(0, source.shape[0], step):
        count = min(step, source.shape[0] - start)
        for matrix, pivot, chunk in sides:
            _fill(matrix, start, pivot, chunk[:count])
        yield slice(start, start + count), *(chunk[:count] for _, _, chunk in sides)


def _add_product(x: np.ndarray, y: np.ndarray, weights: np.ndarray, products: np.ndarray):
    """products [source, target] += (weights x)^T y, in place; x is overwritten."""
    if weights.size:
        x *= weights[:, None].astype(x.dtype)
    torch = cuda()
    if torch is None:  # BLAS counts by columns, so this is products^T += y^T x, which copies nothing
        gemm = scipy.linalg.blas.sgemm if products.dtype == np.float32 else scipy.linalg.blas.dgemm
        gemm(1, y.T, x.T, beta=1, c=products.T, trans_b=True, overwrite_c=True)
        return
    y = torch.from_numpy(y).cuda()
    with whole_float32(torch):
        for first in range(0, x.shape[1], CUDA_FEATURES):
            block = slice(first, first + CUDA_FEATURES)
            products[block] += (torch.from_numpy(x[:, block]).cuda().T @ y).cpu().numpy()


@contextlib.contextmanager
def whole_float32(torch: Any) -> Iterator[None]:
    """Products of float32 without TF32, which errs by more than FLOAT32_ERROR; other code's setting is kept."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
