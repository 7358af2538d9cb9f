"""Where the lines of training.jsonl are sent besides (`--log`). A tracker's package is imported only when asked for."""

import importlib
import importlib.util
from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from plumbing.errors import UserError

PROJECT = "shared-concepts"

# By its package's name, what else `init` takes: wandb would join the runs of one command into one.
OPTIONS = {"wandb": {"reinit": "create_new"}, "trackio": {}, "tensorboard": {}}


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


def start(tracker: str, name: str, config: Mapping[str, object]) -> Tracker:
    """Start a run of that name; `config`: its settings."""
    if tracker == "tensorboard":
        return Board(name)
    init = importlib.import_module(tracker).init
    return init(project=PROJECT, name=name, config=dict(config), **OPTIONS[tracker])
