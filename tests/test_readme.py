"""What the README says is so: its tables are the code's, and its commands parse."""

import importlib
import re
import shlex
from pathlib import Path

import pytest

import check
import study
import wrappedmodels
from studying import steps

REPOSITORY = Path(__file__).resolve().parent.parent
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
README = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
COMMANDS = [
    shlex.split(line, comments=True)[2:]
    for block in re.findall(r"```sh\n(.*?)```", README, re.S)
    for line in block.splitlines()
    if line.startswith("uv run ")
] + [shlex.split(code)[2:] for code in re.findall(r"`(uv run [a-z_/]+\.py [^`…]*)`", README)]
SCRIPTS = [words for words in COMMANDS if words[0].endswith(".py") and "--help" not in words]


def test_the_encoder_table_is_the_registrys(capsys):
    check.main(["--markdown"])
    assert capsys.readouterr().out.strip() in README


@pytest.mark.parametrize("words", SCRIPTS, ids=" ".join)
def test_every_command_of_the_readme_parses(words, capsys, tmp_path, monkeypatch):
    assert (REPOSITORY / words[0]).is_file()
    name = words[0].removesuffix(".py")
    monkeypatch.chdir(tmp_path)
    if name in ("train_image", "train_text"):
        arguments = importlib.import_module(name).parse(words[1:])
        row = wrappedmodels.REGISTRY[arguments.model]
        assert arguments.checkpoint is None or arguments.checkpoint in row.checkpoints
    elif name == "study":
        arguments = study.parse(words[1:])
        assert steps.read(REPOSITORY / arguments.study)
    elif name in ("wmppc", "comp_sharedness", "show"):
        with pytest.raises(SystemExit):
            importlib.import_module(name).main(words[1:])
        assert "no run named" in capsys.readouterr().err


def test_the_studies_of_the_readme_are_five_commands_each_that_parse(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    texts = re.findall(r"```toml\n(.*?)```", README, re.S)
    for text in texts:
        (tmp_path / "own.toml").write_text(text)
        assert len(steps.steps(steps.read(tmp_path / "own.toml"))) == 5
    assert len(texts) == 2


def test_the_python_of_the_readme_runs_as_it_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (snippet,) = re.findall(r"```python\n(.*?)```", README, re.S)
    names = {}
    exec(snippet.replace("compare(run, other)", "score = compare(run, other)"), names)
    assert (names["run"].layers, names["run"].n_samples) == (["layer2"], 300)
    assert names["run"].manifest["sae"]["layer2"]["k"] == 16
    assert names["score"].value > names["score"].floor


def test_every_file_of_the_tree_is_there_and_every_file_is_in_the_tree():
    tree = re.search(r"## What is here\n\n```\n(.*?)```", README, re.S)[1]
    named = set(re.findall(r"[\w/]+\.py|^\w+/", tree, re.M))
    assert all((REPOSITORY / name).exists() for name in named)
    assert {path.name for path in REPOSITORY.glob("*.py")} <= named


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        file, _, heading = link.partition("#")
        if not file.startswith("http"):
            target = (page.parent / file).resolve() if file else page
            assert target.exists(), link
            anchors = [
                re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")
                for title in re.findall(r"(?m)^#+ (.*)$", target.read_text() if heading else "")
            ]
            assert not heading or heading in anchors, link


def test_the_papers_encoders_are_all_in_the_readme():
    for row in wrappedmodels.REGISTRY.values():
        for checkpoint in row.checkpoints:
            assert checkpoint in README


def test_a_newcomer_reads_the_readme_in_ten_minutes():
    """At most 200 lines, and 2,200 words of prose; more belongs into docs/."""
    text = PAGES[0].read_text(encoding="utf-8")
    prose = re.sub(r"(?m)^\|.*$", "", re.sub(r"```.*?```", "", text, flags=re.S))
    assert len(text.splitlines()) <= 200
    assert len(prose.split()) <= 2200
