"""What drives a score: dense features, hubs, mutual partners, heavy tails, strata of the samples."""

import functools
from typing import no_type_check

import numpy as np
from jaxtyping import Bool

from comparing.clusters import FLOOR_SEED, Clusters
from comparing.codes import Codes, Entries
from comparing.found import Found, Matched, Shuffled, weighted
from comparing.halves import Moments, Side
from comparing.heldout import matched, shuffled
from comparing.results import Drivers, Nuisance
from plumbing.compiled import compiled

DENSE = (0.1, 0.5)  # shares of rows, above which a feature counts as dense
SAMPLE, SAMPLE_LEAST = 0.05, 200  # of the sources, for what is only printed beside a score


def square_root(codes: Codes) -> Codes:
    """sqrt(x): what heavy-tailed activations are compared by (`--transform sqrt`)."""
    return Codes(np.sqrt(codes.matrix) if isinstance(codes.matrix, np.ndarray) else codes.matrix.sqrt())


class Rooted(Side):
    """A Side of sqrt(x), its layout taken over from that of x; what a pass does not ask for is not made."""

    def __init__(self, side: Side):
        super().__init__(side.codes, side.half, side.min_active)
        self.side, self.rows, self.order = side, side.rows, side.order

    @functools.cached_property
    def codes(self) -> Codes:
        return square_root(self.side.codes)

    @functools.cached_property
    def moments(self) -> Moments:
        return Moments.of_entries(self.side.by_half, self.half, root=True)

    @functools.cached_property
    def by_half(self) -> Entries:
        return _rooted(self.side.by_half)

    @functools.cached_property
    def by_row(self) -> Entries:
        return _rooted(self.side.by_row)


def _rooted(layout: Entries) -> Entries:
    found = np.empty_like(layout[1])
    _take_roots(layout[1], found)
    return layout[0], found


@compiled()
@no_type_check
def _take_roots(entries, found):
    for entry in range(entries.size):
        found[entry].index, found[entry].value = entries[entry].index, np.sqrt(entries[entry].value)


def drivers(forward: Found, backward: Found, clusters: Clusters) -> Drivers:
    """What drives the score of one source layer against one target layer."""
    return Drivers(
        {str(share): _dense(forward, share) for share in DENSE},
        hubs(forward.matched.match[0][forward.facts.counted], backward.facts.counted),
        mutual(forward.matched.match[0], backward.matched.match[0], forward.facts.counted),
        clusters.n,
        int(clusters.sizes.max(initial=0)),
    )


def _dense(found: Found, share: float) -> tuple[float, float]:
    is_dense, total = found.facts.active > share, found.facts.total
    without = np.where(is_dense, 0.0, total)
    return weighted(is_dense.astype(float), total), weighted(found.matched.every, without)


def hubs(match: np.ndarray, targets: Bool[np.ndarray, " target"]) -> float:
    """The share of sources whose partner is among the 1 % most chosen of the targets that count."""
    chosen = match[match >= 0]
    if not len(chosen):
        return float("nan")
    often = np.sort(np.bincount(chosen, minlength=len(targets))[targets])[::-1]
    return float(often[: max(1, round(len(often) / 100))].sum() / len(chosen))


def mutual(match: np.ndarray, back: np.ndarray, counts: Bool[np.ndarray, " source"]) -> float:
    """The share of sources that are their partner's partner."""
    own = np.flatnonzero(counts & (match >= 0))
    return float((back[match[own]] == own).mean()) if len(own) else float("nan")


def nuisance(source: Side, target: Side, found: Found, within: np.ndarray | None = None) -> Nuisance:
    """`nuisance_of` two layers in memory; `within` is `permutation` with strata, `found` what their passes found."""
    chosen = sampled(found.facts.counted)
    few = source.columns(chosen)
    roots = [Rooted(side) for side in (few, target)]
    by_strata = None if within is None else shuffled(few, target, within)[0]
    return nuisance_of(found, chosen, by_strata, matched(*roots, both=False)[0], roots[0].total)


def nuisance_of(
    found: Found, chosen: np.ndarray, by_strata: Shuffled | None, roots: Matched, root_total: np.ndarray
) -> Nuisance:
    """Floors within strata and the score of sqrt(x), of the `chosen` source features against all targets.

    `by_strata` are the maxima of rows that were permuted within strata; `roots` and `root_total` are the partners
    and S of sqrt(x).
    """
    weight = found.facts.total[chosen]
    return Nuisance(
        float(np.mean([weighted(one.every[chosen], weight) for one in found.shuffled])),
        None if by_strata is None else weighted(by_strata.every, weight),
        weighted(found.matched.held_out[chosen], weight),
        weighted(roots.held_out, root_total),
        len(chosen),
    )


def sampled(counts: Bool[np.ndarray, " feature"]) -> np.ndarray:
    """A random sample of the features that count, ascending: SAMPLE of them, and at least SAMPLE_LEAST."""
    features = np.flatnonzero(counts)
    size = min(len(features), max(SAMPLE_LEAST, round(SAMPLE * len(features))))
    return np.sort(np.random.default_rng(FLOOR_SEED).choice(features, size, replace=False))
