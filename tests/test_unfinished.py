"""What a command may remove of a run folder, and what it leaves."""

import numpy as np
import pytest
from runs import make_run

import features
from plumbing.errors import UserError
from training.unfinished import Unfinished


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
