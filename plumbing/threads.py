"""The threads that share out rows to compiled loops."""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np


def threads() -> int:
    """Threads to use: the process's cores, at most NUMBA_NUM_THREADS and OMP_NUM_THREADS."""
    return min(numba.config.NUMBA_NUM_THREADS, int(os.environ.get("OMP_NUM_THREADS") or 1 << 16))


def _in_parallel(make_worker, ranges: list[tuple[int, int]]):
    """Call `worker(first, last)` on every range, a worker a thread; ranges go out in ascending order."""
    waiting, lock = iter(ranges), threading.Lock()

    def run(_):
        worker = make_worker()
        while True:
            with lock:
                span = next(waiting, None)
            if span is None:
                return
            worker(*span)

    count = threads()
    if count == 1:
        run(0)
        return
    with ThreadPoolExecutor(count) as pool:
        list(pool.map(run, range(count)))


def _ranges(costs: np.ndarray, first: int = 0, each: int = 16) -> list[tuple[int, int]]:
    """Consecutive ranges of about equal cost, `each` for each thread, so that a slow one holds nobody up."""
    reached = np.cumsum(costs + max(costs.sum() / max(costs.size, 1), 1) / 8)
    cuts = np.searchsorted(
        reached, np.linspace(0, reached[-1] if reached.size else 0, each * threads() + 1)[1:-1]
    )
    edges = np.unique(np.concatenate([[0], cuts, [costs.size]])) + first
    return list(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True))


_helpers = ThreadPoolExecutor(os.cpu_count())


def share_out(kernel: Callable, *by_row: np.ndarray, shared: tuple = (), height: int = 32) -> None:
    """Call kernel(*by_row, *shared) on some rows at a time of each array, on as many threads as torch uses.

    The caller takes rows as the helpers do: on a core that another program holds nothing waits. (Numba's own
    threads, beside torch's, took turns on one core of two.)
    """
    import torch  # which comparisons do without

    n_rows = len(by_row[0])
    starts = iter(range(0, n_rows, height))

    def work():
        for start in starts:  # each is handed out once: next() holds the interpreter's lock
            kernel(*(array[start : start + height] for array in by_row), *shared)

    n_helpers = min(torch.get_num_threads(), -(-n_rows // height)) - 1
    helping = [_helpers.submit(work) for _ in range(n_helpers)]
    work()
    for helper in helping:
        helper.result()
