"""Every encoder of the paper by its real name, on tiny random weights in an offline Hugging Face cache."""

import http.server
import json
import pickle
import runpy
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import ClassVar
from unittest import mock

import numpy as np
import offline_hub
import pytest
import torch
from PIL import Image

import wrappedmodels
from encoders import from_open_clip, self_test
from encoders import hub as hub_module
from plumbing.errors import UserError
from wrappedmodels import REGISTRY, load

PAPER = [(model, checkpoint) for model, row in REGISTRY.items() for checkpoint in row.checkpoints]
NAFLEX = "google/siglip2-base-patch16-naflex"
REGISTERS = "dinov2_vitb14_reg"
OTHERS = [("SigLIP2Vision", NAFLEX), ("SiglipText", NAFLEX), ("DinoV2", REGISTERS)]
EACH = [(model, row.checkpoint) for model, row in REGISTRY.items() if row.checkpoints] + OTHERS
CAPTIONS = ["a dog", "A small red circle over the blue square", "the cat sits", "a cat"]


def pictures():
    """Four pictures of noise of different shapes."""
    draw = np.random.default_rng(0)
    shapes = [(40, 50, 3), (40, 80, 3), (90, 40, 3), (32, 32, 3)]
    return [Image.fromarray(draw.integers(0, 255, shape, dtype=np.uint8)) for shape in shapes]


def batch(encoder, items=None):
    items = items or (pictures() if encoder.modality == "image" else CAPTIONS)
    return encoder.collate([encoder.preprocess(item) for item in items])


def record(encoder, items=None, layers=None):
    return encoder.activations(batch(encoder, items), encoder.resolve_layers(layers))


def pooled(activations, layer=-1):
    """Each sample's recorded token at a layer: what the SAE would see, [sample d_in]."""
    return self_test.recorded(activations, list(activations.layers)[layer])


def distance(ours, reference):
    return float((ours - reference).abs().max() / reference.abs().max())


@pytest.fixture(scope="module", autouse=True)
def hub(tmp_path_factory):
    """The paper's checkpoints, and three more that its rows promise."""
    with offline_hub.paper(tmp_path_factory.mktemp("hub")) as hub:
        hub.add(NAFLEX, offline_hub.siglip_naflex)
        hub.add("facebook/dinov2-with-registers-base", offline_hub.dinov2, registers=4)
        yield hub


# ---------------------------------------------------------------------------------------------------------
# what is loaded

LOADED = {  # the module that is run; the recorded token; mean and scale of its preprocessing's red channel
    "ClipVision": ("open_clip.model.CLIP", "cls", 0.48, 0.27),
    "ClipText": ("open_clip.model.CLIP", "end_of_text", 0, 0),
    "SigLIP2Vision": ("transformers.models.siglip.modeling_siglip.SiglipVisionModel", "mean", 0.5, 0.5),
    "SiglipText": ("transformers.models.siglip.modeling_siglip.SiglipTextModel", "last", 0, 0),
    "ViT": ("transformers.models.vit.modeling_vit.ViTModel", "cls", 0.5, 0.5),
    "DinoV2": ("transformers.models.dinov2.modeling_dinov2.Dinov2Model", "cls", 0.485, 0.229),
    "Bert": ("transformers.models.bert.modeling_bert.BertModel", "cls", 0, 0),
    "Deberta": ("transformers.models.deberta.modeling_deberta.DebertaModel", "cls", 0, 0),
}
OPENAI = dict(mean=0.48145466, std=0.26862954)  # of the tag, which a built-in name takes
# "a dog" in the tiny vocabularies: start, words, end; CLIP's own vocabulary is the real one
TOKENS = {"ClipText": [49406, 320, 1929, 49407], "Bert": [1, 5, 11, 2]}
CONTEXT = {"ClipText": 77, "SiglipText": 64, "Bert": 64, "Deberta": 128}
N_TOKENS = {"ClipText": 4, "SiglipText": 64, "Bert": 4, "Deberta": 7}


def test_the_paper_compares_twenty_checkpoints_and_the_large_ones_are_the_defaults():
    assert len(PAPER) == 20
    assert sum(REGISTRY[model].modality == "image" for model, _ in PAPER) == 10
    for model, row in REGISTRY.items():
        if row.checkpoints:
            assert row.checkpoint in row.checkpoints
            assert any(large in row.checkpoint for large in ("ViT-L", "large", "vitl")), model


@pytest.mark.parametrize(("model", "checkpoint"), PAPER)
def test_a_checkpoint_of_the_paper_loads_by_its_name(model, checkpoint):
    encoder = load(model, checkpoint)
    kind, token, mean, scale = LOADED[model]
    assert f"{type(encoder.tower).__module__}.{type(encoder.tower).__qualname__}" == kind
    assert (encoder.model, encoder.checkpoint, encoder.token) == (model, checkpoint, token)
    assert encoder.modality == REGISTRY[model].modality
    assert encoder.n_layers == 2
    activations = record(encoder)
    n_tokens = activations.mask.shape[1]
    assert {layer: tuple(a.shape) for layer, a in activations.layers.items()} == {
        0: (4, n_tokens, 32),
        1: (4, n_tokens, 32),
    }
    chosen, items, weights = activations.recorded_tokens()
    np.testing.assert_allclose(np.bincount(items, weights), np.ones(4), rtol=1e-6)
    assert activations.mask.flatten()[chosen].all()  # what is recorded is what was trained on
    assert torch.equal(activations.real_tokens(), activations.mask.flatten().nonzero()[:, 0])
    if encoder.modality == "image":
        if checkpoint.startswith("ViT"):
            mean, scale = OPENAI.values()
        grey = encoder.preprocess(Image.new("RGB", (40, 50), (51, 102, 153)))["pixel_values"]
        assert grey.shape == (3, 32, 32)
        torch.testing.assert_close(grey[0], torch.full((32, 32), (0.2 - mean) / scale))
        assert activations.mask.all()
    else:
        ids = batch(encoder, ["a dog"])["input_ids"][0].tolist()
        assert len(ids) == N_TOKENS[model]
        assert ids == TOKENS.get(model, ids)


@pytest.mark.parametrize("model", LOADED)
def test_a_local_folder_gives_the_same_as_the_hub(model, hub, tmp_path):
    checkpoint = next(c for c in REGISTRY[model].checkpoints if not c.startswith("ViT"))
    repository, build = offline_hub.PAPER[checkpoint]
    shutil.copytree(hub.folder / f"models--{repository.replace('/', '--')}/snapshots", tmp_path / "here")
    folder = str(tmp_path / "here" / offline_hub.COMMIT)
    names = [folder] + ([f"local-dir:{folder}"] if build is offline_hub.clip else [])
    expected = record(load(model, checkpoint)).layers[1]
    for name in names:
        assert torch.equal(record(load(model, name)).layers[1], expected)


def test_the_names_that_old_runs_have_of_the_demos_weights_are_read():
    """Runs recorded before the folder was renamed name demo/encoders/."""
    old, new = load("Bert", "demo/encoders/bert"), load("Bert", "toyworld/weights/bert")
    assert old.file_stamp() == new.file_stamp()
    assert torch.equal(record(old).layers[2], record(new).layers[2])


def test_clip_takes_openais_weights_a_tag_or_the_only_tag(hub):
    import open_clip

    assert from_open_clip.open_clip_name("ViT-L/14-quickgelu")[1] == "openai"
    assert from_open_clip.open_clip_name("ViT-L-14-quickgelu")[:2] == ("ViT-L-14-quickgelu", "openai")
    assert from_open_clip.open_clip_name("ViT-B/32/laion2b_s34b_b79k")[:2] == (
        "ViT-B-32",
        "laion2b_s34b_b79k",
    )
    assert from_open_clip.open_clip_name("ViT-B-32/laion2b_s34b_b79k")[2] == (
        "laion/CLIP-ViT-B-32-laion2B-s34B-b79K"
    )
    assert from_open_clip.open_clip_name("nllb-clip-base")[1] == "v1"
    with offline_hub.tiny_open_clip("ViT-B-32", quick_gelu=False):
        encoder = load("ClipVision", "ViT-B/32")  # OpenAI's weights want quick GELU, whatever the name says
    assert isinstance(encoder.blocks[0].mlp.gelu, open_clip.transformer.QuickGELU)


def test_custom_text_clip_keeps_its_text_tower_apart(tmp_path):
    offline_hub.clip(tmp_path, custom_text=True)
    encoder = load("ClipText", str(tmp_path))
    assert type(encoder.tower).__name__ == "CustomTextCLIP"
    assert encoder.blocks == list(encoder.tower.text.transformer.resblocks)
    assert record(encoder).recorded.tolist() == [3, 9, 4, 3]


def test_half_precision_weights_are_run_in_single_precision(tmp_path):
    from transformers import AutoModel

    offline_hub.vit(tmp_path)
    AutoModel.from_pretrained(tmp_path).half().save_pretrained(tmp_path)
    assert record(load("ViT", str(tmp_path))).layers[1].dtype == torch.float32


# ---------------------------------------------------------------------------------------------------------
# the recorded token


@pytest.mark.parametrize(("model", "checkpoint"), EACH)
def test_the_recorded_token_varies_over_the_inputs_in_every_layer(model, checkpoint):
    activations = record(load(model, checkpoint))
    for layer in activations.layers:
        recorded = pooled(activations, layer)
        apart = torch.cdist(recorded, recorded) + 1e9 * torch.eye(4)
        assert apart.min() > 1e-3 * recorded.norm(dim=1).max()


@pytest.mark.parametrize(("model", "checkpoint"), EACH)
def test_neither_batch_mates_nor_padding_change_a_sample(model, checkpoint):
    encoder = load(model, checkpoint)
    together = record(encoder)
    for row, item in enumerate(pictures() if encoder.modality == "image" else CAPTIONS):
        alone = record(encoder, [item])
        assert distance(pooled(alone)[0], pooled(together)[row]) < 2e-6
        for layer in together.layers:
            of_batch = together.layers[layer][row][together.mask[row]]
            assert distance(alone.layers[layer][0][alone.mask[0]], of_batch) < 2e-6


@pytest.mark.parametrize(("model", "checkpoint"), [pair for pair in EACH if not pair[0].startswith("Clip")])
def test_blocks_equal_the_hidden_states_that_transformers_returns(model, checkpoint):
    encoder = load(model, checkpoint)
    activations = record(encoder)
    with torch.no_grad():
        states = encoder.tower(**batch(encoder), output_hidden_states=True).hidden_states
    for layer, tokens in activations.layers.items():
        assert torch.equal(tokens, states[layer + 1])


@pytest.mark.parametrize("custom", [False, True])
def test_clips_recorded_token_is_the_one_that_its_embeddings_are_made_of(tmp_path, custom):
    """Projecting the last block's recorded token by hand gives what open_clip's own encoders return."""
    import open_clip

    offline_hub.clip(tmp_path, custom_text=custom)
    whole = open_clip.create_model(f"local-dir:{tmp_path}").eval()
    image, text = load("ClipVision", str(tmp_path)), load("ClipText", str(tmp_path))
    tower = whole.text if custom else whole
    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    with torch.no_grad():
        seen = whole.visual.ln_post(pooled(record(image))) @ whole.visual.proj
        read = tower.ln_final(pooled(record(text))) @ tower.text_projection
        assert torch.equal(seen, whole.encode_image(batch(image)["pixel_values"]))
        assert batch(text)["input_ids"].shape == (4, 10)  # cropped from 77
        assert (read - whole.encode_text(tokenizer(CAPTIONS))).abs().max() < 2e-6


def test_cropping_captions_changes_nothing():
    encoder = load("ClipText", "ViT-B/32-quickgelu")
    items = [encoder.preprocess(caption) for caption in CAPTIONS]
    whole = encoder.activations({"input_ids": torch.stack([item["input_ids"] for item in items])}, [0, 1])
    cropped = encoder.activations(encoder.collate(items), [0, 1])
    assert (whole.mask.shape[1], cropped.mask.shape[1]) == (77, 10)
    assert torch.equal(whole.mask[:, :10], cropped.mask)
    assert not whole.mask[:, 10:].any()
    for layer in (0, 1):
        assert (whole.layers[layer][:, :10] - cropped.layers[layer]).abs().max() < 2e-6


def test_the_originals_choice_is_the_same_for_every_caption_of_clip():
    activations = record(load("ClipText", token="first"))
    assert activations.recorded.tolist() == [0, 0, 0, 0]
    for layer in activations.layers:
        recorded = pooled(activations, layer)
        assert torch.equal(recorded, recorded[:1].expand(4, -1))


@pytest.mark.parametrize(("model", "checkpoint"), EACH)
def test_first_and_mean_are_reachable_for_every_encoder(model, checkpoint):
    first, mean = (load(model, checkpoint, token=token) for token in ("first", "mean"))
    assert (first.token, mean.token) == ("first", "mean")
    activations = record(first)
    assert torch.equal(pooled(activations), activations.layers[1][:, 0])
    activations = record(mean)
    for row in range(4):
        tokens = activations.layers[1][row][activations.mask[row]].double().mean(0)
        assert distance(pooled(activations)[row].double(), tokens) < 1e-6


# ---------------------------------------------------------------------------------------------------------
# the training mask


def test_registers_are_no_tokens_of_the_picture():
    activations = record(load("DinoV2", REGISTERS))
    assert activations.mask.shape == (4, 21)
    assert not activations.mask[:, 1:5].any()
    assert activations.mask.sum(1).tolist() == [17] * 4
    assert record(load("DinoV2", "dinov2_vitb14")).mask.sum(1).tolist() == [17] * 4


def test_padding_is_masked_in_text():
    assert record(load("Bert", "bert-base-uncased")).mask.sum(1).tolist() == [4, 10, 5, 4]
    assert record(load("ClipText")).mask.sum(1).tolist() == [4, 10, 5, 4]


def test_siglip_text_trains_on_its_words_and_on_the_last_token_that_it_records():
    encoder = load("SiglipText")
    activations = record(encoder)
    # characters, spaces and the end of text, then position 63, which SigLIP pools
    assert activations.mask.sum(1).tolist() == [len(caption) + 2 for caption in CAPTIONS]
    assert activations.mask[:, 63].all()
    assert activations.recorded.tolist() == [63] * 4
    assert list(batch(encoder)) == ["input_ids"]  # it was trained without an attention mask
    assert torch.equal(batch(encoder, ["A Dog"])["input_ids"], batch(encoder, ["a dog"])["input_ids"])
    long = batch(encoder, ["dog" * 100])["input_ids"][0]
    assert (len(long), int(long[-1])) == (64, 1)  # cut, and still closed by the end of text


def test_naflex_masks_the_patches_that_pad_a_picture():
    activations = record(load("SigLIP2Vision", NAFLEX))
    patches = [4 * 5, 3 * 6, 6 * 3, 4 * 4]  # the largest grids of 8-pixel patches within 20
    assert activations.mask.sum(1).tolist() == patches
    chosen, items, weights = activations.recorded_tokens()
    assert torch.equal(chosen, activations.mask.flatten().nonzero()[:, 0])
    np.testing.assert_allclose(weights, 1 / np.array(patches)[items], rtol=1e-6)


def test_captions_beyond_the_context_are_cut_and_empty_ones_are_read():
    for model in ("ClipText", "SiglipText", "Bert", "Deberta"):
        encoder = load(model)
        activations = record(encoder, ["red circle " * 1000, "", "猫は座る 🐈"])
        assert (
            activations.mask.shape[1] == {"ClipText": 77, "SiglipText": 64, "Bert": 64, "Deberta": 128}[model]
        )
        assert torch.isfinite(activations.layers[1]).all()


# ---------------------------------------------------------------------------------------------------------
# the wrapper


@pytest.mark.parametrize(("model", "checkpoint"), EACH)
def test_an_encoder_is_frozen_and_evaluated_and_loading_it_draws_nothing(model, checkpoint):
    before = torch.get_rng_state()
    encoder = load(model, checkpoint)
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(module.training for module in encoder.tower.modules())
    assert not any(parameter.requires_grad for parameter in encoder.tower.parameters())
    assert not record(encoder).layers[1].requires_grad
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("model", "checkpoint"), EACH)
def test_random_weights_are_drawn_from_their_seed(model, checkpoint):
    before = torch.get_rng_state()
    one, again, two = (load(model, checkpoint, random_weights=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    trained = load(model, checkpoint)
    ours, shapes = one.tower.state_dict(), {k: v.shape for k, v in trained.tower.state_dict().items()}
    assert {key: tensor.shape for key, tensor in ours.items()} == shapes
    outputs = [record(encoder).layers[1] for encoder in (one, again, two, trained)]
    assert torch.equal(outputs[0], outputs[1])
    assert distance(outputs[0], outputs[2]) > 0.01
    assert distance(outputs[0], outputs[3]) > 0.01
    assert torch.equal(batch(one)[next(iter(batch(one)))], batch(trained)[next(iter(batch(trained)))])


def hooks(encoder):
    return sum(len(module._forward_hooks) for module in encoder.tower.modules())


@pytest.mark.parametrize(("model", "checkpoint"), EACH)
def test_hooks_are_gone_afterwards_also_after_an_exception(model, checkpoint):
    encoder = load(model, checkpoint)
    record(encoder)
    assert hooks(encoder) == 0
    with pytest.raises((AttributeError, KeyError, TypeError, ValueError)):
        encoder.activations({"nonsense": torch.zeros(1)}, [0, 1])
    assert hooks(encoder) == 0


@pytest.mark.parametrize(("model", "checkpoint"), EACH)
def test_nothing_behind_the_last_wanted_block_is_computed(model, checkpoint):
    encoder = load(model, checkpoint)
    expected = record(encoder).layers[0]
    encoder.blocks[1].forward = None  # calling it would raise
    activations = record(encoder, layers=[-2])
    assert list(activations.layers) == [0]
    assert torch.equal(activations.layers[0], expected)


def test_layers_are_counted_from_either_end():
    encoder = load("Bert")
    assert encoder.resolve_layers(None) == [0, 1]
    assert encoder.resolve_layers([-1]) == [1]
    assert encoder.resolve_layers([-1, 1, 0]) == [0, 1]
    with pytest.raises(UserError, match=r"layer 2 .* has 2 blocks, --layers takes 0 to 1 or -1 to -2"):
        encoder.resolve_layers([2])
    with pytest.raises(UserError, match="layer -3"):
        encoder.resolve_layers([-3])


@pytest.mark.parametrize(("model", "checkpoint"), EACH)
def test_workers_may_be_started_afresh(model, checkpoint):
    """A DataLoader that spawns its workers pickles what prepares an item."""
    encoder = load(model, checkpoint)
    preprocess, collate = pickle.loads(pickle.dumps((encoder.preprocess, encoder.collate)))
    items = pictures() if encoder.modality == "image" else CAPTIONS
    ours, theirs = batch(encoder), collate([preprocess(item) for item in items])
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize("model", ["ClipVision", "SigLIP2Vision", "ViT", "DinoV2"])
def test_pictures_of_every_mode_are_read_as_rgb(model):
    encoder = load(model)
    colour = pictures()[0]
    for mode in ("L", "P", "RGBA", "CMYK"):
        picture = colour.convert(mode)
        as_rgb = encoder.preprocess(picture.convert("RGB"))["pixel_values"]
        assert as_rgb.shape == (3, 32, 32)
        assert torch.equal(encoder.preprocess(picture)["pixel_values"], as_rgb)


def test_blocks_can_be_named_by_hand():
    encoder = load("ViT", blocks="layers")
    assert encoder.n_layers == 2
    with pytest.raises(UserError, match=r"no blocks at 'encoder.layer'; --blocks takes one of layers \(2\)"):
        load("ViT", blocks="encoder.layer")


# ---------------------------------------------------------------------------------------------------------
# mistakes


def complaint(*arguments, **options):
    """The one line of the mistake that loading makes."""
    with pytest.raises(UserError) as caught:
        load(*arguments, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_unknown_words_name_the_choices():
    assert complaint("Clip").startswith(
        "unknown model 'Clip'; did you mean ClipText? --model takes one of ClipVision, ClipText, Sig"
    )
    assert complaint("vit").startswith("unknown model 'vit'; did you mean ViT? --model takes one of ")
    assert complaint("Bert", token="last") == "unknown token 'last'; --token takes own, first or mean"


def test_unknown_open_clip_names_say_what_to_type():
    message = complaint("ClipVision", "ViT-L/15-quickgelu")
    assert message.startswith("open_clip has no model 'ViT-L/15-quickgelu'; nearest: ViT-L-14-quickgelu, ")
    assert message.endswith("or write hf-hub:OWNER/NAME, local-dir:FOLDER or MODEL/TAG")
    assert complaint("ClipText", "ViT-H-14").startswith(
        "'ViT-H-14' does not say which weights to take; choose one of ViT-H-14/laion2b_s32b_b79k, "
    )
    assert "choose one of ViT-B-32/openai, " in complaint("ClipText", "ViT-B-32/laion")
    assert complaint("ClipText", "local-dir:nowhere") == (
        "there is no folder 'nowhere'; write local-dir:FOLDER of an open_clip model"
    )


def test_another_familys_checkpoint_names_the_row_that_takes_it():
    assert complaint("ViT", "bert-base-uncased") == (
        "'bert-base-uncased' is a 'bert' model, not vit; use --model Bert"
    )
    assert complaint("Bert", "google/siglip2-base-patch16-224").endswith(
        "use --model SigLIP2Vision or --model SiglipText"
    )


@pytest.mark.parametrize(
    ("said", "line"),
    [
        (["input_ids", "pixel_values"], "reads input_ids, so it is no encoder of images"),
        (["pixel_values", "task_inputs"], ""),  # as OneFormer has it
        ("pixel_values", ""),
    ],
)
def test_a_model_may_say_that_it_reads_several_inputs(said, line, monkeypatch):
    from transformers import ViTModel

    monkeypatch.setattr(ViTModel, "main_input_name", said)
    checkpoint = "google/vit-base-patch16-224"
    if line:
        assert complaint("ViT", checkpoint) == f"{checkpoint!r} {line}"
    else:
        assert load("ViT", checkpoint).n_layers == 2


def test_a_name_that_is_not_cached_says_how_to_fetch_it():
    message = complaint("ViT", "google/vit-huge-patch14-224-in21k")
    assert message == (
        "'google/vit-huge-patch14-224-in21k' is not in the Hugging Face cache and HF_HUB_OFFLINE is set; "
        "fetch it where there is a network with `hf download google/vit-huge-patch14-224-in21k`"
    )
    assert "did you mean bert-base-uncased?" in complaint("Bert", "bert-base-uncasd")
    assert "`hf download timm/vit_base_patch16_clip_224.openai`" in complaint("ClipText", "ViT-B/16")
    assert "`hf download laion/nowhere`" in complaint("ClipVision", "hf-hub:laion/nowhere")


class NotFound(http.server.BaseHTTPRequestHandler):
    """The hub's answer for a repository that it has not, or another; `asked` are the paths that it was asked for."""

    asked: ClassVar[list[str]] = []
    status, code = 404, "RepoNotFound"

    def do_HEAD(self):
        self.asked.append(self.path)
        self.send_response(self.status)
        self.send_header("X-Error-Code", self.code)
        self.end_headers()

    def log_message(self, *arguments):
        pass


def test_a_hub_that_does_not_answer_or_does_not_know_the_name_is_asked_once():
    from huggingface_hub import constants

    template = "/{repo_id}/resolve/{revision}/{filename}"
    with (
        mock.patch.object(constants, "HF_HUB_OFFLINE", False),
        http.server.HTTPServer(("127.0.0.1", 0), NotFound) as server,
    ):
        address = f"http://127.0.0.1:{server.server_port}"
        with mock.patch.object(constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9" + template):
            for model, name in (("ViT", "google/vit-huge"), ("ClipText", "hf-hub:google/vit-huge")):
                message = complaint(model, name)
                assert "not in the Hugging Face cache and the hub does not answer (" in message
                assert message.endswith("with `hf download google/vit-huge`")
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with mock.patch.object(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + template):
            message = complaint("ViT", "google/vit-base-patch16-22")
        server.shutdown()
    assert len(NotFound.asked) == 1
    assert message == (
        "'google/vit-base-patch16-22' is neither a folder nor a model that the Hugging Face hub shows you; "
        "did you mean google/vit-base-patch16-224? for a private or gated one run `hf auth login`"
    )


@pytest.mark.parametrize(
    ("status", "code", "said"),
    [
        (401, "RepoNotFound", "is neither a folder nor a model that the Hugging Face hub shows you; for a private"),
        (403, "GatedRepo", "is gated: ask for access on its page"),
        (403, "", "is not in the Hugging Face cache, and the hub answers 403: your token may not do that: ask for"),
        (404, "", "is not in the Hugging Face cache, and the hub answers 404: it has no such repository, file or"),
        (500, "", "is not in the Hugging Face cache, and the hub answers 500: that is its fault: give the same"),
    ],
)  # fmt: skip
def test_what_the_hub_answers_is_told_apart_from_no_answer(status, code, said):
    from huggingface_hub import constants

    Answering = type("Answering", (NotFound,), {"status": status, "code": code})
    with http.server.HTTPServer(("127.0.0.1", 0), Answering) as server:
        address = f"http://127.0.0.1:{server.server_port}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        with (
            mock.patch.object(constants, "HF_HUB_OFFLINE", False),
            mock.patch.object(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address),
        ):
            assert f"'me/private' {said}" in complaint("ViT", "me/private")
        server.shutdown()


def without(folder: Path, word: str):
    """Take the weights whose name contains `word` out of a checkpoint."""
    from safetensors.torch import load_file, save_file

    if (folder / "pytorch_model.bin").exists():
        weights = torch.load(folder / "pytorch_model.bin")
        torch.save({k: v for k, v in weights.items() if word not in k}, folder / "pytorch_model.bin")
        return
    file = next(folder.glob("*.safetensors"))
    weights = load_file(file)
    kept = {key: value for key, value in weights.items() if word not in key}
    assert len(kept) < len(weights)
    save_file(kept, file, {"format": "pt"})


@pytest.mark.parametrize(
    ("model", "build", "word", "said"),
    [
        ("Bert", offline_hub.bert, "layer.1.output.dense", "layer.1.output.dense.bias and 1 more"),
        ("Bert", offline_hub.bert, "word_embeddings", "embeddings.word_embeddings.weight"),
        ("ViT", offline_hub.vit, "patch_embeddings", "patch_embeddings.projection."),
        ("ViT", offline_hub.vit, "cls_token", "embeddings.cls_token"),
        ("SigLIP2Vision", offline_hub.siglip, "vision_model.embeddings", "embeddings.patch_embedding."),
        ("Deberta", offline_hub.deberta, "rel_embeddings", "rel_embeddings.weight"),  # read, never called
        ("ClipVision", offline_hub.clip, "visual.conv1", "visual.conv1.weight"),
    ],
)
def test_a_checkpoint_that_lacks_weights_of_its_blocks_or_in_front_is_refused(
    model, build, word, said, tmp_path
):
    build(tmp_path)
    without(tmp_path, word)
    message = complaint(model, str(tmp_path))
    assert "lacks weights of its blocks or of what is in front" in message or "Missing key(s)" in message
    assert said in message


@pytest.mark.parametrize(
    ("model", "build", "word"),
    [
        ("ViT", offline_hub.vit, "vit.layernorm"),
        ("SigLIP2Vision", offline_hub.siglip, "vision_model.head"),
        ("SiglipText", offline_hub.siglip, "vision_model"),
    ],
)
def test_what_lies_behind_the_blocks_or_beside_them_may_be_missing(model, build, word, tmp_path):
    build(tmp_path)
    whole = record(load(model, str(tmp_path)))
    without(tmp_path, word)
    encoder = load(model, str(tmp_path))
    assert torch.equal(record(encoder).layers[1], whole.layers[1])
    assert not any(parameter.requires_grad for parameter in encoder.tower.parameters())


def test_a_checkpoint_without_weights_is_never_filled_with_random_ones(tmp_path):
    for model, build in (("Bert", offline_hub.bert), ("ClipVision", offline_hub.clip)):
        folder = tmp_path / model
        folder.mkdir()
        build(folder)
        next(folder.glob("*.safetensors")).unlink()
        assert "cannot be loaded: " in complaint(model, str(folder))


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"


def settings(file: str, **values):
    """Change values in one of a checkpoint's JSON files."""

    def change(folder):
        path = folder / file
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


def text_of(file: str, text: str):
    """Put another text into one of a checkpoint's files."""
    return lambda folder: (folder / file).write_text(text)


BITS = {"quant_method": "bitsandbytes", "load_in_8bit": True}


@pytest.mark.parametrize(
    ("model", "build", "damage", "said"),
    [
        (
            "ViT",
            offline_hub.vit,
            settings("config.json", quantization_config=BITS),
            "is quantized (bitsandbytes)",
        ),
        ("ViT", offline_hub.vit, settings("config.json", hidden_act="foo"), "KeyError: 'foo'"),
        (
            "ViT",
            offline_hub.vit,
            settings("config.json", hidden_size="x"),
            "Field 'hidden_size' expected int",
        ),
        ("ViT", offline_hub.vit, settings("config.json", hidden_size=64), "its weights have other shapes"),
        (
            "ViT",
            offline_hub.vit,
            settings("config.json", num_attention_heads=0),
            "division or modulo by zero",
        ),
        ("ViT", offline_hub.vit, text_of("config.json", "3"), "TypeError: "),
        ("ViT", offline_hub.vit, text_of("config.json", POINTER), "config.json is a Git LFS pointer"),
        (
            "ViT",
            offline_hub.vit,
            text_of("model.safetensors", POINTER),
            "model.safetensors is a Git LFS pointer",
        ),
        ("ViT", offline_hub.vit, text_of("preprocessor_config.json", "[]"), "has no attribute 'get'"),
        ("Bert", offline_hub.bert, text_of("vocab.txt", POINTER), "run `git lfs pull` in "),
        ("Bert", offline_hub.bert, text_of("vocab.txt", "a\nb\nc"), "its tokenizer reads no caption: "),
        ("Bert", offline_hub.bert, text_of("tokenizer_config.json", "{"), "Expecting property name"),
        (
            "Bert",
            offline_hub.bert,
            settings("tokenizer_config.json", tokenizer_class="XLMTokenizer"),
            "need to install sacremoses",
        ),
        ("ClipText", offline_hub.clip, text_of("open_clip_config.json", '{"model_cfg": {}}'), "KeyError: "),
    ],
)
def test_a_damaged_checkpoint_ends_in_one_line(model, build, damage, said, tmp_path):
    build(tmp_path)
    damage(tmp_path)
    assert said in complaint(model, str(tmp_path))


def test_attention_of_a_package_that_is_missing_is_left_to_transformers(tmp_path):
    offline_hub.vit(tmp_path)
    expected = record(load("ViT", str(tmp_path))).layers[1]
    settings("config.json", _attn_implementation="flash_attention_2")(tmp_path)
    assert torch.equal(record(load("ViT", str(tmp_path))).layers[1], expected)


def test_pictures_that_a_processor_leaves_unequal_are_made_square(tmp_path):
    offline_hub.dinov2(tmp_path)
    settings("preprocessor_config.json", do_center_crop=False)(tmp_path)
    activations = record(load("DinoV2", str(tmp_path)))
    assert activations.mask.shape == (4, 17)
    assert torch.equal(pooled(activations)[:1], pooled(record(load("DinoV2", str(tmp_path)), pictures()[:1])))


# ---------------------------------------------------------------------------------------------------------
# captions


def test_a_vocabulary_larger_than_the_embedding_is_refused(tmp_path):
    offline_hub.bert(tmp_path)
    (tmp_path / "vocab.txt").write_text((tmp_path / "vocab.txt").read_text() + "one\nmore\n")
    assert "has a word of number 20, but the model embeds 19" in complaint("Bert", str(tmp_path))


def test_a_cut_vocabulary_is_told_by_its_share_of_unknown_tokens(tmp_path, capsys):
    offline_hub.bert(tmp_path)
    words = (tmp_path / "vocab.txt").read_text().split()
    encoder = load("Bert", str(tmp_path))
    assert encoder.unknown_share(["a dog", "a whale"]) == 0.25
    self_test.check_words(encoder, ["a dog", "a whale"])
    assert "does not know 25% of the tokens" in capsys.readouterr().err
    (tmp_path / "vocab.txt").write_text("\n".join(words[:8]) + "\n")
    with pytest.raises(
        UserError, match="does not know 75% of the tokens of the captions: is its vocabulary cut"
    ):
        self_test.check_words(load("Bert", str(tmp_path)), ["a red dog", "cat"])


@pytest.mark.parametrize(
    ("model", "spelled", "ids"),
    [
        ("Bert", "[SEP]", {1, 2}),
        ("Bert", "[MASK]", {3}),
        ("ClipText", "<end_of_text>", {49406, 49407}),
        ("ClipText", "<START_of_text>", {49406, 49407}),
        ("ClipText", "&lt;end_of_text&gt;", {49406, 49407}),
        ("SiglipText", "<eos>", {1}),
        ("Deberta", "[CLS]", {1}),
    ],
)
def test_special_tokens_spelled_in_a_caption_are_text(model, spelled, ids):
    encoder = load(model)
    plain, spelling = (batch(encoder, [text])["input_ids"][0].tolist() for text in ("a b", f"a {spelled} b"))
    specials = [[number for number in each if number in ids] for each in (plain, spelling)]
    assert specials[0] == specials[1]
    assert int(load(model).activations(batch(encoder, [f"a {spelled} b"]), [1]).mask.sum()) > len("a b")


# ---------------------------------------------------------------------------------------------------------
# the self-test

ITEMS = {"image": pictures()[:2], "text": [CAPTIONS[0], CAPTIONS[1]]}


@pytest.mark.parametrize("token", ["own", "first", "mean"])
@pytest.mark.parametrize(("model", "checkpoint"), EACH)
def test_every_encoder_of_the_table_passes_the_self_test(model, checkpoint, token):
    encoder = load(model, checkpoint, token=token)
    self_test.self_test(encoder, ITEMS[encoder.modality], [0, 1])


def spoilt(encoder, spoil):
    """An encoder whose last block's output is changed by `spoil` before it is caught."""
    encoder.blocks[1].register_forward_hook(lambda module, inputs, output: spoil(output))
    return encoder


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda x: x * (1 + 0.01 * (len(x) - 1)), "moves by 1.0% beside another item, in layer 1"),
        (
            lambda x: x[:, :, :16],
            "layer 1 puts out vectors of 16 where the model declares 32; name other blocks",
        ),
        (lambda x: x[:, 1:], "layer 1 puts out 9 tokens where 10 are expected"),
        (lambda x: x / (x.sum() * 0), "layer 1 puts out numbers that are not finite"),
        (lambda x: x + 0.1 * len(x), "an item's recorded token moves by"),
        (lambda x: torch.ones_like(x), "two different items have the same recorded token in layer 1"),
    ],
)
def test_outputs_that_cannot_be_trusted_fail_the_self_test(spoil, said):
    encoder = load("Bert")
    with pytest.raises(UserError) as caught:
        self_test.self_test(spoilt(encoder, spoil), ITEMS["text"], [1])
    assert f"{encoder.checkpoint} fails its self-test: " in str(caught.value)
    assert said in str(caught.value)


def test_a_cls_that_is_a_patch_fails_the_self_test():
    encoder = load("SigLIP2Vision")
    encoder.token = "cls"
    with pytest.raises(
        UserError, match="is not its CLS token, which does not pass through them; add --token mean"
    ):
        self_test.self_test(encoder, ITEMS["image"], [0, 1])


def test_blocks_may_be_named_in_any_order_but_once():
    forward, backward = (load("ViT", blocks=blocks) for blocks in ("layers.0,layers.1", "layers.1,layers.0"))
    ours, theirs = record(forward).layers, record(backward).layers
    assert torch.equal(ours[0], theirs[1])
    assert torch.equal(ours[1], theirs[0])
    assert complaint("ViT", blocks="layers.1,layers.1") == "--blocks layers.1,layers.1 names a module twice"


def test_a_tokenizer_without_its_vocabulary_is_refused(tmp_path):
    """transformers would make one of the special tokens, which reads every caption alike."""
    for model, build, files in (
        ("Bert", offline_hub.bert, ["vocab.txt"]),
        ("Deberta", offline_hub.deberta, ["vocab.json", "merges.txt"]),
        ("SiglipText", offline_hub.siglip, ["tokenizer.json"]),
    ):
        folder = tmp_path / model
        folder.mkdir()
        build(folder)
        for file in files:
            (folder / file).unlink()
        message = complaint(model, str(folder))
        assert message.endswith(f"cannot be loaded: the tokenizer of {folder} has no vocabulary")


def test_a_file_that_was_cut_short_is_named_as_such(hub, tmp_path):
    files = hub.add("google/vit-base-patch32-224-in21k", offline_hub.vit)
    weights = (files / "model.safetensors").read_bytes()
    (files / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    message = complaint("ViT", "google/vit-base-patch32-224-in21k")
    assert "is not in the Hugging Face cache (Error while deserializing header" in message
    assert message.endswith("`hf download google/vit-base-patch32-224-in21k`")
    message = complaint("ViT", str(files))
    assert "cannot be loaded: Error while deserializing header" in message


def test_a_device_that_is_not_there_is_refused():
    assert complaint("ViT", device="cuda:99").startswith("--device 'cuda:99' cannot be used (")
    assert complaint("ViT", device="gpu").endswith("; type cpu or cuda")
    assert complaint("ViT", device="meta").endswith("which not all kinds of devices have); type cpu or cuda")


def test_an_encoder_that_a_gpu_has_no_room_for_is_refused(monkeypatch):
    def full(module, device):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    monkeypatch.setattr(torch.nn.Module, "to", full)
    assert "too little memory for this encoder" in complaint("DemoViT", device="cuda")


def test_drawing_weights_leaves_the_gpus_random_numbers_alone(monkeypatch):
    monkeypatch.setattr(torch.cuda, "manual_seed_all", pytest.fail)
    wrappedmodels.load("DemoRandomVision")


# ---------------------------------------------------------------------------------------------------------
# DINOv2 under torch.hub's names


def test_dinov2_has_torch_hubs_names():
    assert hub_module.DINOV2 == {
        "dinov2_vits14": "facebook/dinov2-small",
        "dinov2_vits14_reg": "facebook/dinov2-with-registers-small",
        "dinov2_vitb14": "facebook/dinov2-base",
        "dinov2_vitb14_reg": "facebook/dinov2-with-registers-base",
        "dinov2_vitl14": "facebook/dinov2-large",
        "dinov2_vitl14_reg": "facebook/dinov2-with-registers-large",
        "dinov2_vitg14": "facebook/dinov2-giant",
        "dinov2_vitg14_reg": "facebook/dinov2-with-registers-giant",
    }


def test_dinov2s_positions_differ_from_the_hub_codes_by_as_much_as_the_readme_says(capsys):
    path = Path(wrappedmodels.__file__).parent / "benchmarks" / "dinov2_positions.py"
    measured = runpy.run_path(str(path))["main"](["--width", "768"])
    assert [round(difference, 2) for difference, _ in measured.values()] == [0.02, 0.03, 0.07, 0.3]
    assert "0.22 at the last" in capsys.readouterr().out


# ---------------------------------------------------------------------------------------------------------
# real sizes


def b_size(model: str, folder: Path):
    """A family's configuration and preprocessing at its real B size, without weights."""
    from transformers import BertConfig, DebertaConfig, Dinov2Config, SiglipConfig, ViTConfig

    positions = dict(relative_attention=True, pos_att_type=["c2p", "p2c"], position_biased_input=False)
    configs = {
        "SigLIP2Vision": SiglipConfig(),
        "SiglipText": SiglipConfig(text_config={"vocab_size": 256_000, "projection_size": 768}),
        "ViT": ViTConfig(),
        "DinoV2": Dinov2Config(image_size=518, patch_size=14),
        "Bert": BertConfig(),
        "Deberta": DebertaConfig(**positions, type_vocab_size=0),
    }
    offline_hub.PAPER[REGISTRY[model].checkpoint][1](folder)
    configs[model].save_pretrained(folder)
    if REGISTRY[model].modality == "image":
        processor = json.loads((folder / "preprocessor_config.json").read_text())
        square = {"height": 224, "width": 224}
        sizes = (
            {"size": {"shortest_edge": 256}, "crop_size": square} if model == "DinoV2" else {"size": square}
        )
        (folder / "preprocessor_config.json").write_text(json.dumps(processor | sizes))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "n_tokens", "width"),
    [
        ("ClipVision", 50, 768),
        ("ClipText", 10, 512),
        ("SigLIP2Vision", 196, 768),
        ("SiglipText", 64, 768),
        ("ViT", 197, 768),
        ("DinoV2", 257, 768),
        ("Bert", 10, 768),
        ("Deberta", 41, 768),
    ],
)
def test_a_family_at_its_b_size_records_a_batch(model, n_tokens, width, tmp_path):
    from open_clip import factory

    checkpoint = str(tmp_path)
    with mock.patch.object(factory, "_MODEL_CONFIGS", {}):
        factory._rescan_model_configs()  # the real sizes, which the fixture has shrunk
        if model.startswith("Clip"):
            checkpoint = "ViT-B/32-quickgelu"
        else:
            b_size(model, tmp_path)
        encoder = load(model, checkpoint, random_weights=0)
    assert encoder.n_layers == 12
    activations = record(encoder, layers=[5, -1])
    assert {layer: tuple(a.shape) for layer, a in activations.layers.items()} == {
        5: (4, n_tokens, width),
        11: (4, n_tokens, width),
    }
    recorded = pooled(activations)
    assert (torch.cdist(recorded, recorded) + 1e9 * torch.eye(4)).min() > 0


# ---------------------------------------------------------------------------------------------------------
# the script


def test_importing_the_registry_is_light():
    """--help of the train scripts lists the encoders: it must not wait for torch."""
    code = (
        "import sys, wrappedmodels; print(*{'torch', 'transformers', 'open_clip', 'timm'} & {*sys.modules})"
    )
    root = Path(wrappedmodels.__file__).parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
