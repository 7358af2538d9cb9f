"""What a scene of the demo is made of: things and their places, and the dice that choose them."""

from typing import NamedTuple

import numpy as np

SHAPES = {
    "disc": ("disc", "circle"),
    "square": ("square", "box"),
    "triangle": ("triangle",),
    "cross": ("cross", "plus"),
    "ring": ("ring", "hoop"),
    "star": ("star",),
}
SIZES = {"small": ("small", "little", "tiny"), "large": ("large", "big", "huge")}
COLOURS = {
    "red": (214, 40, 40),
    "green": (40, 160, 60),
    "blue": (40, 70, 210),
    "yellow": (236, 212, 48),
    "purple": (140, 50, 170),
    "cyan": (60, 200, 214),
    "white": (238, 238, 238),
    "black": (24, 24, 24),
}
POSITIONS = {  # row and column of the quadrant
    "top left": (0, 0),
    "top right": (0, 1),
    "bottom left": (1, 0),
    "bottom right": (1, 1),
}
ARRANGEMENTS = {"one above the other": ("above", "below"), "side by side": ("left of", "right of")}
BACKGROUNDS = {"neutral": (0, 0, 0), "warm": (7, 1, -6), "cool": (-6, 0, 7), "leafy": (-4, 6, -4)}
TEXTURES = ("plain", "stripes", "dots", "checks")


class Thing(NamedTuple):
    """An object of a scene; `shift` is its offset in pixels from the middle of its quadrant (down, right)."""

    shape: str
    colour: str
    size: str
    position: str
    shade: int
    shift: tuple[int, int]


class Scene(NamedTuple):
    """What a picture shows; the first of two things is the upper or the left one."""

    things: tuple[Thing, ...]
    arrangement: str | None
    background: str
    texture: str


class Dice:
    """Throws that depend on nothing but the seed, the row and the purpose (0: the scene, 1-5: a caption)."""

    def __init__(self, seed: int, row: int, purpose: int):
        key = np.array([seed, 8 * row + purpose], dtype=np.uint64)
        self.throws = iter(np.random.Philox(key=key).random_raw(32).tolist())

    def pick(self, options):
        """One of `options`, each as likely as the others (to 2^-53)."""
        return options[(next(self.throws) >> 11) * len(options) >> 53]

    def order(self, options) -> list:
        """All of `options` in a random order."""
        left = list(options)
        return [left.pop(self.pick(range(len(left)))) for _ in options]
