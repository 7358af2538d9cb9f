"""One side of a pair: a layer's features laid out half by half, and their sums over each half of the rows."""

import functools
from typing import NamedTuple, no_type_check

import numpy as np
import scipy.sparse
from jaxtyping import Bool, Float, Int, UInt8, UInt32

from comparing.codes import AddUp, Codes, Entries, Matrix, as_codes, beside, unfilled
from plumbing.compiled import compiled, prefetch

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
        return Moments.of_entries(by_half(as_codes(codes), half), half)

    @staticmethod
    def of_entries(entries: Entries, half: UInt8[np.ndarray, " row"], root: bool = False) -> "Moments":
        """The same from `by_half` of them, or of their square roots."""
        starts, held = entries
        found = Moments.of_nothing(len(starts) // 2)
        found.n[:] = np.bincount(half, minlength=2)
        _add_moments(starts, held, root, *found[1:])
        gaps = found.n[:, None] > np.diff(starts).reshape(-1, 2).T  # where a row holds no entry, x is 0
        found.low[gaps], found.high[gaps] = np.minimum(found.low[gaps], 0), np.maximum(found.high[gaps], 0)
        return found

    def of_features(self, features: np.ndarray) -> "Moments":
        return Moments(self.n, *(array[:, features] for array in self[1:]))

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
    Its entries lie half by half, so that a pass over one half goes through memory in one direction.
    """

    def __init__(self, codes: Matrix | Codes, half: UInt8[np.ndarray, " row"], min_active: int = MIN_ACTIVE):
        self.pattern = as_codes(codes)  # which entries there are; `codes` are what they hold
        self.half, self.min_active = np.ascontiguousarray(half, np.uint8), min_active
        self.n_features = self.pattern.n_features

    @functools.cached_property
    def codes(self) -> Codes:
        return self.pattern

    @functools.cached_property
    def moments(self) -> Moments:
        return Moments.of_entries(self.by_half, self.half)

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
    def rows(self) -> Int[np.ndarray, " place"]:
        """The row in each place of `by_half` and `by_row`: those of the first half first."""
        return np.argsort(self.half, kind="stable")

    @functools.cached_property
    def places(self) -> UInt32[np.ndarray, " row"]:
        """The place of each row."""
        found = np.empty(len(self.rows), np.uint32)
        found[self.rows] = np.arange(len(self.rows))
        return found

    @functools.cached_property
    def by_half(self) -> Entries:
        """Feature by feature, half by half: entries 2i are feature i's of the first half, 2i + 1 those of the second."""
        return by_half(self.codes, self.half, self.rows)

    @functools.cached_property
    def by_feature(self) -> Entries:
        """The same entries, a feature at a time."""
        starts, entries = self.by_half
        return starts[::2].copy(), entries

    @functools.cached_property
    def by_row(self) -> Entries:
        """The entries row by row in the order of `rows`, features by their place in `order`."""
        starts, features, values = self.codes.csr
        place = np.empty(self.n_features, self.codes.index)
        place[self.order] = np.arange(self.n_features)
        moved, found = _starts(starts, self.rows), unfilled(len(values), self.codes.index)
        _move_rows(self.rows, place, starts, features, values, moved, found)
        return moved, found

    def beside(self, partner: Int[np.ndarray, " row"]) -> Entries:
        """`by_row` of the rows `partner`, beside the other side's: quicker than to look each up where it lies."""
        starts, entries = self.by_row
        order = self.places[partner[self.rows]]
        moved, found = _starts(starts, order), np.empty_like(entries)
        _copy_rows(order, starts, entries, moved, found)
        return moved, found

    def moved_to(self, partner: Int[np.ndarray, " row"]) -> Entries:
        """`by_feature` with each row n in the place of row `partner[n]` of the other side."""
        starts, entries = self.by_feature
        return starts, beside(self.places[partner[self.rows]][entries["index"]], entries["value"])

    def columns(self, features: Int[np.ndarray, " chosen"]) -> "Side":
        """Some of the features, their layout taken over."""
        if not self.codes.is_sparse:
            return Side(Codes(self.codes.matrix[:, features]), self.half, self.min_active)
        starts, entries = self.by_half
        wanted = np.concatenate(
            [np.arange(starts[2 * i], starts[2 * i + 2]) for i in features] or [starts[:0]]
        )
        sizes = np.diff(starts).reshape(-1, 2)[features].ravel()
        starts, entries = np.concatenate([[0], np.cumsum(sizes)]), entries[wanted]
        columns = entries["value"], self.rows[entries["index"]], starts[::2]
        few = scipy.sparse.csc_array(columns, shape=(self.codes.n_rows, len(features)))
        found = Side(Codes(few.tocsr()), self.half, self.min_active)
        found.rows, found.by_half = self.rows, (starts, entries)
        found.moments = self.moments.of_features(features)
        return found


def counted(moments: Moments, min_active: int) -> Bool[np.ndarray, " feature"]:
    """Which features count: those that are active on at least `min_active` rows."""
    return moments.active.sum(0) >= max(min_active, 1)


def tellable(moments: Moments, min_active: int) -> Bool[np.ndarray, " feature"]:
    """Those of the features that count whose held-out correlation tells anything: they are active in both halves.

    Of a feature that is silent on one half it is 0, with an error of 0, whatever the other run has.
    """
    return counted(moments, min_active) & (moments.active > 0).all(0)


def by_half(codes: Codes, half: np.ndarray, rows: np.ndarray | None = None) -> Entries:
    """The entries feature by feature, each feature's half by half; with `rows` their index is the row's place in it."""
    starts, features, values = codes.csr
    rows = np.arange(codes.n_rows) if rows is None else rows
    ends, found = np.zeros(2 * codes.n_features + 1, np.int64), unfilled(len(values))
    _sort_entries(rows, np.ascontiguousarray(half, np.uint8), starts, features, values, ends, found)
    return ends, found


def _starts(starts: np.ndarray, order: np.ndarray) -> Int[np.ndarray, " start"]:
    """Where rows begin once they are in another order."""
    moved = np.zeros(len(starts), np.int64)
    np.cumsum(np.diff(starts)[order], out=moved[1:])
    return moved


@compiled()
@no_type_check
def _sort_entries(rows, half, starts, features, values, ends, found):
    for row in range(rows.size):
        for entry in range(starts[row], starts[row + 1]):
            ends[2 * np.uint64(features[entry]) + half[row] + 1] += 1  # no index is negative
    ends[:] = np.cumsum(ends)
    free = ends.copy()
    for place in range(rows.size):
        row = rows[place]
        for entry in range(starts[row], starts[row + 1]):
            column = 2 * np.uint64(features[entry]) + half[row]
            to = np.uint64(free[column])
            found[to].index, found[to].value = place, values[entry]
            free[column] += 1


@compiled()
@no_type_check
def _add_moments(starts, entries, root, total, square, fourth, active, low, high):
    for column in range(starts.size - 1):
        h, feature = column % 2, column // 2
        one = two = four = above = 0.0  # in registers: sums in memory took three times as long
        least, most = low[h, feature], high[h, feature]
        for entry in range(starts[column], starts[column + 1]):
            value = np.float64(np.sqrt(entries[entry].value) if root else entries[entry].value)
            squared = value * value
            one += value
            two += squared
            four += squared * squared
            above += value > 0
            least = min(least, value)
            most = max(most, value)
        total[h, feature] += one
        square[h, feature] += two
        fourth[h, feature] += four
        active[h, feature] += above
        low[h, feature], high[h, feature] = least, most


@compiled()
@no_type_check
def _move_rows(order, place, starts, features, values, moved, found):
    for row in range(order.size):
        soon = starts[order[min(row + 8, order.size - 1)]]
        if soon < values.size:  # the rows lie scattered
            for line in range(2):
                prefetch(features, min(soon + 16 * line, values.size - 1))
                prefetch(values, min(soon + 16 * line, values.size - 1))
        shift = starts[order[row]] - moved[row]
        for entry in range(moved[row], moved[row + 1]):
            found[entry].index, found[entry].value = (
                place[np.uint64(features[entry + shift])],
                values[entry + shift],
            )


@compiled()
@no_type_check
def _copy_rows(order, starts, entries, moved, found):
    for row in range(order.size):
        soon = starts[order[min(row + 8, order.size - 1)]]
        if soon < entries.size:  # the rows lie scattered
            for line in range(4):
                prefetch(entries, min(soon + 10 * line, entries.size - 1))
        shift = starts[order[row]] - moved[row]
        for entry in range(moved[row], moved[row + 1]):
            found[entry].index = entries[entry + shift].index
            found[entry].value = entries[entry + shift].value
