"""wmppc.py against an independent dense computation and hand-made runs."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from runs import make_run

import wmppc


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def codes(seed, n_features, n_rows=400, noise=0.5):
    """Sparse nonnegative codes in which feature j of every seed follows the same hidden event j."""
    hidden = np.random.default_rng(99).random((n_rows, 40)) < 0.1
    rng = np.random.default_rng(seed)
    events = hidden[:, rng.permutation(40)[:n_features]]
    return (events * rng.exponential(size=events.shape) + (rng.random(events.shape) < 0.02) * noise).astype(
        np.float32
    )


def oracle(source, target):
    """wMPPC by its formula: standardise, multiply, take the highest, weigh."""
    x, y = (np.asarray(side, np.float64) for side in (source, target))
    zx, zy = ((side - side.mean(0)) / side.std(0) for side in (x, y))
    rho = (zx.T @ zy / len(x)).max(axis=1)
    return (x.sum(0) * rho).sum() / x.sum(), rho


def two_runs():
    a = {"layer0": codes(1, 20), "layer1": codes(2, 12)}
    b = {"layer0": codes(3, 16), "layer1": codes(4, 10), "layer2": codes(5, 14)}
    make_run("A", a)
    make_run("B", b, part_rows=150)
    return a, b


def test_scores_are_those_of_the_formula():
    a, b = two_runs()
    forward, backward = wmppc.main(["--source", "A", "--target", "B"])
    for found, own, other in ((forward, a, b), (backward, b, a)):
        for i, layer in enumerate(own):
            for j, against in enumerate(other):
                assert found.layers[i][j].value == pytest.approx(
                    oracle(own[layer], other[against])[0], abs=1e-6
                )
        best = [np.max([oracle(own[i], other[j])[1] for j in other], axis=0) for i in own]
        scores = [(x.sum(0) * rho).sum() / x.sum() for x, rho in zip(own.values(), best, strict=True)]
        widths = [x.shape[1] for x in own.values()]
        assert found.wmppc["all_layers"].value == pytest.approx(np.average(scores, weights=widths), abs=1e-6)
        plain = np.average([rho.mean() for rho in best], weights=widths)
        assert found.mppc["all_layers"].value == pytest.approx(plain, abs=1e-6)
        last = oracle(list(own.values())[-1], list(other.values())[-1])
        assert found.wmppc["last_layer"].value == pytest.approx(last[0], abs=1e-6)
        assert found.mppc["last_layer"].value == pytest.approx(last[1].mean(), abs=1e-6)


def test_the_floor_is_the_score_of_permuted_rows():
    a, b = two_runs()
    forward, backward = wmppc.main(["--source", "A", "--target", "B"])
    permuted = np.random.default_rng(wmppc.FLOOR_SEED).permutation(400)
    x, y = a["layer1"], b["layer2"][permuted]
    assert forward.wmppc["last_layer"].floor == pytest.approx(oracle(x, y)[0], abs=1e-6)
    assert backward.wmppc["last_layer"].floor == pytest.approx(oracle(y, x)[0], abs=1e-6)
    assert forward.wmppc["last_layer"].floor < forward.wmppc["last_layer"].value


def test_a_run_has_all_of_itself():
    two_runs()
    for direction in wmppc.main(["--source", "A", "--target", "A"]):
        for scores in (direction.wmppc, direction.mppc):
            assert scores["all_layers"].value == pytest.approx(1, abs=1e-9)
            assert scores["last_layer"].value == pytest.approx(1, abs=1e-9)


def test_by_hand(capsys):
    """M's feature 0 (S = 4) is N's feature 1, its feature 1 (S = 1) fires with neither, and 2 is dead."""
    make_run("M", {"layer0": [[2, 0, 0], [2, 0, 0], [0, 1, 0], [0, 0, 0], [0, 0, 0]]})
    make_run("N", {"layer0": [[0, 3], [0, 3], [0, 0], [1, 0], [0, 0]]})
    forward, backward = wmppc.main(["--source", "M", "--target", "N"])
    assert forward.wmppc["last_layer"].value == pytest.approx((4 * 1 + 1 * -1 / 4) / 5)
    assert forward.mppc["last_layer"].value == pytest.approx((1 - 1 / 4) / 2)
    # back: feature 0 (S = 1) has -1/4 with feature 1, but 0 with the dead one; feature 1 (S = 6) has 1
    assert backward.wmppc["last_layer"].value == pytest.approx(6 / 7)
    assert (forward.live, forward.features) == ([2], [3])
    assert (backward.live, backward.features) == ([2], [2])
    assert "M: 2 of 3 features live" in capsys.readouterr().out


def test_a_layer_with_no_live_feature(capsys):
    make_run("M", {"layer0": codes(1, 8), "layer1": np.zeros((400, 30))})
    make_run("N", {"layer0": codes(2, 8)})
    forward, backward = wmppc.main(["--source", "M", "--target", "N", "--json", "pair.json"])
    expected = oracle(codes(1, 8), codes(2, 8))[0]
    assert forward.wmppc["all_layers"].value == pytest.approx(expected, abs=1e-6)
    assert np.isnan(forward.wmppc["last_layer"].value)
    assert backward.wmppc["last_layer"].value == 0
    document = json.loads(Path("pair.json").read_text())
    assert document["directions"][0]["wmppc"]["last_layer"] == {"value": None, "floor": None}
    assert " - " in capsys.readouterr().out


def test_json_holds_what_main_returns():
    two_runs()
    forward, backward = wmppc.main(["--source", "A", "--target", "B", "--json", "pair.json"])
    document = json.loads(Path("pair.json").read_text())
    assert document["n_samples"] == 400
    assert document["dataset"]["name"] == "handmade"
    assert document["directions"] == [json.loads(json.dumps(wmppc.plain(d))) for d in (forward, backward)]
    assert document["directions"][0]["source"] == document["directions"][1]["target"] == "A"


def test_what_is_printed(capsys):
    two_runs()
    forward, _ = wmppc.main(["--source", "A", "--target", "B"])
    printed = capsys.readouterr().out
    row = next(line for line in printed.splitlines() if line.startswith("wMPPC A -> B"))
    scores = [forward.wmppc["all_layers"], forward.wmppc["last_layer"]]
    assert row.split()[4:] == [f"{number:.3f}" for score in scores for number in score]
    assert "B -> A (rows -> columns)" in printed


def complaint(capsys, argv):
    with pytest.raises(SystemExit) as stop:
        wmppc.main(argv)
    assert stop.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    return lines[0]


def test_other_samples_are_refused(capsys):
    make_run("A", {"layer0": codes(1, 5)}, dataset_name="coco")
    make_run("B", {"layer0": codes(1, 5)}, ids=[f"other{i}" for i in range(400)], dataset_name="flowers")
    make_run("C", {"layer0": codes(1, 5)[:300]}, dataset_name="coco")
    line = complaint(capsys, ["--source", "A", "--target", "B"])
    assert all(part in line for part in ("'A'", "'B'", "coco", "flowers", "not comparable"))
    line = complaint(capsys, ["--source", "A", "--target", "C"])
    assert all(part in line for part in ("'A'", "'C'", "400", "300"))


def test_an_unknown_run_and_a_half_written_one_are_refused(capsys):
    make_run("A", {"layer0": codes(1, 5)})
    line = complaint(capsys, ["--source", "A", "--target", "Z"])
    assert "'Z'" in line
    assert "recorded runs: A" in line
    make_run("B", {"layer0": codes(1, 5)})
    Path("sae_features/B/run.json").unlink()
    assert "incomplete" in complaint(capsys, ["--source", "B", "--target", "A"])


def test_an_output_folder_that_does_not_exist_is_refused_before_the_work(capsys):
    two_runs()
    line = complaint(capsys, ["--source", "A", "--target", "B", "--json", "nowhere/pair.json"])
    assert "nowhere" in line


def test_arguments_that_are_missing_are_named(capsys):
    assert "--target" in complaint(capsys, ["--source", "A"])


def test_help_and_a_comparison_import_no_encoder_library():
    two_runs()
    code = (
        "import sys, wmppc\n"
        "wmppc.main(['--source', 'A', '--target', 'B'])\n"
        "print(sorted({'torch', 'open_clip', 'transformers'} & set(sys.modules)))"
    )
    root = str(Path(wmppc.__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": root}
    )
    assert done.stdout.splitlines()[-1] == "[]", done.stderr
    code = "import sys, wmppc\ntry: wmppc.main(['--help'])\nexcept SystemExit: print('numba' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": root}
    )
    assert done.stdout.splitlines()[-1] == "False", done.stderr
