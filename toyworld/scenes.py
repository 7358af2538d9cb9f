"""Scenes: pictures and captions drawn from a seed, whose factors are known because they were planted.

A picture holds one to three things on a faintly tinted, faintly textured ground; five captions tell the
things and where they stand. The ground is in the picture only, the style of a caption in the caption only,
and everything else in both, so which concepts an image and a text encoder can share is known beforehand.

The same on every machine: of numpy's random numbers only the raw words of Philox are used, whose stream numpy
promises to keep, and all arithmetic from there to the pixels is on integers.
"""

import functools
from typing import NamedTuple

import numpy as np
from PIL import Image

N_DEMO = 10_000  # evaluation pairs; no encoder of the demo was trained on any of them
SEED = 2507
TRAINING_SEED = 18512  # another stream: what the encoders of the demo are trained on

SIDE, CELL, BOX = 32, 16, 14  # pixels: the picture, a quadrant, and the box that a thing fills in it
FINE = 4  # a pixel's coverage is counted on FINE x FINE points
GREY = 112  # the ground before its tint

SHAPES = {
    "disc": ("disc", "circle"),
    "square": ("square", "box"),
    "triangle": ("triangle",),
    "cross": ("cross", "plus"),
    "ring": ("ring", "hoop"),
    "star": ("star",),
}
SIZES = {"small": ("small", "little", "tiny"), "large": ("large", "big", "huge")}
RADIUS = {"small": 4, "large": 6}  # pixels
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
ROW_WORDS = {"top": ("top", "upper"), "bottom": ("bottom", "lower")}
RELATIONS = {
    "above": ("above", "over"),
    "below": ("below", "under"),
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
}
ARRANGEMENTS = {"one above the other": ("above", "below"), "side by side": ("left of", "right of")}
STYLES = {"plain": "", "picture": "a picture of ", "there": "there is ", "seen": "we see "}
BACKGROUNDS = {"neutral": (0, 0, 0), "warm": (7, 1, -6), "cool": (-6, 0, 7), "leafy": (-4, 6, -4)}
TEXTURES = ("plain", "stripes", "dots", "checks")
TEXTURE_DEPTH = 4  # of 255: deeper textures and tints swamp a self-supervised encoder
COUNTS = (1,) * 12 + (2,) * 7 + (3,)  # drawn evenly: .60, .35, .05

IMAGE_ONLY = ("background=", "texture=")  # prefixes of factors that no caption tells
TEXT_ONLY = ("style=",)  # prefixes of factors that no picture shows
BY_CAPTION = ("style=", "relation=")  # prefixes of factors that differ between the captions of one scene

FRAME_WORDS = ("a", "and", "at", "in", "is", "left", "of", "on", "picture", "right", "see", "the", "there")
FRAME_WORDS += ("things", "three", "to", "we", "above", "over", "below", "under")
SYNONYMS = [words for table in (SHAPES, SIZES, ROW_WORDS) for words in table.values()]
WORDS = tuple(sorted({*FRAME_WORDS, *COLOURS, *(word for words in SYNONYMS for word in words)}))
PUNCTUATION = (",", ":")


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


class Caption(NamedTuple):
    """A sentence about a scene and its own two factors; `relation` is None unless there are two things."""

    text: str
    style: str
    relation: str | None


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


@functools.lru_cache(2 * N_DEMO)  # every encoder of the demo asks for the same rows
def scene(row: int, seed: int = SEED) -> Scene:
    """The scene of a row: what it shows depends on the seed and the row alone."""
    dice = Dice(seed, row, 0)
    arrangement, positions = _places(dice)
    things = tuple(_thing(dice, position) for position in positions)
    return Scene(things, arrangement, dice.pick(list(BACKGROUNDS)), dice.pick(TEXTURES))


def _places(dice: Dice) -> tuple[str | None, list[str]]:
    count = dice.pick(COUNTS)
    if count != 2:
        return None, dice.order(POSITIONS)[:count]
    arrangement = dice.pick(list(ARRANGEMENTS))
    if arrangement == "side by side":
        row = dice.pick(("top", "bottom"))
        return arrangement, [f"{row} left", f"{row} right"]
    column = dice.pick(("left", "right"))
    return arrangement, [f"top {column}", f"bottom {column}"]


def _thing(dice: Dice, position: str) -> Thing:
    shape, colour, size = dice.pick(list(SHAPES)), dice.pick(list(COLOURS)), dice.pick(list(SIZES))
    shift = dice.pick((-1, 0, 1)), dice.pick((-1, 0, 1))
    return Thing(shape, colour, size, position, dice.pick(range(-12, 13)), shift)


def picture(row: int, seed: int = SEED) -> Image.Image:
    """The picture of a row: RGB, 32 x 32 pixels."""
    return Image.fromarray(pixels(row, seed))


@functools.lru_cache(2 * N_DEMO)
def pixels(row: int, seed: int = SEED) -> np.ndarray:
    """The picture of a row as bytes, [32, 32, 3]."""
    return draw(scene(row, seed))


def draw(scene: Scene) -> np.ndarray:
    """The pixels of a scene, [32, 32, 3] of uint8."""
    canvas = _ground(scene.background, scene.texture).copy()
    for thing in scene.things:
        (down, right), (row, column) = thing.shift, POSITIONS[thing.position]
        top, left = row * CELL + 1 + down, column * CELL + 1 + right
        under = canvas[top : top + BOX, left : left + BOX]
        coverage = _coverage(thing.shape, RADIUS[thing.size])
        full = FINE * FINE
        under[:] = (
            under * (full - coverage) + _paint(thing.colour, thing.shade) * coverage + full // 2
        ) // full
    return canvas.astype(np.uint8)


@functools.cache
def _paint(colour: str, shade: int) -> np.ndarray:
    return np.clip(np.array(COLOURS[colour]) + shade, 0, 255).astype(np.int32)


@functools.cache
def _ground(background: str, texture: str) -> np.ndarray:
    y, x = np.mgrid[:SIDE, :SIDE]
    light = {
        "plain": 0 * x,
        "stripes": np.where((x + y) % 6 < 3, TEXTURE_DEPTH, -TEXTURE_DEPTH),
        "dots": np.where((x % 4 < 2) & (y % 4 < 2), 2 * TEXTURE_DEPTH, 0),
        "checks": np.where((x // 4 + y // 4) % 2 == 0, TEXTURE_DEPTH, -TEXTURE_DEPTH),
    }[texture]
    return (GREY + light[..., None] + np.array(BACKGROUNDS[background])).astype(np.int32)


@functools.cache
def _coverage(shape: str, radius: int) -> np.ndarray:
    """How many of each pixel's FINE x FINE points lie in the shape, [14, 14, 1]; lengths in half points."""
    middle = np.arange(1 - BOX * FINE, BOX * FINE, 2)
    inside = _inside(shape, middle[None, :], middle[:, None], radius * 2 * FINE)
    return inside.reshape(BOX, FINE, BOX, FINE).sum(axis=(1, 3), dtype=np.int32)[..., None]


def _inside(shape: str, x: np.ndarray, y: np.ndarray, radius: int) -> np.ndarray:
    """Which points (x to the right, y downwards, integers) lie inside a shape of this radius."""
    square, reach = x * x + y * y, np.maximum(abs(x), abs(y))
    if shape == "disc":
        return square <= radius * radius
    if shape == "ring":
        return (square <= radius * radius) & (10 * square >= 3 * radius * radius)
    if shape == "square":
        return 8 * reach <= 7 * radius
    if shape == "cross":
        return (reach <= radius) & (3 * np.minimum(abs(x), abs(y)) <= radius)
    if shape == "triangle":
        return (2 * abs(x) <= y + radius) & (5 * y <= 4 * radius)
    # A point lies in a five-pointed star where at most one of the star's five lines has it on the outer side.
    tips = ((0, -1000), (951, -309), (588, 809), (-588, 809), (-951, -309))
    return np.sum([x * across + y * along > 309 * radius for across, along in tips], axis=0) <= 1


def captions(row: int, seed: int = SEED) -> list[str]:
    """The five captions of a row, each with a style, an order and synonyms of its own."""
    return [caption.text for caption in described(row, seed)]


@functools.lru_cache(2 * N_DEMO)
def described(row: int, seed: int = SEED) -> list[Caption]:
    """The five captions of a row with their factors."""
    shown = scene(row, seed)
    return [_caption(shown, Dice(seed, row, purpose)) for purpose in range(1, 6)]


def _caption(shown: Scene, dice: Dice) -> Caption:
    style = dice.pick(list(STYLES))
    if shown.arrangement is None:
        return Caption(STYLES[style] + _list(shown, dice), style, None)
    text, relation = _pair(shown.things, shown.arrangement, dice)
    return Caption(STYLES[style] + text, style, relation)


def _list(shown: Scene, dice: Dice) -> str:
    if len(shown.things) == 1:
        row, column = shown.things[0].position.split()
        where = f"{dice.pick(('at', 'in'))} the {dice.pick(ROW_WORDS[row])} {column}"
        return f"{_name(shown.things[0], dice)} {where}"
    first, second, third = (_name(thing, dice) for thing in dice.order(shown.things))
    return f"three things: {first}, {second} and {third}"


def _pair(things: tuple[Thing, ...], arrangement: str, dice: Dice) -> tuple[str, str]:
    relation = dice.pick(ARRANGEMENTS[arrangement])
    ordered = things if relation in ("above", "left of") else things[::-1]
    first, second = (_name(thing, dice) for thing in ordered)
    row, column = things[0].position.split()
    where = f"at the {row}" if arrangement == "side by side" else f"on the {column}"
    return f"{first} {dice.pick(RELATIONS[relation])} {second} {where}", relation


def _name(thing: Thing, dice: Dice) -> str:
    return f"a {dice.pick(SIZES[thing.size])} {thing.colour} {dice.pick(SHAPES[thing.shape])}"


def factors(row: int, caption: int = 0, seed: int = SEED) -> dict[str, bool]:
    """The planted factors of a row, and of one of its five captions, in the same order for every row.

    `shape=`, `colour=`, `size=` and `position=` say that some thing of the scene is so; `count=`,
    `arrangement=`, `background=` and `texture=` are of the scene; `relation=` (how the thing named first
    stands to the other) and `style=` are of the caption.
    """
    shown, told = scene(row, seed), described(row, seed)[caption]
    planted = {
        "shape": (SHAPES, {thing.shape for thing in shown.things}),
        "colour": (COLOURS, {thing.colour for thing in shown.things}),
        "size": (SIZES, {thing.size for thing in shown.things}),
        "position": (POSITIONS, {thing.position for thing in shown.things}),
        "count": ((1, 2, 3), {len(shown.things)}),
        "arrangement": (ARRANGEMENTS, {shown.arrangement}),
        "background": (BACKGROUNDS, {shown.background}),
        "texture": (TEXTURES, {shown.texture}),
        "relation": (RELATIONS, {told.relation}),
        "style": (STYLES, {told.style}),
    }
    return {f"{group}={value}": value in true for group, (all_, true) in planted.items() for value in all_}
