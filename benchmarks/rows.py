"""Opening, recording and comparing ten times as many rows: ten times the seconds, and no more memory.

    uv run benchmarks/rows.py                   # 118,287 and 1,182,870 rows: about a quarter of an hour on 2 cores
    uv run benchmarks/rows.py --rows 5000       # 5,000 and 50,000
    uv run benchmarks/rows.py --compare         # comparing alone, runs of random codes in place of trained ones

Webdataset shards of 8 x 8 pictures and captions are written into a temporary folder, and the smallest CLIP that
open_clip builds (one block, 16 dimensions, random weights) is trained on and recorded over them, its image tower by
train_image.py and its text tower by train_text.py, and the two runs are compared as wmppc.py does by default, and once more with --memory 0.02 (GiB),
where layers are read in blocks: held, an entry of theirs takes 32 bytes, 4 to a row and layer. Each
step is a process of its own, on one thread; its seconds count from when its imports are done, and its memory is the
highest of the process, imports included.
"""

import contextlib
import json
import multiprocessing
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import trust

from plumbing.commandline import Parser, positive, script

ROOT = Path(__file__).resolve().parent.parent
TIMES, SHARD_ROWS = 10, 10_000
# Targets: the ratio of the seconds; the bytes that a row more takes, of which 125 are those of the index, a file that
# is mapped into memory (as Python objects a row took 970); the peak.
MOST_SECONDS, MOST_BYTES, MOST_GIB = 1.2 * TIMES, 250, 2.0

COMPARE, COMPARE_IN_BLOCKS = "compare", "compare, layers in blocks"

CLIP = {
    "model_cfg": {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 8, "patch_size": 8, "layers": 1, "width": 16, "head_width": 16},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "layers": 1, "width": 16, "heads": 1},
    },
    "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.3] * 3, "size": 8},
}

DATA = "--dataset webdataset --data_root shards"
TRAIN = f"--checkpoint local-dir:clip --random_weights 0 --batch_size 1024 --top_k 4 {DATA}"

# What each step imports before its seconds count, and what it does.
STEPS = {
    "open, for the first time": ("data", "data.open_pairs('webdataset', 'shards')"),
    "open again": ("data", "data.open_pairs('webdataset', 'shards')"),
    "train and record pictures": (
        "train_image, training.experiment, encoders.from_open_clip",
        f"train_image.main('--model ClipVision --runname image {TRAIN}'.split())",
    ),
    "train and record captions": (
        "train_text, training.experiment, encoders.from_open_clip",
        f"train_text.main('--model ClipText --runname text {TRAIN}'.split())",
    ),
    COMPARE: (
        "wmppc, comparing.comparison",
        "wmppc.main(['--source', 'image', '--target', 'text'])",
    ),
    COMPARE_IN_BLOCKS: (
        "wmppc, comparing.comparison",
        "shutil.rmtree('sae_features/image/pairs'); "
        "wmppc.main(['--source', 'image', '--target', 'text', '--memory', '0.02'])",
    ),
}

CALL = """
import json, resource, shutil, sys, time
sys.path.insert(0, {root!r})
import {modules}
memory = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
began = time.perf_counter()
{work}
print(json.dumps([time.perf_counter() - began, memory()]))
"""


@script
def main(argv: list[str] | None = None) -> dict[str, tuple[float, float]]:
    """Print a table; returns each step's ratios of seconds and of memory, ten times the rows over the rows."""
    parser = Parser(__doc__, __file__)
    parser.add_argument("--rows", type=positive, default=118_287, help=f"the fewer rows; then {TIMES} times")
    parser.add_argument("--folder", help="where the temporary folder is made: 2 kB a row, and the runs")
    parser.add_argument("--compare", action="store_true", help="comparing alone, two runs of random codes")
    arguments = parser.parse_args(argv)
    sizes = arguments.rows, TIMES * arguments.rows
    steps = [COMPARE, COMPARE_IN_BLOCKS] if arguments.compare else list(STEPS)
    found = [measured(n_rows, arguments.folder, steps) for n_rows in sizes]
    print(
        f"{'':28} {'seconds':>8} {'':>8} {'ratio':>6}   {'GiB':>5} {'':>5} {'ratio':>6} {'bytes a row':>11}"
    )
    print(
        "{:28} {:8} {:8} {:6}   {:>5} {:>5}".format("rows", *sizes, "", *(f"{n / 1000:.0f}k" for n in sizes))
    )
    return {name: print_row(name, sizes[0], *(one[name] for one in found)) for name in steps}


def print_row(name: str, n_rows: int, few: list[float], many: list[float]) -> tuple[float, float]:
    """Print a step's line; returns its ratios of seconds and memory."""
    ratios = many[0] / few[0], many[1] / few[1]
    more = (many[1] - few[1]) * 2**30 / ((TIMES - 1) * n_rows)
    met = ratios[0] <= MOST_SECONDS, more <= MOST_BYTES, many[1] <= MOST_GIB
    names = [what for what, one in zip(("linear", "flat", "2 GiB"), met, strict=True) if not one]
    print(
        f"{name:28} {few[0]:8.1f} {many[0]:8.1f} {ratios[0]:6.1f}   {few[1]:5.2f} {many[1]:5.2f} {ratios[1]:6.2f} "
        f"{more:11.0f}   {'NOT met: ' + ', '.join(names) if names else 'met'}"
    )
    return ratios


def measured(n_rows: int, place: str | None, steps: list[str]) -> dict[str, list[float]]:
    """Each step's seconds, and GiB at its peak."""
    with tempfile.TemporaryDirectory(dir=place) as folder:
        if steps[0] == COMPARE:
            own = multiprocessing.get_context("spawn").Process(target=record_codes, args=(folder, n_rows))
            own.start()  # a process starts with the peak of the one that starts it
            own.join()
        else:
            write_data(Path(folder), n_rows)
        return {name: step(name, folder) for name in steps}


def record_codes(folder: str, n_rows: int):
    """Record two runs of random codes, as trust.py does."""
    with contextlib.chdir(folder):
        for seed, name in enumerate(("image", "text")):
            trust.record(name, trust.codes(n_rows, 128, 4, seed), 2)


def step(name: str, folder: str) -> list[float]:
    """Do a step in a process of its own."""
    modules, work = STEPS[name]
    one_thread = {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "XDG_CACHE_HOME": f"{folder}/cache"}
    code = CALL.format(root=str(ROOT), modules=modules, work=work)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=os.environ | one_thread, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"{name}: {done.stderr}")
    found = json.loads(done.stdout.splitlines()[-1])
    print(f"{name}: {found[0]:.1f} s, {found[1]:.2f} GiB", file=sys.stderr)
    return found


def write_data(folder: Path, n_rows: int):
    """Write the shards and the encoder's configuration."""
    (folder / "clip").mkdir()
    (folder / "clip/open_clip_config.json").write_text(json.dumps(CLIP))
    (folder / "shards").mkdir()
    for number, start in enumerate(range(0, n_rows, SHARD_ROWS)):
        write_shard(folder / f"shards/{number:05d}.tar", start, min(SHARD_ROWS, n_rows - start))


def write_shard(path: Path, start: int, n_rows: int):
    """Write a tar of KEY.bmp and KEY.txt: eight words each, and noise about the colour that the first two name."""
    dice = np.random.default_rng(start)
    words = np.array(
        [a + b for a in ("red", "old", "sea", "top", "ice", "sun", "cat", "man") for b in "abcdefgh"]
    )
    spoken = dice.integers(0, len(words), (n_rows, 8))
    colours = np.concatenate([spoken[:, :2] * 3, spoken[:, :1]], axis=1)[:, None] + dice.integers(
        0, 60, (n_rows, 64, 3)
    )
    head = bmp_head()
    with open(path, "wb") as tar:
        for row in range(n_rows):
            key = f"{start + row:09d}"
            tar.write(member(f"{key}.bmp", head + colours[row].astype(np.uint8).tobytes()))
            tar.write(member(f"{key}.txt", " ".join(words[spoken[row]]).encode()))
        tar.write(bytes(2 * tarfile.BLOCKSIZE))


def bmp_head() -> bytes:
    """The 54 bytes before the pixels of an 8 x 8 picture of 24 bits."""
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "bmp")
    return file.getvalue()[:54]


def member(name: str, content: bytes) -> bytes:
    """A file within a tar: its header, and its content in whole blocks."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    return info.tobuf(tarfile.USTAR_FORMAT) + content.ljust(-(-len(content) // 512) * 512, b"\0")


if __name__ == "__main__":
    main()
