"""Clusters of rows that are not independent of one another: halves, folds and permutations go by cluster.

Five captions of one picture are five rows and one observation. Splitting or permuting such rows one by one
calls unrelated runs significant, so everything here keeps a cluster together.
"""

import functools
import hashlib
import operator
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, no_type_check

import numpy as np
import scipy.sparse
import scipy.sparse.csgraph
from jaxtyping import Int, UInt64

from plumbing.compiled import compiled
from plumbing.errors import UserError
from samples import Samples, Texts

FEWEST = 50  # clusters: with fewer, neither halves nor standard errors mean anything
CAPTION_WORDS = "caption_words"  # strata: the number of words of a row's caption
FLOOR_SEED = 0  # of the first permutation; the others count on from it


class Clusters(NamedTuple):
    """Which rows belong together.

    `ids` int64 [row]: 0 to `n - 1`, numbered by first appearance. `half` uint8 [row]: 0 or 1, the same for all
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
    said = None if captions is None else _texts(captions).lowered()
    ids = joined(*(labels for labels in (names, said, own) if labels is not None))
    widest = ids if halves is None else joined(ids, _texts(halves).lowered())
    return _halved(ids, names, widest)


def both_clusters(
    names: Sequence[str], captions: Sequence[Sequence[str]] = (), own: Sequence[str] | None = None
) -> tuple[Clusters, Clusters]:
    """The clusters for pairs of runs without text, and for those where a run is of text, with the same halves.

    `captions`: one of each row, as often as runs were given other ones; rows that have any in common are joined.
    """
    ids = joined(*(labels for labels in (names, own) if labels is not None))
    widest = ids
    if captions:  # each row as many times as it has captions
        texts = functools.reduce(operator.add, map(_texts, captions)).lowered()
        widest = joined(np.tile(ids, len(captions)), texts)[: len(ids)]
    few = (
        int(widest.max(initial=-1)) + 1 < FEWEST
    )  # then no pair with text has halves: the others need their own
    found = _halved(ids, names, ids if few else widest)
    return found, found._replace(ids=widest)


def _halved(ids: np.ndarray, names: Sequence[str], widest: np.ndarray) -> Clusters:
    """The clusters `ids`, their halves by the lowest hash of a name in each of the wider clusters `widest`."""
    lowest = np.full(int(widest.max(initial=-1)) + 1, np.iinfo(np.uint64).max, np.uint64)
    np.minimum.at(lowest, widest, _hashes(names))
    key = lowest[widest]
    return Clusters(ids, (key & np.uint64(1)).astype(np.uint8), key)


def joined(*labels: Sequence | np.ndarray) -> Int[np.ndarray, " row"]:
    """The number of each row's cluster: rows that share any label are in one, joined transitively.

    A label is a sequence [row]; None and "" join nothing.
    """
    n_rows, edges = len(labels[0]), []
    for label in labels:
        number, distinct = _numbered_labels(label)
        first = np.empty(len(distinct), np.int64)
        first[number[::-1]] = np.arange(n_rows)[::-1]  # the last to be written is the first row of a label
        joins = distinct.lengths() > 0 if isinstance(distinct, Texts) else np.ones(len(distinct), bool)
        rows = np.flatnonzero(
            joins[number] & (first[number] != np.arange(n_rows))
        )  # not the first of their label
        edges.append((rows, first[number[rows]]))
    rows, firsts = (np.concatenate(side) for side in zip(*edges, strict=True))
    if not len(rows):
        return np.arange(n_rows)
    graph = scipy.sparse.coo_array((np.ones(len(rows)), (rows, firsts)), shape=(n_rows, n_rows))
    _, component = scipy.sparse.csgraph.connected_components(graph, directed=False)
    return _numbered(component)


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
    clusters: Clusters, number: int, strata: Sequence[str] | np.ndarray | None = None
) -> Int[np.ndarray, " row"]:
    """Permutation `number`: the row of the other run that each row is paired with.

    Whole clusters change places among clusters of the same size (row k of one with row k of the other), and of
    the same stratum where `strata` [row] are given; a cluster of mixed strata counts by the most frequent. Each
    class of clusters goes round in one random cycle, so that no cluster keeps its own partner unless it is the
    only one of its class.
    """
    rng = np.random.default_rng([FLOOR_SEED, number])
    order = np.argsort(clusters.ids, kind="stable")  # rows, cluster by cluster
    sizes = clusters.sizes
    starts = np.cumsum(sizes) - sizes
    kind = sizes if strata is None else sizes + (sizes.max() + 1) * _cluster_strata(clusters, strata)
    partner = np.empty(len(order), np.int64)
    by_kind = np.argsort(kind, kind="stable")
    for members in np.split(by_kind, np.flatnonzero(np.diff(kind[by_kind])) + 1):
        if len(members):
            cycle = rng.permutation(members)
            inside = np.arange(sizes[members[0]])
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


def strata_of(name: str, samples: Samples) -> Texts | np.ndarray:
    """The stratum of each row of samples.jsonl: CAPTION_WORDS, or the value of a column."""
    if name == CAPTION_WORDS:
        strata = n_words(samples.captions)
    elif name in (columns := samples.columns()):
        strata = samples.column(name)
    else:
        raise UserError(f"--strata {name}: the samples have {', '.join([CAPTION_WORDS, *sorted(columns)])}")
    n_strata = len(_numbered_labels(strata)[1])
    if n_strata in (1, len(samples)):
        what = "one value in all rows" if n_strata == 1 else "another value in each row"
        raise UserError(f"--strata {name} has {what}: leave it out, or name another column")
    return strata


def check(clusters: Clusters):
    """Raise where there are too few clusters to halve."""
    if clusters.n < FEWEST:
        raise UserError(
            f"{clusters.n} clusters of {len(clusters.ids)} samples: a held-out score takes {FEWEST}; leave out "
            "--difference and --folds"
        )


def n_words(captions: Texts) -> Int[np.ndarray, " row"]:
    """The words of each caption, parted by what Python's `split` takes for white space."""
    found = np.concatenate([np.empty(0, np.int64), *(_count_words(*some) for some in captions.buffers())])
    for row in np.flatnonzero(found < 0):  # not ASCII
        found[row] = len(captions[int(row)].split())
    return found


@compiled()
@no_type_check
def _count_words(letters, edges):
    """The words of texts in ASCII; -1 for others."""
    found = np.zeros(edges.size - 1, np.int64)
    for row in range(found.size):
        inside = False
        for place in range(edges[row], edges[row + 1]):
            letter = letters[place]
            if letter >= 128:
                found[row] = -1
                break
            is_space = letter == 32 or 9 <= letter <= 13 or 28 <= letter <= 31
            found[row] += not is_space and not inside
            inside = not is_space
    return found


def _hashes(names: Sequence[str]) -> UInt64[np.ndarray, " row"]:
    found = b"".join([hashlib.blake2b(name, digest_size=8).digest() for name in _texts(names).encoded()])
    return np.frombuffer(found, "<u8").astype(np.uint64)


def named(samples: Samples) -> Texts:
    """The image of each row, or the row's id where it has none."""
    if samples.images.lengths().all():
        return samples.images
    return Texts.of([image or row for image, row in zip(samples.images, samples.ids, strict=True)])


def _texts(labels: Sequence) -> Texts:
    return labels if isinstance(labels, Texts) else Texts.of([label or "" for label in labels])


def _numbered_labels(labels: Sequence | np.ndarray) -> tuple[Int[np.ndarray, " row"], Texts | np.ndarray]:
    """The number of each row's label among the distinct ones, and these."""
    if isinstance(labels, np.ndarray):
        distinct, number = np.unique(labels, return_inverse=True)
        return number, distinct
    return _texts(labels).numbered()


def _numbered(labels: np.ndarray) -> np.ndarray:
    """Labels as 0, 1, 2, ... in the order in which they first appear."""
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first)).astype(np.int64)[inverse]


def _cluster_strata(clusters: Clusters, strata: Sequence[str] | np.ndarray) -> Int[np.ndarray, " cluster"]:
    """Each cluster's most frequent stratum, by number; the first of several."""
    number, distinct = _numbered_labels(strata)
    number = np.argsort(np.argsort([str(value) for value in distinct]))[number]  # in the order of their names
    if clusters.n == len(number):  # a row each
        return number
    ones = np.ones(len(number))
    counts = scipy.sparse.csr_array((ones, (clusters.ids, number)), shape=(clusters.n, number.max() + 1))
    counts.sum_duplicates()
    rows = np.repeat(np.arange(clusters.n), np.diff(counts.indptr))
    order = np.lexsort((counts.indices, -counts.data, rows))
    return counts.indices[order][np.unique(rows[order], return_index=True)[1]]
