"""The training curve: FVU and dead latents over the steps, drawn from training.jsonl."""

from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from plumbing import files
from training.log import Line


def draw(file: Path, lines: list[Line]):
    """Draw the curve of a run and save it."""
    with files.replacing(file) as temporary:
        curve(lines).savefig(temporary, metadata={"Software": None})


def curve(lines: list[Line]) -> Figure:
    """FVU beside the fraction of dead latents, by step, a line a layer."""
    figure = Figure(figsize=(9, 3.5), layout="constrained", dpi=150)
    left, right = figure.subplots(1, 2)
    steps, layers = [line["step"] for line in lines], list(lines[0]["fvu"])
    colour = matplotlib.colormaps["viridis"]
    for i, layer in enumerate(layers):
        style = {"color": colour(0.85 * i / max(1, len(layers) - 1)), "label": layer}
        marks = "." * (len(steps) < 10) + "-"
        left.plot(steps, [line["fvu"][layer] for line in lines], marks, **style)
        right.plot(steps, [line["dead_fraction"][layer] for line in lines], marks, **style)
    left.set(xlabel="step", title="FVU in training", ylim=(0, None))
    right.set(xlabel="step", title="dead fraction in training", ylim=(0, None))
    right.legend(fontsize=7, ncols=1 + len(layers) // 13)
    return figure
