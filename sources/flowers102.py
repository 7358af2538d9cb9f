"""Oxford's 102 flowers with the captions of Reed et al. 2016."""

from collections.abc import Iterator
from pathlib import Path

from sources.opened import Opened, Sample, file_bytes, require_found, without_caption

HELP = (
    "unpack https://www.robots.ox.ac.uk/~vgg/data/flowers/102/102flowers.tgz (jpg/image_00001.jpg …) and, "
    "from cvpr2016_flowers.tar.gz of https://github.com/reedscot/cvpr2016, the folder text_c10 "
    "(text_c10/class_00077/image_00001.txt …, a caption a line) into one folder, and type --data_root FOLDER"
)


def open_flowers102(location: str | None) -> Opened:
    """Oxford's 102 flowers with ten captions a picture, in the order of the pictures' numbers.

    Layout: `jpg/image_00001.jpg` … and `text_c10/class_00001/image_06734.txt` …, a caption a line
    (S. Reed et al., Learning Deep Representations of Fine-Grained Visual Descriptions, CVPR 2016).
    Pictures without captions are left out. UserError: a folder is not there, with where to fetch it.
    """
    location = location or "data/flowers102"
    root = Path(location)
    require_found("flowers102", (root / "jpg", root / "text_c10"), HELP)
    listings = sorted(root.glob("text_c10/class_*/image_*.txt"))
    return Opened("flowers102", _rows(listings, root), file_bytes, location, files=[*map(str, listings)])


def _rows(listings: list[Path], root: Path) -> Iterator[Sample | str]:
    captions = {path.stem: _lines(path) for path in listings}
    found = {path.stem for path in (root / "jpg").glob("image_*.jpg")}
    # A caption whose picture is missing keeps its row: a missing file is an error, or --skip_unreadable lists it.
    names, used = sorted(found | {*captions}), 0
    for name in names:
        if captions.get(name):
            used += 1
            yield Sample(name, f"jpg/{name}.jpg", captions[name], str(root / "jpg" / f"{name}.jpg"))
    yield from without_caption("flowers102", "pictures", len(names), used)


def _lines(path: Path) -> list[str]:
    """The captions of one picture: the file's lines that are not blank."""
    lines = path.read_text(encoding="utf-8-sig", errors="replace").split("\n")
    return [line.strip() for line in lines if line.strip()]
