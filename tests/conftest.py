"""Every shape written in a signature is checked (jaxtyping with beartype), offline, on few threads; shared fixtures."""

import json
import os
import shutil
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # two test processes run side by side
os.environ.setdefault("MPLBACKEND", "Agg")
# An index of every data set that is opened is kept in the cache, which is not to be the user's; but matplotlib's list
# of fonts is, since it takes long to make.
os.environ.setdefault("MPLCONFIGDIR", os.path.expanduser("~/.cache/matplotlib"))
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp()

import pytest
from data_files import drawing, members, write_folder, write_shard
from jaxtyping import install_import_hook


def pytest_configure(config):
    """Hide the machine's GPUs, which scripts would take, so that all numbers are a CPU's; `-m gpu` shows them."""
    if "gpu" not in config.option.markexpr:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_unconfigure():
    shutil.rmtree(os.environ["XDG_CACHE_HOME"])


NOUNS = ["wrappedmodels", "sae", "saelens", "data", "features", "parts", "original"]
install_import_hook(
    [*NOUNS, "training", "comparing", "showing", "encoders", "sources", "toyworld", "studying"],
    "type_checks.checked",
)


@pytest.fixture
def train(tmp_path, monkeypatch):
    """`small_world.train` in an empty folder, without the picture, which would take longer than all else."""
    import small_world

    from plumbing import files
    from training import curve

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(curve, "draw", lambda file, *rest: files.write_text(file, "a curve"))
    return small_world.train


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """Scans are kept in the user's cache folder; a test has its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path):
    """Two pictures, of which the first has two captions."""
    return write_folder(tmp_path / "birds", {"b.png": ["a robin", "a red bird"], "deep/a.png": ["a wren"]})


@pytest.fixture
def damaged(folder):
    """The same with an empty file as the first picture."""
    (folder / "b.png").write_bytes(b"")
    return folder


@pytest.fixture
def coco(tmp_path):
    """Image ids out of order, annotation ids out of order, and image 7 without a caption."""
    root = tmp_path / "coco"
    (root / "annotations").mkdir(parents=True)
    (root / "train2017").mkdir()
    for image in (30, 7, 2, 111):
        drawing(image).save(root / "train2017" / f"{image:012d}.png")
    annotations = [(9, 30, "third"), (4, 2, "two, later"), (3, 2, "two, first\n"), (5, 111, "last")]
    tables = {
        "images": [{"id": i, "file_name": f"{i:012d}.png"} for i in (30, 7, 2, 111)],
        "annotations": [{"id": a, "image_id": i, "caption": text} for a, i, text in annotations],
    }
    (root / "annotations" / "captions_train2017.json").write_text(json.dumps(tables))
    return root


@pytest.fixture
def shards(tmp_path):
    """Two shards of two keys; within a shard the keys are not in alphabetical order."""
    root = tmp_path / "laion"
    write_shard(root / "00009.tar", members("000090001", 0, "zero") + members("000090000", 1, "one"))
    write_shard(root / "00010.tar", members("000100000", 2, "two") + members("000100001", 3, "three"))
    return root


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """The library `datasets`, quiet and with a cache of the test's own."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    datasets.disable_progress_bars()
    return datasets
