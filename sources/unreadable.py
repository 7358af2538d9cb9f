"""Find the items that cannot be decoded, once, and keep the list for the next run."""

import contextlib
import functools
import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from plumbing import files
from sources.media import DECODERS
from sources.opened import BROKEN, Opened, Read, Sample, reason

AT_ONCE = 4096  # items that wait for a thread: each is an object in memory


def find_unreadable(opened: Opened, samples: Sequence[Sample]) -> list[dict[str, str]]:
    """The {"id", "path", "why"} of the items that fail to decode, in row order.

    The list is kept in the user's cache under a key made of ids, sizes and dates, so that the text run leaves out
    what the image run did, and twenty encoders do not scan the same pictures twenty times.
    """
    if len(samples) and samples[0].side == "text":  # captions are read already
        return []
    path = files.cache_folder() / f"unreadable-{_version_key(opened, samples)}.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = scan(opened.read, samples)
        _keep(path, found)
    return found


def scan(read: Read, samples: Sequence[Sample]) -> list[dict[str, str]]:
    """Decode every item, on all cores; the {"id", "path", "why"} of those that fail, in row order."""
    from plumbing.progress import Progress

    why_unreadable, found = functools.partial(_why_unreadable, read), []
    with (
        ThreadPoolExecutor(os.cpu_count()) as pool,  # PIL decodes outside Python's lock
        Progress(desc="looking for unreadable items", total=len(samples), unit="item") as progress,
    ):
        for start in range(0, len(samples), AT_ONCE):
            batch = list(samples[start : start + AT_ONCE])
            for sample, why in zip(batch, pool.map(why_unreadable, batch), strict=True):
                if why:
                    found.append({"id": sample.id, "path": sample.file, "why": why})
                progress.update()
    return found


def _why_unreadable(read: Read, sample: Sample) -> str | None:
    try:
        DECODERS[sample.side](read(sample.place))
    except BROKEN as why:
        return reason(why)
    return None


def _keep(path: Path, found: list[dict[str, str]]):
    """Write the list; where the cache cannot be written, the next run scans again."""
    with contextlib.suppress(OSError):
        files.make_folder(path.parent)
        files.write_text(path, json.dumps(found))


DECODED = (
    3  # the version of `media.decode`: raise it when it reads what it did not, or no longer reads something
)


def _version_key(opened: Opened, samples: Sequence[Sample]) -> str:
    """sha256 over what decides a scan: the decoder, and each row's id, place, and file size and date."""
    stamp = functools.lru_cache(1024)(file_stamp)
    key = hashlib.sha256(f"{DECODED} {Image.__version__} {opened.version}\n".encode())
    for sample in samples:
        line = f"{sample.id} {sample.place} {stamp(sample.path)}\n"
        key.update(line.encode(errors="backslashreplace"))
    return key.hexdigest()[:32]


def file_stamp(path: str | None) -> tuple[int, int] | None:
    """A file's size in bytes and its date (mtime_ns); None where there is no such file."""
    with contextlib.suppress(OSError, ValueError):  # ValueError: a text that can be no file's name
        if path is not None:
            status = os.stat(path)
            return status.st_size, status.st_mtime_ns
    return None
