"""Train the demo's encoders from scratch, save them in ordinary folders, and probe what they know.

`python -m toyworld.train_encoders` takes about ten minutes on one core and rewrites `toyworld/weights/`:

    clip    an open_clip image and text tower, trained on matching pictures and captions
    vit     a vision transformer, trained on which shapes occur
    dino    a DINOv2 architecture, trained to give two views of a picture the same code, with no labels
    bert    a BERT, trained to fill in masked words

Each has 3 blocks of width 96 and sees a picture as 16 patches of 8 x 8 pixels. The rows that it trains on are
not those of the evaluation pairs.
"""

import time
from pathlib import Path

import torch

from plumbing.commandline import Parser, positive
from toyworld import scenes
from toyworld.lessons import Recipe, Training
from toyworld.objectives import train_bert, train_clip, train_dino, train_vit
from toyworld.probe import probe

WEIGHTS = Path(__file__).parent / "weights"
N_TRAIN = 40_000  # training scenes

RECIPES = {
    "clip": Recipe(2400, 128, 1e-3),
    "vit": Recipe(1600, 64, 1e-3),
    "dino": Recipe(1200, 64, 1e-3),
    "bert": Recipe(800, 128, 1e-3),
}
TRAINERS = {"clip": train_clip, "vit": train_vit, "dino": train_dino, "bert": train_bert}


def main(argv: list[str] | None = None) -> dict[str, dict[str, float]]:
    """Train, save and probe the encoders asked for; returns the table that it prints."""
    parser = Parser(__doc__, __file__)
    parser.prog = "python -m toyworld.train_encoders"
    parser.add_argument("--only", nargs="+", choices=RECIPES, default=list(RECIPES), help="encoders to train")
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="folder to write the encoders into")
    parser.add_argument("--steps", type=positive, help="steps of training, in place of each encoder's own")
    parser.add_argument("--probe", action="store_true", help="only probe the folders as they are")
    parser.add_argument("--threads", type=positive, default=1, help="threads of torch")
    arguments = parser.parse_args(argv)
    threads = torch.get_num_threads()
    torch.set_num_threads(arguments.threads)
    try:
        seconds = {} if arguments.probe else train(arguments.only, arguments.out, arguments.steps)
        table = {
            tower: row for name in arguments.only for tower, row in probe(name, arguments.out / name).items()
        }
    finally:
        torch.set_num_threads(threads)
    print_table(table, seconds)
    return table


def train(names: list[str], out: Path, steps: int | None) -> dict[str, float]:
    """Train and save each encoder; returns the seconds that each took."""
    data, seconds = Training(N_TRAIN), {}
    for name in names:
        start = time.perf_counter()
        torch.manual_seed(scenes.TRAINING_SEED)
        recipe = RECIPES[name] if steps is None else RECIPES[name]._replace(steps=steps)
        TRAINERS[name](data, recipe, out / name)
        seconds[name] = time.perf_counter() - start
    return seconds


def print_table(table: dict[str, dict[str, float]], seconds: dict[str, float]):
    """A row an encoder, a column a group of factors."""
    groups = list(dict.fromkeys(group for scores in table.values() for group in scores))
    print(f"{'encoder':12}{'seconds':>9}" + "".join(f"{group[:10]:>12}" for group in groups))
    for name, scores in table.items():
        took = seconds.get(name.split()[0])
        cells = [f"{scores[group]:>12.3f}" if group in scores else f"{'':>12}" for group in groups]
        print(f"{name:12}{'' if took is None else f'{took:.0f}':>9}" + "".join(cells))


if __name__ == "__main__":
    main()
