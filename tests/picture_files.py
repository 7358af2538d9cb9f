"""Odd picture files, each with the RGB pixels that a reader must see, or None where nobody could."""

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

ORIENTATION = 0x0112  # the EXIF tag
WIDTH, HEIGHT = 24, 16


def pixels(seed: int, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """Random RGB pixels [height, width, 3]: not the same after any wrong turn, flip or swap of channels."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(picture: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    """A picture as the bytes of a file."""
    file = io.BytesIO()
    picture.save(file, format, **options)
    return file.getvalue()


def grey(format: str) -> tuple[bytes, np.ndarray]:
    values = pixels(1)[..., 0]
    return encoded(Image.fromarray(values), format), np.stack([values] * 3, axis=-1)


def grey_of_16_bits(format: str) -> tuple[bytes, np.ndarray]:
    """Grey values 0, 257, 514, … 65535 are the 8-bit values 0, 1, 2, … 255 exactly."""
    values = np.arange(WIDTH * HEIGHT).reshape(HEIGHT, WIDTH) % 256
    picture = Image.fromarray((values * 257).astype(np.uint16))
    return encoded(picture, format), np.stack([values] * 3, axis=-1).astype(np.uint8)


def palette_with_transparency() -> tuple[bytes, np.ndarray]:
    """A red left half, and a right half whose colour is green and fully transparent: it shows white."""
    picture = Image.new("P", (WIDTH, HEIGHT), 0)
    picture.putpalette([255, 0, 0, 0, 255, 0])
    picture.paste(1, (WIDTH // 2, 0, WIDTH, HEIGHT))
    seen = np.full((HEIGHT, WIDTH, 3), 255, np.uint8)
    seen[:, : WIDTH // 2] = (255, 0, 0)
    return encoded(picture, transparency=1), seen


def half_transparent() -> tuple[bytes, np.ndarray]:
    """Black at alpha 102 of 255 on white is 255 - 102 = 153."""
    picture = Image.new("RGBA", (WIDTH, HEIGHT), (0, 0, 0, 102))
    return encoded(picture), np.full((HEIGHT, WIDTH, 3), 153, np.uint8)


def cmyk() -> tuple[bytes, np.ndarray]:
    """No ink but all of cyan: red 0, green and blue 255."""
    picture = Image.new("CMYK", (WIDTH, HEIGHT), (255, 0, 0, 0))
    return encoded(picture, "TIFF"), np.full((HEIGHT, WIDTH, 3), (0, 255, 255), np.uint8)


def rotated(orientation: int, turn: Callable[[np.ndarray], np.ndarray]) -> tuple[bytes, np.ndarray]:
    """Stored as the camera held it, with the EXIF tag; `turn` makes the stored pixels upright."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return encoded(Image.fromarray(pixels(2)), exif=exif), turn(pixels(2))


def turned_with_an_odd_tag(tag: int, kind: int, count: int, format: str) -> tuple[bytes, np.ndarray]:
    """A quarter turn in tag 274, beside a tag of a type, or at a place beyond the end, that it may not have."""
    tags = sorted([(tag, kind, count, struct.pack("<f", 1.5)), (ORIENTATION, 3, 1, struct.pack("<HH", 6, 0))])
    entries = b"".join(struct.pack("<HHI", *entry[:3]) + entry[3] for entry in tags)
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)
    stored = np.full((HEIGHT, WIDTH, 3), 255, np.uint8)
    stored[:, : WIDTH // 2] = 0
    return encoded(Image.fromarray(stored), format, exif=exif, lossless=True, quality=100), np.rot90(
        stored, -1
    )


def long(turn: Callable[[np.ndarray], np.ndarray]) -> tuple[bytes, np.ndarray]:
    """20,000 x 2 px, every 100 of them alike: they become one, since encoders scale the shorter side up."""
    seen = pixels(3, 200, 2)
    return encoded(Image.fromarray(turn(np.repeat(seen, 100, axis=1)))), turn(seen)


def grey_in_more_bits(kind: type, white: int, format: str) -> tuple[bytes, np.ndarray]:
    """Grey whose brightest value is `white`, in a file that could hold more."""
    values = np.arange(WIDTH * HEIGHT).reshape(HEIGHT, WIDTH) % (white + 1)
    values[0, 0] = white
    seen = np.round(values / white * 255).astype(np.uint8)
    return encoded(Image.fromarray(values.astype(kind)), format), np.stack([seen] * 3, axis=-1)


def colours_of_8_bits_in_16(alpha: bool) -> tuple[bytes, np.ndarray]:
    """A PNG written by hand (PIL writes none of 16-bit colours): header, one block of rows, end."""
    seen = pixels(10)
    values = np.dstack([seen, np.full((HEIGHT, WIDTH, 1), 255)]) if alpha else seen
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, 16, 6 if alpha else 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    written = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(written), seen


def tiff_of_8_bits_in_16(order: str, compressed: bool) -> tuple[bytes, np.ndarray]:
    """A TIFF written by hand: header, one strip of rows, the bits of the three colours, and the directory of tags."""
    seen = pixels(10)
    rows = seen.astype(f"{order}u2").tobytes()
    rows = zlib.compress(rows) if compressed else rows
    bits = len(rows) + 8
    values = {256: WIDTH, 257: HEIGHT, 258: bits, 259: 8 if compressed else 1, 262: 2, 273: 8}
    values |= {277: 3, 278: HEIGHT, 279: len(rows)}
    entries = b"".join(
        struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in values.items() if tag != 258
    )
    entry = struct.pack(f"{order}HHII", 258, 3, 3, bits)
    entries = entries[:24] + entry + entries[24:]
    header = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, bits + 6)
    directory = struct.pack(f"{order}H", len(values)) + entries + bytes(4)
    return header + rows + struct.pack(f"{order}HHH", 16, 16, 16) + directory, seen


def with_long_texts() -> tuple[bytes, np.ndarray]:
    texts = PngImagePlugin.PngInfo()
    texts.add_text("prompt", "x" * 3_000_000, zip=True)
    texts.add_itxt("workflow", "y" * 3_000_000)
    seen = pixels(9)
    return encoded(Image.fromarray(seen), pnginfo=texts, icc_profile=b"z" * 3_000_000), seen


def animated(format: str) -> tuple[bytes, np.ndarray]:
    """Three frames, the first of them all blue."""
    frames = [Image.new("RGB", (WIDTH, HEIGHT), colour) for colour in ("blue", "red", "lime")]
    options = {"lossless": True} if format == "WEBP" else {}
    content = encoded(frames[0], format, save_all=True, append_images=frames[1:], **options)
    return content, np.full((HEIGHT, WIDTH, 3), (0, 0, 255), np.uint8)


def plain(width: int, height: int) -> tuple[bytes, np.ndarray]:
    seen = pixels(3, width, height)
    return encoded(Image.fromarray(seen)), seen


def black_and_white() -> tuple[bytes, np.ndarray]:
    values = pixels(4)[..., 0] > 127
    return encoded(Image.fromarray(values)), np.stack([values * np.uint8(255)] * 3, axis=-1)


# Name: (file name, bytes, RGB pixels [height, width, 3])
READABLE = {
    "plain": ("plain.png", *plain(WIDTH, HEIGHT)),
    "1 x 1": ("one.png", *plain(1, 1)),
    "20,000 px wide": ("long.png", *long(lambda stored: stored)),
    "20,000 px high": ("high.png", *long(lambda stored: stored.swapaxes(0, 1))),
    "long texts": ("texts.png", *with_long_texts()),
    "grey": ("grey.png", *grey("PNG")),
    "1 bit": ("bit.png", *black_and_white()),
    "16-bit png": ("deep.png", *grey_of_16_bits("PNG")),
    "16-bit tiff": ("deep.tif", *grey_of_16_bits("TIFF")),
    "16-bit pgm": ("deep.pgm", *grey_of_16_bits("PPM")),
    "8 bits in 16": ("eight.png", *grey_in_more_bits(np.uint16, 255, "PNG")),
    "12 bits in 16": ("twelve.png", *grey_in_more_bits(np.uint16, 4095, "PNG")),
    "8 bits in 32": ("eight.tif", *grey_in_more_bits(np.int32, 255, "TIFF")),
    "colours, 8 bits in 16": ("rgb.png", *colours_of_8_bits_in_16(False)),
    "colours and alpha, 8 bits in 16": ("rgba.png", *colours_of_8_bits_in_16(True)),
    "tiff of colours, 8 bits in 16": ("rgb.tif", *tiff_of_8_bits_in_16("<", False)),
    "the same, the high byte first": ("bytes.tif", *tiff_of_8_bits_in_16(">", False)),
    "the same, compressed": ("zip.tif", *tiff_of_8_bits_in_16("<", True)),
    "the same, the high byte first, compressed": ("bytes_zip.tif", *tiff_of_8_bits_in_16(">", True)),
    "black": ("black.png", encoded(Image.new("L", (2, 2))), np.zeros((2, 2, 3), np.uint8)),
    "palette with transparency": ("palette.png", *palette_with_transparency()),
    "half transparent": ("alpha.png", *half_transparent()),
    "cmyk": ("cmyk.tif", *cmyk()),
    "turned right": ("turned6.png", *rotated(6, lambda stored: np.rot90(stored, -1))),
    "turned left": ("turned8.png", *rotated(8, lambda stored: np.rot90(stored, 1))),
    "mirrored": ("turned2.png", *rotated(2, lambda stored: stored[:, ::-1])),
    "odd tag": ("odd270.jpg", *turned_with_an_odd_tag(270, 11, 1, "JPEG")),
    "odd tag beyond the end": ("odd271.webp", *turned_with_an_odd_tag(271, 2, 1000, "WEBP")),
    "odd tag of a camera": ("odd34665.png", *turned_with_an_odd_tag(34665, 4, 1, "PNG")),
    "animated gif": ("moving.gif", *animated("GIF")),
    "animated webp": ("moving.webp", *animated("WEBP")),
    "animated png": ("moving.png", *animated("PNG")),
    "misnamed": ("really_a_png.jpg", *plain(WIDTH, HEIGHT)),
}


def truncated() -> bytes:
    content = encoded(Image.fromarray(pixels(5, 64, 64)), "JPEG")
    return content[: len(content) // 2]


def floating_point() -> bytes:
    return encoded(Image.fromarray(pixels(6)[..., 0].astype(np.float32)), "TIFF")


# Name: (file name, bytes, what the one line says of it)
UNREADABLE = {
    "truncated jpeg": ("cut.jpg", truncated(), "truncated"),
    "truncated png": ("cut.png", encoded(Image.fromarray(pixels(7)))[:-300], "truncated"),
    "truncated webp": (
        "cut.webp",
        encoded(Image.fromarray(pixels(8)), "WEBP", lossless=True)[:-300],
        "decoder",
    ),
    "zero bytes": ("empty.png", b"", "the file is empty"),
    "text": ("page.jpg", b"<html>404</html>", "not a picture in a format that PIL knows"),
    "floating point": ("float.tif", floating_point(), "floating-point grey values have no known range"),
}
