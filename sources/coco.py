"""COCO captions, read through pycocotools; a row a picture, in the order of the image ids."""

import contextlib
import io
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from plumbing.errors import UserError
from sources.opened import Opened, Sample, file_bytes, reason, require_found, without_caption

HELP = (
    "download http://images.cocodataset.org/zips/{split}.zip and "
    "http://images.cocodataset.org/annotations/annotations_trainval2017.zip, unpack both into one folder, "
    "and type --data_root FOLDER"
)

Id = int | str  # an image id; all of one type in a file

Table = list[dict[str, object]]  # "images" or "annotations" of the JSON file


def open_coco(location: str | None, split: str = "train2017") -> Opened:
    """COCO captions: `annotations/captions_train2017.json` and `train2017/`, in the order of the image ids.

    A picture's captions are in the order of their annotation ids; pictures without captions are left out.
    UserError: a file or folder is not there (with the command that fetches it), or the JSON is not COCO's.
    """
    location = location or "data/coco"
    root = Path(location)
    annotations = root / "annotations" / f"captions_{split}.json"
    require_found("COCO", (annotations, root / split), HELP.format(split=split))
    name = "coco" if split == "train2017" else f"coco_{split}"
    return Opened(name, _rows(annotations, root, split), file_bytes, location, files=[str(annotations)])


def _rows(annotations: Path, root: Path, split: str) -> Iterator[Sample | str]:
    pictures, captions = _index(annotations)
    for image in sorted(captions):
        file = pictures[image]
        yield Sample(str(image), f"{split}/{file}", captions[image], str(root / split / file))
    yield from without_caption("coco", "pictures", len(pictures), len(captions))


def _index(annotations: Path) -> tuple[dict[Id, str], dict[Id, list[str]]]:
    """{image id: file name} and {image id: captions}. UserError: an id listed twice, or captions of no image."""
    from pycocotools.coco import COCO

    pictures, captions = _tables(annotations)
    coco: Any = COCO()  # its annotations are typed as boxes and masks
    coco.dataset = {"images": pictures, "annotations": captions}
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress there
        coco.createIndex()
    if len(coco.imgs) < len(pictures):
        twice = Counter(picture["id"] for picture in pictures).most_common(1)[0][0]
        raise UserError(f"{annotations} lists image id {twice} twice; every picture needs its own")
    if strangers := [image for image in coco.imgToAnns if image not in coco.imgs]:
        raise UserError(f"{annotations} has a caption for image id {strangers[0]!r}, which it does not list")
    files = {image: picture["file_name"] for image, picture in coco.imgs.items()}
    texts = {image: [text["caption"].strip() for text in found] for image, found in coco.imgToAnns.items()}
    return files, texts


def _tables(annotations: Path) -> tuple[Table, Table]:
    """The file's pictures ("id", "file_name"), and its captions with new ids 0, 1, ….

    pycocotools needs a unique id for each caption, but a file's ids may be missing or occur twice. Where all of
    them are numbers they give the order; otherwise the order of the file stays.
    """
    try:
        tables = json.loads(annotations.read_text(encoding="utf-8-sig"))
        pictures = [{key: picture[key] for key in ("id", "file_name")} for picture in tables["images"]]
        found = [(text.get("id"), text["image_id"], text["caption"]) for text in tables["annotations"]]
    except (ValueError, KeyError, TypeError, AttributeError) as why:
        raise UserError(f"{annotations} is not a COCO caption file ({reason(why)})") from why
    _require_texts(annotations, pictures, found)
    _require_one_kind(annotations, [picture["id"] for picture in pictures] + [image for _, image, _ in found])
    if all(isinstance(number, int) for number, _, _ in found):
        found.sort(key=lambda row: row[0])
    return pictures, [
        {"id": number, "image_id": image, "caption": text} for number, (_, image, text) in enumerate(found)
    ]


def _require_texts(annotations: Path, pictures: Table, captions: list[tuple]):
    """UserError where a caption or a file name is no text; `captions` holds (id, image id, caption)."""
    for number, image, text in captions:
        if not isinstance(text, str):
            raise UserError(
                f"{annotations}: annotation {number!r} of image {image!r} has the caption {text!r}, which is no "
                "text; mend it or take it out"
            )
    for picture in pictures:
        if not isinstance(picture["file_name"], str):
            raise UserError(
                f"{annotations}: image {picture['id']!r} has the file name {picture['file_name']!r}, which is no text"
            )


def _require_one_kind(annotations: Path, ids: list[object]):
    """UserError where image ids are neither all whole numbers nor all texts: they could not be sorted."""
    if {*map(type, ids)} not in ({int}, {str}, set()):
        other = next((one for one in ids if type(one) is not type(ids[0])), ids[0])
        raise UserError(
            f"{annotations}: image ids {ids[0]!r} and {other!r}; make all of them whole numbers, or all texts"
        )
