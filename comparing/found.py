"""What the passes over a pair of runs find, feature by feature and row by row."""

from typing import NamedTuple, TypeVar

import numpy as np
from jaxtyping import Float

from comparing.clusters import Clusters
from comparing.halves import Moments, counted
from comparing.results import NORMAL_95

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

    @classmethod
    def none(cls, n_features: int) -> "Matched":
        return cls(
            np.full((3, n_features), -2.0),
            np.full((3, n_features), -1, np.int64),
            np.zeros((2, n_features)),
            np.full(n_features, -2.0),
        )

    @property
    def held_out(self) -> Float[np.ndarray, " feature"]:
        """rho^cf: the mean of both halves' partners, each scored on the other half."""
        return self.crossed.mean(axis=0)

    def merge(self, found: tuple[np.ndarray, ...], offset: int = 0):
        """Take over, in place, what is higher in another Matched, whose partners' numbers begin at `offset`."""
        other = Matched(*found)
        match = np.where(other.match < 0, -1, other.match + offset)
        own, new = (np.where(m < 0, -2.0, rho) for m, rho in ((self.match, self.rho), (match, other.rho)))
        as_high = (np.abs(new - own) <= TIE) & (match < self.match)
        better = (match >= 0) & ((new > own + TIE) | as_high)
        self.rho[better], self.match[better] = other.rho[better], match[better]
        self.crossed[better[1:]] = other.crossed[better[1:]]
        np.maximum(self.every, other.every, out=self.every)

    def take(self, features: np.ndarray | slice) -> "Matched":
        return Matched(*(array[..., features] for array in self))

    def settle(self):
        """Put 0 where there is no partner, in place."""
        self.rho[self.match < 0] = 0
        self.crossed[self.match[1:] < 0] = 0
        self.every[self.every < -1.5] = 0


class Shuffled(NamedTuple):
    """What chance gives, float64 [feature]: `rho` over partners that count, `every` over all partners."""

    rho: np.ndarray
    every: np.ndarray

    @classmethod
    def none(cls, n_features: int) -> "Shuffled":
        return cls(np.full(n_features, -2.0), np.full(n_features, -2.0))

    def merge(self, found: tuple[np.ndarray, ...], offset: int = 0):
        for own, new in zip(self, found, strict=True):
            np.maximum(own, new, out=own)

    def settle(self):
        for array in self:
            array[array < -1.5] = 0


Best = TypeVar("Best", Matched, Shuffled)


def nothing(kind: type[Best], n_features: int) -> Best:
    """The Matched or Shuffled that others are merged into."""
    return kind(*kind.none(n_features))


class Influence(NamedTuple):
    """What each row adds to a held-out score's error, float64 [row]; it adds up where scores do.

    `halves`: each row's influence on the score of its half, over twice the rows of the half. `full`: its
    influence on the score with the full sample's partners, over all rows. `held_out`: the score.
    """

    held_out: float
    halves: np.ndarray
    full: np.ndarray

    def plus(self, other: "Influence", times: float = 1.0) -> "Influence":
        """The sum with so many times another score on the same rows; with -1 their difference."""
        halves, full = self.halves + times * other.halves, self.full + times * other.full
        return Influence(self.held_out + times * other.held_out, halves, full)

    def se(self, clusters: Clusters) -> float:
        """The larger of the standard errors of the cross-fitted and of the full score, by cluster."""
        sums = (np.bincount(clusters.ids, part) for part in (self.halves, self.full))
        return float(max(np.sqrt(np.sum(by_cluster**2)) for by_cluster in sums))

    def interval(self, clusters: Clusters) -> tuple[float, float]:
        """The 95 % interval: over samples only, not over seeds of the SAEs."""
        wide = NORMAL_95 * self.se(clusters)
        return float(self.held_out - wide), float(self.held_out + wide)


class Facts(NamedTuple):
    """Of one source layer, by feature: `total` (S), `counted`, `active` (share of rows), `n_eff`."""

    total: np.ndarray
    counted: np.ndarray
    active: np.ndarray
    n_eff: np.ndarray

    @staticmethod
    def of(moments: Moments, min_active: int) -> "Facts":
        active = moments.active.sum(0) / max(moments.n.sum(), 1)
        return Facts(moments.total.sum(0), counted(moments, min_active), active, moments.n_eff)

    @property
    def weight(self) -> Float[np.ndarray, " feature"]:
        """S of the features that count, and 0."""
        return np.where(self.counted, self.total, 0.0)


class Found(NamedTuple):
    """What the passes found of one source layer: its best partners, and those of each permutation."""

    facts: Facts
    matched: Matched
    shuffled: list[Shuffled]
    influence: Influence | None = None


class Evidence(NamedTuple):
    """Both directions of a pair, by scope ("last_layer" and "all_layers"): a Found a source layer.

    `cells` and `floors`, float64 [source layer, target layer], a direction each: the wMPPC of each layer in each
    layer, and the same with permuted rows (None without permutations).
    """

    forward: dict[str, list[Found]]
    backward: dict[str, list[Found]]
    cells: tuple[np.ndarray, np.ndarray]
    floors: tuple[np.ndarray | None, np.ndarray | None]


def weighted(rho: Float[np.ndarray, " feature"], weight: Float[np.ndarray, " feature"]) -> float:
    """Σ weight rho / Σ weight; NaN without weight."""
    return float(weight @ rho / weight.sum()) if weight.sum() > 0 else float("nan")
