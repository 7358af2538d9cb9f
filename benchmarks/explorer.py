"""Writing the explorer of a run and one beside it: seconds, memory and disk at COCO's size, thumbnails apart.

uv run benchmarks/explorer.py

Captions are ten words each of a language that is made up, by Zipf's law; features of both runs follow words, and
others are chance. The folder is then opened in headless Chromium, where one is found: benchmarks/explorer_browser.py.
"""

import multiprocessing
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import scipy.sparse

import features
import parts
import samples
from plumbing.commandline import Parser, positive, script

TARGETS = {"seconds": 60.0, "GiB": 4.0, "kB a feature": 4.0}
K, D_IN, WORDS, PART = 32, 1024, 10, features.PART_ROWS
SYLLABLES = [a + b for a in "bdfgklmnprstvz" for b in ("a", "e", "i", "o", "u", "an", "or", "il")]


@script
def main(argv=None) -> dict[str, float]:
    """Print what was measured beside its target; returns it."""
    parser = Parser(__doc__, __file__)
    parser.add_argument("--rows", type=positive, default=118_287, help="samples")
    parser.add_argument("--features", type=positive, default=8192, help="of each layer")
    parser.add_argument("--keep", type=Path, help="a folder to leave the explorer in")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        place = (arguments.keep or Path("explorer")).absolute()
        captions = record(arguments.rows, arguments.features)
        context = multiprocessing.get_context("spawn")
        with context.Pool(1) as pool:
            measured = pool.apply(write, (captions, place))
    measured["kB a feature"] = measured.pop("bytes") / 1000 / (2 * arguments.features)
    for name, value in measured.items():
        target = TARGETS[name]
        print(f"{name}: {value:.1f}, target {target:g}: {'met' if value <= target else 'NOT met'}")
    return measured


def record(n_rows: int, n_features: int) -> list[str]:
    """Record runs A and B in the current folder; returns the captions."""
    dice = np.random.default_rng(0)
    spoken = zipf(dice, 20_000, n_rows * WORDS).reshape(n_rows, WORDS)
    vocabulary = np.array(["".join(dice.choice(SYLLABLES, 1 + number % 3)) for number in range(20_000)])
    captions = [" ".join(words) for words in vocabulary[spoken]]
    for name, seed in (("A", 1), ("B", 2)):
        codes = follow(np.random.default_rng(seed), spoken, n_features)
        save(name, codes, captions)
    return captions


def zipf(dice: np.random.Generator, n: int, count: int) -> np.ndarray:
    """Numbers 0 to n - 1, the lower the more often."""
    weights = 1 / (np.arange(n) + 10.0)
    return dice.choice(n, count, p=weights / weights.sum())


def follow(dice: np.random.Generator, spoken: np.ndarray, n_features: int) -> scipy.sparse.csr_array:
    """TopK codes [row, feature]: two features a word, nine times out of ten, and others by chance."""
    n_rows = len(spoken)
    followed = dice.integers(0, n_features, (2, 20_000))[:, spoken].transpose(1, 0, 2).reshape(n_rows, -1)
    rest = zipf(dice, n_features, n_rows * (K - followed.shape[1])).reshape(n_rows, -1)
    followed = np.where(dice.random(followed.shape) < 0.9, followed, rest[:, :1])
    columns = np.concatenate([followed, rest], axis=1)
    starts = np.arange(n_rows + 1) * K
    values = dice.gamma(2.0, 1.0, columns.size).astype(np.float32)
    codes = scipy.sparse.csr_array((values, columns.ravel(), starts), (n_rows, n_features))
    codes.sum_duplicates()
    return codes


def save(name: str, codes: scipy.sparse.csr_array, captions: list[str]):
    """Write a run folder."""
    from safetensors.numpy import save_file

    path = features.ROOT / name
    (path / "layer0").mkdir(parents=True)
    ids = [str(row) for row in range(len(captions))]
    rows = list(zip(ids, captions, strict=True))
    samples.write(path, [{"id": i, "image": f"{i}.wav", "caption": text} for i, text in rows])
    for number, start in enumerate(range(0, len(captions), PART)):
        parts.write_part(path, "layer0", number, codes[start : start + PART])
    decoder = np.random.default_rng(0).standard_normal((codes.shape[1], D_IN)).astype(np.float32)
    save_file({"W_dec": decoder}, path / "layer0" / "sae_weights.safetensors")
    encoder = {"model": name, "checkpoint": "none", "modality": "image"}
    dataset = {"name": "synthetic", "fingerprint": features.fingerprint(rows)}
    facts = {"n_samples": len(captions), "encoder": encoder, "dataset": dataset, "activation": "topk"}
    features.finish_run(path, {"layers": ["layer0"], **facts})


def write(captions: list[str], place: Path) -> dict[str, float]:
    """Write the explorer, in a process of its own: seconds, GiB at most, and the bytes of its data."""
    from data import Pairs
    from showing.explorer_data import Explorer, write_explorer
    from sources.opened import Sample, file_bytes

    samples = [Sample(str(i), f"{i}.wav", [text], f"{i}.wav") for i, text in enumerate(captions)]
    pairs = Pairs("synthetic", samples, file_bytes)
    started = time.perf_counter()
    runs = [features.open_run(name) for name in "AB"]
    write_explorer(Explorer(runs, -1, None, pairs, place, Path("thumbs"), 160, []))
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    size = sum(file.stat().st_size for file in (place / "data").rglob("*.js"))
    return {"seconds": seconds, "GiB": peak, "bytes": size}


if __name__ == "__main__":
    main()
