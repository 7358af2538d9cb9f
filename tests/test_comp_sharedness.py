"""comp_sharedness.py on runs whose Delta was worked out by hand."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageColor
from runs import make_run

import comp_sharedness
import comparing
import data
import features
from comparing import per_feature, reader
from plumbing.errors import UserError
from plumbing.processes import Team
from showing import figures


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


EVENTS = np.eye(4)[[0, 0, 1, 1, 2, 2, 3, 3]]  # four features, each on two of eight rows
HALF = np.array([1.0, 0, 0, 0, 0, 0, 0, 0])  # one of feature 0's two rows: r = 3/sqrt(21)
R = 3 / np.sqrt(21)


def five_runs(layer="layer0"):
    """M has four events; G1 and G2 have 0 and 1 (G2 half of 0), H1 has 1, H2 has 2; M has 3 too."""
    scale = np.array([1.0, 2.0, 3.0, 1.0])
    make_run("M", {layer: EVENTS * scale})
    make_run("G1", {layer: EVENTS[:, [0, 1, 3]] * 5})
    make_run("G2", {layer: np.stack([HALF, EVENTS[:, 1], EVENTS[:, 2]], axis=1)})
    make_run("H1", {layer: EVENTS[:, [1, 2]]})
    make_run("H2", {layer: EVENTS[:, [2, 2]] * 0.5})


ARGUMENTS = ["--source", "M", "--min_group", "G1", "G2", "--max_group", "H1", "H2"]
# rho is 1 where a run has the event, R where it has half of it, and else negative, so 0 when squared
TOTAL = {0: 2, 1: 4, 2: 6, 3: 2}
DELTA = {0: 2 * R**2, 1: 4 * (1 - 1), 2: 6 * (0 - 1), 3: 2 * (0 - 0)}


def test_delta_by_hand():
    five_runs()
    found = comp_sharedness.main(ARGUMENTS)
    assert found.feature[[0, -1]].tolist() == [0, 2]
    np.testing.assert_allclose(found.delta, [DELTA[i] for i in found.feature], atol=1e-12)
    np.testing.assert_allclose(found.total, [TOTAL[i] for i in found.feature])
    np.testing.assert_allclose(found.rho["G2"][0], R, atol=1e-12)
    np.testing.assert_allclose(found.rho["H1"][0], -1 / 3, atol=1e-12)


def test_sharedness_is_called_from_a_notebook():
    five_runs()
    runs = {name: features.open_run(name) for name in ("M", "G1", "G2", "H1", "H2")}
    found = comparing.sharedness(runs["M"], [runs["G1"], runs["G2"]], [runs["H1"], runs["H2"]], layer=0)
    np.testing.assert_allclose(found.delta, [DELTA[i] for i in found.feature], atol=1e-12)
    assert (found.min_group, found.max_group) == (["G1", "G2"], ["H1", "H2"])
    make_run("other", {"layer0": EVENTS[:4]})
    with pytest.raises(UserError, match="not comparable"):
        comparing.sharedness(runs["M"], [features.open_run("other")], [runs["H1"]])


def test_every_member_of_a_group_counts():
    """With G2 left out, feature 3 is in all of G and in none of H; with H1 left out, so is feature 1."""
    five_runs()
    found = comp_sharedness.main(["--source", "M", "--min_group", "G1", "--max_group", "H2"])
    assert dict(zip(found.feature.tolist(), found.delta.round(9).tolist(), strict=True)) == {
        0: 2,
        1: 4,
        3: 2,
        2: -6,
    }


def test_one_percent_is_printed_unless_told(capsys):
    rng = np.random.default_rng(0)
    make_run("M", {"layer0": rng.random((49, 300)) * (rng.random((49, 300)) < 0.1)})
    make_run("G", {"layer0": rng.random((49, 20))})
    arguments = ["--source", "M", "--min_group", "G", "--max_group", "M"]
    found = comp_sharedness.main(arguments)
    rows = capsys.readouterr().out.splitlines()
    start = next(i for i, row in enumerate(rows) if row.split()[:1] == ["feature"])
    assert rows[start].split() == ["feature", "Delta", "g2-h2", "S", "S", "%", "rho", "G", "rho", "M"]
    assert [int(row.split()[0]) for row in rows[start + 1 :]] == found.feature[found.total > 0][:3].tolist()
    comp_sharedness.main([*arguments, "--top", "7"])
    assert len(capsys.readouterr().out.splitlines()) == start + 1 + 7


def test_csv_and_json_hold_every_feature():
    five_runs()
    found = comp_sharedness.main([*ARGUMENTS, "--csv", "delta.csv", "--json", "delta.json"])
    rows = list(csv.DictReader(Path("delta.csv").read_text().splitlines()))
    assert list(rows[0]) == ["feature", "Delta", "g2-h2", "S", "S %", "rho G1", "rho G2", "rho H1", "rho H2"]
    assert [int(row["feature"]) for row in rows] == found.feature.tolist()
    assert [float(row["Delta"]) for row in rows] == found.delta.tolist()
    assert sum(float(row["S %"]) for row in rows) == pytest.approx(100)
    document = json.loads(Path("delta.json").read_text())
    np.testing.assert_allclose(np.multiply(document["gap"], document["total"]), document["delta"])
    assert document["delta"] == found.delta.tolist()
    assert document["rho"]["G2"] == found.rho["G2"].tolist()
    assert (document["min_group"], document["max_group"]) == (["G1", "G2"], ["H1", "H2"])


def test_the_layer_is_the_last_unless_told():
    five_runs()
    make_run("two", {"layer0": EVENTS, "layer1": EVENTS[:, ::-1]})
    arguments = ["--source", "two", "--min_group", "G1", "--max_group", "H2"]
    assert comp_sharedness.main(arguments).layer == "layer1"
    found = comp_sharedness.main([*arguments, "--layer", "0"])
    assert found.layer == "layer0"
    assert found.feature[-1] == 2  # H2's event, in layer0's numbering


def test_the_picture_names_the_first_features_and_draws_the_live_ones():
    five_runs()
    comp_sharedness.main([*ARGUMENTS, "--top", "2", "--plot", "imgs/delta.png"])
    with Image.open("imgs/delta.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    for colour in ("#0072B2", "#D55E00"):
        assert (np.abs(pixels - np.array(ImageColor.getrgb(colour))).sum(axis=1) < 40).any()


def test_names_in_the_picture_do_not_cover_each_other():
    pixels = np.array([[100.0, 100], [110, 105], [110, 150], [200, 100], [205, 108]])
    assert figures.spread_out(pixels) == [0, 2, 3]
    assert figures.spread_out(np.empty((0, 2))) == []


def test_the_sheets_of_the_first_features_are_made(capsys):
    pairs = data.open_pairs("demo", limit=40)
    rng = np.random.default_rng(0)
    rows = {"ids": pairs.ids, "captions": [pairs.caption(row) for row in range(40)]}
    make_run("M", {"layer0": rng.random((40, 5))}, source=pairs.source, **rows)
    make_run("G", {"layer0": rng.random((40, 4))}, **rows)
    arguments = ["--source", "M", "--min_group", "G", "--max_group", "M", "--top", "2", "--show"]
    found = comp_sharedness.main(arguments)
    sheets = sorted(path.name for path in Path("imgs/M").iterdir())
    assert sheets == sorted(f"layer0-feature{feature:05d}.jpg" for feature in found.feature[:2])
    assert "2 sheets in imgs/M/" in capsys.readouterr().out


def complaint(capsys, argv):
    with pytest.raises(SystemExit) as stop:
        comp_sharedness.main(argv)
    assert stop.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    return lines[0]


def test_mistakes_end_in_one_line(capsys):
    five_runs()
    make_run("other", {"layer0": EVENTS}, ids=list("abcdefgh"), dataset_name="elsewhere")
    line = complaint(capsys, ["--source", "M", "--min_group", "G1", "--max_group", "other"])
    assert all(part in line for part in ("'M'", "'other'", "handmade", "elsewhere"))
    assert "'nobody'" in complaint(capsys, ["--source", "M", "--min_group", "nobody", "--max_group", "H1"])
    assert "no layer 7" in complaint(capsys, [*ARGUMENTS, "--layer", "7"])
    assert "--max_group" in complaint(capsys, ["--source", "M", "--min_group", "G1"])
    assert "run.json" in complaint(capsys, [*ARGUMENTS, "--csv", "sae_features/M/run.json/delta.csv"])
    assert "does not name its samples" in complaint(capsys, [*ARGUMENTS, "--show"])
    assert "--top" in complaint(capsys, [*ARGUMENTS, "--top", "0"])
    assert "'nan' is not a number from 0 to 1" in complaint(capsys, [*ARGUMENTS, "--present", "nan"])
    assert "--absent 0.4 is above --present 0.3" in complaint(capsys, [*ARGUMENTS, "--absent", ".4"])
    assert "add --show" in complaint(capsys, [*ARGUMENTS, "--data_root", "here"])


def test_a_run_in_both_groups_is_refused(capsys):
    five_runs()
    said = complaint(capsys, ["--source", "M", "--min_group", "G1", "--max_group", "G1", "H1"])
    assert said == "error: run 'G1' is in both groups: leave it out of one"


def test_a_feature_that_never_fired_is_not_among_the_first(capsys):
    rng = np.random.default_rng(0)
    codes = rng.random((49, 4))
    codes[:, 0] = 0
    make_run("M", {"layer0": codes})
    make_run("G", {"layer0": rng.random((49, 20))})
    make_run("H", {"layer0": codes})
    found = comp_sharedness.main(
        ["--source", "M", "--min_group", "G", "--max_group", "H", "--top", "4", "--plot", "a.png"]
    )
    assert found.feature[0] == 0  # its Delta is 0, those of the others below
    rows = capsys.readouterr().out.splitlines()
    assert [int(row.split()[0]) for row in rows[-3:]] == found.feature[1:].tolist()


def test_features_are_ranked_by_status_and_the_run_that_breaks_it_is_named(capsys):
    """Of four events in M, G has 0, 1 and 2, and H has 2; 3 is in M alone, and a fifth feature is too rare."""
    rng = np.random.default_rng(0)
    events = (rng.random((600, 4)) < 0.2).astype(float)
    rare = np.zeros((600, 1))
    rare[:5] = 9
    make_run("M", {"layer0": np.hstack([events * [1, 2, 50, 80], rare])})
    make_run("G", {"layer0": events[:, :3]})
    make_run("H", {"layer0": np.stack([events[:, 2], rng.random(600) < 0.3], axis=1)})
    words = ["--source", "M", "--min_group", "G", "--max_group", "H", "--csv", "a.csv", "--json", "a.json"]
    found = comp_sharedness.main([*words, "--top", "5"])
    assert found.feature.tolist() == [1, 0, 2, 3, 4]
    assert found.status == [*["present, absent"] * 2, "present, in H", "not in G, absent", "too rare"]
    assert list(found.counts.values()) == [4, 3, 3, 2]
    printed = capsys.readouterr().out
    assert "active often enough: 4, present in all of G: 3, absent in all of H: 3, both: 2" in printed
    assert "no names yet: uv run show.py --run M --layer 0 finds them" in printed
    document = json.loads(Path("a.json").read_text())
    assert document["status"] == found.status
    kinds = {points.words: len(at) for points, at in figures.drawn(found, np.arange(5), np.arange(5))}
    assert kinds == {"neither": 1, "absent in all of H only": 1, "present in all of G only": 1, "both": 2}
    row = next(csv.DictReader(Path("a.csv").read_text().splitlines()))
    assert float(row["held out G"]) == pytest.approx(1)
    assert float(row["low G"]) <= float(row["held out G"]) <= float(row["high G"])
    for end, sign in (("low", -1), ("high", 1)):
        np.testing.assert_allclose(document[end]["H"], found.held_out["H"] + sign * 1.96 * found.error["H"])
        assert float(row[f"{end} H"]) == document[end]["H"][0]
    M, G, H = map(features.open_run, "MGH")
    assert comparing.sharedness(M, [G], [H], absent=1.01).status[:3] == ["present, absent"] * 3


def test_a_place_that_takes_no_sheets_is_named_before_the_work(capsys):
    five_runs()
    Path("imgs").touch()
    with pytest.raises(SystemExit):
        comp_sharedness.main([*ARGUMENTS, "--show"])
    out, err = capsys.readouterr()
    assert not out
    assert "error: imgs/M/sheet.jpg cannot be written" in err


def test_the_users_clusters_widen_the_errors():
    """Every row four times: the same evidence, which counts fourfold where the rows pass for samples of their own."""
    rng = np.random.default_rng(0)
    events = np.repeat(rng.random((200, 6)) < 0.2, 4, axis=0) * np.repeat(rng.random((200, 6)), 4, axis=0)
    make_run("M", {"layer0": events})
    make_run("G", {"layer0": events + np.repeat(rng.random((200, 6)) < 0.1, 4, axis=0)})
    Path("groups.tsv").write_text("".join(f"sample{row}\t{row // 4}\n" for row in range(800)))
    words = ["--source", "M", "--min_group", "G", "--max_group", "M"]
    alone, joined = (comp_sharedness.main([*words, *more]) for more in ([], ["--cluster", "groups.tsv"]))
    errors = [found.error["G"][np.argsort(found.feature)] for found in (alone, joined)]
    np.testing.assert_allclose(errors[1] / errors[0], 2, rtol=0.4)


def test_a_feature_of_one_half_alone_is_too_rare_to_call_absent():
    """Twelve rows of one caption are in one half, so that nothing of their feature can be held out: H has the very one."""
    rng = np.random.default_rng(0)
    own, events = np.zeros((200, 1)), rng.random((200, 2)) < 0.3
    own[:12] = rng.random((12, 1)) + 1
    captions = ["the same"] * 12 + [f"caption {row}" for row in range(12, 200)]
    make_run("M", {"layer0": np.hstack([own, events])}, modality="text", captions=captions)
    make_run("G", {"layer0": events}, captions=captions)
    make_run("H", {"layer0": own + 0.1 * events[:, :1]}, captions=captions)
    found = comp_sharedness.main(["--source", "M", "--min_group", "G", "--max_group", "H"])
    status = dict(zip(found.feature.tolist(), found.status, strict=True))
    assert found.rho["H"].max() > 0.9
    assert (status[0], found.counts["active often enough"]) == ("too rare", 2)


def test_two_processes_share_out_the_runs_and_both_get_all(monkeypatch):
    five_runs()
    runs = [features.open_run(name) for name in ("M", "G1", "G2", "H1", "H2")]
    alone = comparing.sharedness(runs[0], runs[1:3], runs[3:])
    gathered, read, load = [[], []], [set(), set()], features.Run.load
    for rank in (0, 1):
        monkeypatch.setattr(
            features.Run, "load", lambda run, layer, rank=rank: read[rank].add(run.name) or load(run, layer)
        )
        monkeypatch.setattr(per_feature, "team", lambda rank=rank: Team(rank, 2))
        monkeypatch.setattr(per_feature, "add_up", lambda array, rank=rank: gathered[rank].append(array))
        comparing.sharedness(runs[0], runs[1:3], runs[3:])
    assert read == [{"M", "G1", "G2"}, {"M", "H1", "H2"}]
    for arrays in gathered:
        arrays.pop()  # which runs have features that count
    for first, second, name in zip(*gathered, ("G1", "G2", "H1", "H2"), strict=True):
        assert first.any() != second.any(), "one of the two did the work"
        np.testing.assert_array_equal((first + second)[2][alone.feature], alone.rho[name])


def test_statuses_are_the_same_where_no_layer_fits_into_memory(monkeypatch):
    rng = np.random.default_rng(1)
    events = (rng.random((600, 12)) < 0.2) * rng.exponential(size=(600, 12))
    for name, keep in (("M", 0.9), ("G", 0.6), ("H", 0.3)):
        make_run(name, {"layer0": events * (rng.random((600, 12)) < keep)}, part_rows=100)
    words = ["--source", "M", "--min_group", "G", "--max_group", "H"]
    held = comp_sharedness.main(words)
    monkeypatch.setattr(reader, "free_memory", lambda: 10_000)
    monkeypatch.setattr(features.Run, "load", None)
    found = comp_sharedness.main(words)
    assert found.status == held.status
    for name in ("G", "H"):
        np.testing.assert_allclose(found.held_out[name], held.held_out[name], atol=1e-9)
        np.testing.assert_allclose(found.error[name], held.error[name], atol=1e-9)
