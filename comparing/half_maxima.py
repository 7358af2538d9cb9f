"""Compiled loops that turn a source feature's products into correlations and keep both sides' maxima.

They take slices that begin at 0: an index that might be negative keeps a loop from being vectorised. `source` and
`target` are each a Spread as a tuple; `best` and `back` are the Matched or Shuffled of the source and the target, as
tuples too: numba's cache on disk would name their class, and fail once it is moved.
"""

from typing import no_type_check

import numpy as np

from comparing.found import TIE
from comparing.pearson import add_products
from plumbing.compiled import compiled

TARGETS = 2048  # target features whose correlations with a source feature are worked out at once: they stay in the cache
np.empty(0), np.empty(0, np.int64)


@compiled(fastmath={"nnan", "nsz", "contract"})
@no_type_check
def highest_of(r):
    highest = -2.0
    for j in range(r.size):
        highest = max(highest, r[j])
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
        floor[j] = max(floor[j], r[j])


@compiled(fastmath={"nnan", "nsz", "contract"})
@no_type_check
def _most_above(r, rho):
    above = -4.0
    for j in range(r.size):
        above = max(above, r[j] - rho[j])
    return above


@compiled()
@no_type_check
def _keep_back(feature, r, other, rho, match, crossed):
    """The targets' best sources; `other` is r on the other half, kept where this source is the best so far."""
    if _most_above(r, rho) > TIE:  # seldom, and found out at once for many targets
        for j in range(r.size):
            if r[j] > rho[j] + TIE:
                rho[j], match[j] = r[j], feature
                if crossed.size:
                    crossed[j] = other[j]


@compiled()
@no_type_check
def _keep_split(feature, counts, n_counted, products, r, source, target, best, back):
    """One source feature's products of both halves as correlations: its own maxima, and the targets'."""
    n, mean, inverse_sd = source
    _, t_mean, t_inverse_sd = target
    best_rho, best_match, best_crossed, best_every = best
    back_rho, back_match, back_crossed, back_every = back
    for first in range(0, products.shape[1], TARGETS):
        last = min(first + TARGETS, products.shape[1])
        counted = min(max(n_counted - first, 0), last - first) if counts else 0
        whole, one, two = products[0, first:last], products[1, first:last], products[2, first:last]
        for j in range(whole.size):
            whole[j] = one[j] + two[j]
        for part in range(3 if counted else 1):
            stats, out = (t_mean[part, first:last], t_inverse_sd[part, first:last]), r[part, : last - first]
            own = n[part], mean[part, feature], inverse_sd[part, feature]
            to_r(products[part, first:last], *own, *stats, out)
        best_every[feature] = max(best_every[feature], highest_of(r[0, : last - first]))
        _raise_floor(r[0, counted : last - first], back_every[first + counted : last])
        for part in range(3 if counted else 0):
            highest = highest_of(r[part, :counted]) if inverse_sd[part, feature] > 0 else -2.0
            if highest > best_rho[part, feature] + TIE:
                place = first_at(r[part, :counted], highest - TIE)
                best_rho[part, feature], best_match[part, feature] = highest, first + place
                if part:
                    best_crossed[part - 1, feature] = r[3 - part, place]
            cross = back_crossed[max(part - 1, 0), first : first + counted if part else first]
            own_back = back_rho[part, first : first + counted], back_match[part, first : first + counted]
            _keep_back(feature, r[part, :counted], r[3 - part if part else 0, :counted], *own_back, cross)


@compiled()
@no_type_check
def _keep_whole(feature, counts, n_counted, products, r, source, target, best, back):
    """The same of all rows alone, and of no partners: what a permuted pass keeps."""
    n, mean, inverse_sd = source
    _, t_mean, t_inverse_sd = target
    (best_rho, best_every), (back_rho, back_every) = best, back
    for first in range(0, products.size, TARGETS):
        last = min(first + TARGETS, products.size)
        counted = min(max(n_counted - first, 0), last - first)
        stats, out = (t_mean[0, first:last], t_inverse_sd[0, first:last]), r[: last - first]
        to_r(products[first:last], n[0], mean[0, feature], inverse_sd[0, feature], *stats, out)
        highest = highest_of(out[:counted])
        best_every[feature] = max(best_every[feature], highest, highest_of(out[counted:]))
        _raise_floor(out[counted:], back_every[first + counted : last])
        _raise_floor(out[:counted], (back_rho if counts else back_every)[first : first + counted])
        if counts and inverse_sd[0, feature] > 0:
            best_rho[feature] = max(best_rho[feature], highest)


@compiled()
@no_type_check
def split_maxima(first, last, by_half, by_row, counts, n_counted, source, target, best, back):
    """Maxima of all rows and of both halves, from the entries of two layers."""
    products, r = np.zeros((3, target[1].shape[1])), np.empty((3, TARGETS))
    for feature in range(first, last):
        products[1:] = 0
        add_products(2 * feature, by_half, by_row, products[1])
        add_products(2 * feature + 1, by_half, by_row, products[2])
        _keep_split(feature, counts[feature], n_counted, products, r, source, target, best, back)


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
        _keep_split(feature, counts[feature], n_counted, products, r, source, target, best, back)


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
