"""`Settings`: what decides a run's numbers besides its encoder, its layers and its data. Needs no torch."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import TypedDict, TypeVar, Unpack

from features import RANDOM_SAE
from plumbing.commandline import Flags, above_zero, natural, positive
from plumbing.errors import UserError

Value = TypeVar("Value")


class Typed(TypedDict, total=False):
    """How argparse reads a value."""

    type: Callable[[str], object]
    choices: tuple[str, ...]


def setting(default: Value, text: str, **typed: Unpack[Typed]) -> Value:
    """A field with its default and its documentation."""
    return field(default=default, metadata={"help": text, **typed})


@dataclass(frozen=True)
class Settings:
    """How the SAEs of a run are trained and recorded; `training` in run.json.

    The text of each field is also its flag's in `--help`.
    """

    activation: str = setting("topk", "the codes that are recorded", choices=("topk", "relu"))
    top_k: int | None = setting(
        None, "active latents a token; by default 32, 16 for the demo's encoders", type=positive
    )
    expansion_factor: int | None = setting(
        None,
        "latents for each dimension of the activations; by default 8, 4 for the demo's encoders",
        type=positive,
    )
    batch_size: int = setting(32, "samples in a step, of each process", type=positive)
    epochs: int = setting(1, "passes over the data", type=positive)
    lr: float | None = setting(
        None,
        "peak learning rate; by default set by the SAE's width and the number of steps",
        type=above_zero,
    )
    recipe: str = setting(
        "ours", "how SAEs are trained; random: not at all", choices=("ours", "original", RANDOM_SAE)
    )
    precision: str = setting(
        "float32", "precision of the SAEs' matrix products", choices=("float32", "bfloat16")
    )
    seed: int = setting(0, "seed of the SAEs' initial weights", type=natural)
    data_seed: int | None = setting(
        None,
        "seed of the order of the data and of the held-out samples, one for all runs of a command; by default the first seed",
        type=natural,
    )

    def __post_init__(self):
        for one in fields(self):
            value, choices = getattr(self, one.name), one.metadata.get("choices")
            if choices and value not in choices:
                raise UserError(f"{one.name} {value!r} is unknown; it is one of {', '.join(choices)}")
            if value is not None and "type" in one.metadata:
                one.metadata["type"](str(value))


FLAGS: Flags = {f"--{one.name}": {"default": one.default, **one.metadata} for one in fields(Settings)}
