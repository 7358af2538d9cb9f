"""labels.csv: round trips, a person's edits, other features, files that are broken; partners' names; COCO's objects."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from runs import make_run

import comp_sharedness
import data
import show
from comparing import kept
from plumbing.errors import UserError
from showing import labels
from showing.labels import Partner
from showing.names import Named, Word
from toyworld import scenes
from training import unfinished

CODES = np.array([[1.0, 0, 2], [0, 0, 1], [1, 0, 0]])


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Three features, of which the second is dead."""
    monkeypatch.chdir(tmp_path)
    return make_run("clip", {"layer0": CODES, "layer1": CODES + 1})


def named(*told):
    """What `described` would tell: a word and its r a feature, None for a dead one."""
    return [Named([], 0, 0) if one is None else Named([Word(*one, 1, 0.5)], 0.3, 2) for one in told]


TOLD = named(("red", 0.9), None, ("of", 0.2))


def label(run, told=TOLD, layer="layer0", **more):
    return labels.labelled(run, layer, lambda: told, **more)


def shown(found):
    return {number: (one.name, one.by, one.r) for number, one in found.items()}


def edit(run, change):
    """Change the lines of labels.csv as a person with a spreadsheet does."""
    file = run.path / "labels.csv"
    with open(file, newline="") as lines:
        rows = list(csv.DictReader(lines))
    rows = change(rows) or rows
    with open(file, "w", newline="") as lines:
        writer = csv.DictWriter(lines, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def test_labels_are_worked_out_once_and_read_afterwards(run):
    found = label(run)
    assert shown(found) == {0: ("red", "captions", 0.9), 2: ("", "captions", None)}  # .2 is below the floor
    assert label(run, told=None) == found == labels.read(run, "layer0")  # None could not be described
    assert labels.read(run, "layer1") == {}
    label(run, named(("blue", 0.5), None, None), layer="layer1")
    assert labels.read(run, "layer0") == found
    assert shown(labels.read(run, "layer1")) == {0: ("blue", "captions", 0.5)}


def test_labels_are_no_part_of_the_recorded_run(run):
    before = kept.identity(run)
    label(run)
    assert kept.identity(run) == before
    assert unfinished.clear(run.path) == ["labels.csv"]  # what --overwrite does leaves them


def test_a_persons_lines_win_and_are_kept_when_the_machine_names_anew(run, monkeypatch):
    label(run)

    def change(rows):
        rows[0] |= {"name": "scarlet, or so", "notes": ""}  # and forgets `by`
        rows[1] |= {"notes": "look again"}
        rows.append(
            rows[1] | {"feature": "1", "name": "silence", "by": "Anna", "r": "", "stamp": "", "notes": ""}
        )

    edit(run, change)
    expected = {0: ("scarlet, or so", "edited", 0.9), 1: ("silence", "Anna", None), 2: ("", "captions", None)}
    assert shown(labels.read(run, "layer0")) == expected
    monkeypatch.setattr(labels, "METHOD", labels.METHOD + 1)  # the machine's names are out of date
    again = label(run, named(("green", 0.7), None, ("two", 0.8)))
    assert shown(again) == shown(labels.read(run, "layer0")) == expected | {2: ("two", "captions", 0.8)}
    assert again[2].extra == {"notes": "look again"}
    assert sorted(file.name for file in run.path.glob("labels*")) == ["labels.csv"]


def test_the_labels_of_other_features_are_not_shown_and_a_persons_are_put_aside(run, capsys):
    label(run)
    label(run, layer="layer1")
    edit(run, lambda rows: rows[0].update(name="scarlet", by="Anna"))
    old = (run.path / "labels.csv").read_text()
    run = make_run(
        "clip", {"layer0": CODES + 2, "layer1": CODES + 1}
    )  # trained again, layer0 comes out differently
    assert labels.read(run, "layer0") == {}
    kept = labels.read(run, "layer1")
    assert (run.path / "labels.csv").read_text() == old
    assert shown(label(run, named(("green", 0.7), None, None))) == {0: ("green", "captions", 0.7)}
    assert (run.path / "labels-OLD.csv").read_text() == old
    assert "1 labels that were edited" in capsys.readouterr().err
    assert labels.read(run, "layer1") == kept
    assert "scarlet" not in (run.path / "labels.csv").read_text()


def test_machine_labels_of_other_features_leave_nothing_behind(run):
    label(run)
    run = make_run("clip", {"layer0": CODES + 2})
    label(run, named(("green", 0.7), None, None))
    assert sorted(file.name for file in run.path.glob("labels*")) == ["labels.csv"]
    assert "red" not in (run.path / "labels.csv").read_text()


def test_a_run_recorded_again_with_the_same_features_keeps_its_labels(run):
    found = label(run)
    run = make_run("clip", {"layer0": CODES}, seconds=1.0)
    assert labels.read(run, "layer0") == found


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("layer,feature,name\nlayer0,1,red\n", "lacks the column 'by'"),
        ("layer;feature;name;by\nlayer0;1;red;me\n", "lacks the column 'layer'"),
        ("", "lacks the column 'layer'"),
        ("layer,feature,name,by\nlayer0,1,red,me\nlayer0,1,blue,me\n", "lines 2 and 3 are both of feature 1"),
        ("layer,feature,name,by\nlayer0,one,red,me\n", "line 2: feature is 'one', which is no number"),
        ("layer,feature,name,by,r\nlayer0,1,red,me,high\n", "line 2: r is 'high', which is no number"),
        ("layer,feature,name,by\nlayer0,1,red,big,me\n", "line 2 has more cells"),
        ("layer,feature,name,by\nlayer0,1,rød,me\n".encode("latin-1"), "not UTF-8"),
    ],
)
def test_a_broken_file_is_said_in_one_line_and_never_overwritten(run, text, words):
    file = run.path / "labels.csv"
    content = text if isinstance(text, bytes) else text.encode()
    file.write_bytes(content)
    for work in (lambda: labels.read(run, "layer0"), lambda: label(run)):
        with pytest.raises(UserError, match="labels.csv") as error:
            work()
        assert words in str(error.value)
        assert "\n" not in str(error.value)
    assert file.read_bytes() == content


def test_a_feature_without_a_word_is_named_after_its_best_text_partner(run):
    bert = Partner("bert", np.array([3, -1, 4]), np.array([0.9, np.nan, 0.584]), {3: "ride", 4: "ride"})
    clip = Partner(
        "clip-text", np.array([3, -1, 5]), np.array([0.9, np.nan, 0.8]), {3: "ride"}
    )  # 5 has no name
    found = label(run, partners=[bert, clip])
    expected = {0: ("red", "captions", 0.9), 2: ("≈ bert 4 'ride' .58", "partner", 0.584)}
    assert shown(found) == expected == shown(labels.read(run, "layer0"))
    assert label(run, None) == label(run, None, partners=[bert, clip]) == labels.read(run, "layer0")
    weak = bert._replace(held_out=np.array([0.9, np.nan, 0.29]))
    assert shown(label(run, None, partners=[weak]))[2] == ("", "captions", None)


def test_names_that_cannot_be_kept_are_told_all_the_same(run, monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(labels.files, "write_text", full)
    assert label(run)[0].name == "red"
    assert "not kept" in capsys.readouterr().err


def test_a_name_of_any_characters_survives_the_file(run):
    odd = 'כלב, "x"\n</script> =1+1'
    label(run)
    edit(run, lambda rows: rows[0].update(name=odd, by="Anna"))
    label(run, None)
    assert labels.read(run, "layer0")[0].name == odd


def test_scripts_name_features_and_read_the_names(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    pairs = data.open_pairs("demo", limit=60)
    truth = [scenes.factors(row)["shape=triangle"] for row in range(60)]
    codes = np.array([truth, np.arange(60) % 2]).T * 1.0
    captions = [row[0] for row in pairs.captions]
    _, run = (
        make_run(name, {"layer0": codes}, pairs.ids, source=pairs.source, captions=captions)
        for name in ("bert", "clip")
    )
    show.main(["--run", "clip"])
    assert labels.read(run, "layer0")[0].name == "triangle"
    words = [
        "--source",
        "clip",
        "--min_group",
        "bert",
        "--max_group",
        "clip",
        "--csv",
        "out.csv",
        "--json",
        "out.json",
    ]
    capsys.readouterr()
    comp_sharedness.main([*words, "--top", "2"])
    table = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["0", "triangle", "(1.00)"] in [line[:3] for line in table]
    with open("out.csv") as lines:
        assert {row["feature"]: row["name"] for row in csv.DictReader(lines)} == {"0": "triangle", "1": ""}
    assert json.loads(Path("out.json").read_text())["names"] == {"0": "triangle"}
