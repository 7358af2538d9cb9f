"""Threads that share out rows to compiled loops, and how exact products are."""

import contextlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

_helpers = ThreadPoolExecutor(os.cpu_count())


def threads() -> int:
    """Threads to use: the process's cores, at most NUMBA_NUM_THREADS and OMP_NUM_THREADS."""
    import numba  # here, since `--help` does without

    # pyrefly: ignore[missing-attribute]  # numba sets it when it reads the environment
    return min(numba.config.NUMBA_NUM_THREADS, int(os.environ.get("OMP_NUM_THREADS") or 1 << 16))


def in_parallel(
    make_worker: Callable[[], Callable[[int, int], None]],
    ranges: list[tuple[int, int]],
    n_threads: int | None = None,
) -> None:
    """Call `worker(first, last)` on every range, a worker a thread (`threads()` of them); in ascending order.

    The caller takes ranges as the helpers do: on a core that another program holds nothing waits. (Numba's own
    threads, beside torch's, took turns on one core of two.)
    """
    waiting = iter(ranges)  # hands each out once: next() holds the interpreter's lock

    def work():
        worker = make_worker()
        for first, last in waiting:
            worker(first, last)

    n_helpers = min(threads() if n_threads is None else n_threads, len(ranges)) - 1
    helping = [_helpers.submit(work) for _ in range(n_helpers)]
    try:
        work()
    finally:
        wait(helping)
    for helper in helping:
        helper.result()


def share_out(kernel: Callable, *by_row: "np.ndarray", shared: tuple = (), height: int = 32) -> None:
    """Call kernel(*by_row, *shared) on `height` rows at a time of each array, on as many threads as torch uses."""
    import torch  # which comparisons do without

    def worker(first: int, last: int):
        kernel(*(array[first:last] for array in by_row), *shared)

    n_rows = len(by_row[0])
    ranges = [(start, start + height) for start in range(0, n_rows, height)]
    in_parallel(lambda: worker, ranges, torch.get_num_threads())


def equal_ranges(costs: "np.ndarray", first: int = 0, each: int = 16) -> list[tuple[int, int]]:
    """Consecutive ranges of about equal cost, `each` for each thread, so that a slow one holds nobody up."""
    import numpy as np

    reached = np.cumsum(costs + max(costs.sum() / max(costs.size, 1), 1) / 8)
    cuts = np.searchsorted(
        reached, np.linspace(0, reached[-1] if reached.size else 0, each * threads() + 1)[1:-1]
    )
    edges = np.unique(np.concatenate([[0], cuts, [costs.size]])) + first
    return list(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True))


@contextlib.contextmanager
def float32_products(precision: str) -> Iterator[None]:
    """torch's float32 products at a precision: "highest", or "high" (TF32 where a GPU has it, three decimals).

    Convolutions too, which by torch's default are in TF32. What else runs in this process keeps its own settings.
    """
    import torch

    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision(precision)
    torch.backends.cudnn.allow_tf32 = precision != "highest"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
