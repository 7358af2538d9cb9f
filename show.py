"""Show what a run's features respond to: for each a sheet of the nine samples on which it is highest."""

import functools
import sys
from pathlib import Path

from commandline import Parser, UserError, positive, script

AT_LEAST = 16  # activations: a feature with fewer is hardly one yet


@script
def main(argv=None):
    """Write the sheets; returns their files."""
    parser = Parser(__doc__)
    parser.add_argument("--run", required=True, help="the run to show, a folder name in sae_features/")
    parser.add_argument("--layer", type=int, default=-1, help="which layer; negative ones count from the end")
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--features", type=int, nargs="+", help="these features only")
    choice.add_argument("--top", type=positive, help="the so many features of the highest summed activation")
    parser.add_argument("--data_root", help="where the pictures are now, if they have moved")
    parser.add_argument("--out", type=Path, default=Path("imgs"), help="the sheets go to OUT/RUN/")
    arguments = parser.parse_args(argv)

    from tqdm import tqdm

    import data
    import features
    import sheets

    run = features.open_run(arguments.run)
    layer = run.layer(arguments.layer)
    codes = run.load(layer)
    chosen = sheets.chosen_features(codes, arguments.features, arguments.top, AT_LEAST)
    if not chosen:
        raise UserError(f"no feature of {layer} is active on {AT_LEAST} samples: name some with --features")
    pairs = data.reopen(run, arguments.data_root)
    folder = arguments.out / run.name
    progress = functools.partial(tqdm, desc="sheets", file=sys.stderr)
    files = sheets.save_sheets(run, layer, codes, chosen, pairs, folder, progress)
    print(
        f"{len(files)} sheets of {layer} of run {run.name}, {files[0]} to {files[-1]}"
        if files
        else "no sheets"
    )
    return files


if __name__ == "__main__":
    main()
