"""Thumbnails: each picture of a data set is decoded at most once, small, and kept for all runs on its samples."""

import io
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from data import Pairs
from plumbing import files
from plumbing.errors import UserError
from plumbing.progress import Progress
from sources.media import decode
from sources.opened import BROKEN, reason, say
from sources.unreadable import file_stamp

SIDE = 160  # pixels of the longer side: a quarter of COCO's 640, so that its JPEGs are decoded at that size
FOLDER_ROWS = 1000  # thumbnails a folder
QUALITY = 85  # of the JPEGs: about 6 kB each
TRIED = 64  # pictures that the estimate of time and disk is made from


class Thumbnails(NamedTuple):
    """The thumbnails of some rows: `folder/NNN/NNNNNN.jpg`, NNN being the row's thousands.

    `side` is the longer side in pixels. `missing`: why a row that was asked for has none, by row; rows without
    a picture are not in there.
    """

    folder: Path
    side: int
    missing: dict[int, str]

    def path(self, row: int) -> Path:
        """A row's file, which need not be there."""
        return self.folder / name_of(row)

    def picture(self, row: int) -> Image.Image | None:
        """A row's thumbnail; None where it has none."""
        if row in self.missing:
            return None
        try:
            with Image.open(self.path(row)) as picture:
                picture.load()
                return picture
        except FileNotFoundError:
            return None

    def copy_to(self, folder: Path, rows: Iterable[int]) -> list[int]:
        """Give another folder these rows' thumbnails, by hard links where it is on the same disk.

        Returns the rows that have none.
        """
        without = []
        for row in rows:
            target = folder / name_of(row)
            target.parent.mkdir(parents=True, exist_ok=True)
            if row in self.missing or not self.path(row).is_file():
                without.append(row)
                target.unlink(missing_ok=True)
            else:
                _link(self.path(row), target)
        return without


def name_of(row: int) -> str:
    """A row's file within a folder of thumbnails: `000/000042.jpg`."""
    return f"{row // FOLDER_ROWS:03d}/{row:06d}.jpg"


def thumbnails(
    pairs: Pairs, kept: Path = Path("imgs/thumbs"), rows: Iterable[int] | None = None, side: int = SIDE
) -> Thumbnails:
    """The thumbnails of some rows, by default all: what is not yet in `kept` is decoded, on all cores.

    They lie in a folder of `kept` that is named by the data set's fingerprint and the side, so that all runs on the
    same samples share them. A picture that is newer than its thumbnail is decoded again; one that cannot be read is
    counted in one line. Error: the disk is too small, which is said before anything is written.
    """
    folder = kept / f"{pairs.fingerprint[:16]}-{side}"
    wanted = range(len(pairs)) if rows is None else sorted(set(rows))
    pictured = [row for row in wanted if pairs.samples[row].side == "image"]
    found = _dates(folder, {row // FOLDER_ROWS for row in pictured})
    to_do = [row for row in pictured if found.get(row, -1) < _date(pairs, row)]
    made = Thumbnails(folder, side, {})
    if to_do:
        with ThreadPoolExecutor(
            os.cpu_count()
        ) as pool:  # as fast as processes: PIL works outside Python's lock
            try:
                _make(pairs, made, to_do, pool)
            finally:
                pool.shutdown(cancel_futures=True)
    if made.missing:
        row, why = next(iter(sorted(made.missing.items())))
        say(
            f"{len(made.missing):,} of {len(pictured):,} pictures have no thumbnail; the first is row {row} "
            f"({pairs.samples[row].file}): {why}; if they have moved, name the place with --data_root"
        )
    return made


def fitted(picture: Image.Image, side: int) -> Image.Image:
    """Scaled to fit a square, its aspect ratio kept; very small pictures keep their pixels visible."""
    scale = side / max(picture.size)
    width, height = (max(1, round(pixels * scale)) for pixels in picture.size)
    if (width, height) == picture.size:
        return picture
    return picture.resize(
        (width, height), Image.Resampling.NEAREST if scale > 3 else Image.Resampling.LANCZOS
    )


def small(pairs: Pairs, row: int, side: int) -> Image.Image:
    """A row's picture, decoded and scaled to fit a square. Errors: one of BROKEN where it cannot be read."""
    return fitted(decode(pairs.read(pairs.samples[row].place), least=side), side)


def _make(pairs: Pairs, made: Thumbnails, rows: list[int], pool: ThreadPoolExecutor):
    """Decode and write rows; first a few, from which is said how long all take, and whether the disk holds them."""

    def encoded(row: int) -> bytes | str:
        try:
            return _jpeg(small(pairs, row, made.side))
        except BROKEN as why:
            return reason(why)

    def write(row: int) -> str | None:
        content = encoded(row)
        if isinstance(content, str):
            return content
        files.write_again(made.path(row), content)
        return None

    tried = rows[:: -(-len(rows) // TRIED)]
    started = time.perf_counter()
    contents = dict(zip(tried, pool.map(encoded, tried), strict=True))
    _estimate(made, contents, len(rows), (time.perf_counter() - started) / len(tried))
    for number in sorted({row // FOLDER_ROWS for row in rows}):
        files.make_folder(made.path(number * FOLDER_ROWS).parent)
    for row, content in contents.items():
        if isinstance(content, bytes):
            files.write_again(made.path(row), content)
        else:
            made.missing[row] = content
    rest = [row for row in rows if row not in contents]
    progress = Progress(pool.map(write, rest), "thumbnails", len(rest), unit="picture", disable=not rest)
    made.missing.update((row, why) for row, why in zip(rest, progress, strict=True) if why)


def _estimate(made: Thumbnails, tried: dict[int, bytes | str], count: int, seconds: float):
    """Say what `count` thumbnails take, by those that were tried. Error: more than the disk has."""
    place = next(folder for folder in (made.folder, *made.folder.absolute().parents) if folder.exists())
    block = os.statvfs(place).f_frsize
    blocks = [-(-len(content) // block) for content in tried.values() if isinstance(content, bytes)]
    needed, free = sum(blocks) * block * count / len(tried), shutil.disk_usage(place).free
    if needed > free:
        raise UserError(
            f"thumbnails of {count:,} pictures take about {_size(needed)} and {made.folder} has {_size(free)}: free "
            "some, work on another disk, or make them smaller with --thumb"
        )
    if count > TRIED:
        minutes = f"{seconds * count / 60:.0f} min" if seconds * count > 90 else f"{seconds * count:.0f} s"
        say(
            f"thumbnails of {count:,} pictures: about {minutes} and {_size(needed)} in {made.folder}/ "
            f"({_size(free)} free)"
        )


def _size(count: int | float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def _jpeg(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


def _link(source: Path, target: Path):
    """A second name for a file, or a copy where the disk is another; what was there is replaced."""
    temporary = files.beside(target)
    try:
        os.link(source, temporary)
    except OSError:  # another disk, or one without hard links
        shutil.copyfile(source, temporary)
    temporary.replace(target)
    temporary.unlink(missing_ok=True)  # two names of one file: replacing does nothing


def _dates(folder: Path, numbers: Iterable[int]) -> dict[int, int]:
    """When each thumbnail that is there was written (mtime_ns), by row; one that a power cut emptied is not there."""
    return dict(entry for number in numbers for entry in _dates_in(folder / f"{number:03d}"))


def _dates_in(folder: Path) -> Iterator[tuple[int, int]]:
    for entry in os.scandir(folder) if folder.is_dir() else ():
        row, status = entry.name.removesuffix(".jpg"), entry.stat()
        if row.isdecimal() and status.st_size:
            yield int(row), status.st_mtime_ns


def _date(pairs: Pairs, row: int) -> int:
    """When the file that holds a row was last written (mtime_ns); 0 where it is no file, or is not there."""
    stamp = file_stamp(pairs.samples[row].path)
    return 0 if stamp is None else stamp[1]
