"""What trust in a score costs, in passes of the bare score, at the size of COCO: the target is 5 in all.

    uv run benchmarks/trust.py [--rows 118287] [--features 6144] [--top_k 32]

The codes are random with power-law frequencies; both directions, two permutations. Seconds are of the processor, repeats are
interleaved, and their medians are divided. The bare pass's own layout of the codes is made before, for both alike.
"""

import argparse
import statistics
import sys
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import scipy.sparse

sys.path.insert(0, str(Path(__file__).parent.parent))

from comparing import trust
from comparing.clusters import clusters, permutation
from comparing.codes import Codes
from comparing.drivers import drivers, nuisance
from comparing.found import Facts, Found
from comparing.halves import Side
from comparing.heldout import matched, shuffled
from comparing.influence import influence
from comparing.pearson import max_correlations

TARGET, REPEATS = 5, 5
ASKED_FOR = "strata drawn, if asked for"


def codes(n_rows: int, n_features: int, k: int, seed: int) -> Codes:
    """Random TopK codes; frequencies proportional to 1 / rank^.8."""
    rng = np.random.default_rng(seed)
    p = np.arange(1, n_features + 1) ** -0.8
    features = rng.choice(n_features, (n_rows, k), p=p / p.sum()).astype(np.int32)
    values = np.exp(0.6 * rng.standard_normal(n_rows * k)).astype(np.float32)
    starts = np.arange(n_rows + 1) * k
    found = Codes(scipy.sparse.csr_array((values, features.ravel(), starts), shape=(n_rows, n_features)))
    found.by_row, found.by_feature, found.sums()
    return found


def once(source: Codes, target: Codes, groups, seconds: dict[str, list[float]]):
    """Every part once, its seconds added to `seconds`."""

    def timed(part, work):
        started = time.process_time()
        result = work()
        seconds[part].append(time.process_time() - started)
        return result

    timed("bare pass", lambda: max_correlations(source, target))
    x, y = (Side(side, groups.half) for side in (source, target))
    timed("halves laid out", lambda: (x.by_half, x.spread, y.by_row, y.spread))
    found = timed("maxima, whole and halves", lambda: matched(x, y))
    partners = timed("permutations drawn", lambda: [permutation(groups, number) for number in (0, 1)])
    chance = timed("two permuted passes", lambda: [shuffled(x, y, partner) for partner in partners])
    influences = timed(
        "influence functions", lambda: (influence(x, [y], found[0]), influence(y, [x], found[1]))
    )
    both = timed("scores, discoveries, drivers", lambda: scores(x, y, found, chance, influences, groups))
    timed("square roots, of a sample", lambda: nuisance(x, y, both[0]))
    words = np.arange(len(groups.ids)) % 10  # a stratum of each row
    timed(ASKED_FOR, lambda: permutation(groups, 0, words))


def scores(x: Side, y: Side, found, chance, influences, groups):
    """What was found of both directions, once it is scored."""
    both = [
        Found(Facts.of(side.moments, side.min_active), found[i], [one[i] for one in chance], influences[i])
        for i, side in enumerate((x, y))
    ]
    for one in both:
        trust.score([one], groups)
    drivers(*both, groups)
    return both


def main(argv: list[str] | None = None) -> float:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=118_287)
    parser.add_argument("--features", type=int, default=6144)
    parser.add_argument("--top_k", type=int, default=32)
    arguments = parser.parse_args(argv)
    source, target = (codes(arguments.rows, arguments.features, arguments.top_k, seed) for seed in (0, 1))
    groups = clusters([str(row) for row in range(arguments.rows)])
    seconds: dict[str, list[float]] = defaultdict(list)
    once(source, target, groups, defaultdict(list))  # compiles
    for _ in range(REPEATS):
        once(source, target, groups, seconds)
    medians = {part: statistics.median(found) for part, found in seconds.items()}
    bare = medians["bare pass"]
    print(
        f"{arguments.rows} rows, {arguments.features} features, k = {arguments.top_k}; a bare pass takes {bare:.2f} s"
    )
    for part, median in medians.items():
        print(f"{part:30} {median / bare:5.2f}")
    cost = sum(median for part, median in medians.items() if part not in ("bare pass", ASKED_FOR)) / bare
    print(
        f"{'in all, in bare passes':30} {cost:5.2f}  target {TARGET}: {'met' if cost <= TARGET else 'NOT MET'}"
    )
    return cost


if __name__ == "__main__":
    main()
