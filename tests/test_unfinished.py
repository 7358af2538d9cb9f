"""What a command may remove of a run folder, and what it leaves."""

import subprocess
import sys

import numpy as np
import pytest
from runs import make_run

import features
from plumbing.errors import UserError
from training.unfinished import Unfinished, release_locks


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_an_existing_run_is_kept_unless_told_otherwise():
    run = make_run("clip", {"layer0": np.eye(6)})
    folder = Unfinished(run.path)
    with pytest.raises(UserError, match="run 'clip' exists: choose another --runname, or add --overwrite"):
        folder.check(None)
    assert features.open_run("clip") == run
    folder.start({"runs": {"clip": {}}})
    assert [file.name for file in run.path.iterdir()] == ["unfinished.json"]


def test_overwriting_removes_the_run_and_follows_no_link(tmp_path):
    run = make_run("clip", {"layer0": np.eye(6), "layer1": np.eye(6)})
    (tmp_path / "archive").mkdir()
    (run.path / "layer1").rename(tmp_path / "archive" / "layer1")
    (run.path / "layer1").symlink_to(tmp_path / "archive" / "layer1")
    (run.path / "notes.txt").write_text("mine")
    Unfinished(run.path).start({"runs": {"clip": {}}})
    assert sorted(path.name for path in run.path.iterdir()) == ["notes.txt", "unfinished.json"]
    assert (tmp_path / "archive" / "layer1" / "features-00000.npz").exists()


HOLDER = """
import fcntl, sys
handle = open(sys.argv[1], "w")
fcntl.flock(handle, fcntl.LOCK_EX)
print("process 7 on elsewhere", end="", file=handle, flush=True)
print("held", flush=True)
sys.stdin.read()
"""


def test_a_folder_that_another_process_works_in_is_refused_until_that_is_gone(tmp_path):
    folder = Unfinished(features.run_path("clip"))
    folder.folder.mkdir(parents=True)
    command = [sys.executable, "-c", HOLDER, str(folder.lock_file)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"held\n"
        for refused in (folder.lock, folder.check_idle):
            with pytest.raises(
                UserError, match=r"process 7 on elsewhere is at work in sae_features/clip: wait"
            ):
                refused()
        assert folder.lock_file.read_text() == "process 7 on elsewhere"
    folder.lock()
    try:
        assert folder.lock_file.read_text().startswith("process ")
        other = "import fcntl, sys; fcntl.flock(open(sys.argv[1]), fcntl.LOCK_EX | fcntl.LOCK_NB)"
        done = subprocess.run([sys.executable, "-c", other, str(folder.lock_file)], capture_output=True)
        assert b"BlockingIOError" in done.stderr
    finally:
        release_locks()
