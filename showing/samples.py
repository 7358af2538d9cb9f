"""Which samples stand for a feature: the highest, some of each band of its activations, some on which it is silent."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

TOP = 24  # highest samples
BANDS, OF_A_BAND = 5, 4  # equal parts of the activations above 0, by rank; samples of each
FEWEST = 16  # activations, below which there are no bands: the highest samples are all there are
SILENT = 4  # samples on which it is silent
BINS = 20  # of the histogram
SEED = 0  # of the samples that are drawn

Sample = tuple[int, float]  # a row, and the activation there


class Samples(NamedTuple):
    """The samples that a feature is shown by.

    `top`: highest first. `bands`: lowest first, each from low to high; none with few activations. `silent`: rows.
    `low`, `high`: the least and the highest activation; `counts` of activations in equal widths between them.
    """

    top: list[Sample]
    bands: list[list[Sample]]
    silent: list[int]
    low: float
    high: float
    counts: list[int]


def samples(
    feature: int, rows: Int[np.ndarray, " active"], values: Float[np.ndarray, " active"], n_rows: int
) -> Samples:
    """Choose them from the rows on which a feature is active (rising) and its activations there.

    What is drawn at random hangs on the feature's number alone. Equal activations go by row number.
    """
    random = np.random.default_rng([SEED, feature])
    order = np.argsort(-values, kind="stable")
    top = _listed(rows, values, order[:TOP])
    bands = []
    if len(rows) >= FEWEST:
        for band in np.array_split(order[::-1], BANDS):
            chosen = np.sort(random.choice(len(band), min(OF_A_BAND, len(band)), replace=False))
            bands.append(_listed(rows, values, band[chosen]))
    low, high = float(values.min(initial=np.inf)), float(values.max(initial=-np.inf))
    return Samples(top, bands, silent_rows(rows, n_rows, random), low, high, histogram(values, low, high))


def histogram(values: Float[np.ndarray, " active"], low: float, high: float) -> list[int]:
    """How many values are in each of equal widths from the lowest to the highest; equal values are in the first."""
    widths = (values - low) * (BINS / (high - low) if high > low else 0.0)
    return np.bincount(np.minimum(widths.astype(np.int64), BINS - 1), minlength=BINS).tolist()


def silent_rows(rows: Int[np.ndarray, " active"], n_rows: int, random: np.random.Generator) -> list[int]:
    """A few of the rows on which a feature is not active (`rows`, rising, are those on which it is), in rising order."""
    n_silent = n_rows - len(rows)
    places = np.sort(random.choice(n_silent, min(SILENT, n_silent), replace=False)) if n_silent else []
    gaps = rows - np.arange(len(rows))  # silent rows before each active one
    return [int(place + np.searchsorted(gaps, place, side="right")) for place in places]


def _listed(rows: np.ndarray, values: np.ndarray, order: np.ndarray) -> list[Sample]:
    return list(zip(rows[order].tolist(), values[order].tolist(), strict=True))
