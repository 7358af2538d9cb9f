"""Train SAEs on the activations of an encoder of images (or of sounds), then record every sample's features."""

import data
import wrappedmodels
from plumbing.commandline import script, training_arguments
from training.names import open_data

ENCODERS = {name: row for name, row in wrappedmodels.REGISTRY.items() if row.modality != "text"}


@script
def main(argv=None):
    """Train and record; returns the recorded runs, one for each seed and each k."""
    arguments = training_arguments(argv, __doc__, ENCODERS, "DemoClipVision", data.FLAGS, "train_image.py")
    arguments.pairs = open_data(arguments)

    from training import experiment  # after what can be said without torch

    return experiment.run(arguments)


if __name__ == "__main__":
    main()
