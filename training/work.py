"""What one command has to do: its stream of activations, and its runs."""

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool

from training.activations import Stream
from training.settings import Settings
from training.unfinished import Unfinished

History = list[
    list
]  # of the reports in training: [step, (loss, FVU, dead fraction) of each layer of each job]


class Job(NamedTuple):
    """One run to be: its folder and its settings, all of them settled."""

    unfinished: Unfinished
    settings: Settings

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.unfinished.folder


class Work(NamedTuple):
    """All that a command has to do; its jobs share every activation, and the first one's folder holds the state."""

    stream: Stream
    jobs: list[Job]
    held_out: Bool[np.ndarray, " sample"]  # never train
    sae: str | None  # where SAEs lie that are trained already; None: train
    started: (
        float  # the monotonic time at which the command would have started, had it never been interrupted
    )

    def judged(self) -> Bool[np.ndarray, " sample"]:
        """The samples that scores are of: those held out, or all where there are too few to hold any out."""
        return self.held_out if self.held_out.any() else ~self.held_out

    def state(self) -> Unfinished:
        """The folder that holds what the command resumes from."""
        return self.jobs[0].unfinished

    def header(self, done: int, history: History) -> dict[str, Any]:
        """What every state file says of itself."""
        return {"seconds": time.monotonic() - self.started, "done": done, "history": history}

    def described(self, job: Job) -> dict[str, Any]:
        """Everything that decides a job's numbers besides its encoder and its data; run.json's `training`."""
        stream = self.stream
        where = {"layers": stream.layers, "token": stream.encoder.token}
        return where | asdict(job.settings) | {"sae": self.sae}
