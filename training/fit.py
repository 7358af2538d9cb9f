"""Train every layer's SAEs from one forward pass of the encoder, and save them; take those trained before."""

import os
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool
from tqdm import tqdm

from encoders.wrapper import Activations, WrappedModel
from plumbing import files
from plumbing.errors import UserError
from plumbing.processes import processes_here, team, wait_for_all
from plumbing.threads import float32_products
from sae import TopKSAE, read_config
from training.activations import Stream
from training.resume import Clock
from training.settings import Settings
from training.token_cache import RecordedTokens
from training.trainer import RECIPES, LayerTrainer, Moments, Standardizer
from training.work import History, Job, Work

HELD_OUT = 1000  # samples at most, and a twentieth at most, that never train: FVU, L0 and dead are theirs

STATISTICS_BATCHES = 8  # whose tokens give each layer's mean and scale

REPORT_EVERY = 20  # steps between looks at the loss: each look waits for the device

Trainers = dict[tuple[int, int], LayerTrainer]  # by job number and layer

LAYER = re.compile(r"(?:layer|block)s?[._-]?(\d+)", re.IGNORECASE)  # in an SAE's hook_name or folder name


def fit(work: Work, checkpoint_every: float) -> tuple[list[dict[int, TopKSAE]], History]:
    """Train every job's SAEs and save them; returns `{layer: sae}` for each job, and the reports on the way."""
    if header := files.read_header(work.state().recording_file(0)):
        return [load_saes(work, layer_folders(work, job)) for job in work.jobs], header["history"]
    if work.sae:
        return [take_given(work, work.sae)], []
    plan = training_plan(work.held_out, work.jobs[0].settings)
    standard, batch_tokens = standardizers(work, plan)
    trainers = make_trainers(work, standard, len(plan), batch_tokens)
    cache = open_cache(work, standard)
    history = train_on_all(work, plan, standard, trainers, cache, Clock(checkpoint_every))
    if cache:
        cache.sync()  # before the only checkpoint goes, in every process
        cache.close()
    return save_saes(work, trainers, standard), history


def train_on_all(
    work: Work,
    plan: list[list[int]],
    standard: dict[int, Standardizer],
    trainers: Trainers,
    cache: RecordedTokens | None,
    clock: Clock,
) -> History:
    """Train on every batch of `plan`, or on those that a killed command had left; returns the reports."""
    history, done = restore(work, trainers)
    first_epoch = len(plan) // work.jobs[0].settings.epochs
    batches = work.stream.batches(shares(plan[done:]))
    progress = tqdm(batches, "train", len(plan), initial=done, unit="batch", disable=team().rank > 0)
    for number, batch in enumerate(progress, done + 1):
        if cache and number <= first_epoch:
            cache.write(batch)
        train_on(batch, standard, trainers)
        if number % REPORT_EVERY == 0 or number == len(plan):
            check_finite(trainers, number, whole=number == len(plan))
            history.append(report(progress, trainers, number))
        if team().rank == 0 and clock.is_due():
            with clock:
                check_finite(trainers, number, whole=True)
                save_training(work, trainers, history, number, cache)
    return history


@float32_products("high")
def train_on(batch: Activations, standard: dict[int, Standardizer], trainers: Trainers):
    """A step of every trainer on its layer's tokens; one layer's are held at a time."""
    chosen = batch.real_tokens()
    for layer, standardize in standard.items():
        z = standardize(batch.flat(layer, chosen))
        for (_, own), trainer in trainers.items():
            if own == layer:
                trainer.step(z)


def shares(plan: list[list[int]]) -> list[list[int]]:
    """This process's part of every batch."""
    return [rows[team().rank :: team().world] for rows in plan]


def open_cache(work: Work, standard: dict[int, Standardizer]) -> RecordedTokens | None:
    """Where training keeps what is to be recorded; None where the disk has no room, or machines share no file."""
    widths = {layer: len(standard[layer].mean) for layer in work.stream.layers}
    file, n_rows = work.state().tokens_file, len(work.held_out)
    room = shutil.disk_usage(file.parent).free > 2 * RecordedTokens.nbytes(n_rows, widths)
    one_machine = processes_here() == team().world
    return RecordedTokens(file, n_rows, widths) if one_machine and (room or file.exists()) else None


def held_out_rows(n_samples: int, data_seed: int) -> Bool[np.ndarray, " sample"]:
    """Which samples never train. The same for every encoder on the same data; none where there are under 20."""
    held_out = np.zeros(n_samples, dtype=bool)
    chosen = np.random.default_rng(data_seed).permutation(n_samples)[: min(HELD_OUT, n_samples // 20)]
    held_out[chosen] = True
    return held_out


def training_plan(held_out: Bool[np.ndarray, " sample"], settings: Settings) -> list[list[int]]:
    """The rows of every batch of all epochs: each epoch shuffles the samples that are not held out.

    Of several processes each takes its share of a batch, and a last batch too small to share is left out.
    """
    size = settings.batch_size * team().world
    assert settings.data_seed is not None  # it is settled
    random = np.random.default_rng([settings.data_seed, 1])
    rows = np.flatnonzero(~held_out)
    plan = []
    for _ in range(settings.epochs):
        order = random.permutation(rows).tolist()
        plan += [order[i : i + size] for i in range(0, len(order), size)]
    return [batch for batch in plan if len(batch) >= team().world]


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
            )
    return trainers


def check_finite(trainers: Trainers, number: int, whole: bool):
    """Refuse NaN and infinity in the losses since the last report, or in the whole state, before it is kept."""
    for (_, layer), trainer in trainers.items():
        if not trainer.is_finite(whole):
            raise UserError(
                f"layer {layer} has NaN or infinite activations, or its loss diverged, within batches "
                f"{max(1, number - (number - 1) % REPORT_EVERY)} to {number}: lower --lr, or look at the data"
            )


def report(progress: tqdm, trainers: Trainers, number: int) -> list[Any]:
    """Show the mean loss, FVU and dead fraction; returns the step and every trainer's (loss, FVU, dead fraction)."""
    reports = [trainer.report() for trainer in trainers.values()]
    loss, fvu, dead = np.mean(reports, axis=0)
    steps = (number - 1) % REPORT_EVERY + 1
    progress.set_postfix(loss=f"{loss / steps:.4f}", fvu=f"{fvu:.3f}", dead=f"{dead:.3f}")
    return [number, reports]


def save_training(work: Work, trainers: Trainers, history: History, done: int, cache: RecordedTokens | None):
    """Keep the state of every trainer after `done` steps, once what these steps kept is safe."""
    if cache:
        cache.sync()
    tensors = {
        f"{job}.{layer}.{name}": tensor
        for (job, layer), trainer in trainers.items()
        for name, tensor in trainer.state().items()
    }
    files.write_state(work.state().training_file, work.header(done, history), tensors)


def restore(work: Work, trainers: Trainers) -> tuple[History, int]:
    """Bring the trainers to where a killed command left them; returns its reports and the number of its steps."""
    state = files.read_state(work.state().training_file)
    if state is None:
        return [], 0
    header, tensors = state
    for (job, layer), trainer in trainers.items():
        prefix = f"{job}.{layer}."
        own = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        trainer.restore(own, header["done"])
    print(f"going on after {header['done']} steps", file=sys.stderr)
    return header["history"], header["done"]


def save_saes(work: Work, trainers: Trainers, standard: dict[int, Standardizer]) -> list[dict[int, TopKSAE]]:
    """Fold the standardisers in and save every SAE in its job's folder."""
    saes: list[dict[int, TopKSAE]] = [{} for _ in work.jobs]
    for (number, layer), trainer in trainers.items():
        sae = saes[number][layer] = trainer.sae
        sae.fold_standardizer(standard[layer].mean, standard[layer].scale)
        sae.zero_grad()  # which would take the room of another SAE while recording
        if team().rank == 0:
            sae.save(work.jobs[number].folder / f"layer{layer}", sae_metadata(work.stream, layer))
    wait_for_all()
    return saes


def sae_metadata(stream: Stream, layer: int) -> dict[str, str]:
    """What an SAE's cfg.json says of where it comes from, by SAELens' names."""
    encoder = stream.encoder
    hook = f"{encoder.model}.layer{layer}"
    return {"model_name": encoder.checkpoint, "hook_name": hook, "dataset_path": stream.pairs.name}


def layer_folders(work: Work, job: Job) -> dict[int, Path]:
    """Where a job's SAEs are."""
    return {layer: job.folder / f"layer{layer}" for layer in work.stream.layers}


def load_saes(work: Work, folders: dict[int, Path]) -> dict[int, TopKSAE]:
    """SAEs that were trained before, by layer, on this process's device."""
    return {layer: TopKSAE.load(folder).to(work.stream.encoder.device) for layer, folder in folders.items()}


def find_saes(folder: Path, encoder: WrappedModel, layers: Sequence[int] | None) -> dict[int, Path]:
    """The SAEs in a folder in SAELens' layout, by layer: the folder's own, or one in each subfolder.

    None of `layers`: all that are there. A folder of one SAE may leave its layer to `layers`.
    """
    single = (folder / "cfg.json").exists()
    folders = [folder] if single else sorted(path.parent for path in folder.glob("*/cfg.json"))
    if not folders:
        raise UserError(
            f"--sae {folder} holds no SAE (cfg.json), nor do its subfolders: see the README's run folder"
        )
    chosen = None if layers is None else encoder.resolve_layers(list(layers))
    found: dict[int, Path] = {}
    for one in folders:
        told = told_layer(one)
        layer = chosen[0] if told is None and single and chosen and len(chosen) == 1 else told
        if layer is None:
            remedy = "add --layers with one number" if single else "name that folder alone, with --layers"
            raise UserError(f"--sae: neither {one}'s name nor its cfg.json tells its layer: {remedy}")
        if layer in found:
            raise UserError(f"--sae: {found[layer]} and {one} are both of layer {layer}: name one of them")
        found[layer] = one
    wanted = sorted(found) if chosen is None else chosen
    if missing := [layer for layer in wanted if layer not in found]:
        raise UserError(
            f"--sae {folder} has SAEs of layers {sorted(found)}, not of {missing}: change --layers"
        )
    return {layer: found[layer] for layer in encoder.resolve_layers(wanted)}


def told_layer(folder: Path) -> int | None:
    """The layer of an SAE, as its cfg.json and its folder's name tell it; a `UserError` where they contradict.

    In a hook's or a folder's name it is the number behind "layer", "layers", "block" or "blocks":
    `top1_layer2`, `blocks.8.hook_resid_post`, `encoder.layer.11`.
    """
    config = read_config(folder / "cfg.json")
    metadata = config.get("metadata")
    own = {**config, **(metadata if isinstance(metadata, dict) else {})}
    said = [own.get("hook_layer"), own.get("hook_name"), Path(os.path.abspath(folder)).name]
    numbers = {
        int(number)
        for text in said
        if text is not None
        for number in ([text] if isinstance(text, int) else LAYER.findall(str(text)))
    }
    if len(numbers) > 1:
        raise UserError(
            f"--sae {folder} could be of layer {' or '.join(map(str, sorted(numbers)))} (its cfg.json says "
            f"{own.get('hook_name')!r}): rename the folder, or correct hook_name"
        )
    return next(iter(numbers), None)


def take_given(work: Work, sae: str) -> dict[int, TopKSAE]:
    """Load the SAEs that lie in the folder `sae`, check their widths, and keep a copy with the run."""
    given = find_saes(Path(sae), work.stream.encoder, work.stream.layers)
    saes = load_saes(work, given)
    batch = next(iter(work.stream.batches([[0]])))
    for layer, own in saes.items():
        width = batch.layers[layer].shape[-1]
        if own.d_in != width:
            raise UserError(
                f"the SAE in {given[layer]} takes activations of width {own.d_in}, and layer {layer} of "
                f"{work.stream.encoder.checkpoint} has {width}: name the encoder that it was trained on"
            )
        if team().rank == 0:
            own.save(work.jobs[0].folder / f"layer{layer}", sae_metadata(work.stream, layer))
    wait_for_all()
    return saes
