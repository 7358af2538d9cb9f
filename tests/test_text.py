"""Captions alone (`--dataset text`), and runs on other captions of the same rows (`--caption 2`)."""

import contextlib
import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from runs import make_run
from small_world import SmallEncoder, variants

import check
import features
import show
import study
import train_image
import wmppc
from data import open_pairs, reopen
from plumbing.errors import UserError
from training import experiment

PLAIN = b"\xef\xbb\xbfa cat\r\n\r\na dog\xe2\x80\xa8on\x0ctwo lines\n \t\na cat\na caf\xc3\xa9"


def written(folder, name, content):
    """A file of captions, by its path as a user types it."""
    file = folder / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(file)


# ------------------------------------------------------------------------------------- captions alone


def test_a_line_is_a_row_and_its_number_the_id(tmp_path, capsys):
    """A byte order mark, both line ends, no end of the last line, separators that end no line, a caption twice."""
    pairs = open_pairs("text", written(tmp_path, "birds.txt", PLAIN), skip_unreadable=True)
    captions = ["a cat", "a dog\u2028on\x0ctwo lines", "a cat", "a caf\xe9"]
    assert (pairs.name, pairs.ids, pairs.images) == ("birds", ["1", "3", "5", "6"], ["", "", "", ""])
    assert pairs.captions == [[caption] for caption in captions]
    assert pairs.fingerprint == features.fingerprint(zip(pairs.ids, captions, strict=True))
    assert capsys.readouterr().err == "text: 2 of 6 lines have no caption and are left out\n"
    assert (list(pairs.items(1, "text")), pairs.unreadable) == ([captions[1]], [])


def test_lines_of_jsonl_have_ids_and_captions_or_numbers(tmp_path):
    lines = [
        '{"id": "a", "caption": "one"}',
        '{"id": 7, "text": ["two", "zwei"]}',
        '{"id": 9, "caption": ""}',
    ]
    pairs = open_pairs("text", written(tmp_path, "a.JSONL", "\r\n".join(lines)))
    assert (pairs.ids, pairs.captions) == (["a", "7"], [["one"], ["two"]])
    numbered = open_pairs("text", written(tmp_path, "b.jsonl", '\n{"caption": "one"}\n{"caption": "one"}\n'))
    assert numbered.ids == ["2", "3"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", b"", "a.txt holds no caption"),
        ("a.txt", b"\n\r\n \n", "a.txt holds no caption"),
        ("a.txt", b"a cat\na caf\xe9\n", "a.txt:2: not UTF-8 text .*save the file as UTF-8"),
        ("a.txt", "a cat".encode("utf-16"), "a.txt:1: not UTF-8"),
        ("a.csv", b"id,caption", "a.csv is neither .txt nor .jsonl: .*hf:FILE"),
        ("a.jsonl", b'{"caption": "x"}\nx', "a.jsonl:2: not a JSON object"),
        ("a.jsonl", b'{"file": "x"}', 'a.jsonl:1: needs {"id": "a", "caption"'),
        ("a.jsonl", b'{"id": null, "caption": "x"}', "a.jsonl:1: needs"),
        ("a.jsonl", b'{"id": "", "caption": "x"}', "a.jsonl:1: needs"),
        (
            "a.jsonl",
            b'{"id": 1, "caption": "x"}\n{"caption": "x"}',
            "a.jsonl:2 has no id, which the lines before",
        ),
        (
            "a.jsonl",
            b'{"caption": "x"}\n{"id": 1, "caption": "x"}',
            "a.jsonl:2 has an id, which the lines before",
        ),
        (
            "a.jsonl",
            b'{"id": 1, "caption": "x"}\n{"id": "1", "caption": "y"}',
            "'1' occurs twice, in rows 0 and 1",
        ),
    ],
)
def test_a_file_that_is_none_of_captions_is_refused_in_one_line(tmp_path, name, content, said):
    with pytest.raises(UserError, match=said):
        open_pairs("text", written(tmp_path, name, content))


def test_no_file_a_missing_one_and_a_folder_are_refused(tmp_path):
    for root, said in ((None, "needs --data_root FILE: name a .txt"), ("nix.txt", "nix.txt does not exist")):
        with pytest.raises(UserError, match=said):
            open_pairs("text", root)
    with pytest.raises(UserError, match="is a folder: name a .txt"):
        open_pairs("text", str(tmp_path))


def test_an_encoder_of_pictures_is_refused_before_it_is_loaded(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["--dataset", "text", "--data_root", written(tmp_path, "a.txt", PLAIN)]
    with pytest.raises(SystemExit):
        train_image.main(words)
    assert capsys.readouterr().err == "error: --dataset text has captions only: use train_text.py\n"
    with pytest.raises(UserError, match="use train_text.py"):
        open_pairs("text", words[-1]).items(0, "image")
    toml = '[data.a]\ndataset = "text"\n[encoders]\nbert = {model = "Bert", caption = 2}\nvit = {model = "ViT"}\n'
    with pytest.raises(SystemExit):
        study.main([written(tmp_path, "study.toml", toml), "--print"])
    assert "[encoders.vit], uv run train_image.py" in capsys.readouterr().err
    study.main([written(tmp_path, "study.toml", toml.replace('vit = {model = "ViT"}', "")), "--print"])
    assert "--model Bert --caption 2 --dataset text --runname bert" in capsys.readouterr().out


def test_what_a_file_of_captions_holds_is_printed_without_a_sheet(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["--dataset", "text", "--data_root", written(tmp_path, "a.txt", PLAIN)]
    held = check.main(words)
    assert (held["rows"], held["distinct_captions"], held["first_id"], held["last_id"]) == (4, 3, "1", "6")
    assert "contact_sheet" not in held
    with pytest.raises(SystemExit):
        check.main([*words, "--sheet", "a.png"])
    assert "data set 'a' has no pictures" in capsys.readouterr().err


def test_a_run_on_captions_alone_is_shown_by_them(tmp_path, monkeypatch, capsys):
    """Its sheet is as high as the text of the cells, and a report lists the captions; figures and places in pictures
    are refused by name.
    """
    from showing import sheets

    monkeypatch.chdir(tmp_path)
    pairs = open_pairs("text", written(tmp_path, "a.txt", "\n".join(f"bird {row}" for row in range(20))))
    captions = [pairs.caption(row) for row in range(20)]
    make_run("bert", {"layer0": np.ones((20, 1))}, pairs.ids, "text", pairs.source, captions=captions)
    (file,) = show.main(["--run", "bert"])
    assert Image.open(file).height == sheets.TITLE + 3 * (sheets.TEXT + sheets.GAP)
    page = show.main(["--report", "bert"])[0].read_text()
    assert re.findall(r"bird \d+", page) == [f"bird {row}" for row in range(12)]
    assert "no picture" not in page
    for words, said in (
        (["--sheet", "0"], "is of captions alone, and a figure"),
        (["--html", "--where"], "is of no pictures: leave out --where"),
    ):
        with pytest.raises(SystemExit):
            show.main(["--run", "bert", *words])
        assert said in capsys.readouterr().err


# ------------------------------------------------------------------------------------- the N-th caption


def test_the_nth_caption_of_the_same_rows_has_the_same_fingerprint(tmp_path):
    lines = [
        json.dumps({"id": row, "caption": [f"{word} {row}" for word in "abc"[: 2 + row]]}) for row in range(2)
    ]
    file = written(tmp_path, "a.jsonl", "\n".join(lines))
    first, second = (open_pairs("text", file, caption=caption) for caption in ("first", 2))
    assert (second.captions, second.caption(1)) == ([["b 0"], ["b 1"]], "b 1")
    assert first.fingerprint == second.fingerprint == open_pairs("text", file, caption="all").fingerprint
    assert second.source["caption"] == 2
    assert open_pairs("text", file, caption=1).source == first.source
    with pytest.raises(
        UserError, match=r"row 0 \(id '0'\) has 2 captions, .* that all rows have is --caption 2"
    ):
        open_pairs("text", file, caption=3)
    for wrong in (0, "-1", "2.0", "second"):
        with pytest.raises(UserError, match="type first, all, or a number from 1 on"):
            open_pairs("text", file, caption=wrong)


class Words(SmallEncoder):
    """A token is the sum of a direction for each letter from a to l that is a word of the caption."""

    def preprocess(self, caption):
        import torch

        parts = torch.tensor([[float(letter in caption.split()) for letter in "abcdefghijkl"]])
        return {"parts": parts.expand(4, 12), "bad": torch.tensor(False)}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Runs c1, c2 and c3 of one encoder. The first and the second caption of a row have a word in common, and one of
    their own; the third has nothing to do with them.
    """
    root = tmp_path_factory.mktemp("noisy")
    dice = np.random.default_rng(0)
    said, noise = (np.array(list(letters)) for letters in ("abcdef", "ghijkl"))
    shared, other = dice.choice(said, (2, 600))
    rows = np.stack([shared, shared, other])
    own = dice.choice(noise, (3, 600))
    captions = [[f"{rows[n, row]} {own[n, row]} {n}-{row}" for n in range(3)] for row in range(600)]
    captions[1][0], captions[9][1] = (
        captions[2][0].upper(),
        captions[7][0],
    )  # rows 1 and 2, 7 and 9: a cluster each
    lines = [json.dumps({"id": row, "caption": texts}) for row, texts in enumerate(captions)]
    file = written(root, "a.jsonl", "\n".join(lines))
    with contextlib.chdir(root):
        for number in (1, 2, 3):
            pairs = open_pairs("text", file, caption=number)
            options = {"command": ["train_text.py"]}
            settings = variants(f"c{number}", seeds=(number,), epochs=8)
            experiment.train_all(Words(), pairs, settings, [2], **options)
    return root, captions


@pytest.fixture
def noisy(recorded, monkeypatch):
    """Be where these runs are; the captions [row][number]."""
    monkeypatch.chdir(recorded[0])
    return recorded[1]


def test_runs_on_two_captions_of_the_same_rows_are_compared_with_full_trust(noisy):
    """The shared word is half of what either run tells, so about half is found; of an unrelated caption, nothing."""
    one, two, three = (features.open_run(f"c{number}") for number in (1, 2, 3))
    assert [*two.samples().captions] == [texts[1] for texts in noisy]
    assert reopen(two).captions == [[texts[1]] for texts in noisy]
    assert len({run.fingerprint for run in (one, two, three)}) == 1
    forward, backward = wmppc.main(["--source", "c1", "--target", "c2"])
    for direction in (forward, backward):
        score = direction.wmppc["last_layer"]
        assert 0.3 < score.held_out < 0.7
        assert score.interval[0] < score.held_out < score.interval[1]
        assert None not in (
            score.floor,
            score.coverage,
            score.discovered,
            direction.drivers,
            direction.nuisance,
        )
        assert direction.drivers.clusters == 598
        assert direction.reference is None  # of another seed, but of another caption too
    assert abs(wmppc.main(["--source", "c1", "--target", "c3"])[0].wmppc["last_layer"].held_out) < 0.1


def test_scores_beside_runs_of_other_captions_are_kept_apart(noisy):
    """Halves hang on all the captions in a command, so scores of another command are not taken for its own."""

    def matrix():
        return {
            (one.source, one.target): one.wmppc["last_layer"]
            for one in wmppc.main(["--source", "c1", "c2", "--target", "c1", "c2", "c3"])
        }

    wmppc.main(["--source", "c1", "--target", "c2"])
    beside = matrix()
    for name in ("c1", "c2"):
        shutil.rmtree(f"sae_features/{name}/pairs")
    assert matrix() == beside


def test_the_explorer_names_features_after_the_captions_that_each_run_was_given(noisy, capsys):
    """Of c3 the captions that are shown, those of c1, tell nothing; its own do."""
    show.main(["--run", "c1", "--html", "--compare", "c3", "--out", "ex"])
    assert "samples are shown with caption first; c3 was given caption 3" in capsys.readouterr().err
    assert noisy[4][0] in Path("ex/data/captions/000.js").read_text()
    lines = csv.DictReader(Path("sae_features/c3/labels.csv").read_text().splitlines())
    assert sum(float(line["r"] or 0) > 0.5 for line in lines) > 5
