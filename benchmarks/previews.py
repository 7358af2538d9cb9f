"""Sheets of a layer's features against a plain loop that opens nine whole pictures a feature and saves a PNG.

uv run benchmarks/previews.py

The rows are COCO's in number; their files are crops of two photographs that scikit-learn ships, 640 x 480 px as JPEG.
Both sides draw the same layout. They take turns on samples of the features, and medians are compared; the time of
all features is computed from them. "Made" counts the thumbnails too: those rows, out of all, that any sheet shows.
"""

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import scipy.sparse
from PIL import Image

from data import Pairs
from features import Run
from plumbing.commandline import Parser, positive, script
from plumbing.progress import Progress
from samples import Samples, Texts
from showing import sheets, thumbnails
from sources.opened import Sample, file_bytes

TIMES_FASTER = 10
FILES = 200  # pictures on the disk, which the rows share


@script
def main(argv=None) -> dict[str, bool]:
    """Print what was measured; returns by target whether it is met."""
    parser = Parser(__doc__, __file__)
    parser.add_argument("--rows", type=positive, default=118_287, help="samples")
    parser.add_argument("--features", type=positive, default=6144, help="of the layer")
    parser.add_argument("--rounds", type=positive, default=7, help="turns of both sides")
    parser.add_argument("--plain", type=positive, default=8, help="sheets of the plain loop in a turn")
    parser.add_argument("--sheets", type=positive, default=96, help="sheets of ours in a turn")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        return measure(Path(folder), arguments)


def measure(folder: Path, arguments) -> dict[str, bool]:
    pairs, codes = photographs(folder, arguments.rows), topk_codes(arguments.rows, arguments.features)
    run = HandMade("clip", folder, manifest(arguments.rows))
    found = list(sheets.highest(codes, list(range(arguments.features))))
    shown = {row for one in found for row in one.rows.tolist()}
    order = np.random.default_rng(0).permutation(arguments.features).tolist()
    times: dict[str, list[float]] = {"plain": [], "thumbnails": [], "sheets": []}
    for number in Progress(range(arguments.rounds), "turns"):
        turn = order[number * arguments.sheets :][: arguments.sheets]
        drawn = {row for one in sheets.highest(codes, turn) for row in one.rows.tolist()}
        times["plain"].append(
            seconds(lambda turn=turn: plain(run, codes, turn[: arguments.plain], pairs, folder))
            / arguments.plain
        )
        times["thumbnails"].append(
            seconds(lambda drawn=drawn: thumbnails.thumbnails(pairs, folder / "thumbs", drawn)) / len(drawn)
        )
        times["sheets"].append(
            seconds(lambda turn=turn: sheets.save_sheets(run, "layer23", codes, turn, pairs, folder / "clip"))
            / len(turn)
        )
    return report(
        arguments.features, len(shown), {name: statistics.median(each) for name, each in times.items()}
    )


def report(features: int, shown: int, each: dict[str, float]) -> dict[str, bool]:
    """Print the seconds of all features, and the ratios."""
    whole = {"plain": features * each["plain"], "kept": features * each["sheets"]}
    whole["made"] = whole["kept"] + shown * each["thumbnails"]
    print(f"a sheet: plain {1e3 * each['plain']:.1f} ms, ours {1e3 * each['sheets']:.1f} ms", end="; ")
    print(
        f"a thumbnail {1e3 * each['thumbnails']:.2f} ms; {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    )
    print(f"{features:,} sheets show {shown:,} pictures: plain {whole['plain']:.0f} s (computed)", end=", ")
    print(f"ours {whole['made']:.0f} s, or {whole['kept']:.0f} s where the thumbnails are kept")
    met = {}
    for name, words in (("kept", "from kept thumbnails"), ("made", "thumbnails made too")):
        ratio = whole["plain"] / whole[name]
        met[words] = ratio >= TIMES_FASTER
        print(f"{'met    ' if met[words] else 'NOT MET'}  {words}: {ratio:.1f} times, of {TIMES_FASTER}")
    return met


def plain(run: Run, codes: scipy.sparse.csr_array, features: list[int], pairs: Pairs, folder: Path):
    """The loop: nine whole pictures a feature, scaled down, and a PNG."""
    for found in sheets.highest(codes, features):
        cells = []
        for row, activation in zip(found.rows.tolist(), found.activations.tolist(), strict=True):
            picture = pairs.image(row)
            picture.thumbnail((thumbnails.SIDE, thumbnails.SIDE), Image.Resampling.LANCZOS, reducing_gap=None)
            cells.append(sheets.Cell(picture, f"{activation:#.3g}", f"row {row}", pairs.caption(row)))
        sheet = sheets.draw(
            f"feature {found.feature}", run.name, cells, sheets.HIGHEST_COLUMNS, thumbnails.SIDE
        )
        sheet.save(folder / f"{found.feature}.png")


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


class HandMade(Run):
    """A run whose samples are made up."""

    def samples(self) -> Samples:
        captions = Texts.of([caption(row) for row in range(self.n_samples)])
        return Samples(captions, captions, captions)


def manifest(rows: int) -> dict:
    return {"encoder": {"modality": "image"}, "n_samples": rows, "layers": ["layer23"]}


def caption(row: int) -> str:
    return f"Picture number {row} of flowers or of roofs, as somebody might describe it"


def photographs(folder: Path, rows: int) -> Pairs:
    """Rows that share FILES pictures: crops of two photographs, 640 x 480 px."""
    from sklearn.datasets import load_sample_images

    whole = [Image.fromarray(pixels).resize((960, 640)) for pixels in load_sample_images().images]
    dice = np.random.default_rng(0)
    files = []
    for number in range(FILES):
        x, y = int(dice.integers(320)), int(dice.integers(160))
        files.append(str(folder / f"{number}.jpg"))
        whole[number % 2].crop((x, y, x + 640, y + 480)).save(files[-1], quality=90)
    names = [files[row % FILES] for row in range(rows)]
    return Pairs(
        "photographs",
        [Sample(str(row), name, [caption(row)], name) for row, name in enumerate(names)],
        file_bytes,
    )


def topk_codes(rows: int, d_sae: int, k: int = 32) -> scipy.sparse.csr_array:
    """Random codes whose features' frequencies follow a power law, `k` active a row (before doubles are merged)."""
    dice = np.random.default_rng(0)
    share = 1 / np.arange(1, d_sae + 1) ** 0.7
    columns = dice.choice(d_sae, rows * k, p=share / share.sum())
    values = dice.gamma(2, size=rows * k).astype(np.float32)
    found = scipy.sparse.coo_array((values, (np.repeat(np.arange(rows), k), columns)), (rows, d_sae)).tocsr()
    found.sum_duplicates()
    return found.tocsc()  # by column, as sheets take it: once for all turns


if __name__ == "__main__":
    main()
