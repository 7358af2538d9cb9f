"""Show what a run's features respond to: for each a sheet of the nine samples on which it is highest."""

from pathlib import Path

from plumbing.commandline import Parser, folder, positive, script
from plumbing.errors import UserError

AT_LEAST = 16  # activations: a feature with fewer is hardly one yet


@script
def main(argv=None) -> list[Path]:
    """Write the sheets; returns their files."""
    arguments = parse(argv)

    import features

    run = features.open_run(arguments.run)
    layer = run.layer(arguments.layer)

    import data
    from showing import sheets  # after what can be said without the pictures' libraries

    codes = run.load(layer)
    chosen = sheets.chosen_features(codes, arguments.features, arguments.top, AT_LEAST)
    if not chosen:
        raise UserError(f"no feature of {layer} is active on {AT_LEAST} samples: name some with --features")
    pairs = data.reopen(run, arguments.data_root)
    files = sheets.save_sheets(run, layer, codes, chosen, pairs, arguments.out / run.name)
    if silent := len(chosen) - len(files):
        print(f"{silent} of these features of {layer} are active on no sample: no sheets of them")
    for file in files[:5]:
        print(file)
    if len(files) > 5:
        print(f"and {len(files) - 5} more in {arguments.out / run.name}/")
    return files


def parse(argv):
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--run", required=True, help="the run to show, a folder name in sae_features/")
    add("--layer", type=int, default=-1, help="which layer; negative ones count from the end")
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--features", type=int, nargs="+", help="these features only")
    enough = f"by default all that are active on {AT_LEAST} samples"
    choice.add_argument("--top", type=positive, help=f"so many, by falling summed activation; {enough}")
    add("--data_root", help="where the pictures are now, if they have moved")
    add("--out", type=folder, default=Path("imgs"), help="the sheets go to OUT/RUN/")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
