"""Results as tables for a person, and as CSV and JSON for machines."""

import csv
import io
import json
import textwrap
from collections.abc import Iterable, Mapping

import numpy as np
from jaxtyping import Float, Int

from comparing.results import NORMAL_95, Direction, axes, grid, number
from comparing.sharedness import Sharedness
from features import Run

LABELS = {
    "wmppc": "wMPPC",
    "mppc": "MPPC",
    "soft_matching": "soft matching, held out",
    "cka": "linear CKA, debiased",
    "knn": "mutual 10 nearest neighbours",
    "pw_mcc": "PW-MCC of the decoders",
}

NAME_WIDTH = 32  # characters of a feature's name in a table

HELD_OUT = (
    "held out: partners chosen on one half of the samples and scored on the other; 0 where nothing is shared"
)
FLOOR = "floor: the same score with the rows of one side permuted, which is what chance alone reaches"


def as_csv(rows: Iterable[Iterable]) -> str:
    """Rows of cells, the headings first, as CSV."""
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows(rows)
    return file.getvalue()


def as_json(run: Run, found: dict[str, object], indent: int | None = None) -> str:
    """What was found, with the data that the runs are of; a missing score is null."""
    samples = {"dataset": run.manifest["dataset"], "n_samples": run.n_samples}
    return json.dumps(samples | found, indent=indent) + "\n"


def sharedness_columns(shared: Sharedness, names: Mapping[int, str]) -> dict[str, np.ndarray]:
    """The table's columns by heading, a row a feature; `names` are those of features that have one."""
    columns = {"feature": shared.feature}
    if names:
        columns["name"] = np.array([names.get(feature, "") for feature in shared.feature.tolist()])
    if shared.status is not None:
        columns["status"] = np.array(shared.status)
    columns |= {"Delta": shared.delta, "g2-h2": shared.gap, "S": shared.total, "S %": 100 * shared.share}
    return columns | {f"rho {name}": values for name, values in shared.rho.items()}


def print_sharedness(
    shared: Sharedness, first: Int[np.ndarray, " place"], n_live: int, names: Mapping[int, str]
):
    """The first live features (those that ever fired); `first` holds their places in `shared`."""
    live = f"{n_live} of {len(shared.feature)} features live"
    print(f"{shared.source} {shared.layer}: {live}; the {len(first)} most")
    print(f"shared with    {', '.join(shared.min_group)}\nrather than    {', '.join(shared.max_group)}\n")
    if shared.counts is not None:
        print(", ".join(f"{words}: {count}" for words, count in shared.counts.items()), end="\n\n")
    short = {number: textwrap.shorten(name, NAME_WIDTH, placeholder=" …") for number, name in names.items()}
    table = sharedness_columns(shared, short)
    if shared.held_out is not None and shared.least is not None:
        columns = {name.removeprefix("rho "): column for name, column in table.items()}
        table = columns | shared.held_out | {"least of G": np.array(shared.least)}
    rows = [list(map(cell, row)) for row in zip(*(column[first] for column in table.values()), strict=True)]
    widths = [max(9, *(len(text) + 2 for text in column)) for column in zip(table, *rows, strict=True)]
    for row in (list(table), *rows):
        print("".join(f"{text:>{width}}" for text, width in zip(row, widths, strict=True)))
    if shared.held_out is not None:
        print(
            "\nDelta = S (g2-h2): the least r² over G less the highest over H, of all samples; S %: of the layer's S"
        )
        present, absent = shared.thresholds or (None, None)
        print(
            f"under a run: the held-out correlation with its best partner there; present, absent: surely at least {present}"
        )
        print(
            f"in all of G, surely at most {absent} in all of H, else the run that breaks it; Delta above 0 is not yet absent"
        )
        if not names:
            number = shared.layer.removeprefix("layer")
            print(f"no names yet: uv run show.py --run {shared.source} --layer {number} finds them")
    if shared.other_seed is not None:
        print(f"{shared.other_seed}: the source's own SAE from another seed")


def cell(value: object) -> str:
    """A table's entry: words and whole numbers as they are, else two or three decimals."""
    if not isinstance(value, float):
        return str(value)
    return f"{value:.3f}" if abs(value) <= 1 else f"{value:.2f}"


def intervals(shared: Sharedness) -> dict[str, dict[str, np.ndarray]]:
    """The "low" and "high" ends of each held-out correlation's 95 % interval, float64 [rank] by run; {} without."""
    if shared.held_out is None or shared.error is None:
        return {}
    held, error = shared.held_out, shared.error
    ends = {"low": -NORMAL_95, "high": NORMAL_95}
    return {end: {run: held[run] + times * error[run] for run in held} for end, times in ends.items()}


def sharedness_csv(shared: Sharedness, names: Mapping[int, str]) -> str:
    """A line a feature, best first: with statuses also each held-out correlation and its 95 % interval."""
    table = sharedness_columns(shared, names)
    bounds = intervals(shared)
    for name, values in (shared.held_out or {}).items():
        table |= {f"held out {name}": values, **{f"{end} {name}": bounds[end][name] for end in bounds}}
    if shared.least is not None:
        table["least of G"] = np.array(shared.least)
    return as_csv([table, *zip(*(column.tolist() for column in table.values()), strict=True)])


def sharedness_json(source: Run, shared: Sharedness, names: Mapping[int, str]) -> str:
    """Every field of `shared`, for every feature, and the `names` by feature."""
    arrays = {name: getattr(shared, name).tolist() for name in ("feature", "delta", "gap", "total", "share")}
    by_run = {"rho": shared.rho, "held_out": shared.held_out, "error": shared.error} | intervals(shared)
    tables = {
        key: {name: values.tolist() for name, values in table.items()}
        for key, table in by_run.items()
        if table is not None
    }
    return as_json(
        source,
        shared._asdict()
        | arrays
        | tables
        | {"names": {number: name for number, name in names.items() if name}},
    )


def print_pair(directions: tuple[Direction, ...], metrics: list[str]):
    """The scores of both directions (a run against itself has one), then the layer-by-layer tables."""
    print()
    for d in directions:
        print(f"{d.source}: {sum(d.live)} of {sum(d.features)} features live, {d.live[-1]} in the last layer")
    print_scores(directions, metrics)
    for d in directions:
        print(f"\nwMPPC layer by layer, {d.source} -> {d.target} (rows -> columns)")
        cells = np.array([[cell.value for cell in row] for row in d.layers])
        print_table(d.source_layers, d.target_layers, cells)
    print(f"\n{FLOOR}")


def print_scores(directions: tuple[Direction, ...], metrics: list[str]):
    """A line a metric and direction, or a line a metric where both directions have the same score."""
    labels = max(len(LABELS[metric]) for metric in metrics) + 2
    width = max(len(f"{d.source} -> {d.target}") for d in directions)
    print(f"\n{'':{labels + width}}{'all layers':>13}{'floor':>8}{'last layer':>13}{'floor':>8}")
    for metric in metrics:
        both_ways = "all_layers" in directions[0].scores[metric]
        for d in directions if both_ways else directions[:1]:
            name = f"{d.source} {'->' if both_ways else '<->'} {d.target}"
            scores = [d.scores[metric].get(scope) for scope in ("all_layers", "last_layer")]
            cells = "".join(f"{number(s.value):>13}{number(s.floor):>8}" if s else " " * 21 for s in scores)
            print(f"{LABELS[metric]:{labels}}{name:{width}}{cells}")


def print_matrix(directions: tuple[Direction, ...], metrics: list[str]):
    """A table a metric, and one of its floors: rows are sources, columns targets, which are numbered."""
    rows, columns = axes(directions)
    numbers = {name: f"[{i + 1}]" for i, name in enumerate(dict.fromkeys([*rows, *columns]))}
    names = [f"{numbers[row]} {row}" for row in rows], [numbers[column] for column in columns]
    if unnamed := [f"{numbers[column]} {column}" for column in columns if column not in rows]:
        print(f"\ncolumns: {', '.join(unnamed)}")
    shown: set[str] = set()
    for metric in metrics:
        for scope, words in (("all_layers", "all layers"), ("last_layer", "last layer")):
            if scope in directions[0].scores[metric]:
                for kind, note in kinds(directions, metric, scope).items():
                    print(f"\n{LABELS[metric]}, {words} ({note})")
                    print_table(*names, grid(directions, metric, scope, kind))
                    shown.add(kind)
    explained = [words for kind, words in (("floor", FLOOR), ("held_out", HELD_OUT)) if kind in shown]
    print("\n" + "\n".join(explained) if explained else "")


def kinds(directions: tuple[Direction, ...], metric: str, scope: str) -> dict[str, str]:
    """Which numbers of a score a matrix shows, and their names: held out if there is any, else the bare score."""
    scores = [d.scores[metric][scope] for d in directions]
    shown = {"value": "rows -> columns"}
    if any(score.held_out is not None for score in scores):
        shown = {"held_out": "held out, rows -> columns"}
    return shown | ({"floor": "floors"} if any(score.floor is not None for score in scores) else {})


def print_table(rows: list[str], columns: list[str], cells: Float[np.ndarray, "row column"]):
    """A named line a row, the scores in columns."""
    widths = [max(7, len(column) + 2) for column in columns]
    margin = max(map(len, rows))
    print(" " * margin + "".join(f"{column:>{width}}" for column, width in zip(columns, widths, strict=True)))
    for row, values in zip(rows, cells, strict=True):
        print(f"{row:{margin}}" + "".join(f"{number(v):>{w}}" for v, w in zip(values, widths, strict=True)))
