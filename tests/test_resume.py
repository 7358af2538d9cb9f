"""A killed command, given again, ends with the run folder that it would have made undisturbed."""

import json
import random
import shutil
import time

import pytest
from children import content, finish, start
from small_world import SmallEncoder, SmallPairs, arguments

import data
import features
import files
import training
import wrappedmodels
from training import UserError

KILLS = 14
COMMAND = {"epochs": 5, "batch_size": 8, "checkpoint_every": 0.001, "part_rows": 4, "runname": "run"}
MEASURED = {"seconds", "samples_per_second", "peak_memory"}


def manifest(folder):
    whole = json.loads((folder / "run.json").read_text())
    return {key: value for key, value in whole.items() if key not in MEASURED}


def test_a_run_killed_a_dozen_times_is_bitwise_the_undisturbed_one(tmp_path):
    calm, rough = tmp_path / "calm", tmp_path / "rough"
    calm.mkdir()
    rough.mkdir()
    finish(start(calm, COMMAND))
    expected = calm / "sae_features" / "run"

    dice, found = random.Random(3), rough / "sae_features" / "run"
    phases = {"training": 0, "recording": 0}
    for kill in range(KILLS):
        child = start(rough, COMMAND)
        wait_for_progress(child, found, "recording" if kill >= KILLS // 2 else "training")
        time.sleep(0.01 * dice.random())
        child.kill()
        child.join()
        if (found / "run.json").exists():  # it was faster than the kill: once more from the start
            shutil.rmtree(found)
            continue
        phases["recording" if list(found.glob("unfinished-recording-*")) else "training"] += 1
    assert sum(phases.values()) >= 10, phases
    assert min(phases.values()) >= 3, phases
    finish(start(rough, COMMAND))
    assert content(found) == content(expected)
    assert manifest(found) == manifest(expected)


def wait_for_progress(child, folder, phase):
    """Return when the state of that phase has been written anew, so that every attempt gets somewhere."""
    before = states(folder, phase)
    while child.is_alive() and states(folder, phase) == before:
        time.sleep(0.001)


def states(folder, phase):
    found = []
    for path in folder.glob(f"unfinished-{phase}*"):
        try:
            found.append((path.name, path.stat().st_mtime_ns))
        except FileNotFoundError:
            continue
    return found


@pytest.fixture
def cut_short(tmp_path, monkeypatch):
    """A command that was interrupted in training; returns it, to be given again with changes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(wrappedmodels, "load", lambda *args, **kwargs: SmallEncoder())
    monkeypatch.setattr(data, "from_arguments", lambda _: SmallPairs(300))

    def command(**changes):
        return training.run(arguments(epochs=4, checkpoint_every=1e-9, **changes))

    with monkeypatch.context() as patch:
        patch.setattr(training.Clock, "is_due", lambda self: True)
        patch.setattr(training, "report", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            command()
    return command


def test_training_goes_on_where_it_was(cut_short, monkeypatch, capsys):
    steps = []
    step = training.LayerTrainer.step
    monkeypatch.setattr(training.LayerTrainer, "step", lambda self, z: steps.append(1) or step(self, z))
    (run,) = cut_short()
    assert "going on after 19 steps" in capsys.readouterr().err
    assert len(steps) == 3 * (72 - 19)  # three layers, 4 epochs of 285 samples in batches of 16
    assert list(run.path.glob("unfinished*")) == []


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"lr": 0.1}, "lr was None, now 0.1"),
        ({"top_k": [3]}, "top_k was 2, now 3"),
        ({"seeds": [5]}, "seed was 0"),
    ],
)
def test_another_commands_unfinished_run_is_refused_by_name_and_kept(cut_short, change, difference):
    before = content(features.run_path("run"))
    with pytest.raises(UserError, match=difference):
        cut_short(**change)
    assert content(features.run_path("run")) == before
    (run,) = cut_short(**change, overwrite=True)
    assert run.manifest["training"]["epochs"] == 4


def test_what_an_unfinished_command_has_not_begun_is_in_nobodys_way(cut_short):
    """It was stopped before it had trained a step that it could go on from."""
    features.run_path("run").joinpath("unfinished-training.safetensors").unlink()
    (run,) = cut_short(top_k=[3])
    assert run.manifest["training"]["top_k"] == 3


def test_a_finished_run_is_never_gone_on_with(cut_short):
    cut_short()
    with pytest.raises(UserError, match="run 'run' exists"):
        cut_short()


def test_a_full_disk_ends_in_one_line_and_loses_nothing(cut_short, monkeypatch):
    before = content(features.run_path("run"))

    def full(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_state", full)
        with pytest.raises(UserError, match="disk is full: make room and give the same command again"):
            cut_short()
    assert content(features.run_path("run")) == before
    cut_short()


def test_several_runs_killed_between_their_manifests_are_finished_by_the_same_command(cut_short, monkeypatch):
    """The first run is whole by then, and its command is not done."""
    finish, written = training.finish, []

    def killed(work, number, *others):
        if number:
            raise KeyboardInterrupt
        written.append(finish(work, number, *others))

    variants = {"seeds": [0, 1], "runname": "both"}
    with monkeypatch.context() as patch:
        patch.setattr(training, "finish", killed)
        with pytest.raises(KeyboardInterrupt):
            cut_short(**variants)
    assert features.run_names() == ["both_seed0"]
    before = content(written[0].path)
    monkeypatch.setattr(training.LayerTrainer, "step", None)
    runs = cut_short(**variants)
    assert [run.name for run in runs] == features.run_names() == ["both_seed0", "both_seed1"]
    left = {name: bytes_ for name, bytes_ in before.items() if not name.startswith("unfinished")}
    assert content(runs[0].path) == left
    assert not list(runs[1].path.glob("unfinished*"))
    with pytest.raises(UserError, match="exists"):
        cut_short(**variants)


def test_a_later_run_of_another_unfinished_command_is_not_emptied(cut_short, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(training, "record", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            cut_short(seeds=[0, 1], runname="both")
    before = content(features.run_path("both_seed1"))
    assert "layer0/sae_weights.safetensors" in before
    with pytest.raises(UserError, match="both_seed1 holds an unfinished run of another command"):
        cut_short(runname="both_seed1")
    assert content(features.run_path("both_seed1")) == before
    (run,) = cut_short(runname="both_seed1", overwrite=True)
    assert run.manifest["training"]["seed"] == 0
