"""Feature sheets: the nine samples on which a feature is highest, pictures with their captions, as one PNG."""

import functools
import math
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from data import Pairs
from plumbing.errors import UserError
from sources.media import _side

TILE, TILE_COLUMNS, MOST_TILES = 160, 6, 30  # pixels; tiles in a line; tiles in a sheet


def contact_sheet(pairs: Pairs) -> Image.Image:
    """Thirty pictures at equal distances through the rows, each above its row number and caption."""
    pictured = [row for row, sample in enumerate(pairs.samples) if _side(sample) == "image"]
    rows = pictured[:: math.ceil(len(pictured) / MOST_TILES)]
    height = TILE + 44
    sheet = Image.new(
        "RGB", (TILE_COLUMNS * (TILE + 8), math.ceil(len(rows) / TILE_COLUMNS) * height), "white"
    )
    for number, row in enumerate(rows):
        left, top = number % TILE_COLUMNS * (TILE + 8) + 4, number // TILE_COLUMNS * height
        tile = ImageOps.contain(pairs.image(row), (TILE, TILE), Image.Resampling.BICUBIC)
        sheet.paste(tile, (left + (TILE - tile.width) // 2, top + TILE - tile.height))
        lines = textwrap.wrap(f"{row}: {pairs.caption(row)[:200]}", 26, max_lines=3, placeholder=" …")
        ImageDraw.Draw(sheet).multiline_text(
            (left, top + TILE + 2), "\n".join(lines), "black", _tile_font(), spacing=1
        )
    return sheet


@functools.cache
def _tile_font() -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which matplotlib brings along: more scripts than PIL's own font, though no Chinese."""
    import matplotlib

    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf")), 11)


ROWS = COLUMNS = 3

PICTURE, GAP, LINE = 224, 16, 17  # pixels: a picture's square, the space between cells, a line of text

CAPTION_LINES, CAPTION_WIDTH = 4, 33  # lines and characters; what does not fit ends in "…"

TITLE = 58  # pixels above the cells

INK, FAINT, FRAME, PAPER = (20, 20, 20), (110, 110, 110), (200, 200, 200), (255, 255, 255)


class Highest(NamedTuple):
    """A feature and the samples on which it is highest, highest first."""

    feature: int
    rows: np.ndarray  # int [up to 9]
    activations: np.ndarray  # float [up to 9]
    count: int  # samples on which it is active at all


def chosen_features(codes: Any, features: list[int] | None, top: int | None, at_least: int) -> list[int]:
    """The features to draw: those named, else all that are active on `at_least` samples, `top` by summed activation.

    `codes` is a layer's features, scipy CSR [n_samples, d_sae].
    """
    d_sae = codes.shape[1]
    if features is not None:
        for feature in features:
            if not 0 <= feature < d_sae:
                raise UserError(f"--features {feature}: the layer has features 0 to {d_sae - 1}")
        return features
    counts = np.bincount(codes.indices, minlength=d_sae)
    enough = np.flatnonzero(counts >= at_least)
    if top is None:
        return enough.tolist()
    sums = np.bincount(codes.indices, weights=codes.data, minlength=d_sae)
    return enough[np.argsort(-sums[enough], kind="stable")][:top].tolist()


def highest(codes: Any, features: list[int]) -> Iterator[Highest]:
    """Each feature's nine highest samples; equal activations go by row number."""
    columns = codes.tocsc()
    columns.sort_indices()
    for feature in features:
        start, stop = columns.indptr[feature : feature + 2]
        rows, activations = columns.indices[start:stop], columns.data[start:stop]
        order = np.argsort(-activations, kind="stable")[: ROWS * COLUMNS]
        yield Highest(feature, rows[order], activations[order], int(np.count_nonzero(activations)))


def draw(found: Highest, title: str, n_samples: int, picture: Callable, caption: Callable, text_first: bool):
    """The sheet as a PIL image. `picture(row)`, already `_fitted`, and `caption(row)` give a sample's two sides.

    `picture` may be None.

    `text_first` puts the captions above the pictures: what an encoder of text saw comes first.
    """
    cell = (PICTURE, PICTURE + (CAPTION_LINES + 1) * LINE)
    width = COLUMNS * cell[0] + (COLUMNS + 1) * GAP
    sheet = Image.new("RGB", (width, TITLE + ROWS * (cell[1] + GAP)), PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((GAP, 10), f"{title}, feature {found.feature}", INK, font=_font(18, bold=True))
    share = f"active on {found.count:,} of {n_samples:,} samples ({found.count / n_samples:.2%})"
    pen.text((GAP, 34), share, FAINT, font=_font(13))
    for place, (row, activation) in enumerate(zip(found.rows, found.activations, strict=True)):
        x = GAP + place % COLUMNS * (cell[0] + GAP)
        y = TITLE + place // COLUMNS * (cell[1] + GAP)
        _draw_cell(sheet, pen, (x, y), picture, caption(int(row)), int(row), float(activation), text_first)
    return sheet


def _draw_cell(sheet, pen, corner, picture, caption, row, activation, text_first):
    x, y = corner
    text_height = (CAPTION_LINES + 1) * LINE
    text_y, picture_y = (y, y + text_height) if text_first else (y + PICTURE + 2, y)
    if picture is not None:
        drawn = picture(row)
        left, top = x + (PICTURE - drawn.width) // 2, picture_y + (PICTURE - drawn.height) // 2
        sheet.paste(drawn, (left, top))
        pen.rectangle((left - 1, top - 1, left + drawn.width, top + drawn.height), outline=FRAME)
    pen.text((x, text_y), f"{activation:#.3g}", INK, font=_font(13, bold=True))
    pen.text((x + PICTURE, text_y), f"row {row}", FAINT, font=_font(12), anchor="ra")
    lines = textwrap.wrap(caption, CAPTION_WIDTH, max_lines=CAPTION_LINES, placeholder=" …")
    for number, line in enumerate(lines, 1):
        pen.text((x, text_y + number * LINE), line, INK, font=_font(13))


def _fitted(picture: Image.Image) -> Image.Image:
    """Scaled to fit the picture's square, its aspect ratio kept; very small pictures keep their pixels visible."""
    scale = PICTURE / max(picture.size)
    size = tuple(max(1, round(side * scale)) for side in picture.size)
    return picture.resize(size, Image.Resampling.NEAREST if scale > 3 else Image.Resampling.LANCZOS)


@functools.cache
def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which matplotlib ships: Latin, Greek, Cyrillic and more on every machine."""
    import matplotlib

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", name), size)


def save_sheets(
    run: Any, layer: str, codes: Any, features: list[int], pairs: Any, folder: Path, progress: Callable = iter
) -> list[Path]:
    """Draw and save a sheet for each feature that is ever active; returns the files `folder/layer2-feature00012.png`.

    `run` is a `features.Run`, `codes` its layer's CSR, and `pairs` the data with the pictures, or None where they
    are not at hand: then the captions stand alone.
    """
    samples = run.samples()
    text_first = run.manifest["encoder"]["modality"] == "text"
    # Small ones are held: 512 photographs of 12 megapixels take 17 GB.
    picture = pairs and functools.lru_cache(maxsize=512)(lambda row: _fitted(pairs.image(row)))
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for found in progress(list(highest(codes, features))):
        if found.count == 0:
            continue
        title = f"{run.name}, {layer.replace('layer', 'layer ')}"
        sheet = draw(found, title, run.n_samples, picture, lambda row: samples[row]["caption"], text_first)
        files.append(folder / f"{layer}-feature{found.feature:05d}.png")
        sheet.save(files[-1])
    return files
