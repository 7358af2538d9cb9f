"""Progress bars on a terminal and in a log."""

import io
import sys

import pytest

from plumbing.progress import IN_A_LOG, Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_log_gets_whole_lines_and_none_of_what_is_soon_done(capsys):
    assert list(Progress(range(1000), "train")) == list(range(1000))
    assert capsys.readouterr().err == ""
    assert IN_A_LOG["mininterval"] == IN_A_LOG["delay"] == 60
    progress = Progress(range(3), "train", delay=0, mininterval=0)
    for number in progress:
        progress.set_postfix(loss=f"{number}.5")
    lines = [line.partition(" gone, ") for line in capsys.readouterr().err.split("\n")]
    assert [line[0] for line in lines] == [
        *(f"train: {done} of 3 ({share} %), 00:00" for done, share in enumerate((0, 33, 67, 100))),
        *("train: 3 of 3 (100 %), 00:00", ""),
    ]
    assert lines[-2][2] == "00:00 left, loss=2.5"


@pytest.mark.parametrize("leave", [False, True])
def test_a_terminal_gets_a_bar_on_one_line(monkeypatch, leave):
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert list(Progress(range(3), "train", mininterval=0, leave=leave)) == [0, 1, 2]
    assert sys.stderr.getvalue().count("\r") > 3
    assert sys.stderr.getvalue().count("\n") == leave
