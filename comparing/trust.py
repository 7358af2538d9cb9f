"""How far a score can be trusted: floor, held-out score, interval, coverage, features beyond chance.

Everything here works on what the passes found, wherever that was computed.
"""

import itertools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

from comparing.clusters import Clusters
from comparing.found import Found, Influence, weighted
from comparing.influence import held_out
from comparing.results import Score

THRESHOLDS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7)  # of coverage
BANDS = (0, 10, 30, 100, 300, 1000, 3000, np.inf)  # of n_eff
NEIGHBOURS, FDR = 101, 0.05  # features that the null is smoothed over, and the discoveries' false share


def score(found: Sequence[Found], clusters: Clusters) -> Score:
    """The score of one direction and scope, over its source layers weighted by their widths."""
    value = averaged([weighted(one.matched.every, one.facts.total) for one in found], found)
    chance = [
        averaged([weighted(one.shuffled[p].every, one.facts.total) for one in found], found)
        for p in range(len(found[0].shuffled))
    ]
    floor = float(np.mean(chance)) if chance else None
    counts = [one for one in found if one.facts.weight.sum() > 0]
    if not counts:
        return Score(value, floor, adjusted(value, floor))
    influences = summed_influence(counts)
    shares = [coverage(one.matched.held_out, one.facts.weight) for one in counts]
    return Score(
        value,
        floor,
        adjusted(value, floor),
        averaged([held_out(one.matched, one.facts.total, one.facts.counted) for one in counts], counts),
        None if influences is None else influences.interval(clusters),
        {at: averaged([share[at] for share in shares], counts) for at in shares[0]},
        discovered_share(counts),
    )


def summed_influence(found: Sequence[Found]) -> Influence | None:
    """The influence on the score of several source layers; the difference of two such is a score's difference."""
    found = [one for one in found if one.facts.weight.sum() > 0]
    parts = [one.influence for one in found if one.influence is not None]
    if not parts or len(parts) < len(found):
        return None
    widths = np.array([len(one.facts.total) for one in found], float)
    total = parts[0].plus(parts[0], widths[0] / widths.sum() - 1)
    for part, width in zip(parts[1:], widths[1:], strict=True):
        total = total.plus(part, width / widths.sum())
    return total


def difference(
    first: Sequence[Found], second: Sequence[Found], clusters: Clusters
) -> tuple[float, tuple[float, float]]:
    """The held-out score of one direction less that of another on the same rows, and its 95 % interval."""
    one, other = summed_influence(first), summed_influence(second)
    if one is None or other is None:
        raise ValueError("a difference takes the influence of both scores")
    both = one.plus(other, -1.0)
    return float(both.held_out), both.interval(clusters)


def averaged(values: Sequence[float], found: Sequence[Found]) -> float:
    """The mean over source layers, by their widths; a layer without a value is left out."""
    widths = np.array([len(one.facts.total) for one in found], float)
    known = ~np.isnan(values)
    return float(np.average(np.array(values)[known], weights=widths[known])) if known.any() else float("nan")


def adjusted(value: float, floor: float | None) -> float | None:
    """(value - floor) / (1 - floor), not clipped: an index, no shared fraction; NaN at a floor of 1."""
    if floor is None:
        return None
    return (value - floor) / (1 - floor) if floor < 1 else float("nan")


def coverage(rho: Float[np.ndarray, " feature"], weight: Float[np.ndarray, " feature"]) -> dict[str, float]:
    """C(t): the share of the weight in features whose held-out correlation is at least t."""
    return {str(t): weighted((rho >= t).astype(float), weight) for t in THRESHOLDS}


def seed_reference(coverage: dict[str, float], seeds: dict[str, float], at: str = "0.3") -> float | None:
    """C_AB(.3) / C_BB'(.3): the share of what B's own other seed has; never clipped, None where B has nothing."""
    return coverage[at] / seeds[at] if seeds[at] > 0 else None


def attenuation(theta: float, own_source: float, own_target: float) -> float | None:
    """theta_AB / sqrt(theta_AA' theta_BB'), where both sides have seeds (Spearman); None where a seed has nothing."""
    return theta / float(np.sqrt(own_source * own_target)) if min(own_source, own_target) > 0 else None


def coverage_by_band(found: Found, at: float = 0.3) -> dict[str, float]:
    """C(at) of the features of each band of n_eff, "10-30" and so on; bands without weight are left out."""
    bands = {}
    for low, high in itertools.pairwise(BANDS):
        weight = np.where((found.facts.n_eff >= low) & (found.facts.n_eff < high), found.facts.weight, 0.0)
        if weight.sum() > 0:
            bands[f"{low}-{high}"] = weighted((found.matched.held_out >= at).astype(float), weight)
    return bands


# ------------------------------------------------------------------ features with a partner beyond chance


def discoveries(
    rho: Float[np.ndarray, " feature"],
    decoy: Float[np.ndarray, " feature"],
    null: Float[np.ndarray, " feature"],
    n_eff: Float[np.ndarray, " feature"],
    q: float = FDR,
) -> Bool[np.ndarray, " feature"]:
    """The features whose partner is beyond chance, at a false discovery rate of `q` (target-decoy competition).

    `decoy` and `null` are rho of two permutations: the first competes, the second tells the null's location and
    scale, smoothed over the features nearest in n_eff (Elias and Gygi 2007).
    """
    location, scale = smoothed(null, n_eff)
    target, decoy = (np.round((one - location) / scale, 9) for one in (rho, decoy))
    wins = target > decoy
    order = np.lexsort((wins, -np.maximum(target, decoy)))  # of equals the decoys first
    false = (1 + np.cumsum(~wins[order])) / np.maximum(1, np.cumsum(wins[order]))
    kept = np.flatnonzero(false <= q)
    found = np.zeros(len(rho), bool)
    if len(kept):
        found[order[: kept[-1] + 1]] = True
    return found & wins


def smoothed(
    values: Float[np.ndarray, " feature"], n_eff: Float[np.ndarray, " feature"]
) -> tuple[Float[np.ndarray, " feature"], Float[np.ndarray, " feature"]]:
    """Mean and standard deviation over the NEIGHBOURS features nearest in rank of n_eff."""
    order, n = np.argsort(n_eff, kind="stable"), len(values)
    width = min(NEIGHBOURS, n)
    first = np.clip(np.arange(n) - width // 2, 0, n - width)
    middle = values.mean() if n else 0.0
    sums = np.concatenate([[0], np.cumsum(values[order] - middle)])
    squares = np.concatenate([[0], np.cumsum((values[order] - middle) ** 2)])
    mean = (sums[first + width] - sums[first]) / max(width, 1)
    variance = (squares[first + width] - squares[first]) / max(width, 1) - mean**2
    location, scale = np.empty(n), np.empty(n)
    location[order], scale[order] = mean + middle, np.sqrt(np.maximum(variance, 1e-18))
    return location, scale


def discovered(found: Found) -> Bool[np.ndarray, " feature"] | None:
    """Which of a layer's features are discovered; None with fewer than two permutations."""
    if len(found.shuffled) < 2:
        return None
    is_discovered, count = np.zeros(len(found.facts.total), bool), found.facts.counted
    decoy, null = (one.rho[count] for one in found.shuffled[:2])
    is_discovered[count] = discoveries(found.matched.rho[0][count], decoy, null, found.facts.n_eff[count])
    return is_discovered


def discovered_share(found: Sequence[Found]) -> float | None:
    """The share of the features that count that are discovered."""
    counts = sum(int(one.facts.counted.sum()) for one in found)
    kept = [one for one in map(discovered, found) if one is not None]
    return sum(int(one.sum()) for one in kept) / counts if counts and len(kept) == len(found) else None
