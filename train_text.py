"""Train SAEs on the activations of an encoder of text, then record every sample's features."""

from argparse import Namespace
from typing import TYPE_CHECKING

import wrappedmodels
from features import Run
from plumbing.commandline import script
from training import flags

if TYPE_CHECKING:
    from training.estimate import Estimate

ENCODERS = {name: row for name, row in wrappedmodels.REGISTRY.items() if row.modality == "text"}


@script
def main(argv: list[str] | None = None) -> "list[Run] | Estimate":
    """Train and record; returns the runs, one for each seed and each k, or with --dry_run what they would cost."""
    return flags.run(parse(argv))


def parse(argv: list[str] | None) -> Namespace:
    return flags.parse(argv, __doc__, __file__, ENCODERS, "DemoClipText")


if __name__ == "__main__":
    main()
