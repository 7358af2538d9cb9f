"""Turn one item into tensors, and say which tokens of a batch count."""

import re
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor

Sound = tuple[Float[np.ndarray, " _"], int]  # mono, in -1..1, and its sampling rate in Hz

Item = Image.Image | str | Sound  # a picture, a caption or a sound

Inputs = dict[str, Tensor]  # one item's tensors, or a batch's: the names are those of the model's arguments


def transformed(transform: Callable[[Image.Image], Tensor], picture: Image.Image) -> Inputs:
    """One picture through a torchvision transform."""
    return {"pixel_values": transform(picture.convert("RGB"))}


def words(padding: int, batch: Inputs) -> Bool[Tensor, "sample token"]:
    """True at every token that is not padding."""
    return batch["input_ids"] != padding


def words_and_last(padding: int, batch: Inputs) -> Bool[Tensor, "sample token"]:
    """True at every token that is not padding, and at the last, which the model pools."""
    mask = words(padding, batch)
    mask[:, -1] = True
    return mask


def words_and_one_more(padding: int, batch: Inputs) -> Bool[Tensor, "sample token"]:
    """True at every token that is not padding, and at the one that the model appends."""
    return torch.nn.functional.pad(words(padding, batch), (0, 1), value=True)


def as_text(special: list[str], caption: str) -> str:
    """Put a space into special tokens that a caption spells out ("[SEP]"), so that they are read as text."""
    names = [re.escape(token) for token in special if len(token) > 2 and token.lower() in caption.lower()]
    if not names:
        return caption
    return re.sub(
        "|".join(names), lambda found: f"{found[0][0]} {found[0][1:]}", caption, flags=re.IGNORECASE
    )


def sample_item(modality: str, short: bool = False) -> Item:
    """One item to try an encoder on: a picture of shades, a caption, or a second of a tone at 48 kHz."""
    if modality == "text":
        return "A dog." if short else "Two cats asleep on a pink couch."
    if modality == "audio":
        pitch, length = (660, 24_000) if short else (440, 48_000)
        return np.sin(np.arange(length, dtype=np.float32) * (2 * np.pi * pitch / 48_000)), 48_000
    shades = [Image.radial_gradient("L"), Image.linear_gradient("L"), Image.new("L", (256, 256))]
    return Image.merge("RGB", shades[::-1] if short else shades)
