"""One side of a pair: a layer's features laid out half by half, and their sums over each half of the rows."""

import functools
from typing import NamedTuple, no_type_check

import numpy as np
import scipy.sparse
from jaxtyping import Bool, Float, Int, UInt8

from comparing.codes import AddUp, Codes, Entries, Matrix, as_codes
from plumbing.compiled import compiled

MIN_ACTIVE = 10  # rows that a feature is active on, to count


class Moments(NamedTuple):
    """Sums over the rows of each half: `n` float64 [half], the others float64 [half, feature]; blocks add up.

    `total`, `square`, `fourth`: of x, x² and x⁴. `active`: rows with x > 0. `low`, `high` tell a constant
    feature exactly.
    """

    n: np.ndarray
    total: np.ndarray
    square: np.ndarray
    fourth: np.ndarray
    active: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @staticmethod
    def of_nothing(n_features: int) -> "Moments":
        total, square, fourth, active = np.zeros((4, 2, n_features))
        infinity = np.full((2, n_features), np.inf)
        return Moments(np.zeros(2), total, square, fourth, active, infinity, -infinity)

    @staticmethod
    def of(codes: Matrix | Codes, half: UInt8[np.ndarray, " row"]) -> "Moments":
        """The sums of a block of rows, scipy sparse or numpy [row, feature]."""
        codes, found = as_codes(codes), Moments.of_nothing(as_codes(codes).n_features)
        stored = np.zeros(found.total.shape, np.int64)
        _add_moments(codes.by_row, half, *found[1:], stored)
        found.n[:] = np.bincount(half, minlength=2)
        gaps = stored < found.n[:, None]  # where a row holds no entry, the activation is 0
        found.low[gaps], found.high[gaps] = np.minimum(found.low[gaps], 0), np.maximum(found.high[gaps], 0)
        return found

    def plus(self, other: "Moments") -> "Moments":
        n, total, square, fourth, active = (a + b for a, b in zip(self[:5], other[:5], strict=True))
        low, high = np.minimum(self.low, other.low), np.maximum(self.high, other.high)
        return Moments(n, total, square, fourth, active, low, high)

    def add_up(self, add_up: AddUp) -> "Moments":
        """With what other processes have."""
        for array, how in zip(self, ("SUM",) * 5 + ("MIN", "MAX"), strict=True):
            add_up(array, how)
        return self

    @property
    def n_eff(self) -> Float[np.ndarray, " feature"]:
        """(Σ x²)² / Σ x⁴: as many equal activations would correlate by chance as high as these."""
        square, fourth = self.square.sum(0), self.fourth.sum(0)
        return np.where(fourth > 0, square**2 / np.where(fourth > 0, fourth, 1), 0.0)

    def spread(self) -> "Spread":
        """Means and spreads over all rows, and over each half."""
        n = np.array([self.n.sum(), *self.n])
        total, square = (
            np.concatenate([sums.sum(0, keepdims=True), sums]) for sums in (self.total, self.square)
        )
        low = np.concatenate([self.low.min(0, keepdims=True), self.low])
        high = np.concatenate([self.high.max(0, keepdims=True), self.high])
        rows = np.maximum(n, 1)[:, None]
        mean = total / rows
        variance = square / rows - mean**2
        varies = (high > low) & (variance > 0)
        return Spread(n, mean, np.where(varies, 1 / np.sqrt(np.where(varies, variance, 1.0)), 0.0))


class Spread(NamedTuple):
    """By part (0: all rows, 1 and 2: the halves): `n` [part], `mean` and `inverse_sd` [part, feature].

    `inverse_sd` is 1 / standard deviation (population), and 0 for a constant feature: it correlates with nothing.
    """

    n: np.ndarray
    mean: np.ndarray
    inverse_sd: np.ndarray

    def of(self, features: np.ndarray | slice) -> "Spread":
        chosen = (np.ascontiguousarray(array[:, features]) for array in (self.mean, self.inverse_sd))
        return Spread(self.n, *chosen)


class Side:
    """One layer of one run, held for the pass: one `Side` serves all pairs of its layer.

    `codes` is Codes, scipy sparse or numpy [row, feature]; `half` 0 or 1 [row], the same for all layers and runs.
    """

    def __init__(self, codes: Matrix | Codes, half: UInt8[np.ndarray, " row"], min_active: int = MIN_ACTIVE):
        self.codes, self.half = as_codes(codes), np.ascontiguousarray(half, np.uint8)
        self.min_active = min_active
        self.n_features = self.codes.n_features

    @functools.cached_property
    def moments(self) -> Moments:
        return Moments.of(self.codes, self.half)

    @functools.cached_property
    def spread(self) -> Spread:
        return self.moments.spread()

    @property
    def total(self) -> Float[np.ndarray, " feature"]:
        """S: each feature's summed activation."""
        return self.moments.total.sum(0)

    @functools.cached_property
    def counted(self) -> Bool[np.ndarray, " feature"]:
        return counted(self.moments, self.min_active)

    @functools.cached_property
    def order(self) -> Int[np.ndarray, " feature"]:
        """The features in the order of `by_row`: those that count first."""
        return np.argsort(~self.counted, kind="stable")

    @functools.cached_property
    def by_half(self) -> Entries:
        """Starts, rows and activations, feature by feature: entries 2i are of the first half, 2i + 1 of the second."""
        return by_half(self.codes, self.half)

    @functools.cached_property
    def by_feature(self) -> Entries:
        """The same entries, a feature at a time."""
        starts, rows, values = self.by_half
        return starts[::2].copy(), rows, values

    @functools.cached_property
    def by_row(self) -> Entries:
        """Starts, features by their place in `order`, and activations, row by row."""
        starts, features, values = self.codes.by_row
        place = np.empty(self.n_features, features.dtype)
        place[self.order] = np.arange(self.n_features)
        return starts, place[features], values

    def rows_in(self, order: Int[np.ndarray, " row"]) -> Entries:
        """`by_row` with the rows in another order: quicker than to look each up where it lies."""
        starts, features, values = self.by_row
        moved = np.zeros(len(starts), np.int64)
        np.cumsum(np.diff(starts)[order], out=moved[1:])
        found = moved, np.empty_like(features), np.empty_like(values)
        _move_rows(np.asarray(order, np.int64), starts, features, values, *found)
        return found


def counted(moments: Moments, min_active: int) -> Bool[np.ndarray, " feature"]:
    """Which features count: those that are active on at least `min_active` rows."""
    return moments.active.sum(0) >= max(min_active, 1)


def by_half(codes: Codes, half: np.ndarray) -> Entries:
    starts, features, values = codes.by_row
    column = 2 * features.astype(np.int32) + np.repeat(half, np.diff(starts))
    csr = scipy.sparse.csr_array((values, column, starts), shape=(codes.n_rows, 2 * codes.n_features))
    csc = csr.tocsc()
    return csc.indptr.astype(np.int64), csc.indices.astype(np.uint32), csc.data


@compiled()
@no_type_check
def _add_moments(by_row, half, total, square, fourth, active, low, high, stored):
    starts, features, values = by_row
    for row in range(starts.size - 1):
        h = half[row]
        for entry in range(starts[row], starts[row + 1]):
            feature, value = features[entry], np.float64(values[entry])
            squared = value * value
            total[h, feature] += value
            square[h, feature] += squared
            fourth[h, feature] += squared * squared
            active[h, feature] += value > 0
            stored[h, feature] += 1
            low[h, feature] = min(low[h, feature], value)
            high[h, feature] = max(high[h, feature], value)


@compiled()
@no_type_check
def _move_rows(order, starts, features, values, moved, moved_features, moved_values):
    for row in range(order.size):
        shift = starts[order[row]] - moved[row]
        for entry in range(moved[row], moved[row + 1]):
            moved_features[entry], moved_values[entry] = features[entry + shift], values[entry + shift]
