"""The whole method on the embedded demo: train and record six encoders, compare them, show what they share.

The demo's scenes are drawn from known factors, so that which concepts two encoders can share is known: see
toyworld/scenes.py. Nothing is downloaded. Every step is one of the toolkit's scripts, printed before it runs: those of
studies/demo.toml, and sheets of the features that are listed.
"""

import os
import shlex
import time
from argparse import Namespace
from pathlib import Path
from typing import NamedTuple

import numpy as np

import show
from comparing.sharedness import Sharedness
from features import open_run
from plumbing.commandline import Parser, positive, script
from plumbing.errors import UserError
from studying import steps, working
from toyworld import scenes
from wrappedmodels import REGISTRY

# Encoders this small lose more by waiting for threads than they gain.
os.environ.setdefault("OMP_NUM_THREADS", "1")

STUDY = Path(__file__).with_name("studies") / "demo.toml"
RANDOM = "demo-random"  # the run of random weights
RETRAINED = Path("data/demo-encoders")  # git ignores it; the weights in toyworld/weights/ stay as they are
AT_LEAST = 20  # activations of a feature that is listed
SHOWN = 12  # features listed from the top
LEAST = 100  # samples; with fewer, hardly a feature is active often enough to be listed


class Followed(NamedTuple):
    """A feature, its Comparative Sharedness, and the planted factor that it correlates with most, by r."""

    feature: int
    delta: float
    factor: str
    r: float


@script
def main(argv=None) -> list[Followed]:
    """Run the demo; returns the listed features."""
    parser = Parser(__doc__, __file__)
    again = f"first train the demo's encoders from scratch, into {RETRAINED}/"
    parser.add_argument("--retrain", action="store_true", help=again)
    some = f"so many of the {scenes.N_DEMO:,} samples, at least {LEAST}"
    parser.add_argument("--limit", type=enough, default=7000, help=some)
    arguments = parser.parse_args(argv)
    started = time.monotonic()
    if arguments.retrain:
        from toyworld import train_encoders

        train_encoders.main(["--out", str(RETRAINED)])
    outcome = working.carry_out(steps.steps(study(arguments), overwrite=True), gpus=[])
    working.name_failures(outcome)
    shared = outcome.results["in-language"]
    assert isinstance(shared, Sharedness)
    followed = follow(shared)
    print_followed(shared, followed)
    sheets = show_first(shared.source, followed)
    (page,) = show_all(shared)
    print(f"\nDone in {time.monotonic() - started:.0f} s. Runs: sae_features/demo-*/;", end=" ")
    print(f"the matrix: imgs/demo-wmppc.png; the sheets: {sheets[0].parent}/; the explorer: {page}")
    return followed


def enough(text: str) -> int:
    """An argument type: a number of samples that the demo has, and can say something of."""
    if not LEAST <= positive(text) <= scenes.N_DEMO:
        raise UserError(
            f"{text} samples are too few or too many: the demo takes {LEAST} to {scenes.N_DEMO:,}"
        )
    return int(text)


def study(arguments: Namespace) -> steps.Study:
    """The demo's study, of so many samples, and of the encoders that were trained again."""
    found = steps.read(STUDY)
    found.data["demo"]["limit"] = arguments.limit
    for table in found.encoders.values() if arguments.retrain else ():
        table["checkpoint"] = str(RETRAINED / Path(REGISTRY[str(table["model"])].checkpoint).name)
    return found


def show_first(run: str, followed: list[Followed]) -> list[Path]:
    """The sheets of the first features."""
    return call_show("--run", run, "--features", *(str(found.feature) for found in followed[:SHOWN]))


def show_all(shared: Sharedness) -> list[Path]:
    """The explorer of the source, beside the runs of both groups and the random one."""
    groups = ["--min_group", *shared.min_group, "--max_group", *shared.max_group]
    beside = [*shared.min_group, *shared.max_group, RANDOM]
    return call_show("--run", shared.source, "--html", "--compare", *beside, *groups)


def call_show(*words: str) -> list[Path]:
    """Run show.py in this process, its command line printed first."""
    print(f"\n$ uv run show.py {shlex.join(words)}", flush=True)
    return show.main(list(words))


def follow(shared: Sharedness) -> list[Followed]:
    """Every feature that fired often enough, by falling Delta, with the factor that it follows best."""
    from comparing.pearson import correlation_matrix

    run = open_run(shared.source)
    codes = run.load(shared.layer)
    planted = [scenes.factors(row) for row in range(run.n_samples)]
    names = list(planted[0])
    r = correlation_matrix(codes, np.array([list(row.values()) for row in planted], dtype=np.float32))
    enough = np.bincount(codes.indices, minlength=codes.shape[1]) >= AT_LEAST
    best = r.argmax(axis=1)
    return [
        Followed(int(i), float(delta), names[best[i]], float(r[i, best[i]]))
        for i, delta in zip(shared.feature, shared.delta, strict=True)
        if enough[i]
    ]


def print_followed(shared: Sharedness, followed: list[Followed]):
    """The top of the list, and its bottom for contrast."""
    line = "{:>8} {:>10.1f}  {:24} {:5.2f}"
    groups = (" and ".join(group) for group in (shared.min_group, shared.max_group))
    print("\nFeatures of {} that {} share more than {} do:".format(shared.source, *groups))
    print(f"{'feature':>8} {'Delta':>10}  {'follows':24} {'r':>5}")
    print(*(line.format(*found) for found in followed[:SHOWN]), sep="\n")
    print("and from the bottom, what the vision-only encoders have as well or better:")
    print(*(line.format(*found) for found in followed[: -SHOWN // 2 - 1 : -1]), sep="\n")


if __name__ == "__main__":
    main()
