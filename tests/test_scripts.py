"""The stage scripts as a user types them: real runs on small folders, and mistakes that end in one line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import oracles
import pytest
import scipy.sparse
from PIL import Image
from runs import make_run

import comp_sharedness
import demo
import features
import show
import train_image
import train_text
import wmppc
from toyworld import scenes

REPOSITORY = Path(__file__).resolve().parent.parent
N_PICTURES = 120


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder of pictures with captions, recorded by an image and a text encoder."""
    here = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        Path("photos/deep").mkdir(parents=True)
        with open("photos/captions.jsonl", "w") as file:
            for row in range(N_PICTURES):
                name = f"{'deep/' * (row % 2)}{row:03d}.png"
                scenes.picture(row).save(Path("photos", name))
                file.write(json.dumps({"file": name, "caption": scenes.captions(row)[0]}) + "\n")
        data = ["--dataset", "folder", "--data_root", "photos"]
        train_image.main([*data, "--layers", "all", "--runname", "image"])
        train_text.main([*data, "--layers", "all", "--runname", "text"])
    return here


@pytest.fixture
def here(world, monkeypatch):
    """Be where the runs are."""
    monkeypatch.chdir(world)
    return world


def complaint(capsys, main, *words):
    """What a script says of a mistake: one line, after which it leaves with code 2."""
    with pytest.raises(SystemExit) as left:
        main(list(words))
    printed = capsys.readouterr()
    lines = [line for line in printed.err.split("\n") if line.startswith("error: ")]
    assert left.value.code == 2
    assert len(lines) == 1
    assert printed.err.rstrip().split("\n")[-1] == lines[0], printed.err
    return lines[0]


# ---------------------------------------------------------------------------------------------- right use


def test_image_and_text_runs_are_aligned_and_name_their_files(here):
    image, text = features.open_run("image"), features.open_run("text")
    features.check_aligned([image, text])
    assert image.n_samples == N_PICTURES
    assert image.manifest["dataset"]["name"] == "photos"
    assert image.samples().images[:3] == ["000.png", "deep/001.png", "002.png"]
    assert image.samples() == text.samples()
    words = ["--dataset", "folder", "--data_root", "photos", "--layers", "all", "--runname", "text"]
    assert text.manifest["command"] == ["train_text.py", *words]
    assert (image.manifest["token"], text.manifest["token"]) == ("cls", "end_of_text")


def load_by_hand(name, layer):
    """A layer's features straight from its files, in numpy."""
    parts = sorted(Path("sae_features", name, layer).glob("features-*.npz"))
    return np.vstack([scipy.sparse.load_npz(part).toarray() for part in parts]).astype(np.float64)


def test_wmppc_is_what_numpy_says_of_the_files(here, capsys):
    forward, backward = wmppc.main(["--source", "image", "--target", "text"])

    def score(source, target):
        return oracles.wmppc(load_by_hand(source, "layer2"), load_by_hand(target, "layer2"))[0]

    assert forward.wmppc["last_layer"].value == pytest.approx(score("image", "text"), abs=1e-5)
    assert backward.wmppc["last_layer"].value == pytest.approx(score("text", "image"), abs=1e-5)
    assert f"{score('image', 'text'):.3f}" in capsys.readouterr().out


def test_sharedness_ranks_and_writes_every_feature(here, tmp_path):
    file = tmp_path / "all.csv"
    shared = comp_sharedness.main(
        ["--source", "image", "--min_group", "text", "--max_group", "image", "--csv", str(file)]
    )
    assert len(file.read_text().splitlines()) == 1 + 384
    status = np.array(shared.status)
    for words in set(shared.status):
        assert (np.diff(shared.delta[status == words]) <= 0).all()
    assert shared.delta.max() <= 1e-3  # nothing of a run is less in the run itself than in another


@pytest.mark.parametrize("run", ["image", "text"])
def test_show_makes_a_sheet_for_each_feature(here, tmp_path, run):
    files = show.main(["--run", run, "--top", "3", "--out", str(tmp_path)])
    assert len(files) == 3
    assert files[0].parent == tmp_path / run
    sums = load_by_hand(run, "layer2").sum(0)
    counts = (load_by_hand(run, "layer2") > 0).sum(0)
    order = sorted(np.flatnonzero(counts >= 16), key=lambda i: (counts[i] > 0.1 * N_PICTURES, -sums[i]))
    expected = [f"layer2-feature{i:05d}.jpg" for i in order][:3]
    assert [file.name for file in files] == expected
    with Image.open(files[0]) as sheet:
        assert (sheet.format, sheet.width > 500) == ("JPEG", True)


def test_show_takes_all_features_with_sixteen_activations_by_default(here, tmp_path):
    files = show.main(["--run", "image", "--layer", "0", "--out", str(tmp_path)])
    counts = (load_by_hand("image", "layer0") > 0).sum(0)
    assert len(files) == (counts >= 16).sum() > 3


# ----------------------------------------------------------------------------------------------- mistakes

FOLDER = ("--dataset", "folder", "--data_root", "photos", "--runname", "never")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model", "Clip"], ["'Clip'", "ClipVision", "DinoV2"]),
        (["--model", "DinoV3"], ["'DinoV3' is unknown; did you mean DinoV2?"]),
        (["--model", "dinov2"], ["did you mean DinoV2?"]),
        (["--model", "ClipText"], ["--model ClipText is an encoder of text: use train_text.py"]),
        (["--bert_model_name", "my/bert"], ["--bert_model_name is an encoder of text: use train_text.py"]),
        (
            ["--checkpoint", "bert-base-uncased"],
            ["--checkpoint bert-base-uncased is an encoder of text: use"],
        ),
        (["--sae", "nowhere"], ["--sae nowhere is no folder"]),
        (["--model", "ViT", "--checkpoint", "no/such"], ["no/such"]),
        (["--checkpoint", "whatever"], ["whatever", "--model"]),
        (
            ["--model", "ViT", "--clip_model_name", "ViT-B/32-quickgelu"],
            ["--clip_model_name", "--vit_model_name"],
        ),
        (["--clip_model_name", "ViT-B/33"], ["ViT-B/33", "ViT-B-32"]),
        (["--layers", "3"], ["3", "0", "2"]),
        (["--layers", "-4"], ["-4"]),
        (["--layers", "last"], ["'last' is no layer", "or all"]),
        (["--layers", "all", "1"], ["--layers all is all of them"]),
        (["--device", "cuda:7"], ["--device cuda:7", "--device cpu"]),
        (["--data_seed", "-1"], ["'-1'", "at least 0"]),
        (["--top_k", "385"], ["385", "384"]),
        (["--top_k", "0"], ["'0'", "at least 1"]),
        (["--lr", "-1"], ["-1", "above 0"]),
        (["--batch_size", "x"], ["'x'"]),
        (["--expansion", "4"], ["--expansion"]),
        (["--runname", "a/b"], ["'a/b'"]),
        (["--dataset", "imagenet"], ["'imagenet'", "coco", "folder"]),
        (["--data_root", "nowhere"], ["--data_root nowhere is no folder"]),
        (["--limit", "0"], ["0", "at least 1"]),
        (["--runname", "image"], ["'image' exists", "--overwrite"]),
    ],
)
def test_a_mistake_on_the_command_line_ends_in_one_line(here, capsys, words, said):
    line = complaint(capsys, train_image.main, *FOLDER, *words)
    for part in said:
        assert part in line
    assert "never" not in features.run_names()


@pytest.mark.parametrize(
    ("words", "what"),
    [
        ("--model DemoClipVision", "--model DemoClipVision is an encoder of pictures"),
        ("--model ClapAudio", "--model ClapAudio is an encoder of sounds"),
        ("--vit_model_name google/vit-base-patch16-224", "--vit_model_name is an encoder of pictures"),
        ("--checkpoint dinov2_vitb14", "--checkpoint dinov2_vitb14 is an encoder of pictures"),
    ],
)
def test_an_encoder_of_the_other_script_names_that_script(here, capsys, words, what):
    assert f"{what}: use train_image.py" in complaint(capsys, train_text.main, *words.split())


def test_coco_says_where_it_looked_and_how_to_get_it(here, capsys):
    line = complaint(capsys, train_image.main, "--model", "DemoViT", "--dataset", "coco")
    assert "data/coco" in line
    assert "captions_train2017.json" in line


def test_other_encoders_take_coco_by_default(here, capsys, tmp_path, monkeypatch):
    line = complaint(
        capsys, train_text.main, "--model", "Bert", "--checkpoint", str(REPOSITORY / "toyworld/weights/bert")
    )
    assert "data/coco" in line


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """A folder of thirty pictures to spoil."""
    monkeypatch.chdir(tmp_path)
    Path("bad").mkdir()
    for row in range(30):
        scenes.picture(row).save(f"bad/{row}.png")
    Path("bad/captions.tsv").write_text(
        "".join(f"{row}.png\t{scenes.captions(row)[0]}\n" for row in range(30))
    )
    return tmp_path / "bad"


BAD = ("--dataset", "folder", "--data_root", "bad", "--layers", "0")


def test_an_empty_data_set_is_refused(photos, capsys):
    (photos / "captions.tsv").write_text("")
    assert "bad" in complaint(capsys, train_image.main, *BAD)


def test_a_missing_picture_is_named(photos, capsys):
    (photos / "7.png").unlink()
    assert "7.png" in complaint(capsys, train_image.main, *BAD)


@pytest.mark.parametrize("workers", ["0", "1"])
def test_an_unreadable_picture_is_named_with_its_row(photos, capsys, workers):
    (photos / "7.png").write_bytes(b"no picture")
    line = complaint(capsys, train_image.main, *BAD, "--workers", workers)
    assert "row 7" in line
    assert "7.png" in line
    assert features.run_names() == []


def test_unreadable_pictures_can_be_left_out_of_both_sides(photos, capsys):
    (photos / "7.png").write_bytes(b"no picture")
    complaint(capsys, train_image.main, *BAD, "--runname", "image")  # of which nothing stays in the way
    (image,) = train_image.main([*BAD, "--skip_unreadable", "--runname", "image"])
    (text,) = train_text.main([*BAD, "--skip_unreadable", "--runname", "text"])
    features.check_aligned([image, text])
    assert image.n_samples == text.n_samples == 29
    for run in (image, text):
        assert [item["path"] for item in run.manifest["unreadable"]] == ["7.png"]


@pytest.mark.parametrize(
    ("main", "words", "said"),
    [
        (wmppc.main, ["--source", "image", "--target", "nix"], ["'nix'", "image, text"]),
        (wmppc.main, ["--source", "../image", "--target", "image"], ["../image"]),
        (wmppc.main, ["--source", "image"], ["--target"]),
        (comp_sharedness.main, ["--source", "image", "--min_group", "nix", "--max_group", "text"], ["'nix'"]),
        (show.main, ["--run", "nix"], ["'nix'", "image, text"]),
        (show.main, ["--run", "image", "--features", "384"], ["384", "383"]),
        (show.main, ["--run", "image", "--layer", "7"], ["7", "layer0, layer1, layer2"]),
        (show.main, ["--run", "image", "--data_root", "nowhere"], ["nowhere"]),
        (show.main, ["--run", "image", "--top", "0"], ["'0'"]),
        (show.main, ["--run", "image", "--out", "sae_features/image/run.json"], ["run.json is no folder"]),
        (wmppc.main, ["--source", "image", "--target", "text", "--plot", "a.xyz"], ["a.xyz", ".png", ".pdf"]),
    ],
)
def test_mistakes_about_runs_end_in_one_line(here, capsys, main, words, said):
    line = complaint(capsys, main, *words)
    for part in said:
        assert part in line


def test_an_interrupted_script_says_so_in_one_line(here, capsys, monkeypatch):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(features, "open_run", interrupted)
    with pytest.raises(SystemExit) as left:
        show.main(["--run", "image"])
    assert left.value.code == 130
    assert capsys.readouterr().err == "interrupted: give the same command again\n"


def test_incomplete_and_unaligned_runs_are_refused(photos, capsys):
    for name, limit in (("one", "20"), ("two", "21")):
        train_image.main([*BAD, "--limit", limit, "--runname", name])
    capsys.readouterr()
    line = complaint(capsys, wmppc.main, "--source", "one", "--target", "two")
    assert "'one' and 'two' are not comparable" in line
    Path("sae_features/one/run.json").unlink()
    assert "'one' is incomplete" in complaint(capsys, wmppc.main, "--source", "one", "--target", "two")
    assert "'one' is incomplete" in complaint(capsys, show.main, "--run", "one")


def test_show_refuses_pictures_that_are_not_the_runs(photos, capsys):
    train_image.main([*BAD, "--runname", "one"])
    lines = (photos / "captions.tsv").read_text().splitlines()
    (photos / "captions.tsv").write_text("\n".join(lines[1:]) + "\n")
    capsys.readouterr()
    assert "has changed" in complaint(capsys, show.main, "--run", "one")


# ------------------------------------------------------------------------------------------- the ranks

HEAVY = {"torch", "open_clip", "transformers", "torchvision", "scipy", "numba", "matplotlib"}
COLD = """
import importlib, os, sys
os.environ.pop("GOMP_SPINCOUNT", None)
for name, *words in {commands}:
    try:
        importlib.import_module(name).main(words)
    except SystemExit as left:
        print("left with", left.code, *sorted({heavy} & set(sys.modules)))
print("OpenMP's idle threads spin", os.environ.get("GOMP_SPINCOUNT"))
"""


def cold(*commands, **environment):
    """The outputs of a process in which the commands are given, and a line on how each left."""
    return subprocess.run(
        [sys.executable, "-c", COLD.format(commands=commands, heavy=HEAVY)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), **environment},
        check=True,
    )


def test_help_and_what_can_be_told_at_once_need_no_heavy_library(here):
    data = ["--dataset", "folder", "--data_root", "photos"]
    mistakes = [
        ("train_image", "--model", "ViT"),  # no COCO
        ("train_image", *data, "--runname", "image"),  # exists
        ("train_text", *data, "--runname", "a/b"),
        ("train_text", "--modle", "Bert"),
        ("train_text", "--dataset", "folder", "--data_root", "nowhere"),
        ("wmppc", "--source", "image", "--target", "nix"),
        ("wmppc", "--source", "nix*", "--target", "image"),
        ("comp_sharedness", "--source", "image", "--min_group", "nix", "--max_group", "text"),
        ("comp_sharedness", "--source", "image", "--min_group", "text", "--max_group", "text"),
        (
            "comp_sharedness",
            "--source",
            "image",
            "--min_group",
            "text",
            "--max_group",
            "image",
            "--layer",
            "9",
        ),
        ("show", "--run", "nix"),
        ("show", "--run", "image", "--layer", "7"),
    ]
    scripts = ["train_image", "train_text", "wmppc", "comp_sharedness", "show"]
    done = cold(*((name, "--help") for name in scripts), *mistakes)
    # torch, which reads it when it is imported, is not there yet
    assert done.stdout.endswith("OpenMP's idle threads spin 10000\n")
    left = [line for line in done.stdout.splitlines() if line.startswith("left with")]
    assert left == ["left with 0"] * len(scripts) + ["left with 2"] * len(mistakes)
    assert len([line for line in done.stderr.splitlines() if line.startswith("error: ")]) == len(mistakes)


# ------------------------------------------------------------------------------------------------ consoles


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_leaves_ends_a_script_quietly_and_files_are_written(here, unbuffered, tmp_path):
    words = ["--source", "image", "--target", "text", "--json", str(tmp_path / "all.json")]
    code = f"import wmppc; wmppc.main({words})"
    reader, writer = os.pipe()
    os.close(reader)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": unbuffered}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, env=environment)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")
    assert len(json.loads((tmp_path / "all.json").read_text())["directions"]) == 2


def test_a_console_that_cannot_show_a_letter_shows_a_question_mark(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_run("A", {"layer0": np.eye(12)}, dataset_name="caf\u00e9 \udcff")
    words = ("wmppc", "--source", "A", "--target", "A")
    for encoding in ("ascii", "utf-8"):
        done = cold(words, PYTHONIOENCODING=f"{encoding}:strict")
        assert done.stdout.startswith("12 samples of caf")
        assert "?" in done.stdout.splitlines()[0]


# ------------------------------------------------------------------------------------------------ the demo


@pytest.mark.parametrize("limit", ["99", "10001"])
def test_the_demo_refuses_a_number_of_samples_before_it_trains(limit, monkeypatch, capsys):
    monkeypatch.setattr(demo.working, "carry_out", None)
    with pytest.raises(SystemExit):
        demo.main(["--limit", limit])
    assert f"{limit} samples are too few or too many: the demo takes 100 to 10,000" in capsys.readouterr().err


def test_the_retrained_demo_leaves_the_committed_weights_alone_and_uses_its_own(tmp_path, monkeypatch):
    from toyworld import train_encoders

    monkeypatch.chdir(tmp_path)
    said = []

    def trained(argv):
        said.append(argv)
        for name in train_encoders.RECIPES:
            (Path(argv[argv.index("--out") + 1]) / name).mkdir(parents=True)

    def carried_out(steps, gpus):
        said.extend(step.words for step in steps if step.records)
        raise KeyboardInterrupt  # the rest is as without --retrain

    monkeypatch.setattr(train_encoders, "main", trained)
    monkeypatch.setattr(demo.working, "carry_out", carried_out)
    with pytest.raises(SystemExit):
        demo.main(["--retrain"])
    assert said[0] == ["--out", "data/demo-encoders"]
    assert "data/" in (REPOSITORY / ".gitignore").read_text().splitlines()
    weights = [words[words.index("--checkpoint") + 1] for words in said[1:]]
    assert all(Path(folder).is_dir() for folder in weights)
    assert [Path(folder).name for folder in weights] == ["clip", "clip", "vit", "dino", "bert", "clip"]
