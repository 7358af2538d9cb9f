"""The scores of a pair of runs: wMPPC, MPPC, Comparative Sharedness (arXiv 2507.18512), and older ones.

The older ones stand beside ours on the same samples, since a score shown alone says little: one-to-one
matching, linear CKA, and the overlap of nearest neighbours.
"""

from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int


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


def sharedness(
    rho_G: Float[np.ndarray, "min_group feature"],
    rho_H: Float[np.ndarray, "max_group feature"],
    total: Float[np.ndarray, " feature"],
) -> Float[np.ndarray, " feature"]:
    """Comparative Sharedness: S_i (min over G of rho_i² - max over H of rho_i²), a negative rho being 0."""
    shared, elsewhere = (np.maximum(rho, 0) ** 2 for rho in (rho_G, rho_H))
    return total * (shared.min(axis=0) - elsewhere.max(axis=0))


# ------------------------------------------------------------------------------------------- older scores


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


def neighbours(codes: Any, k: int) -> Int[np.ndarray, "row k"]:
    """Each row's `k` nearest other rows by cosine similarity, in no order.

    `codes` is scipy sparse or numpy [row, feature]. A row without any activation is similar to none.
    """
    import scipy.sparse

    codes = scipy.sparse.csr_array(codes, dtype=np.float32)
    norms = np.sqrt(codes.multiply(codes).sum(axis=1))
    unit = scipy.sparse.csr_array(codes.multiply(1 / np.maximum(norms, np.finfo(np.float32).tiny)[:, None]))
    unit = (
        unit.toarray() if codes.nnz > 0.05 * np.prod(codes.shape) else unit
    )  # then a dense product is faster
    found = np.empty((codes.shape[0], k), np.int64)
    for start in range(0, codes.shape[0], 256):  # a block of similarities at a time, never all pairs
        similarity = unit[start : start + 256] @ unit.T
        similarity = similarity.toarray() if scipy.sparse.issparse(similarity) else similarity
        similarity[np.arange(len(similarity)), start + np.arange(len(similarity))] = -1
        found[start : start + 256] = np.argpartition(-similarity, k - 1, axis=1)[:, :k]
    return found


def mutual_knn(source: Int[np.ndarray, "row k"], target: Int[np.ndarray, "row k"]) -> float:
    """The mean share of each sample's `k` nearest neighbours in one run that are so in the other too.

    Takes what `neighbours` gives (Huh et al., The Platonic Representation Hypothesis, arXiv 2405.07987). By
    chance it is k / (rows - 1).
    """
    shared = (source[:, :, None] == target[:, None, :]).any(axis=2)
    return float(shared.mean())
