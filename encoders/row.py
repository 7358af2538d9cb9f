"""A row of the registry of encoders. Nothing here needs torch, which takes seconds to import."""

from typing import NamedTuple, TypedDict

PRECISIONS = ("float32", "bfloat16", "float16")  # of an encoder's arithmetic


class Row(NamedTuple):
    """One line of the registry; what it leaves empty of `blocks` and `token` is asked of the model."""

    modality: str  # "image", "text" or "audio"
    loader: str  # FILE.FUNCTION of encoders/: (checkpoint, row, seed) -> Parts
    checkpoint: str = ""  # the default; empty: the user must name one
    blocks: str = ""  # dotted path of the list of modules to hook
    token: str = ""  # what is recorded of a sample: a key of wrapper.TOKENS, or "mean"
    flag: str = ""  # the family's own spelling of --checkpoint
    types: tuple[str, ...] = ()  # the transformers model types that belong here; empty: any
    checkpoints: tuple[str, ...] = ()  # the paper's, by their exact spelling
    note: str = ""
    expansion_factor: int = 8
    top_k: int = 32
    random_weights: int | None = None  # a seed: draw the weights instead of loading them


class Asked(TypedDict):
    """What was asked of `wrappedmodels.load` besides the checkpoint, for run.json."""

    blocks: str | None
    random_weights: int | None
    encoder_precision: str  # one of PRECISIONS
