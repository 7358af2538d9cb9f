"""Maxima of correlations over all rows and over each half of them, and what each half's partner scores on the other.

The maximum over thousands of correlations is never 0. A partner that is chosen on one half of the rows and
scored on the other is not flattered by the choice (van Hasselt, arXiv 1302.7175). One pass gives all of it: a
feature's entries are kept half by half, so the products of each half come out of the loop that adds up the whole.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Int

from comparing.dense import prefers_gemm
from comparing.half_maxima import split_maxima, whole_maxima
from comparing.half_sums import Products, maxima_of_both
from comparing.halves import Side
from comparing.partners import Matched, Shuffled


def matched(source: Side, target: Side) -> tuple[Matched, Matched]:
    """The maxima of the source's features over the target's, and the other way round, in one pass."""
    _check(source, target)
    if prefers_gemm(source.codes, target.codes):
        products = Products(source.n_features, target.n_features)
        products.add(source.codes, target.codes, source.half)
        return products.matched(source.min_active)
    return _by_loop(Matched, split_maxima, source.by_half, source, target, target.by_row)


def shuffled(source: Side, target: Side, partner: Int[np.ndarray, " row"]) -> tuple[Shuffled, Shuffled]:
    """The maxima with the source's row n beside the target's row `partner[n]`: what chance gives both sides."""
    _check(source, target)
    if prefers_gemm(source.codes, target.codes):
        products = Products(source.n_features, target.n_features, halved=False)
        products.add(source.codes, target.codes.take(partner), source.half)
        return products.shuffled(source.min_active)
    return _by_loop(Shuffled, whole_maxima, source.by_feature, source, target, target.rows_in(partner))


def _by_loop(kind: type, loop: Callable, entries: tuple, source: Side, target: Side, by_row: tuple) -> tuple:
    fixed = (entries, by_row, source.counted, int(target.counted.sum()))
    fixed = (*fixed, tuple(source.spread), tuple(target.spread.of(target.order)))
    return maxima_of_both(kind, loop, fixed, np.diff(source.by_feature[0]), target.spread, target.order)


def _check(source: Side, target: Side):
    if source.codes.n_rows != target.codes.n_rows or not np.array_equal(source.half, target.half):
        raise ValueError("the two sides have other rows, or other halves")
