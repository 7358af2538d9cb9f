"""Show what a run's features respond to: for each a sheet of the nine samples on which it is highest."""

import functools
import sys
from pathlib import Path

from plumbing.commandline import Parser, folder, positive, script
from plumbing.errors import UserError

AT_LEAST = 16  # activations: a feature with fewer is hardly one yet


@script
def main(argv=None):
    """Write the sheets; returns their files."""
    parser = Parser(__doc__)
    parser.add_argument("--run", required=True, help="the run to show, a folder name in sae_features/")
    parser.add_argument("--layer", type=int, default=-1, help="which layer; negative ones count from the end")
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--features", type=int, nargs="+", help="these features only")
    choice.add_argument(
        "--top",
        type=positive,
        help=f"the so many features of the highest summed activation; by default all active on {AT_LEAST} samples",
    )
    parser.add_argument("--data_root", help="where the pictures are now, if they have moved")
    parser.add_argument("--out", type=folder, default=Path("imgs"), help="the sheets go to OUT/RUN/")
    arguments = parser.parse_args(argv)

    import features

    run = features.open_run(arguments.run)
    layer = run.layer(arguments.layer)

    from tqdm import tqdm

    import data
    from showing import sheets

    codes = run.load(layer)
    chosen = sheets.chosen_features(codes, arguments.features, arguments.top, AT_LEAST)
    if not chosen:
        raise UserError(f"no feature of {layer} is active on {AT_LEAST} samples: name some with --features")
    pairs = data.reopen(run, arguments.data_root)
    progress = functools.partial(tqdm, desc="sheets", file=sys.stderr)
    files = sheets.save_sheets(run, layer, codes, chosen, pairs, arguments.out / run.name, progress)
    if len(files) < len(chosen):
        print(
            f"{len(chosen) - len(files)} of these features of {layer} are active on no sample: no sheets of them"
        )
    for file in files[:5]:
        print(file)
    if len(files) > 5:
        print(f"and {len(files) - 5} more in {arguments.out / run.name}/")
    return files


if __name__ == "__main__":
    main()
