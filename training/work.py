"""What one command has to do: its stream of activations, its jobs, and what it resumes from."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool

from training.activations import Stream
from training.quality import Quality
from training.settings import Settings
from training.trainer import LayerTrainer
from training.unfinished import Unfinished


class Job(NamedTuple):
    """One run to be: its folder and its settings. The jobs of one command share every activation."""

    folder: Path
    settings: Settings


class Work(NamedTuple):
    """All that a command has to do.

    `identity`: the settings that a checkpoint must match before we resume from it. `started`: the monotonic time
    at which the command would have started had it never been interrupted.
    """

    stream: Stream
    jobs: list[Job]
    held_out: Bool[np.ndarray, " sample"]
    identity: dict[str, Any]
    given: dict[int, Path]  # the folders of SAEs that are trained already, by layer; empty: train
    checkpoint_every: float  # seconds
    started: float
    command: list[str] | None = None  # the words that were typed

    def judged(self) -> Bool[np.ndarray, " sample"]:
        """The samples that scores are of: those held out, or all where there are too few to hold any out."""
        return self.held_out if self.held_out.any() else ~self.held_out

    def unfinished(self) -> list[Unfinished]:
        """The run folders while they are worked on."""
        return [Unfinished(job.folder) for job in self.jobs]

    def fit_state(self) -> Path:
        """Where the training of all jobs is kept while it lasts."""
        return self.jobs[0].folder / "unfinished-training.safetensors"

    def record_state(self, process: int) -> Path:
        """Where a process keeps how far its recording is."""
        return self.jobs[0].folder / f"unfinished-recording-{process}.safetensors"

    def tokens_file(self) -> Path:
        """Where training keeps what is to be recorded (`RecordedTokens`)."""
        return self.jobs[0].folder / "unfinished-tokens.bin"


Trainers = dict[tuple[int, int], LayerTrainer]  # by job number and layer

Qualities = list[dict[int, Quality]]  # by job number, then layer
