"""Train every layer's SAEs from one forward pass of the encoder, and save them."""

import json
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from encoders.wrapper import Activations
from plumbing import files
from plumbing.errors import UserError
from plumbing.processes import add_up, exchange, first_process_says, of_all, processes_here, team
from plumbing.progress import Progress
from plumbing.threads import float32_products
from sae import TopKSAE
from saelens import SAE
from training.checkpoint import Checkpoint, Trainers
from training.division import Division, divide
from training.given import take_given
from training.log import Logs
from training.plan import own_share, training_plan
from training.resume import Clock
from training.saves import load_all, save_saes
from training.scales import Scales, measure_scales, saved_scales
from training.settings import Settings
from training.token_cache import RecordedTokens
from training.trainer import RECIPES, LayerTrainer, Report, Standardizer
from training.work import Work

REPORT_EVERY = 20  # steps between reports: each one waits for the device


def fit(work: Work, checkpoint_every: float) -> Sequence[Mapping[int, SAE]]:
    """Train every job's SAEs and save them; returns `{layer: sae}` for each job.

    SAEs that are given, or that were saved before a kill, are loaded instead.
    """
    if files.read_header(work.state().recording_file(0)):
        return load_all(work)
    if work.sae:
        return take_given(work, work.sae)
    saes, apart = train_saes(work, checkpoint_every)
    save_saes(work, saes, apart)
    if not apart:
        return saes
    del saes  # before all are loaded
    return load_all(work)


def train_saes(work: Work, checkpoint_every: float) -> tuple[list[dict[int, TopKSAE]], bool]:
    """The trained SAEs of each job, by layer, and whether each process has its own ones only."""
    plan = training_plan(work.held_out, work.jobs[0].settings)
    scales = saved_scales(work) or measure_scales(work, plan)
    division = divide_work(work, scales)
    trainers, apart = make_trainers(work, scales, len(plan), division), division.owners is not None
    if RECIPES[work.jobs[0].settings.recipe].trained:
        announce(work, division)
        cache = open_cache(work, scales.standard)
        checkpoint = Checkpoint(work, scales, trainers, apart)
        train_on_all(work, plan, checkpoint, division, cache, Clock(checkpoint_every))
        if cache:
            cache.sync()  # in every process, before the first one removes the only checkpoint
            cache.close()
    return folded(work, trainers, scales.standard), apart


def train_on_all(
    work: Work,
    plan: list[list[int]],
    checkpoint: Checkpoint,
    division: Division,
    cache: RecordedTokens | None,
    clock: Clock,
):
    """Train on every batch of `plan` that a killed command has not trained on."""
    trainers, standard = checkpoint.trainers, checkpoint.scales.standard
    done = checkpoint.restore()
    logs = Logs(work, done)
    first_epoch = len(plan) // work.jobs[0].settings.epochs
    batches = work.stream.batches(own_share(plan[done:]))
    progress = Progress(desc="train", total=len(plan), initial=done, unit="batch", disable=team().rank > 0)
    for number in range(done + 1, len(plan) + 1):
        batch = next(batches)
        if cache and number <= first_epoch:
            cache.write(batch)
        train_on(batch, standard, trainers, division)
        del batch  # before the next one needs its room
        progress.update()
        if number % REPORT_EVERY == 0 or number == len(plan):
            check_finite(trainers, number, whole=number == len(plan))
            n_steps = (number - 1) % REPORT_EVERY + 1
            reports = {which: trainer.report(n_steps) for which, trainer in trainers.items()}
            reports = reports_of_all(reports, division)
            logs.write(number, reports)
            show(progress, list(reports.values()))
        if is_due(clock, checkpoint.apart):
            with clock:
                write_checkpoint(checkpoint, number, logs, cache)
    progress.close()
    logs.close()


def write_checkpoint(checkpoint: Checkpoint, number: int, logs: Logs, cache: RecordedTokens | None):
    """Write the state after so many steps, and before it what these steps have written besides."""
    check_finite(checkpoint.trainers, number, whole=True)
    logs.sync()
    if cache:
        cache.sync()
    checkpoint.write(number)


def is_due(clock: Clock, apart: bool) -> bool:
    """Whether this process writes a checkpoint now. Where all have to write one, the first one's clock tells them."""
    if not apart:
        return team().rank == 0 and clock.is_due()
    return bool(first_process_says(lambda: [clock.is_due()], 1)[0])


@float32_products("high")
def train_on(batch: Activations, standard: dict[int, Standardizer], trainers: Trainers, division: Division):
    """A step of every trainer on its layer's tokens; one layer's standardised tokens are held at a time."""
    for layer, z in shared_tokens(batch, standard, division):
        for (_, own), trainer in trainers.items():
            if own == layer:
                trainer.step(z)


def shared_tokens(
    batch: Activations, standard: dict[int, Standardizer], division: Division
) -> Iterator[tuple[int, Float[Tensor, "token d_in"]]]:
    """The layers that this process trains, and the standardised tokens that it trains each on.

    Where it has SAEs of its own, these are the tokens of all processes: in every round each process receives those of
    one of its layers, and sends its own tokens of the others' layers.
    """
    chosen, (rank, world) = batch.real_tokens(), team()
    if division.owners is None:
        for layer, standardize in standard.items():
            yield layer, standardize(batch.flat(layer, chosen))
        return
    counts = of_all([len(chosen)])[:, 0].astype(int)
    for layers in division.rounds(world):
        own = layers[rank]
        width = 0 if own is None else len(standard[own].mean)
        parts = [
            chosen.new_empty(0, dtype=torch.float32)
            if layer is None
            else standard[layer](batch.flat(layer, chosen))
            for layer in layers
        ]
        z = exchange(parts, (counts * width).tolist())
        del parts
        if own is not None:
            yield own, z.view(-1, width)


def open_cache(work: Work, standard: dict[int, Standardizer]) -> RecordedTokens | None:
    """The token cache; None where the disk has too little room, or where processes of several machines would share it."""
    widths = {layer: len(standard[layer].mean) for layer in work.stream.layers}
    file, n_rows = work.state().tokens_file, len(work.held_out)
    room = cache_fits(shutil.disk_usage(file.parent).free, n_rows, widths)
    one_machine = processes_here() == team().world
    return RecordedTokens(file, n_rows, widths) if one_machine and (room or file.exists()) else None


def cache_fits(free: int, n_rows: int, widths: dict[int, int]) -> bool:
    """Whether a disk with so many bytes free has room for a token cache."""
    return free > 2 * RecordedTokens.nbytes(n_rows, widths)


def divide_work(work: Work, scales: Scales) -> Division:
    """Which process trains which SAE."""
    sizes = {}
    for number, (_, settings) in enumerate(work.jobs):
        for layer, standardizer in scales.standard.items():
            assert settings.expansion_factor  # it is settled, as k is
            d_in = len(standardizer.mean)
            sizes[number, layer] = d_in, settings.expansion_factor * d_in
    return divide(sizes, team().world, scales.batch_tokens)


def announce(work: Work, division: Division):
    """Say how the SAEs are shared out, and keep it for run.json."""
    rank, world = team()
    if rank == 0:
        files.write_text(work.state().shared_out_file, json.dumps(division.described(world)))
    if rank == 0 and world > 1:
        way = "all train all SAEs together, each on its share of a batch"
        if division.owners is not None:
            way = "each trains its own SAEs, on the tokens of all"
        print(
            f"{world} processes: {way}; each sends up to {division.sent / 2**20:.1f} MiB a step and holds up to "
            f"{division.held / 2**20:.1f} MiB of weights and moments",
            file=sys.stderr,
        )


def make_trainers(work: Work, scales: Scales, n_steps: int, division: Division) -> Trainers:
    """A trainer for each layer of each job that this process trains, its width asked of the activations."""
    trainers = {}
    for number, (_, settings) in enumerate(work.jobs):
        for layer, standardizer in scales.standard.items():
            if not division.owns(team().rank, (number, layer)):
                continue
            trainers[number, layer] = LayerTrainer(
                initial_sae(settings, layer, standardizer),
                RECIPES[settings.recipe],
                n_steps,
                n_steps * scales.batch_tokens,
                settings.lr,
                settings.precision,
                standardizer.center,
                together=team().world > 1 and division.owners is None,
            )
    return trainers


def initial_sae(settings: Settings, layer: int, standardizer: Standardizer) -> TopKSAE:
    """The SAE of a layer as it is before training."""
    assert settings.expansion_factor  # it is settled, as k is
    assert settings.top_k
    d_in, seed = len(standardizer.mean), 1000 * settings.seed + layer
    sae = TopKSAE(d_in, settings.expansion_factor * d_in, settings.top_k, seed)
    return sae.to(standardizer.mean.device)


def check_finite(trainers: Trainers, number: int, whole: bool):
    """Refuse NaN and infinity in the losses since the last report or, with `whole`, in all that a checkpoint holds."""
    for (_, layer), trainer in trainers.items():
        if not trainer.is_finite(whole):
            raise UserError(
                f"layer {layer} has NaN or infinite activations, or its loss diverged, within batches "
                f"{max(1, number - (number - 1) % REPORT_EVERY)} to {number}: lower --lr, or look at the data"
            )


def show(progress: Progress, reports: list[Report]):
    """Show the reports beside the progress bar, as means over all SAEs."""
    loss, fvu, dead = np.mean(reports, axis=0)[:3]
    progress.set_postfix(loss=f"{loss:.4f}", fvu=f"{fvu:.3f}", dead=f"{dead:.3f}")


def reports_of_all(
    reports: dict[tuple[int, int], Report], division: Division
) -> dict[tuple[int, int], Report]:
    """The reports of all SAEs, of which each process has those that it trains."""
    if division.owners is None:
        return reports
    numbers = np.zeros((len(division.owners), len(Report._fields)))
    for row, which in zip(numbers, sorted(division.owners), strict=True):
        row[:] = reports.get(which, 0)
    add_up(numbers)
    return {
        which: Report(*row[:-1], tokens=int(row[-1]))
        for row, which in zip(numbers.tolist(), sorted(division.owners), strict=True)
    }


def folded(work: Work, trainers: Trainers, standard: dict[int, Standardizer]) -> list[dict[int, TopKSAE]]:
    """The trained SAEs of each job, by layer, with their standardisers folded in."""
    saes: list[dict[int, TopKSAE]] = [{} for _ in work.jobs]
    for (number, layer), trainer in trainers.items():
        sae = saes[number][layer] = trainer.sae
        sae.fold_standardizer(standard[layer].mean, standard[layer].scale)
    return saes
