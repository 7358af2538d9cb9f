"""Clusters of rows that are not independent of one another: halves, folds and permutations go by cluster.

Five captions of one picture are five rows and one observation. Splitting or permuting such rows one by one
calls unrelated runs significant, so everything here keeps a cluster together.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from comparing.labels import Groups, Labels, as_texts, labels, n_words
from plumbing.errors import UserError
from samples import Samples, Texts

FEWEST = 50  # clusters: with fewer, neither halves nor standard errors mean anything
CAPTION_WORDS = "caption_words"  # strata: the number of words of a row's caption
FLOOR_SEED = 0  # of the first permutation; the others count on from it


class Clusters(NamedTuple):
    """Which rows belong together.

    `ids` int32 [row]: 0 to `n - 1`, numbered by first appearance. `half` uint8 [row]: 0 or 1, the same for all
    rows of a cluster. `key` uint64 [row]: the hash that halves and folds are taken from, one a cluster.
    """

    ids: np.ndarray
    half: np.ndarray
    key: np.ndarray

    @property
    def sizes(self) -> Int[np.ndarray, " cluster"]:
        """Rows of each cluster."""
        return np.bincount(self.ids)

    @property
    def n(self) -> int:
        """The number of clusters."""
        return int(self.ids.max(initial=-1)) + 1

    def take(self, rows: np.ndarray) -> "Clusters":
        """The clusters of some of the rows, with their halves."""
        return Clusters(_numbered(self.ids[rows]), self.half[rows], self.key[rows])


def clusters(
    names: Sequence[str],
    captions: Sequence[str] | None = None,
    own: Sequence[str] | None = None,
    halves: Sequence[str] | None = None,
) -> Clusters:
    """Join the rows that share a name, a lower-cased caption, or a group of the user's (`own`), transitively.

    `names` [row]: the image of each row, or the row's id where it has none. `captions` are given where a run
    of the pair is of text. `halves` are the captions that the halves respect in any case, so that every pair of
    runs has the same halves. Which half a cluster is in hangs on its names alone, never on its place.
    """
    lowered = [None if one is None else labels(as_texts(one).lowered()) for one in (captions, halves)]
    known, groups = labels(names), Groups(len(names))
    for one in (known, lowered[0], None if own is None else labels(own)):
        if one is not None:
            groups.join(one)
    ids = groups.numbered()
    if lowered[1] is not None:
        groups.join(lowered[1])
    return _halved(ids, known[0], groups.numbered())


def both_clusters(
    names: Labels, captions: Sequence[Labels] = (), own: Sequence[str] | None = None
) -> tuple[Clusters, Clusters]:
    """The clusters for pairs of runs without text, and for those where a run is of text, with the same halves.

    `captions`: one of each row, as often as runs were given other ones; rows that have any in common are joined.
    """
    groups = Groups(names.shape[1])
    groups.join(names)
    if own is not None:
        groups.join(labels(own))
    ids = groups.numbered()
    if captions:
        groups.join(*captions)
    widest = groups.numbered()
    few = (
        int(widest.max(initial=-1)) + 1 < FEWEST
    )  # then no pair with text has halves: the others need their own
    found = _halved(ids, names[0], ids if few else widest)
    return found, found._replace(ids=widest)


def _halved(ids: np.ndarray, keys: np.ndarray, widest: np.ndarray) -> Clusters:
    """The clusters `ids`, their halves by the lowest key of a name in each of the wider clusters `widest`."""
    lowest = np.full(int(widest.max(initial=-1)) + 1, np.iinfo(np.uint64).max, np.uint64)
    np.minimum.at(lowest, widest, keys)
    key = lowest[widest]
    return Clusters(ids, (key & np.uint64(1)).astype(np.uint8), key)


def folds(clusters: Clusters, k: int) -> Int[np.ndarray, " row"]:
    """The fold of each row, 0 to k - 1; a cluster is in one fold, and in each fold are clusters of both halves."""
    if not 2 <= k <= clusters.n // FEWEST:
        most = clusters.n // FEWEST
        words = f"give 2 to {most}" if most > 1 else "leave it out"
        raise UserError(
            f"--folds {k}: a part takes {FEWEST} of the {clusters.n} clusters of samples: {words}"
        )
    return ((clusters.key >> np.uint64(1)) % np.uint64(k)).astype(np.int64)


def permutation(
    clusters: Clusters, number: int, strata: Int[np.ndarray, " row"] | None = None
) -> Int[np.ndarray, " row"]:
    """Permutation `number`: the row of the other run that each row is paired with, int32.

    Whole clusters change places among clusters of the same size (row k of one with row k of the other), and of
    the same stratum where `strata`, their numbers, are given; a cluster of mixed strata counts by the most frequent. Each
    class of clusters goes round in one random cycle, so that no cluster keeps its own partner unless it is the
    only one of its class.
    """
    rng = np.random.default_rng([FLOOR_SEED, number])
    order = np.argsort(clusters.ids, kind="stable").astype(np.int32)  # rows, cluster by cluster
    sizes = clusters.sizes.astype(np.int32)
    starts = np.cumsum(sizes, dtype=np.int32) - sizes
    kind = sizes
    if strata is not None:
        kind = sizes + np.int64(sizes.max() + 1) * _cluster_strata(clusters, strata)
    kind = kind.astype(np.min_scalar_type(int(kind.max(initial=0))))  # 16 bits are sorted in one go
    partner = np.empty_like(order)
    by_kind = np.argsort(kind, kind="stable").astype(np.int32)
    for members in np.split(by_kind, np.flatnonzero(np.diff(kind[by_kind])) + 1):
        if len(members):
            cycle = rng.permutation(members)
            inside = np.arange(sizes[members[0]], dtype=np.int32)
            own = order[starts[cycle][:, None] + inside]
            partner[own] = np.roll(own, 1, axis=0)
    return partner


def read_clusters(path: Path | str, ids: Sequence[str]) -> list[str]:
    """The user's group of each row, from a file with a line a row: the row's id, a tab, its group."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--cluster {path} cannot be read: {error}") from error
    group = {}
    for number, line in enumerate(lines, 1):
        row, tab, label = line.partition("\t")
        if not tab:
            raise UserError(
                f"--cluster {path}, line {number}: write a row's id, a tab, and its group: {line!r}"
            )
        if row in group:
            raise UserError(f"--cluster {path}, line {number}: {row} has a line already")
        group[row] = label
    missing, unknown = [row for row in ids if row not in group], sorted(set(group) - set(ids))
    if missing or unknown:
        what, which = ("has no line for", missing) if missing else ("names unknown rows:", unknown)
        raise UserError(f"--cluster {path} {what} {', '.join(which[:3])}{' ...' * (len(which) > 3)}")
    return [group[row] for row in ids]


def strata_of(name: str, samples: Samples) -> Int[np.ndarray, " row"]:
    """The stratum of each row of samples.jsonl, by CAPTION_WORDS or the value of a column, as `numbered_strata`."""
    if name == CAPTION_WORDS:
        return numbered_strata(name, n_words(samples.captions))
    if name not in (columns := samples.columns()):
        raise UserError(f"--strata {name}: the samples have {', '.join([CAPTION_WORDS, *sorted(columns)])}")
    return numbered_strata(name, samples.column(name))


def numbered_strata(name: str, values: Texts | np.ndarray) -> Int[np.ndarray, " row"]:
    """`ranked` values of `--strata NAME`. Error: they leave nothing to permute, or nothing to hold equal."""
    number = ranked(values)
    n_strata = int(number.max(initial=-1)) + 1
    if n_strata in (1, len(number)):
        what = "one value in all rows" if n_strata == 1 else "another value in each row"
        raise UserError(f"--strata {name} has {what}: leave it out, or name another column")
    return number


def ranked(values: Texts | np.ndarray) -> Int[np.ndarray, " row"]:
    """The number of each row's value among the distinct ones, int32; these in the order of their texts."""
    if isinstance(values, Texts):
        number, distinct = values.numbered()
    else:
        distinct = np.unique(values)
        number = np.searchsorted(distinct, values)
    rank = np.argsort(np.argsort([str(value) for value in distinct]))
    return rank.astype(np.int32)[number]


def check(clusters: Clusters):
    """Raise where there are too few clusters to halve."""
    if clusters.n < FEWEST:
        raise UserError(
            f"{clusters.n} clusters of {len(clusters.ids)} samples: a held-out score takes {FEWEST}; leave out "
            "--difference and --folds"
        )


def _numbered(labels: np.ndarray) -> np.ndarray:
    """Labels as 0, 1, 2, ... in the order in which they first appear."""
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first)).astype(np.int32)[inverse]


def _cluster_strata(clusters: Clusters, strata: Int[np.ndarray, " row"]) -> Int[np.ndarray, " cluster"]:
    """Each cluster's most frequent stratum, by number; the first of several."""
    if clusters.n == len(strata):  # a row each
        return strata
    wide = int(strata.max()) + 1
    pairs, counts = np.unique(clusters.ids * np.int64(wide) + strata, return_counts=True)
    cluster = pairs // wide
    best = np.argsort(cluster * (counts.max() + 1) - counts, kind="stable")  # of equals the first
    return (pairs % wide)[best][np.searchsorted(cluster, np.arange(clusters.n))]
