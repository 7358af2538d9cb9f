"""What the opening function of a data set returns, and what these functions share."""

import os
import struct
import sys
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from plumbing.errors import UserError

SOUNDS = (".wav", ".flac", ".ogg", ".opus", ".mp3")

# What PIL and soundfile raise on content that is cut short or not what its name says.
BROKEN = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, RuntimeError)

BROKEN += (struct.error, zlib.error, AttributeError, ArithmeticError, AssertionError)


class Sample(NamedTuple):
    """One row: its id, its file as a reader would name it, its captions, and what `Pairs.read` takes."""

    id: str
    file: str
    captions: list[str]
    place: Any


def _reason(why: BaseException) -> str:
    message = " ".join(str(why).split())
    return message if " " in message else f"{type(why).__name__} {message}".strip()


class Opened(NamedTuple):
    """What an opening function hands back.

    The data set's name, all its rows, how to read one, the `data_root` it used, the {"id", "path", "why"} of
    containers that are damaged, what besides ids and dates of files tells one version from another, and the
    files that the rows were read from besides those that `samples` name.
    """

    name: str
    samples: list[Sample]
    read: Callable[[Any], Any]
    data_root: str | None
    damaged: Sequence[dict[str, str]] = ()
    version: str = ""
    files: Sequence[str] = ()


def _name_of(folder: str | Path) -> str:
    """A data set's name: that of its folder, and of `.` and `..` that of the folder that they mean."""
    return os.path.basename(os.path.abspath(folder))


def _say(message: str):
    print(message, file=sys.stderr)


def _file_bytes(path: str) -> bytes:
    return Path(path).read_bytes()


def _require_found(name: str, paths: Iterable[Path], help: str):
    for path in paths:
        if not path.exists():
            raise UserError(f"{name} was looked for at {path.absolute()}, which does not exist; {help}")


def _texts(value: Any) -> list[str] | None:
    """A caption or a list of them as a list; None where the value is neither."""
    texts = [value] if isinstance(value, str) else value
    return texts if isinstance(texts, list) and all(isinstance(text, str) for text in texts) else None


def _files_below(location: str) -> list[str]:
    """The files of a data set that lies in a local file or folder, sorted; none of one on the hub."""
    if os.path.isfile(location):
        return [location]
    return sorted(os.path.join(folder, name) for folder, _, names in os.walk(location) for name in names)
