"""Several processes, as torchrun starts them: who and how many, a device for each, sums over all of them.

Torch is imported where there are several processes, or a device to settle, and not before.
"""

import atexit
import contextlib
import functools
import os
import re
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from plumbing import files
from plumbing.errors import UserError, first_line

if TYPE_CHECKING:
    from torch import Tensor

TO_MEET = timedelta(minutes=30)  # that the processes wait for each other at the start

TO_WAIT = timedelta(
    hours=12
)  # that they wait later, as while the first one writes a checkpoint or reads a run


class Team(NamedTuple):
    """This process's number and how many there are, as torchrun says."""

    rank: int
    world: int


def processes_here() -> int:
    """How many of torchrun's processes share this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("WORLD_SIZE") or 1)


@functools.cache
def team() -> Team:
    """Join the other processes of a torchrun, if there is one; they take turns at the GPUs, if there are any.

    What lies on a GPU is added up by NCCL, which refuses two processes on one GPU, and all else by gloo.
    """
    world = int(os.environ.get("WORLD_SIZE", 1))
    if world == 1:
        return Team(0, 1)
    import torch

    has_gpu = torch.cuda.is_available()
    if has_gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)) % max(torch.cuda.device_count(), 1))
    store, rank, world = next(torch.distributed.rendezvous("env://", timeout=TO_MEET))
    backend = "cpu:gloo,cuda:nccl" if has_gpu else "gloo"
    torch.distributed.init_process_group(backend, timeout=TO_WAIT, store=store, rank=rank, world_size=world)
    atexit.register(torch.distributed.destroy_process_group)
    return Team(rank, world)


@contextlib.contextmanager
def collective() -> Iterator[None]:
    """Turn the failure of a collective into a `UserError`: another process has died."""
    try:
        yield
    except RuntimeError as error:
        raise UserError(
            f"another process has left; its own line says why, unless it was killed ({first_line(error)})"
        ) from error


def add_up(values: "np.ndarray | Tensor", how: str = "SUM"):
    """Replace an array or a tensor by its sum (or MIN or MAX) over all processes, in place."""
    if team().world == 1:
        return
    import torch

    tensor = torch.from_numpy(values) if isinstance(values, np.ndarray) else values
    with collective():
        torch.distributed.all_reduce(tensor, getattr(torch.distributed.ReduceOp, how))


def add_up_all(tensors: "Sequence[Tensor]"):
    """Replace tensors of one device by their sums over all processes, in place, by one all-reduce of one flat buffer.

    The buffer is float32, in which whole numbers up to 2^24 are exact.
    """
    import torch

    flat = torch.cat([tensor.detach().flatten().float() for tensor in tensors])
    add_up(flat)
    for tensor, total in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(total.view_as(tensor))


def exchange(parts: "Sequence[Tensor]", numbers: Sequence[int]) -> "Tensor":
    """Send parts[i] to process i, and return what each process has sent to this one, flat, one after another.

    `numbers`: how many numbers each of them sends to this one.
    """
    import torch

    sent = torch.cat([part.flatten() for part in parts])
    if team().world == 1:
        return sent
    received = sent.new_empty(sum(numbers))
    with collective():
        torch.distributed.all_to_all_single(received, sent, list(numbers), [part.numel() for part in parts])
    return received


def of_all(numbers: Sequence[float]) -> np.ndarray:
    """Every process's numbers, float64 [process, number]; all give equally many."""
    rank, world = team()
    found = np.zeros((world, len(numbers)))
    found[rank] = numbers
    add_up(found)
    return found


def highest(number: float) -> float:
    """The largest of all processes' numbers."""
    numbers = np.array([float(number)])
    add_up(numbers, "MAX")
    return float(numbers[0])


def anywhere(here: bool) -> bool:
    """Whether it is so in any process."""
    return bool(highest(here))


def wait_for_all():
    """Return when every process has come here."""
    add_up(np.zeros(1))


def first_process_says(work: Callable[[], Sequence[float]], count: int) -> list[float]:
    """The `count` numbers that the first process works out, in every process."""
    numbers = np.array(work() if team().rank == 0 else [0.0] * count, dtype=float)
    add_up(numbers)
    return numbers.tolist()


def is_shared(folder: Path) -> bool:
    """Whether every process finds in this folder a file that the first one puts there for the moment."""
    if team().world == 1:
        return True
    name = first_process_says(lambda: list(files.beside(folder / "shared").name.encode().ljust(100)), 100)
    file = folder / bytes(map(int, name)).decode().strip()
    try:
        if team().rank == 0:
            files.make_folder(folder)
            files.remove_left(folder / "shared")
            file.touch()
        wait_for_all()
        return not anywhere(not file.exists())
    finally:
        if team().rank == 0:
            file.unlink(missing_ok=True)


def own_device(asked: str | None) -> str:
    """This process's device: by default a GPU where there is one; "cuda" gives each process a GPU of its own.

    torchrun shows all its processes all GPUs. Where something else has started them, as `srun --gpus-per-task 1`, each
    may see its own GPU alone, whose number is 0.
    """
    import torch

    count, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("LOCAL_RANK", 0))
    if asked is None:
        asked = "cuda" if torch.cuda.is_available() else "cpu"
    if asked == "cpu":
        return asked
    if not re.fullmatch(r"cuda(:\d+)?", asked):
        raise UserError(f"--device {asked}: type cpu, cuda, or cuda:0, cuda:1, … for one of several GPUs")
    number = asked.removeprefix("cuda").removeprefix(":")
    if number and count > 1:
        raise UserError(
            f"--device {asked} is one GPU for {count} processes: type --device cuda, a GPU for each"
        )
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not gpus:
        raise UserError(f"--device {asked}: no GPU can be used here; type --device cpu")
    alone = gpus == 1 and count > 1 and not torch.distributed.is_torchelastic_launched()
    chosen = 0 if alone else int(number or rank)
    if chosen >= gpus:
        known = "cuda:0" if gpus == 1 else f"cuda:0 to cuda:{gpus - 1}"
        remedy = f"start {gpus} process{'es' * (gpus > 1)}" if count > 1 else f"type {known}"
        raise UserError(f"--device {asked}: GPU {chosen} is asked for, of {gpus}: {remedy}")
    return f"cuda:{chosen}"
