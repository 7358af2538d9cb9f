"""Comparisons of runs: layers read within the memory, pairs scored in both directions, kept, and shared out.

The scores of a finished pair are kept in a run's folder and reused while both runs are unchanged. Under
`torchrun` the layer pairs are shared out, or, where a layer does not fit into memory, its rows are.
"""

import functools
import itertools
from collections.abc import Sequence

import numpy as np

import features
from comparing import scores
from comparing.clusters import FEWEST
from comparing.directions import comparison_of, nuisance
from comparing.draws import Cell, Layer
from comparing.kept import read_kept, write_kept
from comparing.older import older_score
from comparing.passes import evidence
from comparing.pearson import Maxima, max_correlations, streamed_maxima
from comparing.reader import Reader, own_share
from comparing.references import note, referenced
from comparing.results import OLDER, Comparison, Direction, Score, metric
from comparing.sides import DEFAULTS, Options, RunPair, Sides
from plumbing.processes import add_up, anywhere, first_process_says, team
from plumbing.progress import Progress

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
    for number, cell in enumerate(Progress(cells, desc="layer pairs", disable=rank > 0, leave=False)):
        mine = number * world // len(cells) == rank
        if mine or not reader.fits(cell):
            rho = np.concatenate([side.rho for side in maxima(cell, reader)])
            found[number][:] = rho if mine else 0  # zeros elsewhere, so that the sum is the one copy
    for array in found:
        add_up(array)
    return [(array[:n_source], array[n_source:]) for array, (n_source, _) in zip(found, widths, strict=True)]


def compare(
    run: features.Run,
    other: features.Run,
    metrics: Sequence[str] = ("wmppc", "mppc"),
    memory: int | None = None,
    options: Options = DEFAULTS,
) -> Comparison:
    """Score how much of each of two runs' features the other has, and tell how far each score can be trusted.

    `metrics` are some of METRICS; `memory` is in bytes, by default half of what is free; `options` with `bare` give
    the score alone, at a fraction of the cost. Runs of other samples are refused.
    """
    metrics = [metric(name) for name in metrics]
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
    key, reader = sides.key, sides.reader
    kept = read_kept(run, other, key)
    is_new = anywhere(kept is None)  # where any process cannot read it, all work it out
    found = match(run, other, sides) if is_new or kept is None else kept
    for name in (name for name in OLDER if name in metrics):
        if anywhere(name not in found.scores):
            is_new = True
            own, its = (Layer(one, one.layers[-1]) for one in (run, other))
            work = functools.partial(older_score, name, own, its, reader, sides.half, sides.counted)
            numbers = first_process_says(work, 2)
            for one in found:
                one.scores[name] = {"last_layer": Score.of(*numbers)}
    if is_new and team().rank == 0:
        write_kept(run, other, found, key)
    if not sides.options.bare:
        say_bare(found, run, other, sides)
    return found


def say_bare(found: Comparison, run: features.Run, other: features.Run, sides: Sides):
    """Say why scores stand bare, where they do; the samples are read only where all of them do."""
    options = sides.options
    if found.forward.drivers is None and (n_clusters := sides.clusters(run, other).n) < FEWEST:
        of = "of x, not of sqrt(x)" if options.square_root else "alone"
        note(
            f"{n_clusters} clusters of samples are too few for held-out scores, which take {FEWEST}: bare scores {of}"
        )
    for one in found:
        if one.counted is not None and not one.counted[-1]:
            least = f"is active on {options.min_active} samples"
            note(
                f"no feature of {one.source} {least}: scores with its last layer stand bare (see --min_active)"
            )


def match(source: features.Run, target: features.Run, sides: Sides) -> Comparison:
    """wMPPC and MPPC of a pair of runs, from every layer against every layer."""
    if sides.options.bare or sides.clusters(source, target).n < FEWEST:
        return bare(source, target, sides.reader)
    clusters = sides.clusters(source, target)
    pair = RunPair(source, target, sides)
    found = evidence(pair, clusters, sides.options.permutations)
    both = comparison_of(found, (source, target), clusters)
    least = sides.options.min_active
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
