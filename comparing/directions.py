"""The results of both directions of a pair of runs, from what the passes found."""

import math
from typing import Any

import numpy as np

import features
from comparing import scores
from comparing.clusters import Clusters
from comparing.drivers import drivers, nuisance_of, sampled
from comparing.found import Evidence, Found, Matched
from comparing.passes import SCOPES
from comparing.results import Comparison, Direction, Drivers, Nuisance, Score, rounded
from comparing.sides import RunPair, Sides
from comparing.trust import averaged, coverage_by_band, score


def comparison_of(found: Evidence, runs: tuple[features.Run, features.Run], clusters: Clusters) -> Comparison:
    """Both directions' results."""
    both = found.forward, found.backward
    return Comparison(
        *(
            _direction(runs[side], runs[1 - side], both[side], both[1 - side], found, side, clusters)
            for side in (0, 1)
        )
    )


def _direction(
    source: features.Run,
    target: features.Run,
    own: dict[str, list[Found]],
    other: dict[str, list[Found]],
    found: Evidence,
    side: int,
    clusters: Clusters,
) -> Direction:
    layers = own["all_layers"]
    last, back = own["last_layer"][0], other["last_layer"][0]
    cells, floors = found.cells[side], found.floors[side]
    return Direction(
        source.name,
        target.name,
        list(source.layers),
        list(target.layers),
        [int((one.facts.total > 0).sum()) for one in layers],
        [len(one.facts.total) for one in layers],
        {
            "wmppc": {scope: tidy(either(own[scope], other[scope], clusters)) for scope in SCOPES},
            "mppc": {scope: mppc(own[scope]) for scope in SCOPES},
        },
        [
            [Score.of(value, None if floors is None else floors[place]) for place, value in row]
            for row in _rows(cells)
        ],
        [int(one.facts.counted.sum()) for one in layers],
        None,
        tidied(coverage_by_band(last)),
        Drivers(*map(tidied, drivers(last, back, clusters))),
    )


def either(own: list[Found], other: list[Found], clusters: Clusters) -> Score:
    """A direction's score; bare where the target has no feature that counts, so that nothing can be held out."""
    found = score(own, clusters)
    if any(one.facts.counted.any() for one in other):
        return found
    return Score(found.value, found.floor, found.adjusted)


def _rows(cells: np.ndarray) -> list[list[tuple[tuple[int, int], float]]]:
    """A matrix's entries with their places, row by row."""
    return [[((i, j), value) for j, value in enumerate(row)] for i, row in enumerate(cells.tolist())]


def mppc(found: list[Found]) -> Score:
    """MPPC of the source layers, weighted by their widths, and its floor; without the trust that wMPPC has."""
    value = averaged([scores.mppc(one.matched.every, one.facts.total) for one in found], found)
    chance = [
        averaged([scores.mppc(one.shuffled[number].every, one.facts.total) for one in found], found)
        for number in range(len(found[0].shuffled))
    ]
    return Score.of(value, float(np.mean(chance)) if chance else None)


def tidy(found: Score) -> Score:
    """A score that is the same however rows were added up, with None for what is no number but the value."""
    fields = {name: tidied(value) for name, value in found._asdict().items() if name != "value"}
    none = {name: None for name, value in fields.items() if isinstance(value, float) and math.isnan(value)}
    return Score(rounded(found.value), **fields | none)


def tidied(value: Any) -> Any:
    """Numbers rounded alike, all the way down."""
    if isinstance(value, float):
        return rounded(value)
    if isinstance(value, dict):
        return {key: tidied(item) for key, item in value.items()}
    return tuple(map(tidied, value)) if type(value) is tuple else value


def nuisance(pair: RunPair, found: Found, sides: Sides, clusters: Clusters, side: int) -> Nuisance | None:
    """Other explanations of a direction's last-layer score, on a sample of its features; None without any."""
    chosen = sampled(found.facts.counted)
    if not len(chosen) or not found.shuffled:
        return None
    runs = pair.runs[side], pair.runs[1 - side]
    few, roots = RunPair(*runs, sides, chosen), RunPair(*runs, sides, chosen, root=True)
    last = few.n_layers[0] - 1, few.n_layers[1] - 1
    within = sides.within(clusters)
    by_strata = None if within is None else few.shuffled(*last, within)[0]
    matched: Matched = roots.matched(*last)[0]
    total = roots.moments(0, last[0]).total.sum(0)
    found_out = nuisance_of(found, chosen, by_strata, matched, total)
    found_out = Nuisance(*map(tidied, found_out))
    if sides.options.square_root:
        found_out = found_out._replace(held_out_sqrt=None)
    return found_out._replace(strata=None if within is None else sides.options.strata)
