"""Lines of text on pictures: fonts, words that are drawn once and used again, what does not fit."""

import functools
import re
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
        for piece in (part,) if length(part, PLAIN) <= width else textwrap.wrap(part, width // WIDEST):
            if lines[-1] and used + length(piece, PLAIN) > width:
                if len(lines) == most:
                    return [*lines[:-1], f"{lines[-1]} …"]
                lines.append("")
                used = 0.0
            lines[-1] += f" {piece}" if used else piece
            used += length(piece, PLAIN) + length(" ", PLAIN)
    return lines


def write(pen: ImageDraw.ImageDraw, x: int, y: int, text: str, style: Style):
    """A line of text; plain ASCII is put together of words, since captions repeat theirs, and numbers of digits."""
    if not text.isascii():  # other scripts may run from right to left
        pen.text((x, y), text, style.ink, font=style.font)
        return
    place = float(x)
    for part in re.findall(r"[0-9]|[^0-9 ]+| ", text):
        if part != " ":
            pen.bitmap((round(place) - 1, y), word(part, style), style.ink)
        place += length(part, style)


@functools.lru_cache(4096)
def word(text: str, style: Style) -> Image.Image:
    """A word as grey pixels, the first column of which is a margin."""
    drawn = Image.new("L", (int(style.font.getlength(text)) + 4, 2 * int(style.font.size)))
    ImageDraw.Draw(drawn).text((1, 0), text, 255, font=style.font)
    return drawn


@functools.lru_cache(4096)
def length(text: str, style: Style) -> float:
    """The width of a text in pixels."""
    return style.font.getlength(text)


def cut(text: str, style: Style, width: int) -> str:
    """A text of one line that is at most so many pixels wide, with "…" where it does not fit."""
    if style.font.getlength(text) <= width:
        return text
    fitting = [end for end in range(len(text[:200])) if style.font.getlength(f"{text[:end]}…") <= width]
    return f"{text[: fitting[-1]]}…"


def id_beside(row: int, name: str) -> str:
    """A sample's id where it is another number than its row and could be taken for that: then both are shown; or ""."""
    return name if name.isdecimal() and int(name) != row else ""
