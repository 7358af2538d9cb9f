"""The run folders of a command: taken when they are free, resumed when they are its own; when to keep a checkpoint."""

import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import features
from plumbing.errors import UserError
from training.unfinished import Mark, Unfinished, first_difference, has_begun

CHECKPOINT_SHARE = 0.03  # of the time, that checkpoints may take


def check_names(names: Iterable[str], sae: str | None, overwrite: bool):
    """Refuse a bad name, and a folder that may not be written to, before anything that takes time."""
    folders = [Unfinished(features.run_path(name)) for name in names]
    for one in folders:
        one.check_place()
        check_given(sae, one.folder)
    if os.environ.get("RANK", "0") != "0":  # the first process, which locks the folders, may be ahead
        return
    marked = not overwrite and any(one.mark() for one in folders)
    for one in folders:
        one.check_idle()
        if not overwrite and not (marked and features.is_whole(one.folder)):
            one.check(None)


def check_given(sae: str | None, path: Path):
    """Refuse SAEs that lie in the run folder which is to be written, also by way of a link."""
    given = Path(sae) if sae else None
    places = [given, *given.glob("*"), *given.glob("*/*")] if given else []
    for place in places:
        if Path(os.path.realpath(place)).is_relative_to(os.path.realpath(path)):
            raise UserError(
                f"--sae {sae}: {place} lies in {path}, which this command would write: choose another --runname"
            )


def open_folders(folders: Sequence[Unfinished], identity: Mark, overwrite: bool) -> float:
    """Lock and prepare the run folders, or find what a killed command of the same identity left; returns its seconds.

    A whole run and what another command has begun are refused, unless they are to be overwritten, which starts
    afresh. The folders are looked at before they are locked, so that none that is refused is touched, and once
    more after.
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
    """Refuse the folders that this command may not write to."""
    for one in folders:
        one.check_place()
        one.check_idle()
    if not overwrite and not can_resume(folders, identity):
        for one in folders:
            one.check(identity)


def can_resume(folders: Sequence[Unfinished], identity: Mark) -> bool:
    """Whether this command was killed and left something: a state, or whole runs that it was cleaning up."""
    marks = [one.mark() for one in folders]
    known = [first_difference(mark, identity) is None for mark in marks if mark]
    if all(known) and all(features.is_whole(one.folder) for one in folders):
        return bool(known)
    return len(known) == len(marks) and all(known) and has_begun(identity)


def finished_before(folders: Sequence[Unfinished]) -> list[features.Run]:
    """The whole runs of a command that was killed while it cleaned up; none where there is more to do."""
    whole = all(features.is_whole(one.folder) for one in folders)
    return [features.open_run(one.folder.name) for one in folders] if whole else []


def forget(folders: Sequence[Unfinished]):
    """Remove what only an unfinished command needs: the first folder, which holds the state, comes last."""
    for one in reversed(folders):
        one.finish()


class Clock:
    """Says when a checkpoint is due: every so many seconds, and seldom enough to cost little.

    As a context it takes the time of a checkpoint, which sets when the next one is due.
    """

    def __init__(self, every: float):
        self.every, self.last = every, time.monotonic()

    def is_due(self) -> bool:
        """Whether it is time."""
        return time.monotonic() - self.last >= self.every

    def __enter__(self):
        self.began = time.monotonic()

    def __exit__(self, *_: object):
        self.last = time.monotonic()
        self.every = max(self.every, (self.last - self.began) / CHECKPOINT_SHARE)
