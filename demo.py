"""The whole method on the embedded demo: train and record six encoders, compare them, show what they share.

The demo's scenes are drawn from known factors, so that which concepts two encoders can share is known: see
toyworld/scenes.py. Nothing is downloaded. Every step is one of the toolkit's scripts, printed before it runs.
"""

import os
import shlex
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import comp_sharedness
import show
import train_image
import train_text
import wmppc
from comparing.sharedness import Sharedness
from plumbing.commandline import Parser, positive, script

os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # encoders this small lose more by waiting for threads than they gain

ENCODERS = {  # run name: the script that records it, and its words
    "demo-clip-image": (train_image, "--model", "DemoClipVision", "--seeds", "0", "1"),
    "demo-clip-text": (train_text, "--model", "DemoClipText"),
    "demo-vit": (train_image, "--model", "DemoViT"),
    "demo-dino": (train_image, "--model", "DemoDino"),
    "demo-bert": (train_text, "--model", "DemoBert"),
    "demo-random": (train_image, "--model", "DemoRandomVision"),
}

SOURCE, CEILING = "demo-clip-image_seed0", "demo-clip-image_seed1"  # two SAE seeds: as alike as two runs get

TEXTS, VISION_ONLY = ["demo-clip-text", "demo-bert"], ["demo-vit", "demo-dino"]

RUNS = [SOURCE, *TEXTS, *VISION_ONLY, "demo-random", CEILING]

RETRAINED = Path(
    "data/demo-encoders"
)  # git ignores it; toyworld/weights/ holds the weights that are part of the repository

AT_LEAST = 20  # activations of a feature that is listed

SHOWN = 12  # features listed from the top


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
    parser.add_argument(
        "--retrain",
        action="store_true",
        help=f"first train the demo's encoders from scratch, into {RETRAINED}/",
    )
    parser.add_argument("--limit", type=positive, default=7000, help="so many of the 10,000 samples")
    arguments = parser.parse_args(argv)
    started = time.monotonic()
    if arguments.retrain:
        from toyworld import train_encoders

        train_encoders.main(["--out", str(RETRAINED)])
    common = ["--layers", "all", "--workers", "1", "--limit", str(arguments.limit), "--overwrite"]
    for name, (stage, *words) in ENCODERS.items():
        weights = retrained_weights(words[1]) if arguments.retrain else []
        call(stage, *words, *weights, "--runname", name, *common)
    call(wmppc, "--source", *RUNS, "--target", *RUNS, "--plot", "imgs/demo-wmppc.png")
    shared = call(comp_sharedness, "--source", SOURCE, "--min_group", *TEXTS, "--max_group", *VISION_ONLY)
    followed = follow(shared)
    print_followed(followed)
    top = [str(found.feature) for found in followed[:SHOWN]]
    sheets = call(show, "--run", SOURCE, "--features", *top)
    print(
        f"\nDone in {time.monotonic() - started:.0f} s. Runs: sae_features/demo-*/; the matrix: imgs/demo-wmppc.png; "
        f"the sheets: {sheets[0].parent}/"
    )
    return followed


def retrained_weights(model: str) -> list[str]:
    """The words that name the weights of our own training, for one of the demo's encoders."""
    from wrappedmodels import REGISTRY

    return ["--checkpoint", str(RETRAINED / Path(REGISTRY[model].checkpoint).name)]


def call(stage: Any, *words: str) -> Any:
    """Run a stage script in this process, its command line printed first."""
    print(f"\n$ uv run {stage.__name__}.py {shlex.join(words)}", flush=True)
    return stage.main(list(words))


def follow(shared: Sharedness) -> list[Followed]:
    """Every feature that fired often enough, by falling Delta, with the factor that it follows best."""
    import features
    from comparing.pearson import correlation_matrix

    run = features.open_run(shared.source)
    codes = run.load(shared.layer)
    names, planted = planted_factors(run.n_samples)
    r = correlation_matrix(codes, planted)
    enough = np.bincount(codes.indices, minlength=codes.shape[1]) >= AT_LEAST
    best = r.argmax(axis=1)
    return [
        Followed(int(i), float(delta), names[best[i]], float(r[i, best[i]]))
        for i, delta in zip(shared.feature, shared.delta, strict=True)
        if enough[i]
    ]


def planted_factors(n_samples: int) -> tuple[list[str], np.ndarray]:
    """The names of the planted factors and their values, float32 [n_samples, factor]."""
    from toyworld import scenes

    rows = [scenes.factors(row) for row in range(n_samples)]
    return list(rows[0]), np.array([list(row.values()) for row in rows], dtype=np.float32)


def print_followed(followed: list[Followed]):
    """The top of the list, and its bottom for contrast."""
    print(
        f"\nFeatures of {SOURCE} that {' and '.join(TEXTS)} share more than {' and '.join(VISION_ONLY)} do:"
    )
    print(f"{'feature':>8} {'Delta':>10}  {'follows':24} {'r':>5}")
    for found in followed[:SHOWN]:
        print(f"{found.feature:>8} {found.delta:>10.1f}  {found.factor:24} {found.r:5.2f}")
    print("and from the bottom, what the vision-only encoders have as well or better:")
    for found in followed[: -SHOWN // 2 - 1 : -1]:
        print(f"{found.feature:>8} {found.delta:>10.1f}  {found.factor:24} {found.r:5.2f}")


if __name__ == "__main__":
    main()
