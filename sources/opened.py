"""What the opening function of a data set returns, and what these functions share."""

import os
import re
import struct
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
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
    def caption(self) -> str:
        """The first of its captions."""
        return self.captions[0]

    @property
    def path(self) -> str | None:
        """The file that holds the row; None for a row that is known by its number."""
        path = self.place.path if isinstance(self.place, Span) else self.place
        return path if isinstance(path, str) else None


class Lost(NamedTuple):
    """What cannot become a row, such as the rest of a tar that is cut, or a caption that is no text."""

    id: str
    path: str
    why: str


class Opened(NamedTuple):
    """What an opening function returns.

    The data set's name, all its rows, how to read one, and the `data_root` it used. Among the rows may be what is
    lost, and lines for the user. They are read once, and not at all where an index of them is kept (index.py), so
    whatever takes long is left to their iterator. `files` are those that decide the rows: listings, tables, shards;
    `version` is what else tells one state of the data set from another. Where ids repeat, `apart` gives each row an
    id of its own, or else `id_help` says what the user can do.
    """

    name: str
    rows: Iterable[Sample | Lost | str]
    read: Read
    data_root: str | None
    version: str = ""
    files: Sequence[str] = ()
    apart: Callable[[Sample], Sample] | None = None
    id_help: str = "every row needs its own"


def writable(rows: Iterable[Sample | Lost | str], name: str) -> Iterator[Sample | Lost | str]:
    """The rows of data set `name` with texts that can be written as UTF-8, and without byte order marks.

    Unpaired surrogates come from file names in other encodings and from cut JSON. In names they are spelled out
    as \\udce9, so that names stay apart; in captions they become U+FFFD, and a line says so.
    """
    replaced = 0
    for row in rows:
        if isinstance(row, Sample):
            captions = [*map(trimmed, row.captions)]
            joined = "".join([row.id, row.file, *captions])
            if not joined.isascii() and re.search(SURROGATES, joined):
                whole = [re.sub(SURROGATES, "\ufffd", text) for text in captions]
                replaced += whole != captions
                row = row._replace(id=spelled(row.id), file=spelled(row.file))
                captions = whole
            yield row._replace(captions=captions)
        else:
            yield Lost(*map(spelled, row)) if isinstance(row, Lost) else row
    if replaced:
        yield f"{name}: captions of {replaced} rows hold unpaired surrogates, which become \ufffd"


def trimmed(text: str) -> str:
    """A caption without a byte order mark and the blanks around it."""
    return text.strip().removeprefix("\ufeff").strip()


def spelled(text: str) -> str:
    """A text with its unpaired surrogates spelled out."""
    return text.encode(errors="backslashreplace").decode()


def reason(why: BaseException) -> str:
    """An error's message in one line; with its class where it is a word or less."""
    message = " ".join(str(why).split())
    return message if " " in message else f"{type(why).__name__} {message}".strip()


def say(message: str):
    """Tell the user on standard error."""
    print(message, file=sys.stderr)


def without_caption(kind: str, items: str, found: int, used: int) -> Iterator[str]:
    """A line that says how many of the items found lack a caption, if any do."""
    if used < found:
        yield f"{kind}: {found - used} of {found} {items} have no caption and are left out"


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
