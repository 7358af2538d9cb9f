"""Comparisons of runs: layers read within the memory, pairs scored in both directions, kept, and shared out.

The scores of a finished pair are kept in a run's folder and reused while both runs are unchanged. Under
`torchrun` the layer pairs are shared out, or, where a layer does not fit into memory, its rows are.
"""

import itertools
from collections.abc import Sequence

import numpy as np
from tqdm import tqdm

import features
from comparing import draws, scores
from comparing.clusters import FEWEST
from comparing.directions import comparison_of, nuisance
from comparing.draws import Cell, Layer, aligned
from comparing.kept import read_kept, write_kept
from comparing.passes import evidence
from comparing.pearson import Maxima, Sums, max_correlations, streamed_maxima
from comparing.reader import Reader, own_share
from comparing.references import note, referenced
from comparing.results import METRICS, OLDER, Comparison, Direction, Score
from comparing.sides import DEFAULTS, Options, RunPair, Sides
from plumbing.errors import UserError
from plumbing.processes import add_up, anywhere, first_process_says, team

N_NEIGHBOURS = 10  # of mutual_knn

NEIGHBOUR_ROWS = 10_000  # rows drawn for mutual_knn: its cost is their square

RhoByLayers = dict[tuple[str, str], np.ndarray]  # rho float64 [feature] by source layer and target layer


def maxima(cell: Cell, reader: Reader) -> tuple[Maxima, Maxima]:
    """The maxima of both layers of a cell; every process has to call this where the cell does not fit."""
    if reader.fits(cell):
        return max_correlations(reader.codes(cell.source), reader.codes(cell.target))
    pairs = own_share(cell.source.run.n_samples)
    memory = reader.memory // 4
    return streamed_maxima(lambda: cell.blocks(pairs, memory), reader.memory // 2, add_up)


def rho_of(cells: list[Cell], reader: Reader) -> list[tuple[np.ndarray, np.ndarray]]:
    """rho of both sides of every cell, float64 [feature]; processes share the cells, and all get all."""
    rank, world = team()
    widths = [(reader.n_features(cell.source), reader.n_features(cell.target)) for cell in cells]
    found = [np.zeros(sum(both)) for both in widths]
    for number, cell in enumerate(tqdm(cells, desc="layer pairs", disable=rank > 0 or None, leave=False)):
        mine = number * world // len(cells) == rank
        if mine or not reader.fits(cell):
            rho = np.concatenate([side.rho for side in maxima(cell, reader)])
            found[number][:] = rho if mine else 0  # zeros elsewhere, so that the sum is the one copy
    for array in found:
        add_up(array)
    return [(array[:n_source], array[n_source:]) for array, (n_source, _) in zip(found, widths, strict=True)]


def pair_sums(cell: Cell, reader: Reader) -> Sums:
    """All sums of a cell's pairs of features: 8 bytes a pair."""
    n_source, n_target = (reader.n_features(side) for side in (cell.source, cell.target))
    if 24 * n_source * n_target > reader.memory:
        raise UserError(
            f"all correlations of {cell.source.run.name} and {cell.target.run.name} take {n_source} x {n_target} "
            f"x 24 bytes of {reader.memory}: leave hungarian and cka out of --metrics, or give more --memory"
        )
    if reader.fits(cell):
        source, target = reader.codes(cell.source), reader.codes(cell.target)
        return Sums.of(source, target.take(cell.partner))
    sums = Sums(n_source, n_target)
    for x, y in aligned(*cell.blocks(slice(None), reader.memory // 4)):
        sums.add(x, y)
    return sums


def compare(
    run: features.Run,
    other: features.Run,
    metrics: Sequence[str] = ("wmppc", "mppc"),
    memory: int | None = None,
    options: Options = DEFAULTS,
) -> Comparison:
    """Score how much of each of two runs' features the other has, and tell how far each score can be trusted.

    `metrics` are some of METRICS; `memory` is in bytes, by default half of what is free; `options` with `bare` give
    the score alone, at a fifth of the cost. Runs of other samples are refused.
    """
    if unknown := set(metrics) - set(METRICS):
        raise UserError(f"unknown metrics {', '.join(sorted(unknown))}: choose among {', '.join(METRICS)}")
    features.check_aligned([run, other])
    return with_references(run, other, metrics, Sides([run, other], Reader(memory), options))


def with_references(
    run: features.Run, other: features.Run, metrics: Sequence[str], sides: Sides
) -> Comparison:
    """`compared`, beside other seeds of the same SAEs and encoders of random weights, where such are recorded."""
    found = compared(run, other, metrics, sides)
    if found.wmppc["last_layer"].held_out is None:
        return found
    return referenced(found, run, other, lambda a, b: compared(a, b, ("wmppc",), sides))


def compared(run: features.Run, other: features.Run, metrics: Sequence[str], sides: Sides) -> Comparison:
    """The scores of runs of the same samples, whose layers `sides` hold from one pair to the next."""
    if other.name < run.name:  # kept once, in the folder of the first by name
        return compared(other, run, metrics, sides).turned()
    key, reader = sides.options.key, sides.reader
    kept = read_kept(run, other, key)
    is_new = anywhere(kept is None)  # where any process cannot read it, all work it out
    found = match(run, other, sides) if is_new or kept is None else kept
    for metric in (metric for metric in OLDER if metric in metrics):
        if anywhere(metric not in found.scores):
            is_new = True
            numbers = first_process_says(lambda metric=metric: older_score(metric, run, other, reader), 2)
            for one in found:
                one.scores[metric] = {"last_layer": Score.of(*numbers)}
    if is_new and team().rank == 0:
        write_kept(run, other, found, key)
    return found


def match(source: features.Run, target: features.Run, sides: Sides) -> Comparison:
    """wMPPC and MPPC of a pair of runs, from every layer against every layer."""
    clusters = None if sides.options.bare else sides.clusters(source, target)
    if clusters is None or clusters.n < FEWEST:
        if clusters is not None:
            note(
                f"{clusters.n} clusters of samples are too few for held-out scores, which take {FEWEST}: bare scores"
            )
        return bare(source, target, sides.reader)
    pair = RunPair(source, target, sides)
    found = evidence(pair, clusters, sides.options.permutations)
    both = comparison_of(found, (source, target), clusters)
    least = sides.options.min_active
    for one in both if both.wmppc["last_layer"].held_out is None else ():
        if one.counted is not None and not one.counted[-1]:
            note(
                f"no feature of {one.source} is active on {least} samples: its score stands bare (see --min_active)"
            )
    last = found.forward["last_layer"][0], found.backward["last_layer"][0]
    return Comparison(
        *(
            one._replace(min_active=least, nuisance=nuisance(pair, last[side], sides, clusters, side))
            for side, one in enumerate(both)
        )
    )


def bare(source: features.Run, target: features.Run, reader: Reader) -> Comparison:
    """The scores alone, without what tells how far to trust them."""
    pairs = list(itertools.product(source.layers, target.layers))
    cells = [Cell(Layer(source, i), Layer(target, j)) for i, j in pairs]
    rho = dict(zip(pairs, rho_of(cells, reader), strict=True))
    forward = {pair: own for pair, (own, _) in rho.items()}
    backward = {(j, i): other for (i, j), (_, other) in rho.items()}
    return Comparison(direction(source, target, forward, reader), direction(target, source, backward, reader))


def value_and_floor(run: features.Run) -> tuple[None, np.ndarray]:
    """The orders of the target's rows whose scores are an older Score's two numbers."""
    return None, draws.permutation(run.n_samples)


def direction(source: features.Run, target: features.Run, rho: RhoByLayers, reader: Reader) -> Direction:
    """One direction's bare scores."""
    total = {layer: reader.sums(Layer(source, layer)).total for layer in source.layers}
    widths = np.array([len(total[layer]) for layer in source.layers])
    best = [np.max([rho[i, j] for j in target.layers], axis=0) for i in source.layers]
    last = source.layers[-1], target.layers[-1]
    found = {
        name: {
            "all_layers": Score.of(scores.over_layers(np.array([*map(score, best, total.values())]), widths)),
            "last_layer": Score.of(score(rho[last], total[last[0]])),
        }
        for name, score in (("wmppc", scores.wmppc), ("mppc", scores.mppc))
    }
    cells = [[Score.of(scores.wmppc(rho[i, j], total[i])) for j in target.layers] for i in source.layers]
    live = [int((total[layer] > 0).sum()) for layer in source.layers]
    layers = list(source.layers), list(target.layers)
    return Direction(source.name, target.name, *layers, live, widths.tolist(), found, cells)


def older_score(
    metric: str, source: features.Run, target: features.Run, reader: Reader
) -> tuple[float, float]:
    """An older score of the last layers, and its floor."""
    own, other = Layer(source, source.layers[-1]), Layer(target, target.layers[-1])
    if metric == "mutual_knn":
        return mutual_knn(own, other)
    values = []
    for partner in value_and_floor(source):
        sums = pair_sums(Cell(own, other, partner), reader)
        if metric == "hungarian":
            live = sums.source.total > 0, sums.target.total > 0
            values.append(scores.hungarian(sums.correlations(), *live))
        else:
            inner = (pair_sums(Cell(side, side), reader).covariances() for side in (own, other))
            values.append(scores.linear_cka(sums.covariances(), *inner))
    return values[0], values[1]


def mutual_knn(source: Layer, target: Layer) -> tuple[float, float]:
    """The overlap of nearest neighbours among at most NEIGHBOUR_ROWS rows, the same ones of both runs."""
    order = draws.permutation(source.run.n_samples)
    rows = np.sort(order[:NEIGHBOUR_ROWS])
    if len(rows) <= N_NEIGHBOURS:
        raise UserError(
            f"mutual_knn takes {N_NEIGHBOURS} neighbours of a sample; the runs have {len(rows)} samples"
        )
    x, y = draws.chosen_rows(source, rows), draws.chosen_rows(target, rows)
    shuffled = np.argsort(np.argsort(order[rows]))  # the floor's permutation among these rows
    return scores.mutual_knn(x, y, N_NEIGHBOURS), scores.mutual_knn(x, y[shuffled], N_NEIGHBOURS)
