"""Older scores of a pair of runs, each with its own chance level."""

from typing import Any, NamedTuple, no_type_check

import numpy as np
import scipy.optimize
import scipy.sparse
from jaxtyping import Float

from comparing.codes import Codes, as_codes
from comparing.pearson import add_products
from plumbing.compiled import compiled
from plumbing.threads import equal_ranges, in_parallel

CANDIDATES = 30  # partners of each feature that a large plan is made of
SMALL_PLAN = 250_000  # pairs, up to which all of them are
CLOSE = 1e-9  # similarities closer than this are equal


class Older(NamedTuple):
    """A score, and what chance gives."""

    value: float
    floor: float


# -------------------------------------------------------------------------------------------- soft matching


def soft_matching(
    chosen_by: Float[np.ndarray, "source target"], scored_by: Float[np.ndarray, "source target"]
) -> float:
    """Σ P_ij r_ij of the plan P that is best on `chosen_by`, scored by `scored_by`: r on each half of the rows.

    P has rows of sum 1 / d_A and columns of sum 1 / d_B (Khosla and Williams, arXiv 2311.09466). Of large runs
    the plan takes each feature's CANDIDATES best partners; what finds no place among them counts 0. NaN where a
    side has no feature.
    """
    if not chosen_by.size:
        return float("nan")
    if chosen_by.shape[0] == chosen_by.shape[1]:  # then a permutation is among the best plans
        plan = scipy.optimize.linear_sum_assignment(chosen_by, maximize=True)
        return float(scored_by[plan].mean())
    rows, columns, mass = _plan(chosen_by)
    return float(mass @ scored_by[rows, columns])


def _plan(r: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The best plan as (source, target, mass), by linear programming."""
    whole = r.size <= SMALL_PLAN
    rows, columns = np.indices(r.shape).reshape(2, -1) if whole else _candidates(r)
    n = np.arange(len(rows))
    ones, shape = np.ones(len(rows)), (sum(r.shape), len(rows))
    sums = scipy.sparse.csr_array(
        (np.tile(ones, 2), (np.concatenate([rows, r.shape[0] + columns]), np.tile(n, 2))), shape=shape
    )
    mass = np.repeat(1 / np.array(r.shape), r.shape)
    bounds = {"A_eq": sums, "b_eq": mass} if whole else {"A_ub": sums, "b_ub": mass}
    scale = min(r.shape)  # masses near 1, not near the solver's tolerance
    bounds = {key: value * scale if key.startswith("b") else value for key, value in bounds.items()}
    found = scipy.optimize.linprog(-r[rows, columns], **bounds, bounds=(0, None), method="highs")
    if found.x is None:
        raise RuntimeError(f"no plan for soft matching: {found.message}")
    return rows, columns, found.x / scale


def _candidates(r: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The pairs that are among the best of either feature."""
    kept = min(CANDIDATES, *r.shape)
    of_rows = np.argpartition(-r, kept - 1, axis=1)[:, :kept]
    of_columns = np.argpartition(-r, kept - 1, axis=0)[:kept]
    pairs = [np.repeat(np.arange(r.shape[0]), kept) * r.shape[1] + of_rows.ravel()]
    pairs.append(of_columns.ravel() * r.shape[1] + np.tile(np.arange(r.shape[1]), kept))
    return np.divmod(np.unique(np.concatenate(pairs)), r.shape[1])


# ------------------------------------------------------------------------------------------- debiased CKA


def debiased_cka(source: Any, target: Any) -> float:
    """Linear CKA of unbiased HSIC (Song et al. 2012; Murphy et al., arXiv 2405.01012): 0 by chance, on average.

    `source` and `target` are Codes, scipy sparse or numpy [row, feature]. NaN where a side does not vary, or with
    fewer than four rows.
    """
    source, target = as_codes(source), as_codes(target)
    if source.n_rows < 4:
        return float("nan")
    own = hsic(source, source) * hsic(target, target)
    return float(hsic(source, target) / np.sqrt(own)) if own > 0 else float("nan")


def hsic(source: Codes, target: Codes) -> float:
    """HSIC_1 of linear kernels, from Σ x y products and two numbers a row: no [row, row] matrix is made."""
    n = source.n_rows
    (own, squared), (other, other_squared) = (_kernel_sums(side) for side in (source, target))
    trace = squared_products(source, target) - squared @ other_squared
    middle = own.sum() * other.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (own @ other)
    return float((trace + middle) / (n * (n - 3)))


def _kernel_sums(codes: Codes) -> tuple[np.ndarray, np.ndarray]:
    """Row sums of the linear kernel with a zero diagonal, and its diagonal, float64 [row]."""
    matrix = codes.matrix.astype(np.float64)
    squared = np.asarray((matrix * matrix).sum(axis=1)).ravel()
    return np.asarray(matrix @ np.asarray(matrix.sum(axis=0)).ravel()).ravel() - squared, squared


def squared_products(source: Codes, target: Codes) -> float:
    """Σ_ij (Σ_n x_ni y_nj)², a source feature at a time."""
    sums = np.zeros(source.n_features)
    fixed = (source.by_feature, target.by_row, target.n_features, sums)
    ranges = equal_ranges(np.diff(source.by_feature[0]))
    in_parallel(lambda: lambda first, last: _squared_products(first, last, *fixed), ranges)
    return float(sums.sum())


@compiled()
@no_type_check
def _squared_products(first, last, by_feature, by_row, width, sums):
    products = np.empty(width)
    for feature in range(first, last):
        products[:] = 0
        add_products(feature, by_feature, by_row, products)
        sums[feature] = (products * products).sum()


# ------------------------------------------------------------------------------------- mutual neighbours


def mutual_neighbours(source: Any, target: Any, k: int = 10) -> Older:
    """The mean share of a row's `k` nearest other rows, by cosine, that are so in both runs; chance is k / (N - 1).

    Rows that are equally near share the places that are left among them, so that the order of the rows gives no
    agreement: a row without activations is near to all others alike (Huh et al., arXiv 2405.07987). `source` and
    `target` are scipy sparse or numpy [row, feature]; NaN with no more than `k` rows.
    """
    units = [_unit(side) for side in (source, target)]
    n = units[0].shape[0]
    if n <= k:
        return Older(float("nan"), float("nan"))
    shared = 0.0
    for start in range(0, n, 256):  # a block of similarities at a time, never all pairs
        one, other = (_places(_similarity(unit, start), start, k) for unit in units)
        shared += float((one * other).sum())
    return Older(shared / (n * k), k / (n - 1))


def _unit(codes: Any) -> scipy.sparse.csr_array:
    codes = scipy.sparse.csr_array(codes, dtype=np.float64)
    norms = np.sqrt(np.asarray(codes.multiply(codes).sum(axis=1)).ravel())
    inverse = np.divide(1, norms, out=np.zeros_like(norms), where=norms > 0)
    return scipy.sparse.csr_array(scipy.sparse.diags_array(inverse) @ codes)


def _similarity(unit: scipy.sparse.csr_array, start: int) -> Float[np.ndarray, "block row"]:
    similarity = (unit[start : start + 256] @ unit.T).toarray()
    similarity[
        np.arange(len(similarity)), start + np.arange(len(similarity))
    ] = -np.inf  # not its own neighbour
    return similarity


def _places(similarity: np.ndarray, start: int, k: int) -> Float[np.ndarray, "block row"]:
    """How much each row is among the `k` nearest: 1, 0, or the share of the places left that a tie gets."""
    level = np.partition(similarity, -k, axis=1)[:, -k][:, None]
    above, level_with = similarity > level + CLOSE, np.abs(similarity - level) <= CLOSE
    left = k - above.sum(axis=1, keepdims=True)
    return above + level_with * (left / level_with.sum(axis=1, keepdims=True))


# -------------------------------------------------------------------------------------------- seed pairs


def pw_mcc(decoder: Float[np.ndarray, "source d_in"], other: Float[np.ndarray, "target d_in"]) -> float:
    """The mean |cosine| of decoder rows matched one to one, of two seeds of one SAE (arXiv 2505.20254).

    The mean is over the narrower side; rows of zeros are similar to none.
    """

    def unit(rows):
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
        return np.divide(rows, norms, out=np.zeros(rows.shape), where=norms > 0)

    similar = np.abs(unit(np.asarray(decoder, np.float64)) @ unit(np.asarray(other, np.float64)).T)
    if not similar.size:
        return float("nan")
    return float(similar[scipy.optimize.linear_sum_assignment(similar, maximize=True)].mean())
