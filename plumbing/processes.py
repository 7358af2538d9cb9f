"""Several processes, as torchrun starts them: join once, who and how many, sums over all of them.

Torch is imported where there are several processes, or a device to settle, and not before.
"""

import atexit
import functools
import os
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from plumbing.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor


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

    Sums are added up by gloo, on the processor: NCCL refuses two processes on one GPU.
    """
    world = int(os.environ.get("WORLD_SIZE", 1))
    if world == 1:
        return Team(0, 1)
    import torch

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)) % max(torch.cuda.device_count(), 1))
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo")
        atexit.register(torch.distributed.destroy_process_group)
    return Team(torch.distributed.get_rank(), world)


def add_up(array: np.ndarray, how: str = "SUM"):
    """Replace an array by its sum (or MIN or MAX) over all processes, in place."""
    if team().world == 1:
        return
    import torch
    import torch.distributed as processes

    tensor = torch.from_numpy(array)
    held = tensor.cuda() if processes.get_backend() == "nccl" else tensor  # a train script's group, say
    try:
        processes.all_reduce(held, getattr(processes.ReduceOp, how))
    except RuntimeError as error:
        raise UserError(
            f"another process has left, which has said why: {str(error).splitlines()[0]}"
        ) from error
    tensor.copy_(held)


def anywhere(here: bool) -> bool:
    """Whether it is so in any process."""
    flag = np.array([float(here)])
    add_up(flag, "MAX")
    return bool(flag[0])


def first_process_says(work: Callable[[], Sequence[float]], count: int) -> list[float]:
    """The `count` numbers that the first process works out, in every process."""
    numbers = np.array(work() if team().rank == 0 else [0.0] * count)
    add_up(numbers)
    return numbers.tolist()


def _over_processes(values: "Tensor") -> "Tensor":
    """The values summed over the processes of a distributed run; themselves where there is one process."""
    import torch
    import torch.distributed

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(values)
    return values


def start_processes(device: str | None) -> str:
    """Join the group that torchrun asks for, if it does; returns this process's device."""
    import torch
    import torch.distributed

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
    import torch

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
    import torch
    import torch.distributed

    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def processes() -> int:
    """How many there are."""
    import torch
    import torch.distributed

    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def wait_for_all():
    """Return when every process has come here."""
    import torch
    import torch.distributed

    if torch.distributed.is_initialized():
        torch.distributed.barrier()
