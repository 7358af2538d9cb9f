"""What scripts share: files that can be written, and outputs that nobody reads any more."""

import os
import re

import pytest

import data
from data import open_pairs
from plumbing import commandline
from plumbing.errors import UserError


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("file", ["folder/../file.csv", "new/file.csv", "link.csv", os.devnull])
def test_a_file_that_can_be_written_is_not_touched_before(tmp_path, file):
    (tmp_path / "link.csv").symlink_to("target.csv")
    commandline.output(file)
    assert [path.name for path in tmp_path.rglob("*")] == ["link.csv"]  # and no folder


@pytest.mark.parametrize("file", ["/proc/file.csv", "a" * 300, "notes/file.csv", "gone/file.csv"])
def test_a_file_that_cannot_be_written_is_said_before_the_work(tmp_path, file):
    (tmp_path / "notes").write_text("mine")
    (tmp_path / "gone").symlink_to("/proc/nowhere")
    with pytest.raises(UserError, match="cannot be written"):
        commandline.output(file)
    with pytest.raises(UserError, match="is no folder"):
        commandline.folder("notes")
    with pytest.raises(UserError, match="cannot be written into"):
        commandline.folder("/proc/folder")


def test_another_broken_pipe_than_our_outputs_is_no_quiet_end():
    @commandline.script
    def main(argv):
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        main()


def test_options_reach_the_data_set(folder):
    parser = commandline.Parser("a script", data.__file__)
    parser.add_argument("--lr")
    commandline.add_flags(parser, data.FLAGS)
    words = f"--dataset folder --data_root {folder} --limit 1 --caption all --lr 3"
    arguments = parser.parse_args(words.split())
    pairs = open_pairs(**commandline.chosen(arguments, data.FLAGS))
    assert pairs.captions == [["a robin", "a red bird"]]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--limt 5", "--limt is unknown; did you mean --limit? (see `uv run benchmarks/rows.py --help`)"),
        ("-limit 5", "-limit is unknown; did you mean --limit?"),
        ("–run a", "–run is unknown; did you mean --run?"),  # a dash of a word processor
        ("--no_trust", "--no_trust is unknown; did you mean --no-trust?"),
        ("--port=3", "--port is unknown; the flags are --help --limit --run --no-trust"),
        ("--run a -1 --limit 3 --run b", "--run is given twice: give all of its values after one"),
        ("--no-trust yes", "'yes' after --no-trust is one word too many: leave it out"),
        ("--limit -1e-3", "--limit: expected one argument"),
    ],
)
def test_a_flag_that_argparse_would_not_explain_is(words, said):
    script = os.path.join(os.path.dirname(data.__file__), "benchmarks", "rows.py")
    parser = commandline.Parser("a script", script)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--run", nargs="+")
    parser.add_argument_group("more").add_argument("--no-trust", action="store_true")
    assert vars(parser.parse_args(["--limit", "-3", "--run", "b"]))["limit"] == -3
    with pytest.raises(UserError, match=re.escape(said)):
        parser.parse_args(words.split())


def test_two_outputs_in_one_file_are_refused():
    parser = commandline.Parser("a script", data.__file__)
    parser.add_argument("--csv", type=commandline.output)
    parser.add_argument("--plot", type=commandline.picture)
    assert parser.parse_args(["--csv", "a.csv", "--plot", "a.png"]).csv.name == "a.csv"
    with pytest.raises(UserError, match="--csv and --plot both write a.png: name another") as refused:
        parser.parse_args(["--csv", "a.png", "--plot", "./a.png"])
    assert "data.py --help" in str(refused.value)
