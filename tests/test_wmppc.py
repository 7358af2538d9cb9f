"""wmppc.py against an independent dense computation and hand-made runs."""

import atexit
import contextlib
import csv
import itertools
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
import torch.distributed
from oracles import pearson
from oracles import wmppc as oracle
from PIL import Image
from runs import make_run

import comparing
import features
import samples
import wmppc
from comparing import comparison, draws, older, results
from comparing import reader as reader_module
from comparing.clusters import clusters, permutation
from plumbing import commandline, processes
from plumbing.errors import UserError
from showing import figures


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
        assert found.scores["mppc"]["all_layers"].value == pytest.approx(plain, abs=1e-6)
        last = oracle(list(own.values())[-1], list(other.values())[-1])
        assert found.wmppc["last_layer"].value == pytest.approx(last[0], abs=1e-6)
        assert found.scores["mppc"]["last_layer"].value == pytest.approx(last[1].mean(), abs=1e-6)


def test_compare_is_called_from_a_notebook(capsys):
    a, b = two_runs()
    found = comparing.compare(features.open_run("B"), features.open_run("A"))
    assert [(d.source, d.target) for d in found] == [("B", "A"), ("A", "B")]
    assert found.wmppc == found.forward.wmppc
    assert found.wmppc["last_layer"].value == pytest.approx(oracle(b["layer2"], a["layer1"])[0], abs=1e-6)
    assert tuple(found) == wmppc.main(["--source", "B", "--target", "A"])
    assert tuple(found) == comparing.compare(*map(features.open_run, "AB"), memory=16_000)[::-1]


def test_compare_refuses_other_samples_and_unknown_metrics():
    two_runs()
    make_run("C", {"layer0": codes(1, 5)[:300]})
    runs = {name: features.open_run(name) for name in "ABC"}
    with pytest.raises(UserError, match="not comparable"):
        comparing.compare(runs["A"], runs["C"])
    with pytest.raises(UserError, match="svcca.*soft_matching"):
        comparing.compare(runs["A"], runs["B"], metrics=["svcca"])


def test_the_floor_is_the_mean_score_of_permuted_rows():
    a, b = two_runs()
    forward, backward = wmppc.main(["--source", "A", "--target", "B", "--permutations", "20"])
    groups = clusters([f"sample{row}.png" for row in range(400)])
    x, by_chance = a["layer1"], [b["layer2"][permutation(groups, number)] for number in range(20)]
    there, back = np.mean([(oracle(x, y)[0], oracle(y, x)[0]) for y in by_chance], axis=0)
    assert forward.wmppc["last_layer"].floor == pytest.approx(there, abs=1e-6)
    assert backward.wmppc["last_layer"].floor == pytest.approx(back, abs=1e-6)
    assert forward.wmppc["last_layer"].floor < forward.wmppc["last_layer"].value


def test_a_run_has_all_of_itself():
    two_runs()
    for direction in wmppc.main(["--source", "A", "--target", "A"]):
        for found in direction.scores.values():
            assert found["all_layers"].value == pytest.approx(1, abs=1e-9)
            assert found["last_layer"].value == pytest.approx(1, abs=1e-9)


def test_by_hand(capsys):
    """M's feature 0 (S = 4) is N's feature 1, its feature 1 (S = 1) fires with neither, and 2 is dead."""
    make_run("M", {"layer0": [[2, 0, 0], [2, 0, 0], [0, 1, 0], [0, 0, 0], [0, 0, 0]]})
    make_run("N", {"layer0": [[0, 3], [0, 3], [0, 0], [1, 0], [0, 0]]})
    forward, backward = wmppc.main(["--source", "M", "--target", "N"])
    assert forward.wmppc["last_layer"].value == pytest.approx((4 * 1 + 1 * -1 / 4) / 5)
    assert forward.scores["mppc"]["last_layer"].value == pytest.approx((1 - 1 / 4) / 2)
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
    assert set(document["directions"][0]["scores"]["wmppc"]["last_layer"].values()) == {None}
    assert " - " in capsys.readouterr().out


def test_json_holds_what_main_returns():
    two_runs()
    forward, backward = wmppc.main(["--source", "A", "--target", "B", "--json", "pair.json"])
    document = json.loads(Path("pair.json").read_text())
    assert document["n_samples"] == 400
    assert document["dataset"]["name"] == "handmade"
    assert document["directions"] == results.plain([forward, backward])
    assert document["directions"][0]["source"] == document["directions"][1]["target"] == "A"


def three_runs():
    two_runs()
    make_run("C", {"layer0": codes(6, 9)})


def test_a_matrix_is_made_of_the_pairs(capsys):
    three_runs()
    alone = {}
    for a in "ABC":
        for b in "ABC":
            alone[a, b] = wmppc.main(["--source", a, "--target", b])[0]
    Path("sae_features/A/pairs").rename("away")
    Path("sae_features/B/pairs").rename("away2")
    Path("sae_features/C/pairs").rename("away3")
    capsys.readouterr()
    found = wmppc.main(["--source", "?", "--target", "C", "A", "--csv", "m.csv", "--json", "out/m.json"])
    assert [(d.source, d.target) for d in found] == [(a, b) for a in "ABC" for b in "CA"]
    assert all(d == alone[d.source, d.target] for d in found)
    printed = capsys.readouterr().out.splitlines()
    table = printed[printed.index("wMPPC, all layers (held out, rows -> columns)") :]
    assert table[1].split() == ["[3]", "[1]"]
    cells = [alone["B", target].wmppc["all_layers"].held_out for target in "CA"]
    assert table[3].split() == ["[2]", "B", *(f"{cell:.3f}" for cell in cells)]
    rows = list(csv.DictReader(Path("m.csv").read_text().splitlines()))
    row = next(r for r in rows if (r["source"], r["target"], r["metric"]) == ("B", "A", "wmppc"))
    assert float(row["score"]) == alone["B", "A"].wmppc["all_layers"].value
    assert json.loads(Path("out/m.json").read_text())["directions"] == results.plain(list(found))
    wmppc.main(["--source", "A", "--target", "C", "B", "--no-trust"])
    bare = capsys.readouterr().out
    assert "columns: [2] C, [3] B\n" in bare
    assert "held out" not in bare  # nor its explanation


def test_each_run_is_read_once(monkeypatch):
    three_runs()
    loaded = []
    load = features.Run.load
    monkeypatch.setattr(
        features.Run, "load", lambda run, layer: loaded.append((run.name, layer)) or load(run, layer)
    )
    wmppc.main(["--source", "*", "--target", "*"])
    assert sorted(loaded) == sorted(set(loaded))
    assert len(loaded) == 6


def test_finished_pairs_are_kept_until_a_run_changes(monkeypatch):
    three_runs()
    matched = []
    match = comparison.match
    monkeypatch.setattr(
        comparison, "match", lambda a, b, reader: matched.append((a.name, b.name)) or match(a, b, reader)
    )
    first = wmppc.main(["--source", "A", "--target", "B"])
    assert wmppc.main(["--source", "A", "--target", "B"]) == first
    assert wmppc.main(["--source", "B", "--target", "A"]) == first[::-1]
    assert matched == [("A", "B")]
    wmppc.main(["--source", "A", "B", "--target", "C", "B"])  # goes on where the matrix was
    assert matched == [("A", "B"), ("A", "C"), ("B", "C"), ("B", "B")]
    make_run("B", {"layer0": codes(8, 16)})
    assert wmppc.main(["--source", "A", "--target", "B"]) != first
    assert matched[4:] == [("A", "B")]
    Path("sae_features/A/pairs/B.json").write_text("{half")
    assert wmppc.main(["--source", "A", "--target", "B"]) == wmppc.main(["--source", "A", "--target", "B"])
    assert matched[5:] == [("A", "B")]


def test_a_column_of_the_samples_that_is_edited_is_read_anew():
    dice = np.random.default_rng(0)
    topic = dice.integers(0, 2, 400)
    run = make_run("A", {"layer0": codes(0, 16) + topic[:, None] * 5})
    make_run("B", {"layer0": codes(1, 16) + topic[:, None] * 5})

    def floor_within(column):
        rows = zip(run.samples().ids, column.tolist(), strict=True)
        samples.write(
            run.path, [{"id": i, "image": f"{i}.png", "caption": "", "topic": str(t)} for i, t in rows]
        )
        found = wmppc.main(["--source", "A", "--target", "B", "--strata", "topic"])
        return found[0].nuisance.strata_floor

    assert floor_within(dice.integers(0, 2, 400)) < 0.3
    assert floor_within(topic) > 0.7


def test_a_metric_asked_for_later_is_added_to_what_is_kept(monkeypatch):
    two_runs()
    first = wmppc.main(["--source", "A", "--target", "B"])
    monkeypatch.setattr(comparison, "match", None)
    second = wmppc.main(["--source", "A", "--target", "B", "--metrics", "cka", "wmppc"])
    assert second[0].wmppc == first[0].wmppc
    assert set(second[0].scores) == {"wmppc", "mppc", "cka"}


def test_older_scores_are_those_of_their_formulas(capsys):
    a, b = two_runs()
    found = wmppc.main(["--source", "A", "--target", "B", "--metrics", *wmppc.METRICS])[0].scores
    x, y = (list(side.values())[-1].astype(np.float64) for side in (a, b))
    half = clusters([f"sample{row}.png" for row in range(400)]).half
    halves = [pearson(x[half == h], y[half == h]) for h in (0, 1)]
    expected = {
        "soft_matching": (older.soft_matching(*halves), 0),
        "cka": (older.debiased_cka(x, y), 0),
        "knn": older.mutual_neighbours(x, y),
    }
    for metric, numbers in expected.items():
        score = found[metric]["last_layer"]
        assert (score.value, score.floor) == pytest.approx(tuple(numbers), abs=1e-6), metric
    assert np.isnan(found["pw_mcc"]["last_layer"].value), "no seeds of one SAE"
    printed = capsys.readouterr().out
    assert "soft matching, held out" in printed
    assert "PW-MCC of the decoders has no value here: it is of two SAEs of one encoder's layer" in printed


def test_soft_matching_of_a_run_with_itself_is_1_whatever_is_too_rare_to_count():
    own = codes(0, 16)
    own[:, :3] = 0
    own[[0, 1, 2], [0, 1, 2]] = 1  # three features of a single row each, which is in one half
    for name in "AB":
        make_run(name, {"layer0": own})
    found = wmppc.main(["--source", "A", "--target", "B", "--metrics", "wmppc", "soft_matching"])[0]
    assert found.scores["soft_matching"]["last_layer"].value == pytest.approx(1)


def test_two_seeds_of_an_sae_are_matched_by_their_decoders():
    rows = np.random.default_rng(5).standard_normal((5, 7)).astype(np.float32)
    for name, decoder in (("A", rows), ("B", np.ascontiguousarray(-rows[::-1]))):
        encoder = {"model": "ViT", "checkpoint": "vit", "modality": "image"}
        run = make_run(name, {"layer0": codes(1, 5)}, encoder=encoder)
        safetensors.numpy.save_file({"W_dec": decoder}, run.path / "layer0" / "sae_weights.safetensors")
    found = wmppc.main(["--source", "A", "--target", "B", "--metrics", "wmppc", "pw_mcc"])[0].scores
    assert found["pw_mcc"]["last_layer"].value == pytest.approx(1)
    assert 0.2 < found["pw_mcc"]["last_layer"].floor < 0.8


def test_the_scores_and_their_floors_are_the_same_whatever_the_memory(monkeypatch):
    monkeypatch.setattr(features, "PART_ROWS", 64)
    two_runs()
    metrics = ["--metrics", "wmppc", "mppc", "cka", "soft_matching", "knn"]
    held = wmppc.main(["--source", "A", "--target", "B", *metrics])
    for memory in (60_000, 16_000):
        Path("sae_features/A/pairs/B.json").unlink()
        monkeypatch.setattr(reader_module, "free_memory", lambda memory=memory: memory)
        if memory == 16_000:  # nothing can be held whole
            monkeypatch.setattr(features.Run, "load", None)
        assert wmppc.main(["--source", "A", "--target", "B", *metrics]) == held


@pytest.mark.parametrize("memory", [1, 3000, 1 << 62])
def test_rows_are_read_in_the_floors_order_however_they_are_shared_out(memory, monkeypatch):
    monkeypatch.setattr(features, "PART_ROWS", 16)
    rows = np.arange(1, 101, dtype=np.float32)[:, None]
    layer = draws.Layer(make_run("A", {"layer0": rows}, part_rows=7), "layer0")
    expected = rows[np.random.default_rng(draws.FLOOR_SEED).permutation(100)].ravel()
    for cuts in ([0, 100], [0, 33, 66, 100]):
        shares = [slice(*cut) for cut in itertools.pairwise(cuts)]
        blocks = [
            block.toarray()
            for share in shares
            for block in draws.blocks(layer, draws.permutation(100), share, memory)
        ]
        np.testing.assert_array_equal(np.vstack(blocks).ravel(), expected)


TWICE = """
import sys, wmppc
from comparing import comparison, draws, reader
comparison.read_kept = lambda *words: None
draws.JOINED_ENTRIES = 500
for memory, file in ((1 << 30, "pairs.json"), (32_000, "rows.json")):
    reader.free_memory = lambda: memory
    wmppc.main([*sys.argv[1:], file])
"""


def test_two_processes_give_what_one_does():
    """They share out the layer pairs, and, where a layer does not fit into memory, its rows."""
    three_runs()
    arguments = [
        "--source",
        "A",
        "B",
        "--target",
        "C",
        "B",
        "--metrics",
        "wmppc",
        "cka",
        "soft_matching",
        "knn",
        "--json",
    ]
    wmppc.main([*arguments, "alone.json"])
    returned, printed, said = run_two([sys.executable, "-c", TWICE, *arguments])
    assert returned == [0, 0], said
    assert printed[0]
    assert not printed[1]
    alone, pairs, rows = (
        flat(json.loads(Path(file).read_text())) for file in ("alone.json", "pairs.json", "rows.json")
    )
    assert len(alone) > 100
    for (path, one), (same, of_pairs), (also, of_rows) in zip(alone, pairs, rows, strict=True):
        assert path == same == also
        assert one == of_pairs == of_rows, path


def run_two(command):
    """Start two processes that find each other as torchrun's do; their exit codes, standard outputs and errors."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    root = str(Path(wmppc.__file__).parent)
    common = {
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "WORLD_SIZE": "2",
        "PYTHONPATH": root,
    }
    started = [
        subprocess.Popen(
            command,
            env={**common, "RANK": str(rank), "LOCAL_RANK": "0", "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    ended = [process.communicate(timeout=200) for process in started]
    return [process.returncode for process in started], *map(list, zip(*ended, strict=True))


def test_what_one_process_refuses_ends_in_a_line_of_each(tmp_path):
    make_run("A", {"layer0": codes(1, 5)})
    spoilt = codes(2, 6)
    spoilt[7, 4] = np.nan
    make_run("bad", {"layer0": spoilt})
    code = "import sys, wmppc; wmppc.main(sys.argv[1:])"
    arguments = ["--source", "A", "--target", "bad", "--metrics", "knn"]
    returned, _, said = run_two([sys.executable, "-c", code, *arguments])
    assert returned == [2, 2]
    assert "run 'bad' holds nan" in said[0] + said[1]
    assert "Traceback" not in said[0] + said[1]


def flat(value, path=""):
    """A document's leaves with their paths."""
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return [leaf for key, item in items for leaf in flat(item, f"{path}/{key}")]
    return [(path, value)]


def test_pictures_are_drawn_and_say_what_they_show():
    three_runs()
    wmppc.main(["--source", "A", "--target", "B", "--plot", "imgs/pair.png"])
    wmppc.main(["--source", "*", "--target", "*", "--plot", "matrix.png"])
    for file in ("imgs/pair.png", "matrix.png"):
        with Image.open(file) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        assert min(pixels.shape[:2]) > 400
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 100


def test_a_heat_map_has_a_number_in_every_cell_and_its_names():
    _, (space,) = figures.panels([(2, 3)])
    figures.heat_map(
        space, ["a", "b"], ["c", "d", "e"], np.array([[0.1, 0.2, 0.3], [0.4, np.nan, 0.6]]), "title"
    )
    assert [text.get_text() for text in space.texts] == ["0.100", "0.200", "0.300", "0.400", "-", "0.600"]
    assert [tick.get_text() for tick in space.get_xticklabels()] == ["c", "d", "e"]
    assert [tick.get_text() for tick in space.get_yticklabels()] == ["a", "b"]
    assert space.get_title() == "title"


def test_what_is_printed(capsys):
    two_runs()
    forward, _ = wmppc.main(["--source", "A", "--target", "B"])
    printed = capsys.readouterr().out
    rows = [line for line in printed.splitlines() if line.startswith("A -> B")]
    for row, scope in zip(rows, ("last_layer", "all_layers"), strict=True):
        score = forward.wmppc[scope]
        shares = [score.coverage["0.3"], score.coverage["0.5"]]
        shown = [score.value, score.floor, score.held_out, *score.interval, *shares]
        assert row.replace(" to ", " ").split()[3:] == [f"{number:.3f}" for number in shown]
    assert "B -> A (rows -> columns)" in printed


def complaint(capsys, argv):
    with pytest.raises(SystemExit) as stop:
        wmppc.main(argv)
    assert stop.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert [line.startswith("error: ") for line in lines] == [False] * (len(lines) - 1) + [True]
    return lines[-1]


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


def test_an_output_that_cannot_be_written_is_refused_before_the_work(capsys):
    two_runs()
    Path("file").touch()
    line = complaint(capsys, ["--source", "A", "--target", "B", "--json", "file/pair.json"])
    assert "file/pair.json" in line
    assert "is a folder" in complaint(capsys, ["--source", "A", "--target", "B", "--csv", "sae_features"])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("held", ["recorded", "dump of the original", "streamed"])
def test_a_run_that_holds_nan_or_infinity_is_named_with_layer_and_row(value, held, capsys, monkeypatch):
    make_run("A", {"layer0": codes(1, 5)})
    spoilt = codes(2, 6)
    spoilt[217, 4] = value
    if held == "dump of the original":
        Path("sae_features/bad").mkdir(parents=True)
        torch.save(torch.from_numpy(spoilt).half(), "sae_features/bad/layer0.pt")
    else:
        make_run("bad", {"layer0": spoilt}, part_rows=100)
    if held == "streamed":
        monkeypatch.setattr(reader_module, "free_memory", lambda: 16_000)
    for metrics in (["wmppc"], ["knn"], ["cka"]):
        line = complaint(capsys, ["--source", "A", "--target", "bad", "--metrics", *metrics])
        assert f"error: run 'bad' holds {value} in layer0, row 217, feature 4" in line
    assert not Path("sae_features/A/pairs").exists()


def test_a_run_beside_itself_is_printed_once(capsys):
    make_run("A", {"layer0": codes(1, 5)})
    found = wmppc.main(
        ["--source", "A", "--target", "A", "--csv", "a.csv", "--json", "a.json", "--plot", "a.png"]
    )
    assert [(d.source, d.target) for d in found] == [("A", "A")]
    lines = capsys.readouterr().out.splitlines()
    assert len([line for line in lines if line]) == len({line for line in lines if line})
    rows = Path("a.csv").read_text().splitlines()
    assert len(rows) == len(set(rows))
    assert len(json.loads(Path("a.json").read_text())["directions"]) == 1


@pytest.mark.parametrize("prefix", ["", "sae_features/", "./sae_features/", "{here}/sae_features/"])
def test_runs_are_named_by_paths_and_patterns_of_paths_too(prefix, capsys):
    prefix = prefix.format(here=Path.cwd())
    for name in ("clip", "clip-2", "other"):
        make_run(name, {"layer0": codes(1, 5)})
    expected = [("clip", "other"), ("clip-2", "other")]
    found = wmppc.main(["--source", f"{prefix}clip*", "--target", f"{prefix}other/"])
    assert [(d.source, d.target) for d in found] == expected
    assert capsys.readouterr().err == ""


def test_a_pattern_leaves_out_what_is_no_run_and_says_so(capsys):
    for name in ("clip", "clip-dead", "other"):
        make_run(name, {"layer0": codes(1, 5)})
    Path("sae_features/clip-dead/run.json").unlink()
    Path("sae_features/clip-notes").mkdir()
    Path("sae_features/clip.txt").write_text("notes")
    found = wmppc.main(["--source", "clip*", "--target", "other"])
    assert {(d.source, d.target) for d in found} == {("clip", "other"), ("other", "clip")}
    said = capsys.readouterr().err
    assert said == "note: 'clip*' leaves out clip-dead, clip-notes, clip.txt: no finished runs\n"


def test_a_pattern_without_runs_and_an_unknown_metric_are_refused(capsys):
    two_runs()
    line = complaint(capsys, ["--source", "clip*", "--target", "A"])
    assert "'clip*'" in line
    assert "A, B" in line
    line = complaint(capsys, ["--source", "A", "--target", "B", "--metrics", "svcca"])
    assert "'svcca'" in line
    assert "soft_matching" in line
    line = complaint(capsys, ["--source", "A", "--target", "B", "--metrics", "wmppc", "hungarian"])
    assert "the metric 'hungarian' is gone: ask for soft_matching" in line


def test_arguments_that_are_missing_are_named(capsys):
    assert "--target" in complaint(capsys, ["--source", "A"])


def modules_after(code):
    """The names of the modules that a fresh process has imported after `code`, whether or not it left."""
    code = f"import sys\ntry:\n {code}\nexcept SystemExit: pass\nprint(*sys.modules)"
    root = str(Path(wmppc.__file__).parent)
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env={"PYTHONPATH": root}, check=True)
    return set(done.stdout.splitlines()[-1].split())


def test_the_room_is_imported_without_its_compiled_arithmetic():
    found = modules_after("import comparing; comparing.sharedness")
    assert not {"numba", "torch", "scipy"} & found
    assert "numba" in modules_after("from comparing import compare")


def test_a_comparison_imports_no_encoder_library():
    two_runs()
    found = modules_after("import wmppc; wmppc.main(['--source', 'A', '--target', 'B'])")
    assert "numba" in found
    assert not {"torch", "open_clip", "transformers"} & found


# ----------------------------------------------------------------------------------------- machine and team


def cgroup(root, path, files):
    folder = root / "sys/fs/cgroup" / path
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)


def test_a_cgroups_limit_is_the_memory_that_there_is(tmp_path):
    (tmp_path / "proc/self").mkdir(parents=True)
    assert reader_module.cgroup_room(tmp_path) == []  # no Linux
    (tmp_path / "proc/self/cgroup").write_text("0::/job/step\n5:memory:/old\n3:cpu:/else\n")
    stat = "anon 300\ninactive_file 200\n"
    cgroup(tmp_path, "job/step", {"memory.max": "max\n", "memory.current": "500\n", "memory.stat": stat})
    cgroup(tmp_path, "job", {"memory.max": "1000\n", "memory.current": "500\n", "memory.stat": stat})
    old = {"memory.limit_in_bytes": "400\n", "memory.usage_in_bytes": "600\n", "memory.stat": stat}
    cgroup(tmp_path, "memory/old", old)
    assert reader_module.cgroup_room(tmp_path) == [1000 - 500 + 200, 0]


@pytest.mark.parametrize("memory", [None, 8 << 30])
def test_the_processes_of_a_machine_share_its_memory(memory, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "16")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    monkeypatch.setattr(processes, "add_up", lambda array, how: None)
    monkeypatch.setattr(reader_module, "free_memory", lambda: 16 << 30)
    assert reader_module.Reader(memory).memory == 1 << 30


def test_more_processes_than_gpus_take_turns_at_them(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("LOCAL_RANK", "2")
    said = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: said.append(device))
    met = [(None, 2, 3)]
    monkeypatch.setattr(torch.distributed, "rendezvous", lambda where, timeout: iter(met))
    join = lambda backend, timeout, **group: said.append((backend, timeout.total_seconds()))  # noqa: E731
    monkeypatch.setattr(torch.distributed, "init_process_group", join)
    monkeypatch.setattr(atexit, "register", lambda end: None)
    assert processes.team.__wrapped__() == (2, 3)
    # NCCL refuses two processes on one GPU; and all may wait long for one that reads or writes.
    assert said == [0, ("cpu:gloo,cuda:nccl", 12 * 3600)]


@pytest.mark.parametrize("fails", [True, False])
def test_a_process_that_fails_does_not_wait_for_the_others(fails, monkeypatch):
    """NCCL's farewell is for all of a machine's processes, of which some may wait for this one."""
    farewells = [torch.distributed.destroy_process_group]
    monkeypatch.setattr(atexit, "unregister", farewells.remove)

    @commandline.script
    def main(argv=None):
        if fails:
            raise UserError("the GPU is out of memory")

    with pytest.raises(SystemExit) if fails else contextlib.nullcontext():
        main()
    assert len(farewells) == (not fails)
