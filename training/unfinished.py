"""A run folder while a command works on it: the mark of its owner, the lock of who is at work, what may be removed.

The mark is `unfinished.json`: the settings that a command must match to resume. The lock is advisory, and the system
releases it when its holder dies. On a file system without locks a warning is printed and nothing is locked.
"""

import fcntl
import fnmatch
import json
import os
import socket
import sys
from pathlib import Path

import features
from encoders.row import Asked
from plumbing import files
from plumbing.errors import UserError

LOCK = "unfinished.lock"

# What a run consists of besides its mark and its lock: files in its folder, and files in its folder's folders.
FILES = (
    features.MANIFEST,
    "samples.jsonl",
    "training.jsonl",
    "training_curve.png",
    "layer*.pt",
    "unfinished-*",
    *files.TEMPORARY,
)

FOLDERS = {
    "layer*": ("features-*.npz", "cfg.json", "sae_weights.safetensors", *files.TEMPORARY),
    "pairs": ("*.json", *files.TEMPORARY),
}

_held: dict[Path, int] = {}  # the open lock files of this process


class Mark(Asked):
    """What `unfinished.json` holds: the settings that a command must match to resume (`experiment.identity`)."""

    version: int  # of the checkpoints
    model: str
    checkpoint: str
    fingerprint: str  # of the samples
    files: str  # a stamp of the data's files
    encoder_files: str  # and of the checkpoint's
    caption: str | None
    processes: int
    runs: dict[str, dict[str, object]]  # the settings of each run of the command, by name


class Unfinished:
    """A run folder of a command that is at work or was killed."""

    def __init__(self, folder: Path):
        self.folder, self.file = folder, folder / features.UNFINISHED
        self.lock_file = folder / LOCK
        self.training_file = folder / "unfinished-training.safetensors"  # a checkpoint of the training
        self.shared_out_file = folder / "unfinished-shared-out.json"  # how the SAEs are shared out
        self.tokens_file = folder / "unfinished-tokens.bin"  # the token cache

    def own_training_file(self, rank: int, done: int) -> Path:
        """A process's part of the checkpoint after `done` steps, where each trains its own SAEs."""
        return self.folder / f"unfinished-training-{rank}-{done}" if rank else self.training_file

    def all_training_files(self, rank: int | None = None) -> list[Path]:
        """What all processes, or one that is not the first, have written of checkpoints; the first one's file first."""
        own = sorted(self.folder.glob(f"unfinished-training-{'*' if rank is None else rank}-*"))
        return own if rank else [self.training_file, *own]

    def recording_file(self, rank: int) -> Path:
        """A process's checkpoint of the recording."""
        return self.folder / f"unfinished-recording-{rank}.safetensors"

    def seconds(self) -> float:
        """How long the command had worked when it wrote its last checkpoint."""
        headers = [files.read_header(file) for file in (self.recording_file(0), self.training_file)]
        return next((header["seconds"] for header in headers if header), 0.0)

    def mark(self) -> Mark | None:
        """The settings of the command that owns the folder; None where there is no mark."""
        try:
            mark = json.loads(self.file.read_text(encoding="utf-8"))
            if next(iter(mark["runs"])):
                return {"encoder_precision": "float32"} | mark  # an older version had no other
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, AttributeError, StopIteration):
            pass
        raise UserError(
            f"{self.file} is damaged, so nothing can be resumed: add --overwrite to start afresh, or choose "
            "another --runname"
        )

    def check_place(self):
        """Refuse what cannot be a run folder: a file, a broken link, a place that cannot be written to."""
        for place in (features.ROOT, self.folder):
            if os.path.lexists(place) and not place.is_dir():
                what = "a link to a folder that is not there" if place.is_symlink() else "a file"
                raise UserError(
                    f"{place} is {what}, and a run needs a folder: move it away, or make what it names"
                )
        nearest = next(place for place in (self.folder, features.ROOT, Path()) if place.is_dir())
        if not os.access(nearest, os.W_OK | os.X_OK):
            raise UserError(
                f"{nearest.resolve()} cannot be written to: change its permissions, or work elsewhere"
            )

    def check(self, identity: Mark | None):
        """Refuse a folder that is not free for a command of this `identity`, before anything in it is touched.

        `identity` None: not known before the encoder is loaded; a marked folder passes.
        """
        mark = self.mark()
        if mark is None:
            self._check_free()
        elif identity is not None and has_begun(mark):
            difference = first_difference(mark, identity)
            if difference:
                raise UserError(
                    f"{self.folder} holds an unfinished run of another command ({difference}): give that command "
                    "again to finish it, add --overwrite to drop it, or choose another --runname"
                )

    def _check_free(self):
        """Refuse a whole run, and a folder that has no mark and is not empty."""
        if features.is_whole(self.folder):
            raise UserError(
                f"run {self.folder.name!r} exists: choose another --runname, or add --overwrite to replace it"
            )
        if others := [] if self.file.exists() else other_names(self.folder):
            raise UserError(
                f"{self.folder} holds no whole run and is not empty ({', '.join(others[:3])}): choose another "
                "--runname, move it away, or add --overwrite to remove what there is of a run"
            )

    def start(self, identity: Mark):
        """Remove any run from the folder, and mark it as this command's. Files that no run consists of stay.

        The state of an older command is removed before the new mark is written, so that no mark ever stands beside
        another command's state.
        """
        withdraw(self.folder)
        files.write_text(self.file, json.dumps(identity) + "\n")
        others = clear(self.folder)
        if others:
            print(f"left alone in {self.folder}, as no part of a run: {', '.join(others)}", file=sys.stderr)

    def finish(self):
        """Remove what only an unfinished run needs; the mark last, since without it the command is done."""
        for pattern in ("unfinished-*", *files.TEMPORARY, *(f"*/{name}" for name in files.TEMPORARY)):
            for file in self.folder.glob(pattern):
                file.unlink(missing_ok=True)
        self.lock_file.unlink(missing_ok=True)
        files.sync(self.folder)
        self.file.unlink(missing_ok=True)
        files.sync(self.folder)

    def check_idle(self):
        """Refuse a folder in which another command is at work."""
        if self.folder not in _held and self.lock_file.exists():
            handle = os.open(self.lock_file, os.O_RDWR)
            try:
                self._take(handle)
            finally:
                os.close(handle)

    def lock(self):
        """Make the folder and hold its lock until `release_locks`; refuses a folder that is locked."""
        files.make_folder(self.folder)
        while self.folder not in _held:
            handle = os.open(self.lock_file, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                self._take(handle)
            except UserError:
                os.close(handle)
                raise
            _held[self.folder] = handle
            if not is_file(handle, self.lock_file):  # its last holder removed it meanwhile: try again
                os.close(_held.pop(self.folder))
        os.ftruncate(_held[self.folder], 0)
        os.pwrite(_held[self.folder], f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)

    def _take(self, handle: int):
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            who = os.pread(handle, 200, 0).decode(errors="replace") or "a process"
            raise UserError(
                f"{who} is at work in {self.folder}: wait until it is done, or choose another --runname"
            ) from None
        except OSError as error:
            print(
                f"{self.folder} cannot be locked ({error.strerror}): take care that no other command writes to it",
                file=sys.stderr,
            )


def withdraw(folder: Path):
    """Remove the manifest, so that the run is no longer whole, and then every checkpoint."""
    (folder / features.MANIFEST).unlink(missing_ok=True)
    for state in folder.glob("unfinished-*"):
        state.unlink(missing_ok=True)
    files.sync(folder)


def clear(folder: Path) -> list[str]:
    """Remove what a run consists of, without following links; returns the names of what stays."""
    for pattern, names in FOLDERS.items():
        for inner in folder.glob(pattern):
            if inner.is_symlink():
                inner.unlink()
            elif inner.is_dir():
                remove(inner, names)
                if not any(inner.iterdir()):
                    inner.rmdir()
    remove(folder, FILES)
    files.sync(folder)
    return other_names(folder)


def remove(folder: Path, patterns: tuple[str, ...]):
    """Remove the files of a folder that match any of the patterns."""
    for pattern in patterns:
        for file in folder.glob(pattern):
            if file.is_symlink() or file.is_file():
                file.unlink()


def other_names(folder: Path) -> list[str]:
    """The names in a folder besides a command's mark, its lock and temporary files."""
    names = sorted(file.name for file in folder.glob("*"))
    own = (features.UNFINISHED, LOCK, *files.TEMPORARY)
    return [name for name in names if not any(fnmatch.fnmatch(name, pattern) for pattern in own)]


def is_file(handle: int, path: Path) -> bool:
    """Whether an open file is still the one at `path`."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


def release_locks():
    """Release the locks of this process. In a forked child this closes its copies, and its parent keeps the locks."""
    while _held:
        os.close(_held.popitem()[1])


# A DataLoader worker that outlives its parent must not keep holding the locks.
os.register_at_fork(after_in_child=release_locks)


def has_begun(mark: Mark) -> bool:
    """Whether the command of a mark has written a checkpoint."""
    first = features.run_path(next(iter(mark["runs"])))
    return any(first.glob("unfinished-*.safetensors"))


CHANGED = {  # what to say of a difference whose two values would tell a reader nothing
    "version": "another version of this toolkit began it",
    "fingerprint": "other samples, or other captions",
    "files": "the data's files have changed since",
    "encoder_files": "the checkpoint's files have changed since",
}


def first_difference(before: object, now: object, name: str = "") -> str | None:
    """Describe the first difference between two JSON values; None where they are equal."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in before | now:
            if found := first_difference(before.get(key), now.get(key), key):
                return found
        if name == "runs" and list(before) != list(
            now
        ):  # a checkpoint has them by number, in the first one's folder
            return f"its runs were {', '.join(before)}, now {', '.join(now)}"
        return None
    return None if before == now else CHANGED.get(name, f"{name} was {before}, now {now}")
