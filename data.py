"""Paired samples: row i is one picture (or sound) and its captions, in the same order on every machine."""

import functools
import hashlib
import inspect
import itertools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

import features
from plumbing.commandline import Flags
from plumbing.errors import UserError
from sources.coco import open_coco
from sources.flowers102 import open_flowers102
from sources.folder import open_folder
from sources.huggingface import TEXT_COLUMNS, open_hf
from sources.index import indexed
from sources.media import DECODERS, Sound
from sources.opened import BROKEN, Opened, Read, Sample, Span, file_bytes, reason, say, spelled
from sources.rows import Column, Rows
from sources.text import open_text
from sources.toyworld import open_demo
from sources.unreadable import file_stamp, find_unreadable
from sources.webdataset import open_webdataset


def caption_choice(choice: str | int) -> str | int:
    """An argument type: which of a row's captions to use: "first", "all", or a number from 2 on. 1 is the first."""
    number = int(choice) if str(choice).isdecimal() else 0
    if choice not in ("first", "all") and number < 1:
        raise UserError(f"{choice!r} is no choice of captions: type first, all, or a number from 1 on")
    return choice if not number else number if number > 1 else "first"


# The function that opens each kind of data set; its parameters after `location` are the options of that kind.
OPENERS: dict[str, Callable[..., Opened]] = {
    "demo": open_demo,
    "coco": open_coco,
    "folder": open_folder,
    "flowers102": open_flowers102,
    "webdataset": open_webdataset,
    "text": open_text,
    "hf": open_hf,
}

CAPTIONS_ONLY = "--dataset text has captions only: use train_text.py"

# The command line's flags for the arguments of `open_pairs`, as argparse takes them.
FLAGS: Flags = {
    "--dataset": {"help": f"one of {', '.join(OPENERS)}:NAME"},
    "--data_root": {"help": "the data set's folder, a pattern of tar shards, or the file of captions (text)"},
    "--limit": {"type": int, "help": "take the first LIMIT rows only"},
    "--caption": {
        "type": caption_choice,
        "metavar": "N",
        "default": "first",
        "help": "which of a row's captions to use: first, 2 (the second), …, or all",
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


@dataclass(frozen=True)
class Pairs:
    """A data set of pairs; picklable and without open files, so that loader workers can share it.

    `read(place)` returns a picture or a file's bytes; `source` holds the arguments with which `open_pairs` opens
    the same rows again; `unreadable` lists the {"id", "path", "why"} of what `skip_unreadable` left out; `files`
    are the listings, annotations and tables that the rows were read from; `first_captions` are the rows' where
    `samples` hold other ones (`caption=2`).
    """

    name: str
    samples: Sequence[Sample]
    read: Read
    source: dict[str, Any] = field(default_factory=dict)
    unreadable: list[dict[str, str]] = field(default_factory=list)
    files: Sequence[str] = ()
    first_captions: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def ids(self) -> Sequence[str]:
        """The sample ids in row order."""
        return Column(self.samples, "id")

    @property
    def images(self) -> Sequence[str]:
        """The rows' files as a reader would name them, relative to `data_root`; "" where there are captions alone."""
        return Column(self.samples, "file")

    @property
    def captions(self) -> Sequence[list[str]]:
        """The rows' chosen captions: one each, or all of them with `caption="all"`."""
        return Column(self.samples, "captions")

    @functools.cached_property
    def fingerprint(self) -> str:
        """`features.fingerprint` of the ids and first captions: where it agrees, two runs have the same rows."""
        firsts = self.first_captions or Column(self.samples, "caption")
        return features.fingerprint(zip(self.ids, firsts, strict=True))

    def file_stamp(self) -> str:
        """sha256 over name, size and date (mtime_ns) of the files that hold the rows; their content is not read.

        Names are relative to `data_root`, so that a data set that was moved keeps its stamp. A data set of the hub
        is known by the files that it was stored in here.
        """
        listed = dict.fromkeys((os.path.basename(path), path) for path in self.files)
        holders = ((_holder(sample), sample.path) for sample in self.samples)
        rest = (holder for holder, _ in itertools.groupby(holders) if holder not in listed)
        state = hashlib.sha256()
        for name, path in itertools.chain(listed, rest):
            if path:
                state.update(f"{name} {file_stamp(path)}\n".encode(errors="backslashreplace"))
        return state.hexdigest()

    def image(self, row: int) -> Image.Image:
        """Row `row` as an upright RGB picture. Error: it cannot be read (names row, id and file)."""
        picture = self._content(row, "image")
        assert isinstance(picture, Image.Image)
        return picture

    def caption(self, row: int) -> str:
        """The chosen caption of row `row`; of all, the first."""
        return self.samples[row].caption

    def items(self, row: int, side: str) -> Sequence[str | Image.Image | Sound]:
        """Row `row` as an encoder takes it: one RGB "image", one "audio" recording, or the chosen captions ("text")."""
        if side == "text":
            return list(self.samples[row].captions)
        return [self._content(row, side)]

    def _content(self, row: int, side: str) -> Image.Image | Sound:
        sample = self.samples[row]
        if sample.side == "text":
            raise UserError(CAPTIONS_ONLY)
        if side != sample.side:
            raise UserError(
                f"row {row} (id {sample.id!r}): {sample.file} is of the kind {sample.side}, "
                f"and the encoder takes {side}"
            )
        try:
            return DECODERS[side](self.read(sample.place))
        except BROKEN as why:
            raise UserError(
                f"row {row} (id {sample.id!r}): cannot read {sample.file} ({reason(why)}); repair it, "
                "or leave unreadable items out of image and text runs alike with --skip_unreadable"
            ) from why


def _holder(sample: Sample) -> str:
    """The name of the file that holds a row: its own, or that of its tar."""
    return os.path.basename(sample.place.path) if isinstance(sample.place, Span) else sample.file


def open_pairs(
    dataset: str,
    data_root: str | None = None,
    limit: int | None = None,
    *,
    caption: str | int = "first",
    skip_unreadable: bool = False,
    unreadable: list[dict[str, str]] | None = None,
    **options: str | None,
) -> Pairs:
    """Open a data set by name: its pairs in a fixed order, the first `limit` of them.

    `data_root` is kept as typed in `source`, so that a project folder can move with its data. `caption` is "first",
    "all", or the number of one, from 1 on, that every row has to have. `skip_unreadable`
    decodes every item once and leaves out what fails; `unreadable`, an earlier list of it, is left out without
    looking. `options` are those of the data set's function in `OPENERS`; None is as if it was not given.
    Errors: an unknown data set, an option that it does not take, nothing found, no rows, an id twice, no such caption.
    """
    caption = caption_choice(caption)
    kind, location = _checked(dataset, data_root, limit)
    given = {name: value for name, value in options.items() if value is not None}
    _require_known(kind, given)
    opened = OPENERS[kind](location or data_root, **given)
    rows, lost = indexed(opened, dataset, data_root, sorted(given.items()))
    name, samples = spelled(opened.name), rows[:limit]
    if unreadable is None and skip_unreadable:
        unreadable = lost + find_unreadable(opened, samples)
        _say_left_out(name, unreadable)
    if unreadable is None:
        _require_present(opened.read, samples, lost)
    source = dict[str, object](dataset=dataset, data_root=opened.data_root, limit=limit, caption=caption)
    source |= given | ({} if unreadable is None else {"unreadable": unreadable})
    if unreadable:
        samples = samples.without(item["id"] for item in unreadable)
    if not samples:
        raise UserError(f"data set {dataset!r} at {opened.data_root} holds no readable file with a caption")
    if isinstance(caption, int):
        _require_captions(samples, caption)
    firsts = Column(samples.with_caption(0), "caption") if isinstance(caption, int) else ()
    chosen = (
        samples if caption == "all" else samples.with_caption(caption - 1 if isinstance(caption, int) else 0)
    )
    return Pairs(name, chosen, opened.read, source, unreadable or [], opened.files, firsts)


def reopen(run: features.Run, data_root: str | None = None) -> Pairs:
    """The rows of a recorded run; `data_root` says where the data set is now, if it has moved.

    Files of pictures that are gone are found missing when they are read, not here.
    """
    source = run.manifest["dataset"].get("source")
    if not source:
        raise UserError(f"run {run.name!r} does not name its samples, so there is nothing to show")
    arguments = dict(source)
    arguments.setdefault("unreadable", [])
    if data_root:
        arguments["data_root"] = data_root
    pairs = open_pairs(**arguments)
    if pairs.fingerprint != run.fingerprint:
        raise UserError(
            f"the data set of run {run.name!r} has changed since: {len(pairs)} samples now, {run.n_samples} then; "
            "name the old place with --data_root"
        )
    return pairs


def _say_left_out(name: str, unreadable: list[dict[str, str]]):
    if unreadable:
        first = unreadable[0]
        say(
            f"{name}: {len(unreadable)} unreadable items are left out, all listed in run.json; the first is "
            f"{first['path']} ({first['why']})"
        )


def _checked(dataset: str, data_root: str | None, limit: int | None) -> tuple[str, str]:
    """The data set's kind and, of hf:NAME, the name."""
    kind, _, location = dataset.partition(":")
    if kind not in OPENERS or bool(location) != (kind == "hf"):
        names = ", ".join(name if name != "hf" else "hf:NAME" for name in OPENERS)
        raise UserError(f"--dataset {dataset!r} is unknown; the data sets are: {names}")
    if kind in ("demo", "hf") and data_root is not None:
        raise UserError(f"--data_root {data_root!r} means nothing to data set {dataset!r}; leave it out")
    if limit is not None and limit < 1:
        raise UserError(f"--limit {limit} leaves no rows; type a number of at least 1")
    return kind, location


def _require_known(kind: str, options: dict[str, str]):
    known = [name for name in inspect.signature(OPENERS[kind]).parameters if name != "location"]
    for name in options:
        if name not in known:
            takes = ", ".join(f"--{other}" for other in known) or "no such option"
            raise UserError(f"--{name} means nothing to data set {kind!r}, which takes {takes}")


def _require_present(read: Read, samples: Sequence[Sample], lost: list[dict[str, str]]):
    """Refuse what is damaged, and files that do not exist, before anything is trained."""
    for item in lost:
        raise UserError(
            f"{item['path']}: {item['why']}; repair it, or leave out what is unreadable with --skip_unreadable"
        )
    for row, sample in enumerate(samples if read is file_bytes else ()):
        if not os.path.isfile(str(sample.path)):
            raise UserError(
                f"row {row} (id {sample.id!r}): {sample.path} does not exist; put it there, or leave out "
                "what is unreadable with --skip_unreadable"
            )


def _require_captions(samples: Rows, number: int):
    """Refuse rows with fewer captions than the number of the one that is asked for."""
    counts = [len(captions) for captions in Column(samples, "captions")]
    fewest = min(counts)
    for row, count in enumerate(counts if fewest < number else ()):
        if count < number:
            raise UserError(
                f"--caption {number}: row {row} (id {samples[row].id!r}) has {count} caption{'s' * (count > 1)}, and "
                f"every row needs as many; the highest that all rows have is --caption {fewest}"
            )
