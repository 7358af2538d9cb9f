"""The picture of a scene, drawn on integers alone, so that it is the same on every machine."""

import functools

import numpy as np

from toyworld.things import BACKGROUNDS, COLOURS, POSITIONS, Scene

SIDE, CELL, BOX = 32, 16, 14  # pixels: the picture, a quadrant, and the box that a thing fills in it
FINE = 4  # a pixel's coverage is counted on FINE x FINE points
GREY = 112  # the ground before its tint
RADIUS = {"small": 4, "large": 6}  # pixels
TEXTURE_DEPTH = 4  # of 255: deeper textures and tints swamp a self-supervised encoder


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
