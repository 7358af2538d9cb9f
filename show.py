"""Show what a run's features respond to: sheets of their highest samples, a figure, a report, an explorer."""

import re
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import features
from features import Run
from plumbing.commandline import Parser, folder, output, picture, positive, script
from plumbing.errors import UserError

if TYPE_CHECKING:
    import numpy as np

AT_LEAST = 16  # activations: a feature with fewer is hardly one yet
MEANINGLESS = {  # what is made, and the flags that would change nothing about it
    "report": ("layer", "features", "top", "sheet", "grid", "compare", "png"),
    "html": ("features", "top", "sheet", "grid", "png"),
    "sheet": ("compare", "png"),
    "": ("grid",),
}


@script
def main(argv=None) -> list[Path]:
    """Write the sheets, the figure, the report or the explorer; returns the files."""
    arguments = parse(argv)
    if arguments.report:
        return write_report(arguments)
    if arguments.html or not arguments.run:
        return explore(arguments)
    run = features.open_run(arguments.run)
    layer = run.layer(arguments.layer)
    work = draw_figure if arguments.sheet else draw_sheets
    return work(arguments, run, layer)


def parse(argv) -> Namespace:
    parser = Parser(__doc__, __file__)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--run", help="the run to show, a folder name in sae_features/")
    what.add_argument(
        "--report",
        nargs="+",
        metavar="RUN",
        help="one HTML file of these runs: their SAEs, what they share, and the most and least shared features of the "
        "first",
    )
    last = "which layer of --run (the last); negative ones count from the end"
    parser.add_argument("--layer", type=int, help=last)
    add_explorer(parser.add_argument)
    choice = parser.add_mutually_exclusive_group()
    add_choice(choice.add_argument)
    add_pictures(parser.add_argument)
    words = sys.argv[1:] if argv is None else argv
    arguments = parser.parse_args(words, Namespace(words=words))
    check(parser, arguments)
    arguments.layer = -1 if arguments.layer is None else arguments.layer
    return arguments


def add_explorer(add: Callable):
    """The flags of the explorer; `add` is a parser's `add_argument`, here and below."""
    add(
        "--html",
        action="store_true",
        help="an explorer of all features of --run: a page that opens from disk",
    )
    serve = "serve the explorer in --out to this machine, and through ssh"
    add("--serve", type=port, metavar="PORT", help=serve)
    where = "of --html: draw where in the pictures each feature of --run fires"
    add("--where", action="store_true", help=where)
    for name in ("min_group", "max_group"):
        add(f"--{name}", nargs="+", default=[], metavar="RUN", help="of --html: as in comp_sharedness.py")
    compare = "runs that --top and --html look for the features in"
    add("--compare", nargs="+", default=[], metavar="RUN", help=compare)


def add_choice(add: Callable):
    """The flags that choose features, of which one is given."""
    add("--features", type=int, nargs="+", metavar="N", help="sheets of these features only")
    add(
        "--top",
        type=positive,
        metavar="COUNT",
        help="sheets of so many: by held-out correlation with --compare, else by summed activation, those active on "
        f"over a tenth of the samples last; by default, of all that are active on {AT_LEAST} samples",
    )
    add(
        "--sheet",
        type=int,
        nargs="+",
        metavar="N",
        help="one figure of these features for a paper: of each the highest samples, as squares cut from the "
        "pictures' middles, under its number and name; in a PDF the titles stay text",
    )


def add_pictures(add: Callable):
    """The flags of how pictures are drawn, and where they go."""
    add("--grid", type=grid, metavar="RxC", help="of --sheet (default: 10x10 of one feature, 3x3 of several)")
    thumb = "the pictures' longer side (160); thumbnails are kept in OUT/thumbs/"
    add("--thumb", type=side, metavar="PX", help=thumb)
    add("--png", action="store_true", help="sheets as PNG instead of JPEG")
    add("--data_root", help="where the pictures are now, if they have moved")
    add(
        "--out",
        metavar="PLACE",
        help="of sheets the folder (imgs): they go to PLACE/RUN/; of a figure or a report the file; of --html the "
        "folder (imgs/explorer)",
    )


def check(parser: Parser, arguments: Namespace):
    """Refuse flags that do not go together."""
    if not (arguments.run or arguments.report or arguments.serve is not None):
        parser.error("name a run with --run, runs with --report, or a port with --serve")
    if arguments.html and not arguments.run:
        parser.error("--html takes the run to show: --run NAME")
    if (arguments.min_group or arguments.max_group or arguments.where) and not arguments.html:
        parser.error("--min_group, --max_group and --where are of --html")
    if bool(arguments.min_group) != bool(arguments.max_group):
        parser.error("--min_group and --max_group are given together")
    if arguments.serve is not None and (arguments.report or (arguments.run and not arguments.html)):
        parser.error("--serve goes with --html, or stands alone")
    mode = next((flag for flag in ("report", "html", "sheet") if getattr(arguments, flag)), "")
    for name in MEANINGLESS[mode]:
        if getattr(arguments, name) != parser.get_default(name):
            parser.error(
                f"--{name} means nothing {f'to --{mode}' if mode else 'without --sheet'}: leave it out"
            )


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


def port(text: str) -> int:
    """An argument type: a port that a user may serve at."""
    if not text.isdecimal() or not 1024 <= int(text) <= 65535:
        raise UserError(f"{text!r} is no port: give 1024 to 65535, such as 8000")
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

    command = ["uv", "run", "show.py", *arguments.words]
    pictures = report.Pictures(arguments.data_root, Path("imgs/thumbs"), arguments.thumb or thumbnails.SIDE)
    report.write_report(file, runs, pictures, AT_LEAST, command)
    print(file)
    return [file]


def explore(arguments: Namespace) -> list[Path]:
    """The explorer of a run, and of those beside it; served where that is asked for."""
    place = folder(arguments.out or "imgs/explorer")
    if arguments.html:
        page = write_explorer(arguments, place)
        other = "" if arguments.serve else f"; on another machine: uv run show.py --serve 8000 --out {place}"
        print(f"{page}: open it in a browser{other}")
    if arguments.serve:
        from showing.serving import serve

        serve(place, arguments.serve)
    return [place / "index.html"]


def write_explorer(arguments: Namespace, place: Path) -> Path:
    """Write it; returns its page."""
    groups = arguments.min_group, arguments.max_group
    names = dict.fromkeys([arguments.run, *arguments.compare, *groups[0], *groups[1]])
    runs = {name: features.open_run(name) for name in names}
    features.check_aligned(list(runs.values()))

    import data
    from showing import explorer_data, thumbnails  # after what can be said without numba

    grouped = (
        explorer_data.Groups(*([runs[name] for name in group] for group in groups)) if groups[0] else None
    )
    pairs, pixels = data.reopen(runs[arguments.run], arguments.data_root), arguments.thumb or thumbnails.SIDE
    command = ["uv", "run", "show.py", *arguments.words]
    kept, layer = Path("imgs/thumbs"), arguments.layer
    unique = list({run.name: run for run in runs.values()}.values())
    return explorer_data.write_explorer(
        explorer_data.Explorer(unique, layer, grouped, pairs, place, kept, pixels, command, arguments.where)
    )


if __name__ == "__main__":
    main()
