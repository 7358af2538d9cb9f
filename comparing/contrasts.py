"""Two scores set against each other on the same samples, and one score on disjoint parts of them."""

from collections.abc import Sequence

import numpy as np

import features
from comparing import draws, trust
from comparing.clusters import check, folds
from comparing.codes import Codes
from comparing.halves import Side, counted
from comparing.heldout import matched
from comparing.influence import held_out
from comparing.passes import evidence
from comparing.results import Difference, Folds, rounded
from comparing.sides import RunPair, Sides
from plumbing.errors import UserError


def difference(source: features.Run, targets: tuple[features.Run, features.Run], sides: Sides) -> Difference:
    """The held-out score of A -> B less that of A -> C, last layers, with the interval of the paired difference."""
    groups = sides.clusters(source, *targets)
    check(groups)
    check_counted((source, *targets), sides)
    found = [
        evidence(RunPair(source, target, sides), groups, permutations=0).forward["last_layer"]
        for target in targets
    ]
    value, interval = trust.difference(found[0], found[1], groups)
    low, high = map(rounded, interval)
    return Difference(source.name, targets[0].name, targets[1].name, rounded(value), (low, high))


def folded(source: features.Run, target: features.Run, k: int, sides: Sides) -> Folds:
    """The held-out score of the last layers on each of k disjoint parts of the samples' clusters, both ways."""
    groups = sides.clusters(source, target)
    check(groups)
    fold = folds(groups, k)
    check_counted((source, target), sides)
    scores: tuple[list[float], list[float]] = ([], [])
    for number in range(k):
        rows = np.flatnonzero(fold == number)
        both = [part(run, rows, sides) for run in (source, target)]
        for side, (found, own) in enumerate(zip(matched(both[0], both[1]), both, strict=True)):
            scores[side].append(rounded(held_out(found, own.total, own.counted)))
    return Folds(source.name, target.name, *scores)


def part(run: features.Run, rows: np.ndarray, sides: Sides) -> Side:
    """Some rows of a run's last layer."""
    matrix = draws.chosen_rows(draws.Layer(run, run.layers[-1]), rows)
    codes = Codes(matrix.sqrt() if sides.options.square_root else matrix)
    return Side(codes, sides.half[rows], sides.options.min_active)


def check_counted(runs: Sequence[features.Run], sides: Sides):
    """Refuse runs of which no feature of the last layer counts."""
    least = sides.options.min_active
    for run in runs:
        if not counted(sides.moments(draws.Layer(run, run.layers[-1])), least).any():
            raise UserError(
                f"no feature of {run.name} is active on {least} samples: give a lower --min_active"
            )
