"""Captions alone, for studies of text encoders: a file with one a line, or a .jsonl."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

from plumbing.errors import UserError
from sources.folder import CAPTION_KEYS
from sources.opened import Opened, Sample, reason, texts, trimmed, without_caption

Row = tuple[str | None, list[str]]  # an id where the line has one, and the captions

NEEDED = "name a .txt with a caption a line, or a .jsonl of captions, with their ids if they have any"


def open_text(location: str | None) -> Opened:
    """The captions of a UTF-8 file, a row a line: the line of a .txt, or the object of a .jsonl.

    An object is {"caption": "…"} or a list of captions; it has an "id" in all lines or in none. Otherwise ids are
    the numbers of the lines, from 1, also where lines without a caption are left out. Captions may repeat.
    Errors: no such file, a file of another kind, not UTF-8, no caption in it.
    """
    if location is None:
        raise UserError(f"data set 'text' needs --data_root FILE: {NEEDED}")
    file = Path(location)
    if not file.is_file():
        what = "is a folder" if file.is_dir() else "does not exist"
        raise UserError(f"--data_root {location} {what}: {NEEDED}")
    read = {".txt": _plain_row, ".jsonl": _jsonl_row}.get(file.suffix.lower())
    if read is None:
        raise UserError(
            f"--data_root {location} is neither .txt nor .jsonl: {NEEDED} (tables: --dataset folder, hf:FILE)"
        )
    return Opened(file.stem, _rows(file, read), _no_picture, location, files=[location])


def _rows(file: Path, read: Callable[[str, str], Row]) -> Iterator[Sample | str]:
    n_lines = used = 0
    numbered = None  # whether ids are the numbers of the lines
    for n_lines, line in _lines(file):
        row_id, captions = read(f"{file}:{n_lines}", line) if trimmed(line) else (None, [])
        if not any(map(trimmed, captions)):
            continue
        if numbered not in (None, row_id is None):
            which = (
                "an id, which the lines before it lack"
                if numbered
                else "no id, which the lines before it have"
            )
            raise UserError(f"{file}:{n_lines} has {which}: give every line an id, or none")
        numbered, used = row_id is None, used + 1
        yield Sample(str(n_lines) if row_id is None else row_id, "", captions, n_lines)
    if not used:
        raise UserError(f"{file} holds no caption: {NEEDED}")
    yield from without_caption("text", "lines", n_lines, used)


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    """The number and text of each line. Only a line feed ends one (with a carriage return before it, if any)."""
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                yield number, line.removesuffix(b"\n").decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as why:
                raise UserError(
                    f"{file}:{number}: not UTF-8 text ({reason(why)}); save the file as UTF-8"
                ) from why


def _plain_row(_: str, line: str) -> Row:
    return None, [line]


def _jsonl_row(where: str, line: str) -> Row:
    try:
        record = json.loads(trimmed(line))
    except json.JSONDecodeError as why:
        raise UserError(f"{where}: not a JSON object ({why})") from why
    record = record if isinstance(record, dict) else {}
    captions = texts(next((record[key] for key in CAPTION_KEYS if key in record), None))
    row_id = record.get("id")
    is_id = isinstance(row_id, str | int) and not isinstance(row_id, bool) and row_id != ""
    if captions is None or ("id" in record and not is_id):
        raise UserError(
            f'{where}: needs {{"id": "a", "caption": "…"}}, the id a text or a whole number, or left out'
        )
    return (str(row_id) if is_id else None), captions


def _no_picture(place: int) -> bytes:
    raise AssertionError(f"line {place} has no picture, and `Pairs` should not ask for one")
