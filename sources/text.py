"""Captions alone, for studies of text encoders: a file with one a line, or a .jsonl."""

import json
from collections.abc import Iterator
from pathlib import Path

from plumbing.errors import UserError
from sources.folder import CAPTION_KEYS
from sources.opened import Opened, Sample, reason, say, texts, trimmed

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
    lines = _lines(file)
    rows = {number: read(f"{file}:{number}", line) for number, line in enumerate(lines, 1) if trimmed(line)}
    rows = {number: row for number, row in rows.items() if any(map(trimmed, row[1]))}
    if not rows:
        raise UserError(f"{location} holds no caption: {NEEDED}")
    if len(rows) < len(lines):
        say(f"text: {len(lines) - len(rows)} of {len(lines)} lines have no caption and are left out")
    samples = [Sample(row_id, "", captions, number) for number, row_id, captions in _with_ids(location, rows)]
    return Opened(file.stem, samples, _no_picture, location, files=[location])


def _lines(file: Path) -> list[str]:
    """The lines of a file. Only a line feed ends one (with a carriage return before it, if any)."""
    found = file.read_bytes().split(b"\n")
    if not found[-1]:
        found.pop()
    lines = []
    for number, line in enumerate(found, 1):
        try:
            lines.append(line.decode("utf-8-sig" if number == 1 else "utf-8"))
        except UnicodeDecodeError as why:
            raise UserError(
                f"{file}:{number}: not UTF-8 text ({reason(why)}); save the file as UTF-8"
            ) from why
    return lines


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


def _with_ids(location: str, rows: dict[int, Row]) -> Iterator[tuple[int, str, list[str]]]:
    """Each row's line, id and captions."""
    numbered = next(iter(rows.values()))[0] is None
    for number, (row_id, captions) in rows.items():
        if (row_id is None) != numbered:
            which = (
                "an id, which the lines before it lack"
                if numbered
                else "no id, which the lines before it have"
            )
            raise UserError(f"{location}:{number} has {which}: give every line an id, or none")
        yield number, str(number) if row_id is None else row_id, captions


def _no_picture(place: int) -> bytes:
    raise AssertionError(f"line {place} has no picture, and `Pairs` should not ask for one")
