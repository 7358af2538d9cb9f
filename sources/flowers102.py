"""Oxford's 102 flowers with the captions of Reed et al. 2016."""

from pathlib import Path

from sources.opened import Opened, Sample, _file_bytes, _require_found, _say

FLOWERS_HELP = (
    "unpack https://www.robots.ox.ac.uk/~vgg/data/flowers/102/102flowers.tgz (jpg/image_00001.jpg …) and, "
    "from cvpr2016_flowers.tar.gz of https://github.com/reedscot/cvpr2016, the folder text_c10 "
    "(text_c10/class_00077/image_00001.txt …, a caption a line) into one folder, and type --data_root FOLDER"
)


def open_flowers102(location: str | None) -> Opened:
    """Oxford's 102 flowers with ten captions a picture, in the order of the pictures' numbers.

    Layout: `jpg/image_00001.jpg` … and `text_c10/class_00001/image_06734.txt` …, a caption a line
    (S. Reed et al., Learning Deep Representations of Fine-Grained Visual Descriptions, CVPR 2016).
    """
    location = location or "data/flowers102"
    root = Path(location)
    _require_found("flowers102", (root / "jpg", root / "text_c10"), FLOWERS_HELP)
    texts = sorted(root.glob("text_c10/class_*/image_*.txt"))
    captions = {path.stem: _lines(path) for path in texts}
    found = {path.stem for path in (root / "jpg").glob("image_*.jpg")}
    # with those that have captions and are not there: a picture that is missing is no reason to drop its row
    pictures = [root / "jpg" / f"{name}.jpg" for name in sorted(found | {*captions})]
    samples = [
        Sample(path.stem, f"jpg/{path.name}", captions[path.stem], str(path))
        for path in pictures
        if captions.get(path.stem)
    ]
    if len(samples) < len(pictures):
        unpaired = len(pictures) - len(samples)
        _say(f"flowers102: {unpaired} of {len(pictures)} pictures have no caption and are left out")
    return Opened("flowers102", samples, _file_bytes, location, files=[*map(str, texts)])


def _lines(path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8-sig", errors="replace").split("\n")
    return [line.strip() for line in lines if line.strip()]
