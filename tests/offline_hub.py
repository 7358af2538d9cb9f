"""Tiny random models under real names: a Hugging Face cache that the real code reads without a network.

    with offline_hub.cache(folder) as hub:
        hub.add("bert-base-uncased", offline_hub.bert)
        wrappedmodels.load("Bert", "bert-base-uncased")

A builder is a function that writes a model with its processor or tokenizer into a folder, so the same one
makes a local checkpoint too: `offline_hub.bert(folder)`.
"""

import contextlib
import json
from pathlib import Path
from unittest import mock

import torch

WORDS = [
    "a",
    "the",
    "of",
    "on",
    "in",
    "over",
    "dog",
    "cat",
    "red",
    "blue",
    "small",
    "circle",
    "square",
    "sits",
]
SIZE = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
PICTURE = dict(image_size=32, patch_size=8)  # sixteen patches
COMMIT = "0" * 40


class Hub:
    """A cache folder, to which repositories are added by their real names."""

    def __init__(self, folder: Path):
        self.folder = folder

    def add(self, name: str, build, **options) -> Path:
        """Build a repository's files below `models--owner--name`, as a download would leave them."""
        repository = self.folder / f"models--{name.replace('/', '--')}"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text(COMMIT)
        files = repository / "snapshots" / COMMIT
        files.mkdir(parents=True)
        build(files, **options)
        return files


@contextlib.contextmanager
def cache(folder: Path):
    """Point huggingface_hub (and with it transformers, open_clip and timm) at `folder`, offline."""
    from huggingface_hub import constants

    with (
        mock.patch.object(constants, "HF_HUB_CACHE", str(folder)),
        mock.patch.object(constants, "HF_HUB_OFFLINE", True),
    ):
        yield Hub(Path(folder))


def seeded(build):
    """Draw a model's weights from a fixed seed, and leave the generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build().eval()
        for parameter in model.parameters():  # zero biases and unit scales would hide what is not applied
            parameter.data += 0.02 * torch.randn_like(parameter)
    return model


def word_level(specials: list[str], start: str, end: str, **roles):
    """A tokenizer of whole words behind transformers' interface: `start` caption `end`."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: number for number, word in enumerate([*specials, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=specials[-1]))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    around = [(word, vocabulary[word]) for word in (start, end) if word]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=" ".join(filter(None, [start, "$A", end])), special_tokens=around
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=specials[-1], **roles)


# ---------------------------------------------------------------------------------------------------------
# open_clip

CLIP_SIZE = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
CLIP_PICTURE = {"mean": [0.48, 0.46, 0.41], "std": [0.27, 0.26, 0.28]}


def clip(folder: Path, **changes):
    """An open_clip model beside its configuration, as in DFN's repositories and `local-dir:` folders."""
    import open_clip

    config = {**CLIP_SIZE, **changes}
    custom = config.pop("custom_text", False)
    build = open_clip.CustomTextCLIP if custom else open_clip.CLIP
    model = seeded(lambda: build(**config))
    save_tensors(model, folder / "open_clip_model.safetensors")
    model_cfg = {**config, **({"custom_text": True} if custom else {})}
    described = {"model_cfg": model_cfg, "preprocess_cfg": CLIP_PICTURE}
    (folder / "open_clip_config.json").write_text(json.dumps(described))


@contextlib.contextmanager
def tiny_open_clip(*names: str, **changes):
    """Shrink open_clip's built-in configurations, so that their real names load tiny weights."""
    from open_clip import factory

    with mock.patch.dict(factory._MODEL_CONFIGS, {name: {**CLIP_SIZE, **changes} for name in names}):
        yield


def save_tensors(model, path: Path):
    from safetensors.torch import save_file

    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path)


# ---------------------------------------------------------------------------------------------------------
# transformers


def picture_processor(folder: Path, name: str, **options):
    """An image processor of transformers that resizes to the tiny models' 32 pixels."""
    import transformers

    getattr(transformers, name)(**{"size": {"height": 32, "width": 32}, **options}).save_pretrained(folder)


def vit(folder: Path):
    from transformers import ViTConfig, ViTForImageClassification

    # as on the hub: with a classifier, without the pooler that AutoModel makes
    seeded(lambda: ViTForImageClassification(ViTConfig(**SIZE, **PICTURE))).save_pretrained(folder)
    picture_processor(folder, "ViTImageProcessor")


def dinov2(folder: Path, registers: int = 0):
    import transformers

    kind = "Dinov2WithRegisters" if registers else "Dinov2"
    extra = {"num_register_tokens": registers} if registers else {}
    config = getattr(transformers, f"{kind}Config")(**SIZE, image_size=56, patch_size=8, mlp_ratio=2, **extra)
    seeded(lambda: getattr(transformers, f"{kind}Model")(config)).save_pretrained(folder)
    picture_processor(
        folder,
        "BitImageProcessor",
        size={"shortest_edge": 36},
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
        crop_size={"height": 32, "width": 32},  # so that the position table is interpolated, as at 224 pixels
    )


def bert(folder: Path):
    from transformers import BertConfig, BertForMaskedLM

    specials = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", "[UNK]"]
    config = BertConfig(**SIZE, vocab_size=len(specials) + len(WORDS), max_position_embeddings=64)
    seeded(lambda: BertForMaskedLM(config)).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join([*specials, *WORDS]) + "\n")
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 64}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def deberta(folder: Path):
    """As on the hub: a pickled state dict, and a byte-level vocabulary of two files."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import DebertaConfig, DebertaModel

    specials = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"]
    vocabulary = [*specials, *sorted(ByteLevel.alphabet())]
    config = DebertaConfig(
        **SIZE,
        vocab_size=len(vocabulary),
        max_position_embeddings=128,
        relative_attention=True,
        pos_att_type=["c2p", "p2c"],
        position_biased_input=False,
        type_vocab_size=0,
    )
    model = seeded(lambda: DebertaModel(config))
    config.save_pretrained(folder)
    torch.save(
        {f"deberta.{key}": value for key, value in model.state_dict().items()}, folder / "pytorch_model.bin"
    )
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    settings = {"tokenizer_class": "DebertaTokenizer", "model_max_length": 128}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def siglip(folder: Path):
    """A fixed-resolution checkpoint of both towers: SigLIP 2's are of the type of SigLIP 1."""
    from transformers import SiglipConfig, SiglipModel

    text = dict(**SIZE, vocab_size=300, max_position_embeddings=64, projection_size=32)
    config = SiglipConfig(text_config=text, vision_config=dict(**SIZE, **PICTURE))
    seeded(lambda: SiglipModel(config)).save_pretrained(folder)
    half = dict(image_mean=[0.5] * 3, image_std=[0.5] * 3)
    picture_processor(folder, "SiglipImageProcessor", **half)
    gemma_tokenizer(folder)


def siglip_naflex(folder: Path):
    """Both towers with pictures of any shape, as a padded row of patches."""
    from transformers import Siglip2Config, Siglip2Model

    text = dict(**SIZE, vocab_size=300, max_position_embeddings=64, projection_size=32)
    vision = dict(**SIZE, num_patches=16, patch_size=8)
    config = Siglip2Config(text_config=text, vision_config=vision)
    seeded(lambda: Siglip2Model(config)).save_pretrained(folder)
    picture_processor(folder, "Siglip2ImageProcessor", patch_size=8, max_num_patches=20)
    gemma_tokenizer(folder)


def gemma_tokenizer(folder: Path):
    """Characters instead of pieces; an end of text after the caption, no beginning, as SigLIP 2 has it."""
    from tokenizers import processors
    from transformers import GemmaTokenizer

    specials = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    vocabulary = [*specials, "▁", *"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ."]
    vocabulary += [f"<0x{byte:02X}>" for byte in range(200)]
    tokenizer = GemmaTokenizer({word: number for number, word in enumerate(vocabulary)}, [])
    tokenizer._tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <eos>", special_tokens=[("<eos>", 1)]
    )
    tokenizer.save_pretrained(folder)


# ---------------------------------------------------------------------------------------------------------
# the paper's checkpoints: by the spelling of the command line, the repository behind it and its builder

PAPER = {
    "ViT-B/32-quickgelu": ("timm/vit_base_patch32_clip_224.openai", clip),
    "ViT-L/14-quickgelu": ("timm/vit_large_patch14_clip_224.openai", clip),
    "hf-hub:apple/DFN2B-CLIP-ViT-B-16": ("apple/DFN2B-CLIP-ViT-B-16", clip),
    "hf-hub:apple/DFN2B-CLIP-ViT-L-14": ("apple/DFN2B-CLIP-ViT-L-14", clip),
    "google/siglip2-base-patch16-224": ("google/siglip2-base-patch16-224", siglip),
    "google/siglip2-large-patch16-384": ("google/siglip2-large-patch16-384", siglip),
    "google/vit-base-patch16-224": ("google/vit-base-patch16-224", vit),
    "google/vit-large-patch16-384": ("google/vit-large-patch16-384", vit),
    "dinov2_vitb14": ("facebook/dinov2-base", dinov2),
    "dinov2_vitl14": ("facebook/dinov2-large", dinov2),
    "bert-base-uncased": ("bert-base-uncased", bert),
    "bert-large-uncased": ("bert-large-uncased", bert),
    "microsoft/deberta-base": ("microsoft/deberta-base", deberta),
    "microsoft/deberta-large": ("microsoft/deberta-large", deberta),
}


@contextlib.contextmanager
def paper(folder: Path):
    """A cache with every checkpoint of the paper, and open_clip's two built-in names shrunk to fit."""
    with cache(folder) as hub, tiny_open_clip("ViT-B-32-quickgelu", "ViT-L-14-quickgelu"):
        for repository, build in PAPER.values():
            hub.add(repository, build)
        yield hub
