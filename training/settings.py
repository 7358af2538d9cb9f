"""What decides a run's numbers besides its encoder and its data."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

HELD_OUT = 1000  # samples at most, and a twentieth at most, that never train: FVU, L0 and dead are theirs


class Settings(NamedTuple):
    """What decides a run's numbers besides its encoder and its data; run.json's `training`.

    `seed` draws the SAEs' first weights. `data_seed` draws the order of the data and the held-out samples; it is
    one for all runs of a command, since they share one stream of activations.
    """

    layers: list[int]
    token: str
    activation: str
    top_k: int
    expansion_factor: int
    batch_size: int
    epochs: int
    lr: float | None
    recipe: str
    precision: str
    seed: int
    data_seed: int
    sae: str | None  # where the SAEs come from that are not trained here


def held_out_rows(n_samples: int, data_seed: int) -> Bool[np.ndarray, " sample"]:
    """Which samples never train. The same for every encoder on the same data; none where there are under 20."""
    held_out = np.zeros(n_samples, dtype=bool)
    chosen = np.random.default_rng(data_seed).permutation(n_samples)[: min(HELD_OUT, n_samples // 20)]
    held_out[chosen] = True
    return held_out
