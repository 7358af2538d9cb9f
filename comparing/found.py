"""What the passes over a pair of runs find of a source layer."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from comparing.halves import Moments, counted
from comparing.influence import Influence
from comparing.partners import Matched, Shuffled


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
