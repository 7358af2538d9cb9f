"""The comparison engine against the plain dense formula: time and memory, with the targets met or not.

uv run benchmarks/correlation.py

The codes are random, with feature frequencies that follow a power law. "plain" standardises both sides in
float32 and multiplies them, on as many rows as are asked for, and is scaled linearly to all rows; the faster
of numpy and torch counts. The engine's time is all that happens after the runs are loaded: layout, sums,
correlations and the maxima of both directions. Repeats are interleaved and their medians compared.
"""
# ruff: noqa: E402  the imports are timed

import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parents[1]))

started = time.perf_counter()

import numba
import numpy as np
import scipy.sparse

from comparing.codes import Codes, Matrix
from comparing.pearson import Maxima, max_correlations
from plumbing import threads
from plumbing.commandline import Parser, positive, script

if TYPE_CHECKING:
    import torch

IMPORTED = time.perf_counter() - started
TIMES_FASTER, PEAK_GIB = 200, 2.0  # of one pair of layers
LAYERS_SECONDS, LAYERS_GIB = 120, 4.0  # of 12 x 12 layers
RELU_FASTER, RELU_MEMORY = 1.0, 1 / 3  # of a dense pair


def parse(argv):
    parser = Parser(__doc__, __file__)
    add = parser.add_argument
    add("--rows", type=positive, default=118_287, help="samples")
    add("--d_sae", type=positive, default=6144, help="features of a layer")
    add("--top_k", type=positive, default=32, help="active features of a sample")
    add("--layers", type=positive, default=12, help="layers of each of two runs")
    add("--plain_rows", type=positive, default=12_288, help="samples that the plain formula is timed on")
    add("--repeats", type=positive, default=5, help="interleaved repeats")
    parts = ("pair", "linear", "relu", "layers")
    add("--parts", nargs="+", choices=parts, default=parts, help="what to measure")
    return parser.parse_args(argv)


@script
def main(argv=None) -> dict[str, bool]:
    """Print what was measured; returns by target whether it is met."""
    arguments = parse(argv)
    print(f"{threads.threads()} threads, load {os.getloadavg()[0]:.1f}; importing took {IMPORTED:.2f} s")
    first = time.perf_counter()
    max_correlations(topk_codes(64, 64, 4, 0), topk_codes(64, 64, 4, 1))
    print(
        f"the first pair, which compiles or loads what was compiled, took {time.perf_counter() - first:.2f} s"
    )
    met = {}
    for part in arguments.parts:
        print(f"\n{part}")
        met |= globals()[f"measure_{part}"](arguments)
    print(f"\nload {os.getloadavg()[0]:.1f}")
    for target, reached in met.items():
        print(f"{'met    ' if reached else 'NOT MET'}  {target}")
    return met


# ---------------------------------------------------------------------------------------------- the parts


def measure_pair(arguments) -> dict[str, bool]:
    """One pair of layers of TopK codes."""
    codes = [topk_codes(arguments.rows, arguments.d_sae, arguments.top_k, seed) for seed in (0, 1)]
    dense = [side[: arguments.plain_rows].toarray() for side in codes]
    loading = load_seconds(codes)
    times, scale = {"engine": [], "numpy": [], "torch": []}, arguments.rows / len(dense[0])
    gib = peak_gib(lambda: engine(*codes)) + stored_gib(codes)
    for _ in range(arguments.repeats):
        for name, run in (("engine", engine), ("numpy", plain_numpy), ("torch", plain_torch)):
            times[name].append(seconds(run, *(codes if name == "engine" else dense)))
    medians = {name: statistics.median(values) for name, values in times.items()}
    plain = min(medians["numpy"], medians["torch"]) * scale
    ratio = plain / medians["engine"]
    print(f"engine {spread(times['engine'])}, {gib:.2f} GiB with both layers, loaded in {loading:.2f} s")
    for name in ("numpy", "torch"):
        print(f"plain formula in {name}: {medians[name] * scale:.1f} s, scaled from {len(dense[0])} rows")
    print(f"{ratio:.0f} times faster; largest difference from float64 {error(dense):.1e}")
    return {
        f"one pair at least {TIMES_FASTER} times faster than the plain formula: {ratio:.0f}": ratio
        >= TIMES_FASTER,
        f"one pair in at most {PEAK_GIB:.0f} GiB: {gib:.2f}": gib <= PEAK_GIB,
    }


def measure_linear(arguments) -> dict[str, bool]:
    """The cost by rows."""
    sizes = (arguments.rows // 4, arguments.rows, arguments.rows * 4)
    codes = {
        rows: [topk_codes(rows, arguments.d_sae, arguments.top_k, seed) for seed in (0, 1)] for rows in sizes
    }
    times = {rows: [] for rows in sizes}
    for _ in range(arguments.repeats):
        for rows in sizes:
            times[rows].append(seconds(engine, *codes[rows]))
    found = {rows: statistics.median(values) for rows, values in times.items()}
    for rows, taken in found.items():
        print(f"{rows:>9} rows: {spread(times[rows])}, {taken / rows * 1e6:.2f} s a million rows")
    _, fewer, more = found  # the least rows fit into the last-level cache, and so go faster
    growth = found[more] / found[fewer]
    words = f"linear: from {fewer} to {more} rows {growth:.1f} times the time (at most 6 allowed)"
    return {words: growth <= 6}


def measure_relu(arguments) -> dict[str, bool]:
    """One pair of layers of dense codes: half of the entries above 0, as recorded relu runs have them.

    In seconds of the processor: all contenders are bound by the same product, and other programs take turns.
    """
    rows = arguments.plain_rows
    dense = [relu_codes(rows, arguments.d_sae, seed) for seed in (0, 1)]
    sparse = [scipy.sparse.csr_array(side) for side in dense]
    times = {"engine": [], "numpy": [], "torch": []}
    for _ in range(max(3, arguments.repeats // 2)):
        for name, run in (("engine", engine), ("numpy", plain_numpy), ("torch", plain_torch)):
            times[name].append(
                seconds(run, *(sparse if name == "engine" else dense), clock=time.process_time)
            )
    medians = {name: statistics.median(values) for name, values in times.items()}
    gib = {"engine": peak_gib(lambda: engine(*sparse)), "plain": peak_gib(lambda: plain_numpy(*dense))}
    whole = plain_gib(arguments.rows, arguments.d_sae)
    print(
        f"density {sparse[0].nnz / dense[0].size:.2f}, {rows} rows, seconds of the processor: engine {spread(times['engine'])}"
    )
    for name in ("numpy", "torch"):
        print(
            f"plain formula in {name}: {spread(times[name])}, {medians[name] / medians['engine']:.2f} times"
        )
    print(f"largest difference from float64 {error(dense):.1e}")
    print(f"beside the layers: engine {gib['engine']:.2f} GiB, plain formula {gib['plain']:.2f} GiB")
    print(f"at {arguments.rows} rows: engine the same, plain formula {whole:.1f} GiB (computed)")
    ratio = min(medians["numpy"], medians["torch"]) / medians["engine"]
    return {
        f"relu at least {RELU_FASTER} times as fast as the plain formula: {ratio:.2f}": ratio >= RELU_FASTER,
        f"relu in at most a third of its memory: {gib['engine'] / whole:.2f}": gib["engine"]
        <= RELU_MEMORY * whole,
    }


def measure_layers(arguments) -> dict[str, bool]:
    """Every layer of one run against every layer of another."""
    count = arguments.layers
    runs = [
        [
            topk_codes(arguments.rows, arguments.d_sae, arguments.top_k, seed)
            for seed in range(first, first + count)
        ]
        for first in (0, count)
    ]
    taken = []

    def compare():
        begun = time.perf_counter()
        sides = [[Codes(layer) for layer in run] for run in runs]
        for source in sides[0]:
            for target in sides[1]:
                max_correlations(source, target)
        taken.append(time.perf_counter() - begun)

    gib = peak_gib(compare) + sum(map(stored_gib, runs))
    print(f"{count} x {count} layers: {taken[0]:.1f} s, {gib:.2f} GiB with the runs themselves")
    return {
        f"{count} x {count} layers in under {LAYERS_SECONDS} s: {taken[0]:.1f}": taken[0] < LAYERS_SECONDS,
        f"{count} x {count} layers in at most {LAYERS_GIB:.0f} GiB: {gib:.2f}": gib <= LAYERS_GIB,
    }


# ------------------------------------------------------------------------------------------- contenders


def engine(source: Matrix, target: Matrix) -> tuple[Maxima, Maxima]:
    """From what a run's loading gives to the maxima of both directions; nothing is kept between calls."""
    return max_correlations(Codes(source), Codes(target))


def plain_numpy(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Standardise both, one matrix product, the maxima."""
    with np.errstate(invalid="ignore", divide="ignore"):
        x, y = ((side - side.mean(0)) / side.std(0) for side in (source, target))
        return np.nan_to_num(x.T @ y / len(x), copy=False).max(1)


def plain_torch(source: np.ndarray, target: np.ndarray) -> "torch.Tensor":
    import torch

    torch.set_num_threads(threads.threads())
    sides = (torch.from_numpy(side) for side in (source, target))
    x, y = ((side - side.mean(0)) / side.std(0, correction=0) for side in sides)
    return (x.T @ y / len(x)).nan_to_num_().max(1).values


def plain_gib(rows: int, d_sae: int) -> float:
    """What the plain formula holds beside its input: two standardised sides and their product, float32."""
    return (2 * rows * d_sae + d_sae**2) * 4 / 2**30


def error(dense: list[np.ndarray], features: int = 256) -> float:
    """The engine's largest difference from the plain formula in float64, over some of the source's features."""
    found = max_correlations(*(scipy.sparse.csr_array(side) for side in dense))[0].rho
    exact = plain_numpy(dense[0][:, :features].astype(np.float64), dense[1].astype(np.float64))
    return float(np.abs(found[:features] - exact).max())


# -------------------------------------------------------------------------------------------- the codes


def topk_codes(rows: int, d_sae: int, k: int, seed: int) -> scipy.sparse.csr_array:
    """TopK codes whose features occur with a frequency of about 1 / rank, in a random numbering."""
    rng = np.random.default_rng(seed)
    reached = np.cumsum(1 / np.arange(1, d_sae + 1))
    features = np.empty((rows, k), np.int32)
    draw_distinct(features, reached / reached[-1], seed)
    features = rng.permutation(d_sae).astype(np.int32)[features]
    features.sort(axis=1)
    values = rng.exponential(size=rows * k).astype(np.float32) + np.float32(0.1)
    return scipy.sparse.csr_array((values, features.ravel(), np.arange(rows + 1) * k), shape=(rows, d_sae))


@numba.njit(cache=True)
def draw_distinct(features, reached, seed):
    """Fill each row with distinct features, drawn by their cumulative probabilities."""
    np.random.seed(seed)
    for row in range(features.shape[0]):
        for place in range(features.shape[1]):
            while True:
                feature = np.searchsorted(reached, np.random.random())
                if feature < reached.size and not (features[row, :place] == feature).any():
                    break
            features[row, place] = feature


def relu_codes(rows: int, d_sae: int, seed: int) -> np.ndarray:
    """Codes without TopK: features fire on 5% to 95% of the samples, half on average."""
    rng = np.random.default_rng(seed)
    level = np.linspace(-1.65, 1.65, d_sae, dtype=np.float32)
    return np.maximum(rng.standard_normal((rows, d_sae), dtype=np.float32) + rng.permutation(level), 0)


# ------------------------------------------------------------------------------------------- measuring


def seconds(
    run: Callable[[Matrix, Matrix], object], *sides: Matrix, clock: Callable[[], float] = time.perf_counter
) -> float:
    begun = clock()
    run(*sides)
    return clock() - begun


def spread(times: list[float]) -> str:
    return f"{statistics.median(times):.3f} s ({min(times):.3f} to {max(times):.3f})"


def load_seconds(codes: Sequence[scipy.sparse.csr_array]) -> float:
    """Reading the layers from .npz files, as runs are read."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        for number, side in enumerate(codes):
            scipy.sparse.save_npz(f"{folder}/{number}.npz", side, compressed=False)
        begun = time.perf_counter()
        for number in range(len(codes)):
            scipy.sparse.load_npz(f"{folder}/{number}.npz")
        return time.perf_counter() - begun


def stored_gib(codes: Sequence[scipy.sparse.csr_array]) -> float:
    return sum(side.data.nbytes + side.indices.nbytes + side.indptr.nbytes for side in codes) / 2**30


def peak_gib(run: Callable[[], object]) -> float:
    """The highest resident memory during a call above that before it, by Linux's own count."""
    Path("/proc/self/clear_refs").write_text("5")  # starts the peak anew
    before = resident("VmRSS")
    run()
    return (resident("VmHWM") - before) / 2**20


def resident(field: str) -> int:
    """Kibibytes of a line of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


if __name__ == "__main__":
    main()
