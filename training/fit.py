"""Train every layer's SAEs from one forward pass of the encoder, and save them."""

import shutil
import sys
from collections.abc import Mapping, Sequence

import numpy as np
from tqdm import tqdm

from encoders.wrapper import Activations
from plumbing import files
from plumbing.errors import UserError
from plumbing.processes import processes_here, team
from plumbing.threads import float32_products
from sae import TopKSAE
from saelens import SAE
from training.given import take_given
from training.log import Logs
from training.plan import own_share, training_plan
from training.resume import Clock
from training.saves import layer_folders, load_saes, save_saes
from training.token_cache import RecordedTokens
from training.trainer import RECIPES, LayerTrainer, Moments, Report, Standardizer
from training.work import Work

STATISTICS_BATCHES = 8  # whose tokens give each layer's mean and scale

REPORT_EVERY = 20  # steps between reports: each one waits for the device

Trainers = dict[tuple[int, int], LayerTrainer]  # by job number and layer


def fit(work: Work, checkpoint_every: float) -> Sequence[Mapping[int, SAE]]:
    """Train every job's SAEs and save them; returns `{layer: sae}` for each job.

    SAEs that are given, or that were saved before a kill, are loaded instead.
    """
    if files.read_header(work.state().recording_file(0)):
        return [load_saes(work, layer_folders(work, job)) for job in work.jobs]
    if work.sae:
        return take_given(work, work.sae)
    plan = training_plan(work.held_out, work.jobs[0].settings)
    standard, batch_tokens = standardizers(work, plan)
    trainers = make_trainers(work, standard, len(plan), batch_tokens)
    if RECIPES[work.jobs[0].settings.recipe].trained:
        cache = open_cache(work, standard)
        train_on_all(work, plan, standard, trainers, cache, Clock(checkpoint_every))
        if cache:
            cache.sync()  # in every process, before the first one removes the only checkpoint
            cache.close()
    saes = folded(work, trainers, standard)
    save_saes(work, saes)
    return saes


def train_on_all(
    work: Work,
    plan: list[list[int]],
    standard: dict[int, Standardizer],
    trainers: Trainers,
    cache: RecordedTokens | None,
    clock: Clock,
):
    """Train on every batch of `plan` that a killed command has not trained on."""
    done = restore(work, trainers)
    logs = Logs(work, done)
    first_epoch = len(plan) // work.jobs[0].settings.epochs
    batches = work.stream.batches(own_share(plan[done:]))
    progress = tqdm(batches, "train", len(plan), initial=done, unit="batch", disable=team().rank > 0)
    for number, batch in enumerate(progress, done + 1):
        if cache and number <= first_epoch:
            cache.write(batch)
        train_on(batch, standard, trainers)
        if number % REPORT_EVERY == 0 or number == len(plan):
            check_finite(trainers, number, whole=number == len(plan))
            n_steps = (number - 1) % REPORT_EVERY + 1
            reports = {which: trainer.report(n_steps) for which, trainer in trainers.items()}
            logs.write(number, reports)
            show(progress, list(reports.values()))
        if team().rank == 0 and clock.is_due():
            with clock:
                check_finite(trainers, number, whole=True)
                logs.sync()
                save_training(work, trainers, number, cache)
    logs.close()


@float32_products("high")
def train_on(batch: Activations, standard: dict[int, Standardizer], trainers: Trainers):
    """A step of every trainer on its layer's tokens; one layer's standardised tokens are held at a time."""
    chosen = batch.real_tokens()
    for layer, standardize in standard.items():
        z = standardize(batch.flat(layer, chosen))
        for (_, own), trainer in trainers.items():
            if own == layer:
                trainer.step(z)


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


def standardizers(work: Work, plan: list[list[int]]) -> tuple[dict[int, Standardizer], float]:
    """Each layer's standardiser from the first batches, and the mean number of tokens in a batch."""
    moments, first = {layer: Moments() for layer in work.stream.layers}, plan[:STATISTICS_BATCHES]
    for batch in work.stream.batches(first):
        chosen = batch.real_tokens()
        for layer, found in moments.items():
            found.add(batch.flat(layer, chosen))
    for layer, found in moments.items():
        if not found.spread.isfinite():
            raise UserError(
                f"layer {layer} gives NaN or infinite activations within batches 1 to {len(first)}: "
                "leave it out with --layers, or look at the encoder and its data"
            )
    recipe = RECIPES[work.jobs[0].settings.recipe]
    standard = {layer: found.standardizer(recipe) for layer, found in moments.items()}
    return standard, found.count / len(first)


def make_trainers(
    work: Work, standard: dict[int, Standardizer], n_steps: int, batch_tokens: float
) -> Trainers:
    """A trainer for each layer of each job, its width asked of the activations."""
    trainers = {}
    for number, (_, settings) in enumerate(work.jobs):
        for layer, standardizer in standard.items():
            assert settings.expansion_factor  # it is settled, as k is
            assert settings.top_k
            d_in, seed = len(standardizer.mean), 1000 * settings.seed + layer
            sae = TopKSAE(d_in, settings.expansion_factor * d_in, settings.top_k, seed)
            sae = sae.to(standardizer.mean.device)
            trainers[number, layer] = LayerTrainer(
                sae,
                RECIPES[settings.recipe],
                n_steps,
                n_steps * batch_tokens,
                settings.lr,
                settings.precision,
                standardizer.center,
                together=team().world > 1,
            )
    return trainers


def check_finite(trainers: Trainers, number: int, whole: bool):
    """Refuse NaN and infinity in the losses since the last report or, with `whole`, in all that a checkpoint holds."""
    for (_, layer), trainer in trainers.items():
        if not trainer.is_finite(whole):
            raise UserError(
                f"layer {layer} has NaN or infinite activations, or its loss diverged, within batches "
                f"{max(1, number - (number - 1) % REPORT_EVERY)} to {number}: lower --lr, or look at the data"
            )


def show(progress: tqdm, reports: list[Report]):
    """Show the reports beside the progress bar, as means over all SAEs."""
    loss, fvu, dead = np.mean(reports, axis=0)[:3]
    progress.set_postfix(loss=f"{loss:.4f}", fvu=f"{fvu:.3f}", dead=f"{dead:.3f}")


def save_training(work: Work, trainers: Trainers, done: int, cache: RecordedTokens | None):
    """Write a checkpoint of every trainer after `done` steps, once the tokens that these steps cached are on disk."""
    if cache:
        cache.sync()
    tensors = {
        f"{job}.{layer}.{name}": tensor
        for (job, layer), trainer in trainers.items()
        for name, tensor in trainer.state().items()
    }
    files.write_state(work.state().training_file, work.header(done), tensors)


def restore(work: Work, trainers: Trainers) -> int:
    """Restore the trainers from a killed command's checkpoint; returns the number of its steps."""
    state = files.read_state(work.state().training_file)
    if state is None:
        return 0
    header, tensors = state
    for (job, layer), trainer in trainers.items():
        prefix = f"{job}.{layer}."
        own = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        trainer.restore(own, header["done"])
    print(f"going on after {header['done']} steps", file=sys.stderr)
    return header["done"]


def folded(work: Work, trainers: Trainers, standard: dict[int, Standardizer]) -> list[dict[int, TopKSAE]]:
    """The trained SAEs of each job, by layer, with their standardisers folded in."""
    saes: list[dict[int, TopKSAE]] = [{} for _ in work.jobs]
    for (number, layer), trainer in trainers.items():
        sae = saes[number][layer] = trainer.sae
        sae.fold_standardizer(standard[layer].mean, standard[layer].scale)
        sae.zero_grad()  # gradients would take the room of another SAE while recording
    return saes
