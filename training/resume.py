"""Checkpoints of training and recording, and the run folders of a command that was interrupted."""

import sys
import time
from typing import Any

import features
from plumbing import files
from plumbing.processes import team, wait_for_all
from training.token_cache import RecordedTokens
from training.unfinished import first_difference, has_begun
from training.work import Qualities, Trainers, Work

CHECKPOINT_SHARE = 0.03  # of the time, that checkpoints may take


def open_folders(work: Work, overwrite: bool) -> float:
    """Lock and prepare the run folders, or find what a killed command of the same identity left; returns its seconds.

    A whole run and what another command has begun are refused, unless they are to be overwritten, which starts
    afresh. The folders are looked at before they are locked, so that none that is refused is touched, and once
    more after.
    """
    folders = work.unfinished()
    check_folders(work, overwrite)
    for one in folders:
        one.lock()
    check_folders(work, overwrite)
    if not overwrite and can_resume(work):
        headers = [files.read_header(file) for file in (work.record_state(0), work.fit_state())]
        return next((header["seconds"] for header in headers if header), 0.0)
    for one in folders:
        one.start(work.identity)
    return 0.0


def check_folders(work: Work, overwrite: bool):
    """Refuse the folders that this command may not write to."""
    for one in work.unfinished():
        one.check_place()
        one.check_idle()
    if not overwrite and not can_resume(work):
        for one in work.unfinished():
            one.check(work.identity)


def can_resume(work: Work) -> bool:
    """Whether this command was killed and left something: a state, or whole runs that it was cleaning up."""
    marks = [one.mark() for one in work.unfinished()]
    known = [first_difference(mark, work.identity) is None for mark in marks if mark]
    if all(known) and all(features.is_whole(job.folder) for job in work.jobs):
        return bool(known)
    return len(known) == len(marks) and all(known) and has_begun(work.identity)


def finished_before(work: Work) -> list[features.Run]:
    """The whole runs of a command that was killed while it cleaned up; none where there is more to do."""
    whole = all(features.is_whole(job.folder) for job in work.jobs)
    return [features.open_run(job.folder.name) for job in work.jobs] if whole else []


def forget_unfinished(work: Work):
    """Remove what only an unfinished command needs: the first folder, which holds the state, comes last."""
    for one in reversed(work.unfinished()):
        one.finish()


def state_header(work: Work, done: int, history: list) -> dict[str, Any]:
    """What every state file says of itself."""
    seconds = time.monotonic() - work.started
    return {"seconds": seconds, "done": done, "history": history}


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

    def __exit__(self, *_):
        self.last = time.monotonic()
        self.every = max(self.every, (self.last - self.began) / CHECKPOINT_SHARE)


def save_training(work: Work, trainers: Trainers, history: list, done: int, kept: RecordedTokens | None):
    """Keep the state of every trainer after `done` steps, once what these steps kept is safe."""
    if kept:
        kept.sync()
    tensors = {
        f"{job}.{layer}.{name}": tensor
        for (job, layer), trainer in trainers.items()
        for name, tensor in trainer.state().items()
    }
    files.write_state(work.fit_state(), state_header(work, done, history), tensors)


def restore(work: Work, trainers: Trainers) -> tuple[list, int]:
    """Bring the trainers to where an interrupted process left them; returns its reports and its steps."""
    state = files.read_state(work.fit_state())
    if state is None:
        return [], 0
    header, tensors = state
    for (job, layer), trainer in trainers.items():
        prefix = f"{job}.{layer}."
        own = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        trainer.restore(own, header["done"])
    print(f"going on after {header['done']} steps", file=sys.stderr)
    return header["history"], header["done"]


def save_recording(work: Work, qualities: Qualities, history: list, done: int):
    """Keep how many parts this process has written, and its scores' sums."""
    tensors = {
        f"{number}.{layer}.{name}": tensor
        for number, one in enumerate(qualities)
        for layer, quality in one.items()
        for name, tensor in quality.state.items()
    }
    files.write_state(work.record_state(team().rank), state_header(work, done, history), tensors)


def drop_training(work: Work):
    """Remove the checkpoint of the training, once every process can resume its recording without it."""
    wait_for_all()
    if team().rank == 0:
        work.fit_state().unlink(missing_ok=True)


def restore_recording(work: Work, qualities: Qualities, history: list) -> int:
    """The number of parts that an interrupted process had written; its scores' sums are taken over."""
    state = files.read_state(work.record_state(team().rank))
    if state is None:
        save_recording(work, qualities, history, done=0)
        return 0
    header, tensors = state
    for number, one in enumerate(qualities):
        for layer, quality in one.items():
            for name, tensor in quality.state.items():
                tensor.copy_(tensors[f"{number}.{layer}.{name}"])
    return header["done"]
