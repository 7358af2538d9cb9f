"""Paired samples: row i is one picture (or sound) and its captions, in the same order on every machine."""

import functools
import hashlib
import inspect
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
from sources.media import DECODERS, Sound
from sources.opened import BROKEN, Opened, Read, Sample, Span, file_bytes, reason, say, writable
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
    samples: list[Sample]
    read: Read
    source: dict[str, Any] = field(default_factory=dict)
    unreadable: list[dict[str, str]] = field(default_factory=list)
    files: Sequence[str] = ()
    first_captions: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.samples)

    @functools.cached_property
    def ids(self) -> list[str]:
        """The sample ids in row order."""
        return [sample.id for sample in self.samples]

    @property
    def images(self) -> list[str]:
        """The rows' files as a reader would name them, relative to `data_root`; "" where there are captions alone."""
        return [sample.file for sample in self.samples]

    @property
    def captions(self) -> list[list[str]]:
        """The rows' chosen captions: one each, or all of them with `caption="all"`."""
        return [sample.captions for sample in self.samples]

    @functools.cached_property
    def fingerprint(self) -> str:
        """`features.fingerprint` of the ids and first captions: where it agrees, two runs have the same rows."""
        firsts = self.first_captions or map(self.caption, range(len(self)))
        return features.fingerprint(zip(self.ids, firsts, strict=True))

    def file_stamp(self) -> str:
        """sha256 over name, size and date (mtime_ns) of the files that hold the rows; their content is not read.

        Names are relative to `data_root`, so that a data set that was moved keeps its stamp. A data set of the hub
        is known by the files that it was stored in here.
        """
        named = dict.fromkeys((os.path.basename(path), path) for path in self.files)
        named |= dict.fromkeys((_holder(sample), sample.path) for sample in self.samples)
        lines = (f"{name} {file_stamp(path)}\n" for name, path in named if path)
        return hashlib.sha256("".join(lines).encode(errors="backslashreplace")).hexdigest()

    def image(self, row: int) -> Image.Image:
        """Row `row` as an upright RGB picture. Error: it cannot be read (names row, id and file)."""
        picture = self._content(row, "image")
        assert isinstance(picture, Image.Image)
        return picture

    def caption(self, row: int) -> str:
        """The chosen caption of row `row`; of all, the first."""
        return self.samples[row].captions[0]

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
    opened = writable(OPENERS[kind](location or data_root, **given))
    _require_unique(opened.samples)
    samples = opened.samples[:limit]
    if unreadable is None and skip_unreadable:
        unreadable = find_unreadable(opened, samples)
        _say_left_out(opened.name, unreadable)
    if unreadable is None:
        _require_present(opened, samples)
    source = dict[str, object](dataset=dataset, data_root=opened.data_root, limit=limit, caption=caption)
    source |= given | ({} if unreadable is None else {"unreadable": unreadable})
    left_out = {item["id"] for item in unreadable or []}
    samples = [sample for sample in samples if sample.id not in left_out]
    if not samples:
        raise UserError(f"data set {dataset!r} at {opened.data_root} holds no readable file with a caption")
    firsts = [sample.captions[0] for sample in samples] if isinstance(caption, int) else []
    return Pairs(
        opened.name, _chosen(samples, caption), opened.read, source, unreadable or [], opened.files, firsts
    )


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


def _require_unique(samples: list[Sample]):
    rows: dict[str, int] = {}
    for row, sample in enumerate(samples):
        if rows.setdefault(sample.id, row) != row:
            raise UserError(
                f"id {sample.id!r} occurs twice, in rows {rows[sample.id]} and {row}; every row needs its own"
            )


def _require_present(opened: Opened, samples: list[Sample]):
    """Refuse what is damaged, and files that do not exist, before anything is trained."""
    for item in opened.damaged:
        raise UserError(
            f"{item['path']}: {item['why']}; repair it, or leave out what is unreadable with --skip_unreadable"
        )
    for row, sample in enumerate(samples if opened.read is file_bytes else ()):
        if not os.path.isfile(str(sample.path)):
            raise UserError(
                f"row {row} (id {sample.id!r}): {sample.path} does not exist; put it there, or leave out "
                "what is unreadable with --skip_unreadable"
            )


def _chosen(samples: list[Sample], caption: str | int) -> list[Sample]:
    """The samples with the captions asked for. Error: a row has fewer."""
    if caption == "all":
        return samples
    number = caption if isinstance(caption, int) else 1
    fewest = min(len(sample.captions) for sample in samples)
    for row, sample in enumerate(samples if fewest < number else ()):
        if len(sample.captions) < number:
            has = f"{len(sample.captions)} caption{'s' * (len(sample.captions) > 1)}"
            raise UserError(
                f"--caption {number}: row {row} (id {sample.id!r}) has {has}, and every row needs as many; the highest "
                f"that all rows have is --caption {fewest}"
            )
    return [sample._replace(captions=sample.captions[number - 1 : number]) for sample in samples]
