"""Standard errors of held-out scores from influence functions: no resampling, and clusters of rows respected.

The influence of row n on theta = Σ mu_i r_i / Σ mu_i, partners fixed, is
`IF_n = [Σ_i mu_i (z_ni w_ni - r_i (z_ni² + w_ni²) / 2) + Σ_i (x_ni - mu_i)(r_i - theta)] / Σ_i mu_i`,
z and w the standardised x_i and y_m(i) (the infinitesimal jackknife). What inactive
entries add is the same in all rows, so a row costs as much as it has entries.
"""

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, no_type_check

import numpy as np
import scipy.sparse
from jaxtyping import Float

from comparing.clusters import Clusters
from comparing.codes import Codes, Matrix, as_codes
from comparing.found import Influence, Matched
from comparing.halves import MIN_ACTIVE, Moments, Side, Spread, counted
from plumbing.compiled import compiled


class Terms(NamedTuple):
    """One part's influence as a polynomial of the stored activations, float64 [feature]:

    `constant + Σ_i (line x_i + square x_i² + cross x_i y_match) + Σ_j (other_line y_j + other_square y_j²)`.
    `match` is -1 for a feature without a partner.
    """

    constant: float
    line: np.ndarray
    square: np.ndarray
    match: np.ndarray
    cross: np.ndarray
    other_line: np.ndarray
    other_square: np.ndarray


def terms(
    source: Spread,
    target: Spread,
    part: int,
    match: np.ndarray,
    r: np.ndarray,
    counts: np.ndarray,
) -> Terms:
    """The influence on the score of one part (0: all rows, 1 and 2: the halves), the target's layers joined.

    `match` and `r` [feature] are the partners, and their correlations on the part; features that do not
    count (`counts`) have no weight.
    """
    has, partner = match >= 0, np.maximum(match, 0)
    mu = np.where(counts, source.mean[part], 0.0)
    weight = mu / mu.sum() if mu.sum() > 0 else mu
    r = np.where(has, r, 0.0)
    theta = weight @ r
    a, b = (
        np.where(has, scale, 0.0) for scale in (source.inverse_sd[part], target.inverse_sd[part][partner])
    )
    z, w = -source.mean[part] * a, -target.mean[part][partner] * b  # what inactive entries are, standardised
    above = np.where(counts, r - theta, 0.0) / (mu.sum() or 1.0)
    width = target.mean.shape[1]
    return Terms(
        float(weight @ (z * w - r * (z**2 + w**2) / 2) - above @ source.mean[part]),
        weight * a * (w - r * z) + above,
        -weight * r * a**2 / 2,
        np.where(has, match, -1),
        weight * a * b,
        np.bincount(partner, weight * b * (z - r * w), width),
        np.bincount(partner, -weight * r * b**2 / 2, width),
    )


def add_influence(
    parts: Sequence[Terms],
    source: Codes,
    target: Codes,
    start: int,
    half: np.ndarray,
    full: Float[np.ndarray, " row"],
    halves: Float[np.ndarray, " row"],
):
    """Add the influence of a block of rows on the whole (`parts[0]`) to `full`, on the row's own half to `halves`.

    `target` is one target layer, whose features are numbered from `start` on; the first layer brings what does not
    hang on partners.
    """
    line, square, match, cross, other_line, other_square = map(np.stack, list(zip(*parts, strict=True))[1:])
    if start == 0:
        constants = np.array([part.constant for part in parts])
        full += constants[0]
        halves += constants[1:][half]
    layer = slice(start, start + target.n_features)
    here = np.where((match >= layer.start) & (match < layer.stop), match - start, target.n_features)
    own = _beside(line * (start == 0), square * (start == 0), cross)
    other = _beside(other_line[:, layer], other_square[:, layer])
    held = np.zeros(target.n_features + 1)  # the last for features without a partner
    _add_rows(source.csr, target.csr, half, own, _beside(here), other, held, full, halves)


def _beside(*arrays: np.ndarray) -> np.ndarray:
    """Arrays [part, feature] as one [half, feature, 2 x array]: what a row needs of a feature, of the whole and of its half."""
    stacked = np.stack(arrays, axis=-1)
    return np.stack([np.concatenate([stacked[0], stacked[part]], axis=-1) for part in (1, 2)])


def influence(source: Side, targets: Sequence[Side], found: Matched) -> Influence:
    """The influence of every row on the held-out score of a source layer over a target's layers.

    `found` is `matched` of them (with several target layers, merged).
    """
    layers = ([(source.codes, side.codes)] for side in targets)
    moments = [side.moments for side in targets]
    return influence_of_blocks(layers, source.half, source.moments, moments, found, source.min_active)


def influence_of_blocks(
    layers: Iterable[Iterable[tuple[Matrix | Codes, Matrix | Codes]]],
    half: np.ndarray,
    source: Moments,
    targets: Sequence[Moments],
    found: Matched,
    min_active: int = MIN_ACTIVE,
    start: int = 0,
) -> Influence:
    """The same of rows that are read in blocks: for each target layer the source's and the layer's rows.

    The moments are of all rows. A process that reads the rows from `start` on gets the influence of these; the
    other rows' is 0, so that processes add up.
    """
    own, counts = source.spread(), counted(source, min_active)
    other = joined([one.spread() for one in targets])
    parts = [
        terms(own, other, 0, found.match[0], found.rho[0], counts),
        terms(own, other, 1, found.match[2], found.crossed[1], counts),  # the other half's partners
        terms(own, other, 2, found.match[1], found.crossed[0], counts),
    ]
    halves, full, first = np.zeros(len(half)), np.zeros(len(half)), 0
    for blocks, moments in zip(layers, targets, strict=True):
        reached = start
        for x, y in blocks:
            x, y = as_codes(x), as_codes(y)
            rows = slice(reached, reached + x.n_rows)
            add_influence(parts, x, y, first, half[rows], full[rows], halves[rows])
            reached = rows.stop
        first += moments.total.shape[1]
    halves /= 2 * np.maximum(own.n[1:], 1)[half]
    return Influence(held_out(found, source.total.sum(0), counts), halves, full / max(own.n[0], 1))


def held_out(found: Matched, total: np.ndarray, counts: np.ndarray) -> float:
    """theta: the held-out correlations of the features that count, weighted by S; NaN where none does."""
    weight = np.where(counts, total, 0.0)
    return float(weight @ found.held_out / weight.sum()) if weight.sum() > 0 else float("nan")


def joined(spreads: Sequence[Spread]) -> Spread:
    """The spreads of several layers, their features numbered on."""
    return Spread(
        spreads[0].n, *(np.concatenate(each, axis=1) for each in list(zip(*spreads, strict=True))[1:])
    )


def feature_errors(
    source: Side, targets: Sequence[Side], found: Matched, clusters: Clusters
) -> Float[np.ndarray, " feature"]:
    """The standard error of each feature's held-out correlation, by cluster."""
    squares, start, ids = np.zeros(source.n_features), 0, clusters.ids[source.rows]
    for target in targets:
        for part, other in ((1, 2), (2, 1)):
            sizes = np.bincount(clusters.ids[source.half == part - 1], minlength=clusters.n).astype(float)
            match = found.match[other]
            here = np.where((match >= start) & (match < start + target.n_features), match - start, -1)
            spreads = [(side.spread.mean[part], side.spread.inverse_sd[part]) for side in (source, target)]
            fixed = (source.by_half, target.by_half, here, found.crossed[other - 1], *spreads)
            _add_squares(part - 1, *fixed, ids, sizes, max(source.spread.n[part], 1.0), squares)
        start += target.n_features
    return np.sqrt(squares) / 2


def streamed_feature_errors(
    source: Callable[[], Iterable[Matrix]],
    targets: Sequence[Callable[[], Iterable[Matrix]]],
    half: np.ndarray,
    found: Matched,
    clusters: Clusters,
    width: int,
) -> Float[np.ndarray, " feature"]:
    """`feature_errors` of layers that are read in blocks: `width` features and their partners are held at a time.

    `source()` and each of `targets` start a reading: sparse blocks [row, feature], all rows in order.
    """
    widths = [next(iter(read())).shape[1] for read in targets]
    starts, errors = np.cumsum([0, *widths]), []
    for first in range(0, found.match.shape[1], width):
        features = np.arange(first, min(first + width, found.match.shape[1]))
        few = found.take(features)
        wanted = np.unique(few.match[few.match >= 0])
        place = np.where(few.match >= 0, np.searchsorted(wanted, few.match), -1)
        layers = [wanted[(wanted >= a) & (wanted < b)] - a for a, b in itertools.pairwise(starts)]
        sides = [Side(_columns(source, features), half)]
        sides += [Side(_columns(read, layer), half) for read, layer in zip(targets, layers, strict=True)]
        errors.append(feature_errors(sides[0], sides[1:], few._replace(match=place), clusters))
    return np.concatenate(errors)


def _columns(read: Callable[[], Iterable[Matrix]], features: np.ndarray) -> scipy.sparse.csr_array:
    return scipy.sparse.vstack([scipy.sparse.csr_array(block)[:, features] for block in read()], format="csr")


# -------------------------------------------------------------------------------------------- compiled loops


@compiled()
@no_type_check
def _add_rows(x, y, half, own, match, other, held, full, halves):
    """`held` float64 [target + 1] is 0: a row of the target's is put there, and taken out again."""
    starts, features, values = x
    other_starts, other_features, other_values = y
    for row in range(full.size):
        h, whole, part = half[row], 0.0, 0.0
        for entry in range(other_starts[row], other_starts[row + 1]):
            j, value = np.uint64(other_features[entry]), np.float64(other_values[entry])
            held[j] = value
            whole += value * (other[h, j, 0] + other[h, j, 1] * value)
            part += value * (other[h, j, 2] + other[h, j, 3] * value)
        for entry in range(starts[row], starts[row + 1]):
            i, value = np.uint64(features[entry]), np.float64(values[entry])
            whole += value * (own[h, i, 0] + own[h, i, 1] * value + own[h, i, 2] * held[match[h, i, 0]])
            part += value * (own[h, i, 3] + own[h, i, 4] * value + own[h, i, 5] * held[match[h, i, 1]])
        full[row] += whole
        halves[row] += part
        for entry in range(other_starts[row], other_starts[row + 1]):
            held[np.uint64(other_features[entry])] = 0.0


@compiled()
@no_type_check
def _add_squares(half, x_by_half, y_by_half, match, r, x, y, cluster, sizes, n, squares):
    """squares[i] += Σ over clusters of (Σ of z w - r (z² + w²) / 2 over a cluster's rows)², over n²."""
    x_starts, x_entries = x_by_half
    y_starts, y_entries = y_by_half
    held, sums, seen = np.zeros(cluster.size), np.zeros(sizes.size), np.full(sizes.size, -1)
    all_squared = np.sum(sizes * sizes)
    for i in range(match.size):
        if match[i] < 0:
            continue
        j = match[i]
        a, b = x[1][i], y[1][j]
        z, w = -x[0][i] * a, -y[0][j] * b
        constant = z * w - r[i] * (z * z + w * w) / 2
        first, last = x_starts[2 * i + half], x_starts[2 * i + half + 1]
        y_first, y_last = y_starts[2 * j + half], y_starts[2 * j + half + 1]
        for entry in range(first, last):
            scaled, row = a * np.float64(x_entries[entry].value), x_entries[entry].index
            held[row] = scaled
            sums[cluster[row]] += scaled * (w - r[i] * z) - r[i] * scaled * scaled / 2
        for entry in range(y_first, y_last):
            scaled, row = b * np.float64(y_entries[entry].value), y_entries[entry].index
            own = scaled * (z - r[i] * w) - r[i] * scaled * scaled / 2
            sums[cluster[row]] += own + scaled * held[row]
        total, untouched = 0.0, all_squared
        for entries, start, stop in ((x_entries, first, last), (y_entries, y_first, y_last)):
            for entry in range(start, stop):
                c = cluster[entries[entry].index]
                if seen[c] != i:
                    total += (sums[c] + constant * sizes[c]) ** 2
                    untouched -= sizes[c] * sizes[c]
                    sums[c], seen[c] = 0.0, i
        for entry in range(first, last):
            held[x_entries[entry].index] = 0.0
        squares[i] += (total + constant * constant * untouched) / (n * n)
