"""What a pass finds: each feature's best partner over all rows and over each half, and what permuted rows give."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

TIE = 1e-10  # correlations closer than this are equal: the first partner has it, however sums were rounded


class Matched(NamedTuple):
    """For each feature of one side, its best partner on the other; features that count have partners that count.

    By part (0: all rows, 1 and 2: the halves): `rho` float64 [part, feature], the highest correlation there, and
    `match` int64 [part, feature], who has it: the first of several, -1 where the feature is constant on the part
    (then rho is 0). `crossed` float64 [2, feature]: what the first half's partner scores on the second, and the
    second's on the first. `every` float64 [feature]: rho over all rows and all features, whether they count or
    not: the paper's.
    """

    rho: np.ndarray
    match: np.ndarray
    crossed: np.ndarray
    every: np.ndarray

    @staticmethod
    def none(n_features: int) -> "Matched":
        return Matched(
            np.full((3, n_features), -2.0),
            np.full((3, n_features), -1, np.int64),
            np.zeros((2, n_features)),
            np.full(n_features, -2.0),
        )

    @property
    def held_out(self) -> Float[np.ndarray, " feature"]:
        """rho^cf: the mean of both halves' partners, each scored on the other half."""
        return self.crossed.mean(axis=0)

    def merge(self, other: "Matched", offset: int = 0):
        """Take over, in place, what is higher in `other`, whose partners' numbers begin at `offset`."""
        match = np.where(other.match < 0, -1, other.match + offset)
        own, new = (np.where(m < 0, -2.0, rho) for m, rho in ((self.match, self.rho), (match, other.rho)))
        as_high = (np.abs(new - own) <= TIE) & (match < self.match)
        better = (match >= 0) & ((new > own + TIE) | as_high)
        self.rho[better], self.match[better] = other.rho[better], match[better]
        self.crossed[better[1:]] = other.crossed[better[1:]]
        np.maximum(self.every, other.every, out=self.every)

    def copy(self) -> "Matched":
        return Matched(*(array.copy() for array in self))

    def take(self, features: Any) -> "Matched":
        return Matched(*(array[..., features] for array in self))

    def settled(self) -> "Matched":
        """With 0 where there is no partner."""
        self.rho[self.match < 0] = 0
        self.crossed[self.match[1:] < 0] = 0
        self.every[self.every < -1.5] = 0
        return self


class Shuffled(NamedTuple):
    """What chance gives, float64 [feature]: `rho` over partners that count, `every` over all partners."""

    rho: np.ndarray
    every: np.ndarray

    @staticmethod
    def none(n_features: int) -> "Shuffled":
        return Shuffled(np.full(n_features, -2.0), np.full(n_features, -2.0))

    def merge(self, other: "Shuffled", offset: int = 0):
        for own, new in zip(self, other, strict=True):
            np.maximum(own, new, out=own)

    def copy(self) -> "Shuffled":
        return Shuffled(*(array.copy() for array in self))

    def settled(self) -> "Shuffled":
        for array in self:
            array[array < -1.5] = 0
        return self


def over_layers(found: Iterable[Any], widths: Iterable[int]) -> Any:
    """One source layer's Matched or Shuffled over several target layers, whose features are numbered on."""
    best, offset = None, 0
    for one, width in zip(found, widths, strict=True):
        if best is None:
            best = one.copy()
        elif isinstance(one, Matched):
            best.merge(one, offset)
        else:
            best.merge(one)
        offset += width
    return best
