"""The demo's scenes as a data set."""

from PIL import Image

from sources.opened import Opened, Sample


def open_demo(location: str | None) -> Opened:
    """The scenes that toyworld/scenes.py draws: 10,000 pairs, on none of which a demo encoder was trained."""
    from toyworld import scenes

    names = [f"scene{row:05d}" for row in range(scenes.N_DEMO)]
    samples = [Sample(name, name, list(scenes.captions(row)), row) for row, name in enumerate(names)]
    return Opened("demo", samples, _demo_picture, None, files=[scenes.__file__])


def _demo_picture(row: int) -> Image.Image:
    from toyworld import scenes

    return scenes.picture(row)
