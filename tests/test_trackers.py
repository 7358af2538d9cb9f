"""--log: a tracker is sent the lines of training.jsonl, by stand-ins with the calls of the real packages."""

import contextvars
import sys
from types import SimpleNamespace

import pytest

import features
import train_text
from plumbing.errors import UserError
from training import fit, log, resume


class Sent:
    """A tracker's run, as wandb's and trackio's `init` return it."""

    def __init__(self, **named):
        self.named, self.lines, self.finished = named, [], False

    def log(self, values, step):
        assert not self.finished
        self.lines.append({"step": step, **values})
        print("said by a tracker")

    def finish(self):
        self.finished = True


current = contextvars.ContextVar("current", default=None)


class Trackio(Sent):
    """A run of trackio, which ends the one before."""

    def __init__(self, **named):
        super().__init__(**named)
        if current.get():
            current.get().finish()
        current.set(self)


class Writer(Sent):
    """TensorBoard's SummaryWriter."""

    def __init__(self, folder, purge_step):
        assert purge_step == 0
        super().__init__(name=folder.removeprefix("runs/"))

    def add_scalar(self, name, value, step):
        if not self.lines or self.lines[-1]["step"] != step:
            self.log({}, step)
        self.lines[-1][name] = value

    def close(self):
        self.finish()


@pytest.fixture
def trackers(tmp_path, monkeypatch):
    """All three, installed; returns the runs that they were told to start."""
    started = []

    def starting(kind):
        return lambda *args, **named: started.append(kind(*args, **named)) or started[-1]

    monkeypatch.syspath_prepend(tmp_path)
    for name in ("wandb", "trackio", "tensorboard"):
        (tmp_path / f"{name}.py").write_text("")  # to be found, and not imported before it is asked for
    monkeypatch.setitem(
        sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=starting(Writer))
    )
    for name, kind in {"wandb": Sent, "trackio": Trackio}.items():
        monkeypatch.delitem(sys.modules, name, raising=False)
        monkeypatch.setattr(__import__(name), "init", starting(kind), raising=False)
        monkeypatch.setitem(sys.modules, name, sys.modules[name])
    return started


@pytest.mark.parametrize("tracker", ["wandb", "trackio", "tensorboard"])
def test_a_tracker_gets_what_the_file_has_once_and_after_a_resume_too(
    train, trackers, monkeypatch, capsys, tracker
):
    command, shows = dict(epochs=4, seeds=[0, 1], layers=[0, 2], log=tracker), []
    show = fit.show
    with monkeypatch.context() as patch:
        patch.setattr(resume.Clock, "is_due", lambda self: len(shows) == 1)
        patch.setattr(
            fit, "show", lambda *args: shows.append(1) or (1 / 0 if len(shows) == 2 else show(*args))
        )
        with pytest.raises(ZeroDivisionError):
            train(checkpoint_every=1e-9, **command)
    assert [[line["step"] for line in run.lines] for run in trackers] == [[20, 40]] * 2
    capsys.readouterr()
    runs = train(**command)
    assert "tracker" not in capsys.readouterr().out
    for run, sent in zip(runs, trackers[2:], strict=True):
        assert sent.named["name"] == run.name
        assert sent.finished
        lines = log.read(run.path)
        assert sent.lines == [{"step": line["step"], **log.flat(line)} for line in lines]
        assert sent.lines[-1]["fvu/layer2"] == lines[-1]["fvu"]["layer2"]
        if tracker != "tensorboard":
            assert sent.named["config"] == run.manifest["training"]
            assert sent.named.get("reinit") == ("create_new" if tracker == "wandb" else None)


def test_a_tracker_that_cannot_start_ends_in_one_line_and_one_that_fails_later_costs_no_run(
    train, trackers, monkeypatch, capsys
):
    def init(**_):
        raise RuntimeError("No API key configured.\nmore")

    with monkeypatch.context() as patch:
        patch.setattr(sys.modules["wandb"], "init", init)
        said = r"--log wandb cannot start \(No API key configured.\): type wandb login, or set WANDB_MODE=offline"
        with pytest.raises(UserError, match=said):
            train(epochs=2, log="wandb")
    monkeypatch.setattr(Sent, "log", lambda self, values, step: 1 / (step - 20))
    (run,) = train(epochs=2, log="wandb")
    assert [line["step"] for line in log.read(run.path)] == [20, 36]
    printed = capsys.readouterr()
    assert printed.err.count("--log wandb has failed and gets no more (division by zero)") == 1
    assert not printed.out


def test_what_is_nan_is_not_sent():
    values = {"layer0": None, "layer1": 0.5}
    line = {"step": 20, "tokens": 9, "seconds": 1.0, "loss": values, "fvu": {}, "dead_fraction": {}, "lr": {}}
    assert log.flat(line) == {"tokens": 9, "seconds": 1.0, "loss/layer1": 0.5}


def test_a_tracker_that_is_not_installed_ends_in_the_line_that_installs_it(train, monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"--log trackio .*: type uv pip install trackio$"):
        train(log="trackio")
    with pytest.raises(SystemExit):
        train_text.main(["--log", "wandb", "--limit", "30"])
    assert capsys.readouterr().err.endswith("type uv pip install wandb\n")
    assert not features.ROOT.exists()
