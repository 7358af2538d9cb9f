"""What one command has to do: its stream of activations, and its runs."""

import time
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple, TypedDict

import numpy as np
from jaxtyping import Bool

from training.activations import Stream
from training.settings import Settings
from training.unfinished import Unfinished


class State(TypedDict):
    """The header of a file that a killed command resumes from."""

    seconds: float  # that the command had worked
    done: int  # steps trained, or part files written


class Job(NamedTuple):
    """One run that is being made: its folder, and its settings with nothing left open."""

    unfinished: Unfinished
    settings: Settings

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.unfinished.folder


class Work(NamedTuple):
    """What a command has to do. Its jobs share every activation; the first job's folder holds the state to resume from."""

    stream: Stream
    jobs: list[Job]
    held_out: Bool[np.ndarray, " sample"]  # never train
    sae: str | None  # given SAEs: their folder, or their name on the hub with its commit; None: train
    started: float  # the monotonic time at which it would have started, had it never been interrupted

    tracker: str | None = None  # where the reports of the training are sent besides

    def judged(self) -> Bool[np.ndarray, " sample"]:
        """The samples that the scores are of: those held out, or all where they are too few to hold any out."""
        return self.held_out if self.held_out.any() else ~self.held_out

    def state(self) -> Unfinished:
        """The folder that holds what the command resumes from."""
        return self.jobs[0].unfinished

    def seconds(self) -> float:
        """How long the command has worked, without the time between a kill and its resuming."""
        return time.monotonic() - self.started

    def header(self, done: int) -> State:
        """The header of a state file that is written now."""
        return {"seconds": self.seconds(), "done": done}

    def described(self, job: Job) -> dict[str, object]:
        """What decides a job's numbers besides its encoder and its data: `training` in run.json."""
        stream = self.stream
        where = {"layers": stream.layers, "token": stream.encoder.token}
        return {**where, **asdict(job.settings), "sae": self.sae}
