"""How good the SAEs are: our recipe against the original's, on the same activations and the same number of tokens.

Every layer of two encoders or more is trained twice by the train scripts, once with each --recipe (trainer.py), and
scored on the same held-out samples. Targets: FVU at most 0.5 times and dead latents at most 0.2 times the original's.

Without arguments: two encoders of the demo. With real encoders, those of `packaged_encoders.py` for example:

    uv run benchmarks/sae_quality.py --models DinoV2 --checkpoint real/dino --dataset folder --data_root real/pictures \
        --top_k 32 --batch_size 4 --epochs 1
    uv run benchmarks/sae_quality.py --models Bert --checkpoint real/minilm --dataset folder --data_root real/sentences \
        --top_k 32 --batch_size 48 --epochs 1
"""

import contextlib
import io
import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import train_image
import train_text
from plumbing.commandline import Parser, positive, script

FVU_TARGET, DEAD_TARGET = 0.5, 0.2


@script
def main(argv=None) -> list[tuple]:
    """Print the table; returns its rows: model, layer, both FVUs, both dead fractions."""
    parser = Parser(__doc__, __file__)
    parser.add_argument(
        "--models", nargs="+", default=["DemoDino", "DemoBert"], help="encoders of the registry"
    )
    parser.add_argument("--checkpoint", help="the weights of the one model: a hub name or a folder")
    parser.add_argument("--epochs", type=positive, default=7, help="7 of the demo's are 1.1 million tokens")
    parser.add_argument("--expansion_factor", type=positive, default=8)
    parser.add_argument("--top_k", type=positive, default=16)
    parser.add_argument("--batch_size", type=positive, default=32)
    parser.add_argument("--dataset", default="demo")
    parser.add_argument("--data_root")
    parser.add_argument("--limit", type=positive)
    arguments = parser.parse_args(argv)
    typed = {name: value for name, value in vars(arguments).items() if name != "models" and value is not None}
    for name in ("checkpoint", "data_root"):  # each run is made in a folder of its own
        if name in typed and Path(typed[name]).exists():
            typed[name] = Path(typed[name]).resolve()
    words = [word for name, value in typed.items() for word in (f"--{name}", str(value))]
    rows = [row for model in arguments.models for row in compare(model, words)]
    report(rows)
    return rows


def compare(model: str, words: list[str]) -> list[tuple]:
    """Train one encoder's SAEs by both recipes, in a folder that is thrown away."""
    stage = train_text if model in train_text.ENCODERS else train_image
    manifests, here = {}, Path.cwd()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        os.chdir(folder)
        try:
            for recipe in ("original", "ours"):
                own = ["--model", model, "--layers", "all", "--recipe", recipe, "--runname", recipe]
                (run,) = stage.main([*own, *words])
                manifests[recipe] = run.manifest
        finally:
            os.chdir(here)
    old, new = manifests["original"], manifests["ours"]
    return [
        (
            model,
            layer,
            old["fvu"][layer],
            new["fvu"][layer],
            old["dead_fraction"][layer],
            new["dead_fraction"][layer],
        )
        for layer in new["layers"]
    ]


def report(rows: list[tuple]):
    """The table, and whether each target is met on every layer."""
    print(
        f"{'encoder':16} {'layer':8} {'FVU original':>13} {'ours':>7} {'ratio':>6} {'dead original':>14} {'ours':>7} {'ratio':>6}"
    )
    for model, layer, old_fvu, new_fvu, old_dead, new_dead in rows:
        dead = f"{new_dead / old_dead:6.2f}" if old_dead else f"{'-':>6}"
        print(
            f"{model:16} {layer:8} {old_fvu:13.3f} {new_fvu:7.3f} {new_fvu / old_fvu:6.2f} "
            f"{old_dead:14.3f} {new_dead:7.3f} {dead}"
        )
    fvu_met = all(new <= FVU_TARGET * old for _, _, old, new, _, _ in rows)
    dead_met = all(new <= DEAD_TARGET * old for _, _, _, _, old, new in rows)
    print(f"FVU at most {FVU_TARGET} times the original's on every layer: {'met' if fvu_met else 'NOT met'}")
    print(
        f"dead at most {DEAD_TARGET} times the original's on every layer: {'met' if dead_met else 'NOT met'}"
    )


if __name__ == "__main__":
    main()
