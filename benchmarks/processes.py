"""What several processes send in a step of training, and what each holds: SAEs of their own, or all SAEs together.

The first table is counted (training/division.py). The second runs some steps of small SAEs in up to four processes
(gloo, on this machine) and reads from the system what their sockets have sent, and what their trainers hold.

    OMP_NUM_THREADS=1 uv run benchmarks/processes.py
"""

import multiprocessing
import os
import socket
import stat
import struct
import sys
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from plumbing.commandline import Parser, positive, script
from training.division import Division, SAEs, all_together, divide, each_its_own

MIB = 2**20
COUNTED, RUN = (1, 2, 4, 8, 64), (1, 2, 3, 4)
WITHIN = 0.02


class Case(NamedTuple):
    """An encoder whose layers each get an SAE."""

    name: str
    n_layers: int
    d_in: int
    tokens: int  # of a process in a step

    def saes(self) -> SAEs:
        """The sizes of its SAEs."""
        return {(0, layer): (self.d_in, 8 * self.d_in) for layer in range(self.n_layers)}


CASES = (
    Case("12 layers of B", 12, 768, 32 * 197),
    Case("24 layers of L", 24, 1024, 32 * 257),
    Case("1 layer of L", 1, 1024, 32 * 257),
)

SMALL = Case("5 small layers", 5, 64, 400)

WAYS = ("its own", "together")


@script
def main(argv: list[str] | None = None) -> dict[tuple[int, str], float]:
    """Print both tables; returns the bytes measured over the bytes counted, by the number of processes and the way."""
    parser = Parser(__doc__, __file__)
    parser.add_argument("--steps", type=positive, default=5, help="that are run to measure")
    arguments = parser.parse_args(argv)
    print(
        "counted, 32 pictures a process in a step: sent by the process that sends most, weights and moments held\n"
    )
    print(
        f"{'':16} {'processes':>9} {'own: sent':>12} {'held':>10} {'together: sent':>15} {'held':>10}   taken"
    )
    for case in CASES:
        for world in COUNTED:
            print_counted(case, world)
    print(
        f"\nrun: {SMALL.name}, d_in {SMALL.d_in}, {SMALL.tokens} tokens a process; {WITHIN:.0%} apart at most is met\n"
    )
    print(f"{'':10} {'processes':>9} {'sent, kB':>10} {'counted':>10} {'held, kB':>10} {'counted':>10}")
    return {(world, way): print_run(world, way, arguments.steps) for world in RUN for way in WAYS}


def ways(case: Case, world: int) -> dict[str, Division]:
    """Both divisions of a case."""
    saes = case.saes()
    return {"its own": each_its_own(saes, world, case.tokens * world), "together": all_together(saes, world)}


def print_counted(case: Case, world: int):
    """Print what both ways take."""
    own, together = ways(case, world).values()
    taken = "its own" if divide(case.saes(), world, case.tokens * world).owners else "together"
    numbers = (f"{n / MIB:9.1f} MiB" for n in (own.sent, own.held, together.sent, together.held))
    print(case.name.ljust(16), f"{world:9}", *numbers, f"  {taken if world > 1 else '-'}")


def print_run(world: int, way: str, steps: int) -> float:
    """Run a way in several processes; print and return what the one that sends most has sent, over what is counted."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    os.environ |= {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    context = multiprocessing.get_context("spawn")
    found = context.SimpleQueue()
    children = [
        context.Process(target=measure, args=(rank, world, way, steps, found)) for rank in range(world)
    ]
    for child in children:
        child.start()
    sent, held = (max(numbers) for numbers in zip(*(found.get() for _ in children), strict=True))
    for child in children:
        child.join()
    counted = ways(SMALL, world)[way]
    ratio = sent / counted.sent if world > 1 else 1.0
    met = "met" if abs(ratio - 1) <= WITHIN and abs(held / counted.held - 1) <= WITHIN else "NOT met"
    numbers = (f"{n / 1000:10.1f}" for n in (sent, counted.sent, held, counted.held))
    print(way.ljust(10), f"{world:9}", *numbers, f"  {met}", flush=True)
    return ratio


def measure(rank: int, world: int, way: str, steps: int, found: multiprocessing.SimpleQueue):
    """One process: put what it sends in a step and what its trainers hold, in bytes."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "GLOO_SOCKET_IFNAME": "lo"}
    import torch

    from encoders.wrapper import Activations
    from plumbing.processes import team, wait_for_all
    from sae import TopKSAE
    from training.fit import train_on
    from training.trainer import RECIPES, LayerTrainer, Standardizer

    torch.set_num_threads(1)
    team()
    torch.manual_seed(rank)
    tokens = {layer: torch.randn(4, SMALL.tokens // 4, SMALL.d_in) for layer in range(SMALL.n_layers)}
    batch = Activations(tokens, torch.ones(4, SMALL.tokens // 4, dtype=torch.bool), None)
    division = ways(SMALL, world)[way]
    trainers = {
        which: LayerTrainer(
            TopKSAE(*size, 16),
            RECIPES["ours"],
            100,
            1e6,
            None,
            "float32",
            together=world > 1 and division.owners is None,
        )
        for which, size in SMALL.saes().items()
        if division.owns(rank, which)
    }
    standard = {layer: Standardizer(torch.zeros(SMALL.d_in), 1.0) for layer in tokens}
    train_on(batch, standard, trainers, division)  # connects the processes
    before = sent_bytes()
    for _ in range(steps):
        train_on(batch, standard, trainers, division)
    sent = sent_bytes() - before
    wait_for_all()
    states = [tensor for trainer in trainers.values() for tensor in trainer.state().values()]
    found.put((sent / steps, sum(tensor.nbytes for tensor in states)))


def sent_bytes() -> int:
    """The bytes that the open TCP connections of this process have sent, by Linux's struct tcp_info."""
    total = 0
    for name in os.listdir("/proc/self/fd"):
        file = f"/proc/self/fd/{name}"
        if not (os.path.lexists(file) and stat.S_ISSOCK(os.stat(file).st_mode)):
            continue
        with socket.socket(fileno=os.dup(int(name))) as one:
            if one.family in (socket.AF_INET, socket.AF_INET6) and one.type == socket.SOCK_STREAM:
                info = one.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
                sent, again = struct.unpack_from("QQ", info, 200)  # tcpi_bytes_sent, tcpi_bytes_retrans
                total += sent - again
    return total


if __name__ == "__main__":
    main()
