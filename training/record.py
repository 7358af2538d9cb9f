"""Write every sample's features in row order, and sum up how good the SAEs are on the held-out rows."""

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import scipy.sparse
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm import tqdm

import features
from encoders.wrapper import Activations
from plumbing import files
from plumbing.errors import UserError
from plumbing.processes import add_up, team, wait_for_all
from plumbing.threads import float32_products
from sae import TopKSAE
from sae_kernels import keep_largest
from training.activations import Stream
from training.quality import Quality, Scores
from training.token_cache import RecordedTokens
from training.work import History, Work

RECORD_BATCH = 64  # samples at least: recording has no gradients to hold

RECORD_TOKENS = 1024  # cached tokens that are encoded by an SAE at once


Saes = list[dict[int, TopKSAE]]  # by job number, then layer

Qualities = list[dict[int, Quality]]  # by job number, then layer

Blocks = list[
    dict[int, list[scipy.sparse.csr_array]]
]  # by job number, then layer: a part file's rows as they come


def record(work: Work, saes: Saes, history: History) -> list[dict[int, Scores]]:
    """Write every sample's features in row order; returns each job's scores by layer on the held-out samples."""
    n_samples = len(work.stream.pairs)
    qualities = [
        {layer: Quality(sae.b_dec.detach(), sae.d_sae) for layer, sae in one.items()} for one in saes
    ]
    done = restore_recording(work, qualities, history)
    drop_training(work)
    own = list(range(team().rank, math.ceil(n_samples / features.PART_ROWS), team().world))
    cache = find_cache(work, saes)
    present = cache.present() & ~work.judged() if cache else np.zeros(n_samples, dtype=bool)
    plans = plan_parts(work, own[done:], present)
    batches = encode_all(work.stream, [rows for plan in plans for rows in plan.batches])
    progress = tqdm(
        desc="record", total=sum(map(PartPlan.n_rows, plans)), unit="row", disable=team().rank > 0
    )
    for plan in plans:
        record_part(work, plan, batches, cache, saes, qualities, progress)
        done += 1
        save_recording(work, qualities, history, done)
    progress.close()
    if cache:
        cache.close()
    return total_scores(qualities)


def find_cache(work: Work, saes: Saes) -> RecordedTokens | None:
    """What training kept of the tokens that are recorded, if anything."""
    file = work.state().tokens_file
    widths = {layer: sae.d_in for layer, sae in saes[0].items()}
    return RecordedTokens(file, len(work.stream.pairs), widths) if file.exists() else None


def record_part(
    work: Work,
    plan: "PartPlan",
    batches: Iterator[Activations],
    cache: RecordedTokens | None,
    saes: Saes,
    qualities: Qualities,
    progress: tqdm,
):
    """Write one part file of every layer of every job; its batches are the next of `batches`."""
    blocks: Blocks = [{layer: [] for layer in work.stream.layers} for _ in work.jobs]
    missing = sum(map(len, plan.batches))
    while missing:
        batch = next(batches)
        record_batch(work, batch, saes, qualities, blocks)
        n_rows = len(set(batch.rows))
        missing -= n_rows
        progress.update(n_rows)
    for rows in plan.cached:
        assert cache  # or no row would be in it
        record_cached(work, cache.read(rows), rows, saes, blocks)
        progress.update(len(rows))
    write_parts(work, blocks, plan)


class PartPlan(NamedTuple):
    """Where a part file's rows come from: `batches` still have to be encoded, `cached` are in the token cache."""

    part: int
    batches: list[list[int]]
    cached: list[list[int]]

    def order(self) -> Int[np.ndarray, " row"]:
        """Puts what comes batch by batch, then out of the cache, into the order of the rows."""
        return np.argsort([row for rows in (*self.batches, *self.cached) for row in rows])

    def n_rows(self) -> int:
        """How many there are."""
        return sum(map(len, (*self.batches, *self.cached)))


def plan_parts(work: Work, parts: list[int], present: Bool[np.ndarray, " sample"]) -> list[PartPlan]:
    """The plans of some part files, given which rows are in the token cache."""
    size = max(work.jobs[0].settings.batch_size, RECORD_BATCH)
    plans = []
    for part in parts:
        rows = np.arange(part * features.PART_ROWS, min((part + 1) * features.PART_ROWS, len(present)))
        missing, cached = rows[~present[rows]].tolist(), rows[present[rows]].tolist()
        plans.append(PartPlan(part, cut(missing, size), cut(cached, RECORD_TOKENS)))
    return plans


def cut(rows: list[int], size: int) -> list[list[int]]:
    """Rows in lists of at most `size`."""
    return [rows[i : i + size] for i in range(0, len(rows), size)]


def encode_all(stream: Stream, plan: list[list[int]]) -> Iterator[Activations]:
    """Batches of all rows of `plan`, in its order; from where the GPU's memory is too small, in halves."""
    while plan:
        done = 0
        try:
            for batch in stream.batches(plan):
                yield batch
                del batch  # before the next one needs its room
                done += 1
            return
        except torch.cuda.OutOfMemoryError:
            if len(plan[done]) == 1:
                raise UserError(
                    "the GPU is out of memory with one sample: make room on it and give the same command again, "
                    "it goes on"
                ) from None
        torch.cuda.empty_cache()
        half = math.ceil(max(map(len, plan[done:])) / 2)
        print(f"the GPU is out of memory: going on with {half} samples at once", file=sys.stderr)
        plan = [part for rows in plan[done:] for part in cut(rows, half)]


def in_halves(compute: Callable, chosen: Tensor) -> list:
    """compute(chosen), or of its halves, quarters, … where the GPU's memory is too small; the results in order."""
    try:
        return [compute(chosen)]
    except torch.cuda.OutOfMemoryError:
        if len(chosen) == 1:
            raise
    torch.cuda.empty_cache()
    half = len(chosen) // 2
    return in_halves(compute, chosen[:half]) + in_halves(compute, chosen[half:])


def record_batch(work: Work, batch: Activations, saes: Saes, qualities: Qualities, blocks: Blocks):
    """Add a batch's features to `blocks`, and the tokens of its held-out samples to the scores."""
    judged = torch.from_numpy(work.judged()[np.asarray(batch.rows)]).to(batch.mask.device)
    pooling, chosen = Pooling(batch), batch.real_tokens(judged)
    check_activations(work, batch, pooling.is_recorded | (batch.mask & judged[:, None]))
    for number, job in enumerate(work.jobs):
        for layer, sae in saes[number].items():
            blocks[number][layer].append(pooling.features(batch, layer, sae, job.settings.activation))
            if len(chosen):
                recorded = pooling.is_recorded.flatten()
                evaluate(
                    qualities[number][layer], sae, batch, layer, chosen, recorded, job.settings.activation
                )


def record_cached(
    work: Work, tokens: dict[int, Float[Tensor, "row d_in"]], rows: list[int], saes: Saes, blocks: Blocks
):
    """Add the features of rows that were in the token cache to `blocks`."""
    for layer, found in tokens.items():
        refuse_row(work, layer, rows, ~found.isfinite().all(1))
    for number, job in enumerate(work.jobs):
        for layer, sae in saes[number].items():
            own, activation = tokens[layer].to(work.stream.encoder.device), job.settings.activation
            blocks[number][layer] += in_halves(partial(codes, sae=sae, activation=activation), own)


def check_activations(work: Work, batch: Activations, wanted: Bool[Tensor, "item token"]):
    """Refuse NaN and infinity among the wanted tokens, which are recorded or judged."""
    for layer, tokens in batch.layers.items():
        bad = (wanted & ~tokens.isfinite().all(-1)).any(1)
        refuse_row(work, layer, batch.rows, bad)


def refuse_row(work: Work, layer: int, rows: Sequence[int], bad: Bool[Tensor, " item"]):
    """Stop at the first bad item, if there is one; `rows` are those of the items."""
    if bad.any():
        row = rows[int(bad.nonzero()[0])]
        raise UserError(
            f"layer {layer} gives NaN or infinite activations for row {row} ({work.stream.pairs.samples[row].id}): "
            "leave the layer out with --layers, or look at that sample"
        )


@float32_products("high")
@torch.no_grad()
def codes(tokens: Float[Tensor, "token d_in"], sae: TopKSAE, activation: str) -> scipy.sparse.csr_array:
    """The code of each token, CSR float32 [token, d_sae]."""
    if activation == "relu":
        return scipy.sparse.csr_array(sae.pre_acts(tokens).relu().cpu().numpy())
    values, latents = (part.cpu().numpy() for part in sae.encode_topk(tokens))
    ends = np.arange(0, values.size + 1, sae.k)
    found = scipy.sparse.csr_array((values.ravel(), latents.ravel(), ends), shape=(len(tokens), sae.d_sae))
    found.eliminate_zeros()
    return found


class Pooling:
    """From tokens' codes to rows' features: the weighted mean of the codes of each row's recorded tokens."""

    def __init__(self, batch: Activations):
        self.chosen, items, weights = batch.recorded_tokens()
        self.is_recorded = torch.zeros(batch.mask.shape, dtype=torch.bool, device=batch.mask.device)
        self.is_recorded.view(-1)[self.chosen] = True
        place = {row: number for number, row in enumerate(dict.fromkeys(batch.rows))}
        row_of_item = np.array([place[row] for row in batch.rows])
        n_items, rows = np.bincount(row_of_item).astype(np.float32), row_of_item[items.cpu().numpy()]
        shares = weights.cpu().numpy() / n_items[rows]
        columns = np.arange(len(rows))
        self.mean = scipy.sparse.csr_array((shares, (rows, columns)), shape=(len(place), len(rows)))

    def features(
        self, batch: Activations, layer: int, sae: TopKSAE, activation: str
    ) -> scipy.sparse.csr_array:
        """A batch's features [row, d_sae], CSR float32."""
        found = in_halves(lambda chosen: codes(batch.flat(layer, chosen), sae, activation), self.chosen)
        return scipy.sparse.csr_array(self.mean @ scipy.sparse.vstack(found, format="csr"))


def evaluate(
    quality: Quality,
    sae: TopKSAE,
    batch: Activations,
    layer: int,
    chosen: Int[Tensor, " chosen"],
    recorded: Bool[Tensor, " token"],
    activation: str,
):
    """Add tokens to an SAE's scores: its TopK reconstruction, and the firings of the codes that are recorded."""

    @float32_products("high")
    @torch.no_grad()
    def add(chosen: Int[Tensor, " chosen"]):
        tokens = batch.flat(layer, chosen)
        pre_acts = sae.pre_acts(tokens)
        feature_acts = keep_largest(pre_acts, sae.k)
        firings = ((pre_acts if activation == "relu" else feature_acts) > 0).sum(0).double()
        quality.update(tokens, sae.decode(feature_acts), firings, recorded[chosen])

    in_halves(add, chosen)


def write_parts(work: Work, blocks: Blocks, plan: PartPlan):
    """Write one part file of every layer of every job."""
    order = plan.order()
    for job, layers in zip(work.jobs, blocks, strict=True):
        for layer, rows in layers.items():
            whole = scipy.sparse.csr_array(scipy.sparse.vstack(rows, format="csr"))[order]
            features.write_part(job.folder, f"layer{layer}", plan.part, whole)


def save_recording(work: Work, qualities: Qualities, history: History, done: int):
    """Keep how many parts this process has written, and its scores' sums."""
    tensors = {
        f"{number}.{layer}.{name}": tensor
        for number, one in enumerate(qualities)
        for layer, quality in one.items()
        for name, tensor in quality.state.items()
    }
    files.write_state(work.state().recording_file(team().rank), work.header(done, history), tensors)


def restore_recording(work: Work, qualities: Qualities, history: History) -> int:
    """The number of parts that a killed process had written; its scores' sums are taken over."""
    state = files.read_state(work.state().recording_file(team().rank))
    if state is None:
        save_recording(work, qualities, history, done=0)
        return 0
    header, tensors = state
    for number, one in enumerate(qualities):
        for layer, quality in one.items():
            for name, tensor in quality.state.items():
                tensor.copy_(tensors[f"{number}.{layer}.{name}"])
    return header["done"]


def drop_training(work: Work):
    """Remove the checkpoint of the training, once every process can resume its recording without it."""
    wait_for_all()
    if team().rank == 0:
        work.state().training_file.unlink(missing_ok=True)


def total_scores(qualities: Qualities) -> list[dict[int, Scores]]:
    """The scores over all processes' rows."""
    for quality in (quality for one in qualities for quality in one.values()):
        for name in Quality.SUMS:
            add_up(quality.state[name])
    return [{layer: quality.scores() for layer, quality in one.items()} for one in qualities]
