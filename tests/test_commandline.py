"""What scripts share: files that can be written, and outputs that nobody reads any more."""

import os

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


def test_another_broken_pipe_than_our_outputs_is_no_quiet_end():
    @commandline.script
    def main(argv):
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        main()


def test_options_reach_the_data_set(folder):
    parser = commandline.Parser("a script")
    parser.add_argument("--lr")
    commandline.add_flags(parser, data.FLAGS)
    words = f"--dataset folder --data_root {folder} --limit 1 --caption all --lr 3"
    arguments = parser.parse_args(words.split())
    pairs = open_pairs(**commandline.chosen(arguments, data.FLAGS))
    assert pairs.captions == [["a robin", "a red bird"]]
