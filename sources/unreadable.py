"""Find the items that cannot be decoded, once, and remember which they are."""

import contextlib
import functools
import hashlib
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from PIL import Image

from sources.media import DECODERS, _side
from sources.opened import BROKEN, Opened, Sample, _reason


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
