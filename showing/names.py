"""What a feature is called: the words of the captions that its activation follows best.

r is Pearson's, between the activation and the presence of a word in the row's captions. A name must beat the floor,
the r that the best word reaches when the captions are dealt out to other rows.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import scipy.ndimage
from jaxtyping import Float, Int
from scipy.sparse import csc_array, csr_array

from showing.words import Vocabulary

WORDS = 8  # told of a feature
CANDIDATES = 64  # of which these are left, when phrases that say no more than their words are dropped
ADDS = 1.05  # times the r of its better word: what a phrase must reach to be told
TOP = 100  # a feature's highest rows, in which its words are counted
CELLS = 1 << 22  # pairs of a feature and a word whose r are held at once: 32 MB, and as much again thrice
CHANCE = 100  # maxima by chance, of which a floor is the highest: 1 of 101 features without a word gets one
SHUFFLES = (2, CHANCE)  # at least and at most
SHUFFLED = 8192  # features, over all shuffles, where a layer has fewer
SEED = 13


class Word(NamedTuple):
    """A word or phrase beside a feature: `r`, in how many of the feature's `n_top` highest rows it is, and in what
    share of all rows."""

    word: str
    r: float
    of_top: int
    share: float


class Named(NamedTuple):
    """The words that a feature follows, best first, and the r that shuffled captions reach.

    `n_top`: the highest rows that `of_top` is of: 100, or all on which the feature is active.
    """

    words: list[Word]
    floor: float
    n_top: int

    @property
    def name(self) -> str:
        """The best word; "" where it does not beat the floor."""
        return self.words[0].word if self.words and self.words[0].r > self.floor else ""

    @property
    def r(self) -> float | None:
        """That of the name."""
        return self.words[0].r if self.name else None


class Scaled(NamedTuple):
    """A sparse matrix [row, column] float64, each column's mean, and 1 / standard deviation (0 where it is constant)."""

    matrix: csr_array | csc_array
    mean: np.ndarray
    inverse_sd: np.ndarray

    @staticmethod
    def of(matrix: csr_array | csc_array) -> "Scaled":
        n = max(matrix.shape[0], 1)
        mean, square = matrix.sum(axis=0) / n, matrix.power(2).sum(axis=0) / n
        variance = square - mean**2
        varies = variance > 1e-12 * square
        return Scaled(matrix, mean, varies / np.sqrt(np.where(varies, variance, 1)))


def described(codes: csr_array | csc_array, vocabulary: Vocabulary) -> list[Named]:
    """The words of every feature of a layer; `codes` is scipy.sparse [row, feature]."""
    found = [Named([], 0.0, 0)] * codes.shape[1]
    columns = csc_array(codes, dtype=np.float64)
    live = np.flatnonzero(columns.power(2).sum(axis=0))
    if not vocabulary.shown or not live.size:
        return found
    columns = columns[:, live]
    columns.sort_indices()
    floors = chance(columns, vocabulary.presence)
    words = Scaled.of(vocabulary.presence)
    for start, block in _blocks(columns, len(vocabulary.shown)):
        for place, one in enumerate(_words_of(block, words, vocabulary), start):
            found[live[place]] = one._replace(floor=float(floors[place]))
    return found


def chance(columns: csc_array, presence: csr_array) -> Float[np.ndarray, " feature"]:
    """The r that each feature's best word reaches when the rows of `presence` are shuffled.

    It is the highest of 100 such maxima: of several shuffles, of the feature and of those whose n_eff = (Σx²)² / Σx⁴
    is nearest, since as many equal activations would correlate by chance as high as these.
    """
    n_rows, n_features = columns.shape
    random = np.random.default_rng(SEED)
    n_shuffles = int(np.clip(-(-SHUFFLED // n_features), *SHUFFLES))
    highest, words = np.zeros(n_features), Scaled.of(presence)
    for _ in range(n_shuffles):
        words = words._replace(matrix=presence[random.permutation(n_rows)])
        for start, block in _blocks(columns, presence.shape[1]):
            r = correlations(block, words).max(axis=1)
            highest[start : start + len(r)] = np.maximum(highest[start : start + len(r)], r)
    n_eff = columns.power(2).sum(axis=0) ** 2 / columns.power(4).sum(axis=0)
    order = np.argsort(n_eff, kind="stable")
    highest[order] = scipy.ndimage.maximum_filter1d(highest[order], -(-CHANCE // n_shuffles), mode="nearest")
    return highest


def correlations(columns: csc_array, words: Scaled) -> Float[np.ndarray, "feature word"]:
    """Pearson's r of every feature with every word; 0 where one of them is constant."""
    features = Scaled.of(columns)
    r = (columns.T @ words.matrix).toarray()
    r /= max(columns.shape[0], 1)
    for row, mean in zip(r, features.mean, strict=True):
        row -= mean * words.mean
    r *= features.inverse_sd[:, None]
    r *= words.inverse_sd
    return r


def _blocks(columns: csc_array, n_words: int) -> Iterator[tuple[int, csc_array]]:
    """Columns, as many at a time as CELLS allow, and the number of the first."""
    width = max(CELLS // max(n_words, 1), 1)
    for start in range(0, columns.shape[1], width):
        yield start, columns[:, start : start + width]


def _words_of(block: csc_array, words: Scaled, vocabulary: Vocabulary) -> list[Named]:
    """The words of a block of features, without their floors."""
    r = correlations(block, words)
    best = np.sort(np.argpartition(-r, min(CANDIDATES, r.shape[1]) - 1, axis=1)[:, :CANDIDATES], axis=1)
    order = np.argsort(-np.take_along_axis(r, best, axis=1), axis=1, kind="stable")
    best = np.take_along_axis(best, order, axis=1)
    own, parts = np.take_along_axis(r, best, axis=1), vocabulary.parts[best]
    of_parts = np.take_along_axis(r, np.maximum(parts.reshape(len(r), -1), 0), axis=1).reshape(parts.shape)
    tells = (own > 0) & ((parts[..., 0] < 0) | (own >= ADDS * of_parts.max(axis=2)))
    top = _highest(block)
    counts = (top.T @ words.matrix).toarray()
    found = []
    for feature, n_top in enumerate(np.diff(top.indptr).tolist()):
        places = np.flatnonzero(tells[feature])[:WORDS]
        told = [
            Word(
                vocabulary.shown[term],
                float(own[feature, place]),
                int(counts[feature, term]),
                float(words.mean[term]),
            )
            for place, term in zip(places.tolist(), best[feature, places].tolist(), strict=True)
        ]
        found.append(Named(told, 0.0, n_top))
    return found


def _highest(block: csc_array) -> csc_array:
    """1 where a row is among a feature's TOP highest; equal activations go by row number."""
    rows: list[Int[np.ndarray, " top"]] = []
    for start, stop in zip(block.indptr, block.indptr[1:], strict=False):
        active = np.flatnonzero(block.data[start:stop] > 0)
        order = np.argsort(-block.data[start:stop][active], kind="stable")[:TOP]
        rows.append(block.indices[start:stop][active[order]])
    starts = np.cumsum([0, *map(len, rows)])
    flat = np.concatenate(rows)
    return csc_array((np.ones(len(flat)), flat, starts), block.shape)
