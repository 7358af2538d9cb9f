"""Pairs of runs as the passes take them: layers held while they fit into memory, else read block by block.

Processes share out the layer pairs, or, where a pair of layers does not fit, its rows.
"""

import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

import features
from comparing import draws
from comparing.clusters import (
    CAPTION_WORDS,
    Clusters,
    both_clusters,
    numbered_strata,
    permutation,
    strata_of,
)
from comparing.codes import Codes, Matrix
from comparing.draws import Layer, aligned
from comparing.drivers import Rooted
from comparing.found import Best, Influence, Matched, Shuffled, nothing
from comparing.halves import MIN_ACTIVE, Moments, Side, counted
from comparing.heldout import matched, shuffled, streamed
from comparing.influence import held_out, influence_of_blocks
from comparing.labels import Told, unnamed
from comparing.passes import PERMUTATIONS, Job
from comparing.reader import Reader, own_share
from plumbing.errors import UserError
from plumbing.processes import add_up, team
from plumbing.progress import Progress
from samples import Samples

SIDE_BYTES = 32  # of a stored entry of a Side: its CSR, the entries by half, by row and in a permuted order


class Options(NamedTuple):
    """How the trust in a score is worked out.

    `bare`: not at all, the score alone. `permutations` of a floor, at least. `min_active`: the rows that a feature is active on, to count. `square_root`:
    compare sqrt(x). `strata`: within which one floor is permuted, CAPTION_WORDS or a column of samples.jsonl.
    `own`: the user's cluster of each row.
    """

    bare: bool = False
    permutations: int = PERMUTATIONS
    min_active: int = MIN_ACTIVE
    square_root: bool = False
    strata: str = CAPTION_WORDS
    own: tuple[str, ...] | None = None

    @property
    def key(self) -> str:
        """What kept scores hang on besides the runs: "" for the defaults."""
        return "" if self == DEFAULTS else hashlib.sha256(repr(tuple(self)).encode()).hexdigest()[:12]


DEFAULTS = Options()


class Sides:
    """The layers of runs of the same samples, halved, each held while the reader's memory lasts."""

    def __init__(self, runs: Sequence[features.Run], reader: Reader, options: Options):
        self.reader, self.options = reader, options
        self.runs, self.n_rows = runs, runs[0].n_samples
        self._clusters: tuple[Clusters, Clusters] | None = None
        self._n_words: np.ndarray | None = None
        self._within: dict[int, np.ndarray | None] = {}
        self._few: tuple[tuple, Side] | None = None
        self._held: dict[tuple[str, str], Side] = {}
        self._moments: dict[tuple[str, str], Moments] = {}

    @property
    def key(self) -> str:
        """What kept scores hang on besides the pair: the options, and which captions all the runs were given."""
        numbers = sorted({_caption(run) for run in self.runs})
        words = f"captions{'-'.join(map(str, numbers))}" if len(numbers) > 1 else ""
        return ".".join(filter(None, (self.options.key, words)))

    @functools.cached_property
    def _by_caption(self) -> dict[int, features.Run]:
        """A run for each number of a caption that runs were given, lowest first; none of the original code."""
        runs = {_caption(run): run for run in reversed(self.runs) if not run.is_original}
        return {number: runs[number] for number in sorted(runs)}

    def clusters(self, *runs: features.Run) -> Clusters:
        """The clusters of the rows for a pair of runs: rows of one caption belong together where a run is of text.

        Captions are those of all the runs, so that a matrix of runs on several captions has one set of halves.
        """
        of_text = any(run.manifest.get("encoder", {}).get("modality") == "text" for run in runs)
        if self._clusters is None:
            told = [Told.of(run.sample_blocks(), self.n_rows) for run in self._by_caption.values()]
            names = told[0].names if told else unnamed(self.n_rows)
            self._n_words = told[0].n_words if told else None
            self._clusters = both_clusters(names, [one.captions for one in told], self.options.own)
        return self._clusters[of_text]

    @property
    def half(self) -> np.ndarray:
        """The half of each row, uint8 [row]: the same for all runs."""
        return self.clusters().half

    def _strata(self) -> np.ndarray | None:
        """The number of each row's stratum; None where the captions, the default, do not differ in length.

        Of runs on several captions, it is by that of the lowest number.
        """
        name, runs = self.options.strata, list(self._by_caption.values())
        if name != CAPTION_WORDS:
            return strata_of(name, runs[0].samples() if runs else Samples.none())
        self.clusters()  # counts the words
        try:
            return None if self._n_words is None else numbered_strata(name, self._n_words)
        except UserError:
            return None

    def within(self, clusters: Clusters) -> np.ndarray | None:
        """The permutation within strata of these clusters, int [row]; None where there are no strata."""
        if clusters.n not in self._within:
            strata = self._strata()
            self._within[clusters.n] = None if strata is None else permutation(clusters, 0, strata)
        return self._within[clusters.n]

    def columns(self, layer: Layer, chosen: np.ndarray) -> Side:
        """Some features of a layer, ascending; the last ones that were asked for are held."""
        if len(chosen) == self.reader.n_features(layer):
            return self.side(layer)
        key = (*_key(layer), chosen.tobytes())
        if self._few is None or self._few[0] != key:
            self._few = key, self.side(layer).columns(chosen)
        return self._few[1]

    def fit(self, *layers: Layer) -> bool:
        """Whether some layers can be held at once."""
        distinct = {_key(layer): self.reader.entries(layer) for layer in layers}
        return sum(distinct.values()) * SIDE_BYTES <= self.reader.memory

    @property
    def block_entries(self) -> int:
        """The entries of either layer that are summed at once where layers are read in blocks: a quarter of the memory."""
        return self.reader.memory // 8 // SIDE_BYTES

    def side(self, layer: Layer) -> Side:
        """The whole layer; the longest unused ones go when memory is short."""
        key = _key(layer)
        held = self._held.pop(key, None) or self._read(layer)
        self._held[key] = held  # the last used stands last
        while (
            len(self._held) > 2
            and sum(one.codes.stored for one in self._held.values()) * SIDE_BYTES > self.reader.memory
        ):
            del self._held[next(iter(self._held))]
        return held

    def _read(self, layer: Layer) -> Side:
        matrix = layer.run.load(layer.name)
        codes = Codes(matrix.sqrt() if self.options.square_root else matrix)
        side = Side(codes, self.half, self.options.min_active)
        self._moments[_key(layer)] = side.moments
        return side

    def moments(self, layer: Layer) -> Moments:
        """The layer's sums over each half of all rows."""
        if _key(layer) not in self._moments and self.fit(layer):
            self.side(layer)
        elif _key(layer) not in self._moments:
            total = moments_of(self.blocks(layer), self.half, self.reader.n_features(layer))
            self._moments[_key(layer)] = total
        return self._moments[_key(layer)]

    def counted(self, layer: Layer) -> Bool[np.ndarray, " feature"]:
        """Which of the layer's features count."""
        return counted(self.moments(layer), self.options.min_active)

    def blocks(
        self, layer: Layer, order: np.ndarray | None = None, pairs: slice = slice(None)
    ) -> Iterator[Matrix]:
        """The layer's rows in an order, of which `pairs` only, block by block."""
        found = draws.blocks(layer, order, pairs, self.reader.memory // 4)
        return (block.sqrt() for block in found) if self.options.square_root else found

    def halved(
        self, x: Iterable[Matrix], y: Iterable[Matrix], pairs: slice
    ) -> Iterator[tuple[Matrix, Matrix, np.ndarray]]:
        """Both readings of `pairs`, in blocks of the same rows, with the half of each row."""
        start = pairs.start
        for own, other in aligned(x, y, entries=self.block_entries):
            yield own, other, self.half[start : start + own.shape[0]]
            start += own.shape[0]


def _key(layer: Layer) -> tuple[str, str]:
    return layer.run.name, layer.name


def _caption(run: features.Run) -> int:
    """The number of the caption that a run's samples hold."""
    return run.caption if isinstance(run.caption, int) else 1


def moments_of(blocks: Iterable[Matrix], half: np.ndarray, n_features: int) -> Moments:
    """The sums over each half of rows that are read in blocks."""
    total, start = Moments.of_nothing(n_features), 0
    for block in blocks:
        total = total.plus(Moments.of(block, half[start : start + block.shape[0]]))
        start += block.shape[0]
    return total


class RunPair:
    """A `Pair` of runs. With `columns` the source has these features of its last layer alone; `root`: of sqrt(x)."""

    def __init__(
        self,
        source: features.Run,
        target: features.Run,
        sides: Sides,
        columns: np.ndarray | None = None,
        root: bool = False,
    ):
        self.runs, self.sides, self.columns, self.root = (source, target), sides, columns, root
        self.n_layers = len(source.layers), len(target.layers)
        self.min_active = sides.options.min_active

    def layer(self, side: int, number: int) -> Layer:
        return Layer(self.runs[side], self.runs[side].layers[number])

    def width(self, side: int, number: int) -> int:
        if side == 0 and self.columns is not None:
            return len(self.columns)
        return self.sides.reader.n_features(self.layer(side, number))

    def fits(self, i: int, j: int) -> bool:
        return self.sides.fit(self.layer(0, i), self.layer(1, j))

    def held(self, side: int, number: int) -> Side:
        """A whole layer, or the features asked for."""
        layer = self.layer(side, number)
        if side == 0 and self.columns is not None:
            found = self.sides.columns(layer, self.columns)
        else:
            found = self.sides.side(layer)
        return Rooted(found) if self.root else found

    def blocks(self, side: int, number: int, order: np.ndarray | None, pairs: slice) -> Iterator[Matrix]:
        for block in self.sides.blocks(self.layer(side, number), order, pairs):
            few = block[:, self.columns] if side == 0 and self.columns is not None else block
            yield few.sqrt() if self.root else few

    def moments(self, side: int, number: int) -> Moments:
        if not (self.root or (side == 0 and self.columns is not None)):
            return self.sides.moments(self.layer(side, number))
        if self.sides.fit(self.layer(side, number)):
            return self.held(side, number).moments
        blocks = self.blocks(side, number, None, slice(None))
        return moments_of(blocks, self.sides.half, self.width(side, number))

    def stored(self) -> float:
        products = np.prod([self.sides.reader.entries(self.layer(side, -1)) for side in (0, 1)])
        return float(products / max(self.sides.n_rows, 1))

    def matched(self, i: int, j: int) -> tuple[Matched, Matched]:
        if self.fits(i, j):
            return matched(self.held(0, i), self.held(1, j), both=self.columns is None)
        return self._streamed(Matched, i, j)

    def shuffled(self, i: int, j: int, partner: np.ndarray) -> tuple[Shuffled, Shuffled]:
        if self.fits(i, j):
            return shuffled(self.held(0, i), self.held(1, j), partner)
        return self._streamed(Shuffled, i, j, partner)

    def _streamed(
        self, kind: type[Best], i: int, j: int, partner: np.ndarray | None = None
    ) -> tuple[Best, Best]:
        pairs = own_share(self.sides.n_rows)

        def read() -> Iterator[tuple[Matrix, Matrix, np.ndarray]]:
            both = self.blocks(0, i, None, pairs), self.blocks(1, j, partner, pairs)
            return self.sides.halved(*both, pairs)

        widths = self.width(0, i), self.width(1, j)
        return streamed(kind, read, widths, self.sides.reader.memory // 2, self.min_active, add_up)

    def each(
        self, kind: type[Best], work: Callable[[int, int], tuple[Best, Best]]
    ) -> Iterator[tuple[tuple[int, int], tuple[Best, Best]]]:
        rank, world = team()
        cells, mine = list(np.ndindex(self.n_layers)), {}
        words = "layer pairs" if kind is Matched else "layer pairs, permuted"
        for number, place in enumerate(Progress(cells, desc=words, disable=rank > 0, leave=False)):
            own = number * world // len(cells) == rank
            if own or not self.fits(*place):
                found = work(*place)
                if world == 1:
                    yield place, found
                elif own:
                    mine[place] = found
        for place in cells if world > 1 else ():
            widths = self.width(0, place[0]), self.width(1, place[1])
            yield place, everywhere(kind, mine.pop(place, None), widths)

    def influences(self, jobs: Sequence[Job]) -> list[Influence]:
        rank, world = team()
        found = []
        for number, job in enumerate(jobs):
            layers = [
                (self.layer(1 - job.side, other), self.layer(job.side, job.layer)) for other in job.others
            ]
            whole = all(self.sides.fit(*both) for both in layers)
            one = self._influence(job, whole, not whole or number % world == rank)
            add_up(one.halves)
            add_up(one.full)
            found.append(one)
        return found

    def _influence(self, job: Job, whole: bool, wanted: bool) -> Influence:
        """The influence of all rows, or of this process's; zeros where another process works it out."""
        own, pairs = self.moments(job.side, job.layer), own_share(self.sides.n_rows)
        if not wanted:
            counts = own.active.sum(0) >= max(self.min_active, 1)
            nothing = np.zeros((2, self.sides.n_rows))
            return Influence(held_out(job.found, own.total.sum(0), counts), *nothing)

        def rows(other: int) -> Iterator[tuple]:
            if whole:
                yield self.held(job.side, job.layer).codes, self.held(1 - job.side, other).codes
            else:
                places = (job.side, job.layer), (1 - job.side, other)
                x, y = (self.blocks(*place, None, pairs) for place in places)
                yield from aligned(x, y, entries=self.sides.block_entries)

        moments = [self.moments(1 - job.side, other) for other in job.others]
        start = 0 if whole else pairs.start
        layers = map(rows, job.others)
        return influence_of_blocks(layers, self.sides.half, own, moments, job.found, self.min_active, start)


def everywhere(
    kind: type[Best], found: tuple[Best, Best] | None, widths: tuple[int, int]
) -> tuple[Best, Best]:
    """What one process found of both sides, in all of them; the others give None."""
    shapes = [nothing(kind, width) for width in widths]
    arrays = [array for side in found or shapes for array in side]
    flat = np.concatenate([array.ravel().astype(np.float64) for array in arrays]) * (found is not None)
    add_up(flat)
    cuts = np.cumsum([array.size for array in arrays])[:-1]
    parts = iter(np.split(flat, cuts))
    source, target = (
        kind(*(next(parts).reshape(array.shape).astype(array.dtype) for array in side)) for side in shapes
    )
    return source, target
