"""Comparisons of runs: layers read within the memory, pairs scored in both directions, kept, and shared out.

The scores of a finished pair are kept in a run's folder and reused while both runs are unchanged. Under
`torchrun` the layer pairs are shared out, or, where a layer does not fit into memory, its rows are.
"""

import atexit
import functools
import hashlib
import itertools
import json
import os
import sys
from argparse import ArgumentTypeError as UserError  # one line on stderr, exit code 2
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

import correlation
import features
import files
import scores
from correlation import Codes, ColumnSums, Maxima, Sums

OLDER = ("hungarian", "cka", "mutual_knn")  # scores of the last layers only, the same in both directions
METRICS = ("wmppc", "mppc", *OLDER)
KEPT_VERSION = 2  # of the kept scores: raise it where a definition changes
DECIMALS = 8  # of a score: further ones tell in which order its rows were added up
FLOOR_SEED = 0  # of the row permutation that a floor is the score of
N_NEIGHBOURS, NEIGHBOUR_ROWS = (
    10,
    10_000,
)  # of mutual_knn, and the rows drawn for it: its cost is their square
ENTRY_BYTES = 24  # of an entry of Codes: the CSR, its copy with 16-bit features, and the transposed one


class Score(NamedTuple):
    """A score, and `floor`: the same score of the same runs with one side's rows permuted."""

    value: float
    floor: float

    @staticmethod
    def of(value: float, floor: float) -> "Score":
        """Both numbers, the same however the rows were shared out and added up."""
        return Score(round(float(value), DECIMALS), round(float(floor), DECIMALS))


class Direction(NamedTuple):
    """What one run (`source`) has in another (`target`).

    `scores` are by metric, then by "all_layers" (wmppc and mppc only) and "last_layer"; `layers` holds
    a Score a cell, the wMPPC of each source layer against each target layer; `live` and `features` count the
    source's features, by layer.
    """

    source: str
    target: str
    source_layers: list[str]
    target_layers: list[str]
    live: list[int]
    features: list[int]
    scores: dict[str, dict[str, Score]]
    layers: list[list[Score]]

    @property
    def wmppc(self) -> dict[str, Score]:
        return self.scores["wmppc"]


class Cell(NamedTuple):
    """Two layers to correlate; `shuffled` pairs the source's rows with the target's in a random order."""

    source: features.Run
    source_layer: str
    target: features.Run
    target_layer: str
    shuffled: bool = False


# ------------------------------------------------------------------------------------------------ reading


class Reader:
    """The layers of runs, each read once while `memory` bytes hold them; then the longest unused goes.

    `memory` is the whole machine's, by default half of what is free: each of its processes takes its share.
    """

    def __init__(self, memory: int | None = None):
        agreed = np.array([float((memory or free_memory() // 2) // processes_here())])
        add_up(agreed, "MIN")
        self.memory = max(int(agreed[0]), 1)
        self._held: dict[tuple[str, str], Codes] = {}
        self._shape: dict[tuple[str, str], tuple[int, float]] = {}
        self._sums: dict[tuple[str, str], ColumnSums] = {}

    def shape(self, run: features.Run, layer: str) -> tuple[int, float]:
        """The layer's number of features, and the bytes that it takes as Codes, by its first block."""
        if (run.name, layer) not in self._shape:
            block = next(iter(run.blocks(layer)))
            entries = block.nnz / max(block.shape[0], 1) * run.n_samples
            self._shape[run.name, layer] = block.shape[1], entries * ENTRY_BYTES
        return self._shape[run.name, layer]

    def fits(self, cell: Cell) -> bool:
        """Whether both layers of the cell can be held at once."""
        sides = {(cell.source.name, cell.source_layer), (cell.target.name, cell.target_layer)}
        self.shape(*cell[:2]), self.shape(*cell[2:4])
        return sum(self._shape[side][1] for side in sides) <= self.memory

    def codes(self, run: features.Run, layer: str) -> Codes:
        """The whole layer."""
        key = (run.name, layer)
        self._held[key] = self._held.pop(key, None) or Codes(run.load(layer))  # the last used stands last
        while (
            len(self._held) > 2 and sum(one.stored for one in self._held.values()) * ENTRY_BYTES > self.memory
        ):
            del self._held[next(iter(self._held))]
        return self._held[key]

    def sums(self, run: features.Run, layer: str) -> ColumnSums:
        """The sums of the layer's features over all rows."""
        key = (run.name, layer)
        if key in self._held:
            return self._held[key].sums()
        if key not in self._sums:
            total = ColumnSums.of_nothing(self.shape(run, layer)[0])
            for block in run.blocks(layer):
                total += Codes(block).sums()
            self._sums[key] = total
        return self._sums[key]


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


@functools.lru_cache(maxsize=1)
def permutation(n_samples: int) -> np.ndarray:
    """The one permutation that every floor is of: the source's row n is paired with the target's row [n]."""
    rows = np.arange(n_samples, dtype=np.int32 if n_samples < 1 << 31 else np.int64)  # less to hold
    return np.random.default_rng(FLOOR_SEED).permutation(rows)


def shuffled_rows(run: features.Run) -> np.ndarray:
    """The permutation of a floor: the same for all runs of the same samples."""
    return permutation(run.n_samples)


def shuffled_blocks(
    run: features.Run, layer: str, rows: slice = slice(None), memory: int = 1 << 62
) -> Iterator[Any]:
    """A layer in the order of `shuffled_rows`, of which `rows` only, in blocks of CSR [row, feature].

    The layer is read once for all rows that `memory` bytes hold, so that memory decides how often it is read,
    and never which rows are paired.
    """
    order = shuffled_rows(run)[rows]
    first = next(run.blocks(layer))
    row_bytes = max(first.nnz, 1) / first.shape[0] * ENTRY_BYTES
    step = int(min(max(memory / row_bytes, features.PART_ROWS), max(len(order), 1)))
    for start in range(0, len(order), step):
        wanted = order[start : start + step]
        ascending = np.argsort(wanted)
        chunk = chosen_rows(run, layer, wanted[ascending])[np.argsort(ascending)]
        for block in range(0, len(wanted), features.PART_ROWS):
            yield chunk[block : block + features.PART_ROWS]


def own_rows(n_samples: int) -> slice:
    """This process's share of the rows."""
    rank, world = team()
    return slice(n_samples * rank // world, n_samples * (rank + 1) // world)


# ---------------------------------------------------------------------------------------------- correlating


def maxima(cell: Cell, reader: Reader) -> tuple[Maxima, Maxima]:
    """The maxima of both layers of a cell; every process has to call this where the cell does not fit."""
    if reader.fits(cell):
        rows = shuffled_rows(cell.source) if cell.shuffled else None
        sides = reader.codes(*cell[:2]), reader.codes(*cell[2:4])
        return correlation.max_correlations(*sides, permutation=rows)
    rows = own_rows(cell.source.n_samples)
    return correlation.streamed_maxima(
        lambda: cell.source.blocks(cell.source_layer, rows),
        lambda: target_blocks(cell, rows, reader),
        reader.memory // 2,
        team().rank,
        add_up,
    )


def target_blocks(cell: Cell, rows: slice, reader: Reader) -> Iterator[Any]:
    """The rows of a cell's target that are paired with `rows` of its source."""
    if cell.shuffled:
        return shuffled_blocks(cell.target, cell.target_layer, rows, reader.memory // 4)
    return cell.target.blocks(cell.target_layer, rows)


def rho_of(cells: list[Cell], reader: Reader) -> list[tuple[np.ndarray, np.ndarray]]:
    """rho of both sides of every cell, float64 [feature]; processes share the cells, and all get all."""
    rank, world = team()
    widths = [[reader.shape(*side)[0] for side in (cell[:2], cell[2:4])] for cell in cells]
    found = [np.zeros(sum(both)) for both in widths]
    for number, cell in enumerate(tqdm(cells, desc="layer pairs", disable=rank > 0 or None, leave=False)):
        mine = number * world // len(cells) == rank
        if mine or not reader.fits(cell):
            rho = np.concatenate([side.rho for side in maxima(cell, reader)])
            found[number][:] = rho if mine else 0  # zeros elsewhere, so that the sum is the one copy
    for array in found:
        add_up(array)
    return [tuple(np.split(array, [both[0]])) for array, both in zip(found, widths, strict=True)]


def pair_sums(cell: Cell, reader: Reader) -> Sums:
    """All sums of a cell's pairs of features: 8 bytes a pair."""
    widths = [reader.shape(*side)[0] for side in (cell[:2], cell[2:4])]
    if 24 * widths[0] * widths[1] > reader.memory:
        raise UserError(
            f"all correlations of {cell.source.name} and {cell.target.name} take {widths[0]} x {widths[1]} x "
            f"24 bytes of {reader.memory}: leave hungarian and cka out of --metrics, or give more --memory"
        )
    if reader.fits(cell):
        target = reader.codes(*cell[2:4]).take(shuffled_rows(cell.source) if cell.shuffled else None)
        return Sums.of(reader.codes(*cell[:2]), target)
    sums = Sums(*widths)
    sides = cell.source.blocks(cell.source_layer), target_blocks(cell, slice(None), reader)
    for x, y in correlation.aligned(*sides):
        sums.add(x, y)
    return sums


# -------------------------------------------------------------------------------------------------- scoring


def compare(
    source: features.Run, target: features.Run, metrics: list[str], reader: Reader
) -> tuple[Direction, Direction]:
    """Score a pair of runs in both directions: source -> target, and target -> source."""
    if target.name < source.name:  # kept once, in the folder of the first by name
        return compare(target, source, metrics, reader)[::-1]
    kept = read_kept(source, target)
    missing = [metric for metric in metrics if not kept or metric not in kept[0].scores]
    if not anywhere(bool(missing)):
        return kept
    kept = kept if not anywhere(kept is None) else match(source, target, reader)
    for metric in OLDER:
        if anywhere(metric in missing):
            score = first_process_says(lambda metric=metric: older_score(metric, source, target, reader))
            for one in kept:
                one.scores[metric] = {"last_layer": score}
    if team().rank == 0:
        write_kept(source, target, kept)
    return kept


def match(source: features.Run, target: features.Run, reader: Reader) -> tuple[Direction, Direction]:
    """wMPPC and MPPC of a pair of runs, with the floors, from every layer against every layer."""
    pairs = list(itertools.product(source.layers, target.layers))
    cells = [Cell(source, i, target, j, shuffled) for shuffled in (False, True) for i, j in pairs]
    rho = dict(zip([(cell.shuffled, cell[1], cell[3]) for cell in cells], rho_of(cells, reader), strict=True))
    forward = {key: own for key, (own, _) in rho.items()}
    backward = {(shuffled, j, i): other for (shuffled, i, j), (_, other) in rho.items()}
    return direction(source, target, forward, reader), direction(target, source, backward, reader)


def direction(source: features.Run, target: features.Run, rho: dict, reader: Reader) -> Direction:
    """One direction's scores, from rho float64 [feature] by (shuffled, source layer, target layer)."""
    total = {layer: reader.sums(source, layer).total for layer in source.layers}
    widths = np.array([len(total[layer]) for layer in source.layers])

    def over_all(score, shuffled) -> float:
        best = [np.max([rho[shuffled, i, j] for j in target.layers], axis=0) for i in source.layers]
        return scores.over_layers(np.array([*map(score, best, total.values())]), widths)

    def between(score, i, j) -> Score:
        return Score.of(*(score(rho[shuffled, i, j], total[i]) for shuffled in (False, True)))

    found = {
        name: {
            "all_layers": Score.of(over_all(score, False), over_all(score, True)),
            "last_layer": between(score, source.layers[-1], target.layers[-1]),
        }
        for name, score in (("wmppc", scores.wmppc), ("mppc", scores.mppc))
    }
    cells = [[between(scores.wmppc, i, j) for j in target.layers] for i in source.layers]
    live = [int((total[layer] > 0).sum()) for layer in source.layers]
    layers = list(source.layers), list(target.layers)
    return Direction(source.name, target.name, *layers, live, widths.tolist(), found, cells)


def older_score(metric: str, source: features.Run, target: features.Run, reader: Reader) -> Score:
    """An older score of the last layers, with its floor."""
    last = (source, source.layers[-1], target, target.layers[-1])
    if metric == "mutual_knn":
        return mutual_knn(*last)
    values = []
    for shuffled in (False, True):
        sums = pair_sums(Cell(*last, shuffled), reader)
        if metric == "hungarian":
            live = sums.source.total > 0, sums.target.total > 0
            values.append(scores.hungarian(sums.correlations(), *live))
        else:
            own = (pair_sums(Cell(*side, *side), reader).covariances() for side in (last[:2], last[2:]))
            values.append(scores.linear_cka(sums.covariances(), *own))
    return Score.of(*values)


def mutual_knn(source: features.Run, source_layer: str, target: features.Run, target_layer: str) -> Score:
    """The overlap of nearest neighbours among at most NEIGHBOUR_ROWS rows, the same ones of both runs."""
    order = shuffled_rows(source)
    rows = np.sort(order[:NEIGHBOUR_ROWS])
    if len(rows) <= N_NEIGHBOURS:
        raise UserError(
            f"mutual_knn takes {N_NEIGHBOURS} neighbours of a sample; the runs have {len(rows)} samples"
        )
    x, y = (chosen_rows(run, layer, rows) for run, layer in ((source, source_layer), (target, target_layer)))
    shuffled = np.argsort(np.argsort(order[rows]))  # the floor's permutation among these rows
    return Score.of(*(scores.mutual_knn(x, other, N_NEIGHBOURS) for other in (y, y[shuffled])))


def chosen_rows(run: features.Run, layer: str, rows: np.ndarray) -> Any:
    """Some rows of a layer, in ascending order, without holding the others: scipy CSR [row, feature]."""
    import scipy.sparse

    parts, start, reached = [], 0, 0
    for block in run.blocks(layer):
        first, reached = reached, int(np.searchsorted(rows, start + block.shape[0]))
        parts.append(block[rows[first:reached].astype(np.int64) - start])
        start += block.shape[0]
    return scipy.sparse.vstack(parts, format="csr")


# -------------------------------------------------------------------------------------------------- keeping


def identity(run: features.Run) -> str:
    """What changes when any of a run's recorded features do: sha256 over its manifest and its files' names,
    sizes and times."""
    digest = hashlib.sha256()
    for file in sorted(
        [*run.path.glob("*/features-*.npz"), *run.path.glob("layer*.pt"), *run.path.glob("run.json")]
    ):
        state = file.stat()
        digest.update(f"{file.relative_to(run.path)} {state.st_size} {state.st_mtime_ns}\n".encode())
    digest.update(json.dumps(run.manifest, sort_keys=True).encode())
    return digest.hexdigest()


def _kept_file(source: features.Run, target: features.Run) -> Any:
    return source.path / "pairs" / f"{target.name}.json"


def read_kept(source: features.Run, target: features.Run) -> tuple[Direction, Direction] | None:
    """The scores kept of a pair; None where there are none, or of runs that have changed since."""
    try:
        kept = json.loads(_kept_file(source, target).read_text(encoding="utf-8"))
        key = [KEPT_VERSION, identity(source), identity(target)]
        return tuple(map(_as_direction, kept["directions"])) if kept["key"] == key else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_kept(source: features.Run, target: features.Run, directions: tuple[Direction, Direction]):
    """Keep a pair's scores; a run's folder that cannot be written into keeps none, which is said."""
    file = _kept_file(source, target)
    key = [KEPT_VERSION, identity(source), identity(target)]
    try:
        files.make_folder(file.parent)
        files.write_text(file, json.dumps({"key": key, "directions": plain(directions)}) + "\n")
    except OSError as error:
        print(f"the scores of this pair are not kept for the next time: {error}", file=sys.stderr)


def plain(value: Any) -> Any:
    """Results as JSON has them: NamedTuples as objects and NaN as null, all the way down."""
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and np.isnan(value) else value


def _as_direction(found: dict) -> Direction:
    def score(pair: dict) -> Score:
        return Score(*(float("nan") if pair[field] is None else pair[field] for field in Score._fields))

    table = {name: {scope: score(pair) for scope, pair in by.items()} for name, by in found["scores"].items()}
    return Direction(
        **{**found, "scores": table, "layers": [[score(pair) for pair in row] for row in found["layers"]]}
    )


# ------------------------------------------------------------------------------------------------- sharing


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


def first_process_says(work: Any) -> Score:
    """A score that the first process works out, in every process."""
    pair = np.array(work() if team().rank == 0 else (0.0, 0.0))
    add_up(pair)
    return Score(*pair.tolist())
