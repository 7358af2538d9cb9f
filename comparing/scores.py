"""The scores of a pair of runs: wMPPC, MPPC, Comparative Sharedness (arXiv 2507.18512), and older ones.

The older ones stand beside ours on the same samples, since a score shown alone says little: one-to-one
matching, linear CKA, and the overlap of nearest neighbours.
"""

from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

KNN_ROWS = 256  # rows whose similarities with all others are held at once


def wmppc(rho: Float[np.ndarray, " feature"], total: Float[np.ndarray, " feature"]) -> float:
    """Σ S_i rho_i / Σ S_i, with `total` = S, the features' summed activations; NaN where none ever fired."""
    return float(total @ rho / total.sum()) if total.sum() > 0 else float("nan")


def mppc(rho: Float[np.ndarray, " feature"], total: Float[np.ndarray, " feature"]) -> float:
    """The plain mean of rho over live features (Wang et al., arXiv 2410.06672); NaN where none is live."""
    return float(rho[total > 0].mean()) if (total > 0).any() else float("nan")


def over_layers(scores: Float[np.ndarray, " layer"], features: Int[np.ndarray, " layer"]) -> float:
    """The layers' mean score, weighted by their feature counts; a layer with no live feature has no score."""
    scored = ~np.isnan(scores)
    return float(np.average(scores[scored], weights=features[scored])) if scored.any() else float("nan")


def comparative_sharedness(
    rho_G: Float[np.ndarray, "min_group feature"],
    rho_H: Float[np.ndarray, "max_group feature"],
    total: Float[np.ndarray, " feature"],
) -> Float[np.ndarray, " feature"]:
    """Comparative Sharedness: S_i (min over G of rho_i² - max over H of rho_i²), a negative rho being 0."""
    shared, elsewhere = (np.maximum(rho, 0) ** 2 for rho in (rho_G, rho_H))
    return total * (shared.min(axis=0) - elsewhere.max(axis=0))


def hungarian(
    correlations: Float[np.ndarray, "source target"],
    live_source: Bool[np.ndarray, " source"],
    live_target: Bool[np.ndarray, " target"],
) -> float:
    """The mean correlation of a one-to-one matching of live features, the matching that makes it highest.

    Every feature of the side with fewer live ones gets a partner of its own: no target serves two sources (Li
    et al., Convergent Learning, arXiv 1511.07543). NaN where a side has no live feature.
    """
    from scipy.optimize import linear_sum_assignment

    among = correlations[live_source][:, live_target]
    return float(among[linear_sum_assignment(among, maximize=True)].mean()) if among.size else float("nan")


def linear_cka(
    cross: Float[np.ndarray, "source target"],
    own_source: Float[np.ndarray, "source source"],
    own_target: Float[np.ndarray, "target target"],
) -> float:
    """‖cov(X, Y)‖² / (‖cov(X, X)‖ ‖cov(Y, Y)‖), Frobenius norms (Kornblith et al., arXiv 1905.00414).

    1 for runs that are rotations or uniform scalings of each other. The covariances are of features, centred.
    NaN where a side does not vary.
    """
    scale = np.linalg.norm(own_source) * np.linalg.norm(own_target)
    return float(np.linalg.norm(cross) ** 2 / scale) if scale > 0 else float("nan")


def mutual_knn(source: Any, target: Any, k: int) -> float:
    """The mean share of each sample's `k` nearest neighbours in one run that are so in the other too.

    Both sides are scipy sparse or numpy [row, feature], of the same rows (Huh et al., The Platonic Representation
    Hypothesis, arXiv 2405.07987). By chance it is k / (rows - 1). Neighbours that are equally near share the
    places left (see `nearness`), each side's independently of the other's: so it is the expected overlap of two
    independent draws among them, whatever the order of the rows, and rows without activations agree by chance.
    """
    sides, n = [_unit(source), _unit(target)], source.shape[0]
    shared = 0.0
    for start in range(0, n, KNN_ROWS):  # a block of similarities at a time, never all pairs
        own, other = (nearness(unit, slice(start, min(start + KNN_ROWS, n)), k) for unit in sides)
        shared += float((own * other).sum())
    return shared / (n * k)


def nearness(unit: Any, rows: slice, k: int) -> Float[np.ndarray, "chosen row"]:
    """How far each row is among the `k` nearest other ones of some rows: 1 or 0, and for those at an equal
    distance at the last places m/t, where t of them have m places. Each row's sum is `k`.

    `unit` holds rows of length 1 or 0. Similarities are told apart to six decimals, which float32 keeps.
    """
    similarity = unit[rows] @ unit.T
    similarity = similarity if isinstance(similarity, np.ndarray) else similarity.toarray()
    similarity = np.round(similarity, 6)
    similarity[np.arange(len(similarity)), np.arange(rows.start, rows.stop)] = -np.inf
    last = -np.partition(-similarity, k - 1, axis=1)[:, k - 1 : k]
    nearer, equal = similarity > last, similarity == last
    places = k - nearer.sum(axis=1, keepdims=True)
    return nearer + equal * (places / equal.sum(axis=1, keepdims=True))


def _unit(codes: Any) -> Any:
    """Rows of length 1, float32; a row without any activation stays 0, and is similar to none."""
    import scipy.sparse

    codes = scipy.sparse.csr_array(codes, dtype=np.float64)
    norms = np.sqrt(codes.multiply(codes).sum(axis=1))
    unit = scipy.sparse.csr_array(codes.multiply(1 / np.where(norms > 0, norms, 1.0)[:, None]))
    unit = unit.astype(np.float32)
    dense = unit.nnz > 0.05 * np.prod(unit.shape)  # then a dense product is faster
    return unit.toarray() if dense else unit
