"""How much of one run's features another has, and which features some runs share.

`compare(run, other)` and `sharedness(run, min_group, max_group)` are the room's two doors. numba is imported at the
first comparison.
"""

from typing import TYPE_CHECKING

from comparing.sharedness import sharedness

if TYPE_CHECKING:
    from comparing.comparison import compare

__all__ = ["compare", "sharedness"]


def __getattr__(name: str) -> object:
    if name == "compare":
        from comparing.comparison import compare

        return compare
    raise AttributeError(f"module 'comparing' has no attribute {name!r}")
