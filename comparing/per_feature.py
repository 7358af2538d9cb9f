"""Each feature's held-out correlation with another run, and its standard error, by cluster."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

import features
from comparing.clusters import FEWEST
from comparing.draws import Layer
from comparing.found import Matched
from comparing.heldout import matched, streamed
from comparing.influence import feature_errors, streamed_feature_errors
from comparing.reader import Reader, own_share
from comparing.sides import DEFAULTS, Sides
from plumbing.errors import UserError
from plumbing.processes import add_up, team

COLUMN_BYTES = 24  # of a stored entry of the few features that errors are worked out for at a time


class Presence(NamedTuple):
    """Of each source feature, float64 [feature]: `held_out` correlation, its standard `error`, `rho` over all rows."""

    held_out: np.ndarray
    error: np.ndarray
    rho: np.ndarray


def in_last_layers(run: features.Run, layer: str, others: Sequence[features.Run]) -> dict[str, Presence]:
    """What a layer's features find in the last layer of each of other runs, by their names.

    Errors: runs of other samples; too few samples to hold half of them out.
    """
    features.check_aligned([run, *others])
    sides = Sides([run, *others], Reader(), DEFAULTS)
    if sides.clusters(run, *others).n < FEWEST:
        raise UserError(f"{run.n_samples} samples are too few for held-out correlations: leave out --compare")
    return presences(
        Layer(run, layer), {other.name: Layer(other, other.layers[-1]) for other in others}, sides
    )


def presences(source: Layer, targets: Mapping[str, Layer], sides: Sides) -> dict[str, Presence]:
    """What a layer's features find in each of other layers, by their names; processes share the layers out."""
    rank, world = team()
    found = {name: np.zeros((3, sides.reader.n_features(source))) for name in targets}
    for number, (name, target) in enumerate(targets.items()):
        mine = number * world // len(targets) == rank
        if mine or not sides.fit(source, target):  # then its rows are shared out
            arrays = presence(source, target, sides)
            found[name][:] = arrays if mine else 0  # zeros elsewhere, so that the sum is the one copy
    for arrays in found.values():
        add_up(arrays)
    return {name: Presence(*arrays) for name, arrays in found.items()}


def any_counted(targets: Mapping[str, Layer], sides: Sides) -> dict[str, bool]:
    """Which of the layers have features that count; each process looks at those that it has for `presences`."""
    rank, world = team()
    found = np.zeros(len(targets))
    for number, layer in enumerate(targets.values()):
        if number * world // len(targets) == rank:
            found[number] = sides.counted(layer).any()
    add_up(found)
    return dict(zip(targets, (found > 0).tolist(), strict=True))


def presence(source: Layer, target: Layer, sides: Sides) -> Presence:
    """What a layer's features find in another; every process has to call this where the two do not fit."""
    groups = sides.clusters(source.run, target.run)
    if sides.fit(source, target):
        both = sides.side(source), sides.side(target)
        found = matched(*both, both=False)[0]
        return Presence(found.held_out, feature_errors(both[0], [both[1]], found, groups), found.every)
    pairs, reader = own_share(sides.n_rows), sides.reader

    def read():
        return sides.halved(sides.blocks(source, None, pairs), sides.blocks(target, None, pairs), pairs)

    widths = reader.n_features(source), reader.n_features(target)
    found = streamed(Matched, read, widths, reader.memory // 2, sides.options.min_active, add_up)[0]
    entries = reader.entries(source) / widths[0] + reader.entries(target) / widths[1]
    width = max(1, int(reader.memory / 2 / max(entries * COLUMN_BYTES, 1)))
    readers = [lambda layer=layer: sides.blocks(layer) for layer in (source, target)]
    errors = streamed_feature_errors(readers[0], readers[1:], sides.half, found, groups, width)
    return Presence(found.held_out, errors, found.every)
