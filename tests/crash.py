"""Processes that die at a chosen point of their work in `sae_features/`, and a disk that then loses what was not synced.

A point is every opening of a file to write, every write past Python's buffers, rename, sync, removal, and making or
removing of a folder. `sweep` runs in a child that has everything imported, and forks a process for each point.
"""

import json
import os
import shutil
import signal
import socket
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

DIED = 9  # the exit code of a process that died at its point
MEASURED = {"seconds", "samples_per_second", "peak_memory"}
GROUP = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}


class Disk:
    """What a process does to the run folders in `here`: counted, and what was synced copied to `synced`."""

    def __init__(self, here: Path, synced: Path, dies_at: int = 0):
        self.here, self.synced, self.dies_at = os.path.realpath(here), synced, dies_at
        self.root, self.points, self.held = os.path.join(self.here, "sae_features"), 0, {}
        self.really = {name: getattr(os, name) for name in ("fsync", "pwrite", "ftruncate")}

    def watch(self):
        """Count from now on, for the rest of this process."""
        sys.addaudithook(self.heard)
        os.fsync = self.fsync
        for name in ("pwrite", "ftruncate"):
            setattr(os, name, self.of_handle(name))

    def heard(self, event: str, words: tuple):
        """Python's own word of what it is about to do."""
        if event == "open" and not (words[2] or 0) & (os.O_WRONLY | os.O_RDWR):
            return
        if event in ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir") and not isinstance(
            words[0], int
        ):
            self.point(os.path.abspath(os.fsdecode(words[0])))

    def of_handle(self, name: str) -> Callable:
        def counted(handle, *words):
            self.point(self.path(handle))
            return self.really[name](handle, *words)

        return counted

    def fsync(self, handle: int):
        self.point(self.path(handle))
        self.really["fsync"](handle)
        self.keep(handle, self.path(handle))

    def path(self, handle: int) -> str:
        return os.readlink(f"/proc/self/fd/{handle}")

    def point(self, path: str):
        if path == self.here or path.startswith(self.root):
            self.points += 1
            if self.points == self.dies_at:
                os._exit(DIED)

    def keep(self, handle: int, path: str):
        """Copy what a sync makes safe: a file's content, or a folder's names and what they stand for.

        The files are held open, so that no number of a removed one is given to another.
        """
        if path != self.here and not path.startswith(self.root):
            return
        state = os.fstat(handle)
        self.held.setdefault(state.st_ino, os.dup(handle))
        copy = self.synced / f"{state.st_ino}.{os.getpid()}"
        if stat.S_ISDIR(state.st_mode):
            names = {entry.name: self.hold(entry) for entry in os.scandir(path)}
            copy.write_text(json.dumps({name: own for name, own in names.items() if own}))
        else:
            shutil.copy2(f"/proc/self/fd/{handle}", copy)
        copy.replace(self.synced / str(state.st_ino))

    def hold(self, entry: os.DirEntry) -> list | None:
        """What a name stands for: its number, and whether it is a folder."""
        number = entry.inode()
        try:
            self.held[number] = self.held.get(number) or os.open(entry.path, os.O_RDONLY)
        except FileNotFoundError:  # another process has removed it since
            return None
        return [number, entry.is_dir()]

    def keep_all(self):
        """Take all that there is for synced."""
        for folder, _, names in os.walk(self.here):
            for path in (folder, *(os.path.join(folder, name) for name in names)):
                handle = os.open(path, os.O_RDONLY)
                self.keep(handle, path)
                os.close(handle)


def power_cut(here: Path, synced: Path):
    """Leave of the run folders in `here` what was synced."""
    shutil.rmtree(here / "sae_features", ignore_errors=True)
    if (number := here.stat().st_ino) and (synced / str(number)).exists():
        restore(here, number, synced)


def restore(folder: Path, number: int, synced: Path):
    """Give a folder back its synced names, and those files their synced content; one never synced is empty."""
    names = json.loads((synced / str(number)).read_text()) if (synced / str(number)).exists() else {}
    for name, (own, is_folder) in names.items():
        if is_folder:
            (folder / name).mkdir()
            restore(folder / name, own, synced)
        elif (synced / str(own)).exists():
            shutil.copy2(synced / str(own), folder / name)
        else:
            (folder / name).touch()


# ------------------------------------------------------------------------------------------------- commands


def train(rank: int, overwrite: bool = False):
    """Two runs of two layers from one stream, recorded in three parts."""
    import small_world

    words = {"layers": [0, 2], "seeds": [0, 1], "batch_size": 8, "epochs": 2}
    small_world.train(pairs=small_world.SmallPairs(24), overwrite=overwrite, **words)


def train_apart(rank: int):
    """One process of two that have an SAE each."""
    train_two(rank, layers=(0, 2))


def train_two(rank: int, layers: tuple[int, ...] = (0,)):
    """One process of two that train one SAE together."""
    import small_world

    from plumbing import processes

    processes.team.cache_clear()  # of the process that this one was forked from
    os.environ.update(GROUP, RANK=str(rank), LOCAL_RANK=str(rank), GLOO_SOCKET_IFNAME="lo")
    small_world.train(pairs=small_world.SmallPairs(24), layers=layers, batch_size=6)


def overwrite(rank: int):
    """The same over an older run."""
    train(rank, overwrite=True)


def compare(rank: int):
    """Score two runs, and keep the scores."""
    import wmppc

    wmppc.main(["--source", "A", "--target", "B", "--metrics", "wmppc"])


def older_run():
    """Something to be overwritten: another width, more layers and parts, kept scores, and notes of the user's."""
    import numpy as np
    from runs import make_run

    for name in ("run_seed0", "run_seed1"):
        run = make_run(name, {f"layer{i}": np.eye(24, 5) for i in range(3)}, part_rows=5)
        (run.path / "pairs").mkdir()
        (run.path / "pairs" / "other.json").write_text("{}")
        (run.path / "notes.txt").write_text("mine")


def two_runs():
    import numpy as np
    from runs import make_run

    random = np.random.default_rng(0)
    for name in "AB":
        make_run(name, {"layer0": random.random((30, 4)), "layer1": random.random((30, 4))})


COMMANDS = {  # the processes' function, how many there are, and what there is before
    "train": (train, 1, lambda: None),
    "overwrite": (overwrite, 1, older_run),
    "train_two": (train_two, 2, lambda: None),
    "train_apart": (train_apart, 2, lambda: None),
    "compare": (compare, 1, two_runs),
}


# ------------------------------------------------------------------------------------------------ the sweep


def sweep(here: str, name: str, step: int):
    """Die at every `step`th point of a command, give it again, and write what differs to `here`/found.json."""
    here = Path(here)
    os.chdir(here)
    prepare_process()
    command, n_processes, before = COMMANDS[name]
    (here / "before").mkdir()
    os.chdir(here / "before")
    before()
    warm_up(command if n_processes == 1 else train, fresh(here, "warm"))
    calm = fresh(here, "calm")
    finish(fork(command, n_processes, calm))
    expected, found = content(calm), {"points": 0, "wrong": []}
    for rank in range(n_processes):
        n_points = int((calm.parent / f"points{rank}").read_text())
        for point in range(1 + rank, n_points + 1, step):
            for cut in (True, False) if step == 1 else (point // step % 2 == 0,):
                place = fresh(here, f"{rank}-{point}-{cut}")
                die(fork(command, n_processes, place, rank, point), rank)
                if cut:
                    power_cut(place, place.parent / "synced")
                if not (name.startswith("train") and has_ended(place)):
                    finish(fork(command, n_processes, place))
                found["points"] += 1
                if differing := differences(content(place), expected):
                    found["wrong"].append([rank, point, "power cut" if cut else "killed", differing])
                shutil.rmtree(place.parent)
    (here / "found.json").write_text(json.dumps(found))


def warm_up(command: Callable, place: Path):
    """Run a command in this process, so that its forks have all compiled functions at hand."""
    os.chdir(place)
    command(0)


def prepare_process():
    """Settle what is the same in all processes, which are forks of this one: one thread, and a checkpoint a step."""
    import torch
    import tqdm

    import features
    from plumbing import files
    from training import curve, fit, resume

    torch.set_num_threads(1)
    tqdm.tqdm.monitor_interval = 0  # no thread
    features.PART_ROWS, fit.REPORT_EVERY = 9, 2
    resume.Clock.is_due = lambda self: True
    curve.draw = lambda file, *rest: files.write_text(file, "a curve")


def fresh(here: Path, name: str) -> Path:
    """A folder to work in, as it is before the command."""
    place = here / name / "work"
    (here / name / "synced").mkdir(parents=True)
    shutil.copytree(here / "before", place)
    return place


def fork(command: Callable, n_processes: int, place: Path, dying: int = 0, dies_at: int = 0) -> list[int]:
    """Start the command's processes in `place`, of which one dies at a point, if there is one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        os.environ["MASTER_PORT"] = str(free.getsockname()[1])
    children = []
    for rank in range(n_processes):
        child = os.fork()
        if child == 0:
            work(command, place, rank, dies_at if rank == dying else 0)
        children.append(child)
    return children


def work(command: Callable, place: Path, rank: int, dies_at: int):
    """A forked process, from its first step to its exit."""
    code = 1
    try:
        log = os.open(place.parent / f"log{rank}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1), os.dup2(log, 2)
        os.chdir(place)
        disk = Disk(place, place.parent / "synced", dies_at)
        disk.keep_all()
        disk.watch()
        command(rank)
        (place.parent / f"points{rank}").write_text(str(disk.points))
        code = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)


def die(children: list[int], dying: int):
    """Wait until the process dies at its point, and kill the others, as torchrun does."""
    code = os.waitstatus_to_exitcode(os.waitpid(children[dying], 0)[1])
    for other in children[:dying] + children[dying + 1 :]:
        os.kill(other, signal.SIGKILL)
        os.waitpid(other, 0)
    assert code == DIED, f"exit code {code}"


def finish(children: list[int]):
    """Wait for processes that must succeed."""
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert not any(codes), codes


def has_ended(place: Path) -> bool:
    """Whether the runs are whole and no command's: the same one, given again, rightly says that they exist."""
    folders = list((place / "sae_features").glob("*/"))
    return bool(folders) and all(
        (folder / "run.json").exists() and not (folder / "unfinished.json").exists() for folder in folders
    )


def content(place: Path) -> dict[str, Any]:
    """Every file by its path: its bytes, or a manifest without what is measured."""
    return dict(_content(place / "sae_features"))


def _content(root: Path) -> Iterator[tuple[str, Any]]:
    for path in sorted(root.rglob("*")):
        if path.name == "run.json":
            manifest = json.loads(path.read_text())
            yield str(path.relative_to(root)), {k: v for k, v in manifest.items() if k not in MEASURED}
        elif path.name == "training.jsonl":
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            yield str(path.relative_to(root)), [line | {"seconds": None} for line in lines]
        elif path.is_file():
            yield str(path.relative_to(root)), path.read_bytes()


def differences(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """The files that differ, are missing or too many."""
    return sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
