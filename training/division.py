"""Who trains which SAE when several processes train: its owner alone, or all of them together.

Each its own: a process trains its own SAEs on the tokens of all processes, which travel to the owners of their layer.
Together: every process has all SAEs, steps on its share of the tokens, and the gradients are summed over processes.
"""

import itertools
from collections.abc import Mapping
from typing import NamedTuple, TypedDict

SAEs = Mapping[tuple[int, int], tuple[int, int]]  # d_in and d_sae, by job number and layer

NUMBER = 4  # bytes


class SharedOut(TypedDict):
    """What run.json says of a division."""

    shared_out: str | None  # "saes": each process trains its own; "batches": all together; None: one process
    bytes_sent_per_step: int  # of the process that sends most
    bytes_held: int  # weights, moments and counters of the process that holds most


class Division(NamedTuple):
    """Which process trains which SAE, and what that takes."""

    owners: dict[tuple[int, int], int] | None  # the process of each SAE; None: all have all of them
    sent: int  # bytes a step, of the process that sends most
    held: int  # bytes of weights, Adam's moments and counters, of the process that holds most

    def owns(self, rank: int, sae: tuple[int, int]) -> bool:
        """Whether a process has this SAE."""
        return self.owners is None or self.owners[sae] == rank

    def rounds(self, world: int) -> list[tuple[int | None, ...]]:
        """The layer that each process trains at a time; None: it has no more. The layer with most SAEs comes first."""
        assert self.owners is not None
        own = [[layer for (_, layer), owner in self.owners.items() if owner == rank] for rank in range(world)]
        return [*itertools.zip_longest(*(sorted(set(one), key=lambda n: (-one.count(n), n)) for one in own))]

    def described(self, world: int) -> SharedOut:
        """What run.json says of it."""
        way = None if world == 1 else "batches" if self.owners is None else "saes"
        return {"shared_out": way, "bytes_sent_per_step": self.sent, "bytes_held": self.held}


def divide(saes: SAEs, world: int, tokens: float) -> Division:
    """The division in which the processes send fewer bytes, where there is an SAE for each; else all train together.

    `tokens`: of a batch, over all processes.
    """
    alone, together = each_its_own(saes, world, tokens), all_together(saes, world)
    return min(alone, together, key=lambda way: way.sent) if len(saes) >= world > 1 else together


def each_its_own(saes: SAEs, world: int, tokens: float) -> Division:
    """Every SAE has one owner, which all other processes send the tokens of its layer.

    A layer's SAEs have one owner where that is as well balanced, so that its tokens travel once.
    """
    owners = assign(saes, world)
    widths = {layer: d_in for (_, layer), (d_in, _) in saes.items()}
    travels = {(layer, owner) for (_, layer), owner in owners.items()}
    sent = [sum(widths[layer] for layer, owner in travels if owner != rank) for rank in range(world)]
    loads = [sum(state_bytes(saes[sae]) for sae in saes if owners[sae] == rank) for rank in range(world)]
    return Division(owners, round(NUMBER * tokens / world * max(sent)), max(loads))


def all_together(saes: SAEs, world: int) -> Division:
    """All processes have all SAEs; a ring sends each number of an all-reduce 2 (world - 1) / world times.

    Of an SAE: its gradients, how often each latent fired, four sums, and two that the gradients are scaled by.
    """
    summed = sum(n_weights(size) + size[1] + 6 for size in saes.values())
    sent = 2 * (world - 1) / world * NUMBER * summed
    return Division(None, round(sent), sum(map(state_bytes, saes.values())))


def assign(saes: SAEs, world: int) -> dict[tuple[int, int], int]:
    """The owner of each SAE: layer by layer, cut where each process has nearly the same number of weights."""
    in_order = sorted(saes, key=lambda sae: sae[::-1])
    total, before, owners = sum(map(n_weights, saes.values())), 0, {}
    for sae in in_order:
        weights = n_weights(saes[sae])
        owners[sae] = (2 * before + weights) * world // (2 * total)
        before += weights
    return owners


def n_weights(size: tuple[int, int]) -> int:
    """The number of weights of an SAE of d_in and d_sae."""
    d_in, d_sae = size
    return 2 * d_in * d_sae + d_in + d_sae


def state_bytes(size: tuple[int, int]) -> int:
    """The bytes of an SAE's weights, of Adam's two moments of each, and of each latent's tokens since it fired."""
    return 3 * NUMBER * n_weights(size) + 8 * size[1]
