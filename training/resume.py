"""The run folders of a command: taken when free, resumed when its own, refused otherwise; when to write checkpoints."""

import os
import socket
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import features
from plumbing.errors import UserError
from plumbing.processes import is_shared, team
from training.unfinished import Mark, Unfinished, first_difference, has_begun

CHECKPOINT_SHARE = 0.03  # of the time may go into checkpoints


def check_names(names: Iterable[str], sae: str | None, overwrite: bool):
    """Refuse a bad name, and a folder that may not be written to, before anything that takes time."""
    folders = [Unfinished(features.run_path(name)) for name in names]
    for one in folders:
        one.check_place()
        check_given(sae, one.folder)
    if os.environ.get("RANK", "0") != "0":  # the first process may have locked and marked the folders by now
        return
    marked = not overwrite and any(one.mark() for one in folders)
    for one in folders:
        one.check_idle()
        if not overwrite and not (marked and features.is_whole(one.folder)):
            one.check(None)


def check_shared(names: Iterable[str]):
    """Refuse processes of which some do not see the run folders of the first one, which says so for all."""
    for name in names:
        path = features.run_path(name)
        place = path if path.is_dir() else features.ROOT
        if is_shared(place):
            continue
        if team().rank > 0:
            raise SystemExit(2)
        raise UserError(
            f"not all {team().world} processes see {place.absolute()} of {socket.gethostname()}: start all of them in "
            "one folder, on a file system that their machines share"
        )


def check_given(sae: str | None, path: Path):
    """Refuse given SAEs that lie, directly or through a link, in a run folder that will be written."""
    given = Path(sae) if sae else None
    places = [given, *given.glob("*"), *given.glob("*/*")] if given else []
    for place in places:
        if Path(os.path.realpath(place)).is_relative_to(os.path.realpath(path)):
            raise UserError(
                f"--sae {sae}: {place} lies in {path}, which this command would write: choose another --runname"
            )


def open_folders(folders: Sequence[Unfinished], identity: Mark, overwrite: bool) -> float:
    """Lock the run folders, and empty them unless a killed command of this identity can resume; returns its seconds.

    Without `overwrite`, a whole run and another command's unfinished one are refused. The folders are checked before
    they are locked, so that a refused one is not touched, and again after.
    """
    check_folders(folders, identity, overwrite)
    for one in folders:
        one.lock()
    check_folders(folders, identity, overwrite)
    if not overwrite and can_resume(folders, identity):
        return folders[0].seconds()
    for one in folders:
        one.start(identity)
    return 0.0


def check_folders(folders: Sequence[Unfinished], identity: Mark, overwrite: bool):
    """Refuse folders that this command may not write to."""
    for one in folders:
        one.check_place()
        one.check_idle()
    if not overwrite and not can_resume(folders, identity):
        for one in folders:
            one.check(identity)


def can_resume(folders: Sequence[Unfinished], identity: Mark) -> bool:
    """Whether a command of this identity was killed and left a checkpoint, or whole runs that it was cleaning up."""
    marks = [one.mark() for one in folders]
    known = [first_difference(mark, identity) is None for mark in marks if mark]
    if all(known) and all(features.is_whole(one.folder) for one in folders):
        return bool(known)
    return len(known) == len(marks) and all(known) and has_begun(identity)


def finished_before(folders: Sequence[Unfinished]) -> list[features.Run]:
    """The runs of a command that was killed while it cleaned up; an empty list where any is not whole."""
    whole = all(features.is_whole(one.folder) for one in folders)
    return [features.open_run(one.folder.name) for one in folders] if whole else []


def forget(folders: Sequence[Unfinished]):
    """Remove what only an unfinished command needs; the first folder, which holds the state, last."""
    for one in reversed(folders):
        one.finish()


class Clock:
    """When a checkpoint is due: after `every` seconds, or later, so that checkpoints take at most 3 % of the time.

    As a context manager it times the writing of one.
    """

    def __init__(self, every: float):
        self.every, self.last = every, time.monotonic()

    def is_due(self) -> bool:
        """Whether to write one now."""
        return time.monotonic() - self.last >= self.every

    def __enter__(self):
        self.began = time.monotonic()

    def __exit__(self, *_: object):
        self.last = time.monotonic()
        self.every = max(self.every, (self.last - self.began) / CHECKPOINT_SHARE)
