"""What the opening function of a data set returns, and what these functions share."""

import os
import re
import struct
import sys
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from plumbing.errors import UserError

SOUNDS = (".wav", ".flac", ".ogg", ".opus", ".mp3")

# What PIL and soundfile raise on content that is cut short or not what its name says.
BROKEN = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, RuntimeError)

BROKEN += (struct.error, zlib.error, AttributeError, ArithmeticError, AssertionError)

SURROGATES = "[\ud800-\udfff]"  # halves of characters: alone they cannot be written as UTF-8


class Span(NamedTuple):
    """Where a member of a tar lies: the tar, and the first byte and number of bytes of the content."""

    path: str
    offset: int
    size: int


Place = str | Span | int  # where a row's file lies: its path, its span of a tar, or the number of the row

Read = Callable[[Any], bytes | Image.Image]  # from the places of one kind


class Sample(NamedTuple):
    """One row: its id, its file as a reader would name it ("": captions alone), its captions, and what `Opened.read`
    takes.
    """

    id: str
    file: str
    captions: list[str]
    place: Place

    @property
    def side(self) -> str:
        """What the file is: "audio", "image", or "text" where there is none."""
        if not self.file:
            return "text"
        return "audio" if self.file.lower().endswith(SOUNDS) else "image"

    @property
    def path(self) -> str | None:
        """The file that holds the row; None for a row that is known by its number."""
        path = self.place.path if isinstance(self.place, Span) else self.place
        return path if isinstance(path, str) else None


class Opened(NamedTuple):
    """What an opening function returns.

    The data set's name, all its rows, how to read one, the `data_root` it used, the {"id", "path", "why"} of what
    cannot become rows (a cut tar, a caption that is no text), what besides ids and dates of files tells one version
    from another, and the files that the rows were read from besides those that `samples` name.
    """

    name: str
    samples: list[Sample]
    read: Read
    data_root: str | None
    damaged: Sequence[dict[str, str]] = ()
    version: str = ""
    files: Sequence[str] = ()


def writable(opened: Opened) -> Opened:
    """The same with texts that can be written as UTF-8, which happens hours later, and without byte order marks.

    Unpaired surrogates come from file names in other encodings and from cut JSON. In names they are spelled out
    as \\udce9, so that names stay apart; in captions they become U+FFFD, and a line says so.
    """
    replaced = 0
    samples = []
    for sample in opened.samples:
        captions = [*map(trimmed, sample.captions)]
        joined = "".join([sample.id, sample.file, *captions])
        if not joined.isascii() and re.search(SURROGATES, joined):
            whole = [re.sub(SURROGATES, "\ufffd", text) for text in captions]
            replaced += whole != captions
            sample = sample._replace(id=_spelled(sample.id), file=_spelled(sample.file))
            captions = whole
        samples.append(sample._replace(captions=captions))
    if replaced:
        say(f"{opened.name}: captions of {replaced} rows hold unpaired surrogates, which become \ufffd")
    damaged = [{key: _spelled(text) for key, text in item.items()} for item in opened.damaged]
    return opened._replace(name=_spelled(opened.name), samples=samples, damaged=damaged)


def trimmed(text: str) -> str:
    """A caption without a byte order mark and the blanks around it."""
    return text.strip().removeprefix("\ufeff").strip()


def _spelled(text: str) -> str:
    return text.encode(errors="backslashreplace").decode()


def reason(why: BaseException) -> str:
    """An error's message in one line; with its class where it is a word or less."""
    message = " ".join(str(why).split())
    return message if " " in message else f"{type(why).__name__} {message}".strip()


def say(message: str):
    """Tell the user on standard error."""
    print(message, file=sys.stderr)


def say_without_caption(kind: str, items: str, found: int, used: int):
    """Say how many of the items found lack a caption, if any do."""
    if used < found:
        say(f"{kind}: {found - used} of {found} {items} have no caption and are left out")


def name_of(folder: str | Path) -> str:
    """A data set's name: that of its folder, also where the folder is given as `.` or `..`."""
    return os.path.basename(os.path.abspath(folder))


def file_bytes(path: str) -> bytes:
    """The content of the file that a row names by its path."""
    return Path(path).read_bytes()


def require_found(name: str, paths: Iterable[Path], help: str):
    """Refuse paths that do not exist, with `help` on how to get the data."""
    for path in paths:
        if not path.exists():
            raise UserError(f"{name} was looked for at {path.absolute()}, which does not exist; {help}")


def texts(value: object) -> list[str] | None:
    """A caption or a list of them as a list; None where the value is neither."""
    listed = [value] if isinstance(value, str) else value
    if not isinstance(listed, list) or not all(isinstance(text, str) for text in listed):
        return None
    return listed


def files_below(location: str) -> list[str]:
    """The files of a data set that lies in a local file or folder, sorted; none of one on the hub."""
    if os.path.isfile(location):
        return [location]
    return sorted(os.path.join(folder, name) for folder, _, names in os.walk(location) for name in names)
