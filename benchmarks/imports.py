"""How long each file of the toolkit takes to import, in a fresh process, and the heavy packages that it imports.

`uv run benchmarks/imports.py`: the shortest of some turns each. What may be imported is tested by tests/, which
assert no time: a busy machine is no fault of the code.
"""

import os
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from plumbing.commandline import Parser, positive, script

REPOSITORY = Path(__file__).resolve().parent.parent
HEAVY = (
    "torch",
    "transformers",
    "open_clip",
    "timm",
    "datasets",
    "scipy",
    "numba",
    "matplotlib",
    "PIL",
    "numpy",
)
MEASURE = """
import importlib, sys, time
started = time.perf_counter()
importlib.import_module({name!r})
print(time.perf_counter() - started, *(package for package in {heavy} if package in sys.modules))
"""


@script
def main(argv=None) -> dict[str, float]:
    """Print the table; returns the seconds by file."""
    parser = Parser(__doc__, __file__)
    parser.add_argument("--turns", type=positive, default=3, help="imports of each file")
    arguments = parser.parse_args(argv)
    seconds = {}
    for name in sorted(file.stem for file in REPOSITORY.glob("*.py")):
        turns = [measured(name) for _ in range(arguments.turns)]
        seconds[name] = min(took for took, _ in turns)
        print(f"{name:20} {seconds[name]:6.2f} s  {turns[0][1]}")
    return seconds


def measured(name: str) -> tuple[float, str]:
    """The seconds that an import took, and the heavy packages that it brought."""
    code = MEASURE.format(name=name, heavy=HEAVY)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    printed = subprocess.check_output([sys.executable, "-c", code], env=environment, text=True)
    took, _, packages = printed.strip().partition(" ")
    return float(took), packages


if __name__ == "__main__":
    main()
