"""Score how much of one run's features another run has: wMPPC (arXiv 2507.18512), and its floor of chance."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from commandline import Parser, UserError, script

FLOOR_SEED = 0  # of the row permutation that the floor is the score of


class Score(NamedTuple):
    """A score, and `floor`: the same score of the same runs with one side's rows permuted."""

    value: float
    floor: float


class Direction(NamedTuple):
    """What one run (`source`) has in another (`target`).

    `wmppc` and `mppc` are keyed by "all_layers" and "last_layer"; `layers` holds a Score a cell, the wMPPC
    of each source layer against each target layer; `live` and `features` count the source's, by layer.
    """

    source: str
    target: str
    source_layers: list[str]
    target_layers: list[str]
    live: list[int]
    features: list[int]
    wmppc: dict[str, Score]
    mppc: dict[str, Score]
    layers: list[list[Score]]


@script
def main(argv=None) -> tuple[Direction, Direction]:
    """Print and return both directions of a pair of runs."""
    parser = Parser(__doc__)
    parser.add_argument("--source", required=True, help="a run, a folder name in sae_features/")
    parser.add_argument("--target", required=True, help="the run it is compared with")
    parser.add_argument(
        "--json", type=output, metavar="FILE", help="write everything that is printed, for machines"
    )
    arguments = parser.parse_args(argv)

    import features

    source, target = features.open_run(arguments.source), features.open_run(arguments.target)
    features.check_aligned([source, target])
    directions = compare(source, target)
    print_pair(source, directions)
    if arguments.json:
        features.write_text(arguments.json, as_json(source, directions))
    return directions


def output(text: str) -> Path:
    """An argument type: a file to write, in a folder that exists."""
    if not Path(text).parent.is_dir():
        raise UserError(f"{text}: there is no folder {Path(text).parent}/ to write into; make it first")
    return Path(text)


# --------------------------------------------------------------------------------------------- comparing


def compare(source: Any, target: Any) -> tuple[Direction, Direction]:
    """Correlate all layers of one run with all of the other: source -> target, and target -> source."""
    from tqdm import tqdm

    import correlation

    own, other = (
        {layer: correlation.Codes(run.load(layer)) for layer in run.layers} for run in (source, target)
    )
    shuffled = np.random.default_rng(FLOOR_SEED).permutation(source.n_samples)
    grids = {"value": {}, "floor": {}}
    cells = [(i, j) for i in own for j in other]
    for i, j in tqdm(cells, desc="layer pairs", disable=None, leave=False):
        grids["value"][i, j] = correlation.max_correlations(own[i], other[j])
        grids["floor"][i, j] = correlation.max_correlations(own[i], other[j], permutation=shuffled)
    names = (source.name, target.name)
    forward = {kind: {cell: both[0].rho for cell, both in grid.items()} for kind, grid in grids.items()}
    backward = {kind: {(j, i): both[1].rho for (i, j), both in grid.items()} for kind, grid in grids.items()}
    return direction(*names, own, other, forward), direction(*names[::-1], other, own, backward)


def direction(source: str, target: str, own: dict, other: dict, rho: dict) -> Direction:
    """One direction's scores from `rho`: {"value" or "floor": {(own layer, other layer): [feature]}}."""
    from correlation import mppc, over_layers, wmppc

    total = {layer: codes.sums().total for layer, codes in own.items()}
    widths = np.array([codes.n_features for codes in own.values()])
    last = (list(own)[-1], list(other)[-1])

    def scopes(score) -> dict[str, Score]:
        def over_all(grid):
            best = {i: np.max([grid[i, j] for j in other], axis=0) for i in own}
            return over_layers(np.array([score(best[i], total[i]) for i in own]), widths)

        return {
            "all_layers": Score(*(over_all(rho[kind]) for kind in Score._fields)),
            "last_layer": Score(*(score(rho[kind][last], total[last[0]]) for kind in Score._fields)),
        }

    cells = [
        [Score(*(wmppc(rho[kind][i, j], total[i]) for kind in Score._fields)) for j in other] for i in own
    ]
    live = [int((total[layer] > 0).sum()) for layer in own]
    return Direction(
        source, target, list(own), list(other), live, widths.tolist(), scopes(wmppc), scopes(mppc), cells
    )


# --------------------------------------------------------------------------------------------- reporting


def print_pair(run: Any, directions: tuple[Direction, Direction]):
    """The scores of both directions, then the layer-by-layer tables."""
    names = [f"{d.source} -> {d.target}" for d in directions]
    width = max(map(len, names))
    print(f"{run.n_samples} samples of {run.manifest['dataset']['name']}\n")
    for d in directions:
        print(f"{d.source}: {sum(d.live)} of {sum(d.features)} features live, {d.live[-1]} in the last layer")
    print(f"\n{'':6}{'':{width}}{'all layers':>13}{'floor':>8}{'last layer':>13}{'floor':>8}")
    for metric in ("wmppc", "mppc"):
        for name, d in zip(names, directions, strict=True):
            scores = getattr(d, metric)
            numbers = "".join(f"{number(s.value):>13}{number(s.floor):>8}" for s in scores.values())
            print(f"{LABELS[metric]:6}{name:{width}}{numbers}")
    for name, d in zip(names, directions, strict=True):
        print(f"\nwMPPC layer by layer, {name} (rows -> columns)")
        print_table(d.source_layers, d.target_layers, [[cell.value for cell in row] for row in d.layers])
    print("\nfloor: the same score with the rows of one side permuted, what chance alone reaches")


LABELS = {"wmppc": "wMPPC", "mppc": "MPPC"}


def print_table(rows: list[str], columns: list[str], cells: list[list[float]]):
    widths = [max(7, len(column) + 2) for column in columns]
    margin = max(map(len, rows))
    print(" " * margin + "".join(f"{column:>{width}}" for column, width in zip(columns, widths, strict=True)))
    for row, values in zip(rows, cells, strict=True):
        print(f"{row:{margin}}" + "".join(f"{number(v):>{w}}" for v, w in zip(values, widths, strict=True)))


def number(value: float) -> str:
    """Three decimals; a dash where there is no score, since no feature of the layer is live."""
    return "-" if np.isnan(value) else f"{value:.3f}"


def as_json(run: Any, directions: tuple[Direction, Direction]) -> str:
    """The pair as JSON; a missing score is null."""
    document = {
        "dataset": run.manifest["dataset"],
        "n_samples": run.n_samples,
        "directions": [plain(d) for d in directions],
    }
    return json.dumps(document, indent=2) + "\n"


def plain(value: Any) -> Any:
    """NamedTuples as dicts and NaN as None, all the way down."""
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and np.isnan(value) else value


if __name__ == "__main__":
    main()
