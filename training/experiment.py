"""Train SAEs on an encoder's activations, every layer from one forward pass, then record all features.

Training caches the recorded tokens that it sees (token_cache.py), so that recording encodes only the other rows.

Under `torchrun` each process encodes its share of every batch, trains its own SAEs or all SAEs together with the others
(division.py), and records its share of the part files.
"""

import contextlib
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypedDict, Unpack

import torch

import features
from data import Pairs
from encoders import self_test
from encoders.wrapper import WrappedModel
from plumbing import files
from plumbing.errors import UserError
from plumbing.processes import team, wait_for_all
from training import resume, trackers
from training.activations import Stream
from training.estimate import Estimate, estimate
from training.fetched import locate, pinned
from training.fit import fit
from training.given import find_saes
from training.manifest import costs, finish
from training.plan import held_out_rows
from training.record import record
from training.settings import Settings
from training.unfinished import Mark, Unfinished, release_locks
from training.work import Job, Work

SHARED = ("batch_size", "epochs", "recipe", "data_seed")  # settings that runs of one command must agree in

LAST = (-1,)  # layer

STATE_VERSION = (
    3  # of the checkpoints: 3 has the standardisers, and a file for each process that has its own SAEs
)

# What torch says where a process of --workers is killed, or finds no room in /dev/shm.
LOST_WORKER = re.compile(r"DataLoader worker \(pid|shared memory|Communication with the workers")


class Options(TypedDict, total=False):
    """How a command works; only `sae` changes the numbers of its runs."""

    # a folder of SAEs, or OWNER/NAME[/FOLDER] of the hub, to record with instead of training; then `layers` None:
    # all that it has
    sae: str | None
    overwrite: bool  # replace runs of these names
    workers: int  # processes that decode items
    checkpoint_every: float  # seconds between checkpoints
    log: str | None  # wandb, trackio or tensorboard: where the lines of training.jsonl are sent besides
    command: list[str] | None  # the words that were typed, for run.json
    started: float | None  # the monotonic time from which the runs' seconds count; None: now


def train(
    encoder: WrappedModel,
    pairs: Pairs,
    name: str,
    layers: Sequence[int] | None = LAST,
    settings: Settings = Settings(),
    **options: Unpack[Options],
) -> features.Run:
    """Train an SAE on each of the encoder's `layers` and record every sample's features in sae_features/NAME/.

    `layers`: numbers, of which negative ones count from the end; None: all.
    """
    (run,) = train_all(encoder, pairs, {name: settings}, layers, **options)
    return run


def train_all(
    encoder: WrappedModel,
    pairs: Pairs,
    variants: Mapping[str, Settings],
    layers: Sequence[int] | None = LAST,
    *,
    sae: str | None = None,
    overwrite: bool = False,
    workers: int = 0,
    checkpoint_every: float = 60.0,
    log: str | None = None,
    command: list[str] | None = None,
    started: float | None = None,
) -> list[features.Run]:
    """Train and record several runs (`variants`: settings by run name) from one stream of activations.

    A command that was killed is resumed. The other arguments are those of `Options`. Under torchrun the first process
    returns the runs, the others an empty list.
    """
    settings = next(iter(variants.values()))
    with in_one_line(settings.batch_size, overwrite):
        try:
            resume.check_names(variants, sae, overwrite)
            resume.check_shared(variants)
            sae = pinned(sae) if sae else None
            if log:
                trackers.check(log)
            stream = tested_stream(encoder, pairs, layers, sae, workers)
            work = prepare(stream, variants, sae, overwrite, time.monotonic() if started is None else started)
            return carry_out(work._replace(tracker=log), checkpoint_every, command)
        finally:
            release_locks()


def dry_run(
    encoder: WrappedModel,
    pairs: Pairs,
    variants: Mapping[str, Settings],
    layers: Sequence[int] | None = LAST,
    **options: Unpack[Options],
) -> Estimate:
    """What `train_all` with the same arguments would cost, from a few batches; no file is written."""
    started, sae = options.get("started"), options.get("sae")
    settings = next(iter(variants.values()))
    with in_one_line(settings.batch_size, overwrite=False):
        resume.check_names(variants, sae, options.get("overwrite", False))
        sae = pinned(sae) if sae else None
        stream = tested_stream(encoder, pairs, layers, sae, options.get("workers", 0))
        work = settle(stream, variants, sae, time.monotonic() if started is None else started)
        return estimate(work, options.get("checkpoint_every", 60.0))


def tested_stream(
    encoder: WrappedModel, pairs: Pairs, layers: Sequence[int] | None, sae: str | None, workers: int
) -> Stream:
    """The encoder's activations at the layers that are asked for, or that there are given SAEs of."""
    self_test.self_test_on(encoder, pairs, encoder.resolve_layers([-1] if sae else layers))
    numbers = sorted(find_saes(locate(sae), encoder, layers)) if sae else layers
    return Stream(encoder, pairs, encoder.resolve_layers(numbers), workers)


def prepare(
    stream: Stream, variants: Mapping[str, Settings], sae: str | None, overwrite: bool, started: float
) -> Work:
    """Settle every setting, and open the run folders: new ones, or what the same command left when it was killed."""
    work = settle(stream, variants, sae, started)
    if team().rank == 0:
        folders = [job.unfinished for job in work.jobs]
        work = work._replace(started=started - resume.open_folders(folders, identity(work), overwrite))
    wait_for_all()
    return work


def settle(stream: Stream, variants: Mapping[str, Settings], sae: str | None, started: float) -> Work:
    """Settle every setting."""
    jobs = [
        Job(Unfinished(features.run_path(name)), settled(settings, stream.encoder))
        for name, settings in variants.items()
    ]
    first = jobs[0].settings
    for field in SHARED:
        if len({getattr(job.settings, field) for job in jobs}) > 1:
            raise UserError(f"runs that are trained together need the same {field}: train them one by one")
    assert first.data_seed is not None  # `settled` sets it
    held_out = held_out_rows(len(stream.pairs), first.data_seed)
    work = Work(stream, jobs, held_out, sae, started)
    if not sae and (n_training := int((~held_out).sum())) < team().world:
        raise UserError(
            f"{n_training} training samples cannot be shared by {team().world} processes: start at most {n_training}"
        )
    if stream.encoder.device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(stream.encoder.device)
    return work


def settled(settings: Settings, encoder: WrappedModel) -> Settings:
    """The settings with nothing left open: k and width as suit the encoder, and the data seed."""
    return replace(
        settings,
        top_k=settings.top_k or encoder.top_k,
        expansion_factor=settings.expansion_factor or encoder.expansion_factor,
        data_seed=settings.seed if settings.data_seed is None else settings.data_seed,
    )


def identity(work: Work) -> Mark:
    """The settings that a checkpoint must match before we resume from it."""
    encoder, pairs = work.stream.encoder, work.stream.pairs
    return {
        "version": STATE_VERSION,
        "model": encoder.model,
        "checkpoint": encoder.checkpoint,
        **encoder.asked,
        "fingerprint": pairs.fingerprint,
        "files": pairs.file_stamp(),
        "encoder_files": encoder.file_stamp(),
        "caption": pairs.source.get("caption"),
        "processes": team().world,
        "runs": {job.folder.name: work.described(job) for job in work.jobs},
    }


def carry_out(work: Work, checkpoint_every: float, command: list[str] | None) -> list[features.Run]:
    """Fit, record and finish; where a killed command had already finished its runs, only clean up."""
    folders = [job.unfinished for job in work.jobs]
    runs = resume.finished_before(folders)
    if not runs:
        saes = fit(work, checkpoint_every)
        scores = record(work, saes)
        measured = costs(work) | {"command": command}
        if team().rank == 0:
            runs = [
                finish(work, number, saes[number], scores[number], measured)
                for number in range(len(work.jobs))
            ]
    if team().rank > 0:
        return []
    resume.forget(folders)
    return runs


@contextlib.contextmanager
def in_one_line(batch_size: int, overwrite: bool) -> Iterator[None]:
    """Turn a lack of memory (a GPU's, the workers'), a full disk, a folder that is closed to us into a `UserError`."""
    again = "give the same command again" + ", without --overwrite," * overwrite
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        raise UserError(
            f"the GPU is out of memory: lower --batch_size (now {batch_size}), or choose fewer --layers"
        ) from error
    except RuntimeError as error:
        if not LOST_WORKER.search(str(error)):
            raise
        said = str(error).strip().splitlines()[-1]
        raise UserError(
            f"a process of --workers was lost ({said}): {again} with --workers 0, or in a container with more shared "
            "memory (docker run --shm-size 8g)"
        ) from error
    except OSError as error:
        if files.is_full(error):
            raise UserError(f"the disk is full: make room and {again} and it goes on") from error
        place = Path(os.path.realpath(str(error.filename)))
        if error.filename is not None and place.is_relative_to(os.path.realpath(features.ROOT)):
            raise UserError(
                f"{error.filename}: {error.strerror}; mend that and give the same command again"
            ) from error
        raise
