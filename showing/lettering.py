"""Lines of text on pictures: fonts, words that are drawn once and used again, what does not fit."""

import functools
import textwrap
from pathlib import Path
from typing import NamedTuple

import matplotlib
from PIL import Image, ImageDraw, ImageFont

INK, FAINT = (20, 20, 20), (110, 110, 110)
WIDEST = 13  # pixels of the widest letter


@functools.cache
def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which matplotlib ships: Latin, Greek, Cyrillic and more on every machine."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", name), size)


class Style(NamedTuple):
    """A font and a colour."""

    font: ImageFont.FreeTypeFont
    ink: tuple[int, int, int]


BIG, BOLD = Style(font(18, bold=True), INK), Style(font(13, bold=True), INK)
PLAIN, FINE = Style(font(13), INK), Style(font(12), FAINT)


def wrapped(caption: str, width: int, most: int) -> list[str]:
    """The first `most` lines of a caption, at most so many pixels wide; what does not fit ends in "…"."""
    lines, used = [""], 0.0
    for part in caption[: width * most].split():  # a caption can be a book
        for piece in (part,) if advance(part, PLAIN) <= width else textwrap.wrap(part, width // WIDEST):
            length = advance(piece, PLAIN)
            if lines[-1] and used + length > width:
                if len(lines) == most:
                    return [*lines[:-1], f"{lines[-1]} …"]
                lines.append("")
                used = 0.0
            lines[-1] += f" {piece}" if used else piece
            used += length
    return lines


def write(pen: ImageDraw.ImageDraw, x: int, y: int, text: str, style: Style):
    """A line of text; where it is plain ASCII it is put together of words, since captions repeat theirs."""
    if not text.isascii():  # other scripts may run from right to left
        pen.text((x, y), text, style.ink, font=style.font)
        return
    place = float(x)
    for part in text.split(" "):
        pen.bitmap((round(place) - 1, y), word(part, style), style.ink)
        place += advance(part, style)


@functools.lru_cache(4096)
def word(text: str, style: Style) -> Image.Image:
    """A word as grey pixels, the first column of which is a margin."""
    drawn = Image.new("L", (int(style.font.getlength(text)) + 4, 2 * int(style.font.size)))
    ImageDraw.Draw(drawn).text((1, 0), text, 255, font=style.font)
    return drawn


@functools.lru_cache(4096)
def advance(text: str, style: Style) -> float:
    """How far the next word is from this one, in pixels."""
    return style.font.getlength(f"{text} ")


def cut(text: str, style: Style, width: int) -> str:
    """A text of one line that is at most so many pixels wide, with "…" where it does not fit."""
    length = style.font.getlength
    if length(text) <= width:
        return text
    fitting = [end for end in range(len(text[:200])) if length(f"{text[:end]}…") <= width]
    return f"{text[: fitting[-1]]}…"
