"""Pearson as the README defines it, worked out slowly in numpy float64: what the fast ways have to agree with."""

import numpy as np


def pearson(x, y, weights=None):
    """r float64 [source, target]: centred, population moments, 0 where a column is constant on rows that count."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    weights = np.ones(len(x)) if weights is None else weights
    weights = weights / weights.sum()
    seen = weights > 0
    constant = [(side[seen] == side[seen][0]).all(0) for side in (x, y)]
    x, y = x - weights @ x, y - weights @ y
    sd_x, sd_y = (np.where(c, np.inf, np.sqrt(weights @ s**2)) for s, c in zip((x, y), constant, strict=True))
    return (x * weights[:, None]).T @ y / sd_x[:, None] / sd_y


def wmppc(source, target):
    """A layer's wMPPC by its formula, and rho float64 [feature]."""
    rho = pearson(source, target).max(axis=1)
    total = np.asarray(source, np.float64).sum(0)
    return (total * rho).sum() / total.sum(), rho
