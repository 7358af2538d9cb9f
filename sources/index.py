"""The rows of a data set in a file: written when it is first opened, mapped into memory from then on.

A million rows as Python objects are a gigabyte, which every process would build anew. The file lies in the user's
cache, one for each way to open a data set, and is written again when a file of the data set has another size or date.
"""

import array
import contextlib
import fcntl
import functools
import hashlib
import itertools
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from plumbing import files
from plumbing.errors import UserError
from sources.opened import Lost, Opened, Place, Sample, Span, say, spelled, writable
from sources.rows import BATCH_ROWS, COLUMNS, NAMES, About, Column, Found, Kept, Rows, find_kept, mapped
from sources.unreadable import file_stamp

if TYPE_CHECKING:  # elsewhere only where a data set is opened: importing them takes a while
    import pyarrow


def indexed(opened: Opened, *asked: object) -> tuple[Rows, list[dict[str, str]]]:
    """The rows of a data set that was `asked` for so, and the {"id", "path", "why"} of what cannot become one.

    The data set is read only where no index of its present state is kept. Error: an id twice.
    """
    kept = _where(opened, asked)
    found = find_kept(kept)
    if found is None:
        with _in_turn(kept):
            found = find_kept(kept) or _read(opened, kept)
    rows, about = found
    for line in about["said"]:
        say(line)
    return rows, about["lost"]


def _where(opened: Opened, asked: Sequence[object]) -> Kept | None:
    """Where the index of the data set's present state is kept; None where it cannot be.

    A data set of no file and no version (the hub's are of a version) cannot tell whether it has changed.
    """
    if not opened.files and not opened.version:
        return None
    # relative paths are in the index as they were typed, so that they mean something in the same folder only
    name = hashlib.sha256(repr((os.getcwd(), asked)).encode(errors="backslashreplace")).hexdigest()[:32]
    state = hashlib.sha256(f"{_code()} {opened.version}".encode())
    for path in opened.files:
        state.update(f"{path} {file_stamp(path)}\n".encode(errors="backslashreplace"))
    file = files.cache_folder() / f"rows-{name}.arrow"
    try:
        files.make_folder(file.parent)
        files.check_writable(file)
    except OSError:
        return None
    return Kept(file, state.hexdigest())


@functools.cache
def _code() -> str:
    """sha256 of this room's files: another version of them may read other rows."""
    return hashlib.sha256(
        b"".join(file.read_bytes() for file in sorted(Path(__file__).parent.glob("*.py")))
    ).hexdigest()


@contextlib.contextmanager
def _in_turn(kept: Kept | None) -> Iterator[None]:
    """One process writes indexes at a time, so that those beside it under torchrun read what it wrote."""
    if kept is None:
        yield
        return
    folder = os.open(kept.file.parent, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks: each writes the same
            fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _read(opened: Opened, kept: Kept | None) -> Found:
    """Read a data set, and keep its index."""
    with contextlib.ExitStack() as stack:
        file = kept.file if kept else Path(stack.enter_context(tempfile.TemporaryDirectory())) / "rows.arrow"
        try:
            with files.replacing(file) as temporary:
                _write(temporary, opened, kept.stamp if kept else "")
            table, about = mapped(file)  # stays mapped when the file is gone
        except OSError as error:
            if not files.is_full(error):
                raise
            raise UserError(
                f"the disk of {file.parent}/ is full, where the index of the data set is written: free some, or name "
                "another place with the environment variable XDG_CACHE_HOME"
            ) from error
        return Rows(table, kept), about


def _write(file: Path, opened: Opened, stamp: str):
    """Write the rows of a data set, their ids told apart where they repeat and can be. Error: an id twice."""
    about: About = {"stamp": stamp, "lost": [], "said": []}
    differ = _write_rows(file, _sorted_out(writable(opened.rows, spelled(opened.name)), about), about)
    if opened.apart is not None and not differ:
        again = file.with_name(f"{file.name}.again")
        try:
            differ = _write_rows(again, map(opened.apart, Rows(mapped(file)[0])), about)
            again.replace(file)
        finally:
            again.unlink(missing_ok=True)
    if not differ:
        _refuse_twice(Rows(mapped(file)[0]), opened.id_help)


def _sorted_out(rows: Iterable[Sample | Lost | str], about: About) -> Iterator[Sample]:
    """Yield the samples; add what else comes to `about`."""
    for row in rows:
        if isinstance(row, Sample):
            yield row
        elif isinstance(row, Lost):
            about["lost"].append(row._asdict())
        else:
            about["said"].append(row)


def _write_rows(file: Path, samples: Iterator[Sample], about: About) -> bool:
    """Write a batch of rows at a time, then `about`, which is whole once all rows are read.

    Returns whether all ids differ; the ids themselves would take a hundred bytes each, their hashes take eight.
    """
    import pyarrow

    schema, hashes = _schema(), array.array("q")
    with pyarrow.ipc.new_file(str(file), schema) as batches:
        while batch := list(itertools.islice(samples, BATCH_ROWS)):
            hashes.extend(hash(sample.id) for sample in batch)
            batches.write_batch(pyarrow.RecordBatch.from_arrays(_columns(batch, schema), schema=schema))
        nothing = pyarrow.RecordBatch.from_pylist([], schema)
        batches.write_batch(nothing, custom_metadata={"about": json.dumps(about)})
    return _differ(hashes) or _are_unique(Rows(mapped(file)[0]))


def _differ(hashes: array.array) -> bool:
    import numpy as np

    found = np.sort(np.frombuffer(hashes, np.int64))
    return bool((found[1:] != found[:-1]).all())


def _schema() -> "pyarrow.Schema":
    import pyarrow

    text, number = pyarrow.string(), pyarrow.int64()
    types = text, text, pyarrow.list_(text), pyarrow.binary(), number, number
    return pyarrow.schema(list(zip(COLUMNS, types, strict=True)))


def _columns(samples: list[Sample], schema: "pyarrow.Schema") -> "list[pyarrow.Array]":
    import pyarrow

    names, paths, captions, places = zip(*samples, strict=True)
    values = names, paths, captions, *zip(*map(_parts, places), strict=True)
    return [pyarrow.array(column, kind) for column, kind in zip(values, schema.types, strict=True)]


def _parts(place: Place) -> tuple[bytes | None, int | None, int | None]:
    """A place as path, offset and size; of a row that is known by its number, that is the offset."""
    if isinstance(place, Span):
        return place.path.encode(*NAMES), place.offset, place.size
    return (place.encode(*NAMES), None, None) if isinstance(place, str) else (None, place, None)


def _are_unique(rows: Rows) -> bool:
    from pyarrow import compute

    return compute.count_distinct(rows.table["id"]).as_py() == len(rows)


def _refuse_twice(rows: Rows, help: str):
    first: dict[str, int] = {}
    for row, name in enumerate(Column(rows, "id")):
        if first.setdefault(name, row) != row:
            raise UserError(f"id {name!r} occurs twice, in rows {first[name]} and {row}; {help}")
