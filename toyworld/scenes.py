"""Scenes: pictures and captions drawn from a seed, whose factors are known because they were planted.

A picture holds one to three things on a faintly tinted, faintly textured ground; five captions tell the
things and where they stand. The ground is in the picture only, the style of a caption in the caption only,
and everything else in both, so which concepts an image and a text encoder can share is known beforehand.

The same on every machine: of numpy's random numbers only the raw words of Philox are used, whose stream numpy
promises to keep, and all arithmetic from there to the pixels is on integers.
"""

import functools

import numpy as np
from PIL import Image

from toyworld.drawing import draw
from toyworld.telling import RELATIONS, STYLES, Caption, caption_of
from toyworld.things import (
    ARRANGEMENTS,
    BACKGROUNDS,
    COLOURS,
    POSITIONS,
    SHAPES,
    SIZES,
    TEXTURES,
    Dice,
    Scene,
    Thing,
)

N_DEMO = 10_000  # evaluation pairs; no encoder of the demo was trained on any of them
SEED = 2507
TRAINING_SEED = 18512  # another stream: what the encoders of the demo are trained on

COUNTS = (1,) * 12 + (2,) * 7 + (3,)  # drawn evenly: .60, .35, .05

IMAGE_ONLY = ("background=", "texture=")  # prefixes of factors that no caption tells
TEXT_ONLY = ("style=",)  # prefixes of factors that no picture shows
BY_CAPTION = ("style=", "relation=")  # prefixes of factors that differ between the captions of one scene


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


def captions(row: int, seed: int = SEED) -> list[str]:
    """The five captions of a row, each with a style, an order and synonyms of its own."""
    return [caption.text for caption in described(row, seed)]


@functools.lru_cache(2 * N_DEMO)
def described(row: int, seed: int = SEED) -> list[Caption]:
    """The five captions of a row with their factors."""
    shown = scene(row, seed)
    return [caption_of(shown, Dice(seed, row, purpose)) for purpose in range(1, 6)]


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
