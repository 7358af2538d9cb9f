"""COCO's captions, indexed by pycocotools: rows by image id."""

import contextlib
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

from plumbing.errors import UserError
from sources.opened import Opened, Sample, file_bytes, reason, require_found, say_without_caption

HELP = (
    "download http://images.cocodataset.org/zips/{split}.zip and "
    "http://images.cocodataset.org/annotations/annotations_trainval2017.zip, unpack both into one folder, "
    "and type --data_root FOLDER"
)

Id = int | str  # of a picture; of one kind in the whole file

Table = list[dict[str, object]]  # a list of the JSON file


def open_coco(location: str | None, split: str = "train2017") -> Opened:
    """COCO captions: `annotations/captions_train2017.json` and `train2017/`, in the order of the image ids.

    A picture's captions are in the order of their annotation ids; pictures without captions are left out.
    """
    location = location or "data/coco"
    root = Path(location)
    annotations = root / "annotations" / f"captions_{split}.json"
    require_found("COCO", (annotations, root / split), HELP.format(split=split))
    pictures, captions = _index(annotations)
    samples = [
        Sample(str(image), f"{split}/{pictures[image]}", captions[image], str(root / split / pictures[image]))
        for image in sorted(captions)
    ]
    say_without_caption("coco", "pictures", len(pictures), len(samples))
    name = "coco" if split == "train2017" else f"coco_{split}"
    return Opened(name, samples, file_bytes, location, files=[str(annotations)])


def _index(annotations: Path) -> tuple[dict[Id, str], dict[Id, list[str]]]:
    """File names and captions by image id, as pycocotools indexes the tables."""
    from pycocotools.coco import COCO

    pictures, captions = _tables(annotations)
    coco: Any = COCO()  # its types know no captions
    coco.dataset = {"images": pictures, "annotations": captions}
    with contextlib.redirect_stdout(io.StringIO()):  # where it says what it does
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
    """The file's pictures, and its captions in the order of their ids, numbered anew.

    pycocotools needs an id for each caption; those of the file may be missing, or occur twice, and only decide the
    order, where all of them are numbers.
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
    """Refuse image ids that are not all whole numbers or all texts."""
    if {*map(type, ids)} not in ({int}, {str}, set()):
        other = next((one for one in ids if type(one) is not type(ids[0])), ids[0])
        raise UserError(
            f"{annotations}: image ids {ids[0]!r} and {other!r}; make all of them whole numbers, or all texts"
        )
