"""Score how much of one run's features another run has: wMPPC (arXiv 2507.18512), and its floor of chance.

One source and one target give both directions and the layers; several give a matrix.
"""

import fnmatch
import os
import sys
from argparse import Namespace
from pathlib import Path

import features
from comparing.results import METRICS, Direction
from features import Run
from plumbing import files
from plumbing.commandline import Parser, output, picture, positive, script
from plumbing.errors import UserError
from showing.tables import comparison_csv, comparison_json, print_matrix, print_pair


@script
def main(argv=None) -> tuple[Direction, ...]:
    """Print the scores; returns a `Direction` for each source and target, and for one pair both ways."""
    arguments = parse(argv)
    sources, targets = (chosen_runs(words) for words in (arguments.source, arguments.target))
    runs = {run.name: run for run in (*sources, *targets)}
    features.check_aligned(list(runs.values()))

    from comparing import comparison
    from comparing import reader as reader_module
    from plumbing import processes  # after what can be said without numba

    one_pair = len(sources) == len(targets) == 1
    arguments.metrics = arguments.metrics or (["wmppc", "mppc"] if one_pair else ["wmppc"])
    reader = reader_module.Reader(arguments.memory and arguments.memory << 30)
    found = {}
    for a, b in wanted_pairs(sources, targets):
        forward, backward = comparison.compared(runs[a], runs[b], arguments.metrics, reader)
        found[a, b], found[b, a] = forward, backward
    names = [(a.name, b.name) for a in sources for b in targets]
    both_ways = dict.fromkeys([*names, names[0][::-1]] if one_pair else names)  # of a run and itself: one
    directions = tuple(found[pair] for pair in both_ways)
    if processes.team().rank == 0:
        report(arguments, sources[0], directions, one_pair)
    return directions


def parse(argv):
    parser = Parser(__doc__.splitlines()[0])
    add = parser.add_argument
    runs = "runs: folder names in sae_features/, or patterns such as 'clip*' (quoted)"
    add("--source", required=True, nargs="+", metavar="RUN", help=runs)
    add("--target", required=True, nargs="+", metavar="RUN", help="the runs that they are compared with")
    add("--metrics", nargs="+", choices=METRICS, help="scores (default: wmppc, and for one pair mppc too)")
    add("--csv", type=output, metavar="FILE", help="write the scores, a line each")
    add("--json", type=output, metavar="FILE", help="write everything that is printed, for machines")
    add("--plot", type=picture, metavar="FILE.png", help="draw the matrix; for one pair, its layers")
    add(
        "--memory",
        type=positive,
        metavar="GIB",
        help="for runs held at once, by all processes of a machine (default: half of what is free)",
    )
    return parser.parse_args(argv)


def chosen_runs(words: list[str]) -> list[Run]:
    """The runs of names and shell patterns, each once, in the order given."""
    names = []
    for word in words:
        names += matching_runs(word) if set(word) & set("*?[") else [word]
    runs = [features.open_run(name) for name in names]
    return list({run.name: run for run in runs}.values())


def matching_runs(pattern: str) -> list[str]:
    """The names of the runs that a pattern matches; what else it matches is left out, which is said."""
    path, root = Path(os.path.abspath(pattern)), features.ROOT.absolute()
    name = path.name if path.parent == root else pattern
    runs = features.run_names()
    found = fnmatch.filter(runs, name)
    others = {entry.name for entry in root.iterdir()} - set(runs) if root.is_dir() else set()
    left_out = [other for other in fnmatch.filter(sorted(others), name) if not other.startswith(".")]
    if left_out:
        print(f"note: {pattern!r} leaves out {', '.join(left_out)}: no finished runs", file=sys.stderr)
    if not found:
        raise UserError(f"no run matches {pattern!r}; recorded runs: {', '.join(runs) or 'none yet'}")
    return found


def wanted_pairs(sources: list[Run], targets: list[Run]) -> list[tuple[str, str]]:
    """Each pair once, since both of its directions come together; a source's pairs follow each other."""
    pairs = {}
    for source in sources:
        for target in targets:
            pairs.setdefault(frozenset((source.name, target.name)), (source.name, target.name))
    return list(pairs.values())


def report(arguments: Namespace, run: Run, directions: tuple[Direction, ...], one_pair: bool):
    """Write the files that are asked for, and print; in this order, since a pipe's reader may leave (`| head`)."""
    if arguments.csv:
        files.write_text(arguments.csv, comparison_csv(directions, arguments.metrics))
    if arguments.json:
        files.write_text(arguments.json, comparison_json(run, directions))
    if arguments.plot:
        from showing import figures

        (figures.plot_layers if one_pair else figures.plot_matrix)(arguments.plot, directions)
    print(f"{run.n_samples} samples of {run.manifest['dataset']['name']}")
    (print_pair if one_pair else print_matrix)(directions, arguments.metrics)


if __name__ == "__main__":
    main()
