"""Products of dense codes: matrix products of blocks of rows about their means, on a GPU where there is one."""

import functools
import os
from collections.abc import Callable
from types import ModuleType
from typing import no_type_check

import numpy as np
from jaxtyping import Float

from comparing.codes import DENSE_ROWS, Codes, ColumnSums, fill
from plumbing.compiled import compiled
from plumbing.threads import equal_ranges, float32_products, in_parallel

GEMM_ADVANTAGE = 60  # multiply-adds of a matrix product in the time of one of the sparse loop, on 2 cores

DENSE_SHARE = 0.25  # of entries above 0 on both sides, from which products are float32: TopK codes have fewer

PRODUCT_FEATURES = 1024  # source features of one matrix product: bounds the memory of its result


def prefers_gemm(source: Codes, target: Codes) -> bool:
    """Whether a matrix product is cheaper than visiting every pair of stored entries of a row."""
    dense = source.n_rows * source.n_features * target.n_features
    pairs = source.stored * target.stored / max(source.n_rows, 1)
    return pairs * GEMM_ADVANTAGE > dense


@functools.cache
def cuda() -> ModuleType | None:
    """torch where a CUDA device can be used, else None; torch is not imported where there is no driver."""
    if not os.path.exists("/dev/nvidiactl"):
        return None
    import torch

    return torch if torch.cuda.is_available() else None


def add_dense_products(
    source: Codes,
    target: Codes,
    products: Float[np.ndarray, "kept target"],
    first: int = 0,
    exact: bool = False,
) -> tuple[ColumnSums, ColumnSums]:
    """products[i, j] += Σ x_{first+i} y_j of all rows, from products of blocks of rows about pivots p and q.

    `exact`: in float64. What the pivots take away is added back in float64:
    Σxy = Σ(x - p)(y - q) + p Σ(y - q) + q Σx, which holds for any p and q. Returns the sums of the kept source
    features and of the target's.
    """
    sides = source.of(first, first + len(products)), target
    dtype = np.float64 if exact or not all(map(_is_dense, (source, target))) else np.float32
    step = max(1, min(DENSE_ROWS * (8 if cuda() else 1), source.n_rows))
    chunks = [np.empty((step, side.n_features), dtype) for side in sides]
    found = [ColumnSums.of_nothing(side.n_features) for side in sides]
    for start in range(0, source.n_rows, step):
        x, y = (chunk[: source.n_rows - start] for chunk in chunks)
        (p, own), (q, other) = (fill(side.matrix, start, to) for side, to in zip(sides, (x, y), strict=True))
        p, q = p.astype(np.float64), q.astype(np.float64)
        _add_product(x, y, products, (p, own.total), (other.total - other.n * q, q))
        found = [found[0].plus(own), found[1].plus(other)]
    return found[0].checked(), found[1].checked()


def _is_dense(codes: Codes) -> bool:
    return codes.stored >= DENSE_SHARE * codes.n_rows * codes.n_features


Pair = tuple[np.ndarray, np.ndarray]


def _add_product(x: np.ndarray, y: np.ndarray, products: np.ndarray, own: Pair, other: Pair):
    """products += x^T y + own[0]^T other[0] + own[1]^T other[1], by so many rows at a time that x^T y stays small."""
    torch = cuda()
    product = _product_on_gpu(y, torch) if torch else _product(y)
    for first in range(0, x.shape[1], PRODUCT_FEATURES):
        block = slice(first, first + PRODUCT_FEATURES)
        fixed = product(x[:, block]), products[block], own[0][block], own[1][block], *other
        ranges = equal_ranges(np.ones(len(fixed[0])))
        in_parallel(lambda f=fixed: lambda start, stop: _add_rows(start, stop, *f), ranges)


@compiled()
@no_type_check
def _add_rows(first, last, product, products, p, total, rest, q):
    for i in range(first, last):
        for j in range(q.size):
            products[i, j] += np.float64(product[i, j]) + (p[i] * rest[j] + total[i] * q[j])


def _product(y: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """x^T y of a block x; the result is overwritten by the next one."""
    held = np.empty((PRODUCT_FEATURES, y.shape[1]), y.dtype)
    return lambda x: np.matmul(x.T, y, out=held[: x.shape[1]])


def _product_on_gpu(y: np.ndarray, torch: ModuleType) -> Callable[[np.ndarray], np.ndarray]:
    other = torch.from_numpy(y).cuda()

    def product(x: np.ndarray) -> np.ndarray:
        with float32_products("highest"):
            return (torch.from_numpy(x).cuda().T @ other).cpu().numpy()

    return product
