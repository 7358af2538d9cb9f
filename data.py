"""Paired samples: row i is one picture (or sound) and its captions, in the same order on every machine."""

import functools
import hashlib
import inspect
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from plumbing.errors import UserError
from sources.coco import open_coco
from sources.flowers102 import open_flowers102
from sources.folder import open_folder
from sources.huggingface import TEXT_COLUMNS, open_hf
from sources.media import DECODERS, _side
from sources.opened import BROKEN, Opened, Sample, _file_bytes, _reason, _say
from sources.toyworld import open_demo
from sources.unreadable import _stamp, _unreadable
from sources.webdataset import Span, open_webdataset


@dataclass(frozen=True)
class Pairs:
    """A data set of pairs; picklable and without open files, so that loader workers can share it.

    `read(place)` gives a picture or a file's bytes; `source` holds the arguments with which `open_pairs`
    opens the same rows again; `unreadable` lists the {"id", "path", "why"} that `skip_unreadable` left out;
    `files` are the listings, annotations and tables that the rows were read from.
    """

    name: str
    samples: list[Sample]
    read: Callable[[Any], Any]
    source: dict[str, Any] = field(default_factory=dict)
    unreadable: list[dict[str, str]] = field(default_factory=list)
    files: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.samples)

    @functools.cached_property
    def ids(self) -> list[str]:
        """The sample ids in row order."""
        return [sample.id for sample in self.samples]

    @property
    def images(self) -> list[str]:
        """The rows' files as a reader would name them: relative to `data_root`."""
        return [sample.file for sample in self.samples]

    @property
    def captions(self) -> list[list[str]]:
        """The rows' chosen captions: one each, or all of them with `caption="all"`."""
        return [sample.captions for sample in self.samples]

    @functools.cached_property
    def fingerprint(self) -> str:
        """`features.fingerprint` of the ids and first captions: where it agrees, two runs have the same rows."""
        import features  # here, since it imports numpy, which takes as long as all of `--help` may

        return features.fingerprint((sample.id, sample.captions[0]) for sample in self.samples)

    def file_stamp(self) -> str:
        """sha256 over name, size and date (mtime_ns) of the files that hold the rows, whose content is not read.

        Names are relative to `data_root`, so that a data set that was moved keeps its stamp. One look a file:
        one a picture, or a shard. What is only on the hub is known by the files that it was stored in here.
        """
        named = dict.fromkeys((os.path.basename(path), path) for path in self.files)
        named |= dict.fromkeys((_stamped(sample)) for sample in self.samples)
        lines = (f"{name} {_stamp(path)}\n" for name, path in named if path)
        return hashlib.sha256("".join(lines).encode(errors="backslashreplace")).hexdigest()

    def image(self, row: int) -> Image.Image:
        """Row `row` as an upright RGB picture. Error: it cannot be read (names row, id and file)."""
        return self._content(row, "image")

    def caption(self, row: int) -> str:
        """The first caption of row `row`."""
        return self.samples[row].captions[0]

    def items(self, row: int, side: str) -> list[Any]:
        """Row `row` as an encoder of that side takes it.

        "image": one RGB picture; "text": the chosen captions; "audio": one pair of a mono float32 array
        [frame] in -1..1 and the sampling rate in Hz at which it was recorded.
        """
        if side == "text":
            return list(self.samples[row].captions)
        return [self._content(row, side)]

    def _content(self, row: int, side: str) -> Any:
        sample = self.samples[row]
        if side != _side(sample):
            raise UserError(
                f"row {row} (id {sample.id!r}): {sample.file} is of the kind {_side(sample)}, "
                f"and the encoder takes {side}"
            )
        try:
            return DECODERS[side](self.read(sample.place))
        except BROKEN as why:
            raise UserError(
                f"row {row} (id {sample.id!r}): cannot read {sample.file} ({_reason(why)}); repair it, "
                "or leave unreadable items out of image and text runs alike with --skip_unreadable"
            ) from why


def _stamped(sample: Sample) -> tuple[str, str | None]:
    """The name and the path of the file that holds a row; no path where `Pairs.files` has it."""
    if isinstance(sample.place, Span):
        return os.path.basename(sample.place.path), sample.place.path
    return sample.file, sample.place if isinstance(sample.place, str) else None


def open_pairs(
    dataset: str,
    data_root: str | None = None,
    limit: int | None = None,
    *,
    caption: str = "first",
    skip_unreadable: bool = False,
    unreadable: list[dict[str, str]] | None = None,
    **options: str | None,
) -> Pairs:
    """Open a data set by name: its pairs in a fixed order, the first `limit` of them.

    `data_root` is kept as typed in `source`, so that a project folder can move with its data.
    `skip_unreadable` decodes every item once and leaves out what fails; `unreadable`, the outcome of an
    earlier scan, does the same without looking. `options` are those of the data set's opening function below.
    Errors: an unknown data set, an option that it does not take, nothing found, no rows, an id twice.
    """
    kind, location = _checked(dataset, data_root, limit, caption)
    options = {name: value for name, value in options.items() if value is not None}
    _require_known(kind, options)
    opened = _written(OPENERS[kind](location or data_root, **options))
    _require_unique(opened.samples)
    source = {"dataset": dataset, "data_root": opened.data_root, "limit": limit, "caption": caption} | options
    samples = opened.samples[:limit]
    if skip_unreadable or unreadable is not None:
        if unreadable is None:
            unreadable = _unreadable(opened, samples)
            _say_left_out(opened.name, unreadable)
        source["unreadable"] = unreadable
    else:
        _require_present(opened, samples)
    samples = _chosen(samples, unreadable or [], caption)
    if not samples:
        raise UserError(f"data set {dataset!r} at {opened.data_root} holds no readable file with a caption")
    return Pairs(opened.name, samples, opened.read, source, unreadable or [], opened.files)


def reopen(run: Any, data_root: str | None = None) -> Pairs:
    """The data set of a recorded `features.Run` at its rows; `data_root` says where it is, if it has moved."""
    source = run.manifest["dataset"].get("source")
    if not source:
        raise UserError(f"run {run.name!r} does not name its samples, so there is nothing to show")
    pairs = open_pairs(**(source | ({"data_root": data_root} if data_root else {})))
    if pairs.fingerprint != run.fingerprint:
        raise UserError(
            f"the data set of run {run.name!r} has changed since: {len(pairs)} samples now, {run.n_samples} then; "
            "name the old place with --data_root"
        )
    return pairs


HALVES = "[\ud800-\udfff]"  # of characters (surrogates): they cannot be written as UTF-8


def _written(opened: Opened) -> Opened:
    """With texts that can be written as UTF-8, which happens hours later, and without byte order marks.

    Halves of characters come from names of files in other encodings and from cut JSON. In names they are spelled
    out as \\udce9, so that names stay apart; in captions they become U+FFFD, which is said.
    """
    mended = 0
    samples = []
    for sample in opened.samples:
        captions = [text.strip().removeprefix("\ufeff").strip() for text in sample.captions]
        if not _is_utf8("".join([sample.id, sample.file, *captions])):
            whole = [re.sub(HALVES, "\ufffd", text) for text in captions]
            mended += whole != captions
            sample = sample._replace(id=_spelled(sample.id), file=_spelled(sample.file))
            captions = whole
        samples.append(sample._replace(captions=captions))
    if mended:
        _say(f"{opened.name}: captions of {mended} rows hold halves of characters, which become \ufffd")
    damaged = [{key: _spelled(text) for key, text in item.items()} for item in opened.damaged]
    return opened._replace(name=_spelled(opened.name), samples=samples, damaged=damaged)


def _is_utf8(text: str) -> bool:
    return text.isascii() or not re.search(HALVES, text)


def _spelled(text: str) -> str:
    return text.encode(errors="backslashreplace").decode()


def _say_left_out(name: str, unreadable: list[dict[str, str]]):
    if unreadable:
        first = unreadable[0]
        _say(
            f"{name}: {len(unreadable)} unreadable items are left out, all listed in run.json; the first is "
            f"{first['path']} ({first['why']})"
        )


def _checked(dataset: str, data_root: str | None, limit: int | None, caption: str) -> tuple[str, str]:
    """The data set's kind and, of hf:NAME, the name."""
    kind, _, location = dataset.partition(":")
    if kind not in OPENERS or bool(location) != (kind == "hf"):
        names = ", ".join(name if name != "hf" else "hf:NAME" for name in OPENERS)
        raise UserError(f"--dataset {dataset!r} is unknown; the data sets are: {names}")
    if kind in ("demo", "hf") and data_root is not None:
        raise UserError(f"--data_root {data_root!r} means nothing to data set {dataset!r}; leave it out")
    if caption not in ("first", "all"):
        raise UserError(f"--caption {caption!r} is unknown; type first or all")
    if limit is not None and limit < 1:
        raise UserError(f"--limit {limit} leaves no rows; type a number of at least 1")
    return kind, location


def _require_known(kind: str, options: dict[str, Any]):
    known = [name for name in inspect.signature(OPENERS[kind]).parameters if name != "location"]
    for name in options:
        if name not in known:
            takes = ", ".join(f"--{other}" for other in known) or "no such option"
            raise UserError(f"--{name} means nothing to data set {kind!r}, which takes {takes}")


def _require_unique(samples: list[Sample]):
    rows: dict[str, int] = {}
    for row, sample in enumerate(samples):
        if rows.setdefault(sample.id, row) != row:
            raise UserError(
                f"id {sample.id!r} occurs twice, in rows {rows[sample.id]} and {row}; every row needs its own"
            )


def _require_present(opened: Opened, samples: list[Sample]):
    """Refuse damaged containers and files that do not exist before anything is trained."""
    for item in opened.damaged:
        raise UserError(
            f"{item['path']}: {item['why']}; repair it, or go on without the rest by --skip_unreadable"
        )
    for row, sample in enumerate(samples if opened.read is _file_bytes else ()):
        if not os.path.isfile(sample.place):
            raise UserError(
                f"row {row} (id {sample.id!r}): {sample.place} does not exist; put it there, or leave out "
                "what is unreadable with --skip_unreadable"
            )


def _chosen(samples: list[Sample], unreadable: list[dict[str, str]], caption: str) -> list[Sample]:
    left_out = {item["id"] for item in unreadable}
    samples = [sample for sample in samples if sample.id not in left_out]
    if caption == "first":
        samples = [sample._replace(captions=sample.captions[:1]) for sample in samples]
    return samples


OPENERS = {
    "demo": open_demo,
    "coco": open_coco,
    "folder": open_folder,
    "flowers102": open_flowers102,
    "webdataset": open_webdataset,
    "hf": open_hf,
}

# The command line's flags for the arguments of `open_pairs`, as argparse takes them.
FLAGS: dict[str, dict[str, Any]] = {
    "--dataset": {"help": f"one of {', '.join(OPENERS)}:NAME"},
    "--data_root": {"help": "the data set's folder, or a pattern of tar shards"},
    "--limit": {"type": int, "help": "take the first LIMIT rows only"},
    "--caption": {
        "choices": ("first", "all"),
        "default": "first",
        "help": "which of a row's captions to use",
    },
    "--skip_unreadable": {
        "action": "store_true",
        "help": "find unreadable items once, list them, leave them out",
    },
    "--split": {"help": "coco: train2017 or val2017; hf: the split's name, or train[:1000]"},
    "--subset": {"help": "hf: the configuration, where there are several"},
    "--image_column": {"help": "hf: the column of pictures (image)"},
    "--text_column": {"help": f"hf: the column of captions (the first of {', '.join(TEXT_COLUMNS)})"},
    "--id_column": {"help": "hf: the column of ids (id), or none to number the rows"},
}
