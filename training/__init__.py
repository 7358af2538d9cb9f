"""Fit SAEs on an encoder's hooked activations, then record every sample's features."""

from typing import TYPE_CHECKING, Any

from training.settings import Settings

if TYPE_CHECKING:
    from training.experiment import train

__all__ = ["Settings", "train"]


def __getattr__(name: str) -> Any:
    """`train` needs torch, which takes seconds to import: it is imported when it is asked for."""
    if name == "train":
        from training.experiment import train

        return train
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
