"""check.py: the table of encoders, the trial of one, and the trial of one on a data set's own items."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import offline_hub
import pytest
from PIL import Image

import check
import features
from plumbing.errors import UserError
from showing import sheets
from wrappedmodels import REGISTRY


def test_the_table_has_a_line_for_every_row(capsys):
    check.main([])
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed] == ["--model", *REGISTRY]
    for line, row in zip(printed[1:], REGISTRY.values(), strict=True):
        cells = (row.modality, row.checkpoint or "-", row.blocks or "asked", row.token or "asked", row.note)
        assert all(cell in line for cell in cells)


def test_the_readmes_table_lists_the_papers_checkpoints_and_no_demo(capsys):
    check.main(["--markdown"])
    lines = capsys.readouterr().out.splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert [line.split()[1] for line in lines[2:]] == [
        name for name in REGISTRY if not name.startswith("Demo")
    ]
    for model, row in REGISTRY.items():
        for checkpoint in row.checkpoints:
            assert any(line.startswith(f"| {model} |") and f"`{checkpoint}`" in line for line in lines)


def test_the_table_imports_nothing_that_takes_seconds():
    code = "import sys, check; check.main([]); sys.exit(bool({'torch', 'transformers', 'numpy'} & {*sys.modules}))"
    root = Path(check.__file__).parent
    subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, check=True)


@pytest.fixture
def bert(tmp_path):
    """A tiny BERT that knows fourteen words, whole words only."""
    (tmp_path / "bert").mkdir()
    offline_hub.bert(tmp_path / "bert")
    return ["--encoder", str(tmp_path / "bert"), "--model", "Bert"]


def data_set(folder: Path, *captions: str) -> list[str]:
    """The words that name a data set of black pictures with these captions."""
    (folder / "data").mkdir()
    lines = [f"{row}.png\t{caption}\n" for row, caption in enumerate(captions)]
    for row in range(len(captions)):
        Image.new("RGB", (40, 30)).save(folder / "data" / f"{row}.png")
    (folder / "data" / "captions.tsv").write_text("".join(lines))
    return ["--dataset", "folder", "--data_root", str(folder / "data"), "--sheet", str(folder / "sheet.png")]


def test_an_encoder_is_tried_on_made_items(bert, capsys):
    """ "A dog." has a full stop that it does not know; of "Two cats asleep on a pink couch." it knows two of eight."""
    (trial,) = check.main(bert)
    assert (trial.widths, trial.n_tokens, trial.trained, trial.recorded) == ([32, 32], [10, 10], 10, [0])
    assert trial.unknown_share == pytest.approx(7 / 11)
    printed = capsys.readouterr().out.splitlines()
    assert printed[:-1] == [
        f"Bert {bert[1]} (text)",
        "  blocks    2 at encoder.layer, width 32",
        "  tokens    10, of which 10 train",
        "  recorded  cls: token 0",
        "  unknown   64% of the tokens of the captions tried",
        "  self-test passed",
    ]
    assert printed[-1].startswith("  seconds   ")


def test_an_encoder_is_tried_on_a_data_sets_own_items(bert, tmp_path, capsys):
    """The shortest and the longest caption have one unknown word among eight."""
    words = data_set(tmp_path, "a dog", "a red circle on the whale", "the cat")
    (trial,) = check.main([*bert, *words])
    assert trial.n_tokens == [8, 8]  # six words, the start and the end
    assert trial.unknown_share == pytest.approx(1 / 8)
    out = capsys.readouterr().out
    assert "rows                3\n" in out
    assert out.index("rows ") < out.index("  self-test passed")


def test_an_encoder_that_cannot_read_a_data_set_is_refused(bert, tmp_path, capsys):
    with pytest.raises(SystemExit) as left:
        check.main([*bert, *data_set(tmp_path, "un chien", "le chat noir")])
    assert left.value.code == 2
    assert "does not know 100% of the tokens of the captions" in capsys.readouterr().err


def test_the_demos_rows_of_one_checkpoint_are_all_tried():
    trials = check.main(["--encoder", "toyworld/weights/clip"])
    assert [trial.encoder.model for trial in trials] == ["DemoClipVision", "DemoClipText", "DemoRandomVision"]
    assert [trial.n_tokens[0] for trial in trials] == [
        17,
        10,
        17,
    ]  # 16 patches and CLS; 8 words, start and end
    assert trials[1].unknown_share > 0.5  # its words are those of the demo's scenes


@pytest.mark.parametrize("row", REGISTRY)
def test_a_rows_name_as_encoder_is_that_row_with_its_default(row, monkeypatch, capsys):
    asked = []

    def load(model, checkpoint, **_):
        asked.append((model, checkpoint))
        raise UserError("loaded")

    monkeypatch.setattr(check, "load", load)
    for argv in (["--encoder", row], ["--encoder", row, "--model", row]):
        with pytest.raises(SystemExit):
            check.main(argv)
    said = capsys.readouterr().err
    if REGISTRY[row].checkpoint:
        assert asked == [(row, None)] * 2
    else:
        assert not asked
        assert f"give --encoder CHECKPOINT --model {row}" in said


@pytest.mark.usefixtures("own_cache")
def test_the_script_prints_what_a_data_set_holds(damaged, tmp_path, capsys):
    """Counts by hand: the readable row has one caption of two words, "a wren"."""
    sheet, report = tmp_path / "out" / "sheet.png", tmp_path / "report.json"
    held = check.main(
        ["--dataset", "folder", "--data_root", str(damaged), "--sheet", str(sheet), "--json", str(report)]
    )
    out, err = capsys.readouterr()
    assert held["rows"] == 1
    assert held["caption_words"] == (2, 2, 2)
    assert held["caption_characters"] == (6, 6, 6)
    assert held["fingerprint"] == features.fingerprint([("deep/a.png", "a wren")])
    assert json.loads(report.read_text()) == json.loads(json.dumps(held))
    assert "b.png: the file is empty" in out
    assert "give every run --skip_unreadable" in out
    assert "birds: 1 unreadable items are left out" in err
    tile = np.asarray(Image.open(sheet).convert("RGB"))[sheets.TITLE :, : sheets.GAP + sheets.CONTACT_SIDE]
    tile = tile[: sheets.CONTACT_SIDE]
    assert tile.std() > 20  # the picture is there


def test_all_captions_of_a_row_are_counted_whichever_is_used(tmp_path):
    words = ["--dataset", "demo", "--limit", "3", "--sheet", str(tmp_path / "sheet.png")]
    for caption in ("first", "2", "all"):
        held = check.main([*words, "--caption", caption])
        assert held["captions_per_row"] == (5, 5, 5), caption


def test_a_place_that_takes_no_contact_sheet_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("imgs").touch()
    with pytest.raises(SystemExit):
        check.main(["--dataset", "demo", "--limit", "3"])
    assert "error: imgs/data_demo.png cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--dataset", "imagenet"], "imagenet"),
        (["--blocks", "encoder.layer"], "--blocks encoder.layer is of an encoder: add --encoder CHECKPOINT"),
        (["--sheet", "held.png"], "--sheet held.png is of a data set: add --dataset NAME"),
        (["--encoder", "toyworld/weights/clip", "--json", "held.json"], "add --dataset NAME"),
        (["--limit", "5"], "--limit 5 is of a data set: add --dataset NAME"),
    ],
)
def test_the_script_reports_a_mistake_in_one_line(words, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as left:
        check.main(words)
    assert left.value.code == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
