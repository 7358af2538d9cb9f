"""What trust in a score costs, in bare scores, at the size of COCO: the target is 5 in all.

    uv run benchmarks/trust.py [--rows 118287] [--features 6144] [--top_k 32]

Two runs of random codes, their features' frequencies following a power law, are recorded in a temporary folder
and compared as `uv run wmppc.py --source image --target text` does by default: both directions, two permutations,
the caption's length and the square roots of a sample of the features. The bare score is what the same command takes
with `--no-trust`: the layout of the codes, their sums, and the maxima of both directions. Reading the files takes
both alike, and is left out. Seconds are of the processor, repeats are interleaved, and medians are divided.

The cost in passes over the products, the layout made before, is printed below: less than 3 cannot be, as the pass
over whole and halves and both permuted ones each add up as many products as the bare one.
"""

import argparse
import contextlib
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import scipy.sparse

sys.path.insert(0, str(Path(__file__).parent.parent))

import features
import parts
import samples
from comparing import comparison, passes, sides
from comparing.codes import Codes
from comparing.pearson import max_correlations
from comparing.reader import Reader
from comparing.results import Comparison
from comparing.sides import DEFAULTS, Options, Sides

TARGET, REPEATS = 5, 3
PASSES = 3  # that add up as many products as the bare one: whole and halves, two permutations
BARE, READING, REST = "bare pass", "reading the files", "layout, sums, scores, drivers"
TOTAL = "in all, in bare scores"
PARTS = {  # what is timed by its own name: where it is called from, and its name there
    READING: (features.Run, "load"),
    "samples read, clusters": (Sides, "clusters"),
    "maxima, whole and halves": (sides.RunPair, "matched"),
    "permuted passes": (sides.RunPair, "shuffled"),
    "permutations drawn": (passes, "permutation"),
    "influence functions": (sides.RunPair, "influences"),
    "nuisance: strata, square roots": (comparison, "nuisance"),
}


class Clock:
    """The processor's seconds by part; what a part calls counts for the part that is timed by its own name."""

    def __init__(self):
        self.seconds: dict[str, float] = defaultdict(float)
        self.open: list[str] = []
        self.since = time.process_time()

    def turn(self, part: str | None):
        """Go on to a part, or, with None, back to the one before."""
        now = time.process_time()
        if self.open:
            self.seconds[self.open[-1]] += now - self.since
        self.since = now
        self.open.append(part) if part is not None else self.open.pop()

    def timed(self, part: str, work: Callable) -> Callable:
        def timing(*arguments, **named):
            if part != READING and self.open[-1].startswith("nuisance"):
                return work(*arguments, **named)  # a part of the nuisance
            self.turn(part)
            try:
                return work(*arguments, **named)
            finally:
                self.turn(None)

        return timing


@contextlib.contextmanager
def parts_timed(clock: Clock) -> Iterator[None]:
    before = {part: getattr(*place) for part, place in PARTS.items()}
    for part, (where, name) in PARTS.items():
        setattr(where, name, clock.timed(part, before[part]))
    try:
        yield
    finally:
        for part, (where, name) in PARTS.items():
            setattr(where, name, before[part])


def codes(n_rows: int, n_features: int, k: int, seed: int) -> scipy.sparse.csr_array:
    """Random TopK codes, CSR [row, feature]; frequencies proportional to 1 / rank^.8."""
    rng = np.random.default_rng(seed)
    p = np.arange(1, n_features + 1) ** -0.8
    chosen = rng.choice(n_features, (n_rows, k), p=p / p.sum()).astype(np.int32)
    values = np.exp(0.6 * rng.standard_normal(n_rows * k)).astype(np.float32)
    found = scipy.sparse.csr_array(
        (values, chosen.ravel(), np.arange(n_rows + 1) * k), shape=(n_rows, n_features)
    )
    found.sum_duplicates()
    return found


def record(name: str, matrix: scipy.sparse.csr_array, seed: int) -> features.Run:
    """A run of one layer, in the current folder, on samples with captions of 8 to 16 words."""
    rng = np.random.default_rng(seed)
    n_rows = matrix.shape[0]
    lengths = rng.integers(8, 17, n_rows)
    words = np.array([f"word{number}" for number in range(5000)])
    said = np.split(words[rng.zipf(1.3, lengths.sum()) % len(words)], np.cumsum(lengths)[:-1])
    rows = [
        {"id": f"{row:012d}", "image": f"{row:012d}.jpg", "caption": " ".join(caption)}
        for row, caption in enumerate(said)
    ]
    path = features.run_path(name)
    path.mkdir(parents=True)
    samples.write(path, rows)
    for number, start in enumerate(range(0, n_rows, features.PART_ROWS)):
        parts.write_part(path, "layer0", number, matrix[start : start + features.PART_ROWS])
    fingerprint = features.fingerprint((row["id"], row["caption"]) for row in rows)
    encoder = {"model": name, "checkpoint": "none", "modality": name}
    dataset = {"name": "random", "fingerprint": fingerprint, "source": {}}
    manifest = {"encoder": encoder, "layers": ["layer0"], "n_samples": n_rows, "dataset": dataset}
    return features.finish_run(path, manifest)


def scored(runs: list[features.Run], options: Options) -> tuple[Clock, Comparison]:
    """Compare two runs as wmppc.py does; the seconds by part."""
    clock = Clock()
    with parts_timed(clock):
        clock.turn(REST)
        found = comparison.match(*runs, Sides(runs, Reader(), options))
        clock.turn(None)
    return clock, found


def laid_out(run: features.Run) -> Codes:
    found = Codes(run.load("layer0"))
    found.by_row, found.by_feature, found.sums()
    return found


def measure(runs: list[features.Run]) -> tuple[dict[str, list[float]], list[float]]:
    """Seconds by part of every repeat, and those of the bare score."""
    seconds: dict[str, list[float]] = defaultdict(list)
    bare, held = [], [laid_out(run) for run in runs]
    scored(runs, DEFAULTS), max_correlations(*held)  # compiles
    for _ in range(REPEATS):
        began = time.process_time()
        max_correlations(*held)
        seconds[BARE].append(time.process_time() - began)
        for part, taken in scored(runs, DEFAULTS)[0].seconds.items():
            seconds[part].append(taken)
        one = scored(runs, Options(bare=True))[0].seconds
        bare.append(sum(one.values()) - one[READING])
    return seconds, bare


def main(argv: list[str] | None = None) -> float:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=118_287)
    parser.add_argument("--features", type=int, default=6144)
    parser.add_argument("--top_k", type=int, default=32)
    asked = parser.parse_args(argv)
    sizes = asked.rows, asked.features, asked.top_k
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            runs = [record(name, codes(*sizes, seed), 2) for seed, name in enumerate(("image", "text"))]
            seconds, bare_score = measure(runs)
        finally:
            os.chdir(before)
    medians = {part: statistics.median(found) for part, found in seconds.items()}
    one_pass, reading, bare = medians.pop(BARE), medians.pop(READING), statistics.median(bare_score)
    whole = sum(medians.values())
    cost = whole / bare
    print("{} rows, {} features, k = {}; the bare score takes {:.2f} s".format(*sizes, bare))
    for part, median in medians.items():
        print(f"{part:32} {median / bare:5.2f}")
    print(f"{TOTAL:32} {cost:5.2f}  target {TARGET}: {'met' if cost <= TARGET else 'NOT MET'}")
    print(f"{READING + ', left out':32} {reading / bare:5.2f}")
    print(f"{'in bare passes of ' + format(one_pass, '.2f') + ' s':32} {whole / one_pass:5.2f}")
    print(f"{'of these, as many products':32} {PASSES:5.2f}  three passes: the least there can be")
    return cost


if __name__ == "__main__":
    main()
