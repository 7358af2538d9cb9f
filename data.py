"""Paired samples: row i is one picture (or sound) and its captions, in the same order on every machine."""

import contextlib
import functools
import hashlib
import inspect
import io
import json
import os
import struct
import sys
import zlib
from argparse import ArgumentTypeError as UserError
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from PIL import Image, ImageOps

# PIL refuses pictures above 179 million pixels as possible attacks; `decode` has its own, wider line.
Image.MAX_IMAGE_PIXELS = None
MOST_PIXELS = 2**29  # 20,000 x 20,000 px fits, and decodes in about 2 GB
REDUCE_PIXELS = (
    2**26
)  # a larger picture is box-averaged below this: no encoder sees more than a few hundred px
# What PIL and soundfile raise on files that are cut short, empty or not what their name says.
BROKEN = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, RuntimeError)
BROKEN += (struct.error, zlib.error, MemoryError)


class Sample(NamedTuple):
    """One row: its id, its file as shown to a reader, its chosen captions, and where `Pairs.read` finds it."""

    id: str
    file: str
    captions: list[str]
    place: Any


@dataclass(frozen=True)
class Pairs:
    """A data set of pairs; small, picklable, and without open files, so that loader workers can share it.

    `read(place)` gives a picture or a file's bytes; `source` holds the arguments with which `open_pairs`
    opens the same rows again; `unreadable` lists the {"id", "path", "why"} of what `skip_unreadable` left out.
    """

    name: str
    samples: list[Sample]
    read: Callable[[Any], Any]
    source: dict[str, Any] = field(default_factory=dict)
    unreadable: list[dict[str, str]] = field(default_factory=list)

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
        """sha256 over the ordered ids, one a line: runs whose fingerprints agree are about the same rows."""
        return hashlib.sha256("".join(f"{name}\n" for name in self.ids).encode()).hexdigest()

    def image(self, row: int) -> Image.Image:
        """Row `row` as an upright RGB picture. Error: it cannot be read (names row, id and file)."""
        return self._decoded(row, decode)

    def caption(self, row: int) -> str:
        """The first caption of row `row`."""
        return self.samples[row].captions[0]

    def items(self, row: int, side: str) -> list[Any]:
        """Row `row` as its encoder takes it: side "image" gives one picture, "text" the chosen captions."""
        if side == "text":
            return list(self.samples[row].captions)
        return [self._decoded(row, SIDES[side])]

    def _decoded(self, row: int, decoder: Callable[[Any], Any]) -> Any:
        sample = self.samples[row]
        try:
            return decoder(self.read(sample.place))
        except BROKEN as why:
            raise UserError(
                f"row {row} (id {sample.id!r}): cannot read {sample.file} ({_reason(why)}); repair it, or "
                "leave what is unreadable out of image and text runs alike with --skip_unreadable"
            ) from why


def _reason(why: BaseException) -> str:
    return f"{type(why).__name__}: {' '.join(str(why).split())}"


def decode(content: Any) -> Image.Image:
    """A file's bytes, or a picture, as an upright RGB picture; of an animation, the first frame.

    Transparent pixels are shown on white; 16-bit grey is scaled to 8 bits; EXIF orientation is applied.
    Errors: anything in BROKEN where the bytes are no whole picture.
    """
    picture = Image.open(io.BytesIO(content)) if isinstance(content, bytes) else content
    pixels = picture.width * picture.height
    if pixels > MOST_PIXELS:
        raise ValueError(f"{picture.width} x {picture.height} px is over the limit of {MOST_PIXELS:,} pixels")
    factor = 1
    while pixels > REDUCE_PIXELS * factor**2:
        factor += 1
    picture.load()
    picture = ImageOps.exif_transpose(picture)
    return _on_white(_eight_bit(picture.reduce(factor) if factor > 1 else picture))


def _eight_bit(picture: Image.Image) -> Image.Image:
    """Grey values of 16 bits as 8 bits: 65535 becomes 255. PIL itself would clip everything above 255."""
    if not picture.mode.startswith("I"):
        return picture
    import numpy as np  # here, since importing it takes longer than `--help` should

    grey = np.asarray(picture).astype(np.int64)
    if grey.min() < 0 or grey.max() > 65535:
        raise ValueError("its 32-bit grey values have no known range; save it with 8 or 16 bits")
    return Image.fromarray(((grey + 128) // 257).astype(np.uint8))


def _on_white(picture: Image.Image) -> Image.Image:
    if picture.mode == "F":
        raise ValueError("its floating-point grey values have no known range; save it with 8 or 16 bits")
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    picture = picture.convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(white, picture).convert("RGB")


SIDES = {"image": decode}


def open_pairs(
    dataset: str,
    data_root: str | None = None,
    limit: int | None = None,
    caption: str = "first",
    **options: Any,
) -> Pairs:
    """Open a data set by name: its pairs in a fixed order, the first `limit` of them.

    `data_root` is kept as typed in `source`, so that a project folder can move with its data. `options` are
    those of the data set's opening function below. Errors: an unknown data set, an option that it does not
    take, nothing found, no rows.
    """
    kind, _, _ = dataset.partition(":")
    if kind not in OPENERS:
        raise UserError(f"--dataset {dataset!r} is unknown; the data sets are: {', '.join(OPENERS)}")
    if caption not in ("first", "all"):
        raise UserError(f"--caption {caption!r} is unknown; type first or all")
    if limit is not None and limit < 1:
        raise UserError(f"--limit {limit} leaves no rows; type a number of at least 1")
    options = {name: value for name, value in options.items() if value is not None}
    name, samples, read, data_root = OPENERS[kind](data_root, **_known(kind, options))
    if not samples:
        raise UserError(f"data set {dataset!r} at {data_root} holds no pairs of a picture and a caption")
    samples = samples[:limit]
    if read is _file_bytes:
        _require_files(samples)
    if caption == "first":
        samples = [sample._replace(captions=sample.captions[:1]) for sample in samples]
    source = dict(dataset=dataset, data_root=data_root, limit=limit, caption=caption) | options
    return Pairs(name, samples, read, source)


def _require_files(samples: list[Sample]):
    for row, sample in enumerate(samples):
        if not os.path.isfile(sample.place):
            raise UserError(
                f"row {row} (id {sample.id!r}): {sample.place} does not exist; put the file there, or leave "
                "out what is unreadable with --skip_unreadable"
            )


def _known(kind: str, options: dict[str, Any]) -> dict[str, Any]:
    known = [name for name in inspect.signature(OPENERS[kind]).parameters if name != "data_root"]
    for name in options:
        if name not in known:
            takes = ", ".join(f"--{other}" for other in known) or "no such option"
            raise UserError(f"--{name} means nothing to data set {kind!r}, which takes {takes}")
    return options


class Opened(NamedTuple):
    """What an opening function hands back: the data set's name, all its rows, how to read one, and where."""

    name: str
    samples: list[Sample]
    read: Callable[[Any], Any]
    data_root: str | None


def _say(message: str):
    print(message, file=sys.stderr)


def _file_bytes(path: str) -> bytes:
    return Path(path).read_bytes()


def _demo_picture(row: int) -> Image.Image:
    from demo import scenes

    return scenes.picture(row)


def open_demo(data_root: str | None) -> Opened:
    """The scenes drawn in code by demo/scenes.py: 10,000 pairs that no demo encoder was trained on."""
    from demo import scenes

    if data_root is not None:
        raise UserError(f"--data_root {data_root!r} means nothing to data set 'demo', which is drawn in code")
    samples = [
        Sample(f"scene{row:05d}", f"scene{row:05d}", scenes.captions(row), row)
        for row in range(scenes.N_DEMO)
    ]
    return Opened("demo", samples, _demo_picture, None)


COCO_HELP = (
    "download http://images.cocodataset.org/zips/{split}.zip and "
    "http://images.cocodataset.org/annotations/annotations_trainval2017.zip, unpack both into one folder, "
    "and type --data_root FOLDER"
)


def open_coco(data_root: str | None, split: str = "train2017") -> Opened:
    """COCO captions: `annotations/captions_train2017.json` and `train2017/`, in the order of the image ids.

    A picture's captions are in the order of their annotation ids; pictures without captions are left out.
    """
    data_root = data_root or "data/coco"
    root, help = Path(data_root), COCO_HELP.format(split=split)
    annotations = root / "annotations" / f"captions_{split}.json"
    for path in (annotations, root / split):
        if not path.exists():
            raise UserError(f"COCO was looked for at {path.absolute()}, which does not exist; {help}")
    files, captions = _coco_tables(annotations)
    if len(captions) < len(files):
        _say(f"coco: {len(files) - len(captions)} of {len(files)} pictures have no caption and are left out")
    samples = [
        Sample(str(image), f"{split}/{files[image]}", captions[image], str(root / split / files[image]))
        for image in sorted(captions)
    ]
    return Opened("coco" if split == "train2017" else f"coco_{split}", samples, _file_bytes, data_root)


def _coco_tables(annotations: Path) -> tuple[dict[int, str], dict[int, list[str]]]:
    """File name and captions by image id; pycocotools' own tables are dropped on return: they fill 1 GB."""
    from pycocotools.coco import COCO

    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it reports on standard output, which is ours
            coco = COCO(str(annotations))
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError) as why:
        raise UserError(f"{annotations} is not a COCO caption file ({_reason(why)})") from why
    captions: dict[int, list[str]] = {}
    for annotation in sorted(coco.anns.values(), key=lambda annotation: annotation["id"]):
        captions.setdefault(annotation["image_id"], []).append(annotation["caption"].strip())
    return {image: row["file_name"] for image, row in coco.imgs.items()}, captions


FILE_KEYS = ("file", "file_name", "image", "audio")
CAPTION_KEYS = ("caption", "captions", "text")
KEYS = (FILE_KEYS, CAPTION_KEYS)


def open_folder(data_root: str | None) -> Opened:
    """Pictures or sounds anywhere below `data_root`, listed in its `captions.jsonl` or `captions.tsv`.

    Rows are in the order in which the files first appear there; a file listed again gets a further caption.
    A line is {"file": "a/b.jpg", "caption": "…"} or file, tab, caption; paths are relative to `data_root`.
    """
    if data_root is None:
        raise UserError("data set 'folder' needs --data_root DIR, a folder of pictures with a captions.jsonl")
    root = Path(data_root)
    listings = [root / name for name in ("captions.jsonl", "captions.tsv") if (root / name).is_file()]
    if len(listings) != 1:
        found = (
            "both captions.jsonl and captions.tsv" if listings else "neither captions.jsonl nor captions.tsv"
        )
        raise UserError(
            f"{root.absolute()} holds {found}; data set 'folder' needs one, of files and captions"
        )
    captions: dict[str, list[str]] = {}
    lines = _jsonl_lines if listings[0].suffix == ".jsonl" else _tsv_lines
    for where, file, texts in lines(listings[0]):
        if PurePosixPath(file).is_absolute():
            raise UserError(f"{where}: {file!r} is not relative to {data_root}")
        captions.setdefault(PurePosixPath(file).as_posix(), []).extend(text.strip() for text in texts)
    samples = [Sample(file, file, texts, str(root / file)) for file, texts in captions.items() if texts]
    return Opened(root.absolute().name, samples, _file_bytes, data_root)


def _numbered_lines(listing: Path):
    try:
        with open(listing, encoding="utf-8-sig") as lines:
            yield from (
                (f"{listing}:{n}", line.rstrip("\n")) for n, line in enumerate(lines, 1) if line.strip()
            )
    except UnicodeDecodeError as why:
        raise UserError(f"{listing} is not UTF-8 text ({_reason(why)})") from why


def _jsonl_lines(listing: Path):
    for where, line in _numbered_lines(listing):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as why:
            raise UserError(f"{where}: not a JSON object ({why})") from why
        keys = record if isinstance(record, dict) else {}
        file = next((record[key] for key in FILE_KEYS if key in keys), None)
        texts = next((record[key] for key in CAPTION_KEYS if key in keys), None)
        texts = [texts] if isinstance(texts, str) else texts
        if (
            not isinstance(file, str)
            or not isinstance(texts, list)
            or not all(isinstance(t, str) for t in texts)
        ):
            raise UserError(f'{where}: needs {{"file": "a/b.jpg", "caption": "…"}} (or a list of captions)')
        yield where, file, texts


def _tsv_lines(listing: Path):
    (file, text), splits = (0, 1), 1  # without a header, a second tab is part of the caption
    for n, (where, line) in enumerate(_numbered_lines(listing)):
        names = line.lower().split("\t")
        if n == 0 and set(names) & set(FILE_KEYS) and set(names) & set(CAPTION_KEYS):
            file, text = (next(names.index(key) for key in keys if key in names) for keys in KEYS)
            splits = len(names) - 1
            continue
        fields = line.split("\t", splits)
        if len(fields) <= max(file, text):
            raise UserError(f"{where}: needs a file, a tab and a caption, and has {line!r}")
        yield where, fields[file], [fields[text]]


OPENERS = {"demo": open_demo, "coco": open_coco, "folder": open_folder}
