"""Processes for tests that kill them or let them work together: forked from one that has imported everything."""

import multiprocessing
import os
import re
import socket
from pathlib import Path

import pytest

from plumbing.errors import UserError

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["training.experiment", "training.curve", "train_text", "small_world", "open_clip", "crash"]
)


def start(here: Path, settings: dict) -> multiprocessing.Process:
    """Start `train` in a child whose current folder is `here`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        child = CONTEXT.Process(target=train, args=(str(here), settings))
        child.start()
    return child


def start_together(places: list[Path], settings: dict) -> list[multiprocessing.Process]:
    """Start a process in each of these folders, which find each other as torchrun's do."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    group = {"WORLD_SIZE": str(len(places)), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = [{**group, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(len(places))]
    return [start(place, {**settings, "environment": own}) for place, own in zip(places, ranks, strict=True)]


def finish(child: multiprocessing.Process):
    """Wait for a child that must succeed."""
    child.join(timeout=120)
    assert child.exitcode == 0


def train(here: str, settings: dict):
    """Train and record the small world. `settings` change the arguments; "part_rows" and "environment" are of the process.

    The line of a mistake goes into a file.
    """
    import small_world
    import torch

    import features

    torch.set_num_threads(1)
    os.chdir(here)
    settings = dict(settings)
    features.PART_ROWS = settings.pop("part_rows", 40)
    pairs = small_world.SmallPairs(settings.pop("n_samples", 400))
    os.environ.update(settings.pop("environment", {}))
    try:
        small_world.train(pairs=pairs, **settings)
    except UserError as mistake:
        Path("mistake").write_text(str(mistake))
        raise SystemExit(2) from None


def content(folder: Path) -> dict[str, bytes]:
    """A run folder's files, without the manifest, and without the seconds of training.jsonl."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "run.json"]
    found = {str(path.relative_to(folder)): path.read_bytes() for path in files}
    if log := found.get("training.jsonl"):
        found["training.jsonl"] = re.sub(rb'"seconds": [0-9.]+', b"", log)
    return found
