"""What the train scripts make of their flags."""

import pytest

import features
import train_image
from plumbing.errors import UserError
from training import flags


@pytest.mark.parametrize(
    ("model", "checkpoint", "random_weights", "dataset", "expected"),
    [
        ("DemoClipVision", None, None, "demo", "clipvision_demo"),
        ("DemoClipVision", None, None, "photos", "democlipvision_photos"),
        ("ClipVision", None, None, "coco", "clipvision_coco"),
        ("ClipVision", None, None, "my birds [2]", "clipvision_my-birds-2"),
        ("ClipVision", "ViT-B/32-quickgelu", None, "coco", "clipvision-vit-b-32-quickgelu_coco"),
        (
            "ClipText",
            "hf-hub:apple/DFN2B-CLIP-ViT-L-14",
            3,
            "coco",
            "cliptext-apple-dfn2b-clip-vit-l-14-random3_coco",
        ),
    ],
)
def test_the_default_name_is_made_of_encoder_and_data(model, checkpoint, random_weights, dataset, expected):
    assert flags.default_name(model, checkpoint, random_weights, dataset) == expected
    assert features.run_path(expected).name == expected


@pytest.mark.parametrize("words", ["--top_k 8", "--seeds 0 1", "--lr 0.1", "--epochs 2", "--recipe original"])
def test_flags_of_training_are_refused_beside_given_saes(words):
    """They would change nothing."""
    with pytest.raises(UserError, match="--sae brings trained SAEs"):
        train_image.parse(["--sae", "some/folder", *words.split()])
