"""Small data sets of every kind, written for tests."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import picture_files
from PIL import Image


def drawing(seed: int) -> Image.Image:
    """A picture of random pixels."""
    return Image.fromarray(picture_files.pixels(seed))


def write_folder(root: Path, captions: dict[str, list[str]]) -> Path:
    """A folder data set of drawings with these captions."""
    for seed, file in enumerate(captions):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        drawing(seed).save(root / file)
    lines = [json.dumps({"file": f, "caption": text}) for f, texts in captions.items() for text in texts]
    (root / "captions.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root


def listed(root: Path, files: dict[str, bytes]) -> Path:
    """A folder data set of files with given bytes; each caption is the file's name."""
    root.mkdir(parents=True)
    for file, content in files.items():
        (root / file).write_bytes(content)
    lines = [json.dumps({"file": file, "caption": f"a {file}"}) for file in files]
    (root / "captions.jsonl").write_text("\n".join(lines))
    return root


def write_coco(root: Path, images: list, annotations: list[tuple]):
    """The tables, behind a byte order mark; every image is the file of the image 2."""
    tables = {
        "images": [{"id": i, "file_name": f"{2:012d}.png"} for i in images],
        "annotations": [{"id": a, "image_id": i, "caption": text} for a, i, text in annotations],
    }
    path = root / "annotations/captions_train2017.json"
    path.write_text(json.dumps(tables), encoding="utf-8-sig")


def write_shard(path: Path, members: list[tuple[str, bytes]]) -> Path:
    """A tar of files with these names and contents."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def members(key: str, seed: int, caption: str) -> list[tuple[str, bytes]]:
    """What a shard holds of a key: KEY.png, KEY.txt, KEY.json."""
    record = json.dumps({"caption": caption, "key": key, "status": "success"}).encode()
    picture = picture_files.encoded(drawing(seed))
    return [(f"{key}.png", picture), (f"{key}.txt", caption.encode()), (f"{key}.json", record)]


def hf_table(datasets: Any, count: int = 3, **columns: list) -> Any:
    """A `datasets.Dataset` of drawings and captions, with these columns besides or instead."""
    pictures = [{"bytes": picture_files.encoded(drawing(row)), "path": None} for row in range(count)]
    table = {"image": pictures, "caption": [f"text {row}" for row in range(count)]} | columns
    return datasets.Dataset.from_dict(table).cast_column("image", datasets.Image())
