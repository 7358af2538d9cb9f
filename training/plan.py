"""Which rows come in which batch: when training, where some never come, and when recording."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

import features
from plumbing.processes import team
from training.settings import Settings

HELD_OUT = (
    1000  # samples at most, and a twentieth at most, never train: FVU, L0 and dead are measured on them
)

RECORD_BATCH = 64  # samples in a batch at least: recording has no gradients to hold

RECORD_TOKENS = 1024  # cached tokens that an SAE encodes at once


def held_out_rows(n_samples: int, data_seed: int) -> Bool[np.ndarray, " sample"]:
    """Which samples never train: the same for every encoder on the same data; none of fewer than 20."""
    held_out = np.zeros(n_samples, dtype=bool)
    chosen = np.random.default_rng(data_seed).permutation(n_samples)[: min(HELD_OUT, n_samples // 20)]
    held_out[chosen] = True
    return held_out


def training_plan(held_out: Bool[np.ndarray, " sample"], settings: Settings) -> list[list[int]]:
    """The rows of every batch of all epochs: each epoch shuffles the samples that are not held out.

    A batch is shared out among the processes; an epoch's last one is left out where it is too small for that.
    """
    size = settings.batch_size * team().world
    assert settings.data_seed is not None  # it is settled
    random = np.random.default_rng([settings.data_seed, 1])
    rows = np.flatnonzero(~held_out)
    plan = []
    for _ in range(settings.epochs):
        plan += cut(random.permutation(rows).tolist(), size)
    return [batch for batch in plan if len(batch) >= team().world]


def own_share(plan: list[list[int]]) -> list[list[int]]:
    """This process's rows of every batch.

    The shares of all, one after another, are the batch: an SAE's owner adds up its tokens in the order of one process.
    """
    rank, world = team()
    return [rows[rank * len(rows) // world : (rank + 1) * len(rows) // world] for rows in plan]


class PartPlan(NamedTuple):
    """Where a part file's rows come from: `batches` still have to be encoded, `cached` are in the token cache."""

    part: int
    batches: list[list[int]]
    cached: list[list[int]]

    def order(self) -> Int[np.ndarray, " row"]:
        """Sorts the rows, which come batch by batch and then out of the cache."""
        return np.argsort([row for rows in (*self.batches, *self.cached) for row in rows])

    def n_rows(self) -> int:
        """The number of rows."""
        return sum(map(len, (*self.batches, *self.cached)))


def plan_parts(parts: list[int], present: Bool[np.ndarray, " sample"], batch_size: int) -> list[PartPlan]:
    """The plan of each part file, given its number and which rows are in the token cache."""
    plans = []
    for part in parts:
        rows = np.arange(part * features.PART_ROWS, min((part + 1) * features.PART_ROWS, len(present)))
        missing, cached = rows[~present[rows]].tolist(), rows[present[rows]].tolist()
        batches = cut(missing, max(batch_size, RECORD_BATCH))
        plans.append(PartPlan(part, batches, cut(cached, RECORD_TOKENS)))
    return plans


def cut(rows: list[int], size: int) -> list[list[int]]:
    """Rows in lists of at most `size`."""
    return [rows[i : i + size] for i in range(0, len(rows), size)]
