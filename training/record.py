"""Write every sample's features in row order, and sum up how good the SAEs are on the held-out rows."""

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import scipy.sparse
import torch
from jaxtyping import Bool, Float
from torch import Tensor

import features
import parts
from encoders.wrapper import Activations
from plumbing import files
from plumbing.errors import UserError
from plumbing.processes import add_up, team, wait_for_all
from plumbing.progress import Progress
from saelens import SAE
from training.activations import Stream
from training.codes import Pooling, codes, evaluate, in_halves
from training.plan import PartPlan, cut, plan_parts
from training.quality import Quality, Scores
from training.saves import decoder_of, layer_folders
from training.token_cache import RecordedTokens
from training.work import Work

# Each by job number, then layer:
Saes = Sequence[Mapping[int, SAE]]
Qualities = list[dict[int, Quality]]
Blocks = list[dict[int, list[scipy.sparse.csr_array]]]  # the rows of a part file, as they come


class NotFinite(NamedTuple):
    """The items of a batch with NaN or infinity at a layer, left on the device: to look at them is to wait for it."""

    layer: int
    rows: Sequence[int]
    bad: Bool[Tensor, " item"]


def record(work: Work, saes: Saes) -> list[dict[int, Scores]]:
    """Write every sample's features in row order; returns each job's scores by layer on the held-out samples."""
    n_samples = len(work.stream.pairs)
    qualities = [
        {layer: Quality(sae.b_dec.detach(), sae.d_sae) for layer, sae in one.items()} for one in saes
    ]
    done = restore_recording(work, qualities)
    drop_training(work)
    own = list(range(team().rank, math.ceil(n_samples / features.PART_ROWS), team().world))
    cache = find_cache(work, saes)
    present = cache.present() & ~work.judged() if cache else np.zeros(n_samples, dtype=bool)
    plans = plan_parts(own[done:], present, work.jobs[0].settings.batch_size)
    batches = encode_all(work.stream, [rows for plan in plans for rows in plan.batches])
    progress = Progress(
        desc="record", total=sum(map(PartPlan.n_rows, plans)), unit="row", disable=team().rank > 0
    )
    for plan in plans:
        record_part(work, plan, batches, cache, saes, qualities, progress)
        done += 1
        save_recording(work, qualities, done)
    progress.close()
    if cache:
        cache.close()
    return total_scores(qualities)


def find_cache(work: Work, saes: Saes) -> RecordedTokens | None:
    """The token cache, where training left one."""
    file = work.state().tokens_file
    widths = {layer: sae.d_in for layer, sae in saes[0].items()}
    return RecordedTokens(file, len(work.stream.pairs), widths) if file.exists() else None


def record_part(
    work: Work,
    plan: PartPlan,
    batches: Iterator[Activations],
    cache: RecordedTokens | None,
    saes: Saes,
    qualities: Qualities,
    progress: Progress,
):
    """Write one part file of every layer of every job; `batches` yields the batches of its plan next."""
    blocks: Blocks = [{layer: [] for layer in work.stream.layers} for _ in work.jobs]
    unseen: list[NotFinite] = []
    missing = sum(map(len, plan.batches))
    while missing:
        batch = next(batches)
        record_batch(work, batch, saes, qualities, blocks, unseen)
        n_rows = len(set(batch.rows))
        del batch  # before the next one needs its room
        missing -= n_rows
        progress.update(n_rows)
    for rows in plan.cached:
        assert cache  # it is where these rows are
        record_cached(work, cache.read(rows), rows, saes, blocks)
        progress.update(len(rows))
    refuse_not_finite(work, unseen)
    write_parts(work, blocks, plan)


def encode_all(stream: Stream, plan: list[list[int]]) -> Iterator[Activations]:
    """Encode all rows of `plan` in order; where the GPU runs out of memory, batches are halved from there on."""
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


def record_batch(
    work: Work, batch: Activations, saes: Saes, qualities: Qualities, blocks: Blocks, unseen: list[NotFinite]
):
    """Add a batch's features to `blocks`, its items that are not finite to `unseen`, its judged tokens to the scores."""
    judged = work.judged()[np.asarray(batch.rows)]
    pooling, chosen = Pooling(batch), batch.real_tokens(judged)
    judged_items = torch.from_numpy(judged).to(batch.mask.device, non_blocking=True)
    unseen += find_not_finite(batch, pooling.is_recorded | (batch.mask & judged_items[:, None]))
    recorded = pooling.is_recorded.flatten()
    for number, job in enumerate(work.jobs):
        activation, folders = job.settings.activation, layer_folders(work, job)
        for layer, sae in saes[number].items():
            blocks[number][layer].append(pooling.features(batch, layer, sae, activation))
            if len(chosen):
                with decoder_of(sae, folders[layer]):
                    evaluate(qualities[number][layer], sae, batch, layer, chosen, recorded, activation)


def record_cached(
    work: Work, tokens: dict[int, Float[Tensor, "row d_in"]], rows: list[int], saes: Saes, blocks: Blocks
):
    """Add the features of rows from the token cache to `blocks`."""
    for layer, found in tokens.items():
        refuse_row(work, layer, rows, ~found.isfinite().all(1))
    for number, job in enumerate(work.jobs):
        for layer, sae in saes[number].items():
            own, activation = tokens[layer].to(work.stream.encoder.device), job.settings.activation
            blocks[number][layer] += in_halves(partial(codes, sae=sae, activation=activation), own)


def find_not_finite(batch: Activations, wanted: Bool[Tensor, "item token"]) -> list[NotFinite]:
    """The items with NaN or infinity in the wanted tokens (those that are recorded or judged), at each layer."""
    finite = {layer: tokens.isfinite().all(-1) for layer, tokens in batch.layers.items()}
    return [NotFinite(layer, batch.rows, (wanted & ~found).any(1)) for layer, found in finite.items()]


def refuse_not_finite(work: Work, unseen: Sequence[NotFinite]):
    """Refuse the first item of a part file that is not finite, if there is one; waits for the device."""
    if unseen and torch.cat([one.bad for one in unseen]).any():
        for one in unseen:
            refuse_row(work, *one)


def refuse_row(work: Work, layer: int, rows: Sequence[int], bad: Bool[Tensor, " item"]):
    """Refuse the first bad item, if there is one; `rows`: the row of each item."""
    if bad.any():
        row = rows[int(bad.nonzero()[0])]
        raise UserError(
            f"layer {layer} gives NaN or infinite activations for row {row} ({work.stream.pairs.samples[row].id}): "
            "leave the layer out with --layers, or look at that sample"
        )


def write_parts(work: Work, blocks: Blocks, plan: PartPlan):
    """Write one part file of every layer of every job."""
    order = plan.order()
    for job, layers in zip(work.jobs, blocks, strict=True):
        for layer, rows in layers.items():
            whole = scipy.sparse.csr_array(scipy.sparse.vstack(rows, format="csr"))[order]
            parts.write_part(job.folder, f"layer{layer}", plan.part, whole)


def save_recording(work: Work, qualities: Qualities, done: int):
    """Write this process's checkpoint: the number of part files that it has written, and the sums of its scores."""
    tensors = {
        f"{number}.{layer}.{name}": tensor
        for number, one in enumerate(qualities)
        for layer, quality in one.items()
        for name, tensor in quality.state.items()
    }
    files.write_state(work.state().recording_file(team().rank), work.header(done), tensors)


def restore_recording(work: Work, qualities: Qualities) -> int:
    """Restore the sums of a killed process's scores; returns the number of part files that it had written."""
    state = files.read_state(work.state().recording_file(team().rank))
    if state is None:
        save_recording(work, qualities, done=0)
        return 0
    header, tensors = state
    for number, one in enumerate(qualities):
        for layer, quality in one.items():
            for name, tensor in quality.state.items():
                tensor.copy_(tensors[f"{number}.{layer}.{name}"])
    return header["done"]


def drop_training(work: Work):
    """Remove the checkpoint of the training, once every process has one of its recording."""
    wait_for_all()
    if team().rank == 0:
        for file in work.state().all_training_files():
            file.unlink(missing_ok=True)


def total_scores(qualities: Qualities) -> list[dict[int, Scores]]:
    """The scores over the rows of all processes."""
    for quality in (quality for one in qualities for quality in one.values()):
        for name in Quality.SUMS:
            add_up(quality.state[name])
    return [{layer: quality.scores() for layer, quality in one.items()} for one in qualities]
