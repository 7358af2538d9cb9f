"""Show what a run's features respond to: sheets of their highest samples, a figure for a paper, a report of runs."""

import re
import shlex
import sys
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

import features
from features import Run
from plumbing.commandline import Parser, folder, output, picture, positive, script
from plumbing.errors import UserError

if TYPE_CHECKING:
    import numpy as np

AT_LEAST = 16  # activations: a feature with fewer is hardly one yet


@script
def main(argv=None) -> list[Path]:
    """Write the sheets, the figure or the report; returns the files."""
    arguments = parse(argv)
    if arguments.report:
        return write_report(arguments)
    run = features.open_run(arguments.run)
    layer = run.layer(arguments.layer)
    work = draw_figure if arguments.sheet else draw_sheets
    return work(arguments, run, layer)


def parse(argv) -> Namespace:
    parser = Parser(__doc__)
    add = parser.add_argument
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--run", help="the run to show, a folder name in sae_features/")
    what.add_argument(
        "--report",
        nargs="+",
        metavar="RUN",
        help="one HTML file of these runs: their SAEs, what they share, and the most and least shared features of the "
        "first",
    )
    add("--layer", type=int, default=-1, help="which layer; negative ones count from the end")
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--features", type=int, nargs="+", metavar="N", help="sheets of these features only")
    choice.add_argument(
        "--top",
        type=positive,
        metavar="COUNT",
        help="sheets of so many: by held-out correlation with --compare, else by summed activation, those active on "
        f"over a tenth of the samples last; by default, of all that are active on {AT_LEAST} samples",
    )
    choice.add_argument(
        "--sheet",
        type=int,
        nargs="+",
        metavar="N",
        help="one figure of these features for a paper: of each the highest samples, as squares cut from the "
        "pictures' middles, under its number and name; in a PDF the titles stay text",
    )
    add("--grid", type=grid, metavar="RxC", help="of --sheet (default: 10x10 of one feature, 3x3 of several)")
    add("--compare", nargs="+", default=[], metavar="RUN", help="runs that --top looks for the features in")
    add(
        "--thumb",
        type=side,
        metavar="PX",
        help="the pictures' longer side (160); thumbnails are kept in OUT/thumbs/",
    )
    add("--png", action="store_true", help="sheets as PNG instead of JPEG")
    add("--data_root", help="where the pictures are now, if they have moved")
    add(
        "--out",
        metavar="PLACE",
        help="of sheets the folder (imgs): they go to PLACE/RUN/; of a figure the file",
    )
    words = sys.argv[1:] if argv is None else argv
    return parser.parse_args(words, Namespace(words=words))


def grid(text: str) -> tuple[int, int]:
    """An argument type: rows and columns, as 3x4."""
    found = re.fullmatch(r"([1-9]\d?)x([1-9]\d?)", text)
    if not found:
        raise UserError(f"{text!r} is no grid: give rows and columns of up to 99, such as 10x10")
    return int(found[1]), int(found[2])


def side(text: str) -> int:
    """An argument type: pixels of a thumbnail."""
    if not text.isdecimal() or not 32 <= int(text) <= 1024:
        raise UserError(f"{text!r} is no size of a thumbnail: give 32 to 1024 pixels")
    return int(text)


def draw_sheets(arguments: Namespace, run: Run, layer: str) -> list[Path]:
    """A sheet a feature."""
    place = folder(arguments.out or "imgs")

    import numpy as np

    import data
    from showing import labels, sheets, thumbnails  # after what can be said without the pictures' libraries

    codes, shared = run.load(layer), held_out(run, layer, arguments.compare)
    score = np.min(list(shared.values()), axis=0) if shared else None
    chosen = sheets.chosen_features(codes, arguments.features, arguments.top, AT_LEAST, score)
    if not chosen:
        raise UserError(f"no feature of {layer} is active on {AT_LEAST} samples: name some with --features")
    pairs = data.reopen(run, arguments.data_root)
    suffix, pixels = "png" if arguments.png else "jpg", arguments.thumb or thumbnails.SIDE
    names = labels.names_of(run, layer, codes, pairs.captions)
    files = sheets.save_sheets(run, layer, codes, chosen, pairs, place / run.name, names, suffix, pixels)
    drawn = [feature for feature in chosen if codes[:, [feature]].nnz]
    if silent := len(chosen) - len(files):
        print(f"{silent} of these features of {layer} are active on no sample: no sheets of them")
    for file, feature in zip(files[:5], drawn, strict=False):
        print(
            file, *(f"  held out in {name}: {values[feature]:.3f}" for name, values in shared.items()), sep=""
        )
    if len(files) > 5:
        print(f"and {len(files) - 5} more in {place / run.name}/")
    return files


def held_out(run: Run, layer: str, names: list[str]) -> "dict[str, np.ndarray]":
    """The held-out correlation of each feature with its best partner in each of some runs, float64 [feature]."""
    if not names:
        return {}
    from comparing.per_feature import in_last_layers

    found = in_last_layers(run, layer, [features.open_run(name) for name in names])
    return {name: presence.held_out for name, presence in found.items()}


def draw_figure(arguments: Namespace, run: Run, layer: str) -> list[Path]:
    """One figure of the features asked for."""
    file = picture(arguments.out or f"imgs/{run.name}/{layer}-figure.png")
    shape = arguments.grid or ((10, 10) if len(arguments.sheet) == 1 else (3, 3))

    import data
    from showing import grids, labels, sheets, thumbnails

    codes, pairs = run.load(layer), data.reopen(run, arguments.data_root)
    chosen = list(dict.fromkeys(sheets.chosen_features(codes, arguments.sheet, None, AT_LEAST)))
    kept, pixels = Path("imgs/thumbs"), arguments.thumb or thumbnails.SIDE
    names = labels.names_of(run, layer, codes, pairs.captions)
    grids.save_grid(file, run, layer, codes, chosen, shape, pairs, kept, names, pixels)
    print(file)
    return [file]


def write_report(arguments: Namespace) -> list[Path]:
    """The report of the runs asked for."""
    runs = [features.open_run(name) for name in dict.fromkeys(arguments.report)]
    file = output(arguments.out or f"imgs/report-{runs[0].name}.html")

    from showing import report, thumbnails  # after what can be said without numba

    command = shlex.join(["uv", "run", "show.py", *arguments.words])
    pictures = report.Pictures(arguments.data_root, Path("imgs/thumbs"), arguments.thumb or thumbnails.SIDE)
    report.write_report(file, runs, pictures, AT_LEAST, command)
    print(file)
    return [file]


if __name__ == "__main__":
    main()
