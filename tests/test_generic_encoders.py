"""Encoders beyond the paper, by the generic rows, on tiny random weights under their real names."""

import json
from pathlib import Path

import numpy as np
import offline_hub
import pytest
import torch
import transformers
from offline_hub import PICTURE, SIZE, WORDS
from test_wrappedmodels import CAPTIONS, batch, complaint, distance, hooks, pictures, pooled, record

import check
from encoders import self_test
from plumbing.errors import UserError
from wrappedmodels import REGISTRY, load

SPECIALS = ["<pad>", "<s>", "</s>", "<mask>", "<unk>"]
TEXT = dict(**SIZE, vocab_size=len(SPECIALS) + len(WORDS), bos_token_id=1, eos_token_id=2, pad_token_id=0)


def save(folder: Path, kind: str, config, model: str = "Model"):
    """A random model of a transformers family, in `folder`."""
    build = getattr(transformers, kind + model)
    offline_hub.seeded(lambda: build(config)).save_pretrained(folder)


def vision(kind: str, **config):
    """A builder of an image encoder of transformers of the usual size, or of what `config` says."""

    def build(folder: Path):
        save(folder, kind, getattr(transformers, f"{kind}Config")(**(SIZE | PICTURE | config)))
        offline_hub.picture_processor(folder, "ViTImageProcessor")

    return build


def swin(folder: Path):
    """Three stages of 16, 4 and 4 tokens."""
    stages = dict(patch_size=4, embed_dim=16, depths=[1, 2, 1], num_heads=[2, 2, 2], window_size=2)
    save(folder, "Swin", transformers.SwinConfig(image_size=32, **stages))
    offline_hub.picture_processor(folder, "ViTImageProcessor")


def resnet(folder: Path):
    """Two stages of convolutions, both of 4 x 4 places."""
    stages = dict(embedding_size=8, hidden_sizes=[16, 32], depths=[1, 1], layer_type="basic")
    save(folder, "ResNet", transformers.ResNetConfig(**stages, downsample_in_first_stage=False))
    offline_hub.picture_processor(folder, "ViTImageProcessor")


def text(kind: str, config: dict, start="<s>", end="</s>", model="Model", longest=64, **roles):
    def build(folder: Path):
        save(folder, kind, getattr(transformers, f"{kind}Config")(**config), model)
        tokenizer = offline_hub.word_level(SPECIALS, start, end, model_max_length=longest, **roles)
        tokenizer.save_pretrained(folder)

    return build


ROLES = dict(pad_token="<pad>", cls_token="<s>", sep_token="</s>", bos_token="<s>", eos_token="</s>")
ROBERTA = dict(TEXT, max_position_embeddings=66, pad_token_id=1)
QWEN = dict(SIZE, vocab_size=257, num_key_value_heads=1, max_position_embeddings=64)
T5 = dict(d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2, vocab_size=TEXT["vocab_size"])
GPT2 = dict(n_embd=32, n_layer=2, n_head=2, n_positions=64, vocab_size=257)
MODERN = dict(TEXT, max_position_embeddings=64, cls_token_id=1, sep_token_id=2, reference_compile=False)


def of_bytes(kind: str, config: dict):
    """A builder of a decoder that reads bytes, without a start, an end or a padding."""

    def build(folder: Path):
        from tokenizers.pre_tokenizers import ByteLevel

        save(folder, kind, getattr(transformers, f"{kind}Config")(**config))
        characters = ["<|endoftext|>", *sorted(ByteLevel.alphabet())]
        vocabulary = {character: number for number, character in enumerate(characters)}
        tokenizer = getattr(transformers, f"{kind}Tokenizer")(vocabulary, [], model_max_length=64)
        tokenizer.save_pretrained(folder)

    return build


def clip(folder: Path):
    """Both towers of CLIP as transformers has them."""
    vision_config = dict(**SIZE, **PICTURE)
    text_config = dict(TEXT, max_position_embeddings=64)
    save(folder, "CLIP", transformers.CLIPConfig(text_config=text_config, vision_config=vision_config))
    offline_hub.picture_processor(folder, "CLIPImageProcessor", crop_size={"height": 32, "width": 32})
    offline_hub.word_level(SPECIALS, "<s>", "</s>", model_max_length=64, **ROLES).save_pretrained(folder)


def roberta(folder: Path):
    """Padding is id 1 and positions begin behind it, as in RoBERTa and MPNet."""
    text("Roberta", ROBERTA, **ROLES)(folder)


def clap(folder: Path, fusion: bool = False):
    """Both towers of CLAP: a Swin of four stages over the spectrogram, and a RoBERTa."""
    audio = dict(
        spec_size=64,
        num_mel_bins=32,
        patch_size=4,
        patch_stride=[4, 4],
        patch_embeds_hidden_size=8,
        depths=[1, 1, 1, 2],
        num_attention_heads=[1, 1, 2, 2],
        window_size=2,
        hidden_size=64,
        projection_dim=16,
        enable_fusion=fusion,
    )
    config = transformers.ClapConfig(
        text_config=dict(ROBERTA, projection_dim=16), audio_config=audio, projection_dim=16
    )
    save(folder, "Clap", config)
    sound = dict(feature_size=32, sampling_rate=8000, max_length_s=1, hop_length=80, fft_window_size=256)
    options = dict(frequency_max=4000, truncation="fusion" if fusion else "rand_trunc")
    transformers.ClapFeatureExtractor(**sound, **options).save_pretrained(folder)
    offline_hub.word_level(SPECIALS, "<s>", "</s>", model_max_length=64, **ROLES).save_pretrained(folder)


def timm_model(folder: Path, architecture: str, **arguments):
    """A timm repository: configuration, with the arguments that make the model tiny, and weights."""
    import timm

    model = offline_hub.seeded(lambda: timm.create_model(architecture, num_classes=0, **arguments))
    offline_hub.save_tensors(model, folder / "model.safetensors")
    picture = {"input_size": [3, 32, 32], "crop_pct": 1.0, "mean": [0.5] * 3, "std": [0.5] * 3}
    settings = dict(picture, interpolation="bicubic", num_classes=0)
    described = {"architecture": architecture, "num_classes": 0, "model_args": arguments}
    (folder / "config.json").write_text(json.dumps({**described, "pretrained_cfg": settings}))


TIMM_VIT = dict(embed_dim=32, depth=2, num_heads=2, img_size=32, patch_size=8)
MAE = "facebook/vit-mae-base"
AIM = "apple/aimv2-large-patch14-native"
DINO3 = "facebook/dinov3-vitb16-pretrain-lvd1689m"

# name: (row, builder, blocks, recorded token, tokens that train, width)
IMAGES = {
    "google/siglip-base-patch16-224": ("HFVision", offline_hub.siglip, "encoder.layers", "mean", 16, 32),
    AIM: ("HFVision", vision("Aimv2Vision"), "encoder.layers", "mean", 16, 32),
    DINO3: ("HFVision", vision("DINOv3ViT", num_register_tokens=4), "model.layer", "cls", 17, 32),
    MAE: ("HFVision", vision("ViTMAE"), "layers", "cls", 17, 32),
    "microsoft/beit-base-patch16-224": ("HFVision", vision("Beit"), "layers", "cls", 17, 32),
    "facebook/deit-base-distilled-patch16-224": ("HFVision", vision("DeiT"), "layers", "cls", 17, 32),
    "openai/clip-vit-base-patch32": ("HFVision", clip, "encoder.layers", "cls", 17, 32),
    "microsoft/swin-tiny-patch4-window7-224": ("HFVision", swin, "encoder.layers", "mean", 4, 64),
    "microsoft/resnet-18": ("HFVision", resnet, "encoder.stages", "mean", 16, 32),
    "timm/vit_base_patch16_224.augreg_in1k": (
        "TimmVision",
        lambda folder: timm_model(folder, "vit_base_patch16_224", **TIMM_VIT),
        "blocks",
        "cls",
        17,
        32,
    ),
    "timm/vit_base_patch14_reg4_dinov2.lvd142m": (
        "TimmVision",
        lambda folder: timm_model(folder, "vit_base_patch14_reg4_dinov2", **TIMM_VIT),
        "blocks",
        "cls",
        17,
        32,
    ),
    "timm/swin_tiny_patch4_window7_224.ms_in1k": (
        "TimmVision",
        lambda folder: timm_model(
            folder,
            "swin_tiny_patch4_window7_224",
            img_size=32,
            window_size=4,
            embed_dim=16,
            depths=[2, 2],
            num_heads=[2, 2],
        ),
        "layers",
        "mean",
        16,
        32,
    ),
    "timm/resnet18.a1_in1k": (
        "TimmVision",
        lambda folder: timm_model(folder, "resnet18", channels=[8, 8, 16, 32]),
        "layer1,layer2,layer3,layer4",
        "mean",
        1,
        32,
    ),
    "hf-hub:timm/eva02_base_patch16_clip_224.merged2b": (
        "OpenClipVision",
        lambda folder: offline_hub.clip(
            folder,
            custom_text=True,
            vision_cfg={
                "timm_model_name": "eva02_tiny_patch14_224",
                "timm_model_pretrained": False,
                "timm_pool": "token",
                "timm_proj": None,
                "image_size": 224,
            },
        ),
        "visual.trunk.blocks",
        "cls",
        257,
        192,
    ),
    "ViT-B-32-quickgelu/metaclip_400m": (
        "OpenClipVision",
        offline_hub.clip,
        "visual.transformer.resblocks",
        "cls",
        17,
        32,
    ),
    "RN50-quickgelu": (
        "OpenClipVision",
        lambda folder: offline_hub.clip(folder, vision_cfg=RN),
        "visual.layer1,visual.layer2,visual.layer3,visual.layer4",
        "mean",
        1,
        256,
    ),
}
RN = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8}
SAME_RESOLUTION = [name for name in IMAGES if not any(kind in name for kind in ("swin", "resnet", "RN50"))]

# name: (row, builder, blocks, recorded token, its position in each caption)
END = [3, 9, 4, 3]  # of CAPTIONS between a start and an end
LAST_BYTE = [len(caption) - 1 for caption in CAPTIONS]
TEXTS = {
    "FacebookAI/roberta-base": ("HFText", roberta, "encoder.layer", "cls", [0] * 4),
    "answerdotai/ModernBERT-base": ("HFText", text("ModernBert", MODERN, **ROLES), "layers", "cls", [0] * 4),
    "microsoft/mpnet-base": ("HFText", text("MPNet", ROBERTA, **ROLES), "encoder.layer", "cls", [0] * 4),
    "google-t5/t5-small": (
        "HFText",
        text("T5", T5, start=None, pad_token="<pad>", eos_token="</s>"),
        "block",
        "mean",
        None,
    ),
    "openai-community/gpt2": ("HFText", of_bytes("GPT2", GPT2), "h", "last", LAST_BYTE),
    "Qwen/Qwen2.5-0.5B": ("HFText", of_bytes("Qwen2", QWEN), "layers", "last", LAST_BYTE),
    "openai/clip-vit-base-patch32": ("HFText", clip, "encoder.layers", "end_of_text", END),
    "google/siglip-base-patch16-224": ("HFText", offline_hub.siglip, "encoder.layers", "last", [63] * 4),
    "laion/clap-htsat-unfused": ("ClapText", clap, "encoder.layer", "cls", [0] * 4),
    "ViT-B-32-quickgelu/metaclip_400m": (
        "OpenClipText",
        offline_hub.clip,
        "transformer.resblocks",
        "end_of_text",
        END,
    ),
    "ViT-B-16-SigLIP": (
        "OpenClipText",
        lambda folder: offline_hub.clip(folder, custom_text=True, text_cfg=SIGLIP_TEXT),
        "transformer.resblocks",
        "last",
        [63] * 4,
    ),
    "coca_ViT-B-32": (
        "OpenClipText",
        lambda folder: offline_hub.clip(folder, custom_text=True, text_cfg=COCA_TEXT),
        "transformer.resblocks",
        "last",
        [76] * 4,
    ),
}
SMALL_TEXT = {"vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
SIGLIP_TEXT = dict(SMALL_TEXT, context_length=64, no_causal_mask=True, pool_type="last")
COCA_TEXT = dict(SMALL_TEXT, context_length=76, embed_cls=True)
# these keep open_clip's own repositories, so their tiny models are folders
FOLDERS = ("RN50-quickgelu", "ViT-B-16-SigLIP", "coca_ViT-B-32")
SOUNDS = [
    (np.sin(np.arange(length) * pitch).astype(np.float32), 16_000)
    for length, pitch in ((8_000, 0.1), (16_000, 0.2), (30_000, 0.4), (3_000, 0.8))
]


@pytest.fixture(scope="module", autouse=True)
def checkpoints(tmp_path_factory):
    """Each name's checkpoint: itself in the cache, or the folder that stands for it."""
    found, added = {}, set()
    with (
        offline_hub.cache(tmp_path_factory.mktemp("hub")) as hub,
        offline_hub.tiny_open_clip("ViT-B-32-quickgelu"),
    ):
        hub.add("timm/vit_base_patch32_clip_224.metaclip_400m", offline_hub.clip)
        for side, table in (("image", IMAGES), ("text", TEXTS)):
            for name, row in table.items():
                if name in FOLDERS:
                    found[side, name] = str(tmp_path_factory.mktemp("folder"))
                    row[1](Path(found[side, name]))
                elif "metaclip" not in name and name not in added:
                    hub.add(name.removeprefix("hf-hub:"), row[1])
                    added.add(name)
        hub.add("laion/clap-htsat-fused", clap, fusion=True)
        hub.add("albert/albert-base-v2", text("Albert", dict(TEXT, embedding_size=32), **ROLES))
        yield found


@pytest.fixture
def open_row(checkpoints):
    def load_row(side, name, **options):
        row = (IMAGES if side == "image" else TEXTS)[name][0]
        return load(row, checkpoints.get((side, name), name), **options)

    return load_row


# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_encoder_is_asked_for_its_blocks_token_and_width(name, open_row):
    _, _, blocks, token, trained, width = IMAGES[name]
    encoder = open_row("image", name)
    assert (encoder.path, encoder.token) == (blocks, token)
    activations = record(encoder, layers=[-1])
    assert activations.mask.sum(1).tolist() == [trained] * 4
    assert activations.layers[encoder.n_layers - 1].shape[2] == width
    if token == "cls":
        assert activations.recorded.tolist() == [0] * 4
    recorded = pooled(activations)
    assert (torch.cdist(recorded, recorded) + 1e9 * torch.eye(4)).min() > 1e-4 * recorded.norm(dim=1).max()
    alone = record(encoder, pictures()[1:2], layers=[-1])
    assert distance(pooled(alone)[0], recorded[1]) < 1e-5
    assert hooks(encoder) == 0
    other = open_row("image", name, random_weights=3)
    assert distance(pooled(record(other, layers=[-1])), recorded) > 1e-3


@pytest.mark.parametrize("name", SAME_RESOLUTION)
def test_blocks_of_one_resolution_are_recorded_together(name, open_row):
    encoder = open_row("image", name)
    both = record(encoder)
    assert len(both.layers) == encoder.n_layers >= 2
    assert torch.equal(record(encoder, layers=[0]).layers[0], both.layers[0])


@pytest.mark.parametrize("name", TEXTS)
def test_a_text_encoder_is_asked_for_its_blocks_and_token(name, open_row):
    _, _, blocks, token, positions = TEXTS[name]
    encoder = open_row("text", name)
    assert (encoder.path, encoder.token) == (blocks, token)
    activations = record(encoder)
    assert list(activations.layers) == [0, 1]
    if positions:
        assert activations.recorded.tolist() == positions
    recorded = pooled(activations)
    assert (torch.cdist(recorded, recorded) + 1e9 * torch.eye(4)).min() > 1e-4 * recorded.norm(dim=1).max()
    for caption in range(4):
        alone = record(encoder, CAPTIONS[caption : caption + 1])
        assert distance(pooled(alone)[0], recorded[caption]) < 1e-5
    assert torch.isfinite(record(encoder, ["a red circle " * 500, "", "猫"]).layers[1]).all()
    assert hooks(encoder) == 0
    other = open_row("text", name, random_weights=3)
    assert distance(pooled(record(other)), recorded) > 1e-3


HIDDEN = [("image", name) for name in IMAGES if IMAGES[name][0] == "HFVision"]
HIDDEN += [("text", name) for name in TEXTS if TEXTS[name][0] in ("HFText", "ClapText")]


@pytest.mark.parametrize(
    ("side", "name"), [pair for pair in HIDDEN if pair[1] not in (MAE, "microsoft/resnet-18")]
)
def test_blocks_equal_the_hidden_states_that_transformers_returns(side, name, open_row):
    """The last is compared where the family does not return it behind a last norm."""
    encoder = open_row(side, name)
    with torch.no_grad():
        states = encoder.tower(**batch(encoder), output_hidden_states=True).hidden_states
    assert torch.equal(record(encoder, layers=[0]).layers[0], states[1])


def test_a_masked_autoencoder_sees_whole_pictures_in_order(open_row):
    encoder = open_row("image", MAE)
    before = torch.get_rng_state()
    first, second = record(encoder), record(encoder)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.layers[1], second.layers[1])
    tower, pixels = encoder.tower, batch(encoder)["pixel_values"]
    with torch.no_grad():  # by hand: patches in order, behind CLS, through the first block
        patches = tower.embeddings.patch_embeddings(pixels) + tower.embeddings.position_embeddings[:, 1:]
        cls = (tower.embeddings.cls_token + tower.embeddings.position_embeddings[:, :1]).expand(4, -1, -1)
        expected = tower.layers[0](torch.cat([cls, patches], 1), None)
    torch.testing.assert_close(first.layers[0], expected)


def test_feature_maps_become_tokens_whichever_way_round_they_are(open_row):
    for name in ("timm/swin_tiny_patch4_window7_224.ms_in1k", "microsoft/resnet-18"):
        encoder = open_row("image", name)
        caught = []
        encoder.blocks[1].register_forward_hook(lambda *call, caught=caught: caught.append(call[2]))
        tokens = record(encoder, layers=[1]).layers[1]
        feature_map = caught[0] if encoder.parts.channels_last else caught[0].movedim(1, 3)
        assert encoder.parts.channels_last == name.startswith("timm")
        assert feature_map.shape == (4, 4, 4, 32)
        for place in range(16):
            assert torch.equal(tokens[:, place], feature_map[:, place // 4, place % 4])


@pytest.mark.parametrize("name", ["microsoft/swin-tiny-patch4-window7-224", "timm/resnet18.a1_in1k"])
def test_stages_of_different_resolution_are_refused_in_one_run(name, open_row):
    encoder = open_row("image", name)
    with pytest.raises(
        UserError, match=r"different numbers of tokens \(0: \d+, 1: .*the last with --layers -1"
    ):
        record(encoder)


def test_a_decoder_without_padding_is_padded_and_masked(open_row):
    encoder = open_row("text", "openai-community/gpt2")
    lengths = [len(caption) for caption in CAPTIONS]
    assert batch(encoder)["attention_mask"].sum(1).tolist() == lengths
    assert record(encoder).mask.sum(1).tolist() == lengths
    assert batch(encoder, [""])["input_ids"].tolist() == [[0]]  # its end of text stands for no caption


def test_an_encoder_and_decoder_is_run_without_its_decoder(open_row):
    encoder = open_row("text", "google-t5/t5-small")
    assert type(encoder.tower).__name__ == "T5Stack"
    assert not encoder.tower.is_decoder


def test_positions_of_roberta_begin_behind_the_padding(open_row):
    encoder = open_row("text", "FacebookAI/roberta-base")
    assert encoder.tower.config.max_position_embeddings == 66
    assert batch(encoder, ["dog " * 100])["input_ids"].shape == (1, 64)


def test_siglip_of_open_clip_pools_its_last_token(open_row):
    import open_clip

    encoder = open_row("text", "ViT-B-16-SigLIP")
    whole = open_clip.create_model(f"local-dir:{encoder.checkpoint}").eval()
    with torch.no_grad():
        read = whole.text.ln_final(pooled(record(encoder))) @ whole.text.text_projection
        assert torch.equal(read, whole.encode_text(batch(encoder)["input_ids"]))


def test_coca_pools_the_token_that_it_appends(open_row):
    import open_clip

    encoder = open_row("text", "coca_ViT-B-32")
    activations = record(encoder)
    assert activations.mask.sum(1).tolist() == [position + 2 for position in END]
    whole = open_clip.create_model(f"local-dir:{encoder.checkpoint}").eval()
    with torch.no_grad():
        read = whole.text.ln_final(pooled(activations)) @ whole.text.text_projection
        assert torch.equal(read, whole.encode_text(batch(encoder)["input_ids"]))


# ---------------------------------------------------------------------------------------------------------
# sounds


@pytest.mark.parametrize("name", ["laion/clap-htsat-unfused", "laion/clap-htsat-fused"])
def test_clap_hears_the_first_seconds_of_a_sound_the_same_each_time(name):
    encoder = load("ClapAudio", name)
    assert (encoder.modality, encoder.token, encoder.n_layers) == ("audio", "mean", 2)
    activations = record(encoder, SOUNDS)
    assert activations.layers[1].shape[::2] == (4, 64)
    assert activations.mask.all()
    again = record(encoder, SOUNDS)
    assert torch.equal(activations.layers[1], again.layers[1])  # also of the sound that is too long
    recorded = pooled(activations)
    assert (torch.cdist(recorded, recorded) + 1e9 * torch.eye(4)).min() > 1e-3 * recorded.norm(dim=1).max()
    for row, sound in enumerate(SOUNDS):
        assert distance(pooled(record(encoder, [sound]))[0], recorded[row]) < 1e-5
    frames, _ = SOUNDS[2]
    whole, cut = record(encoder, [(frames, 8_000), (frames[:8_000], 8_000)]).layers[1]
    assert torch.equal(whole, cut)  # this extractor's longest sound is a second


def test_sounds_are_resampled_to_what_clap_was_trained_on():
    import soxr

    encoder = load("ClapAudio", "laion/clap-htsat-unfused")
    frames, rate = SOUNDS[1]
    resampled = encoder.preprocess((soxr.resample(frames, rate, 8000), 8000))["input_features"]
    torch.testing.assert_close(encoder.preprocess((frames, rate))["input_features"], resampled)


def test_claps_last_block_is_its_last_stage():
    """The last stage is not downsampled, so its last block puts out what CLAP pools."""
    encoder = load("ClapAudio", "laion/clap-htsat-unfused")
    tokens = record(encoder, SOUNDS).layers[1]
    with torch.no_grad():
        states = encoder.tower(**batch(encoder, SOUNDS), output_hidden_states=True).hidden_states
    assert torch.equal(tokens, states[-1].flatten(2).transpose(1, 2))


# ---------------------------------------------------------------------------------------------------------
# what cannot be hooked, and --check


def test_what_cannot_be_hooked_is_refused_with_what_could_be():
    message = complaint("HFText", "albert/albert-base-v2")  # two layers that share one block
    assert message == (
        "0 lists of modules are as long as the 2 layers of the configuration of this AlbertModel; "
        "--blocks takes one of none"
    )
    message = complaint("HFText", "openai-community/gpt2", blocks="transformer.h")
    assert message == "there are no blocks at 'transformer.h'; --blocks takes one of h (2)"
    message = complaint("TimmVision", "timm/resnet18.a1_in1k", blocks="layer1,layer5")
    assert message.startswith("there is no module 'layer5'; --blocks takes one of layer1 (2), layer2 (2)")
    encoder = load("HFVision", "microsoft/swin-tiny-patch4-window7-224", blocks="layers.1.blocks")
    assert [tuple(tokens.shape) for tokens in record(encoder).layers.values()] == [
        (4, 16, 32)
    ] * 2  # both blocks of the second stage


def t5_encoder(folder: Path):
    """A checkpoint of the encoder alone, which calls itself no encoder-decoder."""
    text("T5", T5, start=None, model="EncoderModel", pad_token="<pad>", eos_token="</s>")(folder)


def clip_classifier(folder: Path):
    """CLIP's image tower below a classifier, beside a configuration of both towers."""
    clip(folder)
    config = transformers.CLIPConfig.from_pretrained(folder)
    save(folder, "CLIP", config, "ForImageClassification")


def sam(folder: Path):
    """Blocks that put out a feature map with its channels last."""
    vision_config = dict(SIZE, **PICTURE, mlp_dim=64, output_channels=8, num_pos_feats=4, window_size=2)
    config = transformers.SamConfig(vision_config=vision_config | {"global_attn_indexes": [1]})
    save(folder, "SamVision", config.vision_config, "Model")
    offline_hub.picture_processor(folder, "ViTImageProcessor")


KINDS = {  # what stands for a kind of architecture that is right: (row, builder, tokens that train, width)
    "an encoder alone of an encoder-decoder": ("HFText", t5_encoder, None, 32),
    "a tower with a head of its own": ("HFVision", clip_classifier, 17, 32),
    "feature maps whose width is last": ("HFVision", sam, 16, 32),
}
XLNET = dict(d_model=32, n_layer=2, n_head=2, d_inner=64, vocab_size=TEXT["vocab_size"])
BEHIND = dict(pad_token="<pad>", cls_token="<s>", sep_token="</s>")
REFUSED = {  # one that is refused: (row, builder, what the line says)
    "its tokens depend on batch mates": (
        "HFText",
        text("FNet", dict(TEXT, max_position_embeddings=64), **ROLES),
        "moves by",
    ),
    "its tokens come before its items": (
        "HFText",
        text("XLNet", XLNET, start=None, **BEHIND),
        "which are not tokens",
    ),
    "its blocks are no modules": (
        "HFText",
        text("SqueezeBert", dict(TEXT, embedding_size=32), **ROLES),
        "never called",
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_an_architecture_of_this_kind_is_right(kind, tmp_path):
    row, build, trained, width = KINDS[kind]
    build(tmp_path)
    encoder = load(row, str(tmp_path))
    items = CAPTIONS[:2] if encoder.modality == "text" else pictures()[:2]
    self_test.self_test(encoder, items, [0, 1])
    activations = record(encoder, items)
    assert activations.layers[1].shape[2] == width
    assert trained is None or activations.mask.sum(1).tolist() == [trained] * 2


@pytest.mark.parametrize("kind", REFUSED)
def test_an_architecture_of_this_kind_is_refused_in_one_line(kind, tmp_path):
    row, build, said = REFUSED[kind]
    build(tmp_path)
    with pytest.raises(UserError, match=said) as caught:
        self_test.self_test(load(row, str(tmp_path)), CAPTIONS[:2], [0, 1])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("cait_xxs24_224", "is not its CLS token, which does not pass through them; add --token mean"),
        ("crossvit_tiny_240", "put out a list, which is not tokens"),
        ("coat_tiny", "block 1 at 'serial_blocks1,parallel_blocks' of coat_tiny is never called as a module"),
    ],
)
def test_what_timm_has_that_is_no_row_of_tokens_is_refused_in_one_line(name, said):
    encoder = load("TimmVision", name, random_weights=0)
    with pytest.raises(UserError) as caught:
        self_test.self_test(encoder, pictures()[:2], [encoder.n_layers - 1])
    assert said in str(caught.value)


def test_a_block_that_puts_out_no_tokens_is_refused():
    encoder = load("HFVision", "google/siglip-base-patch16-224", blocks="embeddings.patch_embedding,head")
    with pytest.raises(
        UserError, match=r"put out \[4, 32\] for 4 samples, which are not tokens; --blocks takes"
    ):
        record(encoder, layers=[1])


def test_an_encoder_of_the_other_modality_is_refused():
    assert complaint("HFVision", "openai-community/gpt2") == (
        "'openai-community/gpt2' reads input_ids, so it is no encoder of images"
    )
    assert complaint("ClapAudio", "openai-community/gpt2") == (
        "'openai-community/gpt2' is a 'gpt2' model, not clap; use --model HFVision or --model HFText"
    )


def test_a_generic_row_wants_a_name_and_knows_its_librarys():
    assert complaint("HFText").startswith("HFText is a row for many encoders: name one with --checkpoint (")
    message = complaint("TimmVision", "vit_base_patch16_225")
    assert message.startswith("timm has no model 'vit_base_patch16_225'; nearest: vit_base_patch16_224, ")
    message = complaint("TimmVision", "vit_base_patch16_224.augreg_in21k")
    assert message.endswith("`hf download timm/vit_base_patch16_224.augreg_in21k`")


def test_clips_own_rows_refuse_what_pools_otherwise(checkpoints):
    folder = checkpoints["text", "ViT-B-16-SigLIP"]
    assert complaint("ClipText", folder) == (
        f"{folder!r} pools last, not end_of_text; use --model OpenClipText"
    )
    folder = checkpoints["image", "RN50-quickgelu"]
    assert complaint("ClipVision", folder) == f"{folder!r} pools mean, not cls; use --model OpenClipVision"


def test_check_tries_one_checkpoint(capsys):
    (checked,) = check.main(["--encoder", DINO3, "--model", "HFVision"])
    assert (checked.widths, checked.n_tokens, checked.trained, checked.recorded) == (
        [32] * 2,
        [21] * 2,
        17,
        [0],
    )
    printed = capsys.readouterr().out.splitlines()
    assert printed[:4] == [
        f"HFVision {DINO3} (image)",
        "  blocks    2 at model.layer, width 32",
        "  tokens    21, of which 17 train",
        "  recorded  cls: token 0",
    ]
    assert printed[4] == "  self-test passed"
    assert printed[5].startswith("  seconds   ")
    assert len(check.main(["--encoder", "laion/clap-htsat-unfused"])) == 2  # its sounds and its captions
    (checked,) = check.main(["--encoder", "timm/resnet18.a1_in1k", "--model", "TimmVision"])
    assert (checked.widths, checked.n_tokens) == ([8, 8, 16, 32], [64, 16, 4, 1])
    assert "width 8, 8, 16, 32" in capsys.readouterr().out


def test_check_ends_in_one_line_and_exit_code_two(capsys):
    for arguments, line in (
        (
            ["--encoder", "some/thing"],
            "error: 'some/thing' could be any kind of encoder: add --model, one of Clip",
        ),
        (["--model", "Vit"], "error: unknown model 'Vit'; did you mean ViT? --model takes one of ClipVision"),
        (
            ["--encoder", "some/thing", "--model", "ViT"],
            "error: 'some/thing' is not in the Hugging Face cache",
        ),
    ):
        with pytest.raises(SystemExit) as left:
            check.main(arguments)
        assert left.value.code == 2
        assert capsys.readouterr().err.startswith(line)


def test_every_generic_row_is_tested():
    tested = {row[0] for row in [*IMAGES.values(), *TEXTS.values()]} | {"ClapAudio"}
    generic = {name for name, row in REGISTRY.items() if not row.checkpoints and not name.startswith("Demo")}
    assert tested == generic
