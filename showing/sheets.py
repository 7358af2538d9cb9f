"""Sheets of samples as PNG: the nine on which a feature is highest, and thirty of a data set."""

import functools
import math
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from jaxtyping import Float, Int
from PIL import Image, ImageDraw, ImageFont
from scipy.sparse import csr_array
from tqdm import tqdm

from data import Pairs
from features import Run
from plumbing import files
from plumbing.errors import UserError

HIGHEST, HIGHEST_COLUMNS = 9, 3  # samples on a feature's sheet
CONTACT, CONTACT_COLUMNS = 30, 6  # pictures on a data set's
PICTURE, GAP, LINE = 224, 16, 17  # pixels: a picture's square, the space between cells, a line of text
CAPTION_LINES, CAPTION_WIDTH = 4, 33  # lines and characters; what does not fit ends in "…"
TEXT = (CAPTION_LINES + 1) * LINE  # pixels: the text of a cell
TITLE = 58  # pixels above the cells
HELD = 512  # pictures, scaled down; so many photographs of 12 megapixels would take 17 GB
INK, FAINT, FRAME, PAPER = (20, 20, 20), (110, 110, 110), (200, 200, 200), (255, 255, 255)


class Cell(NamedTuple):
    """One sample on a sheet: its picture if it has one, two words above its caption, and the caption."""

    picture: Image.Image | None
    left: str
    right: str
    caption: str


class Highest(NamedTuple):
    """A feature and the up to nine samples on which it is highest, highest first."""

    feature: int
    rows: Int[np.ndarray, " place"]
    activations: Float[np.ndarray, " place"]
    count: int  # samples on which it is active at all


def chosen_features(
    codes: csr_array, features: list[int] | None, top: int | None, at_least: int
) -> list[int]:
    """The features to draw: those named, else all that are active on `at_least` samples, `top` by summed activation.

    `codes` is a layer's features [n_samples, d_sae]. Error: a named feature that the layer has not.
    """
    d_sae = codes.shape[1]
    if features is not None:
        if wrong := [feature for feature in features if not 0 <= feature < d_sae]:
            raise UserError(f"--features {wrong[0]}: the layer has features 0 to {d_sae - 1}")
        return features
    enough = np.flatnonzero(np.bincount(codes.indices, minlength=d_sae) >= at_least)
    if top is None:
        return enough.tolist()
    sums = np.bincount(codes.indices, weights=codes.data, minlength=d_sae)
    return enough[np.argsort(-sums[enough], kind="stable")][:top].tolist()


def highest(codes: csr_array, features: list[int]) -> Iterator[Highest]:
    """Each feature's nine highest samples; equal activations go by row number."""
    columns = codes.tocsc()
    columns.sort_indices()
    for feature in features:
        start, stop = columns.indptr[feature : feature + 2]
        rows, activations = columns.indices[start:stop], columns.data[start:stop]
        order = np.argsort(-activations, kind="stable")[:HIGHEST]
        yield Highest(feature, rows[order], activations[order], int(np.count_nonzero(activations)))


def save_sheets(
    run: Run, layer: str, codes: csr_array, features: list[int], pairs: Pairs, folder: Path
) -> list[Path]:
    """Draw a sheet for each feature that is ever active; returns the files `folder/layer2-feature00012.png`.

    `codes` is the layer's features, and `pairs` the data set of the run.
    """
    samples, text_first = run.samples(), run.manifest["encoder"]["modality"] == "text"
    saved = []

    @functools.lru_cache(HELD)
    def picture(row: int) -> Image.Image | None:  # a sound has its caption alone
        return fitted(pairs.image(row)) if pairs.samples[row].side == "image" else None

    for found in tqdm(list(highest(codes, features)), desc="sheets"):
        if found.count == 0:
            continue
        cells = [
            Cell(picture(row), f"{activation:#.3g}", f"row {row}", samples[row]["caption"])
            for row, activation in zip(found.rows.tolist(), found.activations.tolist(), strict=True)
        ]
        title = f"{run.name}, {layer.replace('layer', 'layer ')}, feature {found.feature}"
        share = f"active on {found.count:,} of {run.n_samples:,} samples ({found.count / run.n_samples:.2%})"
        saved.append(folder / f"{layer}-feature{found.feature:05d}.png")
        save(draw(title, share, cells, HIGHEST_COLUMNS, text_first), saved[-1])
    return saved


def contact_sheet(pairs: Pairs) -> Image.Image:
    """Thirty pictures at equal distances through the rows, with their row numbers and captions."""
    pictured = [row for row, sample in enumerate(pairs.samples) if sample.side == "image"]
    rows = pictured[:: math.ceil(len(pictured) / CONTACT)]
    cells = [Cell(fitted(pairs.image(row)), f"row {row}", "", pairs.caption(row)) for row in rows]
    return draw(pairs.name, f"{len(pairs):,} rows", cells, CONTACT_COLUMNS)


def draw(title: str, subtitle: str, cells: list[Cell], columns: int, text_first: bool = False) -> Image.Image:
    """A sheet with so many columns of cells.

    `text_first` puts the captions above the pictures: what an encoder of text saw comes first.
    """
    lines = math.ceil(len(cells) / columns)
    width, height = PICTURE + GAP, PICTURE + TEXT + GAP
    sheet = Image.new("RGB", (GAP + columns * width, TITLE + lines * height), PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((GAP, 10), title, INK, font=font(18, bold=True))
    pen.text((GAP, 34), subtitle, FAINT, font=font(13))
    for place, cell in enumerate(cells):
        x, y = GAP + place % columns * width, TITLE + place // columns * height
        draw_text(pen, cell, x, y if text_first else y + PICTURE + 2)
        if cell.picture is not None:
            draw_picture(sheet, pen, cell.picture, x, y + TEXT if text_first else y)
    return sheet


def draw_text(pen: ImageDraw.ImageDraw, cell: Cell, x: int, y: int):
    """A cell's words and its caption, from (x, y) down."""
    pen.text((x, y), cell.left, INK, font=font(13, bold=True))
    pen.text((x + PICTURE, y), cell.right, FAINT, font=font(12), anchor="ra")
    lines = textwrap.wrap(cell.caption, CAPTION_WIDTH, max_lines=CAPTION_LINES, placeholder=" …")
    for number, line in enumerate(lines, 1):
        pen.text((x, y + number * LINE), line, INK, font=font(13))


def draw_picture(sheet: Image.Image, pen: ImageDraw.ImageDraw, picture: Image.Image, x: int, y: int):
    """A picture in the middle of the square at (x, y), with a frame."""
    left, top = x + (PICTURE - picture.width) // 2, y + (PICTURE - picture.height) // 2
    sheet.paste(picture, (left, top))
    pen.rectangle((left - 1, top - 1, left + picture.width, top + picture.height), outline=FRAME)


def fitted(picture: Image.Image) -> Image.Image:
    """Scaled to fit the picture's square, its aspect ratio kept; very small pictures keep their pixels visible."""
    scale = PICTURE / max(picture.size)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    return picture.resize(
        (width, height), Image.Resampling.NEAREST if scale > 3 else Image.Resampling.LANCZOS
    )


@functools.cache
def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which matplotlib ships: Latin, Greek, Cyrillic and more on every machine."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", name), size)


def save(sheet: Image.Image, file: Path):
    """Write a sheet whole or not at all, as PNG where its name does not say what; its folder is made if missing."""
    kind = Image.registered_extensions().get(file.suffix.lower() or ".png")
    if kind is None:
        raise UserError(f"{file} is no kind of picture that holds pixels: end it in .png")
    files.make_folder(file.parent)
    with files.replacing(file) as temporary:
        sheet.save(temporary, kind)
