"""The report of runs: its numbers are the comparison's, and nothing that a data set says becomes markup."""

import base64
import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from data_files import listed
from runs import make_run
from scipy.sparse import csr_array
from test_thumbnails import photograph

import data
import features
import show
from comparing import compare
from comparing.per_feature import Presence
from showing import report

HOSTILE = ["</script><script>fired()</script>", '"><img src=x onerror=fired()>', "כלב שחור", "word " * 2000]
NAME = "<img src=x onerror=fired()>"  # a person's, of a feature


class Page(HTMLParser):
    """The elements with their attributes, and the words, of a page."""

    def __init__(self, file):
        super().__init__()
        self.elements, self.words = [], []
        self.text = file.read_text(encoding="utf-8")
        self.feed(self.text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(" ".join(data.split()))

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def recorded(pairs, name, codes, **manifest):
    captions = [pairs.caption(row) for row in range(len(pairs))]
    layers = {"layer0": codes[:, ::-1], "layer1": codes}
    return make_run(name, layers, pairs.ids, source=pairs.source, captions=captions, **manifest)


def two_runs(folder, n_rows):
    """A's feature 2 is B's feature 0; its others, of which 3 is the most active, are not in B; row 1 is gone."""
    names = [f"{row}.jpg" for row in range(n_rows)]
    root = listed(folder / "odd", dict.fromkeys(names, photograph()))
    texts = [*HOSTILE, *(f"a picture {row}" for row in range(n_rows))][:n_rows]
    (root / "captions.jsonl").unlink()
    (root / "captions.tsv").write_text(
        "\n".join(
            f'{name}\t"{text.replace(chr(34), chr(34) * 2)}"' for name, text in zip(names, texts, strict=True)
        )
    )
    pairs = data.open_pairs("folder", str(root))
    (root / "1.jpg").unlink()
    dice = np.random.default_rng(0)
    codes = dice.random((n_rows, 4)) * (dice.random((n_rows, 4)) < 0.6) * [1, 1, 1, 3]
    codes[:4, 3] = 9, 8, 7, 6  # the odd rows are the highest of feature 3
    other = np.column_stack([codes[:, 2], dice.random(n_rows) < 0.5])
    return recorded(pairs, "A", codes, token="<b>cls", fvu={"layer1": 0.25}), recorded(pairs, "B", other)


def test_the_report_of_two_runs(here, capsys):
    run, other = two_runs(here, 300)
    (file,) = show.main(["--report", "A", "B", "--out", "a.html"])
    page, score = Page(file), compare(run, other).wmppc["last_layer"]
    for number in (score.held_out, *score.interval, score.floor, 0.25):
        assert f"{number:.3f}" in page.text
    titles = [word for word in page.words if word.startswith(("feature ", "Most", "Surely"))]
    assert titles[:2] == ["Most shared with B", "feature 2"]
    assert titles[titles.index("Surely not in B") + 1] == "feature 3"
    assert "held-out correlation 1.000 in B" in page.text
    assert "1 of" in capsys.readouterr().err  # pictures have no thumbnail
    assert "no picture" in page.words


def test_what_a_data_set_says_is_text_and_nothing_is_asked_of_the_network(here):
    two_runs(here, 300)
    Path("sae_features/A/labels.csv").write_text(f"layer,feature,name,by\nlayer1,2,{NAME},me\n")
    (file,) = show.main(["--report", "A", "B"])
    page = Page(file)
    assert file.name == "report-A.html"
    assert {tag for tag, _ in page.elements}.isdisjoint({"script", "link", "iframe"})
    assert HOSTILE[0] in page.words
    assert f"feature 2: {NAME}" in page.words
    assert "<b>cls" in page.words
    assert "word " * 50 in page.text
    assert "word " * 70 not in page.text  # 10,000 characters are cut
    assert all(image["src"].startswith("data:image/jpeg;base64,") for image in page.all("img"))
    assert not any(name.startswith("on") or name == "style" for _, given in page.elements for name in given)
    style = re.search("<style>(.*?)</style>", page.text, re.S)[1]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = next(meta["content"] for meta in page.all("meta") if "content" in meta and "http-equiv" in meta)
    assert policy.startswith(f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:")
    assert "https:" not in page.text
    assert str(here) not in page.text


def test_no_folder_of_this_machine_is_told(here):
    run, _ = two_runs(here, 60)
    words = ["train_image.py", "--data_root", str(here / "odd"), f"--checkpoint={here}/mine"]
    manifest = run.manifest | {
        "command": words,
        "encoder": run.manifest["encoder"] | {"checkpoint": words[-1][13:]},
    }
    manifest["dataset"] |= {"name": f"hf:{here}/odd"}
    features.finish_run(run.path, manifest)
    page = Page(show.main(["--report", "A", "--data_root", str(here / "odd")])[0])
    assert str(here) not in page.text
    assert "train_image.py --data_root odd --checkpoint=mine" in page.words
    assert "uv run show.py --report A --data_root odd" in page.words


def test_a_feature_of_one_half_of_the_samples_alone_is_surely_nowhere():
    """Its held-out correlation is 0 with an error of 0, whatever the other run has."""
    codes = csr_array(np.ones((40, 3)))
    nothing = Presence(*np.zeros((3, 3)))
    _, (_, _, least) = report.choices(codes, {"B": nothing}, 16, np.array([True, False, True]))
    assert least == [0, 2]


def test_too_few_samples_or_one_run_alone_give_no_held_out_scores(here):
    run, other = two_runs(here, 30)
    few = Page(show.main(["--report", "A", "B"])[0])
    assert f"{compare(run, other).wmppc['last_layer'].value:.3f}" in few.text
    alone = Page(show.main(["--report", "B"])[0])
    for page in (few, alone):
        assert "Most active features" in page.words
        assert not any(word.startswith("Surely") for word in page.words)
    assert "How far to trust it" not in alone.words


def test_a_run_without_a_live_feature_is_reported_as_such(here):
    run, _ = two_runs(here, 60)
    pairs = data.reopen(run)
    recorded(pairs, "dead", np.zeros((60, 4)))
    page = Page(show.main(["--report", "dead", "A"])[0])
    assert page.words.count("None.") == 2
    assert not page.all("img")


def test_runs_of_other_samples_are_refused_in_one_line(here, capsys):
    two_runs(here, 30)
    make_run("other", {"layer0": np.eye(3)})
    with pytest.raises(SystemExit):
        show.main(["--report", "A", "other"])
    (line,) = capsys.readouterr().err.splitlines()
    assert "'A' and 'other' are not comparable" in line
