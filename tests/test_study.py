"""A study: its file read as commands, what is recorded left alone, failures named, and the paper's study whole."""

import importlib
import itertools
import json
import random
import shlex
from pathlib import Path

import children
import offline_hub
import pytest

import features
import study
from plumbing.errors import UserError
from studying import steps, working
from toyworld import scenes
from training import experiment
from wrappedmodels import REGISTRY

STUDIES = Path(__file__).resolve().parent.parent / "studies"
PAPER = {(model, name) for model, row in REGISTRY.items() for name in row.checkpoints}
SMALL = """
[train]
limit = 60
batch_size = 16
[data.demo]
dataset = "demo"
[encoders]
vit = { model = "DemoViT", seeds = [0, 1] }
bert = { model = "DemoBert", layers = 1 }
[wmppc.both]
source = ["vit", "bert"]
csv = "both.csv"
[wmppc.seeds]
source = "vit"
target = "vit_seed1"
"""


def written(here, text=SMALL, name="small.toml"):
    """A study's file, by its path as a user types it."""
    (here / name).write_text(text)
    return str(here / name)


def commands(text, here):
    """The words of every command of a study."""
    return [step.words for step in steps.steps(steps.read(Path(written(here, text))))]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Be in an empty folder, on a machine without a GPU."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(working, "all_gpus", list)
    return tmp_path


# ------------------------------------------------------------------------------------- a file and its commands


def test_a_study_is_its_commands_in_order(here, capsys):
    study.main([written(here), "--print"])
    common = "--limit 60 --batch_size 16 --dataset demo --runname"
    assert capsys.readouterr().out.splitlines() == [
        f"uv run train_image.py --model DemoViT --seeds 0 1 {common} vit",
        f"uv run train_text.py --model DemoBert --layers 1 {common} bert",
        "uv run wmppc.py --source vit_seed0 bert --target vit_seed0 bert --csv both.csv",
        "uv run wmppc.py --source vit_seed0 --target vit_seed1",
    ]
    assert not features.run_names()


def test_what_names_features_runs_before_the_tables_that_have_the_names(here):
    shared = '[comp_sharedness.s]\nsource = "vit"\nmin_group = "bert"\nmax_group = "vit_seed1"\n'
    text = SMALL + shared + '[show.sheets]\nrun = "vit"\n'
    scripts = [step.script for step in steps.steps(steps.read(Path(written(here, text))))]
    assert scripts[-3:] == ["wmppc", "show", "comp_sharedness"]


def test_with_several_data_sets_names_end_in_them_and_the_narrower_table_wins(here):
    text = SMALL.replace(
        "[encoders]", '[data."a b"]\ndataset = "folder"\nlimit = 7\ndata_root = "x y"\n[encoders]'
    )
    text = text.replace("layers = 1", 'data = "demo", limit = 9').replace('"both.csv"', '"{data}.csv"')
    with pytest.raises(UserError, match="'vit_a b' is no name for a run"):
        commands(text, here)
    text = text.replace('"a b"', "ab").replace('source = ["vit", "bert"]', 'source = ["vit"]')
    by_full_name = text.replace('target = "vit_seed1"', 'target = "vit_{data}_seed1"')
    assert commands(by_full_name, here) == commands(text, here)
    assert [shlex.join(words) for words in commands(text, here)] == [
        "--model DemoViT --seeds 0 1 --limit 60 --batch_size 16 --dataset demo --runname vit_demo",
        "--model DemoBert --limit 9 --batch_size 16 --dataset demo --runname bert_demo",
        "--model DemoViT --seeds 0 1 --limit 7 --batch_size 16 --dataset folder --data_root 'x y' --runname vit_ab",
        "--source vit_demo_seed0 --target vit_demo_seed0 --csv demo.csv",
        "--source vit_ab_seed0 --target vit_ab_seed0 --csv ab.csv",
        "--source vit_demo_seed0 --target vit_demo_seed1",
        "--source vit_ab_seed0 --target vit_ab_seed1",
    ]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("[train]", "[train"), ["small.toml is no TOML", "line 2"]),
        (("bert =", "vit ="), ["small.toml is no TOML", "line 9"]),
        (("[train]", "[training]"), ["'training' is no part of a study", "train, data, encoders, wmppc"]),
        (("limit = 60", "limits = 60"), ["error: [train], for [encoders.vit], uv run", "--limits is unknown; did you mean --limit?"]),
        (("layers = 1", "layer = 1"), ["[encoders.bert]", "--layer is unknown; did you mean --layers?"]),
        (("csv =", "cvs ="), ["[wmppc.both]", "--cvs is unknown; did you mean --csv?"]),
        (('dataset = "demo"', 'dataset = 2026-01-01'), ["[data.demo] dataset", "give a text"]),
        (("limit = 60", 'runname = "x"'), ["[train] runname", "leave it out"]),
        (('"DemoBert"', '"DemoBart"'), ["'DemoBart'", "DemoBert"]),
        (('model = "DemoBert", ', ""), ["[encoders.bert] names no model", "ClipVision"]),
        (('"bert"]', '"berta"]'), ["[wmppc.both] names 'berta'", "records vit, bert"]),
        (("bert =", "vit_seed1 ="), ["two runs are named 'vit_seed1'", "[encoders.vit] and [encoders.vit_seed1]"]),
        (('target = "vit_seed1"', 'target = "bert"\ncsv = "both.csv"'), ["[wmppc.seeds] and [wmppc.both] both write"]),
        (("limit = 60", 'data = "demo"'), ["error: [train], for [encoders.vit], uv run", "--data is unknown; did you mean --dataset"]),
        (("limit = 60", 'top_k = "x"'), ["error: [train], for [encoders.vit], uv run", "--top_k: 'x' is not a whole number"]),
        (("limit = 60", 'skip_unreadable = "yes"'), ["error: [train], for [encoders.vit], uv run", "'yes' after --skip_unreadable"]),
        (("limit = 60", 'log = "tensor"'), ["error: [train], for [encoders.vit], uv run", "--log: invalid choice: 'tensor'"]),
        (("seeds = [0, 1]", 'seed = -1'), ["error: [encoders.vit], uv run", "'-1' is not a whole number"]),
        (("limit = 60", "seed = 3"), ["error: [train], for [encoders.vit], uv run", "--seed is given twice"]),
        (('dataset = "demo"', 'dataset = "text"'), ["error: [data.demo], for [encoders.vit], uv run", "--dataset text has captions only"]),
        (('"DemoBert"', '"Bart"'), ["error: [encoders.bert]: unknown model 'Bart'"]),
        (("layers = 1", 'data = "coco"'), ["[encoders.bert] data", "no [data.coco]", "demo"]),
        (("[encoders]", "[wmppc.x]"), ["has no [encoders.NAME]"]),
        (("[encoders]", "[encoders]\nx = 3"), ["[encoders.x] is 3", "a table"]),
    ],
)  # fmt: skip
def test_a_mistake_in_the_file_ends_in_one_line(here, capsys, change, said):
    assert change[0] in SMALL
    with pytest.raises(SystemExit) as left:
        study.main([written(here, SMALL.replace(*change, 1))])
    (line,) = capsys.readouterr().err.splitlines()
    assert left.value.code == 2
    for part in said:
        assert part in line


def test_only_some_steps_and_mistyped_ones(here, capsys):
    study.main([written(here), "--print", "--only", "bert", "seeds"])
    assert [line.split()[2] for line in capsys.readouterr().out.splitlines()] == ["train_text.py", "wmppc.py"]
    with pytest.raises(SystemExit):
        study.main([written(here), "--only", "brt"])
    assert "--only 'brt' is no step of the study: there are vit, bert, both, seeds" in capsys.readouterr().err


# --------------------------------------------------------------------------------------------- carrying it out


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A folder in which the small study was carried out."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("undisturbed"))
        patch.setattr(working, "all_gpus", list)
        study.main([written(Path.cwd())])
        return Path.cwd()


def contents(here):
    """Every file of the runs and the table, without the kept pairs, which name their runs' dates."""
    runs = {
        name: children.content(here / "sae_features" / name) for name in ("vit_seed0", "vit_seed1", "bert")
    }
    whole = {(run, file): found for run in runs for file, found in runs[run].items() if "pairs" not in file}
    return whole | {"csv": (here / "both.csv").read_bytes()}


def stopped_at(patch, run, error):
    """Raise `error` where the training of `run` has ended and its recording begins."""
    record = experiment.record

    def recording(work, *rest):
        if work.jobs[0].folder.name == run:
            raise error
        return record(work, *rest)

    patch.setattr(experiment, "record", recording)


def test_a_study_killed_twice_ends_like_one_undisturbed(here, monkeypatch, undisturbed, capsys):
    for run, whole in (("vit_seed0", []), ("bert", ["vit_seed0", "vit_seed1"])):
        with monkeypatch.context() as patch:
            stopped_at(patch, run, KeyboardInterrupt)
            with pytest.raises(SystemExit) as left:
                study.main([written(here)])
        assert left.value.code == 130
        assert features.run_names() == whole
    capsys.readouterr()
    study.main([written(here)])
    assert "recorded: vit_seed0, vit_seed1\n\n$ uv run train_text.py" in capsys.readouterr().out
    assert contents(here) == contents(undisturbed)


def test_a_failing_step_does_not_keep_the_others_and_is_named_at_the_end(here, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        stopped_at(patch, "vit_seed0", RuntimeError("a fault of ours"))
        with pytest.raises(SystemExit) as left:
            study.main([written(here)])
    said = capsys.readouterr().err
    assert left.value.code == 1
    assert features.run_names() == ["bert"]
    last = said.splitlines()[-4:]
    assert last[0] == "3 failed:"
    assert last[1].startswith("vit: RuntimeError: uv run train_image.py --model DemoViT")
    assert last[2] == "both: not run, since vit_seed0 could not be recorded"
    assert last[3] == "seeds: not run, since vit_seed0 and 1 more could not be recorded"
    assert "a fault of ours" in said


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        (("limit = 60", "limit = 61"), "limit was 60, now 61"),
        (("batch_size = 16", "batch_size = 8"), "batch_size was 16, now 8"),
        (("batch_size = 16", "batch_size = 16\nskip_unreadable = true"), "skip_unreadable was False, now True"),
        (("seeds = [0, 1]", "seeds = [0, 1], top_k = 8"), "top_k was 16, now 8"),
        (("seeds = [0, 1]", "seeds = [0, 1], random_weights = 0"), "random_weights was None, now 0"),
        (("seeds = [0, 1]", 'seeds = [0, 1], layers = "all"'), "layers was -1, now all"),
        (("seeds = [0, 1]", 'seeds = [0, 1], token = "first"'), "token was cls, now first"),
        (("seeds = [0, 1]", 'seeds = [0, 1], sae = "random"'), "recipe was ours, now random"),
        (('"DemoViT"', '"DemoDino"'), "model was DemoViT, now DemoDino"),
    ],
)  # fmt: skip
def test_a_run_recorded_with_other_settings_is_refused_with_the_difference(
    undisturbed, monkeypatch, capsys, change, difference
):
    monkeypatch.chdir(undisturbed)
    file = written(undisturbed, SMALL.replace(*change, 1), "other.toml")
    with pytest.raises(SystemExit) as left:
        study.main([file])
    (line,) = capsys.readouterr().err.splitlines()
    assert left.value.code == 2
    table = "encoders.vit" if "seeds" in change[0] or "model" in difference else "train"
    assert f"run 'vit_seed0' was recorded otherwise than [{table}] says ({difference})" in line
    assert line.endswith("--runname vit --overwrite")


STAND_IN = """
import json, os, sys, time
name = sys.argv[-1]
times = [time.monotonic()]
time.sleep(0.3)
times.append(time.monotonic())
with open(name + ".json", "w") as file:
    json.dump([os.environ["CUDA_VISIBLE_DEVICES"], *times], file)
print("said by", name)
sys.exit(3 if name == "c" else 0)
"""


def test_train_commands_take_turns_at_the_gpus(here, monkeypatch):
    (here / "train_image.py").write_text(STAND_IN)
    monkeypatch.setattr(working, "ROOT", here)
    found = [
        steps.Step("encoders", name, name, "train_image", ["--model", "DemoViT", "--runname", name], (name,))
        for name in "abcde"
    ]
    outcome = working.carry_out(found, gpus=["4", "MIG-7"])
    assert list(outcome.failures) == ["c"]
    assert outcome.failures["c"].startswith("exit code 3, see imgs/study/c.log: uv run train_image.py")
    assert Path("imgs/study/c.log").read_text() == "said by c\n"
    work = sorted(json.loads((here / f"{name}.json").read_text()) for name in "abcde")
    assert {gpu for gpu, *_ in work} == {"4", "MIG-7"}
    for (gpu, _, ended), (next_gpu, began, _) in itertools.pairwise(work):
        assert gpu != next_gpu or ended <= began


# ------------------------------------------------------------------------------------------- the paper's study


def test_every_command_of_the_papers_study_parses_and_every_encoder_of_the_paper_is_there(here, capsys):
    study.main([str(STUDIES / "paper.toml"), "--print"])
    lines = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    for words in lines:
        assert words[:2] == ["uv", "run"]
        importlib.import_module(words[2].removesuffix(".py")).parse(words[3:])
    trained = [words for words in lines if words[2].startswith("train_")]
    for data in ("coco", "flowers102"):
        asked = [importlib.import_module(w[2].removesuffix(".py")).parse(w[3:]) for w in trained if data in w]
        own = [one for one in asked if one.random_weights is None]
        assert {(one.model, one.checkpoint) for one in own} == PAPER
        assert len(own) == len(PAPER) == 20
        assert all(one.seeds == [0, 1] for one in own)
        small = {one.checkpoint for one in own if one.layers == ["all"]}
        assert len(small) == 7
        assert not any(word in name for name in small for word in ("large", "ViT-L", "vitl"))
        controls = {one.checkpoint for one in asked if one.random_weights == 0}
        assert controls == small


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_papers_study_runs_whole_on_tiny_models_of_the_real_names(here, capsys):
    write_coco(here / "data/coco", 120)
    write_flowers(here / "data/flowers102", 120)
    asked = steps.read(STUDIES / "paper.toml")
    asked.train["workers"], asked.data["flowers"]["epochs"] = 0, 1
    for table in asked.shown["wmppc"].values():
        table["no-trust"] = True  # which takes minutes more
    with offline_hub.paper(here / "hub"):
        outcome = working.carry_out(steps.steps(asked))
        assert outcome.failures == {}
        again = working.carry_out(steps.steps(asked))
    assert outcome.failures == again.failures == {}
    assert len(features.run_names()) == 2 * (20 * 2 + 10)
    assert capsys.readouterr().out.count("recorded: ") == 2 * 30
    pictures = {path.name for path in Path("imgs/paper").glob("*.png")}
    assert {f"{data}-matrix-{size}.png" for data in ("coco", "flowers") for size in "bl"} <= pictures


def caption(row):
    """Words that the tiny tokenizers know."""
    return " ".join(random.Random(row).choices(offline_hub.WORDS, k=8))


def write_coco(root, count):
    """Scenes of the demo in COCO's layout."""
    (root / "annotations").mkdir(parents=True)
    (root / "train2017").mkdir()
    for row in range(count):
        scenes.picture(row).save(root / f"train2017/{row:012d}.png")
    tables = {
        "images": [{"id": row, "file_name": f"{row:012d}.png"} for row in range(count)],
        "annotations": [{"id": row, "image_id": row, "caption": caption(row)} for row in range(count)],
    }
    (root / "annotations/captions_train2017.json").write_text(json.dumps(tables))


def write_flowers(root, count):
    """Scenes of the demo in the layout of Oxford's flowers."""
    (root / "jpg").mkdir(parents=True)
    (root / "text_c10/class_00001").mkdir(parents=True)
    for row in range(count):
        scenes.picture(row).save(root / f"jpg/image_{row:05d}.jpg")
        (root / f"text_c10/class_00001/image_{row:05d}.txt").write_text(caption(row) + "\n")
