"""Comparisons of runs: layers read within the memory, pairs scored in both directions, kept, and shared out.

The scores of a finished pair are kept in a run's folder and reused while both runs are unchanged. Under
`torchrun` the layer pairs are shared out, or, where a layer does not fit into memory, its rows are.
"""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
from tqdm import tqdm

import features
from comparing import scores, streamed
from comparing.draws import chosen_rows, shuffled_blocks, shuffled_rows
from comparing.kept import read_kept, write_kept
from comparing.pearson import Maxima, Sums
from comparing.reader import Reader, own_rows
from comparing.results import OLDER, Cell, Direction, Score
from plumbing.errors import UserError
from plumbing.processes import add_up, anywhere, first_process_says, team

N_NEIGHBOURS, NEIGHBOUR_ROWS = (
    10,
    10_000,
)  # of mutual_knn, and the rows drawn for it: its cost is their square


def maxima(cell: Cell, reader: Reader) -> tuple[Maxima, Maxima]:
    """The maxima of both layers of a cell; every process has to call this where the cell does not fit."""
    if reader.fits(cell):
        rows = shuffled_rows(cell.source) if cell.shuffled else None
        sides = reader.codes(*cell[:2]), reader.codes(*cell[2:4])
        return streamed.max_correlations(*sides, permutation=rows)
    rows = own_rows(cell.source.n_samples)
    return streamed.streamed_maxima(
        lambda: cell.source.blocks(cell.source_layer, rows),
        lambda: target_blocks(cell, rows, reader),
        reader.memory // 2,
        team().rank,
        add_up,
    )


def target_blocks(cell: Cell, rows: slice, reader: Reader) -> Iterator[Any]:
    """The rows of a cell's target that are paired with `rows` of its source."""
    if cell.shuffled:
        return shuffled_blocks(cell.target, cell.target_layer, rows, reader.memory // 4)
    return cell.target.blocks(cell.target_layer, rows)


def rho_of(cells: list[Cell], reader: Reader) -> list[tuple[np.ndarray, np.ndarray]]:
    """rho of both sides of every cell, float64 [feature]; processes share the cells, and all get all."""
    rank, world = team()
    widths = [[reader.shape(*side)[0] for side in (cell[:2], cell[2:4])] for cell in cells]
    found = [np.zeros(sum(both)) for both in widths]
    for number, cell in enumerate(tqdm(cells, desc="layer pairs", disable=rank > 0 or None, leave=False)):
        mine = number * world // len(cells) == rank
        if mine or not reader.fits(cell):
            rho = np.concatenate([side.rho for side in maxima(cell, reader)])
            found[number][:] = rho if mine else 0  # zeros elsewhere, so that the sum is the one copy
    for array in found:
        add_up(array)
    return [tuple(np.split(array, [both[0]])) for array, both in zip(found, widths, strict=True)]


def pair_sums(cell: Cell, reader: Reader) -> Sums:
    """All sums of a cell's pairs of features: 8 bytes a pair."""
    widths = [reader.shape(*side)[0] for side in (cell[:2], cell[2:4])]
    if 24 * widths[0] * widths[1] > reader.memory:
        raise UserError(
            f"all correlations of {cell.source.name} and {cell.target.name} take {widths[0]} x {widths[1]} x "
            f"24 bytes of {reader.memory}: leave hungarian and cka out of --metrics, or give more --memory"
        )
    if reader.fits(cell):
        target = reader.codes(*cell[2:4]).take(shuffled_rows(cell.source) if cell.shuffled else None)
        return Sums.of(reader.codes(*cell[:2]), target)
    sums = Sums(*widths)
    sides = cell.source.blocks(cell.source_layer), target_blocks(cell, slice(None), reader)
    for x, y in streamed.aligned(*sides):
        sums.add(x, y)
    return sums


def compare(
    source: features.Run, target: features.Run, metrics: list[str], reader: Reader
) -> tuple[Direction, Direction]:
    """Score a pair of runs in both directions: source -> target, and target -> source."""
    if target.name < source.name:  # kept once, in the folder of the first by name
        return compare(target, source, metrics, reader)[::-1]
    kept = read_kept(source, target)
    missing = [metric for metric in metrics if not kept or metric not in kept[0].scores]
    if not anywhere(bool(missing)):
        return kept
    kept = kept if not anywhere(kept is None) else match(source, target, reader)
    for metric in OLDER:
        if anywhere(metric in missing):
            score = Score(
                *first_process_says(lambda metric=metric: older_score(metric, source, target, reader), 2)
            )
            for one in kept:
                one.scores[metric] = {"last_layer": score}
    if team().rank == 0:
        write_kept(source, target, kept)
    return kept


def match(source: features.Run, target: features.Run, reader: Reader) -> tuple[Direction, Direction]:
    """wMPPC and MPPC of a pair of runs, with the floors, from every layer against every layer."""
    pairs = list(itertools.product(source.layers, target.layers))
    cells = [Cell(source, i, target, j, shuffled) for shuffled in (False, True) for i, j in pairs]
    rho = dict(zip([(cell.shuffled, cell[1], cell[3]) for cell in cells], rho_of(cells, reader), strict=True))
    forward = {key: own for key, (own, _) in rho.items()}
    backward = {(shuffled, j, i): other for (shuffled, i, j), (_, other) in rho.items()}
    return direction(source, target, forward, reader), direction(target, source, backward, reader)


def direction(source: features.Run, target: features.Run, rho: dict, reader: Reader) -> Direction:
    """One direction's scores, from rho float64 [feature] by (shuffled, source layer, target layer)."""
    total = {layer: reader.sums(source, layer).total for layer in source.layers}
    widths = np.array([len(total[layer]) for layer in source.layers])

    def over_all(score, shuffled) -> float:
        best = [np.max([rho[shuffled, i, j] for j in target.layers], axis=0) for i in source.layers]
        return scores.over_layers(np.array([*map(score, best, total.values())]), widths)

    def between(score, i, j) -> Score:
        return Score.of(*(score(rho[shuffled, i, j], total[i]) for shuffled in (False, True)))

    found = {
        name: {
            "all_layers": Score.of(over_all(score, False), over_all(score, True)),
            "last_layer": between(score, source.layers[-1], target.layers[-1]),
        }
        for name, score in (("wmppc", scores.wmppc), ("mppc", scores.mppc))
    }
    cells = [[between(scores.wmppc, i, j) for j in target.layers] for i in source.layers]
    live = [int((total[layer] > 0).sum()) for layer in source.layers]
    layers = list(source.layers), list(target.layers)
    return Direction(source.name, target.name, *layers, live, widths.tolist(), found, cells)


def older_score(metric: str, source: features.Run, target: features.Run, reader: Reader) -> Score:
    """An older score of the last layers, with its floor."""
    last = (source, source.layers[-1], target, target.layers[-1])
    if metric == "mutual_knn":
        return mutual_knn(*last)
    values = []
    for shuffled in (False, True):
        sums = pair_sums(Cell(*last, shuffled), reader)
        if metric == "hungarian":
            live = sums.source.total > 0, sums.target.total > 0
            values.append(scores.hungarian(sums.correlations(), *live))
        else:
            own = (pair_sums(Cell(*side, *side), reader).covariances() for side in (last[:2], last[2:]))
            values.append(scores.linear_cka(sums.covariances(), *own))
    return Score.of(*values)


def mutual_knn(source: features.Run, source_layer: str, target: features.Run, target_layer: str) -> Score:
    """The overlap of nearest neighbours among at most NEIGHBOUR_ROWS rows, the same ones of both runs."""
    order = shuffled_rows(source)
    rows = np.sort(order[:NEIGHBOUR_ROWS])
    if len(rows) <= N_NEIGHBOURS:
        raise UserError(
            f"mutual_knn takes {N_NEIGHBOURS} neighbours of a sample; the runs have {len(rows)} samples"
        )
    x, y = (chosen_rows(run, layer, rows) for run, layer in ((source, source_layer), (target, target_layer)))
    shuffled = np.argsort(np.argsort(order[rows]))  # the floor's permutation among these rows
    return Score.of(*(scores.mutual_knn(x, other, N_NEIGHBOURS) for other in (y, y[shuffled])))
