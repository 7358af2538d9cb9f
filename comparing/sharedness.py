"""Comparative Sharedness: which features of one run all runs of a group have, and no run of another group."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Float

import features
from comparing.scores import comparative_sharedness

if TYPE_CHECKING:
    from comparing.per_feature import Presence
    from comparing.sides import Sides

PRESENT, ABSENT = 0.3, 0.2  # held-out r that a feature surely has in all of G, and surely has not in any of H
ONE_SIDED_95 = 1.645  # standard errors that make it sure
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
    thresholds: tuple[float, float] | None = (
        None  # held-out r from which a feature is present, and up to which absent
    )

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
    own: tuple[str, ...] | None = None,
) -> Sharedness:
    """Delta_i(M -> G, H) of every feature i of a run M: high where all runs of `min_group` G have it, and none of
    `max_group` H. `layer` is the same number in every run; negative ones count from the end.

    `present` and `absent`: the held-out r that a feature surely has, or has not; `own`: the user's cluster of each row.
    """
    features.check_aligned([run, *min_group, *max_group])

    from comparing.draws import Layer  # numba comes with these, and takes half a second
    from comparing.halves import tellable
    from comparing.per_feature import any_counted, presences
    from comparing.reader import Reader
    from comparing.references import note, other_seed
    from comparing.sides import DEFAULTS, Sides

    seed = other_seed(run)
    others = {other.name: other for other in (*min_group, *max_group)}
    everyone = others | ({seed.name: seed} if seed is not None else {})
    source, options = Layer(run, run.layer(layer)), DEFAULTS._replace(own=own)
    sides = Sides([run, *everyone.values()], Reader(), options)
    targets = {name: Layer(other, other.layer(layer)) for name, other in everyone.items()}
    found = presences(source, targets, sides)
    total = sides.moments(source).total.sum(0)
    enough = tellable(sides.moments(source), options.min_active)
    G, H = [other.name for other in min_group], [other.name for other in max_group]
    rho = {name: found[name].rho for name in others}
    delta = comparative_sharedness(table(rho, G), table(rho, H), total)
    bare = Sharedness(run.name, source.name, G, H, np.arange(len(delta)), delta, total, rho)
    active = any_counted(targets, sides) | {run.name: bool(enough.any())}
    if why := too_little([run, *others.values()], active, sides):
        note(f"{why}: no statuses, ranked by Delta alone")
        return in_order(bare, np.argsort(-delta, kind="stable"))
    return by_status(with_held_out(bare, found, seed), enough, present, absent)


def with_held_out(bare: Sharedness, found: Mapping[str, "Presence"], seed: features.Run | None) -> Sharedness:
    """The same with each run's held-out correlations and their errors; `seed`: the source's other seed."""
    held, errors = ({name: one[at] for name, one in found.items()} for at in (0, 1))
    return bare._replace(held_out=held, error=errors, other_seed=None if seed is None else seed.name)


def too_little(runs: Sequence[features.Run], active: dict[str, bool], sides: "Sides") -> str:
    """Why nothing can be held out for these runs; "" where it can. `active`: which have features that count."""
    from comparing.clusters import FEWEST

    n, least = sides.clusters(*runs).n, sides.options.min_active
    if n < FEWEST:
        return f"{n} clusters of samples are too few for held-out correlations, which take {FEWEST}"
    silent = [run.name for run in runs if not active[run.name]]
    return f"no feature of {', '.join(silent)} is active on {least} samples" if silent else ""


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
    G, H, held, errors = found.min_group, found.max_group, found.held_out or {}, found.error or {}
    told = statuses(table(held, G), table(errors, G), table(held, H), table(errors, H), G, H, present, absent)
    status = [one if counts else RARE for one, counts in zip(told, enough, strict=True)]
    order = sharedness_order(status, found.delta)
    least = np.array(G)[table(held, G).argmin(axis=0)][order]
    counts = {words: sum(one.rank in ranks for one in status) for words, ranks in COUNTED.items()}
    texts = [status[feature].text for feature in order]
    thresholds = present, absent
    return in_order(found, order)._replace(
        status=texts, least=least.tolist(), counts=counts, thresholds=thresholds
    )


class Status(NamedTuple):
    """A feature's status; `rank` sorts: 0 present in all of G and absent in all of H, 1 present, 2 absent, 3 neither."""

    rank: int
    text: str


RARE = Status(4, "too rare")  # active on too few rows to count, or in one half alone


def statuses(
    rho_G: Float[np.ndarray, "min_group feature"],
    se_G: Float[np.ndarray, "min_group feature"],
    rho_H: Float[np.ndarray, "max_group feature"],
    se_H: Float[np.ndarray, "max_group feature"],
    names_G: Sequence[str],
    names_H: Sequence[str],
    present: float = PRESENT,
    absent: float = ABSENT,
) -> list[Status]:
    """Each feature's status, from held-out correlations and their standard errors.

    Present in g: rho - 1.645 se >= `present`. Absent in h: rho + 1.645 se <= `absent`. Otherwise the run that
    breaks it most is named: "present, in dino", "not in bert, absent".
    """
    low, high = rho_G - ONE_SIDED_95 * se_G, rho_H + ONE_SIDED_95 * se_H
    least, most = low.argmin(axis=0), high.argmax(axis=0)
    found = []
    for feature in range(rho_G.shape[1]):
        is_present, is_absent = (
            low[least[feature], feature] >= present,
            high[most[feature], feature] <= absent,
        )
        first = "present" if is_present else f"not in {names_G[least[feature]]}"
        second = "absent" if is_absent else f"in {names_H[most[feature]]}"
        found.append(Status(2 * (not is_present) + (not is_absent), f"{first}, {second}"))
    return found


def sharedness_order(status: Sequence[Status], delta: Float[np.ndarray, " feature"]) -> np.ndarray:
    """The features by status, and by Delta within."""
    return np.lexsort((-delta, np.array([one.rank for one in status])))
