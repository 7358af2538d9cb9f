"""Data sets of the Hugging Face hub, of a local folder, or of one file."""

import functools
import glob
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from plumbing.errors import UserError
from plumbing.hub import answer_of
from sources.opened import Opened, Sample, file_bytes, files_below, reason, texts, without_caption

if TYPE_CHECKING:  # imported where a data set is opened: the import is slow
    import datasets

Table: TypeAlias = "datasets.Dataset"

Tables: TypeAlias = "datasets.DatasetDict"  # {split: table}

NUMBERED = "--id_column none numbers the rows"

BATCH_ROWS = 1000  # that are read at once

TEXT_COLUMNS = ("caption", "captions", "text", "texts", "sentences")


def open_hf(
    location: str,
    split: str | None = None,
    subset: str | None = None,
    image_column: str = "image",
    text_column: str | None = None,
    id_column: str | None = None,
) -> Opened:
    """Any Hugging Face data set of pictures and texts, from the hub or a local folder or file.

    `location` is a name on the hub, a folder that `load_dataset` reads or `save_to_disk` wrote, or a .parquet,
    .arrow, .jsonl, .csv or .tsv file. Rows keep their order. Ids come from `id_column` (by default "id" where there
    is one; "none" numbers the rows). UserError: it cannot be opened, has several splits, or lacks a column.
    """
    dataset = _one_split(load(location, subset, split), location)
    columns = dataset.column_names
    text_column = text_column or next((name for name in TEXT_COLUMNS if name in columns), TEXT_COLUMNS[0])
    id_column = id_column or ("id" if "id" in columns else "none")
    _require_column(location, columns, image_column, "image")
    _require_column(location, columns, text_column, "text")
    if id_column != "none":
        _require_column(location, columns, id_column, "id")
    read = functools.partial(_bytes, _undecoded(dataset, image_column, location), image_column)
    rows = _rows(dataset, location, image_column, text_column, None if id_column == "none" else id_column)
    name = Path(location).stem if Path(location).is_file() else Path(location).name
    files = files_below(location) + [file["filename"] for file in dataset.cache_files]
    return Opened(name, rows, read, None, version=dataset._fingerprint, files=files, id_help=NUMBERED)


def _rows(
    dataset: Table, location: str, image_column: str, text_column: str, id_column: str | None
) -> Iterator[Sample | str]:
    ids = map(str, itertools.count()) if id_column is None else _ids(dataset, id_column, location)
    used = 0
    for row, (name, captions) in enumerate(zip(ids, _captions(dataset, text_column, location), strict=False)):
        if captions:
            used += 1
            yield Sample(name, f"{image_column} {row}", captions, row)
    yield from without_caption("hf", "rows", len(dataset), used)


def load(name: str, subset: str | None, split: str | None) -> "Table | Tables":
    """The data set, or its splits by name, as the library `datasets` reads it. UserError: it cannot read it."""
    import datasets

    path = Path(name)
    saved = (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()
    if path.is_dir() and not saved and glob.escape(name) != name:
        raise UserError(f"{name!r}: in a folder whose name holds [, * or ? no file is found; rename it")
    try:
        if saved:
            return _of_split(datasets.load_from_disk(name), split)
        if path.is_file():
            reader, options = _reader(path)
            return datasets.load_dataset(reader, data_files=glob.escape(name), split=split, **options)
        return datasets.load_dataset(name, subset, split=split)
    except (OSError, ValueError, KeyError, RuntimeError, datasets.exceptions.DatasetsError) as why:
        raise UserError(
            f"Hugging Face data set {name!r} (subset {subset}, split {split}) cannot be opened "
            f"({answer_of(why) or reason(why)[:300]}); check the name, --subset and --split, or fetch it where there is "
            "a network"
        ) from why


def _reader(path: Path) -> tuple[str, dict[str, Any]]:
    """The reader's name in `datasets` for a file's suffix, and its options: "NA" and "None" stay captions."""
    tables = {".csv": {"keep_default_na": False}, ".tsv": {"keep_default_na": False, "sep": "\t"}}
    readers = {".parquet": "parquet", ".arrow": "arrow", ".jsonl": "json"} | dict.fromkeys(tables, "csv")
    if path.suffix not in readers:
        raise UserError(f"{str(path)!r} is of no kind that hf: reads; name a folder, or {', '.join(readers)}")
    return readers[path.suffix], tables.get(path.suffix, {})


def _of_split(saved: "Table | Tables", split: str | None) -> "Table | Tables":
    """The rows of a saved data set that `split` names, as in train, train[:1000], train[10%:]+test. Error: ValueError."""
    import datasets

    if split is None:
        return saved
    parts = saved if isinstance(saved, datasets.DatasetDict) else {str(saved.split or "train"): saved}
    lengths = {str(name): len(rows) for name, rows in parts.items()}
    spans = datasets.ReadInstruction.from_spec(split).to_absolute(lengths)
    return datasets.concatenate_datasets(
        [parts[span.splitname].select(range(span.from_ or 0, span.to or 0)) for span in spans]
    )


def _one_split(loaded: "Table | Tables", name: str) -> Table:
    """The only split that there is. UserError: there are several, so `--split` has to choose."""
    import datasets

    if isinstance(loaded, datasets.Dataset):
        return loaded
    if len(loaded) > 1:
        raise UserError(
            f"{name!r} has several splits; type --split with one of: {', '.join(map(str, loaded))}"
        )
    return next(iter(loaded.values()))


def _require_column(name: str, columns: list[str], column: str, role: str):
    """UserError where a column is not there; `role` ("image", "text", "id") names the flag that sets it."""
    if column not in columns:
        raise UserError(
            f"{name!r} has no column {column!r}; its columns are: {', '.join(columns)}; "
            f"type --{role}_column with the {role}'s"
        )


def _ids(dataset: Table, column: str, name: str) -> Iterator[str]:
    for row, found in enumerate(_column(dataset, column, name)):
        if found is None:
            raise UserError(f"row {row} of column {column!r} of {name!r} has no id; {NUMBERED}")
        yield str(found)


def _column(dataset: Table, column: str, name: str) -> Iterator:
    import datasets

    try:
        alone = dataset.select_columns([column])
        assert isinstance(alone, datasets.Dataset)
        for batch in alone.iter(BATCH_ROWS):
            yield from dict(batch)[column]
    except ValueError as why:  # Arrow does not check that its texts are UTF-8
        raise UserError(f"column {column!r} of {name!r} cannot be read ({reason(why)})") from why


def _captions(dataset: Table, column: str, name: str) -> Iterator[list[str] | None]:
    for row, value in enumerate(_column(dataset, column, name)):
        captions = texts(value)
        if captions is None and value is not None:
            raise UserError(
                f"row {row} of column {column!r} of {name!r} is no text; type --text_column with the text's"
            )
        yield captions


def _undecoded(dataset: Table, column: str, name: str) -> Table:
    """The picture column as encoded bytes: media.py decodes them, as it does those of every other data set."""
    import datasets

    kind, pictures = dataset.features[column], dataset.select_columns([column])
    assert isinstance(pictures, datasets.Dataset)
    if isinstance(kind, datasets.Image):
        return pictures.cast_column(column, datasets.Image(decode=False))
    binary = ("binary", "large_binary")
    if getattr(kind, "dtype", None) not in binary and not (isinstance(kind, dict) and "bytes" in kind):
        raise UserError(
            f"column {column!r} of {name!r} holds {kind}, not pictures; type --image_column with theirs"
        )
    return pictures


def _bytes(dataset: Table, column: str, row: int) -> bytes:
    """One row's picture file. ValueError: the row has no picture."""
    content = dataset[row][column]
    if isinstance(content, dict):
        content = file_bytes(content["path"]) if content["bytes"] is None else content["bytes"]
    if content is None:
        raise ValueError("the row has no picture")
    return content
