"""Rank a run's features by Comparative Sharedness: in every run of one group, and in none of the other."""

import csv
import io
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from commandline import Parser, UserError, positive, script


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
    """Print the first of the features of M that are in all of G and in none of H; returns all of them."""
    parser = Parser(__doc__)
    parser.add_argument("--source", required=True, metavar="M", help="the run whose features are ranked")
    parser.add_argument(
        "--min_group", required=True, nargs="+", metavar="G", help="runs that all have to have it"
    )
    parser.add_argument(
        "--max_group", required=True, nargs="+", metavar="H", help="runs that none may have it"
    )
    parser.add_argument(
        "--layer", type=int, default=-1, help="of every run; negative ones count from the end"
    )
    parser.add_argument("--top", type=positive, help="print so many features (default: 1%% of them)")
    parser.add_argument("--csv", type=output, metavar="FILE", help="write all features")
    parser.add_argument("--json", type=output, metavar="FILE", help="write all features, for machines")
    arguments = parser.parse_args(argv)

    import features

    source = features.open_run(arguments.source)
    groups = [
        [features.open_run(name) for name in group] for group in (arguments.min_group, arguments.max_group)
    ]
    features.check_aligned([source, *groups[0], *groups[1]])
    shared = compare(source, *groups, arguments.layer)
    print_top(shared, arguments.top or max(1, len(shared.feature) // 100))
    if arguments.csv:
        features.write_text(arguments.csv, as_csv(shared))
    if arguments.json:
        features.write_text(arguments.json, as_json(source, shared))
    return shared


def output(text: str) -> Path:
    """An argument type: a file to write, in a folder that exists."""
    if not Path(text).parent.is_dir():
        raise UserError(f"{text}: there is no folder {Path(text).parent}/ to write into; make it first")
    return Path(text)


def compare(source: Any, min_group: list[Any], max_group: list[Any], layer: int = -1) -> Sharedness:
    """Delta_i(M -> G, H) of every feature of the source's layer, the same layer number in every run."""
    from tqdm import tqdm

    import correlation

    codes = correlation.Codes(source.load(source.layer(layer)))
    rho = {}
    for run in tqdm([*min_group, *max_group], desc="runs", disable=None, leave=False):
        if run.name not in rho:
            rho[run.name] = correlation.max_correlation(codes, run.load(run.layer(layer))).rho
    total = codes.sums().total
    names = [[run.name for run in group] for group in (min_group, max_group)]
    delta = correlation.sharedness(*(np.array([rho[name] for name in group]) for group in names), total)
    order = np.argsort(-delta, kind="stable")
    ranked = {name: values[order] for name, values in rho.items()}
    return Sharedness(source.name, source.layer(layer), *names, order, delta[order], total[order], ranked)


# --------------------------------------------------------------------------------------------- reporting


def columns(shared: Sharedness) -> dict[str, np.ndarray]:
    """The table's columns by heading, a row a feature."""
    rho = {f"rho {name}": values for name, values in shared.rho.items()}
    return {"feature": shared.feature, "Delta": shared.delta, "S": shared.total, **rho}


def print_top(shared: Sharedness, top: int):
    """The first `top` features; a live feature is one that fired."""
    live = int((shared.total > 0).sum())
    top = min(top, len(shared.feature))
    print(
        f"{shared.source} {shared.layer}: {live} of {len(shared.feature)} features live; the first {top} are"
    )
    print(f"in all of    {', '.join(shared.min_group)}\nin none of   {', '.join(shared.max_group)}\n")
    table = columns(shared)
    widths = [max(9, len(heading) + 2) for heading in table]
    print("".join(f"{heading:>{width}}" for heading, width in zip(table, widths, strict=True)))
    for row in zip(*(column[:top] for column in table.values()), strict=True):
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


if __name__ == "__main__":
    main()
