"""Comparative Sharedness: which features of one run all runs of a group have, and no run of another group."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

import features
from comparing.scores import comparative_sharedness

PRESENT, ABSENT = 0.3, 0.2  # held-out r that a feature surely has in all of G, and surely has not in any of H
COUNTED = {  # of features, and the ranks of `Status` that they are
    "active often enough": (0, 1, 2, 3),
    "present in all of G": (0, 1),
    "absent in all of H": (0, 2),
    "both": (0,),
}


class Sharedness(NamedTuple):
    """Comparative Sharedness of every feature of a layer, best first.

    `feature` int [rank]: their numbers; `delta` and `total` (S, the summed activation) float64 [rank]; `rho`
    float64 [rank] by run: the highest correlation with a feature of that run.

    Where there are enough clusters of samples: `status`, "present, absent" or the run that breaks it, by which the
    features are ordered first; `held_out` and its standard `error` by run (the `other_seed`
    of the source too); `least`: the run of `min_group` that has least of it; `counts` of the features by status.
    """

    source: str
    layer: str
    min_group: list[str]
    max_group: list[str]
    feature: np.ndarray
    delta: np.ndarray
    total: np.ndarray
    rho: dict[str, np.ndarray]
    status: list[str] | None = None
    held_out: dict[str, np.ndarray] | None = None
    error: dict[str, np.ndarray] | None = None
    least: list[str] | None = None
    counts: dict[str, int] | None = None
    other_seed: str | None = None

    @property
    def share(self) -> np.ndarray:
        """S as a share of the layer's, float64 [rank]."""
        return self.total / max(self.total.sum(), np.finfo(float).tiny)

    @property
    def gap(self) -> np.ndarray:
        """Delta / S, the least rho² over G less the highest over H, float64 [rank]; 0 where S is."""
        return np.divide(self.delta, self.total, out=np.zeros(len(self.delta)), where=self.total > 0)


def sharedness(
    run: features.Run,
    min_group: Sequence[features.Run],
    max_group: Sequence[features.Run],
    layer: int = -1,
    present: float = PRESENT,
    absent: float = ABSENT,
) -> Sharedness:
    """Delta_i(M -> G, H) of every feature i of a run M: high where all runs of `min_group` G have it, and none of
    `max_group` H. `layer` is the same number in every run; negative ones count from the end.

    `present` and `absent`: the held-out correlation that a feature surely has, or surely has not, to be called so.
    """
    features.check_aligned([run, *min_group, *max_group])

    from comparing.clusters import FEWEST  # numba comes with these, and takes half a second
    from comparing.draws import Layer
    from comparing.halves import counted
    from comparing.per_feature import presences
    from comparing.reader import Reader
    from comparing.references import other_seed
    from comparing.sides import DEFAULTS, Sides

    seed = other_seed(run)
    others = {other.name: other for other in (*min_group, *max_group)}
    everyone = others | ({seed.name: seed} if seed is not None else {})
    own, sides = Layer(run, run.layer(layer)), Sides([run, *everyone.values()], Reader(), DEFAULTS)
    found = presences(
        own, {name: Layer(other, other.layer(layer)) for name, other in everyone.items()}, sides
    )
    total = sides.moments(own).total.sum(0)
    G, H = [other.name for other in min_group], [other.name for other in max_group]
    rho = {name: found[name].rho for name in others}
    delta = comparative_sharedness(table(rho, G), table(rho, H), total)
    bare = Sharedness(run.name, own.name, G, H, np.arange(len(delta)), delta, total, rho)
    if sides.clusters(run).n < FEWEST:
        return in_order(bare, np.argsort(-delta, kind="stable"))
    held, errors = ({name: one[at] for name, one in found.items()} for at in (0, 1))
    bare = bare._replace(held_out=held, error=errors, other_seed=None if seed is None else seed.name)
    return by_status(bare, counted(sides.moments(own), sides.options.min_active), present, absent)


def table(by_run: dict[str, np.ndarray], names: list[str]) -> np.ndarray:
    """The runs' values of every feature, float64 [run, feature]."""
    return np.array([by_run[name] for name in names])


def in_order(found: Sharedness, order: np.ndarray) -> Sharedness:
    """The arrays of `found` by rank; `order` int [rank] holds places in them."""

    def ranked(by_run: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {name: values[order] for name, values in by_run.items()}

    return found._replace(
        feature=found.feature[order],
        delta=found.delta[order],
        total=found.total[order],
        rho=ranked(found.rho),
        held_out=None if found.held_out is None else ranked(found.held_out),
        error=None if found.error is None else ranked(found.error),
    )


def by_status(found: Sharedness, enough: np.ndarray, present: float, absent: float) -> Sharedness:
    """Order features by their status, then Delta. `enough` bool [feature]: active often enough to tell."""
    from comparing.presence import RARE, sharedness_order, statuses

    G, H, held, errors = found.min_group, found.max_group, found.held_out or {}, found.error or {}
    told = statuses(table(held, G), table(errors, G), table(held, H), table(errors, H), G, H, present, absent)
    status = [one if counts else RARE for one, counts in zip(told, enough, strict=True)]
    order = sharedness_order(status, found.delta)
    least = np.array(G)[table(held, G).argmin(axis=0)][order]
    counts = {words: sum(one.rank in ranks for one in status) for words, ranks in COUNTED.items()}
    texts = [status[feature].text for feature in order]
    return in_order(found, order)._replace(status=texts, least=least.tolist(), counts=counts)
