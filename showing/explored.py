"""What the explorer tells of one run's layer: a table of its features, and a record of each, as JSON has them."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from comparing.draws import Layer
from comparing.halves import tellable
from comparing.nearest import NOTHING, highest_of_rows, neighbours
from comparing.older import decoder
from comparing.sharedness import Sharedness
from features import Run
from showing.browsed import Beside, Browsed
from showing.labels import Label
from showing.names import Named
from showing.samples import Sample, samples

RELATED = 8  # features of the same layer beside one
BLOCK = 512  # decoder rows that are set beside all at once: 16 MB

Json = dict[str, object]
Grids = Mapping[int, Mapping[int, str]]  # by feature, then row: where in the picture it fires


def table(
    one: Browsed, labels: Mapping[int, Label], found: dict[str, Beside], shared: Sharedness | None
) -> Json:
    """The layer's live features, an array a column; `found` by the other run's slug."""
    live, counts = one.live, one.counts
    sums = np.add.reduceat(one.columns.values.astype(np.float64), one.columns.starts[live])
    highest = np.maximum.reduceat(one.columns.values, one.columns.starts[live])
    counted = tellable(one.side.moments, one.side.min_active)[live]
    own = [labels.get(number) for number in live.tolist()]
    return {
        "feature": live.tolist(),
        "name": [label.name if label else "" for label in own],
        "by": [label.by if label else "" for label in own],
        "score": [short(label.r if label else None) for label in own],
        "count": counts[live].tolist(),
        "mean": [short(value) for value in sums / counts[live]],
        "max": [short(value) for value in highest],
        "partner": {slug: other.nearest.feature[live, 0].tolist() for slug, other in found.items()},
        "partner_layer": {slug: other.layer for slug, other in found.items()},
        "held_out": {slug: _told(other.held_out, live, counted) for slug, other in found.items()},
        "floor": {slug: _told(other.floor, live, counted) for slug, other in found.items()},
        "delta": None
        if shared is None
        else [short(value) for value in _by_feature(shared, shared.delta)[live]],
        "status": None
        if shared is None or shared.status is None
        else _by_feature(shared, np.array(shared.status, object))[live].tolist(),
    }


def _told(values: np.ndarray | None, live: np.ndarray, counted: np.ndarray) -> list[float | None]:
    """The values of live features, with None where a feature is too rare to tell."""
    if values is None:
        return [None] * len(live)
    return [short(value) if counts else None for value, counts in zip(values[live], counted, strict=True)]


def _by_feature(shared: Sharedness, ranked: np.ndarray) -> np.ndarray:
    """Values by rank as values by feature."""
    values = np.empty_like(ranked)
    values[shared.feature] = ranked
    return values


class Told(NamedTuple):
    """What a layer's records are told from: `named`, and `objects` where the data set has them, of all features."""

    named: Sequence[Named]
    objects: Sequence[Named] | None
    found: Mapping[str, Beside]
    places: Grids
    side: int  # cells of a grid in `places`, a side


def records(one: Browsed, told: Told) -> Iterator[Json]:
    """A record of each live feature, in the table's order."""
    related, alike = neighbours(one.side, RELATED), decoder_neighbours(one.run, one.layer, one.live)
    related.feature[related.r <= 0] = -1
    ends = {slug: np.cumsum((other.nearest.feature >= 0).sum(1)) for slug, other in told.found.items()}
    for number in one.live.tolist():
        shown = samples(number, *one.columns.of_feature(number), one.run.n_samples)
        words = told.named[number]
        yield {
            "feature": number,
            "rank": [row for row, _ in shown.top],
            "act": [short(activation) for _, activation in shown.top],
            "bands": [[_sample(sample) for sample in band] for band in shown.bands],
            "silent": shown.silent,
            "hist": {"edges": [short(shown.low), short(shown.high)], "counts": shown.counts},
            "words": [[word.word, short(word.r), word.of_top, short(word.share)] for word in words.words],
            "n_top": words.n_top,
            "floor": short(words.floor),
            "objects": _objects(told.objects[number]) if told.objects else [],
            "related": _listed(related.feature[number], related.r[number]),
            "alike": _listed(*(array[number] for array in alike)) if alike else [],
            "partners": {
                slug: _partners(other, number, int(ends[slug][number])) for slug, other in told.found.items()
            },
            **_where(told, number),
        }


def _objects(named: Named) -> list[list[object]]:
    """The categories that the feature follows better than chance."""
    return [[word.word, short(word.r)] for word in named.words if word.r > named.floor]


def _where(told: Told, number: int) -> Json:
    if number not in told.places:
        return {}
    return {"where": {str(row): grid for row, grid in told.places[number].items()}, "side": told.side}


def _sample(sample: Sample) -> list[object]:
    return [sample[0], short(sample[1])]


def _listed(features: np.ndarray, values: np.ndarray) -> list[list[object]]:
    """Features with a value each; -1 is none."""
    return [
        [feature, short(value)]
        for feature, value in zip(features.tolist(), values.tolist(), strict=True)
        if feature >= 0
    ]


def _partners(found: Beside, number: int, end: int) -> list[list[object]]:
    """A feature's partners; the last of their strips stands before place `end`."""
    known = [place for place, feature in enumerate(found.nearest.feature[number].tolist()) if feature >= 0]
    rows = found.rows[end - len(known) : end].tolist()
    return [
        [
            int(found.nearest.feature[number, place]),
            None if found.held_out is None else short(found.nearest.held_out[number, place]),
            short(found.nearest.r[number, place]),
            *([row for row in strip if row >= 0] for strip in three),
        ]
        for place, three in zip(known, rows, strict=True)
    ]


def decoder_neighbours(
    run: Run, layer: str, live: Int[np.ndarray, " live"]
) -> tuple[Int[np.ndarray, "feature place"], Float[np.ndarray, "feature place"]] | None:
    """The live features whose decoder rows point most alike, and the cosines; None where the run has no SAE.

    Arrays are [feature, place], -1 where there are no more.
    """
    weights = decoder(Layer(run, layer))
    if weights is None:
        return None
    rows = weights.astype(np.float32)[live]
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    count = min(RELATED, len(live) - 1)
    nearest, cosines = np.full((len(weights), RELATED), -1), np.zeros((len(weights), RELATED))
    for start in range(0, len(live), BLOCK):
        block = rows[start : start + BLOCK] @ rows.T
        own = np.arange(start, start + len(block))
        block[np.arange(len(block)), own] = NOTHING  # not its own neighbour
        places, values = np.zeros((len(block), count), np.int64), np.zeros((len(block), count), np.float32)
        highest_of_rows(block, places, values)
        nearest[live[own], :count], cosines[live[own], :count] = live[places], values
    return nearest, cosines


def short(value: int | float | np.floating | None) -> float | None:
    """Three digits of a number; None for what JSON cannot hold."""
    return float(f"{value:.3g}") if value is not None and math.isfinite(value) else None
