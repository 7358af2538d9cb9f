"""The objects that COCO's annotators marked in each picture, as words beside a feature."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.sparse

from data import Pairs
from plumbing import files
from plumbing.errors import UserError
from showing.words import Vocabulary
from sources.opened import reason
from sources.unreadable import file_stamp

# Of the file's entries; its outlines and boxes, which are nearly all of its 450 MB, go as soon as they are read.
READ = ("images", "annotations", "categories", "id", "name", "image_id", "category_id")


class Objects(NamedTuple):
    """Which pictures hold which categories: arrays of text `ids` [picture] and `names` [category], and a line of both
    numbers a pair, `places` int [pair, 2]."""

    ids: np.ndarray
    names: np.ndarray
    places: np.ndarray


def categories(pairs: Pairs) -> Vocabulary | None:
    """The object categories that each row's picture holds; None where no `instances_*.json` lies beside the captions.

    Error: a file that is none of COCO's.
    """
    file = _instances(pairs)
    if file is None:
        return None
    found = _kept(file)
    row = {name: number for number, name in enumerate(pairs.ids)}
    rows = np.array([row.get(name, -1) for name in found.ids.tolist()], int)[found.places[:, 0]]
    inside = rows >= 0
    places = rows[inside], found.places[inside, 1]
    shape = len(pairs), len(found.names)
    presence = scipy.sparse.csr_array((np.ones(inside.sum()), places), shape)
    return Vocabulary(presence, found.names.tolist(), np.full((len(found.names), 2), -1))


def _instances(pairs: Pairs) -> Path | None:
    """The file of objects beside a COCO data set's captions."""
    if pairs.source.get("dataset") != "coco":
        return None
    captions = Path(pairs.files[0])
    file = captions.with_name(captions.name.replace("captions_", "instances_", 1))
    return file if file.is_file() else None


def _kept(file: Path) -> Objects:
    """The objects of a file, kept in the user's cache: reading COCO's takes half a minute."""
    size, date = file_stamp(str(file)) or (0, 0)
    kept = files.cache_folder() / f"{file.stem}-{size}-{date}.npz"
    try:
        with np.load(kept) as arrays:
            return Objects(*(arrays[name] for name in Objects._fields))
    except (OSError, ValueError, KeyError, EOFError):
        found = _read(file)
    try:
        files.make_folder(kept.parent)
        with files.replacing(kept) as temporary:
            np.savez(temporary, **found._asdict())
    except OSError:  # a cache that cannot be written: it is read again the next time
        pass
    return found


def _read(file: Path) -> Objects:
    try:
        with open(file, encoding="utf-8-sig") as text:
            tables = json.load(
                text, object_hook=lambda entry: {key: entry[key] for key in READ if key in entry}
            )
        names = {entry["id"]: str(entry["name"]) for entry in tables["categories"]}
        marked = {(entry["image_id"], entry["category_id"]) for entry in tables["annotations"]}
        pictures = {image: number for number, image in enumerate(dict.fromkeys(image for image, _ in marked))}
        numbers = {category: number for number, category in enumerate(names)}
        places = sorted((pictures[image], numbers[category]) for image, category in marked)
    except (ValueError, KeyError, TypeError, AttributeError) as why:
        raise UserError(
            f"{file} is not a COCO file of objects ({reason(why)}): mend it, or move it away"
        ) from why
    ids, texts = (
        np.array([str(text) for text in found], dtype=np.str_) for found in (pictures, names.values())
    )
    return Objects(ids, texts, np.array(places, int).reshape(-1, 2))
