"""Which features have a partner beyond chance: competition with the partners that permuted rows give."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

from comparing.found import Found

NEIGHBOURS, FDR = 101, 0.05  # features that the null is smoothed over, and the discoveries' false share


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
