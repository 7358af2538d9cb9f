"""A killed command resumes what is its own, and no command touches what is not (tests/crash.py kills one anywhere)."""

import errno
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from children import content
from small_world import SmallEncoder, SmallPairs

import features
from plumbing import files
from plumbing.errors import UserError
from plumbing.processes import Team
from training import experiment, fit, manifest, record, resume, saves, trainer, unfinished
from training.activations import Stream
from training.settings import Settings
from training.token_cache import RecordedTokens
from training.work import Job, Work


@pytest.fixture
def cut_short(train, monkeypatch):
    """A command that was interrupted in training; returns it, to be given again with changes."""

    def command(pairs=None, **changes):
        return train(pairs=pairs, epochs=4, checkpoint_every=1e-9, **changes)

    with monkeypatch.context() as patch:
        patch.setattr(resume.Clock, "is_due", lambda self: True)
        patch.setattr(fit, "show", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            command()
    return command


def test_training_goes_on_where_it_was(cut_short, monkeypatch, capsys):
    steps = []
    step = trainer.LayerTrainer.step
    monkeypatch.setattr(trainer.LayerTrainer, "step", lambda self, z: steps.append(1) or step(self, z))
    monkeypatch.setattr(fit, "measure_scales", None)  # no batch is encoded for them again
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


class Edited(SmallPairs):
    """The same rows and captions, of files with another date."""

    def file_stamp(self):
        return "edited"


class Recaptioned(SmallPairs):
    """The same ids under other captions."""

    fingerprint = "other"


@pytest.mark.parametrize(
    ("pairs", "stamp", "words"),
    [
        (Edited(300), "small", "the data's files have changed since"),
        (Recaptioned(300), "small", "other samples, or other captions"),
        (SmallPairs(300), "edited", "the checkpoint's files have changed since"),
    ],
)
def test_an_unfinished_run_of_data_or_a_checkpoint_edited_since_is_refused(
    cut_short, monkeypatch, capsys, pairs, stamp, words
):
    monkeypatch.setattr(SmallEncoder, "file_stamp", lambda self: stamp)
    with pytest.raises(UserError, match=words):
        cut_short(pairs)
    cut_short(pairs, overwrite=True)
    assert "going on" not in capsys.readouterr().err


def test_a_checkpoint_of_another_version_of_the_toolkit_is_refused(cut_short, monkeypatch):
    monkeypatch.setattr(experiment, "STATE_VERSION", experiment.STATE_VERSION + 1)
    with pytest.raises(UserError, match="another version of this toolkit began it"):
        cut_short()


def test_overwrite_starts_afresh(cut_short, capsys):
    cut_short(overwrite=True)
    assert "going on" not in capsys.readouterr().err


@pytest.mark.parametrize("file", ["unfinished-training.safetensors", "unfinished.json"])
def test_a_cut_state_is_one_line_and_overwrite_helps(cut_short, file):
    path = features.run_path("run") / file
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=f"{file} is damaged.*add --overwrite"):
        cut_short()
    cut_short(overwrite=True)


def test_the_second_of_two_commands_says_who_is_at_work_and_touches_nothing(cut_short, monkeypatch):
    """The first one's lock goes with it."""
    refused = []

    def train_on(*args):
        if not refused:
            refused.append(content(features.run_path("run")))
            held = dict(unfinished._held)
            unfinished._held.clear()  # as in another process
            for overwrite in (False, True):
                with pytest.raises(UserError, match=f"process {os.getpid()} on .* is at work in .*run"):
                    resume.check_names(["run"], None, overwrite)
                with pytest.raises(UserError, match="is at work"):
                    unfinished.Unfinished(features.run_path("run")).lock()
            unfinished._held.update(held)
            refused.append(content(features.run_path("run")))

    with monkeypatch.context() as patch:
        patch.setattr(fit, "train_on", train_on)
        cut_short(overwrite=True)
    assert refused[0] == refused[1]
    assert not list(features.run_path("run").glob("unfinished*"))


def test_a_run_killed_while_cleaning_up_is_cleaned_up_and_not_trained_again(cut_short, monkeypatch):
    def killed(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(unfinished.Unfinished, "finish", killed)
        with pytest.raises(KeyboardInterrupt):
            cut_short()
    monkeypatch.setattr(experiment, "fit", None)
    (run,) = cut_short()
    assert not list(run.path.glob("unfinished*"))


def test_the_training_checkpoint_goes_by_the_first_process_and_after_all_recordings_have_begun(
    cut_short, monkeypatch
):
    order = []
    for owner, name in (
        (record, "restore_recording"),
        (saves, "wait_for_all"),
        (record, "wait_for_all"),
        (RecordedTokens, "sync"),
    ):
        real = getattr(owner, name)
        spy = lambda *args, real=real, name=name: (order.append(name), real(*args))[1]  # noqa: E731
        monkeypatch.setattr(owner, name, spy)
    state = features.run_path("run") / "unfinished-training.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr(record, "plan_parts", lambda *args: 1 / 0)
        patch.setattr(record, "team", lambda: Team(1, 1))
        stream = Stream(SmallEncoder(), SmallPairs(300), [0])
        job = Job(unfinished.Unfinished(state.parent), Settings())
        record.drop_training(Work(stream, [job], np.zeros(300, bool), None, 0.0))
        assert state.exists()
        patch.setattr(record, "team", lambda: Team(0, 1))
        with pytest.raises(ZeroDivisionError):
            cut_short()
    assert not state.exists()
    assert order[-4:] == ["sync", "wait_for_all", "restore_recording", "wait_for_all"]


@pytest.mark.parametrize("made", ["itself", "a layer", "a link", "a link inside", "one of a group"])
def test_saes_in_the_run_folder_to_be_written_are_refused(cut_short, tmp_path, made):
    (run,) = cut_short(**({"runname": "run_k2"} if made == "one of a group" else {}))
    before, sae = content(run.path), run.path
    if made == "a layer":
        sae = run.path / "layer0"
    elif made.startswith("a link"):
        sae = tmp_path / "mine"
        inside = made == "a link inside"
        if inside:
            sae.mkdir()
        (sae / "layer0" if inside else sae).symlink_to(
            (run.path / "layer0" if inside else run.path).resolve()
        )
    group = {"top_k": [2, 3]} if made == "one of a group" else {}
    with pytest.raises(
        UserError, match="lies in .*, which this command would write: choose another --runname"
    ):
        cut_short(sae=str(sae), overwrite=True, **group)
    assert content(run.path) == before


def test_what_is_no_run_is_neither_deleted_nor_trained_into(cut_short, capsys):
    folder = features.run_path("copied")
    (folder / "layer0").mkdir(parents=True)
    (folder / "layer0" / "features-00000.npz").write_bytes(b"copied, cut short")
    (folder / "notes.txt").write_text("mine")
    before = content(folder)
    with pytest.raises(UserError, match=r"copied holds no whole run and is not empty \(layer0, notes.txt\)"):
        cut_short(runname="copied")
    assert content(folder) == before
    (run,) = cut_short(runname="copied", overwrite=True)
    assert "left alone in sae_features/copied, as no part of a run: notes.txt" in capsys.readouterr().err
    assert (folder / "notes.txt").read_text() == "mine"
    assert run.load("layer0").shape[0] == 300


def test_a_run_folder_may_be_a_link(cut_short, tmp_path):
    """New, then finished, then overwritten; what it links to is emptied of the run alone."""
    (tmp_path / "large").mkdir()
    features.run_path("linked").symlink_to(tmp_path / "large")
    (run,) = cut_short(runname="linked")
    with pytest.raises(UserError, match="run 'linked' exists"):
        cut_short(runname="linked")
    cut_short(runname="linked", overwrite=True, layers=[0])
    assert run.path.is_symlink()
    assert sorted(path.name for path in (tmp_path / "large").glob("layer*")) == ["layer0"]


def test_what_cannot_be_a_run_folder_is_one_line(cut_short, tmp_path):
    features.run_path("gone").symlink_to(tmp_path / "nowhere")
    features.run_path("loop").symlink_to("loop")
    features.run_path("file").write_text("mine")
    for name, words in (
        ("gone", "a link to a folder that is not there"),
        ("loop", "a link"),
        ("file", "a file"),
    ):
        for again in ({}, {"overwrite": True}):
            with pytest.raises(UserError, match=f"sae_features/{name} is {words}"):
                cut_short(runname=name, **again)
    shutil.move("sae_features", "elsewhere")
    Path("sae_features").write_text("mine")
    with pytest.raises(UserError, match="sae_features is a file"):
        cut_short()


def test_a_run_folder_that_cannot_be_written_to_is_one_line(cut_short, monkeypatch):
    def readonly(path, *args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", readonly)
        with pytest.raises(UserError, match="sae_features/new/.*: Permission denied; mend that"):
            cut_short(runname="new")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(UserError, match="sae_features/run cannot be written to"):
        cut_short()


def test_what_an_unfinished_command_has_not_begun_is_in_nobodys_way(cut_short):
    """It was stopped before it had trained a step that it could go on from."""
    features.run_path("run").joinpath("unfinished-training.safetensors").unlink()
    (run,) = cut_short(top_k=[3])
    assert run.manifest["training"]["top_k"] == 3


def test_a_finished_run_is_never_gone_on_with(cut_short):
    cut_short()
    with pytest.raises(UserError, match="run 'run' exists"):
        cut_short()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_ends_in_one_line_and_loses_nothing(cut_short, monkeypatch, code):
    before = content(features.run_path("run"))

    def full(*args):
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_state", full)
        with pytest.raises(UserError, match="disk is full: make room and give the same command again"):
            cut_short()
    assert content(features.run_path("run")) == before
    cut_short()


def test_several_runs_killed_between_their_manifests_are_finished_by_the_same_command(cut_short, monkeypatch):
    """The first run is whole by then, and its command is not done."""
    finish, written = manifest.finish, []

    def killed(work, number, *others):
        if number:
            raise KeyboardInterrupt
        written.append(finish(work, number, *others))

    variants = {"seeds": [0, 1], "runname": "both"}
    with monkeypatch.context() as patch:
        patch.setattr(experiment, "finish", killed)
        with pytest.raises(KeyboardInterrupt):
            cut_short(**variants)
    assert features.run_names() == ["both_seed0"]
    before = content(written[0].path)
    monkeypatch.setattr(trainer.LayerTrainer, "step", None)
    runs = cut_short(**variants)
    assert [run.name for run in runs] == features.run_names() == ["both_seed0", "both_seed1"]
    left = {name: bytes_ for name, bytes_ in before.items() if not name.startswith("unfinished")}
    assert content(runs[0].path) == left
    assert not list(runs[1].path.glob("unfinished*"))
    with pytest.raises(UserError, match="exists"):
        cut_short(**variants)


def test_the_same_runs_in_another_order_are_refused_and_nothing_is_lost(cut_short, monkeypatch):
    variants = {"runname": "both", "data_seed": 0}
    with monkeypatch.context() as patch:
        patch.setattr(fit, "show", lambda *args: 1 / 0)
        patch.setattr(resume.Clock, "is_due", lambda self: True)
        with pytest.raises(ZeroDivisionError):
            cut_short(seeds=[0, 1], **variants)
    before = content(features.run_path("both_seed0"))
    assert any(name.endswith(".safetensors") for name in before)
    with pytest.raises(UserError, match="its runs were both_seed0, both_seed1, now both_seed1, both_seed0"):
        cut_short(seeds=[1, 0], **variants)
    assert content(features.run_path("both_seed0")) == before


def test_a_later_run_of_another_unfinished_command_is_not_emptied(cut_short, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(experiment, "record", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            cut_short(seeds=[0, 1], runname="both")
    before = content(features.run_path("both_seed1"))
    assert "layer0/sae_weights.safetensors" in before
    with pytest.raises(UserError, match="both_seed1 holds an unfinished run of another command"):
        cut_short(runname="both_seed1")
    assert content(features.run_path("both_seed1")) == before
    (run,) = cut_short(runname="both_seed1", overwrite=True)
    assert run.manifest["training"]["seed"] == 0
