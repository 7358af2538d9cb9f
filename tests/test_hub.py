"""What tells one version of a checkpoint's files from another."""

import os

import pytest
from huggingface_hub import constants

from encoders.hub import file_stamp


def test_the_stamp_of_a_folder_follows_its_files_names_sizes_and_dates(tmp_path):
    folder = tmp_path / "model"
    (folder / "onnx").mkdir(parents=True)
    weights = folder / "model.safetensors"
    weights.write_bytes(b"weights")
    os.utime(weights, ns=(0, 10**18))
    stamp = file_stamp(str(folder))
    assert file_stamp(f"local-dir:{folder}") == stamp
    (folder / "onnx" / "model.onnx").write_bytes(b"in a folder of its own, which nothing reads")
    assert file_stamp(str(folder)) == stamp
    seen = {stamp}
    os.utime(weights, ns=(0, 10**18 + 1))
    seen.add(file_stamp(str(folder)))
    weights.write_bytes(b"longer weights")
    os.utime(weights, ns=(0, 10**18))
    seen.add(file_stamp(str(folder)))
    weights.rename(folder / "other.safetensors")
    seen.add(file_stamp(str(folder)))
    assert len(seen) == 4
    (folder / "other.safetensors").rename(weights)
    weights.write_bytes(b"weights")
    os.utime(weights, ns=(0, 10**18))
    assert file_stamp(str(folder)) == stamp


@pytest.mark.parametrize(
    ("checkpoint", "repository", "config"),
    [
        ("google/vit", "google/vit", "config.json"),
        ("hf-hub:apple/DFN", "apple/DFN", "open_clip_config.json"),
        ("dinov2_vits14_reg", "facebook/dinov2-with-registers-small", "config.json"),
    ],
)
def test_the_stamp_of_a_checkpoint_of_the_hub_is_its_commit(
    checkpoint, repository, config, tmp_path, monkeypatch
):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert file_stamp(checkpoint) == ""  # not cached
    stored = tmp_path / f"models--{repository.replace('/', '--')}"
    for commit in ("a" * 40, "b" * 40):
        (stored / "snapshots" / commit).mkdir(parents=True)
        (stored / "snapshots" / commit / config).write_text("{}")
        (stored / "refs").mkdir(exist_ok=True)
        (stored / "refs" / "main").write_text(commit)
        assert file_stamp(checkpoint) == commit


def test_a_name_that_the_hub_cannot_have_has_no_stamp():
    assert file_stamp("ViT-B/32-quickgelu/of/open_clip") == ""
