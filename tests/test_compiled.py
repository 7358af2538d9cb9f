"""Where compiled code is kept, and for how long."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import features
from plumbing import compiled


def test_code_is_compiled_where_nothing_can_be_cached(tmp_path):
    """A read-only installation and home; what is below a file can't be made by root either."""
    (tmp_path / "code.py").write_text(
        "from plumbing.compiled import compiled\n@compiled()\ndef double(x):\n    return 2 * x\nprint(double(21))\n"
    )
    (tmp_path / "__pycache__").write_text("in the way")
    there = {
        "HOME": "/dev/null",
        "XDG_CACHE_HOME": "/dev/null",
        "PYTHONPATH": str(Path(features.__file__).parent),
    }
    command = [sys.executable, str(tmp_path / "code.py")]
    done = subprocess.run(command, env=os.environ | there, capture_output=True, text=True, timeout=120)
    assert done.stdout == "42\n", done.stderr


def test_a_loop_is_compiled_anew_when_one_that_it_calls_in_another_file_changes(tmp_path):
    shutil.copytree(
        Path(compiled.__file__).parent, tmp_path / "plumbing", ignore=shutil.ignore_patterns("__pycache__")
    )
    (tmp_path / "outer.py").write_text(
        "from plumbing.compiled import compiled\nfrom inner import factor\n"
        "@compiled()\ndef times(x):\n    return factor() * x\nprint(times(21))\n"
    )

    def printed(factor: int) -> str:
        (tmp_path / "inner.py").write_text(
            f"from plumbing.compiled import compiled\n@compiled()\ndef factor():\n    return {factor}\n"
        )
        command = [sys.executable, "-B", str(tmp_path / "outer.py")]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout

    assert [printed(2), printed(3)] == ["42\n", "63\n"]
    assert len(list(tmp_path.glob("plumbing/__pycache__/numba-*/*/outer.times*.nbi"))) == 2  # each was kept
