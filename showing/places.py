"""Where in a picture a feature fires: what the page draws over the samples."""

from collections.abc import Mapping
from typing import NamedTuple


class Places(NamedTuple):
    """By feature, then row: base64 of a uint8 grid [side, side], shares of the feature's maximum; `words` say what
    the page shows."""

    grids: Mapping[int, Mapping[int, str]]
    side: int
    words: str
