"""Layers of runs, each read once while they fit into the memory that a process may use."""

import os
from pathlib import Path

import numpy as np

from comparing.codes import ENTRY_BYTES, Codes, ColumnSums
from comparing.draws import Cell, Layer
from plumbing.processes import add_up, processes_here, team

Key = tuple[str, str]  # the names of a run and a layer


class Reader:
    """The layers of runs, each read once while `memory` bytes hold them; then the longest unused goes.

    `memory` is the whole machine's, by default half of what is free: each of its processes takes its share.
    """

    def __init__(self, memory: int | None = None):
        agreed = np.array([float((memory or free_memory() // 2) // processes_here())])
        add_up(agreed, "MIN")
        self.memory = max(int(agreed[0]), 1)
        self._held: dict[Key, Codes] = {}
        self._shape: dict[Key, tuple[int, float]] = {}
        self._sums: dict[Key, ColumnSums] = {}

    def n_features(self, layer: Layer) -> int:
        return self._measured(layer)[0]

    def _measured(self, layer: Layer) -> tuple[int, float]:
        """The layer's number of features, and the bytes that it takes as Codes, by its first block."""
        key = _key(layer)
        if key not in self._shape:
            block = next(layer.blocks())
            entries = block.nnz / max(block.shape[0], 1) * layer.run.n_samples
            self._shape[key] = block.shape[1], entries * ENTRY_BYTES
        return self._shape[key]

    def entries(self, layer: Layer) -> float:
        """The stored entries of the layer, by its first block."""
        return self._measured(layer)[1] / ENTRY_BYTES

    def fits(self, cell: Cell) -> bool:
        """Whether both layers of the cell can be held at once."""
        sides = {_key(side): self._measured(side)[1] for side in (cell.source, cell.target)}
        return sum(sides.values()) <= self.memory

    def codes(self, layer: Layer) -> Codes:
        """The whole layer."""
        key = _key(layer)
        self._held[key] = self._held.pop(key, None) or Codes(
            layer.run.load(layer.name)
        )  # the last used is last
        while (
            len(self._held) > 2 and sum(one.stored for one in self._held.values()) * ENTRY_BYTES > self.memory
        ):
            del self._held[next(iter(self._held))]
        return self._held[key]

    def sums(self, layer: Layer) -> ColumnSums:
        """The sums of the layer's features over all rows."""
        key = _key(layer)
        if key in self._held:
            return self._held[key].sums()
        if key not in self._sums:
            total = ColumnSums.of_nothing(self.n_features(layer))
            for block in layer.blocks():
                total = total.plus(Codes(block).sums())
            self._sums[key] = total
        return self._sums[key]


def _key(layer: Layer) -> Key:
    return layer.run.name, layer.name


def free_memory() -> int:
    """Bytes that may still be used: of the machine (half of all, where it does not say), and of our cgroups."""
    try:
        with open("/proc/meminfo") as file:
            free = next(int(line.split()[1]) << 10 for line in file if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    return min([free, *cgroup_room()])


def cgroup_room(root: Path = Path("/")) -> list[int]:
    """Bytes left below the memory limit of each cgroup that this process is in: containers and job schedulers
    set them, and the system's free memory does not heed them.
    """
    try:
        groups = [line.split(":", 2) for line in (root / "proc/self/cgroup").read_text().splitlines()]
    except OSError:
        return []
    found = []
    for _, controllers, path in groups:
        if controllers in ("", "memory"):  # version 2, and version 1
            mount = root / "sys/fs/cgroup" / controllers
            group = mount / path.strip("/")
            found += [_room(folder) for folder in (group, *group.parents) if folder.is_relative_to(mount)]
    return [room for room in found if room is not None]


def _room(group: Path) -> int | None:
    """Bytes left below one cgroup's limit, what is cached of files counted as free; None without a limit."""
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        try:
            most, now = int((group / limit).read_text()), int((group / used).read_text())
            stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):  # no such file, or "max"
            continue
        cached = int(stat.get("total_inactive_file", stat.get("inactive_file", 0)))
        return max(most - max(now - cached, 0), 0)
    return None


def own_share(n_pairs: int) -> slice:
    """This process's share of the pairs of rows."""
    rank, world = team()
    return slice(n_pairs * rank // world, n_pairs * (rank + 1) // world)
