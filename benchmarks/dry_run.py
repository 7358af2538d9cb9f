"""What --dry_run says before and what the command then takes: seconds, memory, and the disk while running and after.

On the demo's CLIP (all layers, 7,000 scenes) and on a B-sized encoder of random weights (ViT-B/32, last layer, JPEG
files of a photograph's size). Estimate and truth take turns, each in a process of its own; printed are the medians,
and the median of the turns' ratios. The files are summed up every 50 ms while the command runs.

    uv run benchmarks/dry_run.py
"""

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pipeline import make_data

from plumbing.commandline import Parser, positive, script

ROOT = Path(__file__).resolve().parent.parent

WITHIN = 1 / 3

Series = list[tuple[float, ...]]

ENCODERS = {
    "demo's CLIP": "--model DemoClipVision --layers all",
    "B-sized": "--model ClipVision --checkpoint ViT-B/32-quickgelu --random_weights 0 --dataset folder --data_root pictures",
}

CALL = """
import json, sys
sys.path.insert(0, sys.argv[1])
import train_image
found = train_image.main(sys.argv[2:])
if "--dry_run" in sys.argv:
    print(json.dumps([found.seconds, found.peak_memory, found.disk.running, found.disk.after]))
"""

QUANTITIES = {
    "seconds": 1,
    "MiB of memory": 2**20,
    "MiB of disk, running": 2**20,
    "MiB of disk, after": 2**20,
}


@script
def main(argv: list[str] | None = None) -> dict[str, list[float]]:
    """Print the table; returns the ratios of estimate and truth by encoder, in the order of QUANTITIES."""
    parser = Parser(__doc__, __file__)
    parser.add_argument("--samples", type=positive, default=256, help="pictures for the B-sized encoder")
    parser.add_argument("--repeats", type=positive, default=3)
    arguments = parser.parse_args(argv)
    ratios = {}
    print(f"{'':12} {'':22} {'estimate':>9} {'truth':>9} {'ratio':>6}   within a third")
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        make_data(Path("pictures"), arguments.samples)
        for name, words in ENCODERS.items():
            turns = [(estimated(words), measured(words)) for _ in range(arguments.repeats)]
            ratios[name] = [
                print_row(name, *each) for each in zip(QUANTITIES.items(), *by_quantity(turns), strict=True)
            ]
        os.chdir("/")
    return ratios


def by_quantity(turns: list[tuple[list[float], list[float]]]) -> tuple[Series, Series]:
    """Estimates and truths, each the values of all turns for each quantity."""
    estimates, truths = ([*zip(*side, strict=True)] for side in zip(*turns, strict=True))
    return estimates, truths


def print_row(
    name: str, quantity: tuple[str, int], estimates: tuple[float, ...], truths: tuple[float, ...]
) -> float:
    """Print the medians of one quantity, and the median of the turns' ratios, which it returns."""
    what, unit = quantity
    ratio = statistics.median(one / other for one, other in zip(estimates, truths, strict=True))
    one, other = (statistics.median(side) / unit for side in (estimates, truths))
    met = "met" if abs(ratio - 1) <= WITHIN else "NOT met"
    print(f"{name:12} {what:22} {one:9.1f} {other:9.1f} {ratio:6.2f}   {met}", flush=True)
    return ratio


def command(words: str, *more: str) -> list[str]:
    """A train command in a process of its own."""
    return [sys.executable, "-c", CALL, str(ROOT), *words.split(), "--runname", "run", "--overwrite", *more]


def estimated(words: str) -> list[float]:
    """What the command says of itself beforehand."""
    done = subprocess.run(command(words, "--dry_run"), check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def measured(words: str) -> list[float]:
    """What the command takes."""
    folder, most = Path("sae_features/run"), 0
    running = subprocess.Popen(command(words), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while running.poll() is None:
        most = max(most, nbytes(folder))
        time.sleep(0.05)
    if running.returncode:
        raise RuntimeError(f"{words} ended with {running.returncode}")
    manifest = json.loads((folder / "run.json").read_text())
    return [manifest["seconds"], manifest["peak_memory"], most, nbytes(folder)]


def nbytes(folder: Path) -> int:
    """The size of the files that are there; some may vanish meanwhile."""
    total = 0
    for file in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            total += file.stat().st_size if file.is_file() else 0
    return total


if __name__ == "__main__":
    main()
