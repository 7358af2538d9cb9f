"""A folder of pictures or sounds with captions in captions.jsonl or captions.tsv."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from plumbing.errors import UserError
from sources.opened import Opened, Sample, file_bytes, name_of, reason, texts, without_caption

FILE_KEYS = ("file", "file_name", "image", "audio")

CAPTION_KEYS = ("caption", "captions", "text")

LISTINGS = ("captions.jsonl", "captions.tsv")


def open_folder(location: str | None) -> Opened:
    """Pictures or sounds anywhere below `data_root`, listed in its `captions.jsonl` or `captions.tsv`.

    Rows are in the order in which the files first appear there; a file listed again gets a further caption.
    A line is {"file": "a/b.jpg", "caption": "…"} or file, tab, caption; paths are relative to `data_root`.
    UserError names the line (FILE:NUMBER) that cannot be read.
    """
    if location is None:
        raise UserError("data set 'folder' needs --data_root DIR, a folder of pictures with a captions.jsonl")
    root = Path(location)
    if not root.is_dir():
        raise UserError(f"--data_root {location} is no folder: name the one with the pictures and captions")
    found = [root / name for name in LISTINGS if (root / name).is_file()]
    if len(found) != 1:
        has = "both captions.jsonl and captions.tsv" if found else "neither captions.jsonl nor captions.tsv"
        raise UserError(f"{root.absolute()} has {has}; data set 'folder' needs one, of files and captions")
    return Opened(name_of(root), _rows(found[0], root), file_bytes, location, files=[str(found[0])])


def _rows(listing: Path, root: Path) -> Iterator[Sample | str]:
    captions: dict[str, list[str]] = {}
    lines = _jsonl_lines if listing.suffix == ".jsonl" else _tsv_lines
    for where, file, listed in lines(listing):
        if PurePosixPath(file).is_absolute():
            raise UserError(f"{where}: {file!r} is not relative to {root}")
        captions.setdefault(PurePosixPath(file).as_posix(), []).extend(text.strip() for text in listed)
    samples = [Sample(file, file, listed, str(root / file)) for file, listed in captions.items() if listed]
    yield from samples
    yield from without_caption("folder", "files", len(captions), len(samples))


def _numbered_lines(listing: Path) -> Iterator[tuple[str, str]]:
    """("FILE:NUMBER", line) of each line, counted from 1, line end included."""
    try:
        with open(listing, encoding="utf-8-sig", newline="") as lines:
            for number, line in enumerate(lines, 1):
                yield f"{listing}:{number}", line
    except UnicodeDecodeError as why:
        raise UserError(f"{listing} is not UTF-8 text ({reason(why)})") from why


def _jsonl_lines(listing: Path) -> Iterator[tuple[str, str, list[str]]]:
    """("FILE:NUMBER", file, captions) of each line that is not blank."""
    for where, line in _numbered_lines(listing):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as why:
            raise UserError(f"{where}: not a JSON object ({why})") from why
        record = record if isinstance(record, dict) else {}
        file = next((record[key] for key in FILE_KEYS if key in record), None)
        listed = texts(next((record[key] for key in CAPTION_KEYS if key in record), None))
        if not isinstance(file, str) or listed is None:
            raise UserError(f'{where}: needs {{"file": "a/b.jpg", "caption": "…"}}, or a list of captions')
        yield where, file, listed


def _tsv_lines(listing: Path) -> Iterator[tuple[str, str, list[str]]]:
    """("FILE:NUMBER", file, [caption]) of each record; a header is optional, quotes are as csv writers set them."""
    header: list[str] = []
    for number, (where, fields) in enumerate(_tsv_records(listing)):
        names = [name.strip().lower() for name in fields]
        if number == 0 and set(names) & set(FILE_KEYS) and set(names) & set(CAPTION_KEYS):
            header = names
            continue
        if not header:  # a second tab is part of the caption
            fields = [fields[0], "\t".join(fields[1:])] if len(fields) > 1 else fields
        columns = header or ["file", "caption"]
        if len(fields) != len(columns):
            raise UserError(
                f"{where}: needs {'a file, a tab and a caption' if not header else f'{len(header)} fields'}, and "
                f"has {len(fields)}: {' | '.join(fields)[:80]!r}; a field with a tab in it needs quotes"
            )
        file, text = (
            next(columns.index(key) for key in keys if key in columns) for keys in (FILE_KEYS, CAPTION_KEYS)
        )
        yield where, fields[file], [fields[text]]


def _tsv_records(listing: Path) -> Iterator[tuple[str, list[str]]]:
    """("FILE:NUMBER", fields) of each record that is not blank; the number is that of its first line."""
    lines, where = _numbered_lines(listing), ""

    def followed() -> Iterator[str]:
        """The lines, while `where` keeps the first of the record that is being read."""
        nonlocal where
        for place, line in lines:
            where = where or place
            yield line

    try:
        for fields in csv.reader(followed(), delimiter="\t", strict=True):
            if any("\t" in field and "\n" in field for field in fields):
                raise csv.Error("a field holds whole lines")
            if any(field.strip() for field in fields):
                yield where, fields
            where = ""
    except csv.Error as why:
        raise UserError(
            f"{where}: not a tab-separated line ({why}); a quote that begins a field has to end it, and those in "
            "between are doubled: write the file with a csv writer, or a captions.jsonl"
        ) from why
