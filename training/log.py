"""`training.jsonl` in a run folder: the reports of the training, a line each, appended while it trains."""

import json
import os
from pathlib import Path
from typing import TypedDict

from plumbing import files
from plumbing.processes import team
from training import trackers
from training.quality import finite
from training.trainer import Report
from training.work import Work

FILE = "training.jsonl"


class Line(TypedDict):
    """One report. Values by layer ("layer11") are of the steps since the last line; `lr` is that of the last step."""

    step: int
    tokens: int  # trained on so far, by all processes
    seconds: float  # since the command began, without the time between a kill and its resuming
    loss: dict[str, float | None]  # mean over the steps; None: NaN
    fvu: dict[str, float | None]
    dead_fraction: dict[str, float | None]
    lr: dict[str, float | None]


class Logs:
    """The logs of a command's runs, which go on after the lines of the first `done` steps; the first process writes."""

    def __init__(self, work: Work, done: int):
        self.work, self.opened, self.trackers = work, [], []
        for job in work.jobs if team().rank == 0 else []:
            rewind(job.folder / FILE, done)
            self.opened.append(open(job.folder / FILE, "ab"))  # noqa: SIM115  # `close` does
            files.sync(job.folder)
            if work.tracker:
                self.trackers.append(trackers.Sending(work.tracker, job.folder.name, work.described(job)))
                for earlier in read(job.folder):
                    self.trackers[-1].log(flat(earlier), earlier["step"])

    def write(self, step: int, reports: dict[tuple[int, int], Report]):
        """Append a line to each log; `reports` by job number and layer."""
        for number, log in enumerate(self.opened):
            own = {f"layer{layer}": report for (job, layer), report in reports.items() if job == number}
            found = line(step, self.work.seconds(), own)
            log.write(json.dumps(found).encode() + b"\n")
            log.flush()
            if self.trackers:
                self.trackers[number].log(flat(found), step)

    def sync(self):
        """Return when all lines would outlast a power cut."""
        for log in self.opened:
            os.fsync(log.fileno())

    def close(self):
        """Sync and close the files."""
        self.sync()
        for log in self.opened:
            log.close()
        for tracker in self.trackers:
            tracker.finish()


def line(step: int, seconds: float, reports: dict[str, Report]) -> Line:
    """The line of a step's reports by layer."""

    def by_layer(field: str) -> dict[str, float | None]:
        return {layer: finite(getattr(report, field)) for layer, report in reports.items()}

    return {
        "step": step,
        "tokens": next(iter(reports.values())).tokens,  # the same for all layers
        "seconds": round(seconds, 3),
        "loss": by_layer("loss"),
        "fvu": by_layer("fvu"),
        "dead_fraction": by_layer("dead_fraction"),
        "lr": by_layer("lr"),
    }


def flat(line: Line) -> dict[str, int | float]:
    """A line's numbers by name ("fvu/layer11"), as trackers take them; what is NaN is left out."""
    found: dict[str, int | float] = {"tokens": line["tokens"], "seconds": line["seconds"]}
    for field in ("loss", "fvu", "dead_fraction", "lr"):
        found |= {f"{field}/{layer}": value for layer, value in line[field].items() if value is not None}
    return found


def rewind(file: Path, done: int):
    """Cut off the lines of steps after `done`, which a resumed training writes again, and a line that is not whole."""
    if not file.exists():
        return
    length = 0
    with open(file, "rb+") as lines:
        for line in lines:
            if not line.endswith(b"\n") or json.loads(line)["step"] > done:
                break
            length += len(line)
        lines.truncate(length)


def read(folder: Path) -> list[Line]:
    """The lines of a run's training; none, where its SAEs were given or it was recorded by an older version."""
    file = folder / FILE
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
