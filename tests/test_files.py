"""Files are written whole or not at all."""

import contextlib
import errno
import os
import resource
import signal
import subprocess
from pathlib import Path

import pytest
import torch

from plumbing import files


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    target = tmp_path / "file.txt"
    files.write_text(target, "old")
    with pytest.raises(ZeroDivisionError), files.replacing(target) as temporary:  # noqa: PT012
        temporary.write_text("half")
        1 / 0  # noqa: B018
    assert [path.name for path in tmp_path.iterdir()] == ["file.txt"]
    assert target.read_text() == "old"


def test_a_file_is_written_through_its_link_and_into_a_pipe(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "file")
    files.write_text(tmp_path / "link", "text")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_text() == "text"
    files.write_text(Path(os.devnull), "text")
    assert not Path(os.devnull).is_file()


@pytest.mark.parametrize("inner_fails", [False, True])
def test_two_writers_of_one_file_do_not_meet(tmp_path, inner_fails):
    """Each writes whole what it has, and neither touches what the other has not finished."""
    target = tmp_path / "scores.json"
    with files.replacing(target) as first:
        first.write_text("first, ")
        with contextlib.suppress(ZeroDivisionError), files.replacing(target) as second:
            second.write_text("second")
            1 / (not inner_fails)
        assert target.exists() is not inner_fails
        with first.open("a") as file:
            file.write("whole")
        assert first.suffix == second.suffix == ".json"  # by which numpy and matplotlib tell the kind
    assert target.read_text() == "first, whole"
    assert [path.name for path in tmp_path.iterdir()] == ["scores.json"]


def test_a_state_on_a_full_disk_is_the_systems_error(tmp_path):
    """safetensors tells it in words."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        with pytest.raises(OSError) as caught:  # noqa: PT011
            files.write_state(tmp_path / "state", {}, {"a": torch.zeros(1000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert caught.value.errno == errno.EFBIG


def test_what_a_killed_writer_left_goes_with_the_next_write_and_a_living_ones_stays(tmp_path):
    target = tmp_path / "scores.json"
    dead = subprocess.Popen(["true"])
    dead.wait()
    left = [tmp_path / f".scores.json.tmp{files.HERE}-{pid}-ab12.json" for pid in (dead.pid, os.getpid())]
    other = tmp_path / f".other.json.tmp{files.HERE}-{dead.pid}-ab12.json"
    for file in (*left, other):
        file.write_text("half")
    files.write_text(target, "whole")
    assert {file.name for file in tmp_path.iterdir()} == {target.name, left[1].name, other.name}
