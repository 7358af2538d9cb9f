"""Where the lines of training.jsonl are sent besides (`--log`). A tracker's package is imported only when asked for."""

import contextlib
import contextvars
import importlib
import importlib.util
import sys
from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from plumbing.errors import UserError, first_line

PROJECT = "shared-concepts"

# By its package's name, what else `init` takes: wandb would join the runs of one command into one.
OPTIONS = {"wandb": {"reinit": "create_new"}, "trackio": {}, "tensorboard": {}}

REMEDIES = {"wandb": "type wandb login, or set WANDB_MODE=offline and wandb sync its folder later, or "}


@runtime_checkable
class Tracker(Protocol):
    """A run at a tracker, as wandb's and trackio's `init` return it."""

    def log(self, values: dict[str, int | float], step: int) -> object: ...

    def finish(self) -> object: ...


class Board:
    """TensorBoard as a `Tracker`: its files are in runs/NAME, where those of an earlier start no longer count."""

    def __init__(self, name: str):
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(f"runs/{name}", purge_step=0)

    def log(self, values: dict[str, int | float], step: int):
        """Send numbers by name."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def finish(self):
        """Close the files."""
        self.writer.close()


def check(tracker: str):
    """Refuse a tracker whose package is not installed."""
    if importlib.util.find_spec(tracker) is None:
        raise UserError(
            f"--log {tracker} needs a package that is not installed: type uv pip install {tracker}"
        )


class Sending:
    """A run at a tracker. Where sending fails, a line says so, and the training goes on without it."""

    def __init__(self, tracker: str, name: str, config: Mapping[str, object]):
        """Start a run of that name; `config`: its settings. Error: it cannot be started."""
        self.tracker, self.run = tracker, None
        try:
            with contextlib.redirect_stdout(sys.stderr):
                self.run = start(tracker, name, config)
        except Exception as error:  # whatever the package raises: no account, no network, no right to write
            raise UserError(
                f"--log {tracker} cannot start ({first_line(error)}): {REMEDIES.get(tracker, '')}leave --log out"
            ) from error

    def log(self, values: dict[str, int | float], step: int):
        """Send numbers by name."""
        self.call("log", values, step=step)

    def finish(self):
        """Say that all is sent."""
        self.call("finish")

    def call(self, method: str, *given: object, **named: object):
        """Call the tracker, unless it has failed before."""
        try:
            with contextlib.redirect_stdout(sys.stderr):
                if self.run is not None:
                    getattr(self.run, method)(*given, **named)
        except Exception as error:  # its process has died, or its disk is full
            self.run = None
            print(
                f"--log {self.tracker} has failed and gets no more ({first_line(error)}): training.jsonl has all",
                file=sys.stderr,
            )


def start(tracker: str, name: str, config: Mapping[str, object]) -> Tracker:
    """Start a run of that name; `config`: its settings. Runs start in contexts of their own: trackio ends the one before."""
    if tracker == "tensorboard":
        return Board(name)
    init = importlib.import_module(tracker).init
    options = {"project": PROJECT, "name": name, "config": dict(config), **OPTIONS[tracker]}
    return contextvars.copy_context().run(init, **options)
