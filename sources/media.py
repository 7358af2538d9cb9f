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

# PIL warns above 89 million pixels and refuses above 179 million; `decode` allows MOST_PIXELS instead.
Image.MAX_IMAGE_PIXELS = None

# PIL refuses a PNG with over a megabyte of text or colour profile, which we do not use.
vars(PngImagePlugin).update(MAX_TEXT_CHUNK=2**26, MAX_TEXT_MEMORY=2**28)  # bytes

MOST_PIXELS = 2**29  # 20,000 x 20,000 px fits; decoding it takes 2 GB

REDUCE_PIXELS = 2**26  # a larger picture is averaged down to below this: encoders see a few hundred px a side

# The longer side to the shorter. Where an encoder scales the shorter to 512 px, that is 26 million pixels at most.
MOST_RATIO = 100

ORIENTATION = 274  # EXIF's tag of how the camera was held

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

    Transparency is shown on white, 16 bits are scaled to 8, and EXIF orientation is applied. A picture of over
    REDUCE_PIXELS, or with sides further apart than MOST_RATIO, is averaged down.
    With `least`, a JPEG may come out smaller, its longer side at least `least` pixels.
    Errors: one of BROKEN where the content is damaged, cut short or no picture, or is over MOST_PIXELS.
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
    """Let PIL decode a JPEG at a half, a quarter or an eighth of its size, which takes a fraction of the time.

    Call it before `load`, and before the picture is turned upright.
    """
    share = least / max(picture.size)
    if share < 1:
        width, height = picture.size
        picture.draft(None, (math.ceil(width * share), math.ceil(height * share)))


def _low_bytes(picture: Image.Image) -> list[ImageFile._Tile]:
    """PIL tiles that read the lower byte of each 16-bit colour; empty for other pictures.

    PIL reads the higher byte, so that a 16-bit file that holds 8-bit values would come out black.
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
    """The picture turned as EXIF's orientation says; damaged EXIF turns nothing."""
    try:
        turn = UPRIGHT.get(_orientation(picture) or 0)
    except BROKEN:
        turn = None
    return picture if turn is None else picture.transpose(turn)


def _orientation(picture: Image.Image) -> int | None:
    """EXIF's tag 274, read from its 12-byte entries (tag, type, count, value), since PIL stops at a damaged one."""
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
    """The picture averaged down by whole factors to at most REDUCE_PIXELS, and sides at most MOST_RATIO apart.

    A thin picture would fill the memory: an encoder that scales the shorter side to 224 px would make
    4,480,000 x 224 px of 20,000 x 1.
    """
    both = math.ceil(math.sqrt(picture.width * picture.height / REDUCE_PIXELS))
    longest = MOST_RATIO * min(picture.size)
    factors = max(both, math.ceil(picture.width / longest)), max(both, math.ceil(picture.height / longest))
    return picture.reduce(factors) if max(factors) > 1 else picture


def _open_picture(content: bytes) -> ImageFile.ImageFile:
    """The file's header read, its pixels not yet. ValueError: empty, or no format that PIL knows."""
    if not content:
        raise ValueError("the file is empty")
    try:
        return Image.open(io.BytesIO(content))
    except UnidentifiedImageError as why:  # PIL's message holds a memory address, which differs at each call
        raise ValueError("not a picture in a format that PIL knows") from why


def _eight_bit(picture: Image.Image) -> Image.Image:
    """16-bit grey as 8-bit grey, scaled so that white becomes 255; PIL would clip everything above 255.

    White is 65535, or 4095 or 255 where no value is above it: such a file holds 12-bit or 8-bit grey, and would
    come out nearly black. ValueError: grey values without a known range.
    """
    if picture.mode == "F":
        raise ValueError("its floating-point grey values have no known range; save it with 8 or 16 bits")
    if not picture.mode.startswith("I"):
        return picture
    import numpy as np  # only here: its import alone takes as long as `--help` may take

    grey = np.asarray(picture)
    if grey.min() < 0 or grey.max() > 65535:
        raise ValueError("its 32-bit grey values have no known range; save it with 8 or 16 bits")
    white = next(white for white in (255, 4095, 65535) if grey.max() <= white)
    return Image.fromarray(((grey.astype(np.uint32) * 255 + white // 2) // white).astype(np.uint8))


def _on_white(picture: Image.Image) -> Image.Image:
    """The picture as RGB, transparent pixels blended with white."""
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    picture = picture.convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(white, picture).convert("RGB")


def decode_sound(content: bytes) -> Sound:
    """A sound file's bytes as a mono recording: channels are averaged. Errors: one of BROKEN where it is damaged."""
    import soundfile

    riff_bytes = int.from_bytes(content[4:8], "little") + 8
    # soundfile would return what is left of a cut file without a word
    if content[:4] == b"RIFF" and len(content) < riff_bytes < 2**32 - 1:
        raise ValueError(f"the file is cut short: {len(content)} of {riff_bytes} bytes")
    with soundfile.SoundFile(io.BytesIO(content)) as sound:
        frames = sound.read(dtype="float32", always_2d=True)
        if not 0 < len(frames) == sound.frames:
            raise ValueError(f"the file is cut short: {len(frames)} of {sound.frames} frames")
        return Sound(frames.mean(axis=1), sound.samplerate)


DECODERS: dict[str, Callable[[Any], Image.Image | Sound]] = {"image": decode, "audio": decode_sound}
