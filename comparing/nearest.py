"""Each feature's several nearest features: partners in another run, or neighbours in its own layer."""

from collections.abc import Callable
from typing import NamedTuple, no_type_check

import numpy as np

from comparing.found import TIE
from comparing.half_maxima import first_at, highest_of, to_r
from comparing.halves import Side
from comparing.pearson import add_products
from plumbing.compiled import compiled
from plumbing.threads import equal_ranges, in_parallel

NOTHING = -2.0  # below every correlation


class Nearest(NamedTuple):
    """The features that each feature is most correlated with over all rows, best first; arrays are [feature, place].

    `feature` int64: their numbers, -1 where there are no more. `r` float64: over all rows, which is flattered by the
    choice. `held_out` float64: that of each half's feature in this place, on the other half, the mean of both; it is
    not flattered, 0 on average where nothing is shared, and that of the first place is rho^cf (`Matched.held_out`).
    """

    feature: np.ndarray
    held_out: np.ndarray
    r: np.ndarray

    @staticmethod
    def none(n_features: int, count: int) -> "Nearest":
        shape = n_features, count
        return Nearest(np.full(shape, -1, np.int64), np.zeros(shape), np.zeros(shape))


def partners(source: Side, target: Side, count: int) -> Nearest:
    """The `count` best partners of the source's features among the target's; only features that count have any."""
    return _found(_partners, source, target, count)


def neighbours(side: Side, count: int) -> Nearest:
    """The features of the same layer that each feature that counts is most correlated with; `held_out` is 0."""
    return _found(_neighbours, side, side, count)


def _found(loop: Callable[..., None], source: Side, target: Side, count: int) -> Nearest:
    n_counted = int(target.counted.sum())
    found = Nearest.none(source.n_features, count)
    fixed = (source.by_half, target.by_row, source.counted, n_counted, target.order)
    spreads = tuple(source.spread), tuple(target.spread.of(target.order))
    ranges = equal_ranges(np.diff(source.by_feature[0]))
    in_parallel(lambda: lambda first, last: loop(first, last, *fixed, *spreads, *found), ranges)
    return found


def highest_of_rows(r: np.ndarray, places: np.ndarray, values: np.ndarray):
    """The places of the highest of each row of `r`, float32 [row, place], highest first; `r` is as it was afterwards."""
    in_parallel(
        lambda: lambda first, last: _best_of(first, last, r, places, values), equal_ranges(np.ones(len(r)))
    )


@compiled()
@no_type_check
def _best_of(first, last, r, places, values):
    for row in range(first, last):
        best(r[row], places[row], values[row])


@compiled()
@no_type_check
def best(r, places, values):
    """The places of the highest of `r`, highest first, the first of equal ones; `r` is as it was afterwards."""
    for at in range(places.size):
        values[at] = highest_of(r)
        places[at] = first_at(r, values[at] - TIE)
        values[at] = r[places[at]]
        r[places[at]] = NOTHING
    for at in range(places.size):
        r[places[at]] = values[at]


@compiled()
@no_type_check
def _correlate(feature, by_half, by_row, source, target, products, r):
    """Fill r [part, target] of one source feature: over all rows, and over each half."""
    n, mean, inverse_sd = source
    _, t_mean, t_inverse_sd = target
    products[1:] = 0
    add_products(2 * feature, by_half, by_row, products[1])
    add_products(2 * feature + 1, by_half, by_row, products[2])
    width = r.shape[1]
    for j in range(width):
        products[0, j] = products[1, j] + products[2, j]
    for part in range(3):
        own = n[part], mean[part, feature], inverse_sd[part, feature]
        to_r(products[part, :width], *own, t_mean[part, :width], t_inverse_sd[part, :width], r[part])


@compiled()
@no_type_check
def _partners(first, last, by_half, by_row, counts, n_counted, order, source, target, features, held_out, rs):
    products, r = np.empty((3, order.size)), np.empty((3, n_counted))
    n_places = min(features.shape[1], n_counted)
    places, values = np.empty((3, n_places), np.int64), np.empty(n_places)
    for feature in range(first, last):
        if not counts[feature]:
            continue
        _correlate(feature, by_half, by_row, source, target, products, r)
        for part in range(3):
            best(r[part], places[part], values)
        for at in range(n_places):
            features[feature, at], rs[feature, at] = order[places[0, at]], r[0, places[0, at]]
            for part in (1, 2):
                if source[2][part, feature] > 0:  # constant on this half: it has no partner there
                    held_out[feature, at] += r[3 - part, places[part, at]] / 2


@compiled()
@no_type_check
def _neighbours(
    first, last, by_half, by_row, counts, n_counted, order, source, target, features, held_out, rs
):
    products, r = np.empty((3, order.size)), np.empty((3, n_counted))
    n_places = min(features.shape[1], n_counted)
    place_of, places = np.full(order.size, -1), np.empty(n_places, np.int64)
    for place in range(n_counted):
        place_of[order[place]] = place
    for feature in range(first, last):
        if counts[feature]:
            _correlate(feature, by_half, by_row, source, target, products, r)
            r[0, place_of[feature]] = NOTHING  # not its own neighbour
            best(r[0], places, rs[feature, :n_places])
            for at in range(n_places):
                if rs[feature, at] > NOTHING:
                    features[feature, at] = order[places[at]]
                else:
                    rs[feature, at] = 0
