"""Paired samples: row i is one picture (or sound) and its captions, in the same order on every machine."""

import argparse
import contextlib
import csv
import functools
import glob
import hashlib
import inspect
import io
import itertools
import json
import math
import os
import re
import statistics
import struct
import sys
import tarfile
import textwrap
import zlib
from argparse import ArgumentTypeError as UserError
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from PIL import Image, ImageDraw, ImageFont, ImageOps, PngImagePlugin, UnidentifiedImageError

# PIL warns of pictures above 89 million pixels and refuses them above 179; `decode` has its own, wider line.
Image.MAX_IMAGE_PIXELS = None
# It refuses a PNG for a megabyte of text or of colour profile, neither of which is looked at here.
PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY = 2**26, 2**28
MOST_PIXELS = 2**29  # 20,000 x 20,000 px fits; decoding it takes 2 GB
REDUCE_PIXELS = (
    2**26
)  # a larger picture is box-averaged to below this: encoders look at a few hundred px a side
MOST_RATIO = 100  # of the sides: what scales the shorter one to 512 px then holds 26 million pixels at most
ORIENTATION = 274  # the tag of EXIF that says how the camera was held
UPRIGHT = dict(
    zip(range(2, 9), [Image.Transpose(turn) for turn in (0, 3, 1, 5, 4, 6, 2)], strict=True)
)  # flips and quarter turns
DEEP = ("RGB;16B", "RGBA;16B")  # PIL's names for 16-bit colours, the high byte first
SOUNDS = (".wav", ".flac", ".ogg", ".opus", ".mp3")
# What PIL and soundfile raise on content that is cut short or not what its name says.
BROKEN = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, RuntimeError)
BROKEN += (struct.error, zlib.error, AttributeError, ArithmeticError, AssertionError)


class Sample(NamedTuple):
    """One row: its id, its file as a reader would name it, its captions, and what `Pairs.read` takes."""

    id: str
    file: str
    captions: list[str]
    place: Any


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


def _side(sample: Sample) -> str:
    return "audio" if sample.file.lower().endswith(SOUNDS) else "image"


def _reason(why: BaseException) -> str:
    message = " ".join(str(why).split())
    return message if " " in message else f"{type(why).__name__} {message}".strip()


# ---------------------------------------------------------------------------------------- pictures and sounds


def decode(content: Any) -> Image.Image:
    """A file's bytes, or a picture, as an upright RGB picture; of an animation, the first frame.

    Transparent pixels are shown on white, 16 bits are scaled to 8, EXIF orientation is applied, and the
    sides of what has more than REDUCE_PIXELS, or is longer than MOST_RATIO times its width, are averaged down.
    Errors: one of BROKEN where it is no whole picture.
    """
    picture = _open_picture(content) if isinstance(content, bytes) else content
    if picture.width * picture.height > MOST_PIXELS:
        raise ValueError(f"{picture.width} x {picture.height} px is over the limit of {MOST_PIXELS:,} pixels")
    deep = isinstance(content, bytes) and any(tile.args in DEEP for tile in getattr(picture, "tile", ()))
    picture.load()
    if deep and not any(highest for _, highest in picture.getextrema()):
        picture = _low_bytes(content)
    return _reduced(_on_white(_eight_bit(_upright(picture))))


def _low_bytes(content: bytes) -> Image.Image:
    """A PNG of 16-bit colours that holds values of 8 bits: of the two bytes of each, PIL takes the higher one."""
    picture = _open_picture(content)
    picture.tile = [tile._replace(args=tile.args.replace("16B", "16L")) for tile in picture.tile]
    return picture


def _upright(picture: Image.Image) -> Image.Image:
    """Turned as EXIF's orientation says, whatever else is in there; what cannot be read turns nothing."""
    try:
        turn = UPRIGHT.get(_orientation(picture))
    except BROKEN:
        turn = None
    return picture if turn is None else picture.transpose(turn)


def _orientation(picture: Image.Image) -> int | None:
    """Tag 274 alone, from the directory's entries of 12 bytes (tag, type, count, value): PIL stops at odd ones."""
    exif = picture.info.get("exif")
    if not isinstance(exif, bytes):
        return picture.getexif().get(ORIENTATION)
    exif = exif.removeprefix(b"Exif\0\0")
    order = "<" if exif[:2] == b"II" else ">"
    (start,) = struct.unpack_from(f"{order}I", exif, 4)
    (count,) = struct.unpack_from(f"{order}H", exif, start)
    for entry in range(start + 2, start + 2 + 12 * count, 12):
        tag, kind = struct.unpack_from(f"{order}HH", exif, entry)
        if tag == ORIENTATION:
            return struct.unpack_from(order + ("H" if kind == 3 else "I"), exif, entry + 8)[0]
    return None


def _reduced(picture: Image.Image) -> Image.Image:
    """Averaged down, so that neither the picture nor what encoders make of a thin one fills the memory.

    Many encoders scale the shorter side to theirs: 20,000 x 1 px would become 4,480,000 x 224.
    """
    both = math.ceil(math.sqrt(picture.width * picture.height / REDUCE_PIXELS))
    longest = MOST_RATIO * min(picture.size)
    factors = tuple(max(both, math.ceil(side / longest)) for side in picture.size)
    return picture.reduce(factors) if max(factors) > 1 else picture


def _open_picture(content: bytes) -> Image.Image:
    if not content:
        raise ValueError("the file is empty")
    try:
        return Image.open(io.BytesIO(content))
    except UnidentifiedImageError as why:  # PIL's own message names a memory address, another each time
        raise ValueError("not a picture in a format that PIL knows") from why


def _eight_bit(picture: Image.Image) -> Image.Image:
    """Grey of 16 bits as grey of 8: 65535 becomes 255. PIL itself would clip everything above 255.

    Where no value is above 255 or 4095, grey of 8 or 12 bits was stored in 16, and that becomes 255: it would
    be all but black.
    """
    if picture.mode == "F":
        raise ValueError("its floating-point grey values have no known range; save it with 8 or 16 bits")
    if not picture.mode.startswith("I"):
        return picture
    import numpy as np  # here, since importing it takes as long as all of `--help` may

    grey = np.asarray(picture)
    if grey.min() < 0 or grey.max() > 65535:
        raise ValueError("its 32-bit grey values have no known range; save it with 8 or 16 bits")
    white = next(white for white in (255, 4095, 65535) if grey.max() <= white)
    return Image.fromarray(((grey.astype(np.uint32) * 255 + white // 2) // white).astype(np.uint8))


def _on_white(picture: Image.Image) -> Image.Image:
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    picture = picture.convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(white, picture).convert("RGB")


def decode_sound(content: bytes) -> tuple[Any, int]:
    """A sound file's bytes as a mono float32 array [frame], channels averaged, and its sampling rate in Hz.

    Errors: one of BROKEN where the bytes are no whole sound file.
    """
    import soundfile

    riff_bytes = int.from_bytes(content[4:8], "little") + 8
    if (
        content[:4] == b"RIFF" and len(content) < riff_bytes < 2**32 - 1
    ):  # soundfile would return what is there
        raise ValueError(f"the file is cut short: {len(content)} of {riff_bytes} bytes")
    with soundfile.SoundFile(io.BytesIO(content)) as sound:
        frames = sound.read(dtype="float32", always_2d=True)
        if not 0 < len(frames) == sound.frames:
            raise ValueError(f"the file is cut short: {len(frames)} of {sound.frames} frames")
        return frames.mean(axis=1), sound.samplerate


DECODERS = {"image": decode, "audio": decode_sound}

# ----------------------------------------------------------------------------------------- opening a data set


class Opened(NamedTuple):
    """What an opening function hands back.

    The data set's name, all its rows, how to read one, the `data_root` it used, the {"id", "path", "why"} of
    containers that are damaged, what besides ids and dates of files tells one version from another, and the
    files that the rows were read from besides those that `samples` name.
    """

    name: str
    samples: list[Sample]
    read: Callable[[Any], Any]
    data_root: str | None
    damaged: Sequence[dict[str, str]] = ()
    version: str = ""
    files: Sequence[str] = ()


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


def _name_of(folder: str | Path) -> str:
    """A data set's name: that of its folder, and of `.` and `..` that of the folder that they mean."""
    return os.path.basename(os.path.abspath(folder))


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


def _say(message: str):
    print(message, file=sys.stderr)


def _file_bytes(path: str) -> bytes:
    return Path(path).read_bytes()


# ------------------------------------------------------------------------------------------- unreadable items


def _unreadable(opened: Opened, samples: list[Sample]) -> list[dict[str, str]]:
    """The {"id", "path", "why"} of damaged containers and of items that fail to decode, in row order.

    The outcome is kept in the user's cache under a key made of ids, sizes and dates, so that the text run
    leaves out what the image run did, and twenty encoders do not scan the same pictures twenty times.
    """
    path = _cache_folder() / f"unreadable-{_version_key(opened, samples)}.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = _scan(opened.read, samples)
        _keep(path, found)
    return [*opened.damaged, *found]


def _scan(read: Callable[[Any], Any], samples: list[Sample]) -> list[dict[str, str]]:
    from tqdm import tqdm

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # PIL decodes outside Python's lock
        reasons = pool.map(functools.partial(_why_unreadable, read), samples)
        reasons = list(tqdm(reasons, "looking for unreadable items", len(samples), unit="item"))
    return [
        {"id": sample.id, "path": sample.file, "why": why}
        for sample, why in zip(samples, reasons, strict=True)
        if why
    ]


def _why_unreadable(read: Callable[[Any], Any], sample: Sample) -> str | None:
    try:
        DECODERS[_side(sample)](read(sample.place))
    except BROKEN as why:
        return _reason(why)
    return None


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "shared-concepts"


def _keep(path: Path, found: list[dict[str, str]]):
    """Write the outcome of a scan; a cache that cannot be written only costs the next run its own scan."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps(found), encoding="utf-8")
        partial.replace(path)


DECODED = 2  # raise it where `decode` reads what it did not


def _version_key(opened: Opened, samples: list[Sample]) -> str:
    """sha256 over what decides a scan: the decoder, and each row's id, place, and file size and date."""
    stamp = functools.cache(_stamp)
    key = hashlib.sha256(f"{DECODED} {Image.__version__} {opened.version}\n".encode())
    for sample in samples:
        path = sample.place[0] if isinstance(sample.place, tuple) else sample.place
        key.update(f"{sample.id} {sample.place} {stamp(path)}\n".encode(errors="backslashreplace"))
    return key.hexdigest()[:32]


def _stamp(path: Any) -> tuple[int, int] | None:
    with contextlib.suppress(OSError, ValueError):  # a name may hold what no file's name can
        status = os.stat(path) if isinstance(path, str) else None
        return status and (status.st_size, status.st_mtime_ns)
    return None


# ------------------------------------------------------------------------------------------------------- demo


def open_demo(location: str | None) -> Opened:
    """The scenes drawn in code by demo/scenes.py: 10,000 pairs that no demo encoder was trained on."""
    from demo import scenes

    names = [f"scene{row:05d}" for row in range(scenes.N_DEMO)]
    samples = [Sample(name, name, list(scenes.captions(row)), row) for row, name in enumerate(names)]
    return Opened("demo", samples, _demo_picture, None, files=[scenes.__file__])


def _demo_picture(row: int) -> Image.Image:
    from demo import scenes

    return scenes.picture(row)


# ------------------------------------------------------------------------------------------------------- coco

COCO_HELP = (
    "download http://images.cocodataset.org/zips/{split}.zip and "
    "http://images.cocodataset.org/annotations/annotations_trainval2017.zip, unpack both into one folder, "
    "and type --data_root FOLDER"
)


def open_coco(location: str | None, split: str = "train2017") -> Opened:
    """COCO captions: `annotations/captions_train2017.json` and `train2017/`, in the order of the image ids.

    A picture's captions are in the order of their annotation ids; pictures without captions are left out.
    """
    location = location or "data/coco"
    root = Path(location)
    annotations = root / "annotations" / f"captions_{split}.json"
    _require_found("COCO", (annotations, root / split), COCO_HELP.format(split=split))
    files, captions = _coco_tables(annotations)
    if len(captions) < len(files):
        _say(f"coco: {len(files) - len(captions)} of {len(files)} pictures have no caption and are left out")
    samples = [
        Sample(str(image), f"{split}/{files[image]}", captions[image], str(root / split / files[image]))
        for image in sorted(captions)
    ]
    name = "coco" if split == "train2017" else f"coco_{split}"
    return Opened(name, samples, _file_bytes, location, files=[str(annotations)])


def _require_found(name: str, paths: Iterable[Path], help: str):
    for path in paths:
        if not path.exists():
            raise UserError(f"{name} was looked for at {path.absolute()}, which does not exist; {help}")


def _coco_tables(annotations: Path) -> tuple[dict[Any, str], dict[Any, list[str]]]:
    """File names and captions by image id, from the lists themselves: ids of annotations only order captions."""
    try:
        tables = json.loads(annotations.read_text(encoding="utf-8-sig"))
        pictures = [(picture["id"], picture["file_name"]) for picture in tables["images"]]
        texts = [(text.get("id"), text["image_id"], text["caption"]) for text in tables["annotations"]]
    except (ValueError, KeyError, TypeError, AttributeError) as why:
        raise UserError(f"{annotations} is not a COCO caption file ({_reason(why)})") from why
    _require_coco_kinds(annotations, pictures, texts)
    files = dict(pictures)
    if len(files) < len(pictures):
        twice = Counter(picture for picture, _ in pictures).most_common(1)[0][0]
        raise UserError(f"{annotations} lists image id {twice} twice; every picture needs its own")
    captions: dict[Any, list[str]] = {}
    numbered = all(isinstance(name, int) for name, _, _ in texts)
    for _, picture, text in sorted(texts, key=lambda row: row[0] if numbered else 0):
        captions.setdefault(picture, []).append(text.strip())
    if strangers := [picture for picture in captions if picture not in files]:
        raise UserError(f"{annotations} has a caption for image id {strangers[0]!r}, which it does not list")
    return files, captions


def _require_coco_kinds(annotations: Path, pictures: list[tuple], texts: list[tuple]):
    """Refuse captions and file names that are no texts, and image ids that are not all numbers or all texts."""
    for name, picture, text in texts:
        if not isinstance(text, str):
            raise UserError(
                f"{annotations}: annotation {name!r} of image {picture!r} has the caption {text!r}, which is no "
                "text; mend it or take it out"
            )
    for picture, file in pictures:
        if not isinstance(file, str):
            raise UserError(f"{annotations}: image {picture!r} has the file name {file!r}, which is no text")
    ids = [picture for picture, _ in pictures] + [picture for _, picture, _ in texts]
    if {*map(type, ids)} not in ({int}, {str}, set()):
        other = next((one for one in ids if type(one) is not type(ids[0])), ids[0])
        raise UserError(
            f"{annotations}: image ids {ids[0]!r} and {other!r}; make all of them whole numbers, or all texts"
        )


# ----------------------------------------------------------------------------------------------------- folder

FILE_KEYS = ("file", "file_name", "image", "audio")
CAPTION_KEYS = ("caption", "captions", "text")
KEYS = (FILE_KEYS, CAPTION_KEYS)
LISTINGS = ("captions.jsonl", "captions.tsv")


def open_folder(location: str | None) -> Opened:
    """Pictures or sounds anywhere below `data_root`, listed in its `captions.jsonl` or `captions.tsv`.

    Rows are in the order in which the files first appear there; a file listed again gets a further caption.
    A line is {"file": "a/b.jpg", "caption": "…"} or file, tab, caption; paths are relative to `data_root`.
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
    captions: dict[str, list[str]] = {}
    lines = _jsonl_lines if found[0].suffix == ".jsonl" else _tsv_lines
    for where, file, texts in lines(found[0]):
        if PurePosixPath(file).is_absolute():
            raise UserError(f"{where}: {file!r} is not relative to {location}")
        captions.setdefault(PurePosixPath(file).as_posix(), []).extend(text.strip() for text in texts)
    samples = [Sample(file, file, texts, str(root / file)) for file, texts in captions.items() if texts]
    if len(samples) < len(captions):
        unpaired = len(captions) - len(samples)
        _say(f"folder: {unpaired} of {len(captions)} files have no caption and are left out")
    return Opened(_name_of(root), samples, _file_bytes, location, files=[str(found[0])])


def _numbered_lines(listing: Path) -> Iterator[tuple[str, str]]:
    try:
        with open(listing, encoding="utf-8-sig", newline="") as lines:
            for number, line in enumerate(lines, 1):
                yield f"{listing}:{number}", line
    except UnicodeDecodeError as why:
        raise UserError(f"{listing} is not UTF-8 text ({_reason(why)})") from why


def _jsonl_lines(listing: Path) -> Iterator[tuple[str, str, list[str]]]:
    for where, line in _numbered_lines(listing):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as why:
            raise UserError(f"{where}: not a JSON object ({why})") from why
        record = record if isinstance(record, dict) else {}
        file = next((record[key] for key in FILE_KEYS if key in record), None)
        texts = _texts(next((record[key] for key in CAPTION_KEYS if key in record), None))
        if not isinstance(file, str) or texts is None:
            raise UserError(f'{where}: needs {{"file": "a/b.jpg", "caption": "…"}}, or a list of captions')
        yield where, file, texts


def _texts(value: Any) -> list[str] | None:
    """A caption or a list of them as a list; None where the value is neither."""
    texts = [value] if isinstance(value, str) else value
    return texts if isinstance(texts, list) and all(isinstance(text, str) for text in texts) else None


def _tsv_lines(listing: Path) -> Iterator[tuple[str, str, list[str]]]:
    """Through the csv module: a field in quotes may hold tabs, line ends and doubled quotes."""
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
        file, text = (next(columns.index(key) for key in keys if key in columns) for keys in KEYS)
        yield where, fields[file], [fields[text]]


def _tsv_records(listing: Path) -> Iterator[tuple[str, list[str]]]:
    """The fields of each record that is not blank, and where it begins."""
    lines, where = _numbered_lines(listing), ""

    def followed() -> Iterator[str]:
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


# ------------------------------------------------------------------------------------------------- flowers102

FLOWERS_HELP = (
    "unpack https://www.robots.ox.ac.uk/~vgg/data/flowers/102/102flowers.tgz (jpg/image_00001.jpg …) and, "
    "from cvpr2016_flowers.tar.gz of https://github.com/reedscot/cvpr2016, the folder text_c10 "
    "(text_c10/class_00077/image_00001.txt …, a caption a line) into one folder, and type --data_root FOLDER"
)


def open_flowers102(location: str | None) -> Opened:
    """Oxford's 102 flowers with ten captions a picture, in the order of the pictures' numbers.

    Layout: `jpg/image_00001.jpg` … and `text_c10/class_00001/image_06734.txt` …, a caption a line
    (S. Reed et al., Learning Deep Representations of Fine-Grained Visual Descriptions, CVPR 2016).
    """
    location = location or "data/flowers102"
    root = Path(location)
    _require_found("flowers102", (root / "jpg", root / "text_c10"), FLOWERS_HELP)
    texts = sorted(root.glob("text_c10/class_*/image_*.txt"))
    captions = {path.stem: _lines(path) for path in texts}
    found = {path.stem for path in (root / "jpg").glob("image_*.jpg")}
    # with those that have captions and are not there: a picture that is missing is no reason to drop its row
    pictures = [root / "jpg" / f"{name}.jpg" for name in sorted(found | {*captions})]
    samples = [
        Sample(path.stem, f"jpg/{path.name}", captions[path.stem], str(path))
        for path in pictures
        if captions.get(path.stem)
    ]
    if len(samples) < len(pictures):
        unpaired = len(pictures) - len(samples)
        _say(f"flowers102: {unpaired} of {len(pictures)} pictures have no caption and are left out")
    return Opened("flowers102", samples, _file_bytes, location, files=[*map(str, texts)])


def _lines(path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8-sig", errors="replace").split("\n")
    return [line.strip() for line in lines if line.strip()]


# ------------------------------------------------------------------------------------------------- webdataset

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".jp2")


def open_webdataset(location: str | None) -> Opened:
    """Tar shards as img2dataset writes them: KEY.jpg, KEY.txt and KEY.json side by side.

    `data_root` is one tar, a folder of them, or a pattern: 'shards/{00000..00009}.tar', '{a,b}.tar', '*.tar'.
    Rows: shards in pattern order (folders and '*' by name), keys by first appearance. The caption is KEY.txt,
    else "caption" of KEY.json. Ids are the keys; where shards repeat keys, shard/key.
    """
    if location is None:
        raise UserError(
            "data set 'webdataset' needs --data_root 'shards/{00000..00009}.tar' or a folder of tars"
        )
    shards = _shards(location)
    samples, damaged, unpaired = [], [], 0
    for shard in shards:
        members, why = _members(shard)
        paired = [pair for pair in (_shard_sample(shard, *entry) for entry in members.items()) if pair]
        unpaired += len(members) - len(paired)
        samples += paired
        damaged += [{"id": shard, "path": shard, "why": why}] if why else []
    if unpaired:
        _say(f"webdataset: {unpaired} keys lack a picture, a sound or a caption and are left out")
    if len({sample.id for sample in samples}) < len(samples) and len(shards) > 1:
        samples = [sample._replace(id=f"{Path(sample.place[0]).stem}/{sample.id}") for sample in samples]
    name = _name_of(Path(shards[0]).absolute().parent)
    return Opened(name, samples, _span_bytes, location, damaged)


def _shards(pattern: str) -> list[str]:
    """The tar files that a pattern names, in its order. Errors: it names none, or one that does not exist.

    What is there under the very name is meant, braces and brackets included.
    """
    if os.path.isfile(pattern):
        return [pattern]
    folder, names = (pattern, "*.tar") if os.path.isdir(pattern) else os.path.split(pattern)
    if not os.path.isdir(folder):
        folder, names = "", pattern
    shards = []
    for name in _expanded(names):
        path = os.path.join(folder, name)
        found = [path] if os.path.isfile(path) else sorted(glob.glob(os.path.join(glob.escape(folder), name)))
        if not found:
            raise UserError(
                f"no shard at {os.path.abspath(path)}; type --data_root 'shards/{{00000..00009}}.tar'"
            )
        shards += found
    return shards


def _expanded(pattern: str) -> list[str]:
    """A pattern's braces as the shell expands them: {08..11} keeps leading zeros, {11..8} counts down, {a,b} lists."""
    brace = re.search(r"\{([^{}]*(?:,|\.\.)[^{}]*)\}", pattern)
    if not brace:
        return [pattern]
    span = re.fullmatch(r"(\d+)\.\.(\d+)", brace[1])
    if span:
        first, last = map(int, span.groups())
        step = 1 if first <= last else -1
        width = max(map(len, span.groups())) if any(re.match("0.", end) for end in span.groups()) else 0
        choices = [str(number).zfill(width) for number in range(first, last + step, step)]
    else:
        choices = brace[1].split(",")
    heads, tails = (
        [pattern[: brace.start()] + choice for choice in choices],
        _expanded(pattern[brace.end() :]),
    )
    return [head + tail for head, tail in itertools.product(heads, tails)]


class Span(NamedTuple):
    """Where a member of a tar lies: the tar, and the first byte and number of bytes of the content."""

    path: str
    offset: int
    size: int


def _members(shard: str) -> tuple[dict[str, dict[str, Span]], str | None]:
    """A shard's files as {key: {suffix: span}} in its order, and why the rest of it is lost, if it is."""
    members: dict[str, dict[str, Span]] = {}
    end, length = 0, os.path.getsize(shard)
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in filter(tarfile.TarInfo.isreg, tar):
                end = member.offset_data + member.size
                if end > length:
                    break
                folder, name = os.path.split(member.name)
                stem, _, suffix = name.partition(
                    "."
                )  # the format's rule: the key ends at the name's first dot
                span = Span(shard, member.offset_data, member.size)
                files = members.setdefault(os.path.join(folder, stem), {})
                if files.setdefault(f".{suffix.lower()}", span) != span:
                    raise UserError(f"{shard} has {member.name!r} twice; a key may occur once in a shard")
    except tarfile.ReadError as why:
        return members, _cut(members) if members else f"not a whole, uncompressed tar ({_reason(why)})"
    return members, None if _closed(shard, end) else _cut(members)


def _closed(shard: str, end: int) -> bool:
    """Whether the tar has its end mark, a block of zeros, after the content that ends at byte `end`."""
    with open(shard, "rb") as tar:
        tar.seek(-(-end // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE)
        return tar.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)


def _cut(members: dict[str, dict[str, Span]]) -> str:
    return f"the tar is cut short after key {next(reversed(members), None)!r}"


def _shard_sample(shard: str, key: str, files: dict[str, Span]) -> Sample | None:
    suffix = next((suffix for suffix in files if suffix in PICTURES + SOUNDS), None)
    caption = _shard_caption(key, files)
    if suffix is None or caption is None:
        return None
    return Sample(key, f"{Path(shard).name}/{key}{suffix}", caption, files[suffix])


def _shard_caption(key: str, files: dict[str, Span]) -> list[str] | None:
    suffix = next((suffix for suffix in (".txt", ".json") if suffix in files), None)
    if suffix is None:
        return None
    try:
        text = _span_bytes(files[suffix]).decode("utf-8-sig")
        text = json.loads(text).get("caption") if suffix == ".json" else text
    except (ValueError, AttributeError) as why:
        raise UserError(f"{files[suffix].path}: {key}{suffix} holds no caption ({_reason(why)})") from why
    return _texts(text)


def _span_bytes(span: Span) -> bytes:
    with open(span.path, "rb") as tar:
        tar.seek(span.offset)
        content = tar.read(span.size)
    if len(content) < span.size:
        raise OSError(f"{span.path} ends within it")
    return content


# --------------------------------------------------------------------------------------------------------- hf

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

    NAME is one on the hub, a folder that `load_dataset` or `save_to_disk` knows, or a .parquet, .arrow,
    .jsonl or .csv file. Rows are in its order; the ids are `id_column` ("id" if there is one; "none" for row
    numbers).
    """
    dataset = _one_split(_load_hf(location, subset, split), location)
    columns = dataset.column_names
    text_column = text_column or next((name for name in TEXT_COLUMNS if name in columns), TEXT_COLUMNS[0])
    id_column = id_column or ("id" if "id" in columns else "none")
    _require_column(location, columns, image_column, "image")
    _require_column(location, columns, text_column, "text")
    ids = [str(row) for row in range(len(dataset))]
    if id_column != "none":
        _require_column(location, columns, id_column, "id")
        ids = [str(name) for name in _hf_column(dataset, id_column, location)]
    if len(set(ids)) < len(ids):
        twice = Counter(ids).most_common(1)[0][0]
        raise UserError(
            f"column {id_column!r} of {location!r} has {twice!r} twice; --id_column none numbers the rows"
        )
    captions = _hf_captions(dataset, text_column, location)
    read = functools.partial(_hf_bytes, _undecoded(dataset, image_column, location), image_column)
    samples = [
        Sample(name, f"{image_column} {row}", texts, row)
        for row, (name, texts) in enumerate(zip(ids, captions, strict=True))
        if texts
    ]
    if len(samples) < len(ids):
        _say(f"hf: {len(ids) - len(samples)} of {len(ids)} rows have no caption and are left out")
    name = Path(location).stem if Path(location).is_file() else Path(location).name
    files = _files_below(location) + [file["filename"] for file in dataset.cache_files]
    return Opened(name, samples, read, None, version=dataset._fingerprint, files=files)


def _files_below(location: str) -> list[str]:
    """The files of a data set that lies in a local file or folder, sorted; none of one on the hub."""
    if os.path.isfile(location):
        return [location]
    return sorted(os.path.join(folder, name) for folder, _, names in os.walk(location) for name in names)


def _load_hf(name: str, subset: str | None, split: str | None) -> Any:
    import datasets

    path = Path(name)
    saved = (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()
    if path.is_dir() and not saved and glob.escape(name) != name:
        raise UserError(f"{name!r}: of a folder whose name holds [, * or ?, no file is found; rename it")
    try:
        if saved:
            return _of_split(datasets.load_from_disk(name), split)
        if path.is_file():
            reader, options = _hf_reader(path)
            return datasets.load_dataset(reader, data_files=glob.escape(name), split=split, **options)
        return datasets.load_dataset(name, subset, split=split)
    except (OSError, ValueError, KeyError, RuntimeError, datasets.exceptions.DatasetsError) as why:
        raise UserError(
            f"Hugging Face data set {name!r} (subset {subset}, split {split}) cannot be opened "
            f"({_reason(why)[:300]}); check the name, --subset and --split, or fetch it where there is "
            "a network"
        ) from why


def _hf_reader(path: Path) -> tuple[str, dict[str, Any]]:
    """The reader of a file by its suffix, and the reader's options; "NA" and "None" are captions too."""
    tables = {".csv": {"keep_default_na": False}, ".tsv": {"keep_default_na": False, "sep": "\t"}}
    readers = {".parquet": "parquet", ".arrow": "arrow", ".jsonl": "json"} | dict.fromkeys(tables, "csv")
    if path.suffix not in readers:
        raise UserError(f"{str(path)!r} is of no kind that hf: reads; name a folder, or {', '.join(readers)}")
    return readers[path.suffix], tables.get(path.suffix, {})


def _of_split(saved: Any, split: str | None) -> Any:
    """A part of what `save_to_disk` wrote: `train`, `train[:1000]`, `train[10%:]+test`. Error: ValueError."""
    import datasets

    if split is None:
        return saved
    saved = saved if isinstance(saved, dict) else {str(saved.split or "train"): saved}
    lengths = {name: len(rows) for name, rows in saved.items()}
    spans = datasets.ReadInstruction.from_spec(split).to_absolute(lengths)
    return datasets.concatenate_datasets(
        [saved[span.splitname].select(range(span.from_ or 0, span.to or 0)) for span in spans]
    )


def _one_split(loaded: Any, name: str) -> Any:
    if not isinstance(loaded, dict):
        return loaded
    if len(loaded) > 1:
        raise UserError(f"{name!r} has several splits; type --split with one of: {', '.join(loaded)}")
    return next(iter(loaded.values()))


def _require_column(name: str, columns: list[str], column: str, role: str):
    if column not in columns:
        raise UserError(
            f"{name!r} has no column {column!r}; its columns are: {', '.join(columns)}; "
            f"type --{role}_column with the {role}'s"
        )


def _hf_column(dataset: Any, column: str, name: str) -> list[Any]:
    try:
        return dataset.select_columns([column])[:][column]
    except ValueError as why:  # Arrow does not check that its texts are UTF-8
        raise UserError(f"column {column!r} of {name!r} cannot be read ({_reason(why)})") from why


def _hf_captions(dataset: Any, column: str, name: str) -> list[list[str] | None]:
    values = _hf_column(dataset, column, name)
    captions = [_texts(value) for value in values]
    for row, value in enumerate(values):
        if captions[row] is None and value is not None:
            raise UserError(
                f"row {row} of column {column!r} of {name!r} is no text; type --text_column with the text's"
            )
    return captions


def _undecoded(dataset: Any, column: str, name: str) -> Any:
    """The picture column alone, as encoded bytes: `decode` treats all data sets alike."""
    import datasets

    kind, dataset = dataset.features[column], dataset.select_columns([column])
    if isinstance(kind, datasets.Image):
        return dataset.cast_column(column, datasets.Image(decode=False))
    binary = ("binary", "large_binary")
    if getattr(kind, "dtype", None) not in binary and not (isinstance(kind, dict) and "bytes" in kind):
        raise UserError(
            f"column {column!r} of {name!r} holds {kind}, not pictures; type --image_column with theirs"
        )
    return dataset


def _hf_bytes(dataset: Any, column: str, row: int) -> bytes:
    content = dataset[row][column]
    if isinstance(content, dict):
        content = _file_bytes(content["path"]) if content["bytes"] is None else content["bytes"]
    if content is None:
        raise ValueError("the row has no picture")
    return content


OPENERS = {
    "demo": open_demo,
    "coco": open_coco,
    "folder": open_folder,
    "flowers102": open_flowers102,
    "webdataset": open_webdataset,
    "hf": open_hf,
}

# ------------------------------------------------------------------------------------------- the command line


def add_arguments(parser: argparse.ArgumentParser, dataset: str = "--dataset"):
    """Add the options that choose a data set; `dataset` may be a positional name instead."""
    parser.add_argument(dataset, help=f"one of {', '.join(OPENERS)}:NAME")
    parser.add_argument("--data_root", help="folder, or pattern of tar shards, that holds the data set")
    parser.add_argument("--limit", type=int, help="take the first LIMIT rows only")
    parser.add_argument(
        "--caption", choices=("first", "all"), default="first", help="captions of a picture to use"
    )
    parser.add_argument(
        "--skip_unreadable", action="store_true", help="find unreadable items once and leave them out, listed"
    )
    parser.add_argument("--split", help="coco: train2017 or val2017; hf: the split's name, or train[:1000]")
    parser.add_argument("--subset", help="hf: the configuration, where there are several")
    parser.add_argument("--image_column", help="hf: the column of pictures (image)")
    parser.add_argument(
        "--text_column", help=f"hf: the column of captions (the first of {', '.join(TEXT_COLUMNS)})"
    )
    parser.add_argument("--id_column", help="hf: the column of ids (id), or none to number the rows")


def from_arguments(arguments: argparse.Namespace) -> Pairs:
    """Open the data set that the options of `add_arguments` name."""
    if arguments.dataset is None:
        raise UserError(f"type --dataset with one of {', '.join(OPENERS)}:NAME")
    taken = inspect.signature(open_pairs).parameters | inspect.signature(open_hf).parameters
    return open_pairs(**{name: value for name, value in vars(arguments).items() if name in taken})


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Print what a data set holds and draw its contact sheet; returns what it printed."""
    from commandline import Parser, script  # as a script this file stands above the leaves

    @script
    def report(argv):
        parser = Parser("Print what a data set holds: rows, fingerprint, unreadable items, caption lengths.")
        add_arguments(parser, "dataset")
        parser.add_argument("--sheet", metavar="FILE", help="contact sheet (imgs/data_NAME.png)")
        parser.add_argument("--json", metavar="FILE", help="write the same there")
        arguments = parser.parse_args(argv)
        arguments.skip_unreadable = True  # the point is to find them
        pairs = from_arguments(arguments)
        held = describe(pairs)
        if any(_side(sample) == "image" for sample in pairs.samples):
            held["contact_sheet"] = str(arguments.sheet or Path("imgs", f"data_{pairs.name}.png"))
            Path(held["contact_sheet"]).parent.mkdir(parents=True, exist_ok=True)
            contact_sheet(pairs).save(held["contact_sheet"])
        if arguments.json:
            Path(arguments.json).write_text(json.dumps(held, indent=1) + "\n", encoding="utf-8")
        print(_table(held))
        return held

    return report(argv)


def describe(pairs: Pairs) -> dict[str, Any]:
    """What a data set holds; lengths are [least, median, greatest]."""
    texts = [text for texts in pairs.captions for text in texts]
    return {
        "name": pairs.name,
        "rows": len(pairs),
        "fingerprint": pairs.fingerprint,
        "first_id": pairs.ids[0],
        "last_id": pairs.ids[-1],
        "sounds": sum(_side(sample) == "audio" for sample in pairs.samples),
        "captions_per_row": _spread(len(texts) for texts in pairs.captions),
        "caption_words": _spread(len(text.split()) for text in texts),
        "caption_characters": _spread(map(len, texts)),
        "empty_captions": sum(not text for text in texts),
        "unreadable": pairs.unreadable,
    }


def _spread(numbers: Iterable[int]) -> list[int | float]:
    numbers = sorted(numbers)
    return [numbers[0], statistics.median(numbers), numbers[-1]]


def _table(held: dict[str, Any]) -> str:
    lines = [f"{key.replace('_', ' '):<20}{_cell(value)}" for key, value in held.items()]
    lines += [f"  {item['id']}  {item['path']}: {item['why']}" for item in held["unreadable"]]
    if held["unreadable"]:
        lines.append("rows and fingerprint are without these: give every run --skip_unreadable")
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if isinstance(value, list) and value and not isinstance(value[0], dict):
        return f"{value[0]:g} to {value[2]:g}, median {value[1]:g}"
    return str(len(value) if isinstance(value, list) else value)


TILE, COLUMNS, MOST_TILES = 160, 6, 30  # pixels; tiles in a line; tiles in a sheet


def contact_sheet(pairs: Pairs) -> Image.Image:
    """Thirty pictures at equal distances through the rows, each above its row number and caption."""
    pictured = [row for row, sample in enumerate(pairs.samples) if _side(sample) == "image"]
    rows = pictured[:: math.ceil(len(pictured) / MOST_TILES)]
    height = TILE + 44
    sheet = Image.new("RGB", (COLUMNS * (TILE + 8), math.ceil(len(rows) / COLUMNS) * height), "white")
    for number, row in enumerate(rows):
        left, top = number % COLUMNS * (TILE + 8) + 4, number // COLUMNS * height
        tile = ImageOps.contain(pairs.image(row), (TILE, TILE), Image.Resampling.BICUBIC)
        sheet.paste(tile, (left + (TILE - tile.width) // 2, top + TILE - tile.height))
        lines = textwrap.wrap(f"{row}: {pairs.caption(row)[:200]}", 26, max_lines=3, placeholder=" …")
        ImageDraw.Draw(sheet).multiline_text(
            (left, top + TILE + 2), "\n".join(lines), "black", _font(), spacing=1
        )
    return sheet


@functools.cache
def _font() -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which matplotlib brings along: more scripts than PIL's own font, though no Chinese."""
    import matplotlib

    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf")), 11)


if __name__ == "__main__":
    main()
