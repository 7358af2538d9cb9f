"""Fit SAEs on an encoder's hooked activations, every layer from one forward pass, then record all features.

Training keeps what it sees of the tokens that are recorded, so that recording encodes only the rows that it did
not see, and those that record several tokens.

Under `torchrun` each process trains on its share of every batch (gradients are summed, so all keep the same SAEs)
and records its share of the part files.
"""

import argparse
import importlib.metadata
import itertools
import math
import os
import platform
import re
import resource
import shutil
import sys
import time
from argparse import ArgumentTypeError as UserError  # one line on stderr, exit code 2
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse
import torch
import torch.distributed
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm import tqdm

import data
import features
import files
import wrappedmodels
from activations import Batch, RecordedTokens, Stream, tensor_cores
from names import check_names, name_variants
from quality import FEW, Quality, Scores
from sae import TopKSAE, keep_largest, read_config
from trainer import RECIPES, LayerTrainer, Moments, Standardizer
from unfinished import Unfinished, first_difference, has_begun, release_locks

STATISTICS_BATCHES = 8  # whose tokens give each layer's mean and scale
HELD_BYTES = 1 << 30  # of those batches that are held, to be trained on without encoding them again
HELD_OUT = 1000  # samples at most, and a twentieth at most, that never train: FVU, L0 and dead are theirs
RECORD_BATCH = 64  # samples at least: recording has no gradients to hold
RECORD_TOKENS = 1024  # kept tokens that are encoded by an SAE at once
REPORT_EVERY = 20  # steps between looks at the loss: each look waits for the device
LAYER = re.compile(r"(?:layer|block)s?[._-]?(\d+)", re.IGNORECASE)  # in an SAE's hook_name or folder name
CHECKPOINT_SHARE = 0.03  # of the time, that checkpoints may take


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


class Job(NamedTuple):
    """One run to be: its folder and its settings. The jobs of one command share every activation."""

    folder: Path
    settings: Settings


class Work(NamedTuple):
    """All that a command has to do.

    `identity`: the settings that a checkpoint must match before we resume from it. `started`: the monotonic time
    at which the command would have started had it never been interrupted.
    """

    stream: Stream
    jobs: list[Job]
    held_out: Bool[np.ndarray, " sample"]
    identity: dict[str, Any]
    given: dict[int, Path]  # the folders of SAEs that are trained already, by layer; empty: train
    checkpoint_every: float  # seconds
    started: float
    command: list[str] | None = None  # the words that were typed

    def judged(self) -> Bool[np.ndarray, " sample"]:
        """The samples that scores are of: those held out, or all where there are too few to hold any out."""
        return self.held_out if self.held_out.any() else ~self.held_out

    def unfinished(self) -> list[Unfinished]:
        """The run folders while they are worked on."""
        return [Unfinished(job.folder) for job in self.jobs]

    def fit_state(self) -> Path:
        """Where the training of all jobs is kept while it lasts."""
        return self.jobs[0].folder / "unfinished-training.safetensors"

    def record_state(self, process: int) -> Path:
        """Where a process keeps how far its recording is."""
        return self.jobs[0].folder / f"unfinished-recording-{process}.safetensors"

    def tokens_file(self) -> Path:
        """Where training keeps what is to be recorded (`RecordedTokens`)."""
        return self.jobs[0].folder / "unfinished-tokens.bin"


def run(arguments: argparse.Namespace) -> list[features.Run]:
    """Train and record what the command line asks for: a run for each seed and each k."""
    try:
        return train_and_record(arguments, start_processes(arguments.device))
    except torch.cuda.OutOfMemoryError as error:
        raise UserError(
            f"the GPU is out of memory: lower --batch_size (now {arguments.batch_size}), or choose fewer --layers"
        ) from error
    except OSError as error:
        if mistake := explain(error, arguments):
            raise mistake from error
        raise
    finally:
        release_locks()
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def explain(error: OSError, arguments: argparse.Namespace) -> UserError | None:
    """What to tell of a full disk, or of a run folder that cannot be written to; None of any other error."""
    if files.is_full(error):
        again = ", without --overwrite," if arguments.overwrite else ""
        return UserError(f"the disk is full: make room and give the same command again{again} and it goes on")
    place = Path(os.path.realpath(str(error.filename)))
    if error.filename is not None and place.is_relative_to(os.path.realpath(features.ROOT)):
        return UserError(f"{error.filename}: {error.strerror}; mend that and give the same command again")
    return None


def train_and_record(arguments: argparse.Namespace, device: str) -> list[features.Run]:
    """`run`, in each process."""
    started = time.monotonic()
    pairs = arguments.pairs if hasattr(arguments, "pairs") else data.from_arguments(arguments)
    check_names(arguments, pairs)
    encoder = wrappedmodels.load(
        arguments.model,
        arguments.checkpoint,
        token=arguments.token,
        blocks=arguments.blocks,
        random_weights=arguments.random_weights,
        device=device,
    )
    layers = asked_layers(encoder, None if arguments.sae else arguments.layers)
    wrappedmodels.self_test_on(encoder, pairs, layers)
    work = prepare(arguments, encoder, pairs, device, started)
    if runs := finished_before(work):
        return conclude(work, runs)
    saes, history = fit(work)
    scores = record(work, saes, history)
    cost = costs(work)
    if process() > 0:
        return []
    runs = [
        finish(work, number, saes[number], scores[number], history, cost) for number in range(len(work.jobs))
    ]
    return conclude(work, runs)


def conclude(work: Work, runs: list[features.Run]) -> list[features.Run]:
    """Clean up beside whole runs and print their tables: the first process's task."""
    if process() > 0:
        return []
    forget_unfinished(work)
    for recorded in runs:
        print(table(recorded))
    return runs


# ---------------------------------------------------------------------------------------------- processes


def start_processes(device: str | None) -> str:
    """Join the group that torchrun asks for, if it does; returns this process's device."""
    count, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("LOCAL_RANK", "0"))
    device = own_device(device, count, rank)
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
    if count > 1:
        if device.startswith("cuda"):
            torch.cuda.set_device(device)
        torch.distributed.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    return device


def own_device(asked: str | None, count: int, rank: int) -> str:
    """The device of process `rank` of this machine, one of `count` in all: "cuda" gives each a GPU of its own."""
    if asked is None:
        asked = "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cuda(:\d+)?", asked):
        return asked
    number = asked.removeprefix("cuda").removeprefix(":")
    if number and count > 1:
        raise UserError(
            f"--device {asked} is one GPU for {count} processes: type --device cuda, a GPU for each"
        )
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not gpus:
        raise UserError(f"--device {asked}: no GPU can be used here; type --device cpu")
    chosen = int(number or rank)
    if chosen >= gpus:
        remedy = f"start {gpus} processes" if count > 1 else f"type cuda:0 to cuda:{gpus - 1}"
        raise UserError(f"--device {asked}: GPU {chosen} is asked for, of {gpus}: {remedy}")
    return f"cuda:{chosen}"


def process() -> int:
    """This process's number."""
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def processes() -> int:
    """How many there are."""
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def wait_for_all():
    """Return when every process has come here."""
    if torch.distributed.is_initialized():
        torch.distributed.barrier()


# ---------------------------------------------------------------------------------------------- preparing


def prepare(arguments: argparse.Namespace, encoder: Any, pairs: Any, device: str, started: float) -> Work:
    """Settle every setting, and open the run folders: fresh ones, or those of the same command when it was cut short."""
    row = wrappedmodels.REGISTRY[arguments.model]
    given = find_saes(Path(arguments.sae), encoder, arguments.layers) if arguments.sae else {}
    base = Settings(
        layers=sorted(given) or asked_layers(encoder, arguments.layers),
        token=encoder.token,
        activation=arguments.activation,
        top_k=row.top_k,
        expansion_factor=arguments.expansion_factor or row.expansion_factor,
        batch_size=arguments.batch_size,
        epochs=arguments.epochs,
        lr=arguments.lr,
        recipe=arguments.recipe,
        precision=arguments.precision,
        seed=arguments.seeds[0],
        data_seed=arguments.seeds[0] if arguments.data_seed is None else arguments.data_seed,
        sae=arguments.sae,
    )
    variants = {
        name: base._replace(top_k=k or row.top_k, seed=seed)
        for name, (k, seed) in name_variants(arguments, pairs).items()
    }
    identity = {
        "model": encoder.model,
        "checkpoint": encoder.checkpoint,
        "blocks": arguments.blocks,
        "random_weights": arguments.random_weights,
        "fingerprint": pairs.fingerprint,
        "files": pairs.file_stamp(),
        "encoder_files": encoder.file_stamp(),
        "caption": pairs.source.get("caption"),
        "processes": processes(),
        "runs": {name: settings._asdict() for name, settings in variants.items()},
    }
    stream = Stream(encoder, pairs, base.layers, arguments.workers, device)
    jobs = [Job(features.run_path(name), settings) for name, settings in variants.items()]
    held_out = held_out_rows(len(pairs), base.data_seed)
    work = Work(
        stream, jobs, held_out, identity, given, arguments.checkpoint_every, started, arguments.command
    )
    if not given and (n_training := int((~held_out).sum())) < processes():
        raise UserError(
            f"{n_training} training samples cannot be shared by {processes()} processes: start at most {n_training}"
        )
    if process() == 0:
        work = work._replace(started=started - open_folders(work, arguments.overwrite))
    wait_for_all()
    return work


def asked_layers(encoder: Any, layers: list[int | str] | None) -> list[int]:
    """The resolved numbers of the layers that --layers asks for: by default the last, "all" for all."""
    return encoder.resolve_layers(None if layers and "all" in layers else layers or [-1])


def open_folders(work: Work, overwrite: bool) -> float:
    """Lock and prepare the run folders, or find what a killed command of the same identity left; returns its seconds.

    A whole run and what another command has begun are refused, unless they are to be overwritten, which starts
    afresh. The folders are looked at before they are locked, so that none that is refused is touched, and once
    more after.
    """
    folders = work.unfinished()
    check_folders(work, overwrite)
    for one in folders:
        one.lock()
    check_folders(work, overwrite)
    if not overwrite and can_resume(work):
        headers = [files.read_header(file) for file in (work.record_state(0), work.fit_state())]
        return next((header["seconds"] for header in headers if header), 0.0)
    for one in folders:
        one.start(work.identity)
    return 0.0


def check_folders(work: Work, overwrite: bool):
    """Refuse the folders that this command may not write to."""
    for one in work.unfinished():
        features.check_place(one.folder)
        one.check_idle()
    if not overwrite and not can_resume(work):
        for one in work.unfinished():
            one.check(work.identity)


def can_resume(work: Work) -> bool:
    """Whether this command was killed and left something: a state, or whole runs that it was cleaning up."""
    marks = [one.mark() for one in work.unfinished()]
    known = [first_difference(mark, work.identity) is None for mark in marks if mark]
    if all(known) and all(features.is_whole(job.folder) for job in work.jobs):
        return bool(known)
    return len(known) == len(marks) and all(known) and has_begun(work.identity)


def finished_before(work: Work) -> list[features.Run]:
    """The whole runs of a command that was killed while it cleaned up; none where there is more to do."""
    whole = all(features.is_whole(job.folder) for job in work.jobs)
    return [features.open_run(job.folder.name) for job in work.jobs] if whole else []


def forget_unfinished(work: Work):
    """Remove what only an unfinished command needs: the first folder, which holds the state, comes last."""
    for one in reversed(work.unfinished()):
        one.finish()


def state_header(work: Work, done: int, history: list) -> dict[str, Any]:
    """What every state file says of itself."""
    seconds = time.monotonic() - work.started
    return {"seconds": seconds, "done": done, "history": history}


def held_out_rows(n_samples: int, data_seed: int) -> Bool[np.ndarray, " sample"]:
    """Which samples never train. The same for every encoder on the same data; none where there are under 20."""
    held_out = np.zeros(n_samples, dtype=bool)
    chosen = np.random.default_rng(data_seed).permutation(n_samples)[: min(HELD_OUT, n_samples // 20)]
    held_out[chosen] = True
    return held_out


# ---------------------------------------------------------------------------------------------- training

Trainers = dict[tuple[int, int], LayerTrainer]  # by job number and layer


def fit(work: Work) -> tuple[list[dict[int, TopKSAE]], list]:
    """Train every job's SAEs and save them; returns `{layer: sae}` for each job, and the reports on the way."""
    if header := files.read_header(work.record_state(0)):
        return [load_saes(work, layer_folders(job)) for job in work.jobs], header["history"]
    if work.given:
        return [take_given(work)], []
    plan = training_plan(work.held_out, work.jobs[0].settings)
    standard, batch_tokens, seen = standardizers(work, plan)
    trainers = make_trainers(work, standard, len(plan), batch_tokens)
    history, done = restore(work, trainers)
    kept, first_epoch = keep_tokens(work, standard), len(plan) // work.jobs[0].settings.epochs
    clock = Clock(work.checkpoint_every)
    rest = shares(plan[max(done, len(seen)) :])
    del seen[:done]
    batches = itertools.chain(drain(seen), work.stream.batches(rest))
    progress = tqdm(batches, "train", len(plan), initial=done, unit="batch", disable=process() > 0)
    for number, batch in enumerate(progress, done + 1):
        if kept and number <= first_epoch:
            kept.write(batch)
        train_on(batch, standard, trainers)
        if number % REPORT_EVERY == 0 or number == len(plan):
            check_finite(trainers, number, whole=number == len(plan))
            history.append(report(progress, trainers, number))
        if process() == 0 and clock.is_due():
            with clock:
                check_finite(trainers, number, whole=True)
                save_training(work, trainers, history, number, kept)
    if kept:
        kept.sync()  # before the only checkpoint goes, in every process
        kept.close()
    return save_saes(work, trainers, standard), history


@tensor_cores()
def train_on(batch: Batch, standard: dict[int, Standardizer], trainers: Trainers):
    """A step of every trainer on its layer's tokens; one layer's are held at a time."""
    chosen = batch.real_tokens()
    for layer, standardize in standard.items():
        z = standardize(batch.flat(layer, chosen))
        for (_, own), trainer in trainers.items():
            if own == layer:
                trainer.step(z)


def drain(batches: list[Batch]) -> Iterator[Batch]:
    """Give away the batches one by one, keeping none."""
    while batches:
        yield batches.pop(0)


def shares(plan: list[list[int]]) -> list[list[int]]:
    """This process's part of every batch."""
    return [rows[process() :: processes()] for rows in plan]


def keep_tokens(work: Work, standard: dict[int, Standardizer]) -> RecordedTokens | None:
    """Where training keeps what is to be recorded; None where the disk has no room, or machines share no file."""
    widths = {layer: len(standard[layer].mean) for layer in work.stream.layers}
    file, n_rows = work.tokens_file(), len(work.held_out)
    one_machine = int(os.environ.get("LOCAL_WORLD_SIZE", processes())) == processes()
    room = shutil.disk_usage(file.parent).free > 2 * RecordedTokens.nbytes(n_rows, widths)
    return RecordedTokens(file, n_rows, widths) if one_machine and (room or file.exists()) else None


def training_plan(held_out: Bool[np.ndarray, " sample"], settings: Settings) -> list[list[int]]:
    """The rows of every batch of all epochs: each epoch shuffles the samples that are not held out.

    Of several processes each takes its share of a batch, and a last batch too small to share is left out.
    """
    size = settings.batch_size * processes()
    random = np.random.default_rng([settings.data_seed, 1])
    rows = np.flatnonzero(~held_out)
    plan = []
    for _ in range(settings.epochs):
        order = random.permutation(rows).tolist()
        plan += [order[i : i + size] for i in range(0, len(order), size)]
    return [batch for batch in plan if len(batch) >= processes()]


def standardizers(work: Work, plan: list[list[int]]) -> tuple[dict[int, Standardizer], float, list[Batch]]:
    """Each layer's standardiser from the first batches, the mean number of tokens in a batch, and the first batches.

    Of those, as many are returned as may be held, and none where a process trains on a part of a batch only.
    """
    moments, seen = {layer: Moments() for layer in work.stream.layers}, []
    first, room = plan[:STATISTICS_BATCHES], HELD_BYTES if processes() == 1 else 0
    for batch in work.stream.batches(first):
        chosen = batch.real_tokens()
        for layer, found in moments.items():
            found.add(batch.flat(layer, chosen))
        room -= batch.nbytes
        if room >= 0:
            seen.append(batch)
    for layer, found in moments.items():
        if not found.spread.isfinite():
            raise UserError(
                f"layer {layer} gives NaN or infinite activations within batches 1 to {len(first)}: "
                "leave it out with --layers, or look at the encoder and its data"
            )
    recipe = RECIPES[work.jobs[0].settings.recipe]
    standard = {layer: found.standardizer(recipe) for layer, found in moments.items()}
    return standard, found.count / len(first), seen


def make_trainers(work: Work, standard: dict, n_steps: int, batch_tokens: float) -> Trainers:
    """A trainer for each layer of each job, its width asked of the activations."""
    trainers = {}
    for number, (_, settings) in enumerate(work.jobs):
        for layer, standardizer in standard.items():
            d_in = len(standardizer.mean)
            sae = TopKSAE(
                d_in, settings.expansion_factor * d_in, settings.top_k, seed=1000 * settings.seed + layer
            ).to(standardizer.mean.device)
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


def report(progress: tqdm, trainers: Trainers, number: int) -> list:
    """Show the mean loss, FVU and dead fraction; returns the step and every trainer's (loss, FVU, dead fraction)."""
    reports = [trainer.report() for trainer in trainers.values()]
    loss, fvu, dead = np.mean(reports, axis=0)
    steps = (number - 1) % REPORT_EVERY + 1
    progress.set_postfix(loss=f"{loss / steps:.4f}", fvu=f"{fvu:.3f}", dead=f"{dead:.3f}")
    return [number, reports]


def save_saes(work: Work, trainers: Trainers, standard: dict[int, Standardizer]) -> list[dict[int, TopKSAE]]:
    """Fold the standardisers in and save every SAE in its job's folder."""
    saes: list[dict[int, TopKSAE]] = [{} for _ in work.jobs]
    for (number, layer), trainer in trainers.items():
        sae = saes[number][layer] = trainer.sae
        sae.fold_standardizer(standard[layer].mean, standard[layer].scale)
        sae.zero_grad()  # which would take the room of another SAE while recording
        if process() == 0:
            sae.save(work.jobs[number].folder / f"layer{layer}", describe(work, layer))
    wait_for_all()
    return saes


def describe(work: Work, layer: int) -> dict[str, str]:
    """What an SAE's cfg.json says of where it comes from, by SAELens' names."""
    encoder = work.stream.encoder
    hook = f"{encoder.model}.layer{layer}"
    return {"model_name": encoder.checkpoint, "hook_name": hook, "dataset_path": work.stream.pairs.name}


def layer_folders(job: Job) -> dict[int, Path]:
    """Where a job's SAEs are."""
    return {layer: job.folder / f"layer{layer}" for layer in job.settings.layers}


def load_saes(work: Work, folders: dict[int, Path]) -> dict[int, TopKSAE]:
    """SAEs that were trained before, by layer, on this process's device."""
    return {layer: TopKSAE.load(folder).to(work.stream.device) for layer, folder in folders.items()}


def find_saes(folder: Path, encoder: Any, layers: list[int | str] | None) -> dict[int, Path]:
    """The SAEs in a folder in SAELens' layout, by layer: the folder's own, or one in each subfolder.

    `layers` as typed: by default all that are there. A folder of one SAE may leave its layer to `layers`.
    """
    single = (folder / "cfg.json").exists()
    folders = [folder] if single else sorted(path.parent for path in folder.glob("*/cfg.json"))
    if not folders:
        raise UserError(
            f"--sae {folder} holds no SAE (cfg.json), nor do its subfolders: see the README's run folder"
        )
    chosen = None if layers is None or "all" in layers else encoder.resolve_layers(layers)
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


def take_given(work: Work) -> dict[int, TopKSAE]:
    """Load the SAEs that the command names, check their widths, and keep a copy with the run."""
    saes = load_saes(work, work.given)
    batch = next(iter(work.stream.batches([[0]])))
    for layer, sae in saes.items():
        width = batch.layers[layer].shape[-1]
        if sae.d_in != width:
            raise UserError(
                f"the SAE in {work.given[layer]} takes activations of width {sae.d_in}, and layer {layer} of "
                f"{work.stream.encoder.checkpoint} has {width}: name the encoder that it was trained on"
            )
        if process() == 0:
            sae.save(work.jobs[0].folder / f"layer{layer}", describe(work, layer))
    wait_for_all()
    return saes


# -------------------------------------------------------------------------------------------- checkpoints


class Clock:
    """Says when a checkpoint is due: every so many seconds, and seldom enough to cost little.

    As a context it takes the time of a checkpoint, which sets when the next one is due.
    """

    def __init__(self, every: float):
        self.every, self.last = every, time.monotonic()

    def is_due(self) -> bool:
        """Whether it is time."""
        return time.monotonic() - self.last >= self.every

    def __enter__(self):
        self.began = time.monotonic()

    def __exit__(self, *_):
        self.last = time.monotonic()
        self.every = max(self.every, (self.last - self.began) / CHECKPOINT_SHARE)


def save_training(work: Work, trainers: Trainers, history: list, done: int, kept: RecordedTokens | None):
    """Keep the state of every trainer after `done` steps, once what these steps kept is safe."""
    if kept:
        kept.sync()
    tensors = {
        f"{job}.{layer}.{name}": tensor
        for (job, layer), trainer in trainers.items()
        for name, tensor in trainer.state().items()
    }
    files.write_state(work.fit_state(), state_header(work, done, history), tensors)


def restore(work: Work, trainers: Trainers) -> tuple[list, int]:
    """Bring the trainers to where an interrupted process left them; returns its reports and its steps."""
    state = files.read_state(work.fit_state())
    if state is None:
        return [], 0
    header, tensors = state
    for (job, layer), trainer in trainers.items():
        prefix = f"{job}.{layer}."
        own = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        trainer.restore(own, header["done"])
    print(f"going on after {header['done']} steps", file=sys.stderr)
    return header["history"], header["done"]


# --------------------------------------------------------------------------------------------- recording

Qualities = list[dict[int, Quality]]  # by job number, then layer


def record(work: Work, saes: list[dict[int, TopKSAE]], history: list) -> list[dict[int, Scores]]:
    """Write every sample's features in row order; returns each job's scores by layer on the held-out samples."""
    n_samples = len(work.stream.pairs)
    qualities = [
        {layer: Quality(sae.b_dec.detach(), sae.d_sae) for layer, sae in one.items()} for one in saes
    ]
    done = restore_recording(work, qualities, history)
    drop_training(work)
    own = list(range(process(), math.ceil(n_samples / features.PART_ROWS), processes()))
    kept = None
    if work.tokens_file().exists():
        kept = RecordedTokens(
            work.tokens_file(), n_samples, {layer: sae.d_in for layer, sae in saes[0].items()}
        )
    present = kept.present() & ~work.judged() if kept else np.zeros(n_samples, dtype=bool)
    plans = plan_parts(work, own[done:], present)
    batches = encode_all(work.stream, [rows for plan in plans for rows in plan.batches])
    progress = tqdm(desc="record", total=sum(map(PartPlan.n_rows, plans)), unit="row", disable=process() > 0)
    for plan in plans:
        blocks = [{layer: [] for layer in work.stream.layers} for _ in work.jobs]
        missing = sum(map(len, plan.batches))
        while missing:
            batch = next(batches)
            record_batch(work, batch, saes, qualities, blocks)
            missing -= len(batch.rows)
            progress.update(len(batch.rows))
        for rows in plan.kept:
            record_kept(work, kept.read(rows), rows, saes, blocks)
            progress.update(len(rows))
        write_parts(work, blocks, plan)
        done += 1
        save_recording(work, qualities, history, done)
    progress.close()
    if kept:
        kept.close()
    return total_scores(qualities)


class PartPlan(NamedTuple):
    """How the rows of a part file are come by: batches to encode, and rows whose tokens were kept."""

    part: int
    batches: list[list[int]]
    kept: list[list[int]]

    def order(self) -> Int[np.ndarray, " row"]:
        """Puts what comes batch by batch, then kept, into the order of the rows."""
        return np.argsort([row for rows in (*self.batches, *self.kept) for row in rows])

    def n_rows(self) -> int:
        """How many there are."""
        return sum(map(len, (*self.batches, *self.kept)))


def plan_parts(work: Work, parts: list[int], present: Bool[np.ndarray, " sample"]) -> list[PartPlan]:
    """The plans of some part files, given of which rows the recorded tokens were kept."""
    size = max(work.jobs[0].settings.batch_size, RECORD_BATCH)
    plans = []
    for part in parts:
        rows = np.arange(part * features.PART_ROWS, min((part + 1) * features.PART_ROWS, len(present)))
        missing, kept = rows[~present[rows]].tolist(), rows[present[rows]].tolist()
        cut = lambda whole, step: [whole[i : i + step] for i in range(0, len(whole), step)]  # noqa: E731
        plans.append(PartPlan(part, cut(missing, size), cut(kept, RECORD_TOKENS)))
    return plans


def encode_all(stream: Stream, plan: list[list[int]]) -> Iterator[Batch]:
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
        plan = [rows[i : i + half] for rows in plan[done:] for i in range(0, len(rows), half)]


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


def record_batch(work: Work, batch: Batch, saes: list, qualities: Qualities, blocks: list):
    """Add a batch's features to `blocks`, and the tokens of its held-out samples to the scores."""
    judged = torch.from_numpy(work.judged()[batch.rows]).to(batch.mask.device)
    chosen = batch.real_tokens(judged[batch.row_of_item])
    pooling = Pooling(batch)
    check_activations(work, batch, (batch.pool > 0) | (batch.mask & judged[batch.row_of_item][:, None]))
    for number, job in enumerate(work.jobs):
        for layer, sae in saes[number].items():
            blocks[number][layer].append(pooling.features(batch, layer, sae, job.settings.activation))
            if len(chosen):
                evaluate(qualities[number][layer], sae, batch, layer, chosen, job.settings.activation)


def record_kept(
    work: Work, tokens: dict[int, Float[Tensor, "row d_in"]], rows: list[int], saes: list, blocks: list
):
    """Add the features of rows whose recorded tokens were kept to `blocks`."""
    for layer, found in tokens.items():
        refuse_row(work, layer, rows, ~found.isfinite().all(1))
    for number, job in enumerate(work.jobs):
        for layer, sae in saes[number].items():
            own, activation = tokens[layer].to(work.stream.device), job.settings.activation
            blocks[number][layer] += in_halves(partial(codes, sae=sae, activation=activation), own)


def check_activations(work: Work, batch: Batch, wanted: Bool[Tensor, "item token"]):
    """Refuse NaN and infinity among the wanted tokens, which are recorded or judged."""
    for layer, tokens in batch.layers.items():
        bad = (wanted & ~tokens.isfinite().all(-1)).any(1)
        refuse_row(work, layer, [batch.rows[i] for i in batch.row_of_item.tolist()], bad)


def refuse_row(work: Work, layer: int, rows: list[int], bad: Bool[Tensor, " item"]):
    """Stop at the first bad item, if there is one; `rows` are those of the items."""
    if bad.any():
        row = rows[int(bad.nonzero()[0])]
        raise UserError(
            f"layer {layer} gives NaN or infinite activations for row {row} ({work.stream.pairs.samples[row].id}): "
            "leave the layer out with --layers, or look at that sample"
        )


@tensor_cores()
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

    def __init__(self, batch: Batch):
        self.chosen, rows = batch.recorded_tokens()
        rows = rows.cpu().numpy()
        items = np.bincount(batch.row_of_item.cpu().numpy(), minlength=len(batch.rows)).astype(np.float32)
        shares = batch.pool.flatten()[self.chosen].cpu().numpy().astype(np.float32) / items[rows]
        columns = np.arange(len(rows))
        self.mean = scipy.sparse.csr_array((shares, (rows, columns)), shape=(len(batch.rows), len(rows)))

    def features(self, batch: Batch, layer: int, sae: TopKSAE, activation: str) -> scipy.sparse.csr_array:
        """A batch's features [row, d_sae], CSR float32."""
        found = in_halves(lambda chosen: codes(batch.flat(layer, chosen), sae, activation), self.chosen)
        return scipy.sparse.csr_array(self.mean @ scipy.sparse.vstack(found, format="csr"))


def evaluate(
    quality: Quality, sae: TopKSAE, batch: Batch, layer: int, chosen: Int[Tensor, " chosen"], activation: str
):
    """Add tokens to an SAE's scores: its TopK reconstruction, and the firings of the codes that are recorded."""

    @tensor_cores()
    @torch.no_grad()
    def add(chosen: Int[Tensor, " chosen"]):
        tokens = batch.flat(layer, chosen)
        pre_acts = sae.pre_acts(tokens)
        feature_acts = keep_largest(pre_acts, sae.k)
        firings = ((pre_acts if activation == "relu" else feature_acts) > 0).sum(0).double()
        quality.update(tokens, sae.decode(feature_acts), firings, batch.pool.flatten()[chosen] > 0)

    in_halves(add, chosen)


def write_parts(work: Work, blocks: list[dict[int, list]], plan: PartPlan):
    """Write one part file of every layer of every job."""
    order = plan.order()
    for job, layers in zip(work.jobs, blocks, strict=True):
        for layer, rows in layers.items():
            whole = scipy.sparse.csr_array(scipy.sparse.vstack(rows, format="csr"))[order]
            features.write_part(job.folder, f"layer{layer}", plan.part, whole)


def save_recording(work: Work, qualities: Qualities, history: list, done: int):
    """Keep how many parts this process has written, and its scores' sums."""
    tensors = {
        f"{number}.{layer}.{name}": tensor
        for number, one in enumerate(qualities)
        for layer, quality in one.items()
        for name, tensor in quality.state.items()
    }
    files.write_state(work.record_state(process()), state_header(work, done, history), tensors)


def drop_training(work: Work):
    """Remove the checkpoint of the training, once every process can resume its recording without it."""
    wait_for_all()
    if process() == 0:
        work.fit_state().unlink(missing_ok=True)


def restore_recording(work: Work, qualities: Qualities, history: list) -> int:
    """The number of parts that an interrupted process had written; its scores' sums are taken over."""
    state = files.read_state(work.record_state(process()))
    if state is None:
        save_recording(work, qualities, history, done=0)
        return 0
    header, tensors = state
    for number, one in enumerate(qualities):
        for layer, quality in one.items():
            for name, tensor in quality.state.items():
                tensor.copy_(tensors[f"{number}.{layer}.{name}"])
    return header["done"]


def total_scores(qualities: Qualities) -> list[dict[int, Scores]]:
    """The scores over all processes' rows."""
    if torch.distributed.is_initialized():
        for quality in (quality for one in qualities for quality in one.values()):
            for name in Quality.SUMS:
                torch.distributed.all_reduce(quality.state[name])
    return [{layer: quality.scores() for layer, quality in one.items()} for one in qualities]


# -------------------------------------------------------------------------------------- the finished run


def finish(work: Work, number: int, saes: dict, scores: dict, history: list, cost: dict) -> features.Run:
    """Write a job's samples, its training curve and its manifest, which makes the run whole."""
    (folder, settings), encoder, pairs = work.jobs[number], work.stream.encoder, work.stream.pairs
    names = {layer: f"layer{layer}" for layer in work.stream.layers}
    rows = [{"id": row.id, "image": row.file, "caption": row.captions[0]} for row in pairs.samples]
    features.write_samples(folder, rows)
    own = slice(number * len(names), (number + 1) * len(names))
    if history:
        curve = [(step, found[own]) for step, found in history]
        draw_curve(folder / "training_curve.png", list(names.values()), curve)
    manifest = {
        "encoder": {
            "model": encoder.model,
            "checkpoint": encoder.checkpoint,
            "modality": encoder.modality,
            "blocks": work.identity["blocks"],
            "random_weights": work.identity["random_weights"],
        },
        "layers": list(names.values()),
        "n_samples": len(pairs),
        "dataset": {"name": pairs.name, "fingerprint": pairs.fingerprint, "source": pairs.source},
        "unreadable": pairs.unreadable,
        "token": settings.token,
        "activation": settings.activation,
        "sae": {
            names[layer]: {"d_in": sae.d_in, "d_sae": sae.d_sae, "k": sae.k} for layer, sae in saes.items()
        },
        "training": {
            key: value
            for key, value in settings._asdict().items()
            if not settings.sae or key in ("sae", "data_seed")
        },
        "evaluated_samples": int(work.judged().sum()),
        "held_out": bool(work.held_out.any()) and not settings.sae,
        **{
            field: {names[layer]: finite(getattr(score, field)) for layer, score in scores.items()}
            for field in Scores._fields
        },
        **cost,
        "command": work.command,
    }
    return features.finish_run(folder, manifest)


def finite(number: float) -> float | None:
    """JSON has no NaN."""
    return number if math.isfinite(number) else None


def draw_curve(file: Path, layers: list[str], history: list):
    """FVU and dead fraction over the training steps, a line a layer."""
    import matplotlib
    from matplotlib.figure import Figure

    colour = matplotlib.colormaps["viridis"]
    figure = Figure(figsize=(9, 3.5), layout="constrained", dpi=150)
    steps = [step for step, _ in history]
    for axes, field, title in zip(figure.subplots(1, 2), (1, 2), ("FVU", "dead fraction"), strict=True):
        for i, layer in enumerate(layers):
            shade = 0.85 * i / max(1, len(layers) - 1)
            values = [found[i][field] for _, found in history]
            axes.plot(steps, values, "." * (len(steps) < 10) + "-", color=colour(shade), label=layer)
        axes.set(xlabel="step", title=f"{title} in training", ylim=(0, None))
    axes.legend(fontsize=7, ncols=1 + len(layers) // 13)
    with features.replacing(file) as temporary:
        figure.savefig(temporary, metadata={"Software": None})


def costs(work: Work) -> dict[str, Any]:
    """Seconds, samples per second, peak memory in bytes (of the process that took most), hardware, versions."""
    seconds = time.monotonic() - work.started
    device = work.stream.device if work.stream.device.startswith("cuda") else None
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes there, in KiB elsewhere
    packages = ("torch", "transformers", "open_clip_torch", "numpy", "scipy")
    return {
        "seconds": round(seconds, 3),
        "samples_per_second": round(len(work.stream.pairs) / seconds, 3),
        "peak_memory": highest(work, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit),
        "peak_gpu_memory": highest(work, torch.cuda.max_memory_allocated(device)) if device else None,
        "device": work.stream.device,
        "hardware": torch.cuda.get_device_name(device) if device else f"{platform.machine()} CPU",
        "threads": torch.get_num_threads(),
        "processes": processes(),
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in packages},
    }


def cautions(manifest: dict[str, Any]) -> list[str]:
    """What a reader of the scores should know of some layers, a line each."""
    lines = []
    for field, tokens in (("fvu", "all tokens"), ("fvu_recorded", "the recorded tokens")):
        if bad := [layer for layer, fvu in manifest[field].items() if (fvu or 0) > 1]:
            cause = (
                "is --sae of this encoder and these layers?" if manifest["training"]["sae"] else "lower --lr"
            )
            lines.append(
                f"{', '.join(bad)}: an FVU of {tokens} above 1 is worse than their mean: "
                + (cause if field == "fvu" else "the SAE does not fit what is recorded")
            )
    for layer, share in manifest["half_variance_tokens"].items():
        if share is not None and share < FEW:
            lines.append(
                f"{layer}: {share:.2%} of the tokens hold half of the variance, so that FVU tells of these few; "
                "see FVU rec"
            )
    return lines


def highest(work: Work, number: int) -> int:
    """The largest of all processes' numbers."""
    if not torch.distributed.is_initialized():
        return number
    found = torch.tensor(number, device=work.stream.device)
    torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX)
    return int(found)


def table(recorded: features.Run) -> str:
    """The run's scores by layer, and what it cost, for a person."""
    manifest = recorded.manifest
    head = f"{'layer':<8} {'d_sae':>7} {'FVU':>7} {'FVU rec':>7} {'L0':>7} {'dead':>7} {'dense':>7}"
    lines = [head]
    for layer in recorded.layers:
        scores = Scores(**{field: manifest[field][layer] for field in Scores._fields})
        fits = " ".join(f"{'-':>7}" if fvu is None else f"{fvu:7.3f}" for fvu in scores[:2])
        width = manifest["sae"][layer]["d_sae"]
        fractions = f"{scores.dead_fraction:7.3f} {scores.dense_fraction:7.3f}"
        lines.append(f"{layer:<8} {width:>7} {fits} {scores.l0:7.1f} {fractions}")
    kind = "held-out samples" if manifest["held_out"] else "samples, which it was trained on too"
    if manifest["training"]["sae"]:
        kind = "samples, which --sae may have been trained on"
    lines.append(f"scores on {manifest['evaluated_samples']} {kind}; FVU rec: of the recorded tokens alone")
    lines += cautions(manifest)
    memory = manifest["peak_gpu_memory"] or manifest["peak_memory"]
    lines.append(
        f"run {recorded.name}: {recorded.n_samples} samples of {manifest['dataset']['name']}, "
        f"{manifest['seconds']:.0f} s ({manifest['samples_per_second']:.0f} samples a second), "
        f"{memory / 2**30:.1f} GiB on {manifest['hardware']}; in {recorded.path}/"
    )
    return "\n".join(lines)
