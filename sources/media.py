"""Decode pictures (to upright RGB) and sounds (to mono float32)."""

import io
import math
import struct
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from PIL import Image, ImageFile, PngImagePlugin, UnidentifiedImageError

from sources.opened import BROKEN

if TYPE_CHECKING:
    import numpy as np

# PIL warns of pictures above 89 million pixels and refuses them above 179; `decode` has its own, wider line.
Image.MAX_IMAGE_PIXELS = None

# It refuses a PNG with more than a megabyte of text or colour profile, neither of which is looked at here.
vars(PngImagePlugin).update(MAX_TEXT_CHUNK=2**26, MAX_TEXT_MEMORY=2**28)  # bytes

MOST_PIXELS = 2**29  # 20,000 x 20,000 px fits; decoding it takes 2 GB

REDUCE_PIXELS = 2**26  # a larger picture is averaged down to below this: encoders see a few hundred px a side

MOST_RATIO = 100  # of the sides: what scales the shorter one to 512 px then holds 26 million pixels at most

ORIENTATION = 274  # the tag of EXIF that says how the camera was held

# The flip or quarter turn that undoes orientation 2, 3, … 8.
UPRIGHT = {tag: Image.Transpose(turn) for tag, turn in enumerate((0, 3, 1, 5, 4, 6, 2), 2)}

# PIL's names for the byte order of 16-bit colours (the high byte first, the low one, the machine's), and the opposite.
OPPOSITE = {"16B": "16L", "16L": "16B", "16N": "16B" if sys.byteorder == "little" else "16L"}


class Sound(NamedTuple):
    """A mono recording, float32 [frame] in -1..1, and its sampling rate in Hz."""

    frames: "np.ndarray"
    rate: int


def decode(content: bytes | Image.Image, least: int | None = None) -> Image.Image:
    """A file's bytes, or a picture, as an upright RGB picture; of an animation, the first frame.

    Transparent pixels are shown on white, 16 bits are scaled to 8, EXIF orientation is applied, and the
    sides of what has more than REDUCE_PIXELS, or is longer than MOST_RATIO times its width, are averaged down.
    With `least`, a JPEG may come out smaller, but with its longer side at least so many pixels.
    Errors: one of BROKEN where it is no whole picture.
    """
    picture = _open_picture(content) if isinstance(content, bytes) else content
    if picture.width * picture.height > MOST_PIXELS:
        raise ValueError(f"{picture.width} x {picture.height} px is over the limit of {MOST_PIXELS:,} pixels")
    low = _low_bytes(picture) if isinstance(content, bytes) else []
    if least is not None:
        _draft(picture, least)
    picture.load()
    if low and isinstance(content, bytes) and not picture.getbbox(alpha_only=False):
        picture = _open_picture(content)
        picture.tile = low
    return _reduced(_on_white(_eight_bit(_upright(picture))))


def _draft(picture: Image.Image, least: int):
    """Let a JPEG be decoded at a half, a quarter or an eighth of its size, which takes a fraction of the time.

    It comes before `load` and before EXIF turns the picture: both sides are those of the file.
    """
    share = least / max(picture.size)
    if share < 1:
        width, height = picture.size
        picture.draft(None, (math.ceil(width * share), math.ceil(height * share)))


def _low_bytes(picture: Image.Image) -> list[ImageFile._Tile]:
    """What makes PIL read the lower byte of each 16-bit colour; empty for other pictures.

    PIL reads the higher one, and a file of 16 bits that holds 8-bit values would be black.
    """
    swapped = []
    for tile in getattr(picture, "tile", ()):
        first, *rest = tile.args if isinstance(tile.args, tuple) else (tile.args,)
        mode, _, order = str(first).partition(";")
        if mode not in ("RGB", "RGBA", "RGBX") or order not in OPPOSITE:
            return []
        raw = f"{mode};{OPPOSITE[order]}"
        swapped.append(tile._replace(args=(raw, *rest) if rest else raw))
    return swapped


def _upright(picture: Image.Image) -> Image.Image:
    """Turned as EXIF's orientation says, whatever else is in there; what cannot be read turns nothing."""
    try:
        turn = UPRIGHT.get(_orientation(picture) or 0)
    except BROKEN:
        turn = None
    return picture if turn is None else picture.transpose(turn)


def _orientation(picture: Image.Image) -> int | None:
    """EXIF's tag 274, read from the entries of 12 bytes (tag, type, count, value): PIL stops at a damaged entry."""
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
    """Averaged down, so that it does not fill the memory, here or where an encoder scales the shorter side up.

    20,000 x 1 px would there become 4,480,000 x 224.
    """
    both = math.ceil(math.sqrt(picture.width * picture.height / REDUCE_PIXELS))
    longest = MOST_RATIO * min(picture.size)
    factors = max(both, math.ceil(picture.width / longest)), max(both, math.ceil(picture.height / longest))
    return picture.reduce(factors) if max(factors) > 1 else picture


def _open_picture(content: bytes) -> ImageFile.ImageFile:
    if not content:
        raise ValueError("the file is empty")
    try:
        return Image.open(io.BytesIO(content))
    except UnidentifiedImageError as why:  # PIL's own message names a memory address, another each time
        raise ValueError("not a picture in a format that PIL knows") from why


def _eight_bit(picture: Image.Image) -> Image.Image:
    """16-bit grey as 8-bit grey: 65535 becomes 255, where PIL would clip everything above 255.

    Where no value is above 255 (or 4095), the file holds 8-bit (or 12-bit) grey, and it is that value which
    becomes 255: the picture would be all but black.
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


def decode_sound(content: bytes) -> Sound:
    """A sound file's bytes as a recording, its channels averaged. Errors: one of BROKEN where it is not whole."""
    import soundfile

    riff_bytes = int.from_bytes(content[4:8], "little") + 8
    # soundfile would return the part that is there
    if content[:4] == b"RIFF" and len(content) < riff_bytes < 2**32 - 1:
        raise ValueError(f"the file is cut short: {len(content)} of {riff_bytes} bytes")
    with soundfile.SoundFile(io.BytesIO(content)) as sound:
        frames = sound.read(dtype="float32", always_2d=True)
        if not 0 < len(frames) == sound.frames:
            raise ValueError(f"the file is cut short: {len(frames)} of {sound.frames} frames")
        return Sound(frames.mean(axis=1), sound.samplerate)


DECODERS: dict[str, Callable[[Any], Image.Image | Sound]] = {"image": decode, "audio": decode_sound}
