"""`--dry_run`: what a train command would cost, added up from a few batches that are timed. No file is written."""

import io
import itertools
import json
import math
import os
from typing import NamedTuple

import numpy as np
import scipy.sparse

import features
from plumbing.processes import highest, team
from training.manifest import peak_gpu_memory, peak_memory, sample_rows
from training.plan import own_share, training_plan
from training.rehearsal import Paces, Rehearsal, Size, rehearse
from training.scales import STATISTICS_BATCHES
from training.token_cache import RecordedTokens
from training.trainer import RECIPES
from training.work import Work

SAE_HEADERS = 720  # bytes of an SAE's cfg.json and of the header of its weights

OTHER_FILES = 100_000  # bytes of a run's run.json, training.jsonl and training curve


class Disk(NamedTuple):
    """Bytes of all runs of a command."""

    checkpoint: int  # the largest file to resume from; 0 where the training ends before one is due
    token_cache: int
    features: int
    saes: int
    running: int  # the most that lies there while the command runs
    after: int


class Estimate(NamedTuple):
    """What a command would cost."""

    rows: int
    tokens: int  # that train, in all epochs and processes
    steps: int
    saes: dict[str, dict[str, Size]]  # by run and layer
    peak_memory: int  # bytes, of the process with the highest
    peak_gpu_memory: int | None
    disk: Disk
    seconds: float  # as run.json counts them

    def table(self) -> str:
        """What a person reads."""
        disk = self.disk
        gpu = f", of the GPU {amount(self.peak_gpu_memory)}" if self.peak_gpu_memory else ""
        lines = [
            f"{self.rows} rows; about {self.tokens} tokens to train on, in {self.steps} steps",
            *size_lines(self.saes),
            f"peak memory of a process: {amount(self.peak_memory)}{gpu}",
            f"disk while running: {amount(disk.running)} (checkpoint {amount(disk.checkpoint)}, token cache "
            f"{amount(disk.token_cache)})",
            f"disk after: {amount(disk.after)} (features {amount(disk.features)}, SAEs {amount(disk.saes)})",
            f"time: {duration(self.seconds)}",
            "dry run: nothing was written",
        ]
        return "\n".join(lines)


def size_lines(saes: dict[str, dict[str, Size]]) -> list[str]:
    """A line for each size of SAE: how many there are, and the first."""
    entries = [(size, f"{run}/{layer}") for run, layers in saes.items() for layer, size in layers.items()]
    entries.sort(key=lambda entry: (*entry[0][:2], entry[0].k or 0))
    lines = []
    for size, group in itertools.groupby(entries, key=lambda entry: entry[0]):
        names = [name for _, name in group]
        what = f"{len(names)} SAEs" if names[1:] else "one SAE"
        more = f" and {len(names) - 1} more" if names[1:] else ""
        k = f", k {size.k}" if size.k else ""
        lines.append(f"{what} of d_in {size.d_in}, d_sae {size.d_sae}{k}: {names[0]}{more}")
    return lines


def amount(n_bytes: int) -> str:
    """Bytes as a person reads them: 3.2 GiB, 12.0 MiB."""
    unit, name = (2**30, "GiB") if n_bytes >= 2**30 else (2**20, "MiB")
    return f"{n_bytes / unit:.1f} {name}"


def duration(seconds: float) -> str:
    """Seconds as a person reads them: 40 s, 12 min, 3.4 h."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def estimate(work: Work, checkpoint_every: float) -> Estimate:
    """Rehearse a command and add up what the whole of it would cost."""
    trained = RECIPES[work.jobs[0].settings.recipe].trained and not work.sae
    plan = training_plan(work.held_out, work.jobs[0].settings) if not work.sae else []
    seen = rehearse(work, plan, trained)
    training, recording = training_seconds(work, plan, seen), recording_seconds(work, seen)
    setup = work.seconds() - seen.paces.total() - seen.paces.at_pace(seen.warm_up)
    jobs = zip(work.jobs, seen.sizes, strict=True)
    return Estimate(
        rows=len(work.held_out),
        tokens=round(sum(map(len, plan)) * seen.tokens) if trained else 0,
        steps=len(plan) if trained else 0,
        saes={job.folder.name: {f"layer{n}": size for n, size in layers.items()} for job, layers in jobs},
        peak_memory=peak_memory() + part_memory(work, seen),
        peak_gpu_memory=peak_gpu_memory(work.stream.encoder.device),
        disk=disk(work, seen, resumes=trained and training > checkpoint_every),
        seconds=highest(setup + training + recording),
    )


def training_seconds(work: Work, plan: list[list[int]], seen: Rehearsal) -> float:
    """The seconds of the batches that tell each layer's scale, and of all steps."""
    first, own = (sum(map(len, own_share(rows))) for rows in (plan[:STATISTICS_BATCHES], plan))
    scales = encoding_seconds(work, seen.paces, first)
    steps = seen.paces.of("step", own)
    return scales + (encoding_seconds(work, seen.paces, own, steps) if steps else 0.0)


def recording_seconds(work: Work, seen: Rehearsal) -> float:
    """The seconds in which one process records its share of the rows."""
    judged, n_rows = int(work.judged().sum()), len(work.held_out)
    encoded = judged if seen.caches else n_rows
    busy = seen.recorded("judge", judged) + seen.recorded("features", encoded)
    busy += seen.recorded("cached", n_rows - encoded)
    return encoding_seconds(work, seen.paces, encoded / team().world, busy / team().world)


def encoding_seconds(work: Work, paces: Paces, n_rows: int | float, busy: float = 0.0) -> float:
    """The seconds in which so many rows are read, encoded, and then worked on for `busy` seconds.

    Workers read meanwhile; without a GPU they take cores from the rest.
    """
    reading, busy = paces.of("read", n_rows), busy + paces.of("encode", n_rows)
    if not work.stream.workers:
        return reading + busy
    cores = os.cpu_count() or 1
    taken = 0.0 if work.stream.encoder.device.startswith("cuda") else reading / cores
    return max(reading / min(work.stream.workers, cores), busy + taken)


def disk(work: Work, seen: Rehearsal, resumes: bool) -> Disk:
    """The sizes of the files; `resumes`: the training takes long enough for a checkpoint."""
    sizes = [size for layers in seen.sizes for size in layers.values()]
    widths = {layer: size.d_in for layer, size in seen.sizes[0].items()}
    cache = RecordedTokens.nbytes(len(work.held_out), widths) if seen.caches else 0
    checkpoint = 3 * 4 * sum(size.numbers() for size in sizes) if resumes else 0  # weights and two moments
    saes = sum(4 * size.numbers() + SAE_HEADERS for size in sizes)
    stored = features_bytes(seen, len(work.held_out))
    after = stored + saes + len(work.jobs) * (samples_bytes(work) + OTHER_FILES)
    # A checkpoint is written beside the one before, and goes once the SAEs are saved; the cache goes at the end.
    running = cache + max(2 * checkpoint, checkpoint + saes, after)
    return Disk(checkpoint, cache, stored, saes, running, after)


def part_memory(work: Work, seen: Rehearsal) -> int:
    """The memory of a part file's rows: of all SAEs at once, one of them stacked and sorted besides."""
    held = features_bytes(seen, min(features.PART_ROWS, len(work.held_out)))
    return held + 2 * held // sum(map(len, seen.sizes))


def features_bytes(seen: Rehearsal, n_rows: int) -> int:
    """The size of all part files of so many rows."""
    n_parts = math.ceil(n_rows / features.PART_ROWS)
    each = n_parts * empty_part_bytes() + n_rows * seen.row_bytes
    entries = [entries for layers in seen.entries for entries in layers.values()]
    return len(entries) * each + round(n_rows * sum(entries) * seen.entry_bytes)


def empty_part_bytes() -> int:
    """The size of a part file without rows."""
    file = io.BytesIO()
    scipy.sparse.save_npz(file, scipy.sparse.csr_array((0, 1), dtype=np.float32), compressed=False)
    return len(file.getvalue())


def samples_bytes(work: Work) -> int:
    """The size of samples.jsonl."""
    return sum(len(json.dumps(row, ensure_ascii=False).encode()) + 1 for row in sample_rows(work))
