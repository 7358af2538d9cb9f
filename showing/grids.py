"""One figure of features and their highest samples, for a paper: squares of pictures, without captions."""

import math
import textwrap
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from PIL import ImageOps
from scipy.sparse import csr_array

from data import Pairs
from features import Run
from plumbing import files
from plumbing.errors import UserError
from showing.sheets import Highest, highest, tile, titled
from showing.thumbnails import Thumbnails, thumbnails

WIDTH, GAP = 7.0, 4  # inches of the figure: the text's width of most papers; pixels between pictures
LETTERS = 15  # of a title, an inch
SHAPE = 1.4  # the width of several features' panels over their height, as near as can be


def save_grid(
    file: Path,
    run: Run,
    layer: str,
    codes: csr_array,
    features: list[int],
    grid: tuple[int, int],
    pairs: Pairs,
    kept: Path,
    names: Mapping[int, str],
    side: int,
):
    """Draw one figure: for each feature a panel of rows x columns (`grid`) of the samples on which it is highest.

    Each picture is cut to the square in its middle. `codes` is the layer's features, `kept` the folder of
    thumbnails of `side` pixels. Errors: a feature that is never active; a run without pictures.
    """
    if not any(sample.side == "image" for sample in pairs.samples):
        of = "captions alone" if pairs.samples[0].side == "text" else "sounds"
        raise UserError(f"run {run.name!r} is of {of}, and a figure is of pictures: leave out --sheet")
    found = list(highest(codes, features, math.prod(grid)))
    if silent := [one.feature for one in found if not one.count]:
        raise UserError(f"feature {silent[0]} of {layer} is active on no sample: leave it out of --sheet")
    rows = {row for one in found for row in one.rows.tolist()}
    small = thumbnails(pairs, kept, rows, side)
    panels = {titled(one.feature, names): mosaic(one, grid, small) for one in found}
    draw(file, panels, arrangement(len(panels), grid))


def mosaic(found: Highest, grid: tuple[int, int], small: Thumbnails) -> UInt8[np.ndarray, "y x colour"]:
    """A feature's pictures side by side, the highest at the top left; white where the samples are fewer."""
    step = small.side + GAP
    pixels = np.full((grid[0] * step - GAP, grid[1] * step - GAP, 3), 255, np.uint8)
    for place, row in enumerate(found.rows.tolist()):
        y, x = (step * at for at in divmod(place, grid[1]))
        picture = small.picture(row) or tile(small.side)
        pixels[y : y + small.side, x : x + small.side] = np.asarray(
            ImageOps.fit(picture, (small.side, small.side))
        )
    return pixels


def arrangement(count: int, grid: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of panels, so that the whole is about SHAPE times wider than high."""

    def off(across: int) -> float:
        width, height = across * grid[1], math.ceil(count / across) * grid[0]
        return abs(math.log(width / height / SHAPE))

    across = min(range(1, count + 1), key=off)
    return math.ceil(count / across), across


def draw(file: Path, panels: Mapping[str, np.ndarray], shape: tuple[int, int]):
    """Write panels under their titles: as a vector file the titles stay text, and the pictures keep their pixels."""
    height, width, _ = next(iter(panels.values())).shape
    inches = WIDTH / shape[1]
    tight = ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02, wspace=0.01, hspace=0)
    figure = Figure((WIDTH, shape[0] * (inches * height / width + 0.22)), layout=tight)
    spaces = list(figure.subplots(*shape, squeeze=False).flat)
    for space in spaces:
        space.axis("off")
    for space, (title, pixels) in zip(spaces, panels.items(), strict=False):
        space.imshow(pixels, interpolation="none")
        title = textwrap.shorten(title, int(LETTERS * inches), placeholder="…")
        space.set_title(title, fontsize=8, loc="left", pad=2, parse_math=False)
    kind = file.suffix.lower().removeprefix(".") or "png"
    with rc_context({"pdf.fonttype": 42}), files.replacing(file) as temporary:  # journals refuse Type 3 fonts
        figure.savefig(temporary, dpi=min(600, width / inches), format=kind)
