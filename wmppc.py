"""Score how much of one run's features another run has: wMPPC (arXiv 2507.18512), and its floor of chance.

One source and one target give both directions and the layers; several give a matrix.
"""

import csv
import fnmatch
import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from commandline import Parser, UserError, output, picture, positive, script

METRICS = ("wmppc", "mppc", "hungarian", "cka", "mutual_knn")
LABELS = {
    "wmppc": "wMPPC",
    "mppc": "MPPC",
    "hungarian": "one-to-one matching",
    "cka": "linear CKA",
    "mutual_knn": "mutual 10 nearest neighbours",
}


@script
def main(argv=None) -> tuple[Any, ...]:
    """Print the scores; returns a `comparison.Direction` a source and target, and for one pair both ways."""
    arguments = parse(argv)

    import features

    sources, targets = (chosen_runs(words, features) for words in (arguments.source, arguments.target))
    runs = {run.name: run for run in (*sources, *targets)}
    features.check_aligned(list(runs.values()))

    import comparison  # after what can be said without numba

    one_pair = len(sources) == len(targets) == 1
    arguments.metrics = arguments.metrics or (["wmppc", "mppc"] if one_pair else ["wmppc"])
    reader = comparison.Reader(arguments.memory and arguments.memory << 30)
    found = {}
    for a, b in wanted_pairs(sources, targets):
        forward, backward = comparison.compare(runs[a], runs[b], arguments.metrics, reader)
        found[a, b], found[b, a] = forward, backward
    names = [(a.name, b.name) for a in sources for b in targets]
    both_ways = dict.fromkeys([*names, names[0][::-1]] if one_pair else names)  # of a run and itself: one
    directions = tuple(found[pair] for pair in both_ways)
    if comparison.team().rank == 0:
        report(arguments, sources[0], directions, one_pair)
    return directions


def parse(argv):
    parser = Parser(__doc__.splitlines()[0])
    add = parser.add_argument
    runs = "runs: folder names in sae_features/, or patterns such as 'clip*' (quoted)"
    add("--source", required=True, nargs="+", metavar="RUN", help=runs)
    add("--target", required=True, nargs="+", metavar="RUN", help="the runs that they are compared with")
    add("--metrics", nargs="+", choices=METRICS, help="scores (default: wmppc, and for one pair mppc too)")
    add("--csv", type=output, metavar="FILE", help="write the scores, a line each")
    add("--json", type=output, metavar="FILE", help="write everything that is printed, for machines")
    add("--plot", type=picture, metavar="FILE.png", help="draw the matrix; for one pair, its layers")
    add(
        "--memory",
        type=positive,
        metavar="GIB",
        help="for runs held at once, by all processes of a machine (default: half of what is free)",
    )
    return parser.parse_args(argv)


def chosen_runs(words: list[str], features: Any) -> list[Any]:
    """The runs of names and shell patterns, each once, in the order given."""
    names = []
    for word in words:
        names += matching_runs(word, features) if set(word) & set("*?[") else [word]
    runs = [features.open_run(name) for name in names]
    return list({run.name: run for run in runs}.values())


def matching_runs(pattern: str, features: Any) -> list[str]:
    """The names of the runs that a pattern matches; what else it matches is left out, which is said."""
    path, root = Path(os.path.abspath(pattern)), features.ROOT.absolute()
    name = path.name if path.parent == root else pattern
    runs = features.run_names()
    found = fnmatch.filter(runs, name)
    others = {entry.name for entry in root.iterdir()} - set(runs) if root.is_dir() else set()
    left_out = [other for other in fnmatch.filter(sorted(others), name) if not other.startswith(".")]
    if left_out:
        print(f"note: {pattern!r} leaves out {', '.join(left_out)}: no finished runs", file=sys.stderr)
    if not found:
        raise UserError(f"no run matches {pattern!r}; recorded runs: {', '.join(runs) or 'none yet'}")
    return found


def wanted_pairs(sources: list[Any], targets: list[Any]) -> list[tuple[str, str]]:
    """Each pair once, since both of its directions come together; a source's pairs follow each other."""
    pairs = {}
    for source in sources:
        for target in targets:
            pairs.setdefault(frozenset((source.name, target.name)), (source.name, target.name))
    return list(pairs.values())


# --------------------------------------------------------------------------------------------- reporting


def report(arguments: Any, run: Any, directions: tuple[Any, ...], one_pair: bool):
    """Write the files that are asked for, and print; in this order, since a pipe's reader may leave (`| head`)."""
    import features

    if arguments.csv:
        features.write_text(arguments.csv, as_csv(directions, arguments.metrics))
    if arguments.json:
        features.write_text(arguments.json, as_json(run, directions))
    if arguments.plot:
        (plot_layers if one_pair else plot_matrix)(arguments.plot, directions)
    print(f"{run.n_samples} samples of {run.manifest['dataset']['name']}")
    (print_pair if one_pair else print_matrix)(directions, arguments.metrics)


def print_pair(directions: tuple[Any, ...], metrics: list[str]):
    """The scores of both directions (a run against itself has one), then the layer-by-layer tables."""
    names = [f"{d.source} -> {d.target}" for d in directions]
    print()
    for d in directions:
        print(f"{d.source}: {sum(d.live)} of {sum(d.features)} features live, {d.live[-1]} in the last layer")
    labels = max(len(LABELS[metric]) for metric in metrics) + 2
    width = max(map(len, names))
    print(f"\n{'':{labels + width}}{'all layers':>13}{'floor':>8}{'last layer':>13}{'floor':>8}")
    for metric in metrics:
        both = directions if "all_layers" in directions[0].scores[metric] else directions[:1]
        for d in both:
            name = f"{d.source} {'->' if 'all_layers' in d.scores[metric] else '<->'} {d.target}"
            pairs = [d.scores[metric].get(scope) for scope in ("all_layers", "last_layer")]
            cells = "".join(f"{number(s.value):>13}{number(s.floor):>8}" if s else " " * 21 for s in pairs)
            print(f"{LABELS[metric]:{labels}}{name:{width}}{cells}")
    for name, d in zip(names, directions, strict=True):
        print(f"\nwMPPC layer by layer, {name} (rows -> columns)")
        print_table(d.source_layers, d.target_layers, [[cell.value for cell in row] for row in d.layers])
    print(f"\n{FLOOR}")


FLOOR = "floor: the same score with the rows of one side permuted, which is what chance alone reaches"


def print_matrix(directions: tuple[Any, ...], metrics: list[str]):
    """A table a metric, and one of its floors: rows are sources, columns targets, which are numbered."""
    rows, columns = axes(directions)
    everyone = list(dict.fromkeys([*rows, *columns]))
    labels = {name: f"[{i + 1}] {name}" for i, name in enumerate(everyone)}
    for metric in metrics:
        for scope, words in (("all_layers", "all layers"), ("last_layer", "last layer")):
            if scope in directions[0].scores[metric]:
                for kind, note in (("value", "rows -> columns"), ("floor", "floors")):
                    print(f"\n{LABELS[metric]}, {words} ({note})")
                    cells = grid(directions, metric, scope, kind)
                    print_table(
                        [labels[row] for row in rows],
                        [labels[column].split()[0] for column in columns],
                        cells,
                    )
    print(f"\n{FLOOR}")


def axes(directions: tuple[Any, ...]) -> tuple[list[str], list[str]]:
    """The names of the sources and of the targets, each once, in their order."""
    return tuple(list(dict.fromkeys(getattr(d, side) for d in directions)) for side in ("source", "target"))


def grid(directions: tuple[Any, ...], metric: str, scope: str, kind: str) -> np.ndarray:
    """A metric's numbers as float64 [source, target]; NaN where there is none."""
    rows, columns = axes(directions)
    by_pair = {(d.source, d.target): getattr(d.scores[metric][scope], kind) for d in directions}
    return np.array([[by_pair[row, column] for column in columns] for row in rows])


def print_table(rows: list[str], columns: list[str], cells: Any):
    widths = [max(7, len(column) + 2) for column in columns]
    margin = max(map(len, rows))
    print(" " * margin + "".join(f"{column:>{width}}" for column, width in zip(columns, widths, strict=True)))
    for row, values in zip(rows, cells, strict=True):
        print(f"{row:{margin}}" + "".join(f"{number(v):>{w}}" for v, w in zip(values, widths, strict=True)))


def number(value: float) -> str:
    """Three decimals; a dash where there is no score, since no feature of the layer is live."""
    return "-" if np.isnan(value) else f"{value:.3f}"


def as_json(run: Any, directions: tuple[Any, ...]) -> str:
    """Everything as JSON; a missing score is null."""
    from comparison import plain

    document = {
        "dataset": run.manifest["dataset"],
        "n_samples": run.n_samples,
        "directions": plain(directions),
    }
    return json.dumps(document, indent=2) + "\n"


def as_csv(directions: tuple[Any, ...], metrics: list[str]) -> str:
    """A line a score: of all layers, of the last ones, and the wMPPC of each layer with each layer."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["source", "target", "metric", "source_layer", "target_layer", "score", "floor"])
    for d in directions:
        for metric in metrics:
            for scope, score in d.scores[metric].items():
                layers = (
                    ("all", "all") if scope == "all_layers" else (d.source_layers[-1], d.target_layers[-1])
                )
                writer.writerow([d.source, d.target, metric, *layers, *score])
        for layer, row in zip(d.source_layers, d.layers, strict=True):
            for other, score in zip(d.target_layers, row, strict=True):
                if (layer, other) != (d.source_layers[-1], d.target_layers[-1]):
                    writer.writerow([d.source, d.target, "wmppc", layer, other, *score])
    return file.getvalue()


# --------------------------------------------------------------------------------------------- pictures


def plot_matrix(file: Path, directions: tuple[Any, ...]):
    """The run x run heat map of wMPPC over all layers."""
    rows, columns = axes(directions)
    figure, (left,) = panels([(len(rows), len(columns))])
    title = "wMPPC, all layers (rows -> columns)"
    heat_map(left, rows, columns, grid(directions, "wmppc", "all_layers", "value"), title)
    save(figure, file)


def plot_layers(file: Path, directions: tuple[Any, ...]):
    """The layer x layer heat maps of one pair of runs, both ways, on one scale from 0 to the highest."""
    highest = np.nanmax([score.value for d in directions for row in d.layers for score in row] + [0.1])
    figure, spaces = panels([(len(d.source_layers), len(d.target_layers)) for d in directions])
    for space, d in zip(spaces, directions, strict=True):
        cells = np.array([[score.value for score in row] for row in d.layers])
        title = f"wMPPC, {d.source} -> {d.target}"
        heat_map(space, d.source_layers, d.target_layers, cells, title, np.ceil(highest * 10) / 10)
        space.set_ylabel(f"layers of {d.source}")
        space.set_xlabel(f"layers of {d.target}")
    save(figure, file)


def panels(shapes: list[tuple[int, int]]) -> tuple[Any, Any]:
    """A figure with a space for each grid of [rows, columns], large enough for its numbers."""
    from matplotlib.figure import Figure

    widths = [max(4.0, 0.62 * columns + 2.6) for _, columns in shapes]
    height = max(3.2, 0.5 * max(rows for rows, _ in shapes) + 2.2)
    figure = Figure((sum(widths), height), layout="constrained")
    return figure, figure.subplots(1, len(shapes), width_ratios=widths, squeeze=False)[0]


def heat_map(
    space: Any, rows: list[str], columns: list[str], cells: np.ndarray, title: str, highest: float = 1.0
):
    """Numbers on colours from 0 to `highest`, rows from the top; colour-blind readers see cividis alike."""
    from matplotlib import colormaps

    colours = colormaps["cividis"].with_extremes(bad="white")
    image = space.imshow(np.ma.masked_invalid(cells), cmap=colours, vmin=0, vmax=highest)
    space.set_xticks(range(len(columns)), columns, rotation=45, ha="right", rotation_mode="anchor")
    space.set_yticks(range(len(rows)), rows)
    size = 9 if len(columns) <= 14 else 6
    for (i, j), value in np.ndenumerate(cells):
        colour = "black" if not value <= 0.55 * highest else "white"
        space.text(j, i, number(value), ha="center", va="center", color=colour, fontsize=size)
    space.set_title(title, fontsize=10)
    space.figure.colorbar(image, ax=space, shrink=0.8)


def save(figure: Any, file: Path):
    """Write the picture whole or not at all."""
    import features

    with features.replacing(file) as temporary:
        figure.savefig(temporary, dpi=150, format=file.suffix.removeprefix(".") or "png")


if __name__ == "__main__":
    main()
