"""Where a feature fires: a feature of one patch lights that cell; what part of a picture the patches cover."""

import base64
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from runs import make_run

import data
import wrappedmodels
from encoders.wrapper import WrappedModel
from plumbing.errors import UserError
from sae import TopKSAE
from showing import places
from showing.strips import Columns

ROW, PATCH, LAYER = 3, 9, 1  # of the demo's pictures, of their patches, of the encoder's layers


@pytest.fixture(scope="module")
def encoder():
    return wrappedmodels.load("DemoClipVision")


def one_patch(encoder, pairs):
    """An SAE whose feature 0 is active on one patch of one picture alone; feature 1 never is."""
    batch = encoder.collate([encoder.preprocess(pairs.image(ROW))])
    tokens = encoder.activations(batch, [LAYER]).layers[LAYER][0]
    sae = TopKSAE(tokens.shape[1], 2, 1)
    direction = tokens[1 + PATCH] - tokens.mean(0)  # CLS stands first
    along = tokens @ direction
    highest, second = along.topk(2).values.tolist()
    assert along.argmax() == 1 + PATCH
    with torch.no_grad():
        sae.W_enc_rows[0], sae.W_enc_rows[1] = direction, 0
        sae.b_enc[:] = torch.tensor([-(highest + second) / 2, 0.0])
        sae.b_dec[:] = 0
    return sae


def recorded(encoder, token):
    """A run of that feature, in the working folder, and its samples."""
    pairs = data.open_pairs("demo", limit=6)
    codes = np.zeros((6, 2))
    codes[ROW, 0] = 1
    checkpoint = str(Path(wrappedmodels.__file__).parent / encoder.checkpoint)
    told = {"model": encoder.model, "checkpoint": checkpoint, "modality": "image"}
    run = make_run("A", {f"layer{LAYER}": codes}, pairs.ids, token=token, encoder=told)
    one_patch(encoder, pairs).save(run.path / f"layer{LAYER}")
    return run, pairs


def places_of(run, pairs):
    return places.places(run, f"layer{LAYER}", Columns.of(run.load(f"layer{LAYER}")), pairs)


@pytest.mark.parametrize("token", ["cls", "mean"])
def test_a_feature_that_fires_on_one_patch_lights_that_cell(tmp_path, monkeypatch, encoder, token):
    monkeypatch.chdir(tmp_path)
    run, pairs = recorded(encoder, token)
    found = places_of(run, pairs)
    assert list(found.grids) == [0]
    grid = np.frombuffer(base64.b64decode(found.grids[0][ROW]), np.uint8)
    assert grid.size == found.side**2
    assert np.flatnonzero(grid).tolist() == [PATCH]
    assert grid[PATCH] == 255
    assert ("mean over all" in found.words) == (token == "mean")
    told = run.manifest["encoder"] | {"encoder_precision": "bfloat16"}
    assert places.load(run._replace(manifest=run.manifest | {"encoder": told})).precision == "bfloat16"


@pytest.mark.parametrize(("owner", "name"), [(torch.nn.Module, "to"), (WrappedModel, "activations")])
def test_a_gpu_without_room_for_it_ends_in_one_line(tmp_path, monkeypatch, encoder, owner, name):
    usual = getattr(owner, name)

    def full(*arguments, **named):
        if named:  # transformers, while it makes the encoder
            return usual(*arguments, **named)
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.chdir(tmp_path)
    run, pairs = recorded(encoder, "cls")
    monkeypatch.setattr(owner, name, full)
    with pytest.raises(UserError, match="too little memory for --where: .* CUDA_VISIBLE_DEVICES= before"):
        places_of(run, pairs)
    with pytest.raises(UserError, match=r"^another mistake$"), places.in_one_line():
        raise UserError("another mistake")


def squashed(picture):
    return picture.resize((32, 32), Image.Resampling.BICUBIC)


def centred(share):
    """Resize the shorter side to 32 / share pixels, and cut the middle 32."""

    def cut(picture):
        scale = 32 / share / min(picture.size)
        width, height = (round(side * scale) for side in picture.size)
        left, top = (width - 32) / 2, (height - 32) / 2
        return picture.resize((width, height), Image.Resampling.BICUBIC).crop(
            (left, top, left + 32, top + 32)
        )

    return cut


@pytest.mark.parametrize(("shaped", "seen"), [(squashed, None), (centred(1.0), 1.0), (centred(0.875), 0.875)])
def test_the_part_of_a_picture_that_an_encoder_sees_is_read_off_pictures(shaped, seen):
    def preprocess(picture):
        return {"pixel_values": torch.tensor(np.array(shaped(picture))).permute(2, 0, 1).float() / 127.5 - 1}

    stub = SimpleNamespace(
        preprocess=preprocess, collate=lambda items: {"pixel_values": items[0]["pixel_values"][None]}
    )
    found = places.seen_share(stub)
    assert found == seen if seen is None else found == pytest.approx(seen, abs=0.02)


@pytest.mark.parametrize(
    ("told", "line"),
    [({"modality": "text"}, "of no pictures"), ({"token": "first"}, "'first'"), ({}, "has no SAE")],
)
def test_runs_whose_activations_have_no_place_are_refused(tmp_path, monkeypatch, told, line):
    monkeypatch.chdir(tmp_path)
    run = make_run("A", {"layer0": np.eye(3)}, **{"token": "cls"} | told)
    with pytest.raises(UserError, match=line):
        places.check(run, "layer0")
