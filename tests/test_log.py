"""training.jsonl, and the curve that is drawn from it."""

import json
import math

import pytest

from training import curve, fit, log, resume
from training.trainer import RECIPES, Report, default_lr


def test_a_line_every_twenty_steps_and_one_at_the_end_says_how_training_went(train):
    (run,) = train(epochs=4, layers=[0, 2])
    lines = log.read(run.path)
    assert [line["step"] for line in lines] == [20, 40, 60, 72]  # 18 batches an epoch, the last of 13 samples
    samples = [285 + 2 * 16, 2 * 285 + 4 * 16, 3 * 285 + 6 * 16, 4 * 285]
    assert [line["tokens"] for line in lines] == [3 * n for n in samples]
    fields = ("loss", "fvu", "dead_fraction", "lr")
    assert all(list(line[field]) == ["layer0", "layer2"] for line in lines for field in fields)
    assert lines[-1]["fvu"]["layer0"] < 0.8 * lines[0]["fvu"]["layer0"]
    assert 0 < lines[0]["seconds"] < lines[-1]["seconds"] <= run.manifest["seconds"]
    peak = default_lr(24, 72)
    falls = (72 + 1 - 72) / (RECIPES["ours"].decay * 72)
    assert [lines[i]["lr"]["layer2"] for i in (0, 1, 3)] == pytest.approx([peak, peak, peak * falls])


def test_a_resumed_training_has_every_line_once(train, monkeypatch):
    """It dies between line 40 and the next checkpoint: the one that it resumes from is of step 30."""
    (calm,) = train(runname="calm", epochs=4, seeds=[0, 1], top_k=[2, 3], layers=[0])[:1]
    step, steps = fit.show, []
    with monkeypatch.context() as patch:
        patch.setattr(resume.Clock, "is_due", lambda self: len(steps) == 1)
        patch.setattr(
            fit, "show", lambda *args: steps.append(1) or (1 / 0 if len(steps) == 2 else step(*args))
        )
        with pytest.raises(ZeroDivisionError):
            train(epochs=4, seeds=[0, 1], top_k=[2, 3], layers=[0], checkpoint_every=1e-9)
    runs = train(epochs=4, seeds=[0, 1], top_k=[2, 3], layers=[0])
    expected = [line | {"seconds": 0} for line in log.read(calm.path)]
    assert [line | {"seconds": 0} for line in log.read(runs[0].path)] == expected
    for run in runs:
        lines = log.read(run.path)
        assert [line["step"] for line in lines] == [20, 40, 60, 72]
        assert [line["seconds"] for line in lines] == sorted(line["seconds"] for line in lines)


@pytest.mark.parametrize(
    ("done", "kept"), [(0, []), (19, []), (20, [20]), (59, [20, 40]), (100, [20, 40, 60])]
)
def test_lines_after_the_checkpoint_and_a_half_line_are_cut_off(tmp_path, done, kept):
    whole = "".join(f'{{"step": {step}}}\n' for step in (20, 40, 60))
    (tmp_path / log.FILE).write_text(whole + '{"step": 8')
    log.rewind(tmp_path / log.FILE, done)
    assert log.read(tmp_path) == [{"step": step} for step in kept]
    assert (tmp_path / log.FILE).read_text() == whole[: sum(len('{"step": 20}\n') for _ in kept)]


def reports(fvu):
    return {f"layer{i}": Report(0.5 + i, fvu, 0.25, 1e-3, 640) for i in range(2)}


def test_a_line_is_json_with_null_for_what_is_not_a_number():
    found = json.loads(json.dumps(log.line(20, 1.23456, reports(math.nan)), allow_nan=False))
    assert found == {
        "step": 20,
        "tokens": 640,
        "seconds": 1.235,
        "loss": {"layer0": 0.5, "layer1": 1.5},
        "fvu": {"layer0": None, "layer1": None},
        "dead_fraction": {"layer0": 0.25, "layer1": 0.25},
        "lr": {"layer0": 1e-3, "layer1": 1e-3},
    }


def test_the_curve_has_a_line_a_layer_and_gaps_where_there_is_no_number(tmp_path):
    lines = [log.line(step, 0.0, reports(fvu)) for step, fvu in ((20, 0.5), (40, math.nan), (60, 0.25))]
    left, right = curve.curve(lines).axes
    assert [drawn.get_label() for drawn in right.lines] == ["layer0", "layer1"]
    assert left.lines[1].get_xdata().tolist() == [20, 40, 60]
    assert left.lines[1].get_ydata(orig=False).tolist() == pytest.approx([0.5, math.nan, 0.25], nan_ok=True)
    assert right.lines[0].get_ydata().tolist() == [0.25] * 3
    for name in ("one.png", "two.png"):
        curve.draw(tmp_path / name, lines)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
