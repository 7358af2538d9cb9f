"""The passes over a pair of runs: each layer against each, as it is and with permuted rows, both directions."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np

from comparing.clusters import Clusters, permutation
from comparing.found import Best, Evidence, Facts, Found, Influence, Matched, Shuffled, nothing, weighted
from comparing.halves import Moments, Side
from comparing.heldout import matched, shuffled
from comparing.influence import influence

PERMUTATIONS, MOST_PERMUTATIONS, FLOOR_SE = 2, 20, 0.0005
STEADY_FROM = 5  # permutations: with fewer, the error of a floor is itself too uncertain to stop at
SMALL = 5e6  # stored products of a pair, below which a pass is so quick that permutations go on
SCOPES = ("all_layers", "last_layer")

Work: TypeAlias = Callable[[int, int], tuple[Best, Best]]  # of a source layer and a target layer


class Job(NamedTuple):
    """An influence to work out: of a layer of one side (0: source, 1: target) over some layers of the other."""

    side: int
    layer: int
    others: range
    found: Matched


@runtime_checkable
class Pair(Protocol):
    """Two runs' layers, wherever they are held; `side` 0 is the source, 1 the target."""

    n_layers: tuple[int, int]
    min_active: int

    def moments(self, side: int, number: int) -> Moments: ...

    def stored(self) -> float:
        """The products that a pass over the last layers adds up, about."""
        ...

    def matched(self, i: int, j: int) -> tuple[Matched, Matched]: ...

    def shuffled(self, i: int, j: int, partner: np.ndarray) -> tuple[Shuffled, Shuffled]: ...

    def each(self, kind: type[Best], work: Work[Best]) -> Iterator[tuple[tuple[int, int], tuple[Best, Best]]]:
        """`work(i, j)` of every source layer i and target layer j, shared out over the processes."""
        ...

    def influences(self, jobs: Sequence[Job]) -> list[Influence]: ...


class Held:
    """A Pair whose layers are all in memory."""

    def __init__(self, source: Sequence[Side], target: Sequence[Side]):
        self.sides = source, target
        self.n_layers, self.min_active = (len(source), len(target)), source[0].min_active

    def moments(self, side: int, number: int) -> Moments:
        return self.sides[side][number].moments

    def stored(self) -> float:
        source, target = (np.diff(side[-1].codes.csr[0]).astype(np.float64) for side in self.sides)
        return float(source @ target)

    def matched(self, i: int, j: int) -> tuple[Matched, Matched]:
        return matched(self.sides[0][i], self.sides[1][j])

    def shuffled(self, i: int, j: int, partner: np.ndarray) -> tuple[Shuffled, Shuffled]:
        return shuffled(self.sides[0][i], self.sides[1][j], partner)

    def each(self, kind: type[Best], work: Work[Best]) -> Iterator[tuple[tuple[int, int], tuple[Best, Best]]]:
        return (((i, j), work(i, j)) for i, j in np.ndindex(self.n_layers))

    def influences(self, jobs: Sequence[Job]) -> list[Influence]:
        return [self._influence(job) for job in jobs]

    def _influence(self, job: Job) -> Influence:
        targets = [self.sides[1 - job.side][layer] for layer in job.others]
        return influence(self.sides[job.side][job.layer], targets, job.found)


@dataclass(frozen=True)
class Pass(Generic[Best]):
    """What one pass found: `best` by scope, side and layer, and each cell's wMPPC, float64 [side][own, other]."""

    best: dict[str, tuple[list[Best], list[Best]]]
    cells: tuple[np.ndarray, np.ndarray]


def run_pass(pair: Pair, kind: type[Best], work: Work[Best]) -> Pass[Best]:
    """One pass over all layers; `kind` (Matched or Shuffled) is what `work(i, j)` gives of both sides."""
    totals = [[pair.moments(side, i).total.sum(0) for i in range(n)] for side, n in enumerate(pair.n_layers)]
    starts = [np.cumsum([0, *map(len, one)]) for one in totals]
    every = (
        [nothing(kind, len(total)) for total in totals[0]],
        [nothing(kind, len(total)) for total in totals[1]],
    )
    last: tuple[list[Best], list[Best]] = ([], [])
    cells = np.zeros(pair.n_layers), np.zeros(pair.n_layers[::-1])
    for place, both in pair.each(kind, work):
        for side, found in enumerate(both):
            own, other = place[side], place[1 - side]
            every[side][own].merge(found, int(starts[1 - side][other]))
            cells[side][own, other] = weighted(found.every, totals[side][own])
            if place == (pair.n_layers[0] - 1, pair.n_layers[1] - 1):
                last[side].append(found)
    for found in (*every[0], *every[1]):
        found.settle()
    return Pass({"last_layer": last, "all_layers": every}, cells)


def evidence(pair: Pair, clusters: Clusters, permutations: int = PERMUTATIONS) -> Evidence:
    """All passes over a pair of runs."""
    found = run_pass(pair, Matched, pair.matched)
    chance: list[Pass[Shuffled]] = []
    for number in numbers(pair.stored(), permutations, _floors(chance)):
        partner = permutation(clusters, number)
        chance.append(run_pass(pair, Shuffled, lambda i, j, p=partner: pair.shuffled(i, j, p)))
    jobs = {
        (scope, side, place): Job(
            side, layer, range(others - 1 if scope == "last_layer" else 0, others), best
        )
        for scope in SCOPES
        for side, others in enumerate(pair.n_layers[::-1])
        for place, (layer, best) in enumerate(_layers(found, pair, scope, side))
    }
    asked = {key: job for key, job in jobs.items() if not _is_repeated(pair, *key)}
    influences = dict(zip(asked, pair.influences(list(asked.values())), strict=True))
    facts = [
        [Facts.of(pair.moments(side, i), pair.min_active) for i in range(n)]
        for side, n in enumerate(pair.n_layers)
    ]
    sides: tuple[dict[str, list[Found]], dict[str, list[Found]]] = ({}, {})
    for (scope, side, place), job in jobs.items():
        own = influences[
            ("last_layer", side, 0) if _is_repeated(pair, scope, side, place) else (scope, side, place)
        ]
        by_chance = [one.best[scope][side][place] for one in chance]
        sides[side].setdefault(scope, []).append(Found(facts[side][job.layer], job.found, by_chance, own))
    floors = [np.mean([one.cells[side] for one in chance], axis=0) if chance else None for side in (0, 1)]
    return Evidence(*sides, found.cells, (floors[0], floors[1]))


def _layers(found: Pass[Matched], pair: Pair, scope: str, side: int) -> Iterable[tuple[int, Matched]]:
    """The layers of a side that a scope is of, with their best partners."""
    best = found.best[scope][side]
    return [(pair.n_layers[side] - 1, best[0])] if scope == "last_layer" else list(enumerate(best))


def _is_repeated(pair: Pair, scope: str, side: int, place: int) -> bool:
    """Whether an influence over all layers is that of the last ones: where the other side has one layer."""
    return scope == "all_layers" and pair.n_layers[1 - side] == 1 and place == pair.n_layers[side] - 1


def _floors(chance: list[Pass[Shuffled]]) -> Iterator[list[float]]:
    """Both directions' floors of the last layers, of the newest permutation."""
    while True:
        yield [float(cells[-1, -1]) for cells in chance[-1].cells]


def numbers(stored: float, at_least: int, floors: Iterator[Iterable[float]]) -> Iterator[int]:
    """The numbers of the permutations to draw: `at_least`, and on small data until the floors' errors are small.

    `floors` gives the newest permutation's floors when it is asked.
    """
    seen: list[list[float]] = []
    while len(seen) < at_least or (
        at_least and stored < SMALL and len(seen) < MOST_PERMUTATIONS and not _steady(seen)
    ):
        yield len(seen)
        seen.append(list(next(floors)))


def _steady(seen: list[list[float]]) -> bool:
    if len(seen) < STEADY_FROM:
        return False
    return bool((np.std(seen, axis=0, ddof=1) / np.sqrt(len(seen)) < FLOOR_SE).all())
