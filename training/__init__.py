"""Fit SAEs on an encoder's hooked activations, then record every sample's features."""

from typing import TYPE_CHECKING

from training.settings import Settings

if TYPE_CHECKING:
    from training.experiment import train

__all__ = ["Settings", "train"]


def __getattr__(name: str) -> object:
    """Import `train` when it is asked for: it needs torch, which takes seconds to import."""
    if name == "train":
        from training.experiment import train

        return train
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
