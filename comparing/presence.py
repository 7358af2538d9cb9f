"""Which features are present in every run of a group and absent from every run of another."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

PRESENT, ABSENT, ONE_SIDED_95 = 0.3, 0.2, 1.645  # held-out r at least and at most; standard errors


class Status(NamedTuple):
    """A feature's status; `rank` sorts: 0 present in all of G and absent in all of H, 1 present, 2 absent, 3 neither."""

    rank: int
    text: str


RARE = Status(4, "too rare")  # active on too few rows to count


def statuses(
    rho_G: Float[np.ndarray, "min_group feature"],
    se_G: Float[np.ndarray, "min_group feature"],
    rho_H: Float[np.ndarray, "max_group feature"],
    se_H: Float[np.ndarray, "max_group feature"],
    names_G: Sequence[str],
    names_H: Sequence[str],
    present: float = PRESENT,
    absent: float = ABSENT,
) -> list[Status]:
    """Each feature's status, from held-out correlations and their standard errors.

    Present in g: rho - 1.645 se >= `present`. Absent in h: rho + 1.645 se <= `absent`. Otherwise the run that
    breaks it most is named: "present, in dino", "not in bert, absent".
    """
    low, high = rho_G - ONE_SIDED_95 * se_G, rho_H + ONE_SIDED_95 * se_H
    least, most = low.argmin(axis=0), high.argmax(axis=0)
    found = []
    for feature in range(rho_G.shape[1]):
        is_present, is_absent = (
            low[least[feature], feature] >= present,
            high[most[feature], feature] <= absent,
        )
        first = "present" if is_present else f"not in {names_G[least[feature]]}"
        second = "absent" if is_absent else f"in {names_H[most[feature]]}"
        found.append(Status(2 * (not is_present) + (not is_absent), f"{first}, {second}"))
    return found


def sharedness_order(status: Sequence[Status], delta: Float[np.ndarray, " feature"]) -> np.ndarray:
    """The features by status, and by Delta within."""
    return np.lexsort((-delta, np.array([one.rank for one in status])))
