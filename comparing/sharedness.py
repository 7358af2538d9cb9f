"""Comparative Sharedness: which features of one run all runs of a group have, and no run of another group."""

from typing import Any, NamedTuple

import numpy as np


class Sharedness(NamedTuple):
    """Comparative Sharedness of every feature of a layer, best first.

    `feature` int [rank]: their numbers; `delta` and `total` (S, the summed activation) float64 [rank]; `rho`
    float64 [rank] by run: the highest correlation with a feature of that run.
    """

    source: str
    layer: str
    min_group: list[str]
    max_group: list[str]
    feature: np.ndarray
    delta: np.ndarray
    total: np.ndarray
    rho: dict[str, np.ndarray]


def sharedness(source: Any, min_group: list[Any], max_group: list[Any], layer: int = -1) -> Sharedness:
    """Delta_i(M -> G, H) of every feature of the source's layer, the same layer number in every run."""
    from comparing import comparison, results
    from comparing import reader as reader_module
    from comparing.scores import comparative_sharedness

    others = {run.name: run for run in (*min_group, *max_group)}
    own = source.layer(layer)
    cells = [results.Cell(source, own, run, run.layer(layer)) for run in others.values()]
    reader = reader_module.Reader()
    rho = {name: forward for name, (forward, _) in zip(others, comparison.rho_of(cells, reader), strict=True)}
    total = reader.sums(source, own).total
    names = [[run.name for run in group] for group in (min_group, max_group)]
    delta = comparative_sharedness(*(np.array([rho[name] for name in group]) for group in names), total)
    order = np.argsort(-delta, kind="stable")
    ranked = {name: values[order] for name, values in rho.items()}
    return Sharedness(source.name, own, *names, order, delta[order], total[order], ranked)
