"""Comparative Sharedness: which features of one run all runs of a group have, and no run of another group."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

import features
from comparing.scores import comparative_sharedness


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


def sharedness(
    run: features.Run, min_group: Sequence[features.Run], max_group: Sequence[features.Run], layer: int = -1
) -> Sharedness:
    """Delta_i(M -> G, H) of every feature i of a run M: high where all runs of `min_group` G have it, and none of
    `max_group` H. `layer` is the same number in every run; negative ones count from the end.
    """
    features.check_aligned([run, *min_group, *max_group])

    from comparing.comparison import rho_of  # numba comes with it, and takes half a second
    from comparing.draws import Cell, Layer
    from comparing.reader import Reader

    others = {other.name: other for other in (*min_group, *max_group)}
    own, reader = Layer(run, run.layer(layer)), Reader()
    cells = [Cell(own, Layer(other, other.layer(layer))) for other in others.values()]
    rho = {name: forward for name, (forward, _) in zip(others, rho_of(cells, reader), strict=True)}
    total = reader.sums(own).total
    G, H = [other.name for other in min_group], [other.name for other in max_group]
    in_G, in_H = (np.array([rho[name] for name in group]) for group in (G, H))
    delta = comparative_sharedness(in_G, in_H, total)
    order = np.argsort(-delta, kind="stable")
    ranked = {name: values[order] for name, values in rho.items()}
    return Sharedness(run.name, own.name, G, H, order, delta[order], total[order], ranked)
