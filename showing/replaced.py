"""Folders that are written whole or not at all, in the place of one that was written before."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from plumbing.errors import UserError
from plumbing.files import is_alive

MARK = Path("data") / "meta.js"  # a folder that holds it is an explorer


@contextlib.contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `folder`, which it becomes; what a killed process left of one is cleared away.

    A link stays, and the folder that it names is replaced. Error: the folder holds something else than an explorer,
    which is not deleted.
    """
    folder = Path(os.path.realpath(folder))
    _check(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    _recover(folder)
    temporary, old = (_beside(folder, kind, os.getpid()) for kind in ("tmp", "old"))
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        yield temporary
        if folder.exists():
            folder.rename(old)
        temporary.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _beside(folder: Path, kind: str, process: int | str) -> Path:
    return folder.with_name(f".{folder.name}.{kind}{process}")


def _check(folder: Path):
    is_empty = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    if not is_empty and not (folder / MARK).is_file():
        raise UserError(f"{folder} is there and is no explorer: name another place with --out")


def _recover(folder: Path):
    """Put back what a process that was killed between two renames had moved away; remove what others left."""
    for kind in ("old", "tmp"):
        for left in sorted(folder.parent.glob(f"{_beside(folder, kind, '').name}*")):
            number = left.name.rpartition(kind)[2]
            if not number.isdecimal() or (int(number) != os.getpid() and is_alive(int(number))):
                continue
            if kind == "old" and not folder.exists():
                left.rename(folder)
            else:
                shutil.rmtree(left, ignore_errors=True)
