"""Two scores set against each other on the same samples, and one score on disjoint parts of them."""

import numpy as np

import features
from comparing import draws, trust
from comparing.clusters import FEWEST, Clusters, folds
from comparing.codes import Codes
from comparing.halves import Side
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
    found = [
        evidence(RunPair(source, target, sides), groups, permutations=0).forward["last_layer"]
        for target in targets
    ]
    if not found[0][0].facts.weight.sum() > 0:
        raise UserError(
            f"no feature of {source.name} is active on {sides.options.min_active} samples: give a lower --min_active"
        )
    value, interval = trust.difference(found[0], found[1], groups)
    low, high = map(rounded, interval)
    return Difference(source.name, targets[0].name, targets[1].name, rounded(value), (low, high))


def folded(source: features.Run, target: features.Run, k: int, sides: Sides) -> Folds:
    """The held-out score of the last layers on each of k disjoint parts of the samples' clusters, both ways."""
    groups = sides.clusters(source, target)
    check(groups)
    fold = folds(groups, k)
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


def check(groups: Clusters):
    """Refuse too few clusters."""
    if groups.n < FEWEST:
        raise UserError(
            f"{groups.n} clusters of {len(groups.ids)} samples: a held-out score takes {FEWEST}; leave out "
            "--difference and --folds"
        )
