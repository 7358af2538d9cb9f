"""On which samples two features agree: where both fire, where only the one does, and where only the other."""

from typing import NamedTuple, no_type_check

import numpy as np
import scipy.sparse
from jaxtyping import Int

from plumbing.compiled import compiled
from plumbing.threads import equal_ranges, in_parallel

LENGTH = 6  # samples of a strip


class Columns(NamedTuple):
    """A layer's activations, feature by feature: `starts` [feature + 1], then `rows` in rising order and `values`."""

    starts: np.ndarray
    rows: np.ndarray
    values: np.ndarray

    @staticmethod
    def of(codes: scipy.sparse.csr_array) -> "Columns":
        """The activations above 0 of [row, feature]."""
        columns = scipy.sparse.csc_array(codes, dtype=np.float32)
        columns.eliminate_zeros()
        columns.sort_indices()
        return Columns(columns.indptr.astype(np.int64), columns.indices.astype(np.int64), columns.data)

    def of_feature(self, feature: int) -> tuple[np.ndarray, np.ndarray]:
        """The rows on which a feature is active, in rising order, and its activations there."""
        place = slice(self.starts[feature], self.starts[feature + 1])
        return self.rows[place], self.values[place]


def strips(
    source: Columns,
    target: Columns,
    feature: Int[np.ndarray, " pair"],
    partner: Int[np.ndarray, " pair"],
) -> Int[np.ndarray, "pair strip place"]:
    """The rows of three strips of each pair of a source feature and a target feature; -1 where a strip has no more.

    Strip 0: rows on which both are active, by the product of their activations as shares of each one's highest.
    Strips 1 and 2: rows on which only the source's, or only the target's, is active, by its activation.
    """
    found = np.full((len(feature), 3, LENGTH), -1, np.int64)
    costs = np.diff(source.starts)[feature] + np.diff(target.starts)[partner]
    fixed = (
        tuple(source),
        tuple(target),
        np.asarray(feature, np.int64),
        np.asarray(partner, np.int64),
        found,
    )
    in_parallel(lambda: lambda first, last: _strips(first, last, *fixed), equal_ranges(costs))
    return found


@compiled()
@no_type_check
def _keep(row, value, rows, values):
    """Put a row into a list of the highest values, behind equal ones that stand there."""
    at = values.size - 1
    if value <= values[at]:
        return
    while at > 0 and values[at - 1] < value:
        rows[at], values[at] = rows[at - 1], values[at - 1]
        at -= 1
    rows[at], values[at] = row, value


@compiled()
@no_type_check
def _strips(first, last, source, target, feature, partner, found):
    starts, rows, values = source
    t_starts, t_rows, t_values = target
    highest = np.empty((3, found.shape[2]))
    for pair in range(first, last):
        highest[:] = 0
        a, a_end = starts[feature[pair]], starts[feature[pair] + 1]
        b, b_end = t_starts[partner[pair]], t_starts[partner[pair] + 1]
        while a < a_end or b < b_end:
            row = rows[a] if a < a_end else np.int64(1) << 62
            other = t_rows[b] if b < b_end else np.int64(1) << 62
            if row == other:
                _keep(row, np.float64(values[a]) * t_values[b], found[pair, 0], highest[0])
                a, b = a + 1, b + 1
            elif row < other:
                _keep(row, values[a], found[pair, 1], highest[1])
                a += 1
            else:
                _keep(other, t_values[b], found[pair, 2], highest[2])
                b += 1
