"""Decode pictures (to upright RGB) and sounds (to mono float32)."""

import io
import math
import struct
from typing import Any

from PIL import Image, PngImagePlugin, UnidentifiedImageError

from sources.opened import BROKEN, SOUNDS, Sample

# PIL warns of pictures above 89 million pixels and refuses them above 179; `decode` has its own, wider line.
Image.MAX_IMAGE_PIXELS = None

# It refuses a PNG for a megabyte of text or of colour profile, neither of which is looked at here.
PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY = 2**26, 2**28

MOST_PIXELS = 2**29  # 20,000 x 20,000 px fits; decoding it takes 2 GB

REDUCE_PIXELS = (
    2**26
)  # a larger picture is box-averaged to below this: encoders look at a few hundred px a side

MOST_RATIO = 100  # of the sides: what scales the shorter one to 512 px then holds 26 million pixels at most

ORIENTATION = 274  # the tag of EXIF that says how the camera was held

UPRIGHT = dict(
    zip(range(2, 9), [Image.Transpose(turn) for turn in (0, 3, 1, 5, 4, 6, 2)], strict=True)
)  # flips and quarter turns

DEEP = ("RGB;16B", "RGBA;16B")  # PIL's names for 16-bit colours, the high byte first


def _side(sample: Sample) -> str:
    return "audio" if sample.file.lower().endswith(SOUNDS) else "image"


def decode(content: Any) -> Image.Image:
    """A file's bytes, or a picture, as an upright RGB picture; of an animation, the first frame.

    Transparent pixels are shown on white, 16 bits are scaled to 8, EXIF orientation is applied, and the
    sides of what has more than REDUCE_PIXELS, or is longer than MOST_RATIO times its width, are averaged down.
    Errors: one of BROKEN where it is no whole picture.
    """
    picture = _open_picture(content) if isinstance(content, bytes) else content
    if picture.width * picture.height > MOST_PIXELS:
        raise ValueError(f"{picture.width} x {picture.height} px is over the limit of {MOST_PIXELS:,} pixels")
    deep = isinstance(content, bytes) and any(tile.args in DEEP for tile in getattr(picture, "tile", ()))
    picture.load()
    if deep and not any(highest for _, highest in picture.getextrema()):
        picture = _low_bytes(content)
    return _reduced(_on_white(_eight_bit(_upright(picture))))


def _low_bytes(content: bytes) -> Image.Image:
    """A PNG of 16-bit colours that holds values of 8 bits: of the two bytes of each, PIL takes the higher one."""
    picture = _open_picture(content)
    picture.tile = [tile._replace(args=tile.args.replace("16B", "16L")) for tile in picture.tile]
    return picture


def _upright(picture: Image.Image) -> Image.Image:
    """Turned as EXIF's orientation says, whatever else is in there; what cannot be read turns nothing."""
    try:
        turn = UPRIGHT.get(_orientation(picture))
    except BROKEN:
        turn = None
    return picture if turn is None else picture.transpose(turn)


def _orientation(picture: Image.Image) -> int | None:
    """Tag 274 alone, from the directory's entries of 12 bytes (tag, type, count, value): PIL stops at odd ones."""
    exif = picture.info.get("exif")
    if not isinstance(exif, bytes):
        return picture.getexif().get(ORIENTATION)
    exif = exif.removeprefix(b"Exif\0\0")
    order = "<" if exif[:2] == b"II" else ">"
    (start,) = struct.unpack_from(f"{order}I", exif, 4)
    (count,) = struct.unpack_from(f"{order}H", exif, start)
    for entry in range(start + 2, start + 2 + 12 * count, 12):
        tag, kind = struct.unpack_from(f"{order}HH", exif, entry)
        if tag == ORIENTATION:
            return struct.unpack_from(order + ("H" if kind == 3 else "I"), exif, entry + 8)[0]
    return None


def _reduced(picture: Image.Image) -> Image.Image:
    """Averaged down, so that neither the picture nor what encoders make of a thin one fills the memory.

    Many encoders scale the shorter side to theirs: 20,000 x 1 px would become 4,480,000 x 224.
    """
    both = math.ceil(math.sqrt(picture.width * picture.height / REDUCE_PIXELS))
    longest = MOST_RATIO * min(picture.size)
    factors = tuple(max(both, math.ceil(side / longest)) for side in picture.size)
    return picture.reduce(factors) if max(factors) > 1 else picture


def _open_picture(content: bytes) -> Image.Image:
    if not content:
        raise ValueError("the file is empty")
    try:
        return Image.open(io.BytesIO(content))
    except UnidentifiedImageError as why:  # PIL's own message names a memory address, another each time
        raise ValueError("not a picture in a format that PIL knows") from why


def _eight_bit(picture: Image.Image) -> Image.Image:
    """Grey of 16 bits as grey of 8: 65535 becomes 255. PIL itself would clip everything above 255.

    Where no value is above 255 or 4095, grey of 8 or 12 bits was stored in 16, and that becomes 255: it would
    be all but black.
    """
    if picture.mode == "F":
        raise ValueError("its floating-point grey values have no known range; save it with 8 or 16 bits")
    if not picture.mode.startswith("I"):
        return picture
    import numpy as np  # here, since importing it takes as long as all of `--help` may

    grey = np.asarray(picture)
    if grey.min() < 0 or grey.max() > 65535:
        raise ValueError("its 32-bit grey values have no known range; save it with 8 or 16 bits")
    white = next(white for white in (255, 4095, 65535) if grey.max() <= white)
    return Image.fromarray(((grey.astype(np.uint32) * 255 + white // 2) // white).astype(np.uint8))


def _on_white(picture: Image.Image) -> Image.Image:
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    picture = picture.convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(white, picture).convert("RGB")


def decode_sound(content: bytes) -> tuple[Any, int]:
    """A sound file's bytes as a mono float32 array [frame], channels averaged, and its sampling rate in Hz.

    Errors: one of BROKEN where the bytes are no whole sound file.
    """
    import soundfile

    riff_bytes = int.from_bytes(content[4:8], "little") + 8
    if (
        content[:4] == b"RIFF" and len(content) < riff_bytes < 2**32 - 1
    ):  # soundfile would return what is there
        raise ValueError(f"the file is cut short: {len(content)} of {riff_bytes} bytes")
    with soundfile.SoundFile(io.BytesIO(content)) as sound:
        frames = sound.read(dtype="float32", always_2d=True)
        if not 0 < len(frames) == sound.frames:
            raise ValueError(f"the file is cut short: {len(frames)} of {sound.frames} frames")
        return frames.mean(axis=1), sound.samplerate


DECODERS = {"image": decode, "audio": decode_sound}
