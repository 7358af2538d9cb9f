"""The demo's scenes as a data set."""

from collections.abc import Iterator

from PIL import Image

from sources.opened import Opened, Sample


def open_demo(location: str | None) -> Opened:
    """The scenes that toyworld/scenes.py draws: 10,000 pairs, on none of which a demo encoder was trained."""
    from toyworld import drawing, scenes, telling, things

    code = [module.__file__ for module in (scenes, telling, drawing, things)]
    return Opened("demo", _rows(), _demo_picture, None, files=code)


def _rows() -> Iterator[Sample]:
    from toyworld import scenes

    for row in range(scenes.N_DEMO):
        name = f"scene{row:05d}"
        yield Sample(name, name, list(scenes.captions(row)), row)


def _demo_picture(row: int) -> Image.Image:
    from toyworld import scenes

    return scenes.picture(row)
