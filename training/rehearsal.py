"""A few batches of a command's training and recording, timed, to estimate the whole from. No file is written."""

import contextlib
import itertools
import shutil
import time
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import scipy.sparse
import torch
from jaxtyping import Float
from torch import Tensor

from encoders.wrapper import Activations
from plumbing.processes import anywhere, processes_here, team
from sae import TopKSAE
from saelens import SAE
from training.codes import Pooling, codes, evaluate
from training.fit import cache_fits, divide_work, folded, initial_sae, make_trainers, train_on
from training.given import load_given
from training.plan import RECORD_BATCH, RECORD_TOKENS, own_share
from training.quality import Quality
from training.scales import Scales, merged
from training.trainer import RECIPES, Moments, Standardizer
from training.work import Work

FEWEST_BATCHES, FEWEST_SECONDS = 2, 2.0  # that are timed: fast batches vary more, so more of them are

WARM_UP = 2  # batches in front of them


class Size(NamedTuple):
    """The size of one SAE."""

    d_in: int
    d_sae: int
    k: int | None  # None: as many latents as pass their thresholds

    def numbers(self) -> int:
        """How many weights it has."""
        return 2 * self.d_in * self.d_sae + self.d_in + self.d_sae


class Paces:
    """The seconds that each kind of work takes a row, from the batches that were timed."""

    def __init__(self, device: str):
        self.device = device
        self.seconds: dict[str, float] = {}
        self.rows: dict[str, int] = {}

    @contextlib.contextmanager
    def timing(self, kind: str, n_rows: int) -> Iterator[None]:
        """Time what is done within, on so many rows; a GPU is waited for."""
        began = self._now()
        yield
        self.seconds[kind] = self.seconds.get(kind, 0.0) + self._now() - began
        self.rows[kind] = self.rows.get(kind, 0) + n_rows

    def _now(self) -> float:
        if self.device.startswith("cuda"):
            torch.cuda.synchronize(self.device)
        return time.monotonic()

    def of(self, kind: str, n_rows: int | float) -> float:
        """The seconds for so many rows; 0 where this kind of work was not timed, as it does not occur."""
        return n_rows * self.seconds[kind] / self.rows[kind] if kind in self.seconds else 0.0

    def total(self) -> float:
        """The seconds of all that was timed."""
        return sum(self.seconds.values())

    def at_pace(self, warm_up: "Paces") -> float:
        """The seconds that the rows of the warm-up take at this pace: what they took more is paid once."""
        return sum(self.of(kind, n_rows) for kind, n_rows in warm_up.rows.items())


class Rehearsal(NamedTuple):
    """What was seen of the first batches."""

    paces: Paces  # of recording: with the first SAE alone
    warm_up: Paces  # of what was done before: also rows that only the rehearsal works on
    tokens: float  # that train, of a row
    sizes: list[dict[int, Size]]  # of each job's SAEs, by layer
    entries: list[dict[int, float]]  # of a row's features, likewise
    entry_bytes: int  # in a part file
    row_bytes: int
    caches: bool  # whether the recorded tokens are kept while training

    def recorded(self, kind: str, n_rows: int | float) -> float:
        """The seconds of recording so many rows with all SAEs, by their weights."""
        weights = [size.numbers() for layers in self.sizes for size in layers.values()]
        return self.paces.of(kind, n_rows) * sum(weights) / weights[0]


def rehearse(work: Work, plan: list[list[int]], trained: bool) -> Rehearsal:
    """Train on and record a few batches of the command of this training `plan`."""
    paces, rows = Paces(work.stream.encoder.device), own_share(plan) or [[0]]
    warm_up = Paces(paces.device)
    first = timed_batch(work, rows[0], warm_up)
    if work.sae:
        saes: list[Mapping[int, SAE]] = [load_given(work, work.sae)]
    else:
        saes = [*rehearse_training(work, rows, first, len(plan), trained, paces, warm_up)]
    sizes = [
        {layer: Size(sae.d_in, sae.d_sae, getattr(sae, "k", None)) for layer, sae in one.items()}
        for one in saes
    ]
    found = rehearse_recording(work, saes[0], paces, warm_up)
    return Rehearsal(
        paces,
        warm_up,
        len(first.real_tokens()) / len(set(first.rows)),
        sizes,
        entries_by_layer(work, sizes, one_token_a_row(first), found),
        found.data.itemsize + found.indices.itemsize,
        found.indptr.itemsize,
        trained and one_token_a_row(first) and has_room(work, {k: size.d_in for k, size in sizes[0].items()}),
    )


def timed_batch(work: Work, rows: list[int], paces: Paces) -> Activations:
    """Read and encode some rows."""
    with paces.timing("read", len(rows)):
        read = work.stream.read(rows)
    with paces.timing("encode", len(rows)):
        return work.stream.encode(*read)


def rehearse_training(
    work: Work,
    rows: list[list[int]],
    first: Activations,
    n_steps: int,
    trained: bool,
    paces: Paces,
    warm_up: Paces,
) -> list[dict[int, TopKSAE]]:
    """Train each SAE on the first batches, and time those after the warm-up; `first` is the first batch, encoded."""
    moments = {layer: Moments() for layer in work.stream.layers}
    chosen = first.real_tokens()
    for layer, found in moments.items():
        found.add(first.flat(layer, chosen))
    moments = {layer: merged(found) for layer, found in moments.items()}
    recipe = RECIPES[work.jobs[0].settings.recipe]
    standard = {layer: found.standardizer(recipe) for layer, found in moments.items()}
    scales = Scales(standard, float(found.count))
    division = divide_work(work, scales)
    trainers = make_trainers(work, scales, n_steps, division)
    with warm_up.timing("step", len(rows[0])):
        if trained:
            train_on(first, standard, trainers, division)
    for number, batch_rows in enumerate(itertools.cycle(rows), 2):
        timed = paces if number > WARM_UP else warm_up
        batch = timed_batch(work, batch_rows, timed)
        with timed.timing("step", len(batch_rows)):
            if trained:
                train_on(batch, standard, trainers, division)
        enough = number >= WARM_UP + FEWEST_BATCHES and paces.total() >= FEWEST_SECONDS
        if not anywhere(not enough):  # the processes step together
            break
    return with_others(work, folded(work, trainers, standard), standard)


def with_others(
    work: Work, saes: list[dict[int, TopKSAE]], standard: dict[int, Standardizer]
) -> list[dict[int, TopKSAE]]:
    """The SAEs that this process has trained, and those that others have, as they are before training."""
    whole = []
    for job, own in zip(work.jobs, saes, strict=True):
        others = {n: initial_sae(job.settings, n, standard[n]) for n in work.stream.layers if n not in own}
        for n, sae in others.items():
            sae.fold_standardizer(standard[n].mean, standard[n].scale)
        whole.append({n: (own | others)[n] for n in work.stream.layers})
    return whole


def rehearse_recording(
    work: Work, saes: Mapping[int, SAE], paces: Paces, warm_up: Paces
) -> scipy.sparse.csr_array:
    """Record a batch with one SAE; returns its rows' features, twice."""
    settings, layer = work.jobs[0].settings, work.stream.layers[0]
    rows = list(range(min(max(settings.batch_size, RECORD_BATCH), len(work.held_out))))
    batch, sae = timed_batch(work, rows, paces if work.sae else warm_up), saes[layer]
    pooling, chosen = Pooling(batch), batch.real_tokens()
    recorded, activation = pooling.is_recorded.flatten(), settings.activation
    cached = enough_tokens(batch.flat(layer, pooling.chosen), len(work.held_out))
    for timed in (warm_up, paces):
        with timed.timing("features", len(rows)):
            features = pooling.features(batch, layer, sae, activation)
        with timed.timing("cached", len(cached)):
            codes(cached, sae, activation)
    with paces.timing("judge", len(rows)):
        evaluate(Quality(sae.b_dec.detach(), sae.d_sae), sae, batch, layer, chosen, recorded, activation)
    return scipy.sparse.csr_array(scipy.sparse.vstack([features, features], format="csr"))


def enough_tokens(tokens: Float[Tensor, "token d_in"], n_rows: int) -> Float[Tensor, "copy d_in"]:
    """These tokens again and again, until they are as many as an SAE encodes at once out of the token cache."""
    wanted = min(RECORD_TOKENS, n_rows)
    return tokens.repeat(-(-wanted // len(tokens)), 1)[:wanted]


def entries_by_layer(
    work: Work, sizes: list[dict[int, Size]], single: bool, found: scipy.sparse.csr_array
) -> list[dict[int, float]]:
    """How many features of a row are stored: k of one token; else as many, for the width or k, as were `found`."""
    measured = found.nnz / found.shape[0]
    first = sizes[0][work.stream.layers[0]]

    def entries(size: Size, activation: str) -> float:
        if activation == "relu" or size.k is None or first.k is None:
            return measured * size.d_sae / first.d_sae
        return float(size.k) if single else min(measured * size.k / first.k, float(size.d_sae))

    return [
        {layer: entries(size, job.settings.activation) for layer, size in layers.items()}
        for job, layers in zip(work.jobs, sizes, strict=True)
    ]


def one_token_a_row(batch: Activations) -> bool:
    """Whether each row has one recorded token, which can be cached."""
    return batch.recorded is not None and len(set(batch.rows)) == len(batch.rows)


def has_room(work: Work, widths: dict[int, int]) -> bool:
    """Whether training would keep a token cache where the first run's folder will be."""
    folder = work.jobs[0].folder.absolute()
    nearest = next(place for place in (folder, *folder.parents) if place.is_dir())
    free = shutil.disk_usage(nearest).free
    return processes_here() == team().world and cache_fits(free, len(work.held_out), widths)
