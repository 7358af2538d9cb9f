"""What each of the demo's encoders is trained to do, and the folder that it is saved to."""

import copy
import json
import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from toyworld import drawing, telling, things
from toyworld.lessons import BLOCKS, CONTEXT, HEADS, MEAN, PATCH, STD, WIDTH, Recipe, Training, fit

# ---- CLIP: the picture and the caption of a scene find each other in a batch (arXiv 2103.00020)


def train_clip(data: Training, recipe: Recipe, folder: Path):
    """Contrast pictures with captions in both directions."""
    import open_clip

    tokenizer = word_tokenizer(begin="<bos>", end="<eos>")
    save_clip_config(folder, tokenizer)
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False).train()

    def loss_of_batch() -> Tensor:
        index = data.pick(recipe.batch)
        image, text, scale = model(data.images(index), data.tokens(index, tokenizer))
        logits, own = scale.clamp(max=100) * image @ text.T, torch.arange(recipe.batch)
        return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2

    fit("clip", model.parameters(), recipe, loss_of_batch)
    save_file(
        {key: value.half().contiguous() for key, value in model.state_dict().items()},
        folder / "open_clip_model.safetensors",
    )


def save_clip_config(folder: Path, tokenizer: PreTrainedTokenizerFast):
    """What open_clip's `local-dir:` needs beside the weights."""
    model = {
        "embed_dim": WIDTH,
        "vision_cfg": {
            "image_size": drawing.SIDE,
            "patch_size": PATCH,
            "layers": BLOCKS,
            "width": WIDTH,
            "head_width": WIDTH // HEADS,
        },
        "text_cfg": {
            "context_length": CONTEXT,
            "vocab_size": len(tokenizer),
            "layers": BLOCKS,
            "width": WIDTH,
            "heads": HEADS,
            "hf_tokenizer_name": "local",  # any name: it says that the tokenizer is the one in this folder
        },
    }
    preprocess = {"mean": [MEAN] * 3, "std": [STD] * 3, "size": drawing.SIDE}
    tokenizer.save_pretrained(folder)
    config = {"model_cfg": model, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")


def word_tokenizer(begin: str, end: str, mask: str | None = None) -> PreTrainedTokenizerFast:
    """A word is a token; padding is 0, and `end` has the highest id, where CLIP's pooling looks for it."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    special = ["<pad>", "<unk>", begin] + ([mask] if mask else [])
    names = [*special, *telling.PUNCTUATION, *telling.WORDS, end]
    ids = {name: number for number, name in enumerate(names)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A {end}", special_tokens=[(begin, ids[begin]), (end, ids[end])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token=begin,
        eos_token=end,
        cls_token=begin,
        sep_token=end,
        mask_token=mask,
        model_max_length=CONTEXT,
        padding_side="right",
        model_input_names=["input_ids", "attention_mask"],
    )


# ---- ViT: which shapes occur


def train_vit(data: Training, recipe: Recipe, folder: Path):
    """Tell from the pooled first token which of the six shapes a picture shows."""
    from transformers import ViTConfig, ViTImageProcessor, ViTModel

    model = ViTModel(ViTConfig(image_size=drawing.SIDE, patch_size=PATCH, **sizes())).train()
    head = nn.Linear(WIDTH, len(things.SHAPES))

    def loss_of_batch() -> Tensor:
        index = data.pick(recipe.batch)
        logits = head(model(data.images(index)).pooler_output)
        return F.binary_cross_entropy_with_logits(logits, data.shapes[index])

    fit("vit", [*model.parameters(), *head.parameters()], recipe, loss_of_batch)
    save_half(model, folder)
    size = {"height": drawing.SIDE, "width": drawing.SIDE}
    ViTImageProcessor(size=size, image_mean=[MEAN] * 3, image_std=[STD] * 3).save_pretrained(folder)


def sizes() -> dict[str, Any]:
    """What the configurations of transformers have in common."""
    return {
        "hidden_size": WIDTH,
        "num_hidden_layers": BLOCKS,
        "num_attention_heads": HEADS,
        "intermediate_size": 4 * WIDTH,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }


# ---- DINO: a student matches a slow copy of itself across views (arXiv 2104.14294)


class ProjectionHead(nn.Module):
    """DINO's head: a bottleneck on the unit sphere, compared with prototypes."""

    def __init__(self, n_prototypes: int = 256, bottleneck: int = 48):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, bottleneck))
        self.prototypes = nn.Parameter(torch.randn(n_prototypes, bottleneck))

    def forward(self, x: Float[Tensor, "n width"]) -> Float[Tensor, "n prototype"]:
        return F.normalize(self.layers(x), dim=-1) @ F.normalize(self.prototypes, dim=-1).T


class Student(nn.Module):
    """The encoder and its projection head."""

    model: PreTrainedModel

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model, self.head = model, ProjectionHead()

    def forward(self, views: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n prototype"]:
        return self.head(self.model(views).last_hidden_state[:, 0])


def train_dino(data: Training, recipe: Recipe, folder: Path):
    """Match, from one view of a picture, the code that the teacher gives another view of it."""
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

    common = sizes()
    del common["intermediate_size"]  # four times the width, by its own mlp_ratio
    model = Dinov2Model(Dinov2Config(image_size=drawing.SIDE, patch_size=PATCH, **common)).train()
    student = Student(model)
    teacher = copy.deepcopy(student).requires_grad_(False)
    center = torch.zeros(256)

    def loss_of_batch() -> Tensor:
        images = data.images(data.pick(recipe.batch))
        views = torch.cat([view(images), view(images)])
        seen = teacher(views)
        target = ((seen - center) / 0.04).softmax(-1).chunk(2)
        center.mul_(0.9).add_(0.1 * seen.mean(0))
        guess = (student(views) / 0.1).log_softmax(-1).chunk(2)
        return -((target[0] * guess[1]).sum(-1).mean() + (target[1] * guess[0]).sum(-1).mean()) / 2

    def follow(done: float):
        keep = 1 - 0.01 * (0.5 + 0.5 * math.cos(math.pi * done))
        for slow, fast in zip(teacher.parameters(), student.parameters(), strict=True):
            slow.mul_(keep).add_(fast.detach(), alpha=1 - keep)

    fit("dino", student.parameters(), recipe, loss_of_batch, follow)
    save_half(teacher.model, folder)
    BitImageProcessor(
        size={"shortest_edge": drawing.SIDE},
        crop_size={"height": drawing.SIDE, "width": drawing.SIDE},
        image_mean=[MEAN] * 3,
        image_std=[STD] * 3,
    ).save_pretrained(folder)


def view(images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 h w"]:
    """A random crop of each picture in full size, mirrored or not, tinted anew.

    A crop keeps most of the things, and the new tint hides the background's: views that could be matched by
    their ground alone would teach nothing of what stands on it.
    """
    n = len(images)
    scale = 0.8 + 0.2 * torch.rand(n)
    mirror = torch.randint(2, (n,)) * 2 - 1
    move = (torch.rand(n, 2) * 2 - 1) * (1 - scale)[:, None]
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1], theta[:, :, 2] = scale * mirror, scale, move
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    crop = F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    gain, lift = 1 + 0.2 * (torch.rand(n, 3, 1, 1) * 2 - 1), 0.3 * (torch.rand(n, 3, 1, 1) * 2 - 1)
    return crop * gain + lift


# ---- BERT: masked words, and a task of its own for the first token (arXiv 1810.04805)


def train_bert(data: Training, recipe: Recipe, folder: Path):
    """Fill in masked words, and foretell from the first token the words of another caption of the same scene.

    The second task stands in for BERT's next sentence: without it nothing asks the first token, which is the
    one recorded, for shapes and colours, since in these captions no other word foretells them.
    """
    from transformers import BertConfig, BertModel

    tokenizer = word_tokenizer(begin="<cls>", end="<sep>", mask="<mask>")
    config = BertConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=CONTEXT,
        type_vocab_size=1,
        pad_token_id=0,
        **sizes(),
    )
    model = BertModel(config).train()
    word_head, sentence_head = nn.Linear(WIDTH, len(tokenizer)), nn.Linear(WIDTH, len(tokenizer))

    def loss_of_batch() -> Tensor:
        index = data.pick(recipe.batch)
        ids, another = data.tokens(index, tokenizer), data.tokens(index, tokenizer)
        words = (ids > tokenizer.mask_token_id) & (ids != tokenizer.eos_token_id)
        masked = words & (torch.rand(ids.shape) < 0.15)
        inputs = ids.masked_fill(masked, tokenizer.mask_token_id)
        hidden = model(input_ids=inputs, attention_mask=(ids != 0).long()).last_hidden_state
        said = torch.zeros(recipe.batch, len(tokenizer)).scatter_(1, another, 1.0)
        foretold = F.binary_cross_entropy_with_logits(sentence_head(hidden[:, 0]), said)
        return F.cross_entropy(word_head(hidden[masked]), ids[masked]) + 10 * foretold

    parameters = [*model.parameters(), *word_head.parameters(), *sentence_head.parameters()]
    fit("bert", parameters, recipe, loss_of_batch)
    save_half(model, folder)
    tokenizer.save_pretrained(folder)


def save_half(model: PreTrainedModel, folder: Path):
    """Write half-precision weights whose configuration asks for float32 when they are loaded."""
    model.half().save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["dtype"] = "float32"
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
