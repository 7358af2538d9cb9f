"""Sheets of samples: the nine on which a feature is highest, and thirty of a data set."""

import functools
import io
import math
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from PIL import Image, ImageDraw
from scipy.sparse import csr_array

from data import Pairs
from features import Run
from plumbing import files
from plumbing.errors import UserError
from plumbing.progress import Progress
from samples import Samples
from showing import thumbnails
from showing.lettering import BIG, BOLD, FINE, PLAIN, cut, id_beside, wrapped, write

HIGHEST, HIGHEST_COLUMNS = 9, 3  # samples on a feature's sheet
CONTACT, CONTACT_COLUMNS, CONTACT_SIDE = 30, 6, 224  # pictures on a data set's, and pixels of a square
GAP, LINE = 16, 17  # pixels: the space between cells, a line of text
CAPTION_LINES = 4
TEXT = (CAPTION_LINES + 1) * LINE  # pixels: the text of a cell
TITLE = 58  # pixels above the cells
DENSE = 0.1  # of the rows: a feature that is active on more tells little
QUALITY = 90  # of a sheet as JPEG
FRAME, PAPER = (200, 200, 200), (255, 255, 255)
TILE = (238, 238, 238)  # stands for a picture that cannot be read


class Cell(NamedTuple):
    """One sample on a sheet: its picture if it has one, two words above its caption, and the caption."""

    picture: Image.Image | None
    left: str
    right: str
    caption: str


class Highest(NamedTuple):
    """A feature and the samples on which it is highest, highest first."""

    feature: int
    rows: Int[np.ndarray, " place"]
    activations: Float[np.ndarray, " place"]
    count: int  # samples on which it is active at all


def chosen_features(
    codes: csr_array,
    features: list[int] | None,
    top: int | None,
    at_least: int,
    score: Float[np.ndarray, " feature"] | None = None,
) -> list[int]:
    """The features to draw: those named, else all that are active on `at_least` samples; of these the first `top`.

    They are ordered by `score`, or else by summed activation, those that are active on more than a tenth of the
    samples last. `codes` is a layer's features [n_samples, d_sae]. Error: a named feature that the layer has not.
    """
    n_samples, d_sae = codes.shape
    if features is not None:
        if wrong := [feature for feature in features if not 0 <= feature < d_sae]:
            raise UserError(f"feature {wrong[0]}: the layer has features 0 to {d_sae - 1}")
        return features
    active = np.bincount(codes.indices, minlength=d_sae)
    enough = np.flatnonzero(active >= at_least)
    if top is None:
        return enough.tolist()
    sums = np.bincount(codes.indices, weights=codes.data, minlength=d_sae)
    keys = (-sums, active > DENSE * n_samples) if score is None else (-score,)
    return enough[np.lexsort([key[enough] for key in keys])][:top].tolist()


def highest(codes: csr_array, features: list[int], count: int = HIGHEST) -> Iterator[Highest]:
    """Each feature's `count` highest samples; equal activations go by row number."""
    columns = codes.tocsc()
    columns.sort_indices()
    for feature in features:
        start, stop = columns.indptr[feature : feature + 2]
        rows, activations = columns.indices[start:stop], columns.data[start:stop]
        order = np.argsort(-activations, kind="stable")[: min(count, np.count_nonzero(activations))]
        yield Highest(feature, rows[order], activations[order], int(np.count_nonzero(activations)))


class Sheets(NamedTuple):
    """What the sheets of a layer's features are drawn from: `names` are those features that have one."""

    run: Run
    layer: str
    samples: Samples
    pairs: Pairs
    small: thumbnails.Thumbnails
    names: Mapping[int, str]

    def draw(self, found: Highest) -> Image.Image:
        """A feature's sheet."""
        cells = [
            Cell(
                self.picture(row), f"{activation:#.3g}", numbered(self.pairs, row), self.samples.captions[row]
            )
            for row, activation in zip(found.rows.tolist(), found.activations.tolist(), strict=True)
        ]
        share = f"active on {found.count:,} of {self.run.n_samples:,} samples ({found.count / self.run.n_samples:.2%})"
        words = titled(found.feature, self.names)
        place = f"{share}; {self.run.name}, {self.layer.replace('layer', 'layer ')}"
        of_text = self.run.manifest["encoder"]["modality"] == "text"
        return draw(words, place, cells, HIGHEST_COLUMNS, self.small.side, of_text)

    def picture(self, row: int) -> Image.Image | None:
        """A row's thumbnail, a grey tile where it cannot be read, and nothing where the row has no picture."""
        if self.pairs.samples[row].side != "image":
            return None
        return self.small.picture(row) or tile(self.small.side)


def numbered(pairs: Pairs, row: int) -> str:
    """What a sample is called: its row, from 0 on, and its id where that is a number too."""
    name = id_beside(row, pairs.samples[row].id)
    return f"row {row}, id {name}" if name else f"row {row}"


def titled(feature: int, names: Mapping[int, str]) -> str:
    """A feature's number, and its name where it has one."""
    name = " ".join(names.get(feature, "").split())
    return f"feature {feature}: {name}" if name else f"feature {feature}"


def save_sheets(
    run: Run,
    layer: str,
    codes: csr_array,
    features: list[int],
    pairs: Pairs,
    folder: Path,
    names: Mapping[int, str] | None = None,
    suffix: str = "jpg",
    side: int = thumbnails.SIDE,
) -> list[Path]:
    """Draw a sheet for each feature that is ever active; returns the files `folder/layer2-feature00012.jpg`.

    `codes` is the layer's features, `pairs` the data set of the run, `names` those of features; `suffix` is jpg or
    png. The pictures are thumbnails of `side` pixels, which are kept beside the folder.
    """
    drawn = [found for found in highest(codes, features) if found.count]
    rows = {row for found in drawn for row in found.rows.tolist()}
    small = thumbnails.thumbnails(pairs, folder.parent / "thumbs", rows, side)
    sheets = Sheets(run, layer, run.samples(), pairs, small, names or {})

    def save_one(found: Highest) -> Path:
        file = folder / f"{layer}-feature{found.feature:05d}.{suffix}"
        save(sheets.draw(found), file)
        return file

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        try:
            return list(
                Progress(pool.map(save_one, drawn), "sheets", len(drawn), disable=len(drawn) < HIGHEST)
            )
        finally:
            pool.shutdown(cancel_futures=True)


def contact_sheet(pairs: Pairs) -> Image.Image:
    """Thirty pictures at equal distances through the rows, with their row numbers and captions."""
    pictured = [row for row, sample in enumerate(pairs.samples) if sample.side == "image"]
    rows = pictured[:: math.ceil(len(pictured) / CONTACT)]
    cells = [
        Cell(thumbnails.small(pairs, row, CONTACT_SIDE), numbered(pairs, row), "", pairs.caption(row))
        for row in rows
    ]
    return draw(pairs.name, f"{len(pairs):,} rows", cells, CONTACT_COLUMNS, CONTACT_SIDE)


def draw(
    title: str, subtitle: str, cells: list[Cell], columns: int, side: int, text_first: bool = False
) -> Image.Image:
    """A sheet with so many columns of cells, whose pictures fit squares of `side` pixels.

    `text_first` puts the captions above the pictures: what an encoder of text saw comes first.
    """
    lines = math.ceil(len(cells) / columns)
    pictured = any(cell.picture is not None for cell in cells)
    width, height = side + GAP, side * pictured + TEXT + GAP
    sheet = Image.new("RGB", (GAP + columns * width, TITLE + lines * height), PAPER)
    pen = ImageDraw.Draw(sheet)
    write(pen, GAP, 10, cut(title, BIG, sheet.width - 2 * GAP), BIG)
    write(pen, GAP, 34, cut(subtitle, FINE, sheet.width - 2 * GAP), FINE)
    for place, cell in enumerate(cells):
        x, y = GAP + place % columns * width, TITLE + place // columns * height
        draw_text(pen, cell, x, y if text_first or not pictured else y + side + 2, side)
        if cell.picture is not None:
            draw_picture(sheet, pen, cell.picture, x, y + TEXT if text_first else y, side)
    return sheet


def draw_text(pen: ImageDraw.ImageDraw, cell: Cell, x: int, y: int, width: int):
    """A cell's words and its caption, from (x, y) down."""
    write(pen, x, y, cell.left, BOLD)
    write(pen, x + width - round(FINE.font.getlength(cell.right)), y, cell.right, FINE)
    for number, line in enumerate(wrapped(cell.caption, width, CAPTION_LINES), 1):
        write(pen, x, y + number * LINE, line, PLAIN)


def draw_picture(
    sheet: Image.Image, pen: ImageDraw.ImageDraw, picture: Image.Image, x: int, y: int, side: int
):
    """A picture in the middle of the square at (x, y), with a frame."""
    left, top = x + (side - picture.width) // 2, y + (side - picture.height) // 2
    sheet.paste(picture, (left, top))
    pen.rectangle((left - 1, top - 1, left + picture.width, top + picture.height), outline=FRAME)


@functools.cache
def tile(side: int) -> Image.Image:
    """What stands for a picture that is missing or cannot be read."""
    square = Image.new("RGB", (side, side), TILE)
    ImageDraw.Draw(square).text((side // 2, side // 2), "no picture", FINE.ink, FINE.font, anchor="mm")
    return square


def save(sheet: Image.Image, file: Path):
    """Write a picture whole or not at all, as PNG where its name does not say what; its folder is made if missing."""
    kind = Image.registered_extensions().get(file.suffix.lower() or ".png")
    if kind is None:
        raise UserError(f"{file} is no kind of picture that holds pixels: end it in .png")
    content = io.BytesIO()
    sheet.save(content, kind, quality=QUALITY)
    files.make_folder(file.parent)
    files.write_again(file, content.getvalue())
