"""The whole method on the embedded demo: train and record six encoders, compare them, show what they share.

The demo's scenes are drawn from known factors, so that which concepts two encoders can share is known: see
toyworld/scenes.py. Nothing is downloaded. Every step is one of the toolkit's scripts, printed before it runs.
"""

import os
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

import comp_sharedness
import show
import train_image
import train_text
import wmppc
from comparing.sharedness import Sharedness
from features import open_run
from plumbing.commandline import Parser, positive, script
from toyworld import scenes
from wrappedmodels import REGISTRY

# Encoders this small lose more by waiting for threads than they gain.
os.environ.setdefault("OMP_NUM_THREADS", "1")

ENCODERS = {  # run name: the script that records it, the encoder, and further words
    "demo-clip-image": (train_image.main, "DemoClipVision", "--seeds", "0", "1"),
    "demo-clip-text": (train_text.main, "DemoClipText"),
    "demo-vit": (train_image.main, "DemoViT"),
    "demo-dino": (train_image.main, "DemoDino"),
    "demo-bert": (train_text.main, "DemoBert"),
    "demo-random": (train_image.main, "DemoClipVision", "--random_weights", "0"),
}
SOURCE, CEILING = "demo-clip-image_seed0", "demo-clip-image_seed1"  # two SAE seeds: as alike as two runs get
TEXTS, VISION_ONLY = ["demo-clip-text", "demo-bert"], ["demo-vit", "demo-dino"]
RUNS = [SOURCE, *TEXTS, *VISION_ONLY, "demo-random", CEILING]
PAIRED = "demo-bert"  # the run that SOURCE is set beside in full
RETRAINED = Path("data/demo-encoders")  # git ignores it; the weights in toyworld/weights/ stay as they are
AT_LEAST = 20  # activations of a feature that is listed
SHOWN = 12  # features listed from the top

Result = TypeVar("Result")


class Followed(NamedTuple):
    """A feature, its Comparative Sharedness, and the planted factor that it correlates with most, by r."""

    feature: int
    delta: float
    factor: str
    r: float


@script
def main(argv=None) -> list[Followed]:
    """Run the demo; returns the listed features."""
    parser = Parser(__doc__.splitlines()[0])
    again = f"first train the demo's encoders from scratch, into {RETRAINED}/"
    parser.add_argument("--retrain", action="store_true", help=again)
    parser.add_argument("--limit", type=positive, default=7000, help="so many of the 10,000 samples")
    arguments = parser.parse_args(argv)
    started = time.monotonic()
    if arguments.retrain:
        from toyworld import train_encoders

        train_encoders.main(["--out", str(RETRAINED)])
    common = ["--layers", "all", "--workers", "1", "--limit", str(arguments.limit), "--overwrite"]
    for name, (stage, model, *words) in ENCODERS.items():
        weights = RETRAINED / Path(REGISTRY[model].checkpoint).name
        words = [*words, "--checkpoint", str(weights)] if arguments.retrain else words
        call(stage, "--model", model, *words, "--runname", name, *common)
    call(wmppc.main, "--source", *RUNS, "--target", *RUNS, "--plot", "imgs/demo-wmppc.png")
    call(wmppc.main, "--source", SOURCE, "--target", PAIRED)
    groups = ["--min_group", *TEXTS, "--max_group", *VISION_ONLY]
    followed = follow(call(comp_sharedness.main, "--source", SOURCE, *groups))
    print_followed(followed)
    top = [str(found.feature) for found in followed[:SHOWN]]
    sheets = call(show.main, "--run", SOURCE, "--features", *top)
    print(f"\nDone in {time.monotonic() - started:.0f} s. Runs: sae_features/demo-*/;", end=" ")
    print(f"the matrix: imgs/demo-wmppc.png; the sheets: {sheets[0].parent}/")
    return followed


def call(main: Callable[[list[str]], Result], *words: str) -> Result:
    """Run a script's `main` in this process, its command line printed first."""
    print(f"\n$ uv run {main.__module__}.py {shlex.join(words)}", flush=True)
    return main(list(words))


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


def print_followed(followed: list[Followed]):
    """The top of the list, and its bottom for contrast."""
    line = "{:>8} {:>10.1f}  {:24} {:5.2f}"
    print(
        f"\nFeatures of {SOURCE} that {' and '.join(TEXTS)} share more than {' and '.join(VISION_ONLY)} do:"
    )
    print(f"{'feature':>8} {'Delta':>10}  {'follows':24} {'r':>5}")
    print(*(line.format(*found) for found in followed[:SHOWN]), sep="\n")
    print("and from the bottom, what the vision-only encoders have as well or better:")
    print(*(line.format(*found) for found in followed[: -SHOWN // 2 - 1 : -1]), sep="\n")


if __name__ == "__main__":
    main()
