"""Compiled code where nothing can be cached."""

import os
import subprocess
import sys
from pathlib import Path

import features


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
