"""Carry out a study: train and record the encoders of a file, compare them, and draw what it asks for.

What is recorded already is left as it is, so the same command goes on where it was stopped.
"""

from pathlib import Path

from plumbing.commandline import Parser, script
from studying import steps, working


@script
def main(argv: list[str] | None = None) -> dict[str, object]:
    """Carry out a study; returns what its comparisons returned, by step. Exit code 1: a step failed."""
    arguments = parse(argv)
    study = steps.read(arguments.study)
    chosen = steps.select(steps.steps(study, arguments.overwrite), arguments.only)
    if arguments.print:
        print(*chosen, sep="\n")
        return {}
    outcome = working.carry_out(chosen)
    print(f"\n{len(chosen) - len(outcome.failures)} of {len(chosen)} steps of {arguments.study} are done")
    working.name_failures(outcome)
    return outcome.results


def parse(argv):
    parser = Parser(__doc__, __file__)
    add = parser.add_argument
    add("study", type=Path, metavar="STUDY.toml", help="the study, such as studies/demo.toml")
    add("--only", nargs="+", metavar="NAME", help="these encoders, comparisons or pictures only")
    add("--print", action="store_true", help="print every command, one a line, and run none")
    add("--overwrite", action="store_true", help="record again what is recorded already")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
