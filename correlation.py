"""Pearson correlation between the features of two runs.

Pearson is a function of sums (n, Σx, Σx², Σy, Σy², Σxy), which add up over chunks of rows, shards and hosts.
Two ways to get them, chosen by cost: TopK codes are sparse, so one compiled loop takes a source feature at a
time, adds the target codes of its rows into a row of products that stays in the cache, and keeps only the
maxima; dense codes go through matrix products of blocks of rows, on a GPU where there is one.

All sums that a result is made of are float64, so a correlation is within 1e-6 also where a mean is a hundred
times its spread; float32 products only search for the maxima of dense codes.
"""

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

DENSE_ROWS, CUDA_FEATURES = 2048, 2048  # rows of one matrix product, and the source's features of one on CUDA
JOINED_ENTRIES = 1 << 21  # stored entries of blocks that are summed at once: 16 MB
DENSE_ENOUGH = 0.1  # share of entries stored, above which a sparse matrix is summed by dense chunks
SEARCH_WINDOW = 1e-4  # of r: float32 sums err by up to 6e-6, see RoughSums
MANY_CANDIDATES = 16  # a feature: with more, float64 products of all pairs are faster
GEMM_ADVANTAGE = 60  # its multiply-adds in the time of one of the sparse loop, on 2 cores
CUDA_ADVANTAGE = 10_000  # the same with the product on a GPU
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


@numba.njit(nogil=True, cache=True)
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


@numba.njit(nogil=True, cache=True)
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


@numba.njit(nogil=True, cache=True, fastmath={"nnan", "nsz", "contract"})
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


@numba.njit(nogil=True, cache=True)
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


@numba.njit(nogil=True, cache=True)
@no_type_check
def _fused_products(first, last, offset, by_feature, weights, by_row, products):
    for feature in range(first, last):
        _add_products(feature, by_feature, np.empty(0, np.int64), weights, by_row, products[feature - offset])


@numba.njit(nogil=True, cache=True)
@no_type_check
def _block_maxima(first, last, products, n, source, target, best, match, back, back_match):
    for feature in range(first, last):
        _keep_maxima(feature, products[feature].copy(), n, source, target, best, match, back, back_match)


@numba.njit(nogil=True, cache=True)
@no_type_check
def _fill_rows(first, last, start, starts, columns, values, pivot, chunk):
    """Rows of a CSR, from `start` on, as dense rows less `pivot`."""
    for row in range(first, last):
        chunk[row] = -pivot
        for entry in range(starts[start + row], starts[start + row + 1]):
            chunk[row, columns[entry]] += values[entry]


@numba.njit(nogil=True, cache=True)
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


@numba.njit(nogil=True, cache=True)
@no_type_check
def _add_pairs(first, last, own, other, x, y, weights, products):
    """products[p] += Σ over rows of weight times x of one feature times y of another, for some pairs."""
    for row in range(x.shape[0]):
        weight = weights[row] if weights.size else 1.0
        for pair in range(first, last):
            products[pair] += weight * np.float64(x[row, own[pair]]) * np.float64(y[row, other[pair]])


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

    torch.set_float32_matmul_precision("highest")  # TF32 errs by more than SEARCH_WINDOW
    return torch if torch.cuda.is_available() else None


# --------------------------------------------------------------------------------- sums over chunks of rows


class Sums:
    """The sums of one pair of layers over the rows seen so far; they add up over chunks, shards and hosts.

    Memory does not depend on the rows: 8 bytes a pair of features. `features` keeps only that slice of the
    source's, so that a pair of any width runs in slices. `products` float64 [source, target] holds Σxy.
    """

    def __init__(self, n_source: int, n_target: int, features: slice = slice(None), dtype: Any = np.float64):
        self.first, self.last, _ = features.indices(n_source)
        self.products = np.zeros((self.last - self.first, n_target), dtype)
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

    def add_up(self, add_up: Callable[[np.ndarray, str], None]):
        """Add what other processes have: `add_up(array, how)` does so in place, "SUM", "MIN" or "MAX"."""
        add_up(self.products, "SUM")
        for side in ("source", "target"):
            own = getattr(self, side)
            n = np.array([own.n])
            parts = ((n, "SUM"), (own.total, "SUM"), (own.square, "SUM"), (own.low, "MIN"), (own.high, "MAX"))
            for array, how in parts:
                add_up(array, how)
            setattr(self, side, own._replace(n=float(n[0])))

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


class RoughSums(Sums):
    """Sums for a search: float32 products about `pivots` near the means, at half the time of float64.

    They err by up to 6e-6 where many rows hold the same pair of values, so they only say which pairs may be
    the maxima: `candidates`. What those are is then worked out in float64.
    """

    def __init__(self, n_source: int, n_target: int, features: slice, pivots: tuple[np.ndarray, np.ndarray]):
        super().__init__(n_source, n_target, features, np.float32)
        self.pivots = pivots[0][features], pivots[1]

    def _add_products(self, source: Codes, target: Codes, weights: np.ndarray):
        sides = source.matrix, target.matrix
        for rows, x, y in dense_chunks(*sides, (self.first, self.last), np.float32, self.pivots):
            _add_product(x, y, weights[rows], self.products)

    def _rows(self) -> Iterator[np.ndarray]:
        """r of one source feature after the other with every target feature, float64 [target]."""
        sides = (self.source, self.target)
        own, other = (side.mean - pivot for side, pivot in zip(sides, self.pivots, strict=True))
        scale, n = self.target.inverse_sd, self.source.n or 1.0
        for products, offset, inverse_sd in zip(self.products, own, self.source.inverse_sd, strict=True):
            yield (products / n - offset * other) * (inverse_sd * scale)

    def candidates(self) -> tuple[np.ndarray, np.ndarray]:
        """The pairs (source, target) of varying features within SEARCH_WINDOW of a side's maximum."""
        varies, live = self.source.inverse_sd > 0, self.target.inverse_sd > 0
        highest = np.full(len(live), -2.0)
        own = np.full(len(self.products), -2.0)
        for i, r in enumerate(self._rows()):
            if varies[i]:
                own[i] = r.max(where=live, initial=-2.0)
                np.maximum(highest, r, out=highest)
        found = [
            np.flatnonzero(live & (r >= np.minimum(top, highest) - SEARCH_WINDOW))
            if top > -2.0
            else np.empty(0, int)
            for top, r in zip(own, self._rows(), strict=True)
        ]
        return np.repeat(np.arange(len(found)), [len(js) for js in found]), np.concatenate(found)


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
    for first in range(0, x.shape[1], CUDA_FEATURES):
        block = slice(first, first + CUDA_FEATURES)
        products[block] += (torch.from_numpy(x[:, block]).cuda().T @ y).cpu().numpy()


# ----------------------------------------------------------------------------- runs larger than the memory


def streamed_maxima(
    source: Callable[[], Iterable[Any]],
    target: Callable[[], Iterable[Any]],
    memory: int = 2 << 30,
    rank: int = 0,
    world: int = 1,
    add_up: Callable[[np.ndarray, str], None] = lambda array, how: None,
    weights: np.ndarray | None = None,
) -> tuple[Maxima, Maxima]:
    """`max_correlations` of two sides that are read in blocks of rows, with at most `memory` bytes of sums.

    `source()` and `target()` start a reading: blocks [row, feature] of any number of rows, in all the same
    rows on both sides. Every slice of the source's features that fits takes one reading of both, or two where
    the codes are dense. Process `rank` of `world` takes its share of the blocks, and `add_up` adds the other
    processes' sums (see `Sums.add_up`).
    """

    def read() -> Iterator[tuple[Any, Any, np.ndarray | None]]:
        start = 0
        for number, (x, y) in enumerate(aligned(source(), target())):
            rows = slice(start, start + x.shape[0])
            start = rows.stop
            if number % world == rank:
                yield x, y, None if weights is None else weights[rows]

    first_x, first_y = next(iter(source())), next(iter(target()))
    n_source, n_target = first_x.shape[1], first_y.shape[1]
    pivots = tuple(
        np.asarray(block[:DENSE_ROWS].mean(axis=0), np.float32).ravel() for block in (first_x, first_y)
    )
    rough = _prefers_gemm(Codes(first_x), Codes(first_y))
    width = max(1, int(memory / 8 / n_target))
    forward, backward = [], Maxima.none(n_target)
    for start in range(0, n_source, width):
        features = slice(start, start + width)
        found = None
        if rough:
            sums = _summed(RoughSums(n_source, n_target, features, pivots), read, add_up)
            found = _refined(sums, read, add_up)
        own, other = found or _summed(Sums(n_source, n_target, features), read, add_up).maxima()
        forward.append(own)
        backward.merge(other)
    return Maxima(*map(np.concatenate, zip(*forward, strict=True))), backward


def _summed(
    sums: Sums, read: Callable[[], Iterable[tuple]], add_up: Callable[[np.ndarray, str], None]
) -> Sums:
    for chunk in read():
        sums.add(*chunk)
    sums.add_up(add_up)
    return sums


def _refined(
    sums: RoughSums, read: Callable[[], Iterable[tuple]], add_up: Callable[[np.ndarray, str], None]
) -> tuple[Maxima, Maxima] | None:
    """The maxima that a search found, in float64; None where it found too many pairs to be worth it."""
    kept, width = sums.products.shape
    own, other = sums.candidates()
    if len(own) > MANY_CANDIDATES * (kept + width):
        return None
    products, ranges = np.zeros(len(own)), _ranges(np.ones(len(own)), each=1)  # each range reads all rows
    for source, target, weights in read():
        weights = WEIGHTLESS if weights is None else np.asarray(weights, np.float64)
        for rows, x, y in dense_chunks(source, target, (sums.first, sums.last), np.float32):
            fixed = (own.astype(np.uint64), other.astype(np.uint64), x, y, weights[rows], products)
            _in_parallel(lambda f=fixed: lambda a, b: _add_pairs(a, b, *f), ranges)
    add_up(products, "SUM")
    source, target = sums.source, sums.target
    r = products / (source.n or 1.0) - source.mean[own] * target.mean[other]
    r *= source.inverse_sd[own] * target.inverse_sd[other]
    forward = _best(own, other, r, source.inverse_sd > 0, target.inverse_sd > 0)
    backward = _best(other, own, r, target.inverse_sd > 0, source.inverse_sd > 0)
    return forward, Maxima(backward.rho, backward.match + sums.first)


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
