"""`samples.jsonl`, a line a row of a run: {"id", "image", "caption"}, and columns of the user's; written and read as a stream.

The image is "" where there are captions alone. The caption is the one that the run was given; of all, the first.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, overload

from plumbing import files
from plumbing.errors import UserError

if TYPE_CHECKING:  # elsewhere only where samples are read: importing it takes a while
    import numpy as np
    import pyarrow

NAME = "samples.jsonl"

COLUMNS = ("id", "image", "caption")

PIECE_BYTES = 1 << 20  # that are parsed at once, up to the end of a line


class Texts(Sequence[str]):
    """A text a row, held as one long text in `column` (pyarrow): a string object each would take twice the memory."""

    def __init__(self, column: "pyarrow.ChunkedArray"):
        self.column = column

    @classmethod
    def of(cls, texts: Iterable[str]) -> "Texts":
        import pyarrow

        return cls(pyarrow.chunked_array([pyarrow.array(texts, pyarrow.large_string())]))

    def __len__(self) -> int:
        return len(self.column)

    def __iter__(self) -> Iterator[str]:
        for chunk in self.column.chunks:
            yield from chunk.to_pylist()

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> list[str]: ...
    def __getitem__(self, row: int | slice) -> str | list[str]:
        found = self.column[row]
        return found.to_pylist() if isinstance(row, slice) else found.as_py()

    def __add__(self, other: "Texts") -> "Texts":
        import pyarrow

        chunks = [*self.column.chunks, *other.column.chunks]
        return Texts(pyarrow.chunked_array(chunks, self.column.type))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Texts) and self.column.equals(other.column)

    __hash__ = None

    def lowered(self) -> "Texts":
        """In lower case, without the white space at both ends."""
        import pyarrow.compute as compute

        is_ascii = all(letters.max(initial=0) < 128 for letters, _ in self.buffers())
        lower = compute.ascii_lower if is_ascii else compute.utf8_lower  # gives the same, sooner
        return Texts(lower(compute.utf8_trim_whitespace(self.column)))

    def encoded(self) -> "Iterator[bytes]":
        """The texts in UTF-8."""
        for chunk in self.column.chunks:
            yield from chunk.cast("large_binary").to_pylist()

    def buffers(self) -> "Iterator[tuple[np.ndarray, np.ndarray]]":
        """The texts in UTF-8, some at a time, behind each other, uint8 [byte], and where each starts and ends."""
        import numpy as np

        for chunk in self.column.chunks:
            _, starts, held = chunk.buffers()
            edges = np.frombuffer(starts, np.int64, len(chunk) + 1, 8 * chunk.offset)
            yield np.frombuffer(held or b"", np.uint8), edges

    def lengths(self) -> "np.ndarray":
        """The bytes of each text, int [row]."""
        import pyarrow.compute as compute

        return _to_numpy(compute.binary_length(self.column).chunks)

    def numbered(self) -> "tuple[np.ndarray, Texts]":
        """The number of each row's text among the distinct ones, int [row], and these, by first appearance."""
        import pyarrow

        encoded = self.column.dictionary_encode().chunks
        distinct = pyarrow.chunked_array([chunk.dictionary for chunk in encoded[-1:]], self.column.type)
        return _to_numpy([chunk.indices for chunk in encoded]), Texts(distinct)


@dataclass(frozen=True)
class Samples:
    """The samples of a run, a text a row; `len()` of them is the number of rows. `file` is where they were read."""

    ids: Texts
    images: Texts
    captions: Texts
    file: Path | None = field(default=None, compare=False)

    @staticmethod
    def none() -> "Samples":
        """Those of a run that names none."""
        return Samples(Texts.of([]), Texts.of([]), Texts.of([]))

    def __len__(self) -> int:
        return len(self.ids)

    def columns(self) -> list[str]:
        """The columns that all rows have, the user's own too."""
        columns = None
        for row in self._rows():
            columns = dict.fromkeys(row) if columns is None else {key: None for key in columns if key in row}
        return list(columns or ())

    def column(self, name: str) -> Texts:
        """One of `columns()` as texts."""
        return Texts.of(str(row[name]) for row in self._rows())

    def _rows(self) -> Iterator[dict[str, object]]:
        if self.file is not None:
            with self.file.open(encoding="utf-8", newline="\n") as lines:
                yield from (json.loads(line) for line in lines if line.strip())


def read(path: Path, n_samples: int) -> Samples:
    """The samples of the run in a folder. Error: they are not told, or not so many."""
    import pyarrow

    return _samples(pyarrow.Table.from_batches(list(_batches(path, n_samples)), _schema()), path)


def blocks(path: Path, n_samples: int) -> Iterator[Samples]:
    """The same, some rows at a time."""
    import pyarrow

    for batch in _batches(path, n_samples):
        yield _samples(pyarrow.Table.from_batches([batch]), path)


def _samples(table: "pyarrow.Table", path: Path) -> Samples:
    return Samples(*(Texts(table[name]) for name in COLUMNS), file=path / NAME)


def _batches(path: Path, n_samples: int) -> "Iterator[pyarrow.RecordBatch]":
    import pyarrow

    file, n_rows = path / NAME, 0
    try:
        for batch in _parsed(file):
            batch.validate(full=True)
            n_rows += len(batch)
            if n_rows > n_samples or any(column.null_count for column in batch.columns):
                break
            yield batch
        else:
            if n_rows == n_samples:
                return
    except (FileNotFoundError, pyarrow.ArrowInvalid):
        pass  # said below
    raise UserError(
        f"run {path.name!r} does not tell which {n_samples} samples it is of: {file} is missing or damaged; put the "
        "file back, or record the run again with --overwrite"
    )


def _schema() -> "pyarrow.Schema":
    import pyarrow

    return pyarrow.schema([(name, pyarrow.large_string()) for name in COLUMNS])


def _parsed(file: Path) -> "Iterator[pyarrow.RecordBatch]":
    """Parsed piece by piece, since a stream of pyarrow's holds a dozen pieces at once and no line longer than one."""
    import pyarrow
    from pyarrow import json as parser

    wanted = parser.ParseOptions(explicit_schema=_schema(), unexpected_field_behavior="ignore")
    with file.open("rb") as lines:
        while piece := lines.read(PIECE_BYTES) + lines.readline():
            if piece.strip():
                at_once = parser.ReadOptions(use_threads=False, block_size=len(piece) + 1)
                with parser.open_json(pyarrow.BufferReader(piece), at_once, wanted) as found:
                    yield from found


def _to_numpy(chunks: "list[pyarrow.Array]") -> "np.ndarray":
    """Whole numbers; pyarrow's own way imports pandas."""
    import numpy as np

    return np.concatenate([np.empty(0, np.int64), *map(np.from_dlpack, chunks)])


def write(path: Path, rows: Iterable[Mapping[str, str]]):
    """Write the rows, each with `id`, `image` and `caption`, into the folder of a run."""
    with files.replacing(path / NAME) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
