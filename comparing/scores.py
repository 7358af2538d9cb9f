"""The scores of a pair of runs: wMPPC, MPPC and Comparative Sharedness (arXiv 2507.18512)."""

import numpy as np
from jaxtyping import Float, Int


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
