"""Products of dense codes: matrix products of blocks of rows about their means, on a GPU where there is one."""

import functools
import os
from collections.abc import Callable
from types import ModuleType

import numpy as np
from jaxtyping import Float

from comparing.codes import DENSE_ROWS, Codes, ColumnSums, fill
from plumbing.threads import float32_products

GEMM_ADVANTAGE = 60  # multiply-adds of a matrix product in the time of one of the sparse loop, on 2 cores

CUDA_ADVANTAGE = 10_000  # the same with the product on a GPU

DENSE_SHARE = 0.25  # of entries above 0 on both sides, from which products are float32: TopK codes have fewer

PRODUCT_FEATURES = 2048  # source features of one matrix product: bounds the memory of its result


def prefers_gemm(source: Codes, target: Codes) -> bool:
    """Whether a matrix product is cheaper than visiting every pair of stored entries of a row."""
    dense = source.n_rows * source.n_features * target.n_features
    pairs = source.stored * target.stored / max(source.n_rows, 1)
    return pairs * (CUDA_ADVANTAGE if cuda() else GEMM_ADVANTAGE) > dense


@functools.cache
def cuda() -> ModuleType | None:
    """torch where a CUDA device can be used, else None; torch is not imported where there is no driver."""
    if not os.path.exists("/dev/nvidia0"):
        return None
    import torch

    return torch if torch.cuda.is_available() else None


def add_dense_products(
    source: Codes,
    target: Codes,
    weights: np.ndarray,
    sums: tuple[ColumnSums, ColumnSums],
    products: Float[np.ndarray, "kept target"],
    first: int = 0,
    exact: bool = False,
):
    """products[i, j] += Σ weight x_{first+i} y_j of these rows, from products of blocks of rows about their means.

    `sums` are those of the kept source features and of the target's, over these rows with their weights; `exact`:
    in float64. What centring takes away is added back in float64: Σxy = Σ(x - p)(y - q) + p (Σy - n q) + q Σx, which holds for any p and q, so for means that were rounded.
    """
    sides = source.of(first, first + len(products)), target
    dtype = np.float64 if exact or not all(map(_is_dense, (source, target))) else np.float32
    pivots = [side.mean.astype(dtype) for side in sums]
    step = max(1, min(DENSE_ROWS * (8 if cuda() else 1), source.n_rows))
    chunks = [np.empty((step, side.n_features), dtype) for side in sides]
    for start in range(0, source.n_rows, step):
        rows = slice(start, min(start + step, source.n_rows))
        x, y = (
            fill(side.matrix, start, pivot, chunk[: rows.stop - start])
            for side, pivot, chunk in zip(sides, pivots, chunks, strict=True)
        )
        if weights.size:
            x *= weights[rows, None].astype(dtype)
        _add_product(x, y, products)
    p, q = (pivot.astype(np.float64) for pivot in pivots)
    rest = sums[1].total - sums[1].n * q
    for row, own, total in zip(products, p, sums[0].total, strict=True):
        row += own * rest + total * q


def _is_dense(codes: Codes) -> bool:
    return codes.stored >= DENSE_SHARE * codes.n_rows * codes.n_features


def _add_product(x: np.ndarray, y: np.ndarray, products: np.ndarray):
    """products [source, target] += x^T y, by so many source features at a time that the product stays small."""
    torch = cuda()
    product = _product_on_gpu(y, torch) if torch else _product(y)
    for first in range(0, x.shape[1], PRODUCT_FEATURES):
        block = slice(first, first + PRODUCT_FEATURES)
        products[block] += product(x[:, block])


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
