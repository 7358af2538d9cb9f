"""What a comparison returns: scores with their floors, and both directions of a pair."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

OLDER = ("hungarian", "cka", "mutual_knn")  # scores of the last layers only, the same in both directions
METRICS = ("wmppc", "mppc", *OLDER)

DECIMALS = 8  # of a score: further ones tell in which order its rows were added up


class Score(NamedTuple):
    """A score, and `floor`: the same score of the same runs with one side's rows permuted."""

    value: float
    floor: float

    @staticmethod
    def of(value: float, floor: float) -> "Score":
        """Both numbers, the same however the rows were shared out and added up."""
        return Score(round(float(value), DECIMALS), round(float(floor), DECIMALS))


class Direction(NamedTuple):
    """What one run (`source`) has in another (`target`).

    `scores` are by metric, then by "all_layers" (wmppc and mppc only) and "last_layer"; `layers` holds
    a Score a cell, the wMPPC of each source layer against each target layer; `live` and `features` count the
    source's features, by layer.
    """

    source: str
    target: str
    source_layers: list[str]
    target_layers: list[str]
    live: list[int]
    features: list[int]
    scores: dict[str, dict[str, Score]]
    layers: list[list[Score]]

    @property
    def wmppc(self) -> dict[str, Score]:
        return self.scores["wmppc"]


class Comparison(NamedTuple):
    """A pair of runs, scored both ways: what `compare(run, other)` returns.

    `forward` is what the first run has in the other, `backward` what the other has in the first. `wmppc` and
    `scores` are those of `forward`: `wmppc["last_layer"]` and `wmppc["all_layers"]` each hold a value and its floor.
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


def plain(value: Any) -> Any:
    """Results as JSON has them: NamedTuples as objects and NaN as null, all the way down."""
    if hasattr(value, "_asdict"):
        value = value._asdict()
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
    return np.array([[by_pair[row, column] for column in columns] for row in rows])


def number(value: float) -> str:
    """Three decimals; a dash where there is no score, since no feature of the layer is live."""
    return "-" if np.isnan(value) else f"{value:.3f}"
