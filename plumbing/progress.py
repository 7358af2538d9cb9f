"""Progress bars: on a terminal tqdm's; in a log, which a bar would fill, a line a minute."""

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

IN_A_LOG: dict[str, Any] = {  # nothing of what is done within a minute
    "mininterval": 60,
    "maxinterval": 60,
    "miniters": 1,
    "delay": 60,
    "bar_format": "{desc}: {n_fmt} of {total_fmt} ({percentage:.0f} %), {elapsed} gone, {remaining} left{postfix}",
}


class Progress(tqdm):
    """tqdm's bar, with its arguments; where standard error is no terminal, lines a minute apart, and one at the end."""

    def __init__(
        self, iterable: Iterable | None = None, desc: str = "", total: int | None = None, **options: Any
    ):
        here: dict[str, Any] = {} if sys.stderr.isatty() else {**IN_A_LOG, "file": _Lines()}
        super().__init__(iterable, desc, total, **(here | options))

    def set_postfix(self, *names, **values):
        """Set what stands behind the bar; in a log it waits for the next line."""
        super().set_postfix(*names, refresh=sys.stderr.isatty(), **values)


class _Lines:
    """Standard error as a file for tqdm, in which each state of a bar gets a line of its own."""

    def write(self, text: str):
        if said := text.strip():
            print(said, file=sys.stderr)

    def flush(self):
        sys.stderr.flush()
