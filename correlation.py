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
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, no_type_check

import numba
import numpy as np
import scipy.linalg
import scipy.sparse
from jaxtyping import Float, Int
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from compiled import compiled

DENSE_ROWS, CUDA_FEATURES = 2048, 2048  # rows of one matrix product, and the source's features of one on CUDA
JOINED_ENTRIES = 1 << 21  # stored entries of blocks that are summed at once: 16 MB
DENSE_ENOUGH = 0.1  # share of entries stored, above which a sparse matrix is summed by dense chunks
FLOAT32_ERROR = 5e-5  # of r: what products of float32 numbers err by at most; up to 6e-6 was seen
MANY_CANDIDATES = 64  # a feature: with more, a finer search is faster
BYTE_LEVELS, BYTE_ROWS = 252, 8192  # steps of an 8-bit number, and rows of one product of them
BYTE_SIGMAS = 9  # standard deviations that the error of an 8-bit product has at most: see ByteSearch
BYTE_WORTH = 3 * 10**11  # multiply-adds that take longer in float32 than importing torch does
TILE_ROWS = 64  # rows of both sides that stay in the cache while the pairs found are multiplied
GEMM_ADVANTAGE = 60  # its multiply-adds in the time of one of the sparse loop, on 2 cores
CUDA_ADVANTAGE = 10_000  # the same with the product on a GPU
AddUp = Callable[
    [np.ndarray, str], None
]  # adds other processes' array in place: "SUM", or takes "MIN" or "MAX"
WEIGHTLESS = np.empty(0)  # stands for "every row counts once" in the compiled functions

# --------------------------------------------------------------------------------------- one side of a pair


class ColumnSums(NamedTuple):
    """Sums over rows of each feature, float64 [feature], and `n`, the rows' total weight; chunks add up.

    `low` and `high` tell a constant feature exactly, which no difference of rounded sums does.
    """

    n: float
    total: np.ndarray
    square: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @staticmethod
    def of_nothing(n_features: int) -> "ColumnSums":
        zero, infinity = np.zeros(n_features), np.full(n_features, np.inf)
        return ColumnSums(0.0, zero, zero.copy(), infinity, -infinity)

    def __add__(self, other: "ColumnSums") -> "ColumnSums":
        return ColumnSums(
            self.n + other.n,
            self.total + other.total,
            self.square + other.square,
            np.minimum(self.low, other.low),
            np.maximum(self.high, other.high),
        )

    def add_up(self, add_up: AddUp) -> "ColumnSums":
        """With what other processes have."""
        columns = [np.array([self.n]), *self[1:]]
        for array, how in zip(columns, ("SUM", "SUM", "SUM", "MIN", "MAX"), strict=True):
            add_up(array, how)
        return ColumnSums(float(columns[0][0]), *columns[1:])

    def of(self, features: slice) -> "ColumnSums":
        """Those of some of the features."""
        return ColumnSums(self.n, *(column[features] for column in self[1:]))

    @property
    def mean(self) -> np.ndarray:
        return self.total / max(self.n, np.finfo(float).tiny)

    @property
    def inverse_sd(self) -> np.ndarray:
        """1 / standard deviation (population), and 0 for a constant feature: it correlates with nothing."""
        variance = self.square / max(self.n, np.finfo(float).tiny) - self.mean**2
        varies = (self.high > self.low) & (variance > 0)
        return np.where(varies, 1 / np.sqrt(np.where(varies, variance, 1.0)), 0.0)


class Codes:
    """The feature activations of one layer of one run, held the way the engine reads them.

    `matrix` is scipy sparse or a numpy array, float [row, feature]. The sums and the
    transposed copy are made when first asked for and kept: one `Codes` serves all pairs of its layer.
    """

    def __init__(self, matrix: Any):
        if scipy.sparse.issparse(matrix):
            matrix = scipy.sparse.csr_array(matrix, dtype=np.float32)
            matrix.sum_duplicates()
        else:
            matrix = np.ascontiguousarray(matrix)
        self.matrix = matrix
        self.n_rows, self.n_features = matrix.shape

    def take(self, rows: Int[np.ndarray, " chosen"] | slice | None) -> "Codes":
        """The chosen rows, in that order and as often as they are named (a bootstrap names some twice)."""
        return self if rows is None else Codes(self.matrix[rows])

    @functools.cached_property
    def stored(self) -> int:
        """Entries that the sparse loop visits."""
        return self.matrix.nnz if self.is_sparse else int(np.count_nonzero(self.matrix))

    @property
    def is_sparse(self) -> bool:
        return scipy.sparse.issparse(self.matrix)

    @functools.cached_property
    def by_row(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """CSR: starts of the rows, features (16 bit where they fit: less to fetch), activations."""
        csr = self.matrix if self.is_sparse else scipy.sparse.csr_array(self.matrix)
        index = np.uint16 if self.n_features <= 1 << 16 else np.uint32
        return csr.indptr.astype(np.int64), csr.indices.astype(index), csr.data.astype(np.float32, copy=False)

    @functools.cached_property
    def by_feature(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """CSC: starts of the features, rows, activations."""
        csc = scipy.sparse.csc_array(self.matrix)
        return (
            csc.indptr.astype(np.int64),
            csc.indices.astype(np.uint32),
            csc.data.astype(np.float32, copy=False),
        )

    @functools.cached_property
    def _plain_sums(self) -> ColumnSums:
        return _column_sums(self, WEIGHTLESS)

    def sums(self, weights: Float[np.ndarray, " row"] | None = None) -> ColumnSums:
        """The features' sums over rows; rows of weight 0 are as if they were not there."""
        sums = self._plain_sums if weights is None else _column_sums(self, weights)
        if not np.isfinite(sums.total).all():
            raise ValueError("activations hold NaN or infinity")
        return sums


def as_codes(matrix: Any) -> Codes:
    return matrix if isinstance(matrix, Codes) else Codes(matrix)


def _column_sums(codes: Codes, weights: Float[np.ndarray, " row"]) -> ColumnSums:
    weights = np.asarray(weights, np.float64)
    if not codes.is_sparse:
        return _dense_column_sums(codes.matrix, weights)
    if codes.stored > DENSE_ENOUGH * codes.n_rows * codes.n_features:
        return _sums_of_chunks(codes.matrix, weights)
    n_rows = np.count_nonzero(weights > 0) if weights.size else codes.n_rows
    _, total, square, low, high = ColumnSums.of_nothing(codes.n_features)
    stored = np.zeros(codes.n_features, np.int64)
    _add_columns(codes.by_row, weights, total, square, stored, low, high)
    gaps = stored < n_rows  # where a row holds no entry, the activation is 0
    low[gaps], high[gaps] = np.minimum(low[gaps], 0), np.maximum(high[gaps], 0)
    return ColumnSums(float(weights.sum() if weights.size else codes.n_rows), total, square, low, high)


def _sums_of_chunks(matrix: Any, weights: np.ndarray) -> ColumnSums:
    """The sums of a sparse matrix that is rather dense, by dense chunks of its rows."""
    sums, pivot = ColumnSums.of_nothing(matrix.shape[1]), np.zeros(matrix.shape[1], np.float32)
    chunk = np.empty((min(DENSE_ROWS, matrix.shape[0]), matrix.shape[1]), np.float32)
    for start in range(0, matrix.shape[0], DENSE_ROWS):
        rows = chunk[: matrix.shape[0] - start]
        _fill(matrix, start, pivot, rows)
        sums += _dense_column_sums(rows, weights[start : start + DENSE_ROWS])
    return sums


def _dense_column_sums(matrix: np.ndarray, weights: np.ndarray) -> ColumnSums:
    n = float(weights.sum() if weights.size else len(matrix))
    _, *sums = ColumnSums.of_nothing(matrix.shape[1])
    ranges = _ranges(np.ones(matrix.shape[1]))
    _in_parallel(lambda: lambda a, b: _add_dense_columns(a, b, matrix, weights, *sums), ranges)
    return ColumnSums(n, *sums)


# ------------------------------------------------------------------------------------------ compiled loops


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
def _add_columns(by_row, weights, total, square, stored, low, high):
    starts, features, values = by_row
    for row in range(starts.size - 1):
        weight = weights[row] if weights.size else 1.0
        if weight > 0:
            for entry in range(starts[row], starts[row + 1]):
                feature, value = features[entry], np.float64(values[entry])
                total[feature] += weight * value
                square[feature] += weight * value * value
                stored[feature] += 1
                low[feature] = min(low[feature], value)
                high[feature] = max(high[feature], value)


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
def _fill_rows(first, last, start, starts, columns, values, pivot, chunk):
    """Rows of a CSR, from `start` on, as dense rows less `pivot`."""
    for row in range(first, last):
        chunk[row] = -pivot
        for entry in range(starts[start + row], starts[start + row + 1]):
            chunk[row, columns[entry]] += values[entry]


@compiled()
@no_type_check
def _add_dense_columns(first, last, chunk, weights, total, square, low, high):
    """The sums of `_add_columns` over rows that are dense, for some of the features."""
    for row in range(chunk.shape[0]):
        weight = weights[row] if weights.size else 1.0
        if weight > 0:
            for feature in range(first, last):
                value = np.float64(chunk[row, feature])
                total[feature] += weight * value
                square[feature] += weight * value * value
                low[feature] = min(low[feature], value)
                high[feature] = max(high[feature], value)


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


def threads() -> int:
    """Threads to use: the process's cores, at most NUMBA_NUM_THREADS and OMP_NUM_THREADS."""
    return min(numba.config.NUMBA_NUM_THREADS, int(os.environ.get("OMP_NUM_THREADS") or 1 << 16))


def _in_parallel(make_worker, ranges: list[tuple[int, int]]):
    """Call `worker(first, last)` on every range, a worker a thread; ranges go out in ascending order."""
    waiting, lock = iter(ranges), threading.Lock()

    def run(_):
        worker = make_worker()
        while True:
            with lock:
                span = next(waiting, None)
            if span is None:
                return
            worker(*span)

    count = threads()
    if count == 1:
        run(0)
        return
    with ThreadPoolExecutor(count) as pool:
        list(pool.map(run, range(count)))


def _ranges(costs: np.ndarray, first: int = 0, each: int = 16) -> list[tuple[int, int]]:
    """Consecutive ranges of about equal cost, `each` for each thread, so that a slow one holds nobody up."""
    reached = np.cumsum(costs + max(costs.sum() / max(costs.size, 1), 1) / 8)
    cuts = np.searchsorted(
        reached, np.linspace(0, reached[-1] if reached.size else 0, each * threads() + 1)[1:-1]
    )
    edges = np.unique(np.concatenate([[0], cuts, [costs.size]])) + first
    return list(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True))


# -------------------------------------------------------------------------------------------------- maxima


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


# --------------------------------------------------------------------------------- sums over chunks of rows


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
        ranges = _ranges(np.diff(source.by_feature[0])[self.first : self.last], self.first)
        _in_parallel(lambda: lambda first, last: _fused_products(first, last, *fixed), ranges)

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

        ranges = _ranges(np.ones(kept))
        _in_parallel(floor_worker, ranges)
        fixed = (self.products, terms, own_floor, np.max(floors, axis=0), places)
        _in_parallel(lambda: lambda a, b: _candidates(a, b, *fixed, none, none), ranges)
        count = int(places.sum())
        if not 0 < count <= MANY_CANDIDATES * (kept + width):
            return None
        places[:] = np.cumsum(places) - places
        own, other = np.empty(count, np.int64), np.empty(count, np.int64)
        _in_parallel(lambda: lambda a, b: _candidates(a, b, *fixed, own, other), ranges)
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
        _in_parallel(lambda: lambda a, b: _as_bytes(a, b, *fixed), _ranges(np.ones(len(chunk))))
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

    _in_parallel(make_worker, _ranges(costs))
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


def _fill(matrix: Any, start: int, pivot: np.ndarray, chunk: np.ndarray):
    """Write rows of a matrix, from `start` on, into a dense chunk, less `pivot`."""
    if not scipy.sparse.issparse(matrix):
        np.subtract(matrix[start : start + len(chunk)], pivot, out=chunk, casting="unsafe")
        return
    starts, columns, values = matrix.indptr, matrix.indices, matrix.data
    ranges = _ranges(np.ones(len(chunk)))
    _in_parallel(lambda: lambda a, b: _fill_rows(a, b, start, starts, columns, values, pivot, chunk), ranges)


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


# ----------------------------------------------------------------------------- runs larger than the memory


# Starts a reading of both sides: blocks of the same rows, and the rows' weights where they have any.
Reading = Callable[[], Iterator[tuple[Any, Any, np.ndarray | None]]]


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
        _in_parallel(lambda f=fixed, p=parts: lambda a, b: _add_pairs(a, b, *f, p[a]), ranges)
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
