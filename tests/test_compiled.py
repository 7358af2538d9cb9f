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


LOOPS = """
import hashlib
import numpy as np
from plumbing.compiled import compiled

@compiled(fastmath={"reassoc", "contract"})
def inner(weights, average, squares, gradient, beta):
    total = np.float32(0)
    for j in range(weights.shape[0]):
        average[j] += beta * (gradient[j] - average[j])
        squares[j] = beta * squares[j] + (np.float32(1) - beta) * gradient[j] * gradient[j]
        weights[j] -= beta * average[j] / (np.sqrt(squares[j]) * beta + np.float32(1e-8))
        total += weights[j] * weights[j]
    return total

@compiled(fastmath={"reassoc", "contract"})
def outer(weights, average, squares, gradients, beta):
    for i in range(weights.shape[0]):
        length = np.sqrt(inner(weights[i], average[i], squares[i], gradients[i], beta))
        for j in range(weights.shape[1]):
            weights[i, j] /= length

random = np.random.default_rng(0)
weights, average, squares, gradients = (random.random((50, 96)).astype(np.float32) for _ in range(4))
outer(weights, average, squares, gradients, np.float32(0.9))
print(hashlib.sha256(weights.tobytes() + squares.tobytes()).hexdigest())
"""


def test_the_process_that_compiles_and_those_after_it_round_alike(tmp_path):
    """A function that is not inlined is another copy of it in later processes, with other roundings."""
    (tmp_path / "loops.py").write_text(LOOPS)
    there = {"NUMBA_CACHE_DIR": str(tmp_path / "kept"), "PYTHONPATH": str(Path(features.__file__).parent)}

    def printed() -> str:
        command = [sys.executable, str(tmp_path / "loops.py")]
        done = subprocess.run(
            command, env=os.environ | there, capture_output=True, text=True, timeout=120, check=True
        )
        return done.stdout

    assert printed() == printed()
