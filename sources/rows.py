"""The rows of a data set as a sequence over a file that is mapped into memory (index.py writes it)."""

import json
import operator
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, SupportsIndex, TypedDict, overload

from plumbing.errors import UserError
from sources.opened import Place, Sample, Span

if TYPE_CHECKING:  # elsewhere only where a data set is opened: importing them takes a while
    import numpy as np
    import pyarrow

BATCH_ROWS = 16_384  # that are written, or turned into Python objects, at once

NAMES = ("utf-8", "surrogatepass")  # how paths are written: those of other encodings hold surrogates

COLUMNS = ("id", "file", "captions", "path", "offset", "size")  # the last three are `Sample.place`


class Kept(NamedTuple):
    """An index that lies in a file, and which state of the data set it is of."""

    file: Path
    stamp: str


class About(TypedDict):
    """What an index says besides its rows."""

    stamp: str  # of the state of the data set
    lost: list[dict[str, str]]
    said: list[str]  # lines for the user


class Rows(Sequence[Sample]):
    """Rows of an index; a `Sample` is made when it is asked for, and a slice is a view.

    Pickled, they are the index's name where it lies in a file: no process copies the rows to another.
    `caption` is the number of the one caption that a sample has, from 0; None: all of them.
    """

    def __init__(
        self,
        table: "pyarrow.Table",
        kept: Kept | None = None,
        chosen: "range | np.ndarray | None" = None,
        caption: int | None = None,
    ):
        self.table, self.kept, self.caption = table, kept, caption
        self.chosen = range(len(table)) if chosen is None else chosen
        self._columns = table.columns

    def __len__(self) -> int:
        return len(self.chosen)

    @overload
    def __getitem__(self, row: SupportsIndex) -> Sample: ...
    @overload
    def __getitem__(self, row: slice) -> "Rows": ...
    def __getitem__(self, row: SupportsIndex | slice) -> "Sample | Rows":
        if isinstance(row, slice):
            return Rows(self.table, self.kept, self.chosen[row], self.caption)
        number = int(self.chosen[row])
        return self._sample(*(column[number].as_py() for column in self._columns))

    def __iter__(self) -> Iterator[Sample]:
        import pyarrow

        for start in range(0, len(self), BATCH_ROWS):
            chosen = self.chosen[start : start + BATCH_ROWS]
            if isinstance(chosen, range) and chosen.step == 1:  # no copy
                batch = self.table.slice(chosen.start, len(chosen))
            else:
                batch = self.table.take(pyarrow.array(chosen))
            yield from map(self._sample, *(column.to_pylist() for column in batch.columns))

    def _sample(
        self,
        name: str,
        file: str,
        captions: list[str],
        path: bytes | None,
        offset: int | None,
        size: int | None,
    ) -> Sample:
        chosen = captions if self.caption is None else captions[self.caption : self.caption + 1]
        return Sample(name, file, chosen, _place(path, offset, size))

    def with_caption(self, caption: int | None) -> "Rows":
        """The same rows with one caption, of which this is the number from 0, or with all (None)."""
        return Rows(self.table, self.kept, self.chosen, caption)

    def without(self, ids: Iterable[str]) -> "Rows":
        """The other rows."""
        import numpy as np
        import pyarrow
        from pyarrow import compute

        left_out = compute.is_in(self.table["id"], pyarrow.array(list(ids), pyarrow.string())).to_numpy()
        chosen = np.asarray(self.chosen)
        return Rows(self.table, self.kept, chosen[~left_out[chosen]], self.caption)

    def __reduce__(self):
        if self.kept is None:
            return Rows, (self.table, None, self.chosen, self.caption)
        return _again, (self.kept, self.chosen, self.caption)


def _again(kept: Kept, chosen: "range | np.ndarray", caption: int | None) -> Rows:
    """What was pickled. Error: the data set has been opened anew, in another state."""
    found = find_kept(kept)
    if found is None:
        raise UserError(
            f"{kept.file} has been written again, since the data set has changed: repeat the command"
        )
    return Rows(found[0].table, kept, chosen, caption)


class Column(Sequence):
    """One field of the samples, a value a row, made when it is asked for. Equal to any sequence of the same values."""

    def __init__(self, samples: Sequence[Sample], field: str):
        self.samples, self.field = samples, field

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, row: SupportsIndex | slice) -> Any:
        if isinstance(row, slice):
            return Column(self.samples[row], self.field)
        return getattr(self.samples[operator.index(row)], self.field)

    def __iter__(self) -> Iterator:
        return (getattr(sample, self.field) for sample in self.samples)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or len(self) != len(other):
            return False
        return all(one == another for one, another in zip(self, other, strict=True))

    __hash__ = None

    def __repr__(self) -> str:
        return f"<{self.field} of {len(self)} rows>"


Found = tuple[Rows, About]


def find_kept(kept: Kept | None) -> Found | None:
    """The index in a file; None where there is none, or of another state, or a damaged one."""
    if kept is None or not kept.file.exists():
        return None
    try:
        table, about = mapped(kept.file)
        return (Rows(table, kept), about) if about["stamp"] == kept.stamp else None
    except (OSError, ValueError, KeyError, TypeError):  # pyarrow's errors are among them
        return None


def mapped(file: Path) -> "tuple[pyarrow.Table, About]":
    """The table of an index, mapped into memory, and what its last batch says of it."""
    import pyarrow

    with pyarrow.ipc.open_file(pyarrow.memory_map(str(file))) as batches:
        _, said = batches.get_batch_with_custom_metadata(batches.num_record_batches - 1)
        table = batches.read_all()
    table.validate(full=True)
    return table, json.loads(said[b"about"])


def _place(path: bytes | None, offset: int | None, size: int | None) -> Place:
    """The place of which these are the parts."""
    if path is None:
        assert offset is not None  # the number of the row
        return offset
    name = path.decode(*NAMES)
    return name if offset is None or size is None else Span(name, offset, size)
