"""The layers that the explorer shows, and what the features of each find in the others."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from comparing.clusters import FEWEST
from comparing.directions import tidy
from comparing.draws import Layer
from comparing.found import Found, weighted
from comparing.halves import Side
from comparing.heldout import matched
from comparing.nearest import Nearest, partners
from comparing.passes import evidence
from comparing.results import Score
from comparing.sides import RunPair, Sides
from comparing.trust import score
from features import Run
from plumbing.errors import UserError
from showing.strips import Columns, strips

PARTNERS = 5  # of a feature in each other run


class Browsed(NamedTuple):
    """A run's layer that the explorer shows; `slug` stands for the run in the names of files."""

    run: Run
    slug: str
    layer: str
    side: Side
    columns: Columns

    @staticmethod
    def of(run: Run, slug: str, layer: str, sides: Sides) -> "Browsed":
        """Errors: dense codes, which the loops here would take hours for; no feature that is ever active."""
        if run.is_original or run.manifest.get("activation") == "relu":
            raise UserError(
                f"run {run.name!r} holds ReLU codes, which nearly all samples activate a little: the explorer shows TopK "
                "codes, as a run without --activation relu records them"
            )
        side = sides.side(Layer(run, layer))
        found = Browsed(run, slug, layer, side, Columns.of(side.codes.matrix))
        if not len(found.live):
            raise UserError(
                f"no feature of {run.name}, {layer}, is active on any sample: choose another with --layer"
            )
        return found

    @property
    def counts(self) -> Int[np.ndarray, " feature"]:
        """The rows on which each feature is active."""
        return np.diff(self.columns.starts)

    @property
    def live(self) -> Int[np.ndarray, " live"]:
        """The features that are active at all: those that are shown."""
        return np.flatnonzero(self.counts)

    @property
    def alone(self) -> Run:
        """The run as if this were its only layer."""
        return self.run._replace(manifest=self.run.manifest | {"layers": [self.layer]})


class Beside(NamedTuple):
    """What a layer's features find in another run's layer.

    `rows`: of three strips of each partner that there is, feature by feature. `held_out` (rho^cf) and `floor`, what
    permuted rows give: None with too few samples. `score`: the wMPPC of the two layers.
    """

    layer: str
    nearest: Nearest
    rows: Int[np.ndarray, "pair strip place"]
    held_out: Float[np.ndarray, " feature"] | None
    floor: Float[np.ndarray, " feature"] | None
    score: Score


def beside(one: Browsed, other: Browsed, sides: Sides) -> tuple[Beside, Beside]:
    """What each of two layers' features find in the other one."""
    clusters = sides.clusters(one.run, other.run)
    both = (one, other), (other, one)
    if clusters.n < FEWEST:
        values = [
            weighted(found.every, own.side.total)
            for found, (own, _) in zip(matched(one.side, other.side), both, strict=True)
        ]
        first, second = (
            _found(*pair, None, Score.of(value)) for pair, value in zip(both, values, strict=True)
        )
        return first, second
    pair = RunPair(one.alone, other.alone, sides)
    found = evidence(pair, clusters, sides.options.permutations)
    of_both = found.forward["last_layer"], found.backward["last_layer"]
    first, second = (
        _found(*pair, own[0], tidy(score(own, clusters))) for pair, own in zip(both, of_both, strict=True)
    )
    return first, second


def _found(one: Browsed, other: Browsed, passes: Found | None, of_layers: Score) -> Beside:
    nearest = partners(one.side, other.side, PARTNERS)
    nearest.feature[nearest.r <= 0] = -1
    feature, place = np.nonzero(nearest.feature >= 0)
    rows = strips(one.columns, other.columns, feature, nearest.feature[feature, place])
    held_out, floor = None, None
    if passes is not None:
        held_out = passes.matched.held_out
        floor = np.mean([np.maximum(chance.rho, 0) for chance in passes.shuffled], axis=0)
    return Beside(other.layer, nearest, rows, held_out, floor, of_layers)
