"""Results as pictures: heat maps of scores, and Comparative Sharedness against summed activation."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from comparing.results import Direction, axes, grid, number
from comparing.sharedness import Sharedness
from plumbing import files

BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"  # which colour-blind readers tell apart (Okabe and Ito)


def plot_sharedness(file: Path, shared: Sharedness, first: Int[np.ndarray, " place"]):
    """Delta against S of every live feature by its status, the first ones named where there is room."""
    figure = Figure((8, 5.5), layout="constrained")
    space = figure.subplots()
    live = np.flatnonzero(shared.total > 0)
    space.axhline(0, color="0.6", linewidth=0.8)
    for (words, colour, marker, size), places in drawn(shared, live, first):
        label = f"{words}: {len(places)}"
        space.scatter(shared.total[places], shared.delta[places], size, colour, marker=marker, label=label)
    space.set_xscale("log")
    middle = max(np.median(np.abs(shared.delta[live])), 1e-9) if len(live) else 1.0
    space.set_yscale("symlog", linthresh=10 ** np.ceil(np.log10(middle)))  # a power of ten: labels keep apart
    name_points(space, shared, first)
    space.set_xlabel("S, the feature's summed activation")
    space.set_ylabel("Δ, Comparative Sharedness")
    groups = f"shared with {', '.join(shared.min_group)} rather than {', '.join(shared.max_group)}"
    space.set_title(f"{shared.source}, {shared.layer}: {groups}", fontsize=10, wrap=True)
    space.legend(frameon=False, loc="best")
    save(figure, file)


class Points(NamedTuple):
    """How one kind of features is drawn."""

    words: str
    colour: str
    marker: str
    size: int


KINDS = {  # by whether a feature is surely present in all of G, and surely absent in all of H
    (False, False): Points("neither", "0.65", ".", 12),
    (False, True): Points("absent in all of H only", BLUE, "v", 12),
    (True, False): Points("present in all of G only", GREEN, "^", 14),
    (True, True): Points("both", ORANGE, "D", 24),
}


def drawn(
    shared: Sharedness, live: Int[np.ndarray, " live"], first: Int[np.ndarray, " first"]
) -> list[tuple[Points, np.ndarray]]:
    """The places of the live features of each kind, the kind that matters most on top; without statuses, the first."""
    if shared.status is None:
        rest = live[len(first) :]
        return [(Points("features", BLUE, "o", 9), rest), (Points("first", ORANGE, "D", 22), first)]
    status = [shared.status[place] for place in live]
    kinds = [(text.startswith("present"), text.endswith("absent")) for text in status]
    return [(points, live[[own == kind for own in kinds]]) for kind, points in KINDS.items()]


def name_points(space: Axes, shared: Sharedness, first: Int[np.ndarray, " place"]):
    """Write the numbers of the first features beside their points, where there is room."""
    space.autoscale_view()
    points = np.column_stack([shared.total[first], shared.delta[first]])
    for place in spread_out(space.transData.transform(points)):
        name = str(shared.feature[first[place]])
        space.annotate(name, points[place], (4, 4), textcoords="offset points", fontsize=8)


def spread_out(pixels: Float[np.ndarray, "point xy"], apart: tuple[float, float] = (30, 12)) -> list[int]:
    """Which points, best first, can be named without covering a better one's name."""
    named = []
    for place, point in enumerate(pixels):
        if not (np.abs(pixels[named] - point) < apart).all(axis=1).any():
            named.append(place)
    return named


def plot_matrix(file: Path, directions: tuple[Direction, ...]):
    """The run x run heat map of wMPPC over all layers: held out, or bare where that is all there is."""
    rows, columns = axes(directions)
    figure, (left,) = panels([(len(rows), len(columns))])
    bare = all(d.wmppc["all_layers"].held_out is None for d in directions)
    title = f"wMPPC{'' if bare else ' held out'}, all layers (rows -> columns)"
    kind = "value" if bare else "held_out"
    heat_map(left, rows, columns, grid(directions, "wmppc", "all_layers", kind), title)
    save(figure, file)


def plot_layers(file: Path, directions: tuple[Direction, ...]):
    """The layer x layer heat maps of one pair of runs, both ways, on one scale from 0 to the highest.

    Beside them the coverage curves, where the scores are held out.
    """
    highest = np.nanmax([score.value for d in directions for row in d.layers for score in row] + [0.1])
    curves = [d for d in directions if d.wmppc["last_layer"].coverage is not None]
    shapes = [(len(d.source_layers), len(d.target_layers)) for d in directions]
    figure, spaces = panels(shapes + [(1, 3)] * bool(curves))
    if curves:
        plot_coverage(spaces.pop(), curves)
    for space, d in zip(spaces, directions, strict=True):
        cells = np.array([[score.value for score in row] for row in d.layers])
        title = f"wMPPC, {d.source} -> {d.target}"
        heat_map(space, d.source_layers, d.target_layers, cells, title, np.ceil(highest * 10) / 10)
        space.set_ylabel(f"layers of {d.source}")
        space.set_xlabel(f"layers of {d.target}")
    save(figure, file)


def plot_coverage(space: Axes, directions: Sequence[Direction]):
    """The share of the activation in features with at least a held-out correlation, for both directions."""
    for colour, style, d in zip((BLUE, ORANGE), ("-o", "--s"), directions, strict=False):
        coverage = d.wmppc["last_layer"].coverage or {}
        label = f"{d.source} -> {d.target}"
        space.plot([*map(float, coverage)], [*coverage.values()], style, color=colour, label=label)
    space.set_ylim(0, 1.02)
    space.set_xlabel("held-out correlation of at least")
    space.set_ylabel("share of the activation")
    space.set_title("coverage, last layers", fontsize=10)
    space.legend(frameon=False, fontsize=8)


def panels(shapes: list[tuple[int, int]]) -> tuple[Figure, list[Axes]]:
    """A figure with a space for each grid of [rows, columns], large enough for its numbers."""
    widths = [max(4.0, 0.62 * columns + 2.6) for _, columns in shapes]
    height = max(3.2, 0.5 * max(rows for rows, _ in shapes) + 2.2)
    figure = Figure((sum(widths), height), layout="constrained")
    return figure, [*figure.subplots(1, len(shapes), width_ratios=widths, squeeze=False)[0]]


def heat_map(
    space: Axes,
    rows: list[str],
    columns: list[str],
    cells: Float[np.ndarray, "row column"],
    title: str,
    highest: float = 1.0,
):
    """Numbers on colours from 0 to `highest`, rows from the top; colour-blind readers see cividis alike."""
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


def save(figure: Figure, file: Path):
    """Write the picture whole or not at all."""
    with files.replacing(file) as temporary:
        figure.savefig(temporary, dpi=150, format=file.suffix.removeprefix(".") or "png")
