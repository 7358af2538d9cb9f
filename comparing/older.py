"""Older scores of the last layers of a pair of runs, the same in both directions, each with its own chance level."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import scipy.optimize
import scipy.sparse
from jaxtyping import Bool, Float, Int, UInt8

from comparing.codes import Codes, Matrix, as_codes
from comparing.draws import Cell, Layer, aligned, blocks, chosen_rows, permutation
from comparing.pearson import Sums
from comparing.reader import Reader
from plumbing.errors import UserError

NEIGHBOURS = 10  # of a row
NEIGHBOUR_ROWS = 10_000  # rows drawn for `mutual_neighbours`: its cost is their square

CANDIDATES = 30  # partners of each feature that a large plan is made of
SMALL_PLAN = 250_000  # pairs, up to which all of them are


class Older(NamedTuple):
    """A score, and what chance gives; NaN where there is none."""

    value: float = float("nan")
    floor: float = float("nan")


def older_score(
    metric: str,
    source: Layer,
    target: Layer,
    reader: Reader,
    half: UInt8[np.ndarray, " row"],
    counted: Callable[[Layer], Bool[np.ndarray, " feature"]],
) -> Older:
    """One of results.OLDER; `half` is the half of each row, `counted` tells which of a layer's features count.

    Error: the sums of all pairs of features do not fit.
    """
    if metric == "soft_matching":
        return held_out_matching(source, target, reader, half, (counted(source), counted(target)))
    if metric == "cka":
        return cka(source, target, reader)
    return knn(source, target) if metric == "knn" else seeds_mcc(source, target)


def pair_sums(cell: Cell, reader: Reader, rows: Int[np.ndarray, " some"] | None = None) -> Sums:
    """All sums of a cell's pairs of features, 8 bytes a pair, over all rows or the given ones."""
    n_source, n_target = (reader.n_features(side) for side in (cell.source, cell.target))
    if 32 * n_source * n_target > reader.memory:
        raise UserError(
            f"all correlations of {cell.source.run.name} and {cell.target.run.name} take {n_source} x {n_target} "
            f"x 32 bytes of {reader.memory}: leave soft_matching and cka out of --metrics, or give more --memory"
        )
    if reader.fits(cell):
        source, target = reader.codes(cell.source), reader.codes(cell.target)
        return Sums.of(source.take(rows), target.take(rows))
    sums = Sums(n_source, n_target)
    read = (blocks(layer, rows, memory=reader.memory // 4) for layer in (cell.source, cell.target))
    for x, y in aligned(*read):
        sums.add(x, y)
    return sums


# -------------------------------------------------------------------------------------------- soft matching


def held_out_matching(
    source: Layer,
    target: Layer,
    reader: Reader,
    half: UInt8[np.ndarray, " row"],
    counted: tuple[Bool[np.ndarray, " source"], Bool[np.ndarray, " target"]],
) -> Older:
    """`soft_matching` of the features that count, planned on one half of the rows and scored on the other.

    It is 0 by chance. A rarer feature may be silent on one half, and would not match even itself.
    """
    halves = [pair_sums(Cell(source, target), reader, np.flatnonzero(half == h)) for h in (0, 1)]
    return Older(soft_matching(*(sums.correlations()[np.ix_(*counted)] for sums in halves)), 0.0)


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


def cka(source: Layer, target: Layer, reader: Reader) -> Older:
    """`debiased_cka` of two layers, held or read block by block; 0 by chance."""
    pairs = Cell(source, target), Cell(source, source), Cell(target, target)
    squared = [squared_products(pair_sums(pair, reader)) for pair in pairs]
    own, other = (squared_norms(side.blocks(), reader.sums(side).mean) for side in (source, target))
    return Older(_cka(own, other, *squared), 0.0)


def debiased_cka(source: Matrix | Codes, target: Matrix | Codes) -> float:
    """Linear CKA of unbiased HSIC (Song et al. 2012; Murphy et al., arXiv 2405.01012): 0 by chance, on average.

    `source` and `target` are [row, feature]. NaN where a side does not vary, or with fewer than four rows.
    """
    own, other = as_codes(source), as_codes(target)
    squared = [squared_products(Sums.of(*pair)) for pair in ((own, other), (own, own), (other, other))]
    norms, others = (squared_norms([side.matrix], side.sums().mean) for side in (own, other))
    return _cka(norms, others, *squared)


def _cka(
    source: Float[np.ndarray, " row"],
    target: Float[np.ndarray, " row"],
    both: float,
    own: float,
    other: float,
) -> float:
    """From the rows' `squared_norms`, and the `squared_products` of the two sides and of each with itself.

    No [row, row] matrix is made: with centred features a row of the kernel XX', less its diagonal, sums to -|x_n|².
    """
    n = len(source)

    def hsic(a: np.ndarray, b: np.ndarray, squared: float) -> float:  # HSIC_1, times n (n - 3)
        return squared - n / (n - 2) * float(a @ b) + float(a.sum() * b.sum()) / ((n - 1) * (n - 2))

    if n < 4 or min(own, other) == 0:
        return float("nan")
    scale = hsic(source, source, own) * hsic(target, target, other)
    return hsic(source, target, both) / float(np.sqrt(scale)) if scale > 0 else float("nan")


def squared_products(sums: Sums) -> float:
    """Σ_ij (Σ_n x_ni y_nj)² of centred features: exactly 0 where all are constant."""
    found = sums.covariances()
    found[sums.source.inverse_sd == 0] = 0
    found[:, sums.target.inverse_sd == 0] = 0
    return float(np.vdot(found, found)) * sums.source.n**2


def squared_norms(blocks: Iterable[Matrix], mean: Float[np.ndarray, " feature"]) -> Float[np.ndarray, " row"]:
    """|x_n - mean|² of every row, of blocks [row, feature]."""
    found = []
    for block in blocks:
        rows = block.astype(np.float64)
        found.append(np.asarray((rows * rows).sum(axis=1)).ravel() - 2 * (rows @ mean) + mean @ mean)
    return np.concatenate(found)


# ------------------------------------------------------------------------------------- mutual neighbours


def knn(source: Layer, target: Layer) -> Older:
    """`mutual_neighbours` among at most NEIGHBOUR_ROWS rows, the same ones of both runs."""
    rows = np.sort(permutation(source.run.n_samples)[:NEIGHBOUR_ROWS])
    if len(rows) <= NEIGHBOURS:
        raise UserError(f"knn takes {NEIGHBOURS} neighbours of a sample; the runs have {len(rows)} samples")
    return mutual_neighbours(chosen_rows(source, rows), chosen_rows(target, rows))


def mutual_neighbours(source: Matrix, target: Matrix, k: int = NEIGHBOURS) -> Older:
    """The mean share of a row's `k` nearest other rows, by cosine, that are so in both runs; chance is k / (N - 1).

    Rows that are equally near share the places that are left among them, so that the order of the rows gives no
    agreement: a row without activations is near to all others alike (Huh et al., arXiv 2405.07987). `source` and
    `target` are [row, feature]; NaN with no more than `k` rows.
    """
    units = [_unit(side) for side in (source, target)]
    n = units[0].shape[0]
    if n <= k:
        return Older()
    shared = 0.0
    for start in range(0, n, 256):  # a block of similarities at a time, never all pairs
        one, other = (_places(_similarity(unit, start), start, k) for unit in units)
        shared += float((one * other).sum())
    return Older(shared / (n * k), k / (n - 1))


def _unit(matrix: Matrix) -> Matrix:
    """Rows of length 1, or 0; as a numpy array where that multiplies faster."""
    codes = scipy.sparse.csr_array(matrix, dtype=np.float64)
    norms = np.sqrt(np.asarray(codes.multiply(codes).sum(axis=1)).ravel())
    inverse = np.divide(1, norms, out=np.zeros_like(norms), where=norms > 0)
    unit = scipy.sparse.csr_array(scipy.sparse.diags_array(inverse) @ codes)
    return unit.toarray() if unit.nnz > 0.05 * np.prod(unit.shape) else unit


def _similarity(unit: Matrix, start: int) -> Float[np.ndarray, "block row"]:
    similarity = unit[start : start + 256] @ unit.T
    similarity = similarity if isinstance(similarity, np.ndarray) else similarity.toarray()
    similarity[
        np.arange(len(similarity)), start + np.arange(len(similarity))
    ] = -np.inf  # not its own neighbour
    return similarity


def _places(similarity: np.ndarray, start: int, k: int) -> Float[np.ndarray, "block row"]:
    """How much each row is among the `k` nearest: 1, 0, or the share of the places left that a tie gets."""
    level = np.partition(similarity, -k, axis=1)[:, -k][:, None]
    close = 1e-9  # similarities closer than this are equal
    above, level_with = similarity > level + close, np.abs(similarity - level) <= close
    left = k - above.sum(axis=1, keepdims=True)
    return above + level_with * (left / level_with.sum(axis=1, keepdims=True))


# -------------------------------------------------------------------------------------------- seed pairs


def seeds_mcc(source: Layer, target: Layer) -> Older:
    """`pw_mcc` of two SAEs of one encoder's layer; chance is a decoder of random directions. No score of others."""
    encoders = [layer.run.manifest.get("encoder") for layer in (source, target)]
    decoders = [decoder(layer) for layer in (source, target)]
    if encoders[0] != encoders[1] or source.name != target.name or None in encoders:
        return Older()
    if decoders[0] is None or decoders[1] is None:
        return Older()
    chance = np.random.default_rng(0).standard_normal(decoders[1].shape)
    return Older(pw_mcc(decoders[0], decoders[1]), pw_mcc(decoders[0], chance))


def decoder(layer: Layer) -> Float[np.ndarray, "d_sae d_in"] | None:
    """W_dec of a layer's SAE; None where the run holds none."""
    from safetensors import safe_open

    file = layer.run.path / layer.name / "sae_weights.safetensors"
    if not file.is_file():
        return None
    with safe_open(file, framework="np") as tensors:
        return tensors.get_tensor("W_dec")


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
