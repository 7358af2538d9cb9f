"""A layer's features in the form that the sums over rows want, and the sums of its columns."""

import functools
from collections.abc import Callable
from typing import NamedTuple, no_type_check

import numpy as np
import scipy.sparse
from jaxtyping import Float, Int

from plumbing.compiled import compiled
from plumbing.threads import equal_ranges, in_parallel

ENTRY_BYTES = 24  # of an entry of Codes: the CSR, its copy with 16-bit features, and the transposed one

DENSE_ROWS = 2048  # rows of one matrix product: more take more memory, and float32 sums of more err more

DENSE_ENOUGH = 0.1  # share of entries stored, above which a sparse matrix is summed by dense chunks

# Adds other processes' array in place: "SUM", or takes "MIN" or "MAX".
AddUp = Callable[[np.ndarray, str], None]

Matrix = np.ndarray | scipy.sparse.csr_array  # float [row, feature]

# Stored entries row by row: starts of the rows, features, activations; or feature by feature, likewise.
Entries = tuple[np.ndarray, np.ndarray, np.ndarray]

WEIGHTLESS = np.empty(0)  # stands for "every row counts once" in the compiled functions


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

    def plus(self, other: "ColumnSums") -> "ColumnSums":
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

    def __init__(self, matrix: Matrix):
        if scipy.sparse.issparse(matrix):
            matrix = scipy.sparse.csr_array(matrix, dtype=np.float32)
            matrix.sum_duplicates()
        else:
            matrix = np.ascontiguousarray(matrix)
        self.matrix = matrix
        self.n_rows, self.n_features = matrix.shape

    def of(self, first: int, last: int) -> "Codes":
        """Some of the features."""
        return self if (first, last) == (0, self.n_features) else Codes(self.matrix[:, first:last])

    def take(self, rows: Int[np.ndarray, " chosen"] | slice | None) -> "Codes":
        """The chosen rows, in that order and as often as they are named (a bootstrap names some twice)."""
        return self if rows is None else Codes(self.matrix[rows])

    @functools.cached_property
    def stored(self) -> int:
        """Entries that the sparse loop visits."""
        return int(np.count_nonzero(self.matrix)) if isinstance(self.matrix, np.ndarray) else self.matrix.nnz

    @property
    def is_sparse(self) -> bool:
        return scipy.sparse.issparse(self.matrix)

    @functools.cached_property
    def by_row(self) -> Entries:
        """CSR: starts of the rows, features (16 bit where they fit: less to fetch), activations."""
        csr = scipy.sparse.csr_array(self.matrix)
        index = np.uint16 if self.n_features <= 1 << 16 else np.uint32
        return csr.indptr.astype(np.int64), csr.indices.astype(index), csr.data.astype(np.float32, copy=False)

    @functools.cached_property
    def by_feature(self) -> Entries:
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


def as_codes(matrix: Matrix | Codes) -> Codes:
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


def _sums_of_chunks(matrix: Matrix, weights: np.ndarray) -> ColumnSums:
    """The sums of a sparse matrix that is rather dense, by dense chunks of its rows."""
    sums, pivot = ColumnSums.of_nothing(matrix.shape[1]), np.zeros(matrix.shape[1], np.float32)
    chunk = np.empty((min(DENSE_ROWS, matrix.shape[0]), matrix.shape[1]), np.float32)
    for start in range(0, matrix.shape[0], DENSE_ROWS):
        rows = chunk[: matrix.shape[0] - start]
        fill(matrix, start, pivot, rows)
        sums = sums.plus(_dense_column_sums(rows, weights[start : start + DENSE_ROWS]))
    return sums


def _dense_column_sums(matrix: np.ndarray, weights: np.ndarray) -> ColumnSums:
    n = float(weights.sum() if weights.size else len(matrix))
    _, *sums = ColumnSums.of_nothing(matrix.shape[1])
    ranges = equal_ranges(np.ones(matrix.shape[1]))
    in_parallel(lambda: lambda a, b: _add_dense_columns(a, b, matrix, weights, *sums), ranges)
    return ColumnSums(n, *sums)


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


def fill(matrix: Matrix, start: int, pivot: np.ndarray, chunk: np.ndarray) -> np.ndarray:
    """Write rows of a matrix, from `start` on, into a dense chunk, less `pivot`; returns the chunk."""
    if isinstance(matrix, np.ndarray):
        return np.subtract(matrix[start : start + len(chunk)], pivot, out=chunk, casting="unsafe")
    starts, columns, values = matrix.indptr, matrix.indices, matrix.data
    ranges = equal_ranges(np.ones(len(chunk)))
    in_parallel(lambda: lambda a, b: _fill_rows(a, b, start, starts, columns, values, pivot, chunk), ranges)
    return chunk
