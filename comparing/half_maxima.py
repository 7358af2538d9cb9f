"""Compiled loops that turn a source feature's products into correlations and keep both sides' maxima.

They take slices that begin at 0: an index that might be negative keeps a loop from being vectorised. `source` and
`target` are each a Spread as a tuple; `best` and `back` are the Matched or Shuffled of the source and the target, as
tuples too: numba's cache on disk would name their class, and fail once it is moved.
"""

from typing import no_type_check

import numpy as np

from comparing.found import TIE
from comparing.pearson import add_products
from plumbing.compiled import compiled, higher

TARGETS = 512  # target features whose correlations with a source feature are worked out at once


@compiled(fastmath={"nnan", "nsz", "contract"})
@no_type_check
def highest_of(r):
    highest = -2.0
    for j in range(r.size):
        highest = higher(highest, r[j])
    return highest


@compiled()
@no_type_check
def first_at(r, level):
    for j in range(r.size):
        if r[j] >= level:
            return j
    return -1


@compiled(fastmath={"nnan", "nsz", "contract"})
@no_type_check
def to_r(products, n, mean, inverse_sd, target_mean, target_inverse_sd, r):
    own, scale = mean * n, inverse_sd / max(n, 1.0)
    for j in range(r.size):
        r[j] = (products[j] - own * target_mean[j]) * (target_inverse_sd[j] * scale)


@compiled(fastmath={"nnan", "nsz", "contract"})
@no_type_check
def _raise_floor(r, floor):
    for j in range(r.size):
        floor[j] = higher(floor[j], r[j])


@compiled(fastmath={"nnan", "nsz", "contract"})
@no_type_check
def _correlate(products, n, mean, inverse_sd, target_mean, target_inverse_sd, rho, r):
    """Fill r; returns the highest, and by how much most a target has more than its `rho` so far."""
    own, scale, highest, above = mean * n, inverse_sd / max(n, 1.0), -2.0, -4.0
    for j in range(r.size):
        value = (products[j] - own * target_mean[j]) * (target_inverse_sd[j] * scale)
        r[j] = value
        highest = higher(highest, value)
        above = higher(above, value - rho[j])
    return highest, above


@compiled()
@no_type_check
def _keep_own(feature, first, part, highest, r, best):
    """A source feature's best partner so far, among the targets from `first` on."""
    rho, match, crossed, _ = best
    if highest > rho[part, feature] + TIE:
        place = first_at(r[part], highest - TIE)
        rho[part, feature], match[part, feature] = highest, first + place
        if part:
            crossed[part - 1, feature] = r[3 - part, place]


@compiled()
@no_type_check
def _keep_back(feature, first, part, r, back):
    """The targets' best source features so far, with r on the other half."""
    rho, match, crossed, _ = back
    for j in range(r.shape[1]):
        if r[part, j] > rho[part, first + j] + TIE:
            rho[part, first + j], match[part, first + j] = r[part, j], feature
            if part:
                crossed[part - 1, first + j] = r[3 - part, j]


@compiled()
@no_type_check
def _keep_split(feature, n_counted, products, r, source, target, best, back):
    """One source feature's products of both halves as correlations with the first `n_counted` targets: both maxima."""
    n, mean, inverse_sd = source
    _, t_mean, t_inverse_sd = target
    highest, above = np.empty(3), np.empty(3)
    for first in range(0, n_counted, TARGETS):
        last = min(first + TARGETS, n_counted)
        block = r[:, : last - first]
        for part in range(3):
            own = n[part], mean[part, feature], inverse_sd[part, feature]
            stats = t_mean[part, first:last], t_inverse_sd[part, first:last], back[0][part, first:last]
            highest[part], above[part] = _correlate(products[part, first:last], *own, *stats, block[part])
        best[3][feature] = max(best[3][feature], highest[0])
        for part in range(3):
            if inverse_sd[part, feature] > 0:
                _keep_own(feature, first, part, highest[part], block, best)
            if above[part] > TIE:  # seldom
                _keep_back(feature, first, part, block, back)


@compiled()
@no_type_check
def _keep_floor(feature, start, products, r, source, target, every, floor):
    """The highest r of all rows with the targets from `start` on, for the source feature and for the targets."""
    own = source[0][0], source[1][0, feature], source[2][0, feature]
    for first in range(start, products.size, TARGETS):
        last = min(first + TARGETS, products.size)
        stats = target[1][0, first:last], target[2][0, first:last], floor[first:last]
        highest, above = _correlate(products[first:last], *own, *stats, r[: last - first])
        every[feature] = max(every[feature], highest)
        if above > 0:
            _raise_floor(r[: last - first], floor[first:last])


@compiled()
@no_type_check
def _keep_halves(feature, counts, n_counted, products, r, source, target, best, back):
    """One source feature's products of both halves as correlations: its own maxima, and the targets'."""
    whole, one, two = products
    for j in range(whole.size):
        whole[j] = one[j] + two[j]
    n_counted = n_counted if counts else 0
    _keep_split(feature, n_counted, products, r, source, target, best, back)
    _keep_floor(feature, n_counted, whole, r[0], source, target, best[3], back[3])


@compiled()
@no_type_check
def _keep_whole(feature, counts, n_counted, products, r, source, target, best, back):
    """The same of all rows alone, and of no partners: what a permuted pass keeps."""
    (best_rho, best_every), (back_rho, back_every) = best, back
    if not counts:
        _keep_floor(feature, 0, products, r, source, target, best_every, back_every)
        return
    _keep_floor(feature, 0, products[:n_counted], r, source, target, best_rho, back_rho)
    best_every[feature] = max(best_every[feature], best_rho[feature])
    _keep_floor(feature, n_counted, products, r, source, target, best_every, back_every)
    if source[2][0, feature] == 0:
        best_rho[feature] = -2.0  # constant: it has no partner


@compiled()
@no_type_check
def split_maxima(first, last, by_half, by_row, counts, n_counted, source, target, best, back):
    """Maxima of all rows and of both halves, from the entries of two layers."""
    products, r = np.zeros((3, target[1].shape[1])), np.empty((3, TARGETS))
    for feature in range(first, last):
        products[1:] = 0
        add_products(2 * feature, by_half, by_row, products[1])
        add_products(2 * feature + 1, by_half, by_row, products[2])
        _keep_halves(feature, counts[feature], n_counted, products, r, source, target, best, back)


@compiled()
@no_type_check
def whole_maxima(first, last, by_feature, by_row, counts, n_counted, source, target, best, back):
    """Maxima of all rows, from the entries of two layers."""
    products, r = np.empty(target[1].shape[1]), np.empty(TARGETS)
    for feature in range(first, last):
        products[:] = 0
        add_products(feature, by_feature, by_row, products)
        _keep_whole(feature, counts[feature], n_counted, products, r, source, target, best, back)


@compiled()
@no_type_check
def split_maxima_of(first, last, summed, order, counts, n_counted, source, target, best, back):
    """`split_maxima` from sums of products [half, source, target]; `order` puts the targets that count first."""
    products, r = np.empty((3, order.size)), np.empty((3, TARGETS))
    for feature in range(first, last):
        products[1], products[2] = summed[0, feature][order], summed[1, feature][order]
        _keep_halves(feature, counts[feature], n_counted, products, r, source, target, best, back)


@compiled()
@no_type_check
def whole_maxima_of(first, last, summed, order, counts, n_counted, source, target, best, back):
    """`whole_maxima` from sums of products [1, source, target]."""
    r = np.empty(TARGETS)
    for feature in range(first, last):
        products = summed[0, feature][order]
        _keep_whole(feature, counts[feature], n_counted, products, r, source, target, best, back)


@compiled()
@no_type_check
def add_half_products(first, last, offset, part, parts, by_half, by_row, products):
    """products[i, j] += Σ x_i y_j over the rows of one half (of all rows where `parts` is 1)."""
    for feature in range(first, last):
        add_products(parts * feature + part, by_half, by_row, products[feature - offset])
