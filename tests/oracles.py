"""Pearson as the README defines it, worked out slowly in numpy float64: what the fast ways have to agree with."""

import numpy as np


def pearson(x, y):
    """r float64 [source, target]: centred, population moments, 0 where a column is constant."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    sd_x, sd_y = (np.where(np.ptp(side, axis=0) > 0, side.std(0), np.inf) for side in (x, y))
    return (x - x.mean(0)).T @ (y - y.mean(0)) / len(x) / sd_x[:, None] / sd_y


def wmppc(source, target):
    """A layer's wMPPC by its formula, and rho float64 [feature]."""
    rho = pearson(source, target).max(axis=1)
    total = np.asarray(source, np.float64).sum(0)
    return (total * rho).sum() / total.sum(), rho
