"""A layer's features in the form that the sums over rows want, and the sums of its columns."""

import functools
from collections.abc import Callable
from typing import NamedTuple, no_type_check

import numpy as np
import scipy.sparse
from jaxtyping import Int

from plumbing.compiled import compiled
from plumbing.threads import equal_ranges, in_parallel

ENTRY_BYTES = 24  # of an entry of Codes: the CSR, `by_row` and `by_feature`

DENSE_ROWS = 2048  # rows of one matrix product: more take more memory, and float32 sums of more err more

PIVOT_ROWS = 128  # of a chunk, whose mean is taken away from all of it

DENSE_ENOUGH = 0.1  # share of entries stored, above which a sparse matrix is summed by dense chunks

# Adds other processes' array in place: "SUM", or takes "MIN" or "MAX".
AddUp = Callable[[np.ndarray, str], None]

Matrix = np.ndarray | scipy.sparse.csr_array  # float [row, feature]

# Stored entries row by row, or feature by feature: where each row begins in them, and the entries with their "index"
# (of the feature, or of the row) and "value" side by side: a third quicker to go through than one array of each.
Entries = tuple[np.ndarray, np.ndarray]


class ColumnSums(NamedTuple):
    """Sums over `n` rows of each feature, float64 [feature]; chunks of rows add up.

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

    def moved(self, pivot: np.ndarray, n_rows: int) -> "ColumnSums":
        """Of `n_rows` rows x, where these are the sums of x - pivot."""
        square = self.square + pivot * (2 * self.total + n_rows * pivot)
        total = self.total + n_rows * pivot
        return ColumnSums(float(n_rows), total, square, self.low + pivot, self.high + pivot)

    def checked(self) -> "ColumnSums":
        """Themselves; NaN and infinity are refused."""
        if not np.isfinite(self.total).all():
            raise ValueError("activations hold NaN or infinity")
        return self

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
    def csr(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Starts of the rows, features and activations, as they were read: to go through all rows in order."""
        csr = scipy.sparse.csr_array(self.matrix)
        return csr.indptr.astype(np.int64), csr.indices, csr.data.astype(np.float32, copy=False)

    @functools.cached_property
    def by_row(self) -> Entries:
        """The same, to take rows from here and there."""
        starts, features, values = self.csr
        return starts, beside(features, values, self.index)

    @property
    def index(self) -> type[np.unsignedinteger]:
        """The integers that hold a feature's number: the fewer bits, the less to fetch."""
        return np.uint16 if self.n_features <= 1 << 16 else np.uint32

    @functools.cached_property
    def by_feature(self) -> Entries:
        """CSC: starts of the features, and rows with their activations."""
        csc = scipy.sparse.csc_array(self.matrix)
        return csc.indptr.astype(np.int64), beside(csc.indices, csc.data, np.uint32)

    @functools.cached_property
    def _sums(self) -> ColumnSums:
        if not self.is_sparse or self.stored > DENSE_ENOUGH * self.n_rows * self.n_features:
            return _sums_of_chunks(self.matrix)
        return _sums_of_entries(self)

    def sums(self) -> ColumnSums:
        """The features' sums over rows."""
        return self._sums.checked()


def as_codes(matrix: Matrix | Codes) -> Codes:
    return matrix if isinstance(matrix, Codes) else Codes(matrix)


def unfilled(n: int, kind: type[np.unsignedinteger] = np.uint32) -> np.ndarray:
    """So many entries to be filled, with indices in integers of that kind."""
    return np.empty(n, [("index", kind), ("value", np.float32)])


def beside(indices: np.ndarray, values: np.ndarray, kind: type[np.unsignedinteger] = np.uint32) -> np.ndarray:
    """Entries of these indices and values."""
    entries = unfilled(len(values), kind)
    entries["index"], entries["value"] = indices, values
    return entries


def _sums_of_entries(codes: Codes) -> ColumnSums:
    _, total, square, low, high = ColumnSums.of_nothing(codes.n_features)
    stored = np.zeros(codes.n_features, np.int64)
    _add_entries(*codes.csr, total, square, stored, low, high)
    gaps = stored < codes.n_rows  # where a row holds no entry, the activation is 0
    low[gaps], high[gaps] = np.minimum(low[gaps], 0), np.maximum(high[gaps], 0)
    return ColumnSums(float(codes.n_rows), total, square, low, high)


def _sums_of_chunks(matrix: Matrix) -> ColumnSums:
    sums = ColumnSums.of_nothing(matrix.shape[1])
    chunk = np.empty((min(DENSE_ROWS // 4, matrix.shape[0]), matrix.shape[1]))
    for start in range(0, matrix.shape[0], max(len(chunk), 1)):
        sums = sums.plus(fill(matrix, start, chunk[: matrix.shape[0] - start])[1])
    return sums


def fill(matrix: Matrix, start: int, chunk: np.ndarray) -> tuple[np.ndarray, ColumnSums]:
    """Write rows of a matrix, from `start` on, into a dense chunk, less a pivot near their means.

    Returns the pivot [feature], of the chunk's type, and the rows' sums.
    """
    n_rows, width = chunk.shape
    sample = matrix[start : start + n_rows : max(1, n_rows // PIVOT_ROWS)]
    pivot = np.asarray(sample.mean(axis=0, dtype=np.float64)).astype(chunk.dtype)
    if isinstance(matrix, np.ndarray):
        kernel, rows = _centre_rows, (matrix[start : start + n_rows],)
    else:
        kernel, rows = _centre_entries, (matrix.indptr[start:], matrix.indices, matrix.data)
    ranges = equal_ranges(np.ones(n_rows))
    in_parallel(lambda: lambda first, last: kernel(first, last, *rows, pivot, chunk), ranges)
    n, *sums = ColumnSums.of_nothing(width)
    ranges = equal_ranges(np.ones(width))  # of features: each sum is in the order of the rows
    in_parallel(lambda: lambda first, last: _add_columns(first, last, chunk, *sums), ranges)
    return pivot, ColumnSums(n, *sums).moved(pivot.astype(np.float64), n_rows)


@compiled()
@no_type_check
def _add_entries(starts, features, values, total, square, stored, low, high):
    for row in range(starts.size - 1):
        for entry in range(starts[row], starts[row + 1]):
            feature, value = features[entry], np.float64(values[entry])
            total[feature] += value
            square[feature] += value * value
            stored[feature] += 1
            low[feature] = min(low[feature], value)
            high[feature] = max(high[feature], value)


@compiled(fastmath={"nnan", "nsz", "contract"})
@no_type_check
def _add_columns(first, last, chunk, total, square, low, high):
    """The same of rows that are dense, for some of the features."""
    total, square, low, high = total[first:last], square[first:last], low[first:last], high[first:last]
    for row in range(chunk.shape[0]):
        values = chunk[row, first:last]
        for j in range(
            values.size
        ):  # from 0 on: an index that might be negative keeps it from being vectorised
            value = np.float64(values[j])
            total[j] += value
            square[j] += value * value
            low[j] = min(low[j], value)
            high[j] = max(high[j], value)


@compiled()
@no_type_check
def _centre_entries(first, last, starts, columns, values, pivot, chunk):
    """Rows of a CSR as dense rows less `pivot`."""
    for row in range(first, last):
        chunk[row] = -pivot
        for entry in range(starts[row], starts[row + 1]):
            chunk[row, columns[entry]] += values[entry]


@compiled()
@no_type_check
def _centre_rows(first, last, matrix, pivot, chunk):
    """The same of dense rows."""
    for row in range(first, last):
        chunk[row] = matrix[row] - pivot
