"""Score how much of one run's features another run has: wMPPC (arXiv 2507.18512), and its floor of chance.

One source and one target give both directions and the layers; several give a matrix.
"""

import fnmatch
import os
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import features
from comparing.results import METRICS, Difference, Direction, Folds, metric
from features import Run
from plumbing import files
from plumbing.commandline import Parser, above_zero, output, picture, positive, script
from plumbing.errors import UserError
from samples import Samples
from showing import trusted
from showing.tables import print_matrix, print_pair

if TYPE_CHECKING:
    from comparing.sides import Options


@script
def main(argv=None) -> tuple[Direction, ...]:
    """Print the scores; returns a `Direction` for each source and target, and for one pair both ways."""
    arguments = parse(argv)
    sources, targets = (chosen_runs(words) for words in (arguments.source, arguments.target))
    runs = {run.name: run for run in (*sources, *targets)}
    check_shape(arguments, len(sources), len(targets))
    features.check_aligned(list(runs.values()))

    from comparing import comparison, contrasts  # after what can be said without numba
    from comparing.reader import Reader
    from comparing.sides import Sides
    from plumbing import processes

    one_pair = len(sources) == len(targets) == 1
    arguments.metrics = arguments.metrics or (["wmppc", "mppc"] if one_pair else ["wmppc"])
    reader = Reader(arguments.memory and int(arguments.memory * 2**30))
    sides = Sides(list(runs.values()), reader, options(arguments, sources[0]))
    extra = None
    if arguments.difference:
        extra = contrasts.difference(sources[0], (targets[0], targets[1]), sides)
    if arguments.folds:
        extra = contrasts.folded(sources[0], targets[0], arguments.folds, sides)
    found = {}
    for a, b in wanted_pairs(sources, targets):
        forward, backward = comparison.with_references(runs[a], runs[b], arguments.metrics, sides)
        found[a, b], found[b, a] = forward, backward
    names = [(a.name, b.name) for a in sources for b in targets]
    both_ways = dict.fromkeys([*names, names[0][::-1]] if one_pair else names)  # of a run and itself: one
    directions = tuple(found[pair] for pair in both_ways)
    if processes.team().rank == 0:
        report(arguments, sources[0], directions, one_pair, extra)
    return directions


def parse(argv):
    parser = Parser(__doc__, __file__)
    add = parser.add_argument
    runs = "runs: folder names in sae_features/, or patterns such as 'clip*' (quoted)"
    add("--source", required=True, nargs="+", metavar="RUN", help=runs)
    add("--target", required=True, nargs="+", metavar="RUN", help="the runs that they are compared with")
    words = f"scores: {', '.join(METRICS)} (default: wmppc, and for one pair mppc too)"
    add("--metrics", nargs="+", type=metric, metavar="SCORE", help=words)
    add("--csv", type=output, metavar="FILE", help="write the scores, a line each")
    add("--json", type=output, metavar="FILE", help="write everything that is printed, for machines")
    add(
        "--plot",
        type=picture,
        metavar="FILE.png",
        help="draw the matrix; for one pair, its layers and coverage",
    )
    add(
        "--memory",
        type=above_zero,
        metavar="GIB",
        help="for runs held at once, by all processes of a machine (default: half of what is free)",
    )
    add_trust(parser.add_argument_group("how far to trust a score").add_argument)
    return parser.parse_args(argv)


def add_trust(add: Callable):
    """The flags of what tells how far to trust a score; `add` is a parser's `add_argument`."""
    add("--no-trust", action="store_true", help="the bare score alone, at a fraction of the cost")
    add(
        "--permutations",
        type=positive,
        default=2,
        help="of a floor, at least; more on small data",
    )
    add(
        "--min_active",
        type=positive,
        default=10,
        help="samples that a feature is active on, to count",
    )
    add(
        "--transform",
        choices=("sqrt",),
        help="wMPPC and MPPC of sqrt(x): heavy tails weigh less; older scores stay those of x",
    )
    add("--cluster", metavar="FILE", help="samples that belong together: a line each of id, tab, group")
    add(
        "--strata",
        metavar="COLUMN",
        help="print a floor within equal values of it too (default: caption_words)",
    )
    add("--folds", type=positive, metavar="K", help="the held-out score on K parts of the samples (one pair)")
    add("--difference", action="store_true", help="one source, two targets: how much their scores differ")


def check_shape(arguments: Namespace, n_sources: int, n_targets: int):
    """Refuse what is asked of too few or too many runs."""
    if arguments.difference and (n_sources, n_targets) != (1, 2):
        raise UserError(f"--difference takes one source and two targets, not {n_sources} and {n_targets}")
    if arguments.folds and (n_sources, n_targets) != (1, 1):
        raise UserError(f"--folds takes one source and one target, not {n_sources} and {n_targets}")
    trusting = arguments.difference, arguments.folds, arguments.transform, arguments.strata
    if arguments.no_trust and any(trusting):
        raise UserError(
            "--no-trust gives the bare score of x alone: leave out --difference, --folds, --transform and --strata"
        )


def options(arguments: Namespace, run: Run) -> "Options":
    """What the words on trust ask for; the samples of `run` are looked at where they name rows or columns."""
    from comparing import clusters
    from comparing.sides import Options

    known = run.samples() if arguments.cluster or arguments.strata else Samples.none()
    own = None
    if arguments.cluster:
        own = tuple(clusters.read_clusters(arguments.cluster, known.ids))
    if arguments.strata:
        clusters.strata_of(arguments.strata, known)
    root, strata = arguments.transform == "sqrt", arguments.strata or clusters.CAPTION_WORDS
    return Options(arguments.no_trust, arguments.permutations, arguments.min_active, root, strata, own)


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


def report(
    arguments: Namespace,
    run: Run,
    directions: tuple[Direction, ...],
    one_pair: bool,
    extra: Difference | Folds | None,
):
    """Write the files that are asked for, and print; in this order, since a pipe's reader may leave (`| head`)."""
    if arguments.csv:
        files.write_text(arguments.csv, trusted.trusted_csv(directions, arguments.metrics))
    if arguments.json:
        files.write_text(arguments.json, trusted.trusted_json(run, directions, extra))
    if arguments.plot:
        from showing import figures

        (figures.plot_layers if one_pair else figures.plot_matrix)(arguments.plot, directions)
    print(f"{run.n_samples} samples of {run.manifest['dataset']['name']}")
    if extra is not None:
        trusted.print_extra(extra)
    if one_pair and directions[0].drivers is not None:
        trusted.print_pair(directions, arguments.metrics)
    else:
        (print_pair if one_pair else print_matrix)(directions, arguments.metrics)


if __name__ == "__main__":
    main()
