"""Fit SAEs on an encoder's hooked activations, every layer from one forward pass, then record all features.

Training keeps what it sees of the tokens that are recorded, so that recording encodes only the rows that it did
not see, and those that record several tokens.

Under `torchrun` each process trains on its share of every batch (gradients are summed, so all keep the same SAEs)
and records its share of the part files.
"""

import argparse
import os
import time
from pathlib import Path
from typing import Any

import torch

import features
import wrappedmodels
from encoders import self_test
from plumbing import files
from plumbing.errors import UserError
from plumbing.processes import own_device, team, wait_for_all
from training.activations import Stream
from training.fit import asked_layers, find_saes, fit
from training.manifest import costs, finish, table
from training.names import check_names, name_variants
from training.record import record
from training.resume import finished_before, forget_unfinished, open_folders
from training.settings import Settings, held_out_rows
from training.unfinished import release_locks
from training.work import Job, Work


def run(arguments: argparse.Namespace) -> list[features.Run]:
    """Train and record what the command line asks for: a run for each seed and each k."""
    try:
        return train_and_record(arguments, own_device(arguments.device))
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
    pairs = arguments.pairs
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
    self_test.self_test_on(encoder, pairs, layers)
    work = prepare(arguments, encoder, pairs, device, started)
    if runs := finished_before(work):
        return conclude(work, runs)
    saes, history = fit(work)
    scores = record(work, saes, history)
    cost = costs(work)
    if team().rank > 0:
        return []
    runs = [
        finish(work, number, saes[number], scores[number], history, cost) for number in range(len(work.jobs))
    ]
    return conclude(work, runs)


def conclude(work: Work, runs: list[features.Run]) -> list[features.Run]:
    """Clean up beside whole runs and print their tables: the first process's task."""
    if team().rank > 0:
        return []
    forget_unfinished(work)
    for recorded in runs:
        print(table(recorded))
    return runs


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
        "processes": team().world,
        "runs": {name: settings._asdict() for name, settings in variants.items()},
    }
    stream = Stream(encoder, pairs, base.layers, arguments.workers, device)
    jobs = [Job(features.run_path(name), settings) for name, settings in variants.items()]
    held_out = held_out_rows(len(pairs), base.data_seed)
    work = Work(
        stream, jobs, held_out, identity, given, arguments.checkpoint_every, started, arguments.command
    )
    if not given and (n_training := int((~held_out).sum())) < team().world:
        raise UserError(
            f"{n_training} training samples cannot be shared by {team().world} processes: start at most {n_training}"
        )
    if team().rank == 0:
        work = work._replace(started=started - open_folders(work, arguments.overwrite))
    wait_for_all()
    return work
