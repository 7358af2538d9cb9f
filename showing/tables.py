"""Results as tables for a person, and as CSV and JSON for machines."""

import csv
import io
import json
from typing import Any

import numpy as np

from comparing.results import axes, grid, number
from comparing.sharedness import Sharedness


def sharedness_columns(shared: Sharedness) -> dict[str, np.ndarray]:
    """The table's columns by heading, a row a feature."""
    rho = {f"rho {name}": values for name, values in shared.rho.items()}
    return {"feature": shared.feature, "Delta": shared.delta, "S": shared.total, **rho}


def print_sharedness(shared: Sharedness, first: np.ndarray, n_live: int):
    """The first live features (those that ever fired), int [feature] their places in `shared`."""
    print(
        f"{shared.source} {shared.layer}: {n_live} of {len(shared.feature)} features live; the {len(first)} most"
    )
    print(f"shared with    {', '.join(shared.min_group)}\nrather than    {', '.join(shared.max_group)}\n")
    table = sharedness_columns(shared)
    widths = [max(9, len(heading) + 2) for heading in table]
    print("".join(f"{heading:>{width}}" for heading, width in zip(table, widths, strict=True)))
    for row in zip(*(column[first] for column in table.values()), strict=True):
        texts = [f"{row[0]}", *(f"{value:.2f}" for value in row[1:3]), *(f"{value:.3f}" for value in row[3:])]
        print("".join(f"{text:>{width}}" for text, width in zip(texts, widths, strict=True)))


def sharedness_csv(shared: Sharedness) -> str:
    table = sharedness_columns(shared)
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(table)
    writer.writerows(zip(*(column.tolist() for column in table.values()), strict=True))
    return file.getvalue()


def sharedness_json(source: Any, shared: Sharedness) -> str:
    arrays = ("feature", "delta", "total")
    document = {**shared._asdict(), **{name: getattr(shared, name).tolist() for name in arrays}}
    document["rho"] = {name: values.tolist() for name, values in shared.rho.items()}
    return (
        json.dumps({"dataset": source.manifest["dataset"], "n_samples": source.n_samples, **document}) + "\n"
    )


LABELS = {
    "wmppc": "wMPPC",
    "mppc": "MPPC",
    "hungarian": "one-to-one matching",
    "cka": "linear CKA",
    "mutual_knn": "mutual 10 nearest neighbours",
}


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


def print_table(rows: list[str], columns: list[str], cells: Any):
    widths = [max(7, len(column) + 2) for column in columns]
    margin = max(map(len, rows))
    print(" " * margin + "".join(f"{column:>{width}}" for column, width in zip(columns, widths, strict=True)))
    for row, values in zip(rows, cells, strict=True):
        print(f"{row:{margin}}" + "".join(f"{number(v):>{w}}" for v, w in zip(values, widths, strict=True)))


def comparison_json(run: Any, directions: tuple[Any, ...]) -> str:
    """Everything as JSON; a missing score is null."""
    from comparing.results import plain

    document = {
        "dataset": run.manifest["dataset"],
        "n_samples": run.n_samples,
        "directions": plain(directions),
    }
    return json.dumps(document, indent=2) + "\n"


def comparison_csv(directions: tuple[Any, ...], metrics: list[str]) -> str:
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
