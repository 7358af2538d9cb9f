"""What a comparison returns: scores with their floors, and both directions of a pair."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from plumbing.errors import UserError

OLDER = ("soft_matching", "cka", "knn", "pw_mcc")  # of the last layers only, the same in both directions
METRICS = ("wmppc", "mppc", *OLDER)
REPLACED = {
    "hungarian": "soft_matching",
    "mutual_knn": "knn",
}  # scores of an earlier version, and what to ask for

NORMAL_95 = 1.96  # standard errors to each side of a 95 % interval
DECIMALS = 8  # of a score: further ones tell in which order its rows were added up


def metric(text: str) -> str:
    """One of METRICS; otherwise a `UserError` that names them, or the one that replaced it."""
    if text in REPLACED:
        raise UserError(f"the metric {text!r} is gone: ask for {REPLACED[text]}")
    if text not in METRICS:
        raise UserError(f"unknown metric {text!r}: choose among {', '.join(METRICS)}")
    return text


class Control(NamedTuple):
    """A run whose encoder, or else whose SAE, is random: its held-out score, C(.3), share of features beyond chance."""

    run: str
    held_out: float | None
    coverage: float | None
    discovered: float | None
    random: Literal["encoder", "sae"] | None = None


class Reference(NamedTuple):
    """What the target's own SAE from another seed says of a direction.

    `same_order`: it saw its data in the same order, which makes two SAEs more alike. `attenuation`: by scope, held
    out over the square root of both sides' own seeds; None where the source has none. `by_band`: the reference of
    the features of each band of n_eff.
    """

    run: str
    same_order: bool
    attenuation: dict[str, float | None]
    by_band: dict[str, float]


class Score(NamedTuple):
    """A score and what tells how far to trust it; None where something cannot be said.

    `value`: Σ S rho / Σ S over all features. `floor`: the same with permuted rows. `adjusted`: an index, (value -
    floor) / (1 - floor), no shared fraction. `held_out`: partners chosen on one half and scored on the other;
    `interval`: its 95 %, [low, high]. `coverage`: the share of the weight with held-out r of at least "0.2" to
    "0.7". `discovered`: the share of features beyond chance at a false discovery rate of 5 %. `seed_reference`:
    coverage at .3 over that of the target's own other seed. `control`: a random encoder's.
    """

    value: float
    floor: float | None = None
    adjusted: float | None = None
    held_out: float | None = None
    interval: tuple[float, float] | None = None
    coverage: dict[str, float] | None = None
    discovered: float | None = None
    seed_reference: float | None = None
    control: Control | None = None

    @staticmethod
    def of(value: float, floor: float | None = None) -> "Score":
        """A bare score, the same however the rows were shared out and added up."""
        return Score(rounded(value), None if floor is None else rounded(floor))


class Drivers(NamedTuple):
    """What a score hangs on, shares 0 to 1.

    `dense`: by "0.1" and "0.5", the share of the weight in features that are active on more of the rows than
    that, and the score without them. `hubs`: sources whose partner is among the 1 % most chosen targets.
    `mutual`: sources whose partner's partner they are. `clusters`, and the rows of the `largest`.
    """

    dense: dict[str, tuple[float, float]]
    hubs: float
    mutual: float
    clusters: int
    largest: int


class Nuisance(NamedTuple):
    """What a sample of the sources says of other explanations; all four are of the same features.

    `floor`: by permuted rows; `strata_floor`: by rows permuted within their stratum of `strata` (None without
    strata), to be printed and not subtracted. `held_out`, and `held_out_sqrt`: that of sqrt(x) on both sides; None
    where all scores are of sqrt(x).
    """

    floor: float
    strata_floor: float | None
    held_out: float
    held_out_sqrt: float | None
    features: int
    strata: str | None = None


class Direction(NamedTuple):
    """What one run (`source`) has in another (`target`).

    `scores` are by metric, then by "all_layers" (wmppc and mppc only) and "last_layer"; `layers` holds
    a bare Score a cell, the wMPPC of each source layer against each target layer; `live`, `features` and `counted`
    (active on `min_active` rows) count the source's features, by layer. `bands`: C(.3) of the last layer's features
    by band of n_eff. What is None has not been worked out.
    """

    source: str
    target: str
    source_layers: list[str]
    target_layers: list[str]
    live: list[int]
    features: list[int]
    scores: dict[str, dict[str, Score]]
    layers: list[list[Score]]
    counted: list[int] | None = None
    min_active: int | None = None
    bands: dict[str, float] | None = None
    drivers: Drivers | None = None
    nuisance: Nuisance | None = None
    reference: Reference | None = None

    @property
    def wmppc(self) -> dict[str, Score]:
        return self.scores["wmppc"]


class Comparison(NamedTuple):
    """A pair of runs, scored both ways: what `compare(run, other)` returns.

    `forward` is what the first run has in the other, `backward` what the other has in the first. `wmppc` and
    `scores` are those of `forward`: `wmppc["last_layer"]` and `wmppc["all_layers"]` each hold a value,
    its floor, the held-out score and its interval.
    """

    forward: Direction
    backward: Direction

    @property
    def scores(self) -> dict[str, dict[str, Score]]:
        return self.forward.scores

    @property
    def wmppc(self) -> dict[str, Score]:
        return self.forward.wmppc

    def turned(self) -> "Comparison":
        """The same with the two runs in the other order."""
        return Comparison(self.backward, self.forward)


class Difference(NamedTuple):
    """The held-out score of source -> first less that of source -> second, and its 95 % interval."""

    source: str
    first: str
    second: str
    value: float
    interval: tuple[float, float]


class Folds(NamedTuple):
    """The held-out score on disjoint parts of the samples, in both directions."""

    source: str
    target: str
    forward: list[float]
    backward: list[float]


def rounded(number: float) -> float:
    return round(float(number), DECIMALS)


def harmonic_mean(a: float | None, b: float | None) -> float | None:
    """F = 2ab / (a + b) of both directions' held-out scores (Sørensen); 0 where one of them is not above 0."""
    if a is None or b is None:
        return None
    return 2 * a * b / (a + b) if min(a, b) > 0 else 0.0


def plain(value: object) -> object:
    """Results as JSON has them: NamedTuples as objects and NaN as null, all the way down."""
    fields = getattr(value, "_fields", None)
    if fields is not None:
        return {name: plain(getattr(value, name)) for name in fields}
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and np.isnan(value) else value


def axes(directions: Sequence[Direction]) -> tuple[list[str], list[str]]:
    """The names of the sources and of the targets, each once, in their order."""
    return list(dict.fromkeys(d.source for d in directions)), list(
        dict.fromkeys(d.target for d in directions)
    )


def grid(directions: Sequence[Direction], metric: str, scope: str, kind: str) -> np.ndarray:
    """A metric's numbers as float64 [source, target]; NaN where there is none."""
    rows, columns = axes(directions)
    by_pair = {(d.source, d.target): getattr(d.scores[metric][scope], kind) for d in directions}
    return np.array([[by_pair[row, column] for column in columns] for row in rows], float)


def number(value: float | None) -> str:
    """Three decimals; a dash where there is no score."""
    return "-" if value is None or np.isnan(value) else f"{value:.3f}"
