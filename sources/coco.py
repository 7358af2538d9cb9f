"""COCO's captions: rows by image id."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from plumbing.errors import UserError
from sources.opened import Opened, Sample, _file_bytes, _reason, _require_found, _say

COCO_HELP = (
    "download http://images.cocodataset.org/zips/{split}.zip and "
    "http://images.cocodataset.org/annotations/annotations_trainval2017.zip, unpack both into one folder, "
    "and type --data_root FOLDER"
)


def open_coco(location: str | None, split: str = "train2017") -> Opened:
    """COCO captions: `annotations/captions_train2017.json` and `train2017/`, in the order of the image ids.

    A picture's captions are in the order of their annotation ids; pictures without captions are left out.
    """
    location = location or "data/coco"
    root = Path(location)
    annotations = root / "annotations" / f"captions_{split}.json"
    _require_found("COCO", (annotations, root / split), COCO_HELP.format(split=split))
    files, captions = _coco_tables(annotations)
    if len(captions) < len(files):
        _say(f"coco: {len(files) - len(captions)} of {len(files)} pictures have no caption and are left out")
    samples = [
        Sample(str(image), f"{split}/{files[image]}", captions[image], str(root / split / files[image]))
        for image in sorted(captions)
    ]
    name = "coco" if split == "train2017" else f"coco_{split}"
    return Opened(name, samples, _file_bytes, location, files=[str(annotations)])


def _coco_tables(annotations: Path) -> tuple[dict[Any, str], dict[Any, list[str]]]:
    """File names and captions by image id, from the lists themselves: ids of annotations only order captions."""
    try:
        tables = json.loads(annotations.read_text(encoding="utf-8-sig"))
        pictures = [(picture["id"], picture["file_name"]) for picture in tables["images"]]
        texts = [(text.get("id"), text["image_id"], text["caption"]) for text in tables["annotations"]]
    except (ValueError, KeyError, TypeError, AttributeError) as why:
        raise UserError(f"{annotations} is not a COCO caption file ({_reason(why)})") from why
    _require_coco_kinds(annotations, pictures, texts)
    files = dict(pictures)
    if len(files) < len(pictures):
        twice = Counter(picture for picture, _ in pictures).most_common(1)[0][0]
        raise UserError(f"{annotations} lists image id {twice} twice; every picture needs its own")
    captions: dict[Any, list[str]] = {}
    numbered = all(isinstance(name, int) for name, _, _ in texts)
    for _, picture, text in sorted(texts, key=lambda row: row[0] if numbered else 0):
        captions.setdefault(picture, []).append(text.strip())
    if strangers := [picture for picture in captions if picture not in files]:
        raise UserError(f"{annotations} has a caption for image id {strangers[0]!r}, which it does not list")
    return files, captions


def _require_coco_kinds(annotations: Path, pictures: list[tuple], texts: list[tuple]):
    """Refuse captions and file names that are no texts, and image ids that are not all numbers or all texts."""
    for name, picture, text in texts:
        if not isinstance(text, str):
            raise UserError(
                f"{annotations}: annotation {name!r} of image {picture!r} has the caption {text!r}, which is no "
                "text; mend it or take it out"
            )
    for picture, file in pictures:
        if not isinstance(file, str):
            raise UserError(f"{annotations}: image {picture!r} has the file name {file!r}, which is no text")
    ids = [picture for picture, _ in pictures] + [picture for _, picture, _ in texts]
    if {*map(type, ids)} not in ({int}, {str}, set()):
        other = next((one for one in ids if type(one) is not type(ids[0])), ids[0])
        raise UserError(
            f"{annotations}: image ids {ids[0]!r} and {other!r}; make all of them whole numbers, or all texts"
        )
