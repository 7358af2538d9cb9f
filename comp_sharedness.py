"""Rank a run's features by Comparative Sharedness: in every run of one group, and in none of the other."""

import csv
import functools
import io
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from commandline import Parser, UserError, output, picture, positive, script


class Sharedness(NamedTuple):
    """Comparative Sharedness of every feature of a layer, best first.

    `feature` int [rank]: their numbers; `delta` and `total` (S, the summed activation) float64 [rank]; `rho`
    float64 [rank] by run: the highest correlation with a feature of that run.
    """

    source: str
    layer: str
    min_group: list[str]
    max_group: list[str]
    feature: np.ndarray
    delta: np.ndarray
    total: np.ndarray
    rho: dict[str, np.ndarray]


@script
def main(argv=None) -> Sharedness:
    """Print the first of the features that M shares with all of G and with none of H; returns all of them."""
    arguments = parse(argv)

    import features

    source = features.open_run(arguments.source)
    groups = [
        [features.open_run(name) for name in group] for group in (arguments.min_group, arguments.max_group)
    ]
    check_groups(source, *groups)
    features.check_aligned([source, *groups[0], *groups[1]])
    for run in (source, *groups[0], *groups[1]):
        run.layer(arguments.layer)

    import comparison  # after what can be said without numba

    shared = compare(source, *groups, arguments.layer)
    if comparison.team().rank == 0:
        report(arguments, source, shared)
    return shared


def parse(argv):
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--source", required=True, metavar="M", help="the run whose features are ranked")
    add("--min_group", required=True, nargs="+", metavar="G", help="runs that all have to have it")
    add("--max_group", required=True, nargs="+", metavar="H", help="runs that none may have it")
    add("--layer", type=int, default=-1, help="of every run; negative ones count from the end")
    add("--top", type=positive, help="how many to print, draw and show (default: 1%% of the features)")
    add("--csv", type=output, metavar="FILE", help="write all features, a line each")
    add("--json", type=output, metavar="FILE", help="write all features, for machines")
    add("--plot", type=picture, metavar="FILE.png", help="draw Delta against S, the first features named")
    add("--show", action="store_true", help="make the sheets of the first features, as show.py does")
    add("--data_root", help="where the pictures for --show are now, if they have moved")
    return parser.parse_args(argv)


def check_groups(source: Any, min_group: list[Any], max_group: list[Any]):
    """Refuse one run in both groups, and say where the source is in one: no Delta could be above zero."""
    g, h = ({run.name for run in group} for group in (min_group, max_group))
    if both := g & h:
        raise UserError(f"run {min(both)!r} is in both groups: leave it out of one")
    if source.name in g | h:
        print(
            f"note: run {source.name!r}, the source, is in a group: it has all of its features",
            file=sys.stderr,
        )


def compare(source: Any, min_group: list[Any], max_group: list[Any], layer: int = -1) -> Sharedness:
    """Delta_i(M -> G, H) of every feature of the source's layer, the same layer number in every run."""
    import comparison
    from scores import sharedness

    others = {run.name: run for run in (*min_group, *max_group)}
    own = source.layer(layer)
    cells = [comparison.Cell(source, own, run, run.layer(layer)) for run in others.values()]
    reader = comparison.Reader()
    rho = {name: forward for name, (forward, _) in zip(others, comparison.rho_of(cells, reader), strict=True)}
    total = reader.sums(source, own).total
    names = [[run.name for run in group] for group in (min_group, max_group)]
    delta = sharedness(*(np.array([rho[name] for name in group]) for group in names), total)
    order = np.argsort(-delta, kind="stable")
    ranked = {name: values[order] for name, values in rho.items()}
    return Sharedness(source.name, own, *names, order, delta[order], total[order], ranked)


# --------------------------------------------------------------------------------------------- reporting


def report(arguments: Any, source: Any, shared: Sharedness):
    """Write the files that are asked for, and print the first features; in this order, since a pipe's reader may
    leave (`| head`).
    """
    import features

    live = np.flatnonzero(shared.total > 0)
    first = live[: arguments.top or max(1, len(shared.feature) // 100)]
    if arguments.csv:
        features.write_text(arguments.csv, as_csv(shared))
    if arguments.json:
        features.write_text(arguments.json, as_json(source, shared))
    if arguments.plot:
        plot(arguments.plot, shared, first)
    print_first(shared, first, len(live))
    if arguments.show:
        show(source, shared, first, arguments.data_root)


def columns(shared: Sharedness) -> dict[str, np.ndarray]:
    """The table's columns by heading, a row a feature."""
    rho = {f"rho {name}": values for name, values in shared.rho.items()}
    return {"feature": shared.feature, "Delta": shared.delta, "S": shared.total, **rho}


def print_first(shared: Sharedness, first: np.ndarray, n_live: int):
    """The first live features (those that ever fired), int [feature] their places in `shared`."""
    print(
        f"{shared.source} {shared.layer}: {n_live} of {len(shared.feature)} features live; the {len(first)} most"
    )
    print(f"shared with    {', '.join(shared.min_group)}\nrather than    {', '.join(shared.max_group)}\n")
    table = columns(shared)
    widths = [max(9, len(heading) + 2) for heading in table]
    print("".join(f"{heading:>{width}}" for heading, width in zip(table, widths, strict=True)))
    for row in zip(*(column[first] for column in table.values()), strict=True):
        texts = [f"{row[0]}", *(f"{value:.2f}" for value in row[1:3]), *(f"{value:.3f}" for value in row[3:])]
        print("".join(f"{text:>{width}}" for text, width in zip(texts, widths, strict=True)))


def as_csv(shared: Sharedness) -> str:
    table = columns(shared)
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(table)
    writer.writerows(zip(*(column.tolist() for column in table.values()), strict=True))
    return file.getvalue()


def as_json(source: Any, shared: Sharedness) -> str:
    arrays = ("feature", "delta", "total")
    document = {**shared._asdict(), **{name: getattr(shared, name).tolist() for name in arrays}}
    document["rho"] = {name: values.tolist() for name, values in shared.rho.items()}
    return (
        json.dumps({"dataset": source.manifest["dataset"], "n_samples": source.n_samples, **document}) + "\n"
    )


def plot(file: Path, shared: Sharedness, first: np.ndarray):
    """Delta against S of every live feature, the first ones in orange and named where there is room."""
    from matplotlib.figure import Figure

    import features

    figure = Figure((8, 5.5), layout="constrained")
    space = figure.subplots()
    live = np.flatnonzero(shared.total > 0)
    rest = live[len(first) :]
    space.axhline(0, color="0.6", linewidth=0.8)
    space.scatter(shared.total[rest], shared.delta[rest], s=9, color="#0072B2", label="features")
    space.scatter(
        shared.total[first],
        shared.delta[first],
        s=22,
        color="#D55E00",
        marker="D",
        label=f"first {len(first)}",
    )
    space.set_xscale("log")
    space.set_yscale("symlog", linthresh=max(np.median(np.abs(shared.delta[live])), 1e-9) if len(live) else 1)
    space.autoscale_view()
    points = np.column_stack([shared.total[first], shared.delta[first]])
    for place in spread_out(space.transData.transform(points)):
        name = str(shared.feature[first[place]])
        space.annotate(name, points[place], (4, 4), textcoords="offset points", fontsize=8)
    space.set_xlabel("S, the feature's summed activation")
    space.set_ylabel("Δ, Comparative Sharedness")
    groups = f"shared with {', '.join(shared.min_group)} rather than {', '.join(shared.max_group)}"
    space.set_title(f"{shared.source}, {shared.layer}: {groups}", fontsize=10, wrap=True)
    space.legend(frameon=False, loc="best")
    with features.replacing(file) as temporary:
        figure.savefig(temporary, dpi=150, format=file.suffix.removeprefix(".") or "png")


def spread_out(pixels: np.ndarray, apart: tuple[float, float] = (30, 12)) -> list[int]:
    """Which points [point, x and y], best first, can be named without covering a better one's name."""
    named = []
    for place, point in enumerate(pixels):
        if not (np.abs(pixels[named] - point) < apart).all(axis=1).any():
            named.append(place)
    return named


def show(source: Any, shared: Sharedness, first: np.ndarray, data_root: str | None):
    """Make the sheets of the first features in imgs/RUN/."""
    from tqdm import tqdm

    import data
    import sheets

    pairs = data.reopen(source, data_root)
    folder = Path("imgs") / source.name
    codes, chosen = source.load(shared.layer), shared.feature[first].tolist()
    progress = functools.partial(tqdm, desc="sheets", file=sys.stderr)
    files = sheets.save_sheets(source, shared.layer, codes, chosen, pairs, folder, progress)
    print(f"\n{len(files)} sheets in {folder}/")


if __name__ == "__main__":
    main()
