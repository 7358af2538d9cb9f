"""Rank a run's features by Comparative Sharedness: in every run of one group, and in none of the other."""

import sys
from argparse import Namespace
from pathlib import Path

import numpy as np

import features
from comparing.sharedness import Sharedness, sharedness
from features import Run
from plumbing import files, processes
from plumbing.commandline import Parser, output, picture, positive, script, share
from plumbing.errors import UserError
from showing import labels
from showing.tables import print_sharedness, sharedness_csv, sharedness_json


@script
def main(argv=None) -> Sharedness:
    """Print the first of the features that M shares with all of G and with none of H; returns all of them."""
    arguments = parse(argv)
    source = features.open_run(arguments.source)
    min_group = [features.open_run(name) for name in arguments.min_group]
    max_group = [features.open_run(name) for name in arguments.max_group]
    check_groups(source, min_group, max_group)
    for run in (source, *min_group, *max_group):
        run.layer(arguments.layer)
    named = labels.read(source, source.layer(arguments.layer))
    own = None
    if arguments.cluster:
        from comparing.clusters import read_clusters  # it imports numba

        own = tuple(read_clusters(arguments.cluster, source.samples().ids))
    limits = arguments.present, arguments.absent
    shared = sharedness(source, min_group, max_group, arguments.layer, *limits, own)
    if processes.team().rank == 0:
        report(arguments, source, shared, named)
    return shared


def parse(argv):
    parser = Parser(__doc__, __file__)
    add = parser.add_argument
    add("--source", required=True, metavar="M", help="the run whose features are ranked")
    add("--min_group", required=True, nargs="+", metavar="G", help="runs that all have to have it")
    add("--max_group", required=True, nargs="+", metavar="H", help="runs that none may have it")
    add("--layer", type=int, default=-1, help="of every run; negative ones count from the end")
    add("--present", type=share, default=0.3, help="held-out r that a present feature surely has in all of G")
    add(
        "--absent",
        type=share,
        default=0.2,
        help="held-out r that an absent one surely stays below in all of H",
    )
    add("--cluster", metavar="FILE", help="samples that belong together: a line each of id, tab, group")
    add("--top", type=positive, help="how many to print, draw and show (default: 1%% of the features)")
    add("--csv", type=output, metavar="FILE", help="write all features, a line each")
    add("--json", type=output, metavar="FILE", help="write all features, for machines")
    add("--plot", type=picture, metavar="FILE.png", help="draw Delta against S, the first features named")
    add("--show", action="store_true", help="make the sheets of the first features, as show.py does")
    add("--data_root", help="where the pictures for --show are now, if they have moved")
    arguments = parser.parse_args(argv)
    if arguments.absent > arguments.present:
        parser.error(
            f"--absent {arguments.absent} is above --present {arguments.present}: a feature could be both"
        )
    if arguments.data_root and not arguments.show:
        parser.error("--data_root is of the sheets: add --show")
    if arguments.show:
        output(
            f"imgs/{Path(arguments.source).name}/sheet.jpg"
        )  # refused before the work where it cannot be written
    return arguments


def check_groups(source: Run, min_group: list[Run], max_group: list[Run]):
    """Refuse one run in both groups, and say where the source is in one: no Delta could be above zero."""
    g, h = ({run.name for run in group} for group in (min_group, max_group))
    if both := g & h:
        raise UserError(f"run {min(both)!r} is in both groups: leave it out of one")
    if source.name in g | h:
        print(
            f"note: run {source.name!r}, the source, is in a group: it has all of its features",
            file=sys.stderr,
        )


def report(arguments: Namespace, source: Run, shared: Sharedness, named: dict[int, labels.Label]):
    """Write the files that are asked for, and print the first features; in this order, since a pipe's reader may
    leave (`| head`).
    """
    live = np.flatnonzero(shared.total > 0)
    names = {feature: label.name for feature, label in named.items()}
    first = live[: arguments.top or max(1, len(shared.feature) // 100)]
    if arguments.csv:
        files.write_text(arguments.csv, sharedness_csv(shared, names))
    if arguments.json:
        files.write_text(arguments.json, sharedness_json(source, shared, names))
    if arguments.plot:
        from showing.figures import plot_sharedness

        plot_sharedness(arguments.plot, shared, first)
    texts = {feature: label.text for feature, label in named.items()}
    print_sharedness(shared, first, len(live), texts)
    if arguments.show:
        show(source, shared, first, arguments.data_root)


def show(source: Run, shared: Sharedness, first: np.ndarray, data_root: str | None):
    """Make the sheets of the first features in imgs/RUN/."""
    import data
    from showing import sheets

    pairs = data.reopen(source, data_root)
    place = Path("imgs") / source.name
    codes, chosen = source.load(shared.layer), shared.feature[first].tolist()
    names = labels.names_of(source, shared.layer, codes, pairs.captions)
    saved = sheets.save_sheets(source, shared.layer, codes, chosen, pairs, place, names)
    print(f"\n{len(saved)} sheets in {place}/")


if __name__ == "__main__":
    main()
